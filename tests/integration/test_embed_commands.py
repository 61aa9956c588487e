"""`attfc embed`, `attfc verify`, and a run that starts from an arcface_torch file, as a user types them."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import attfc
from attfc.errors import UserError
from attfc.evaluation import Embedder
from attfc.photos.alignment import ARCFACE_TEMPLATE
from attfc.photos.detector import Faces

from .commands import run_main
from .conftest import TINY

MORE = ["eval.all_pairs=true", "precision.amp=none", "device=cpu"]


@pytest.fixture(scope="module")
def earlier(tmp_path_factory) -> Path:
    """A run on many people, from which others start."""
    from attfc.config import load_config
    from attfc.run.build import new_run

    more = [
        "data.root=synthetic:identities=60,images=10,seed=0",
        "batch_size=32",
        "schedule.epochs=3",
        "data.decoded_cache_mib=64",
    ]
    folder = tmp_path_factory.mktemp("earlier")
    run = new_run(load_config("demo", [*TINY, *MORE, *more, f"output={folder}"]))
    run.trainer.train()
    return run.folder


@pytest.fixture(scope="module")
def flat(tmp_path_factory, face_folder) -> Path:
    folder = tmp_path_factory.mktemp("flat")
    for number, path in enumerate(sorted(face_folder.glob("*/*.jpg"))[:6]):
        shutil.copy(path, folder / f"{number}.jpg")
    return folder


def test_fine_tuning_beats_training_from_scratch(earlier, tmp_path, monkeypatch, capsys) -> None:
    """A few steps on 16 people: from the weights of an arcface_torch file, and from nothing."""
    network, _ = attfc.load_model(earlier)
    state = {f"module.{name}": value for name, value in network.state_dict().items() if "num_batches" not in name}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "backbone.pth")
    few = [
        "data.root=synthetic:identities=16,images=4,seed=0,first=5000",
        "schedule.epochs=2",
        "optimizer.learning_rate=0.02",
    ]
    wider = ["eval.root=synthetic:identities=30,images=4,seed=0,first=1000", "eval.generated_pairs=400"]
    auc = {}
    for name, start in (("tuned", [f"start_from={tmp_path / 'backbone.pth'}"]), ("scratch", [])):
        arguments = [*TINY, *MORE, *few, *wider, *start, f"output={tmp_path}", f"name={name}"]
        status, _, err = run_main(monkeypatch, capsys, "train", "demo", *arguments)
        assert status == 0, err
        auc[name] = json.loads((tmp_path / f"{name}-001" / "evaluation.json").read_text())["auc"]
        if start:
            assert "note: recognised as r6_tiny by the names and shapes of its" in err
            assert "note: took 'state_dict' of the checkpoint, left 'epoch'" in err
    assert auc["tuned"] > auc["scratch"] + 0.1, auc


def test_embeddings_of_files_folders_and_stores(earlier, flat, face_folder, tmp_path, monkeypatch, capsys) -> None:
    one, out = flat / "0.jpg", tmp_path / "new" / "faces.npy"
    arguments = ("embed", earlier, one, flat, face_folder, "--cache", tmp_path, "-o", out, "--device", "cpu")
    status, said, err = run_main(monkeypatch, capsys, *arguments, "--json", tmp_path / "e.json")
    assert status == 0, err
    names = (tmp_path / "new" / "faces.names.txt").read_text(encoding="utf-8").splitlines()
    vectors = np.load(out)
    assert vectors.dtype == np.float32
    assert len(names) == len(vectors) == 1 + 6 + 56
    assert f"{out}: 63 embeddings of 512 numbers, names in {out.with_suffix('.names.txt')}" in said
    assert names[:3] == [str(one), str(one), str(flat / "1.jpg")]
    assert names[7].startswith("Bilder und Gesichter: ")
    assert np.array_equal(vectors[0], vectors[1])
    assert vectors[:7] == pytest.approx(attfc.load(earlier, device="cpu").embed([one, flat]), abs=1e-5)
    assert json.loads((tmp_path / "e.json").read_text())["images"] == 63

    status, _, err = run_main(monkeypatch, capsys, *arguments)
    assert status == 1
    assert f"error: {out} exists: name another output, or add --overwrite" in err
    assert run_main(monkeypatch, capsys, *arguments, "--overwrite")[0] == 0

    table = tmp_path / "faces.csv"
    assert run_main(monkeypatch, capsys, "embed", earlier, flat, "-o", table, "--device", "cpu")[0] == 0
    with table.open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0][:2] == ["name", "e0"]
    assert [row[0] for row in rows[1:]] == names[1:7]
    assert np.array([row[1:] for row in rows[1:]], np.float32) == pytest.approx(vectors[1:7], abs=1e-6)
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["faces.names.txt", "faces.npy"]


def test_an_interrupted_embed_goes_on(earlier, flat, tmp_path, monkeypatch, capsys) -> None:
    arguments = ("embed", earlier, flat, "--device", "cpu", "--batch-size", 2, "-o")
    assert run_main(monkeypatch, capsys, *arguments, tmp_path / "whole.npy")[0] == 0
    passes = Embedder.passes
    seen = []

    def interrupted(embedder, batches, mirror):
        for number, batch in enumerate(passes(embedder, batches, mirror)):
            if number == 2:
                raise UserError("the power went")
            yield batch

    def counted(embedder, batches, mirror):
        for batch in passes(embedder, batches, mirror):
            seen.append(len(batch[0]))
            yield batch

    with monkeypatch.context() as patched:
        patched.setattr(Embedder, "passes", interrupted)
        assert run_main(monkeypatch, capsys, *arguments, tmp_path / "e.npy")[0] == 1
    assert (tmp_path / ".e.npy.embeddings").is_dir()
    monkeypatch.setattr(Embedder, "passes", counted)
    assert run_main(monkeypatch, capsys, *arguments, tmp_path / "e.npy")[0] == 0
    assert seen == [2]  # of three batches two were there
    assert np.load(tmp_path / "e.npy") == pytest.approx(np.load(tmp_path / "whole.npy"), abs=1e-6)
    assert not (tmp_path / ".e.npy.embeddings").exists()


def test_photos_are_aligned_while_they_are_embedded_and_compared(earlier, tmp_path, monkeypatch, capsys) -> None:
    face = np.random.default_rng(1).integers(0, 256, (112, 112, 3), dtype=np.uint8)
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (320, 340, 3), dtype=np.uint8)
    photo[110:222, 120:232] = face
    (tmp_path / "photos").mkdir()
    for name, pixels in (("face.png", face), ("photos/1.png", photo), ("photos/2.png", photo)):
        Image.fromarray(pixels).save(tmp_path / name)
    corners = np.array([[120.0, 110, 232, 222], [0, 0, 30, 30]])
    landmarks = np.array([np.add(ARCFACE_TEMPLATE, (120, 110)), ARCFACE_TEMPLATE / 4])
    detector = lambda pixels: Faces(corners, landmarks, np.array([0.9, 0.8]))  # noqa: E731
    monkeypatch.setattr("attfc.photos.store.open_detector", lambda path: detector)
    one, two = tmp_path / "photos" / "1.png", tmp_path / "photos" / "2.png"
    arguments = ("embed", earlier, tmp_path / "photos", "--align", "--device", "cpu", "-o", tmp_path / "e.npy")
    assert run_main(monkeypatch, capsys, *arguments)[0] == 0
    expected = attfc.load(earlier, device="cpu").embed(tmp_path / "face.png")
    assert np.load(tmp_path / "e.npy") == pytest.approx(np.repeat(expected, 2, axis=0), abs=1e-5)
    status, said, err = run_main(monkeypatch, capsys, "verify", earlier, one, two, "--align", "--device", "cpu")
    assert status == 0, err
    assert "cosine 1.0000" in said
    assert f"note: {one} has 2 faces: the largest was taken" in err
    status, _, err = run_main(monkeypatch, capsys, "verify", earlier, one, two, "--detector", one)
    assert status == 1
    assert "error: --detector finds faces in photos: add --align" in err
    monkeypatch.setattr(
        "attfc.photos.store.open_detector", lambda path: lambda pixels: Faces(corners[:0], landmarks[:0], np.zeros(0))
    )
    status, _, err = run_main(monkeypatch, capsys, "verify", earlier, one, two, "--align", "--device", "cpu")
    assert status == 1
    assert f"{one} cannot be embedded: no face was found" in err


def test_broken_images_are_left_out_up_to_the_limit(earlier, flat, tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"GIF89a")
    arguments = ("embed", earlier, tmp_path / "bad.jpg", flat, "--device", "cpu")
    status, _, err = run_main(monkeypatch, capsys, *arguments, "-o", tmp_path / "e.npy")
    assert status == 1
    assert "1 of 7 images are broken, more than the limit of 0.01; the first is" in err
    status, _, err = run_main(monkeypatch, capsys, *arguments, "-o", tmp_path / "e.npy", "--broken-limit", 0.5)
    assert status == 0
    assert "note: left out 1 broken of 7 images; the first is" in err
    assert (tmp_path / "e.names.txt").read_text().splitlines() == [str(flat / f"{number}.jpg") for number in range(6)]
    assert np.load(tmp_path / "e.npy") == pytest.approx(attfc.load(earlier, device="cpu").embed(flat), abs=1e-5)
    status, _, err = run_main(monkeypatch, capsys, *arguments, "-o", tmp_path / "e.parquet")
    assert status == 1
    assert "embeddings are written as .npy or .csv; name it e.npy" in err


def test_verify_says_what_a_cosine_means(earlier, flat, face_folder, tmp_path, monkeypatch, capsys) -> None:
    pair = (flat / "0.jpg", flat / "1.jpg")
    status, said, err = run_main(
        monkeypatch, capsys, "verify", earlier, *pair, "--json", tmp_path / "v.json", "--device", "cpu"
    )
    assert status == 0, err
    found = json.loads((tmp_path / "v.json").read_text())
    pairs = json.loads((earlier / "evaluation.json").read_text())["all_pairs"]
    known = {far: value for far, value in pairs["threshold_at_far"].items() if value is not None}
    stated = {far: value for far, value in known.items() if float(far) * pairs["impostor_pairs"] >= 30}
    assert 0 < len(stated) < len(known)
    assert found["threshold_at_far"] == stated
    assert found["same_person_at_far"] == {far: found["cosine"] > value for far, value in stated.items()}
    model = attfc.load(earlier, device="cpu")
    assert found["cosine"] == pytest.approx(float(model.similarity(*pair)[0, 0]), abs=1e-6)
    assert f"cosine {found['cosine']:.4f}" in said
    assert f"at FAR 0.1, threshold {stated['0.1']:.4f}: " in said
    assert "is the share of pairs of different people\nthat a threshold accepts" in said
    assert max(map(len, said.splitlines())) <= 80

    shutil.copytree(earlier / "model", tmp_path / "alone")
    status, said, _ = run_main(monkeypatch, capsys, "verify", tmp_path / "alone", *pair, "--device", "cpu")
    assert status == 0
    assert "No threshold is known for this model, so the cosine alone decides nothing." in said
    assert "attfc calibrate" in said
    assert "FOLDER --fmr 1e-4" in said
    status, _, err = run_main(monkeypatch, capsys, "verify", earlier, pair[0], flat, "--device", "cpu")
    assert status == 1
    assert f"verify compares two images, and {pair[0]} and {flat} hold 7: name one image file each" in err


def test_print_config_shows_the_network_of_the_weights(earlier, tmp_path, monkeypatch, capsys) -> None:
    arguments = ("train", "demo", f"start_from={earlier / 'model'}", "--print-config")
    status, said, err = run_main(monkeypatch, capsys, *arguments)
    assert status == 0, err
    assert "name: r6_tiny" in said
    status, _, err = run_main(monkeypatch, capsys, *arguments[:-1], "backbone.name=r50", f"output={tmp_path}")
    assert status == 1
    assert "has name r6_tiny, and backbone.name=r50 was asked for: leave backbone.name out" in err
