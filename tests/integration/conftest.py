"""A folder of faces and two networks on disk, and a configuration small enough to train in seconds."""

from pathlib import Path

import numpy as np
import pytest
import torch

from attfc.backbones import create_backbone
from attfc.data import SyntheticFaces
from attfc.training.model_files import save_model

TINY = [
    "data.root=synthetic:identities=24,images=6,seed=0",
    "data.workers=0",
    "data.decoded_cache_mib=0",
    "batch_size=16",
    "backbone.name=r6_tiny",
    "schedule.epochs=2",
    "schedule.warmup_epochs=0",
    "eval.root=synthetic:identities=8,images=4,seed=0,first=1000",
    "eval.generated_pairs=40",
    "eval.every=0",
    "checkpoint.every=4",
    "log.every=1",
    "log.tensorboard=false",
    "threads=1",
    "precision.amp=bfloat16",
    "report.write=false",  # with it the last evaluation has intervals, for a second
    "report.pictures=false",
]


@pytest.fixture(scope="module", autouse=True)
def _rendered_once(rendered_once: None) -> None:
    """Of all files here."""


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two untrained networks whose BatchNorm statistics are those of faces."""
    found = []
    pixels = SyntheticFaces(8, 2, seed=9).images(np.arange(16), 56).pixels
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - 127.5) / 127.5
    for seed in (0, 1):
        torch.manual_seed(seed)
        backbone = create_backbone("r6_tiny", embedding_size=32)
        with torch.no_grad():
            for _ in range(20):
                backbone.train()(images)
        found.append(save_model(tmp_path_factory.mktemp(f"model {seed}"), backbone.eval()))
    return found


@pytest.fixture(scope="session")
def face_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 synthetic identities x 5 JPEG files, one identity with a single image, names with a space and non-ASCII letters."""
    root = tmp_path_factory.mktemp("faces") / "Bilder und Gesichter"
    store = SyntheticFaces(12, 5, seed=3)
    for position in range(len(store)):
        encoded, label = store.read(position)
        folder = root / (f"Zoë {label}" if label % 2 else f"person-{label:02d}")
        folder.mkdir(parents=True, exist_ok=True)
        if label != 11 or not any(folder.iterdir()):
            (folder / f"{folder.name}_{position % 5 + 1:04d}.jpg").write_bytes(encoded)
    return root
