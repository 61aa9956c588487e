"""A folder of faces on disk and a configuration small enough to train in seconds."""

from pathlib import Path

import pytest

from attfc.data import SyntheticFaces

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
