"""A gallery: exact search, erasing that leaves no byte, adding twice, other models, odd names, hostile and damaged folders."""

import contextlib
import hashlib
import json
import os
import random
import sqlite3
import struct
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
    found = vectors.rounded(rows)
    left = rows - found.coarse_ND.astype(np.float64) * found.scales_N2[:, :1]
    assert (np.linalg.norm(left, axis=1) <= found.scales_N2[:, 1]).all()
    assert not found.scales_N2[-1].any()
    assert found.scales_N2[:, 1].max() < 0.03


def test_a_removed_person_is_in_no_byte_of_the_folder(store) -> None:
    """People of long and short names come and go: rows of those who stay move between pages, and each place they leave must be wiped too."""
    chance = random.Random(1)
    rows = unit(1500, 4)

    def said(number: int) -> str:
        return f"<{number:04d}>" + digest(number).hex() * (number % 7)

    def made(number: int) -> Template:
        images = {
            digest(10_000 * k + number): f"/faces/<{number:04d}>/{k}{'y' * (number % 250)}"
            for k in range(1 + number % 3)
        }
        return Template(said(number), rows[number], images)

    enrolled: set[int] = set()
    for first in range(0, len(rows), 100):
        store.add([made(number) for number in range(first, first + 100)])
        enrolled |= {*range(first, first + 100)}
        gone = chance.sample(sorted(enrolled), 60 if first < 800 else 110)
        store.remove([said(number) for number in gone])
        enrolled -= {*gone}
        content = bytes_of(store.folder)
        for number in (first, *gone):
            coarse = vectors.rounded(rows[number][None]).coarse_ND[0, :16]
            marks = (rows[number][3:7].tobytes(), coarse.tobytes(), f"<{number:04d}>".encode(), digest(number))
            assert [mark in content for mark in marks] == [number in enrolled] * 4, number
    assert len(enrolled) > 200
    assert sorted(path.name for path in store.folder.iterdir()) == ["gallery.sqlite", *vectors.VECTORS]


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
    with torch.random.fork_rng():
        torch.manual_seed(1)  # whatever test came before: not the weights of `model`
        other = attfc.create_backbone("r6_tiny", embedding_size=NUMBERS, image_size=SIZE)
    opened = attfc.load(save_model(tmp_path / "other", other), device="cpu")
    with pytest.raises(UserError, match=r"other is another model than that of .*: its digest is \w{12}, not \w{12}"):
        Gallery.open(tmp_path / "g", opened)


def test_thresholds_can_come_later_and_have_to_be_stated(model, tmp_path) -> None:
    with pytest.raises(
        UserError,
        match=r"no threshold of FAR 0\.001 is known: .*evaluation\.json states 0\.01, 0\.1; choose one of these, or .* --far 0\.001 --json far\.json",
    ):
        Gallery.create(tmp_path / "g", model, far=1e-3)
    assert not (tmp_path / "g").exists()
    Gallery.create(tmp_path / "g", model).close()
    far = {"threshold_at_far": {"0.001": 0.75}, "impostor_pairs": 30_000}
    (tmp_path / "far.json").write_text(json.dumps({**far, "model_digest": "0" * 64}))
    with pytest.raises(UserError, match=r"far\.json is an evaluation of another model"):
        Gallery.create(tmp_path / "g", model, far=1e-3, evaluation=tmp_path / "far.json")
    (tmp_path / "far.json").write_text(json.dumps({**far, "model_digest": model.facts.digest}))
    with Gallery.create(tmp_path / "g", model, far=1e-3, evaluation=tmp_path / "far.json") as gallery:
        assert gallery.facts.threshold == 0.75
        gallery.add(unit(1)[0], name="Ann")
        assert gallery.search(unit(1))[0][0].far == 0.001
    with pytest.raises(UserError, match="made with flip: make another"):
        Gallery.create(tmp_path / "g", model, flip=False)


def test_thresholds_of_embeddings_with_mirror_images_are_not_those_of_others(model, tmp_path) -> None:
    with pytest.raises(
        UserError, match=r"evaluation\.json states thresholds of embeddings with mirror images, and --no-flip"
    ):
        Gallery.create(tmp_path / "g", model, far=0.01, flip=False)
    with Gallery.create(tmp_path / "g", model, flip=False) as gallery:
        assert (gallery.facts.threshold_at_far, gallery.facts.thresholds_of) == ([], "")
    with Gallery.create(tmp_path / "with", model) as gallery:
        assert [far for far, _ in gallery.facts.threshold_at_far] == [0.01, 0.1]


@pytest.fixture
def folder(store) -> Path:
    """A gallery of three people, closed."""
    store.add(templates(unit(3)))
    store.close()
    return store.folder


