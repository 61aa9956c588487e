"""A gallery: exact search, erasing that leaves no byte, adding twice, other models, odd names, hostile and damaged folders."""

import hashlib
import json
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import attfc
from attfc.data import SyntheticFaces
from attfc.errors import UserError
from attfc.gallery import Gallery, scan, vectors
from attfc.gallery.database import Facts
from attfc.gallery.templates import Template, TemplateStore
from attfc.training.model_files import save_model

SIZE, NUMBERS = 32, 24
FACTS = Facts(
    model="m", network="r6_tiny", digest="0" * 64, embedding_size=NUMBERS, image_size=SIZE, colours={}, flip=True,
    created="2026", changed="2026",
)  # fmt: skip


def unit(count: int, seed: int = 0, size: int = NUMBERS) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, size)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def digest(number: int) -> bytes:
    return hashlib.blake2b(b"%d" % number, digest_size=16).digest()


def templates(rows: np.ndarray, first: int = 0) -> list[Template]:
    return [
        Template(f"person {number}", row, {digest(number): f"/faces/person {number}/1.jpg"})
        for number, row in enumerate(rows, first)
    ]


@pytest.fixture
def store(tmp_path):
    made = TemplateStore.create(tmp_path / "g", FACTS)
    yield made
    made.close()


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> attfc.FaceModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = attfc.create_backbone("r6_tiny", embedding_size=NUMBERS, image_size=SIZE)
    folder = save_model(tmp_path_factory.mktemp("run") / "run-001" / "model", network)
    stated = {"threshold_at_far": {"0.1": 0.25, "0.01": 0.5, "1e-06": None}, "impostor_pairs": 30_000}
    (folder.parent / "evaluation.json").write_text(json.dumps({"all_pairs": stated}))
    return attfc.load(folder, device="cpu")


@pytest.fixture(scope="module")
def faces(tmp_path_factory) -> Path:
    """5 people x 3 images, a folder per person."""
    root = tmp_path_factory.mktemp("faces")
    for position, image in enumerate(SyntheticFaces(5, 3, seed=2).images(np.arange(15), SIZE).pixels):
        folder = root / f"Zoë {position // 3}"
        folder.mkdir(exist_ok=True)
        Image.fromarray(image).save(folder / f"{position % 3}.png")
    return root


def bytes_of(folder: Path) -> bytes:
    return b"\0\0".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("spread", [1.0, 0.05, 0.003])
def test_search_is_exact(store, monkeypatch, spread) -> None:
    """Against a float64 product; the smaller `spread`, the closer the templates: more of them differ by less than int8 can tell."""
    monkeypatch.setattr(scan, "QUERIES", 7)
    centers = unit(40, 1)
    rows = centers[np.arange(6000) % 40] + spread * unit(6000, 2)
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    store.add(templates(rows[:5000]))
    store.remove([f"person {number}" for number in range(0, 5000, 3)])
    store.add(templates(rows[5000:], 5000))
    alive = np.array([number for number in range(6000) if number >= 5000 or number % 3])
    queries = np.concatenate([rows[:20], unit(20, 3), -rows[:5]])
    exact = rows[alive].astype(np.float64) @ queries.T.astype(np.float64)
    found = store.search(queries, 5)
    for column, best in enumerate(found):
        order = np.argsort(-exact[:, column])[:5]
        assert [score for _, score in best] == pytest.approx(exact[order, column].tolist(), abs=1e-6)
        for name, score in best:
            row = np.flatnonzero(alive == int(name.split()[1]))
            assert exact[row, column] == pytest.approx([score], abs=1e-6)
        assert best[0][0] == f"person {alive[order[0]]}" or exact[order[0], column] - exact[order[1], column] < 1e-6


def test_the_best_template_of_a_person_counts_and_each_is_named_once(store) -> None:
    rows = unit(300)
    store.add([Template(f"p{number % 3}", row, {}) for number, row in enumerate(rows)])
    for query, best in zip(rows[:9], store.search(rows[:9], 5), strict=True):
        exact = {f"p{owner}": float((rows[owner::3] @ query).max()) for owner in range(3)}
        assert dict(best) == pytest.approx(exact, abs=1e-6)
        assert [name for name, _ in best] == sorted(exact, key=exact.__getitem__, reverse=True)


def test_rounding_is_bounded() -> None:
    rows = np.concatenate([unit(50, size=512), np.eye(512, dtype=np.float32)[:3], np.zeros((1, 512), np.float32)])
    fields = vectors.rounded(rows)
    left = rows - fields["coarse"].astype(np.float64) * fields["scale"][:, None]
    assert (np.linalg.norm(left, axis=1) <= fields["error"]).all()
    assert fields["scale"][-1] == fields["error"][-1] == 0
    assert fields["error"].max() < 0.03


