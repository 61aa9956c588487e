"""The tutorial's commands, one after the other, on rendered people in larger pictures."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attfc.backbones import create_backbone
from attfc.data import SyntheticFaces
from attfc.training.model_files import save_model

from .commands import run_main

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"
QUICK = {"align": ["--workers", "0"], "train": ["max_steps=4", "batch_size=16", "data.workers=0", "report.write=false"]}
PEOPLE = {
    "photos": ["ann", "bo", *(f"p{number}" for number in range(4))],
    "others": ["dan", *(f"q{number}" for number in range(17))],
}
IMAGES = {"photos": 3, "others": 5}


def take_photos(folder: Path, names: list[str], images: int, seed: int) -> None:
    """Write photos of 200 x 180 pixels with a rendered face somewhere in each."""
    random = np.random.default_rng(seed)
    faces = SyntheticFaces(len(names), images, seed=seed).images(np.arange(len(names) * images), 140).pixels
    for number, face in enumerate(faces):
        wall = random.integers(60, 180, (6, 6, 3), dtype=np.uint8)
        photo = Image.fromarray(wall).resize((200, 180), Image.Resampling.BICUBIC)
        photo.paste(Image.fromarray(face), tuple(random.integers(0, (60, 40)).tolist()))
        path = folder / names[number // images] / f"{number % images + 1}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo.save(path, quality=92)


def test_every_command_of_the_tutorial_runs(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, (folder, names) in enumerate(PEOPLE.items()):
        take_photos(tmp_path / folder, names, IMAGES[folder], seed)
    save_model(
        tmp_path / "base", create_backbone("r6_tiny", embedding_size=32, image_size=112), {"training_data": "rendered"}
    )
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    lines = [line for line in "".join(blocks).splitlines() if not line.startswith("pip ")]
    said: dict[str, str] = {}
    for line in lines:
        name, *words = shlex.split(line)
        assert name == "attfc"
        status, out, err = run_main(monkeypatch, capsys, *words, *QUICK.get(words[0], []))
        assert status == 0, f"{line}: {out}{err}"
        said[line] = " ".join((out + err).split())
    assert len(said) == len(lines) == 11

    def answer(start: str) -> str:
        (found,) = [text for line, text in said.items() if line.startswith(f"attfc {start}")]
        return found

    aligned = int(re.search(r"(\d+) faces, in", answer("align photos")).group(1))
    assert aligned >= 16  # of 18
    assert "at FAR 0.01, threshold" in answer("verify")
    assert "FAR 0.01 by far.json" in answer("gallery create")
    assert f"of {aligned} images" in answer("gallery add")
    assert "6 people" in answer("gallery add")
    assert "ann" in answer("gallery search")
    assert "runs/mine-001" in answer("gallery remove")