def change(folder: Path, statements: str) -> None:
    with contextlib.closing(sqlite3.connect(folder / "gallery.sqlite")) as database:
        database.executescript(statements)


@pytest.mark.parametrize(
    "statements",
    [
        "CREATE TRIGGER t AFTER INSERT ON template BEGIN DELETE FROM image; END",
        "CREATE VIEW v AS SELECT 1",
        "DROP TABLE template; CREATE VIEW template AS SELECT 1 AS slot, 'Ann' AS name, 0 AS crc32",
        "DROP TABLE free; CREATE VIRTUAL TABLE free USING fts5(slot, clean)",
        "DROP TABLE free; CREATE TABLE free (slot INTEGER PRIMARY KEY, clean INTEGER NOT NULL DEFAULT (load_extension('x')))",
        "PRAGMA journal_mode = WAL",
    ],
)
def test_tables_of_strangers_are_refused(folder, statements) -> None:
    change(folder, statements)
    with pytest.raises(UserError, match="has not the tables of a gallery"):
        Gallery.open(folder)


@pytest.mark.parametrize(
    ("statements", "message"),
    [
        ("UPDATE facts SET json = '[]'", "its facts: Input should be an object"),
        (
            "UPDATE facts SET json = json_set(json, '$.embedding_size', 1e9)",
            "its facts: embedding_size: Input should be",
        ),
        (
            "UPDATE facts SET json = json_set(json, '$.embedding_size', 65536)",
            r"vectors\.float32 has 24,576 bytes where its gallery needs",
        ),
        ("UPDATE facts SET json = json_set(json, '$.digest', 'x')", "its facts: digest: String should match"),
        ("DELETE FROM facts", "its facts: 0 rows where a gallery has one"),
        ("UPDATE facts SET json = x'ff00'", "its facts: "),
        ("INSERT INTO template VALUES (9000000000000000000, 'x', 0)", r"damaged: it has a slot 90000"),
        (
            "INSERT INTO template VALUES (100000, 'x', 0)",
            r"vectors\.float32 has 24,576 bytes where its gallery needs .*copied in part",
        ),
        ("UPDATE template SET slot = -1 - slot", "damaged: it has a slot -3"),
        ("UPDATE template SET name = x'ff'", "damaged: a name in it is not text"),
        ("UPDATE template SET name = CAST(x'ff' AS TEXT)", r"gallery\.sqlite: is damaged \(Could not decode"),
        ("UPDATE template SET crc32 = 'x'", "the template of 'person 0' is not what was written"),
    ],
)
def test_values_of_strangers_are_refused(folder, statements, message) -> None:
    change(folder, statements)
    with pytest.raises(UserError, match=message), Gallery.open(folder) as gallery:
        gallery.search(unit(3, size=gallery.facts.embedding_size))