def test_a_removed_person_is_in_no_byte_of_the_folder(store) -> None:
    chance = np.random.default_rng(5)
    rows = unit(3000, 4)
    store.add(templates(rows[:2500]))
    for start in range(2500, 3000, 50):
        store.add(templates(rows[start : start + 50], start))
        gone = [f"person {number}" for number in chance.choice(start, 20, replace=False).tolist()]
        store.remove(gone)
    enrolled = set(store.names())
    content = bytes_of(store.folder)
    stayed = 0
    for number, row in enumerate(rows):
        fields = vectors.rounded(row[None])
        marks = (
            row[3:7].tobytes(),
            fields["coarse"][0, :16].tobytes(),
            f"person {number}/1.jpg".encode(),
            digest(number),
        )
        there = f"person {number}" in enrolled
        assert [mark in content for mark in marks] == [there] * 4, number
        stayed += there
    assert 2000 < stayed < 3000
    assert sorted(path.name for path in store.folder.iterdir()) == ["gallery.sqlite", "vectors.bin"]


def test_images_are_added_once_and_a_template_is_their_mean(model, faces, tmp_path) -> None:
    with Gallery.create(tmp_path / "g", model, far=0.01) as gallery:
        done = gallery.add(faces)
        assert (done.people, done.templates, done.images, done.known) == (5, 5, 15, 0)
        again = gallery.add(faces)
        assert (again.templates, again.known) == (0, 15)
        mean = model.embed(faces / "Zoë 2").mean(0)
        ((best,),) = gallery.search(mean)
        assert (best.name, best.far) == ("Zoë 2", 0.01)
        assert best.score == pytest.approx(1, abs=1e-5)
        assert gallery.add([faces / "Zoë 1" / "0.png", faces / "Zoë 2" / "0.png"], name="Zoe\u0308 1").known == 1
        assert gallery.stats()["templates"] == 6
        assert gallery.stats()["people"] == 5
        (gone,) = gallery.remove("Zoë 1")
        assert gone.templates == 2
        assert sorted(gone.sources) == sorted(
            [*(str(faces / "Zoë 1" / f"{k}.png") for k in range(3)), str(faces / "Zoë 2" / "0.png")]
        )
        with pytest.raises(
            UserError, match=r"nobody in .* is named 'Zoë 1'; did you mean 'Zoë .'\?; nothing was removed"
        ):
            gallery.remove(["Zoë 0", "Zoë 1"])
        assert gallery.stats()["people"] == 4


def test_another_model_is_refused(model, tmp_path) -> None:
    with Gallery.create(tmp_path / "g", model) as gallery:
        assert gallery.facts.threshold is None
        with pytest.raises(UserError, match=r"shape \(2, 25\) holds no embeddings of this gallery: give \(N, 24\)"):
            gallery.search(np.ones((2, 25)))
    other = attfc.create_backbone("r6_tiny", embedding_size=NUMBERS, image_size=SIZE)
    opened = attfc.load(save_model(tmp_path / "other", other), device="cpu")
    with pytest.raises(UserError, match=r"other is another model than that of .*: its digest is \w{12}, not \w{12}"):
        Gallery.open(tmp_path / "g", opened)


def test_thresholds_can_come_later_and_have_to_be_stated(model, tmp_path) -> None:
    with pytest.raises(
        UserError, match=r"no threshold of FAR 0\.001 is known: .*evaluation\.json states 0\.01, 0\.1; choose one"
    ):
        Gallery.create(tmp_path / "g", model, far=1e-3)
    assert not (tmp_path / "g").exists()
    Gallery.create(tmp_path / "g", model).close()
    far = {"threshold_at_far": {"0.001": 0.75}, "impostor_pairs": 30_000}
    (tmp_path / "far.json").write_text(json.dumps(far))
    with Gallery.create(tmp_path / "g", model, far=1e-3, evaluation=tmp_path / "far.json") as gallery:
        assert gallery.facts.threshold == 0.75
        gallery.add(unit(1)[0], name="Ann")
        assert gallery.search(unit(1))[0][0].far == 0.001
    with pytest.raises(UserError, match="made with flip: make another"):
        Gallery.create(tmp_path / "g", model, flip=False)


def test_tables_of_others_are_refused(store, tmp_path) -> None:
    store.add(templates(unit(3)))
    store.close()
    with sqlite3.connect(tmp_path / "g" / "gallery.sqlite") as database:
        database.execute("CREATE TRIGGER t AFTER INSERT ON template BEGIN DELETE FROM image; END")
    database.close()
    with pytest.raises(UserError, match="has not the tables of a gallery"):
        Gallery.open(tmp_path / "g")
