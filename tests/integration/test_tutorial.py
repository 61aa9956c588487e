"""The commands of the tutorials, one after the other, on rendered people: photos, a folder, a .rec, weights, IJB-C, a study."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from attfc.backbones import create_backbone
from attfc.data import SyntheticFaces, convert_store
from attfc.training.model_files import save_model

from .commands import run_main
from .protocol_folder import write_bin, write_templates

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

DOCS = Path(__file__).parents[2] / "docs"
TRAIN = ["max_steps=4", "batch_size=16", "data.workers=0", "report.write=false"]
RESAMPLES = ["--resamples", "20"]
QUICK = {
    "align": ["--workers", "0"],
    "train": TRAIN,
    "evaluate": [*RESAMPLES, "--broken-limit", "0.1"],
    "compare": RESAMPLES,
}
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


def blocks(page: str, language: str) -> list[str]:
    text = (DOCS / page).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def small_model(folder: Path) -> None:
    save_model(folder, create_backbone("r6_tiny", embedding_size=32, image_size=112), {"training_data": "rendered"})


def run_page(page: str, monkeypatch, capsys, after: Callable[[str], None] = lambda line: None) -> dict[str, str]:
    """Run each command of a page, training for a few steps; return what each said."""
    lines = [line for line in "".join(blocks(page, "sh")).splitlines() if not line.startswith("pip ")]
    said: dict[str, str] = {}
    for line in lines:
        name, *words = shlex.split(line)
        assert name == "attfc"
        status, out, err = run_main(monkeypatch, capsys, *words, *QUICK.get(words[0], []))
        assert status == 0, f"{line}: {out}{err}"
        said[line] = " ".join((out + err).split())
        after(line)
    assert len(said) == len(lines)
    return said


def answers(said: dict[str, str]) -> Callable[[str], str]:
    def answer(start: str) -> str:
        (found,) = [text for line, text in said.items() if line.startswith(f"attfc {start}")]
        return found

    return answer


def test_every_tutorial_is_run() -> None:
    pages = {path.name for path in (DOCS / "tutorials").glob("*.md")} - {"index.md"}
    text = Path(__file__).read_text(encoding="utf-8")
    assert len(pages) >= 5
    assert all(f'run_page("tutorials/{page}"' in text for page in pages)


def test_every_command_of_the_tutorial_runs(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for seed, (folder, names) in enumerate(PEOPLE.items()):
        take_photos(tmp_path / folder, names, IMAGES[folder], seed)
    small_model(tmp_path / "base")
    said = run_page("tutorial.md", monkeypatch, capsys)
    assert len(said) == 11
    answer = answers(said)
    aligned = int(re.search(r"(\d+) faces, in", answer("align photos")).group(1))
    assert aligned >= 16  # of 18
    assert "at FAR 0.01, threshold" in answer("verify")
    assert "FAR 0.01 by far.json" in answer("gallery create")
    assert f"of {aligned} images" in answer("gallery add")
    assert "6 people" in answer("gallery add")
    assert "ann" in answer("gallery search")
    assert "runs/mine-001" in answer("gallery remove")


def test_a_folder_becomes_a_model(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)

    def give_names(line: str) -> None:
        """Call two of the rendered people as the page does."""
        if line.startswith("attfc data convert") and "faces" in line:
            for folder, name in zip(sorted(Path("faces").iterdir()), ("ann", "bo"), strict=False):
                renamed = folder.rename(folder.with_name(name))
                for number, file in enumerate(sorted(renamed.iterdir()), start=1):
                    file.rename(renamed / f"{number}.jpg")

    answer = answers(run_page("tutorials/folder.md", monkeypatch, capsys, give_names))
    assert "60 people" in answer("data inspect") or "60 identities" in answer("data inspect")
    assert "kept aside" in answer("train faces epochs")
    assert "longer-001" in answer("compare")
    assert Path("face.onnx").is_file()
    (snippet,) = blocks("tutorials/folder.md", "python")
    exec(compile(snippet, "folder.md", "exec"), {})


def test_a_rec_becomes_a_model(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)

    def add_pairs(line: str) -> None:
        if line.startswith("attfc data convert"):
            write_bin(Path("ms1m/lfw.bin"))

    answer = answers(run_page("tutorials/insightface-rec.md", monkeypatch, capsys, add_pairs))
    assert "ms1mv3_attfc_r50" in answer("presets")
    assert "root: ms1m" in answer("train ms1mv3")
    assert "accuracy" in answer("evaluate runs/first-001 lfw")


def test_published_weights_are_fine_tuned(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.save(create_backbone("r6_tiny").state_dict(), tmp_path / "backbone.pt")
    convert_store(SyntheticFaces(24, 4, seed=1), tmp_path / "faces", kind="folder")
    convert_store(SyntheticFaces(24, 4, seed=2), tmp_path / "others", kind="folder")
    write_bin(tmp_path / "everybody.bin", pairs=60)
    answer = answers(run_page("tutorials/fine-tune.md", monkeypatch, capsys))
    assert " here" in answer("train")
    assert " there" in answer("train")
    assert "fine-001" in answer("compare")


def test_a_model_is_judged_on_ijbc(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    write_templates(tmp_path / "IJBC")
    for name in ("mine-001", "theirs-001"):
        small_model(tmp_path / "runs" / name)
    said = run_page("tutorials/ijbc.md", monkeypatch, capsys)
    assert any("1:N" in text for text in said.values())
    assert Path("models.html").is_file()


def test_a_study_of_two_heads(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (study,) = blocks("tutorials/study.md", "yaml")
    shorter = {
        "seeds: [0, 1]": "seeds: [0]",
        "epochs=2": "max_steps=2",
        "=60,": "=20,",
        "  full_fc: [head=full_fc]\n": "",
    }
    quick = study.replace("reference: full_fc", "reference: attfc")
    for long, short in shorter.items():
        assert quick.count(long) == 1
        quick = quick.replace(long, short)
    Path("heads.yaml").write_text(quick, encoding="utf-8")
    answer = answers(run_page("tutorials/study.md", monkeypatch, capsys))
    assert "attfc, one-way" in answer("study table")