def test_damaged_files_are_refused(folder, tmp_path) -> None:
    with pytest.raises(UserError, match=r"nothing is not a gallery \(gallery\.sqlite is missing\)"):
        Gallery.open(tmp_path / "nothing")
    database, numbers = folder / "gallery.sqlite", folder / "vectors.float32"
    whole, vectors_whole = database.read_bytes(), numbers.read_bytes()
    for content in (b"no database" * 1000, whole[:5000], whole[:4096] + b"\xff" * (len(whole) - 4096)):
        database.write_bytes(content)
        with pytest.raises(UserError, match=r"is damaged|has not the tables"), Gallery.open(folder) as gallery:
            gallery.search(unit(3))
    database.write_bytes(b"")
    with pytest.raises(UserError, match="is empty: its making was interrupted"):
        Gallery.open(folder)
    database.write_bytes(whole)
    for content in (b"", vectors_whole[:-1]):
        numbers.write_bytes(content)
        with pytest.raises(UserError, match="copied in part"), Gallery.open(folder) as gallery:
            gallery.search(unit(3))
    numbers.write_bytes(vectors_whole)
    for name, message in {"float32": "has not length 1", "scales": "an error in it is nan"}.items():
        path = folder / f"vectors.{name}"
        kept = path.read_bytes()
        path.write_bytes(np.full(len(kept) // 4, np.nan, "<f4").tobytes())
        with pytest.raises(UserError, match=message), Gallery.open(folder) as gallery:
            gallery.search(unit(3))
        path.write_bytes(kept)
    numbers.write_bytes(vectors_whole[NUMBERS * 4 : NUMBERS * 8] * 256)
    with (
        pytest.raises(UserError, match=r"the template of 'person .' is not what was written"),
        Gallery.open(folder) as gallery,
    ):
        gallery.search(unit(3))
    numbers.write_bytes(vectors_whole)
    numbers.rename(folder.parent / "elsewhere")
    numbers.symlink_to(folder.parent / "elsewhere")
    with pytest.raises(UserError, match=r"vectors\.float32 is a link: a gallery's files lie in its own folder"):
        Gallery.open(folder)


@pytest.mark.parametrize(
    ("name", "kind", "value"),
    [
        ("scales", "<f4", 0.0),  # as of a free slot: a scan passes over it
        ("scales", "<f4", -1.0),
        ("scales", "<f4", 1e-9),
        ("int8", "i1", 0),
        ("float32", "<f4", 2e-3),
    ],
)
def test_a_damaged_template_of_anybody_is_found(folder, name, kind, value) -> None:
    path = folder / f"vectors.{name}"
    rows = np.fromfile(path, kind).reshape(256, -1)
    rows[1, 0] = value if kind == "<f4" else rows[1, 0] ^ 64
    with Gallery.open(folder) as gallery:
        gallery.check()
        gallery.remove("person 0")
        gallery.check()
        assert gallery.search(unit(3)[2])[0][0].name == "person 2"
    rows[0] = 0
    rows.tofile(path)
    files = rf"vectors\.{name}: " if name == "float32" else r"vectors\.int8 or vectors\.scales: "
    with Gallery.open(folder) as gallery:
        with pytest.raises(UserError, match=files + "the template of 'person 1' is not what was written: remove"):
            gallery.check()
        if value in (0.0, -1.0) and name == "scales":  # nobody is hidden from a search, whoever is asked for
            with pytest.raises(UserError, match=r"the template of 'person 1' is not what was written"):
                gallery.search(unit(3)[2])


def test_a_journal_that_names_another_file_is_refused(folder) -> None:
    """SQLite deletes the file that a journal names as its super-journal, whatever that is: it must not get to read it."""
    precious = folder.parent / "precious"
    precious.write_text("mine")
    name = str(precious).encode()
    tail = struct.pack(">I", 2**30 // 4096 + 1) + name + struct.pack(">II", len(name), sum(name))
    head = bytes.fromhex("d9d505f920a163d7") + struct.pack(">IIIII", 0, 0, 1, 512, 4096) + bytes(484)
    journal = folder / "gallery.sqlite-journal"
    journal.write_bytes(head + tail + head[:8])
    with pytest.raises(UserError, match="names another file, which no gallery's journal does"):
        Gallery.open(folder)
    assert precious.read_text() == "mine"


def test_odd_names_are_kept_printable(model, faces, tmp_path) -> None:
    image = faces / "Zoë 0" / "0.png"
    names = {
        "<script>alert(1)</script>": "<script>alert(1)</script>",
        "../../etc": "../../etc",
        "a\nb\x1b[2J\u202e": "a\\nb\\x1b[2J\\u202e",
        os.fsdecode(b"caf\xe9"): "caf\\xe9",
    }
    with Gallery.create(tmp_path / "g", model) as gallery:
        for given, kept in names.items():
            gallery.add(image, name=given)
            (gone,) = gallery.remove(kept)
            assert gone.name == kept
            gallery.add(image, name=kept)
            assert gallery.remove(given) == [gone]
        for bad in ("", " ", "x" * 1_021):
            with pytest.raises(UserError, match="is not a name: use 1 to 1,020 characters"):
                gallery.add(image, name=bad)
        with pytest.raises(UserError, match=r"whose face is .*0\.png\? Say --name NAME"):
            gallery.add(image)
        broken = tmp_path / "people" / "Ann"
        broken.mkdir(parents=True)
        (broken / "1.jpg").write_bytes(b"GIF89a")
        with pytest.raises(UserError, match=r"no image can be used; the first is Ann/1\.jpg: "):
            gallery.add(broken.parent)
        (broken / "2.png").write_bytes(image.read_bytes())
        done = gallery.add(broken.parent)
        assert (done.templates, done.images, len(done.left_out)) == (1, 1, 1)
        with (
            pytest.raises(UserError, match="opened without a model: images need one"),
            Gallery.open(tmp_path / "g") as bare,
        ):
            bare.search(image)


def test_a_folder_with_other_files_is_no_place(model, tmp_path) -> None:
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"g holds other files \('notes\.txt'\): name a new folder"):
        Gallery.create(tmp_path / "g", model)
    with pytest.raises(UserError, match=r"notes\.txt is a file: name a folder"):
        Gallery.create(tmp_path / "g" / "notes.txt", model)
    Gallery.create(tmp_path / "mine", model).close()
    assert (tmp_path / "mine").stat().st_mode & 0o077 == 0
