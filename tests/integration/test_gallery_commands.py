"""`attfc gallery create|add|remove|search|stats` as a user types them."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import attfc
from attfc.data import SyntheticFaces
from attfc.gallery import Gallery
from attfc.photos.alignment import ARCFACE_TEMPLATE
from attfc.photos.detector import Faces
from attfc.training.model_files import save_model

from .commands import run_main
from .conftest import TINY

CPU = ("--device", "cpu")


def save_run(folder: Path, seed: int = 0) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        save_model(folder / "model", attfc.create_backbone("r6_tiny", embedding_size=32))
    stated = {"threshold_at_far": {"0.1": 0.25, "0.001": 0.5}, "impostor_pairs": 300_000}
    (folder / "evaluation.json").write_text(json.dumps({"all_pairs": stated}))
    return folder


@pytest.fixture
def gallery(tmp_path, face_folder, monkeypatch, capsys) -> Path:
    """A gallery of 12 people, at FAR 0.001."""
    run = save_run(tmp_path / "run")
    status, said, err = run_main(monkeypatch, capsys, "gallery", "create", tmp_path / "g", run, "--far", 1e-3, *CPU)
    assert status == 0, err
    assert "a search answers with a name above cosine 0.5000: FAR 0.001 by " in said
    status, said, err = run_main(monkeypatch, capsys, "gallery", "add", tmp_path / "g", face_folder, *CPU)
    assert status == 0, err
    assert said == f"{tmp_path / 'g'}: added 12 templates of 56 images; 12 people\n"
    return tmp_path / "g"


def test_from_a_photo_to_a_name(gallery, face_folder, tmp_path, monkeypatch, capsys) -> None:
    def run(*arguments: object) -> tuple[int, str, str]:
        return run_main(monkeypatch, capsys, "gallery", *arguments)

    status, said, _ = run("add", gallery, face_folder, *CPU)
    assert said == f"{gallery}: added 0 templates of 0 images; 56 images were there already; 12 people\n"
    photo = face_folder / "Zoë 11" / "Zoë 11_0001.jpg"  # the only one of this person: it is the template
    status, said, err = run("search", gallery, photo, "--top", 3, *CPU, "--json", tmp_path / "s.json")
    assert status == 0, err
    (found,) = json.loads((tmp_path / "s.json").read_text())["images"]
    assert (found["name"], found["nearest"][0]["far"]) == ("Zoë 11", 0.001)
    assert found["nearest"][0]["score"] == pytest.approx(1, abs=1e-5)
    assert len({each["name"] for each in found["nearest"]}) == 3
    assert re.search(r"Zoë 11 +1\.0000 +0\.001", said)
    assert "FAR 0.001 per comparison" in said
    assert "A search compares with 12 templates, so about 1.2 % of unknown people get a wrong name." in said

    status, said, err = run("remove", gallery, "Zoë 11", "--json", tmp_path / "r.json")
    assert status == 0, err
    assert "Zoë 11: removed 1 template, erased from every file of" in said
    assert str(photo) in said
    assert json.loads((tmp_path / "r.json").read_text())["removed"][0]["images"] == [str(photo)]
    status, _, err = run("remove", gallery, "Zoë 11")
    assert status == 1
    assert "nobody in" in err
    status, said, _ = run("stats", gallery, "--json", tmp_path / "t.json")
    assert status == 0
    assert "people      11\n" in said
    assert "threshold   0.5000 at FAR 0.001\n" in said
    assert said.endswith("every template is as it was written\n")
    assert json.loads((tmp_path / "t.json").read_text())["free_slots"] == 1

    far = tmp_path / "far.json"
    stated = {"threshold_at_far": {"0.01": 1.5}, "impostor_pairs": 300_000}
    far.write_text(json.dumps({**stated, "model_digest": "0" * 64}))
    status, said, err = run("create", gallery, tmp_path / "run", "--far", 0.01, "--evaluation", far, *CPU)
    assert (status, "far.json is an evaluation of another model (" in err) == (1, True)
    far.write_text(json.dumps(stated))
    status, said, err = run("create", gallery, tmp_path / "run", "--far", 0.01, "--evaluation", far, *CPU)
    assert status == 0, err
    status, said, _ = run("search", gallery, face_folder / "person-00", *CPU)
    assert said.count("unknown (nearest: ") == 5
    assert said.count("> 0.01") == 5


def test_photos_are_aligned_while_they_are_added(gallery, tmp_path, monkeypatch, capsys) -> None:
    rng = np.random.default_rng(0)
    photo, face = (rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for side in (320, 112))
    photo[110:222, 120:232] = face
    for number in range(2):
        (tmp_path / "photos" / f"Ann {number}").mkdir(parents=True)
        photo[0, 0] = number
        Image.fromarray(photo).save(tmp_path / "photos" / f"Ann {number}" / "1.png")
    Image.fromarray(face).save(tmp_path / "face.png")
    corners = np.array([[120.0, 110, 232, 222], [0, 0, 30, 30]])
    landmarks = np.array([np.add(ARCFACE_TEMPLATE, (120, 110)), ARCFACE_TEMPLATE / 4])
    found = [Faces(corners, landmarks, np.array([0.9, 0.8]))]
    monkeypatch.setattr("attfc.photos.store.open_detector", lambda path: lambda pixels: found[0])

    def run(*arguments: object) -> tuple[int, str, str]:
        return run_main(monkeypatch, capsys, "gallery", *arguments, *CPU)

    status, said, err = run("add", gallery, tmp_path / "photos", "--align")
    assert (status, said) == (0, f"{gallery}: added 2 templates of 2 images; 14 people\n"), err
    one = tmp_path / "photos" / "Ann 0" / "1.png"
    assert "note: Ann 0/1.png has 2 faces: the largest was taken" in err
    # A photo is known again by its own bytes: it is not aligned once more, whatever finds faces now.
    found[0] = Faces(corners[:0], landmarks[:0], np.zeros(0))
    assert run("add", gallery, tmp_path / "photos", "--align")[1].startswith(
        f"{gallery}: added 0 templates of 0 images; 2"
    )
    status, said, err = run("search", gallery, tmp_path / "face.png", "--json", tmp_path / "s.json")
    assert status == 0, err
    (nearest,) = json.loads((tmp_path / "s.json").read_text())["images"][0]["nearest"]
    assert nearest["name"].startswith("Ann")
    assert nearest["score"] > 0.9999
    status, _, err = run("add", gallery, one, "--align")
    assert (status, f"whose face is {one}? Say --name NAME" in err) == (1, True)
    status, _, err = run("add", gallery, one, "--align", "--name", "Zoe")
    assert (status, f"no image can be used; the first is {one}: no face was found" in err) == (1, True)
    status, _, err = run("add", gallery, one, "--detector", one)
    assert (status, "--detector finds faces in photos: add --align" in err) == (1, True)
    status, said, _ = run_main(monkeypatch, capsys, "gallery", "remove", gallery, "Ann 0")
    assert f"    {one}\n" in said


def test_without_a_threshold_there_are_scores_only(gallery, face_folder, tmp_path, monkeypatch, capsys) -> None:
    bare = tmp_path / "bare" / "model"
    shutil.copytree(tmp_path / "run" / "model", bare)
    status, said, err = run_main(monkeypatch, capsys, "gallery", "create", tmp_path / "h", bare, *CPU)
    assert status == 0, err
    assert "no FAR (false accept rate) was chosen, so a search gives scores but no names" in said
    photo = next(face_folder.glob("*/*.jpg"))
    status, said, err = run_main(monkeypatch, capsys, "gallery", "search", tmp_path / "h", photo, *CPU)
    assert status == 0, err
    assert "the gallery is empty" in said
    run_main(monkeypatch, capsys, "gallery", "add", tmp_path / "h", photo, "--name", "<script>\n", *CPU)
    status, said, err = run_main(
        monkeypatch, capsys, "gallery", "search", tmp_path / "h", photo, *CPU, "--json", tmp_path / "s.json"
    )
    assert status == 0, err
    assert re.search(r"<script>\\n +1\.0000 +-", said)
    assert "No threshold was chosen, so the cosine alone decides nothing" in said
    assert json.loads((tmp_path / "s.json").read_text())["images"][0]["name"] is None


def test_a_model_that_moved_or_is_another(gallery, face_folder, tmp_path, monkeypatch, capsys) -> None:
    photo = next(face_folder.glob("*/*.jpg"))
    (tmp_path / "run").rename(tmp_path / "moved")
    status, _, err = run_main(monkeypatch, capsys, "gallery", "search", gallery, photo, *CPU)
    assert status == 1
    assert f"run/model, the model of {gallery}, was not found: name its new place with --model" in err
    moved = ("gallery", "search", gallery, photo, *CPU, "--model")
    assert run_main(monkeypatch, capsys, *moved, tmp_path / "moved")[0] == 0
    status, _, err = run_main(monkeypatch, capsys, *moved, save_run(tmp_path / "other", seed=1))
    assert status == 1
    assert "is another model than that of" in err
    assert "its digest is" in err


def test_remove_lists_runs_and_models_that_were_made_from_the_photos(
    gallery, face_folder, tmp_path, monkeypatch, capsys
) -> None:
    from attfc.config import load_config
    from attfc.run.build import new_run

    runs = tmp_path / "runs"
    for name, root in (("of-them", str(face_folder)), ("of-others", TINY[0].removeprefix("data.root="))):
        run = new_run(
            load_config(
                "demo", [*TINY[1:], f"data.root={root}", f"name={name}", f"output={runs}", "report.write=false"]
            )
        )
        run.trainer.train()
    assert run_main(monkeypatch, capsys, "export", runs / "of-them-001", runs / "hub", "--format", "hf")[0] == 0
    status, said, err = run_main(
        monkeypatch, capsys, "gallery", "remove", gallery, "person-00", "--runs", runs, "--json", tmp_path / "r.json"
    )
    assert status == 0, err
    made = json.loads((tmp_path / "r.json").read_text())["made_from_them"]
    assert set(made) == {str(runs / "of-them-001"), str(runs / "hub")}
    assert said.count("so it still holds what it learned from these photos") == 2


def test_a_store_of_any_kind_can_be_added(gallery, tmp_path, monkeypatch, capsys) -> None:
    faces = "synthetic:identities=3,images=2,seed=9"
    status, said, err = run_main(monkeypatch, capsys, "gallery", "add", gallery, faces, *CPU)
    assert status == 0, err
    assert "added 3 templates of 6 images; 15 people" in said
    pixels = SyntheticFaces(3, 2, seed=9)
    with Gallery.open(gallery, attfc.load(tmp_path / "run", device="cpu")) as opened:
        assert opened.search(pixels)[0][0].name == "identity 0"
