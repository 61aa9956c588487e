"""`attfc data ...` and training on every kind of set: folder, RecordIO, packed, list, edited, several."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from attfc.backbones import create_backbone
from attfc.data import FolderStore, PackedStore, RecordStore, open_store, read_edits, read_verification_set
from attfc.training.model_files import save_model

from .commands import run_main
from .conftest import TINY

QUICK = [
    *TINY,
    "precision.amp=none",
    "backbone.embedding_size=32",
    "schedule.epochs=1",
    "eval.root=null",
    "negatives.count=20",
]


@pytest.fixture
def attfc(monkeypatch, capsys):
    """Run a command; returns its output, or fails with what it complained about."""

    def run(*arguments: object, status: int = 0) -> str:
        found, out, err = run_main(monkeypatch, capsys, *arguments)
        assert found == status, err
        return out if status == 0 else err

    return run


@pytest.fixture(scope="module")
def kinds(face_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same faces as folder, RecordIO, packed folder and list; indexes stay out of the shared folder."""
    from attfc.data import convert_store

    place = tmp_path_factory.mktemp("kinds")
    store = FolderStore(face_folder, cache=place / "cache")
    for kind in ("packed", "rec"):
        convert_store(store, place / kind, kind=kind)
    lines = [
        f"{face_folder / store.where(position)}\t{store.identity_name(int(store.labels([position])[0]))}\n"
        for position in range(len(store))
    ]
    (place / "faces.tsv").write_text("".join(lines), encoding="utf-8")
    return {
        "folder": face_folder,
        "packed": place / "packed",
        "rec": place / "rec",
        "rec file": place / "rec" / "train.rec",
        "list": place / "faces.tsv",
    }


def test_a_path_opens_as_what_it_is_with_the_same_faces(kinds, tmp_path) -> None:
    stores = {name: open_store(path, cache=tmp_path / "cache") for name, path in kinds.items()}
    assert [type(store).__name__ for store in stores.values()] == [
        "FolderStore",
        "PackedStore",
        "RecordStore",
        "RecordStore",
        "ListStore",
    ]
    faces = {
        name: sorted((store.read(p)[0], int(store.labels([p])[0])) for p in range(len(store)))
        for name, store in stores.items()
    }
    assert len(faces["folder"]) == 56
    assert all(found == faces["folder"] for found in faces.values())


@pytest.mark.parametrize("kind", ["packed", "rec", "list"])
def test_the_same_run_whatever_the_format(kinds, kind, tmp_path, attfc) -> None:
    """Positions of folder and packed set agree, so the losses are those of the folder to the last bit."""

    def losses(path: Path) -> list[float]:
        options = [*QUICK, "schedule.max_steps=2"]
        attfc(
            *("train", "demo", *options, f"data.root={path}", f"data.index_cache={tmp_path / 'c'}"),
            f"output={tmp_path / kind / path.name}",
        )
        lines = (tmp_path / kind / path.name / "demo-001" / "metrics.jsonl").read_text().splitlines()
        return [line["loss"] for line in map(json.loads, lines) if line["kind"] == "train"]

    found = losses(kinds[kind])
    assert len(found) == 2
    assert found == losses(kinds["folder"])


def test_there_and_back_again(kinds, tmp_path, attfc) -> None:
    cache = ("--cache", tmp_path / "cache")
    shown = attfc("data", "convert", kinds["folder"], tmp_path / "p", "--check", "--verify", *cache)
    assert "56 images of 12 identities" in shown
    assert "every index file have their checksums" in shown
    attfc("data", "convert", tmp_path / "p", tmp_path / "f", "--to", "folder", "--json", tmp_path / "j.json")
    before = {path.relative_to(kinds["folder"]): path.read_bytes() for path in kinds["folder"].rglob("*.jpg")}
    after = {path.relative_to(tmp_path / "f"): path.read_bytes() for path in (tmp_path / "f").rglob("*.jpg")}
    assert after == before
    assert json.loads((tmp_path / "j.json").read_text())["images"] == 56
    attfc("data", "convert", tmp_path / "f", tmp_path / "r", "--to", "rec", *cache)
    assert len(RecordStore(tmp_path / "r", cache=tmp_path / "cache")) == 56
    assert "finished" in attfc("data", "convert", kinds["folder"], tmp_path / "p", *cache, status=1)
    assert "--verify compares" in attfc(
        "data", "convert", kinds["folder"], tmp_path / "q", "--to", "rec", "--verify", status=1
    )
    assert "lies in the source" in attfc("data", "convert", kinds["folder"], kinds["folder"] / "p", *cache, status=1)


def test_links_and_names_are_packed_as_asked(kinds, tmp_path, attfc) -> None:
    folder = tmp_path / "set"
    (folder / "Ann").mkdir(parents=True)
    (folder / "Bob").symlink_to(next(path for path in kinds["folder"].iterdir() if path.is_dir()))
    (folder / "Ann" / "passwd.jpg").symlink_to("/etc/passwd")
    complaint = attfc("data", "convert", folder, tmp_path / "p", status=1)
    assert (
        "Ann/passwd.jpg is reached by a link that leads out of the folder, to /etc/passwd: give --follow-links"
        in complaint
    )
    (folder / "Ann" / "passwd.jpg").unlink()
    assert "give --follow-links" in attfc("data", "convert", folder, tmp_path / "p", status=1)
    shown = attfc("data", "convert", folder, tmp_path / "p", "--to", "rec", "--follow-links")
    assert "5 images of 1 identities" in shown
    assert open_store(tmp_path / "p").identity_name(0) == "Bob"
    attfc("data", "convert", tmp_path / "p", tmp_path / "q", "--to", "rec", "--no-names")
    assert open_store(tmp_path / "q").identity_name(0) == "0"
    (folder / "Bob").unlink()
    assert "no images" in attfc("data", "inspect", folder, status=1)


def test_inspect_says_when_pictures_cannot_be_aligned_faces(tmp_path, attfc) -> None:
    (tmp_path / "set" / "Ann").mkdir(parents=True)
    Image.new("RGB", (80, 60)).save(tmp_path / "set" / "Ann" / "1.jpg")
    shown = attfc("data", "inspect", tmp_path / "set", "--workers", 0)
    assert "1 of 1 pictures looked at are not square, as 80 x 60: align faces to the ArcFace template first" in shown


def test_a_flipped_bit_in_a_packed_set_is_found_and_named(kinds, tmp_path, attfc) -> None:
    attfc("data", "convert", kinds["packed"], tmp_path / "p")
    assert "56 images" in attfc("data", "verify", tmp_path / "p")
    shard = tmp_path / "p" / "shard-00000.bin"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    complaint = attfc("data", "verify", tmp_path / "p", "--json", tmp_path / "v.json", status=1)
    assert "1 of 56 images are damaged" in complaint
    assert "shard-00000.bin" in complaint
    assert json.loads((tmp_path / "v.json").read_text())["sound"] is False


def test_clean_compares_faces_of_any_number_of_sets(tmp_path, attfc) -> None:
    """Named anew, encoded anew: only a model finds them; here an untrained one, to which pictures of one scene are alike."""
    draw = np.random.default_rng(0)
    for number in range(70):
        scene = Image.fromarray(draw.integers(0, 255, (3, 3, 3), dtype=np.uint8)).resize((112, 112))
        where = "train" if number < 50 else "one" if number < 60 else "two"
        for image in range(2):
            path = tmp_path / where / f"{where}{number}" / f"{image}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            scene.rotate(image).save(path, quality=90)
        if number == 66:  # of both evaluation sets
            path = tmp_path / "one" / "another name" / "x.jpg"
            path.parent.mkdir(parents=True)
            scene.save(path, quality=90)
        if number in (7, 55, 65):
            path = tmp_path / "train" / f"again{number}" / "x.jpg"
            path.parent.mkdir(parents=True)
            scene.save(path, quality=40)
    torch.manual_seed(0)
    model = save_model(tmp_path / "model", create_backbone("r6_tiny", 32, image_size=32), {"network": "r6_tiny"})
    clean = (
        "data",
        "clean",
        tmp_path / "train",
        "--workers",
        0,
        "--cache",
        tmp_path / "cache",
        "-o",
        tmp_path / "e.tsv",
    )
    shown = attfc(
        *(*clean, "--against", tmp_path / "one", "--against", tmp_path / "two", "--model", model, "--no-broken"),
        *("--threshold", -1, "--overlap-threshold", 0.999, "--duplicates", "keep_first", "--merge"),
        *("--sheet", tmp_path / "pairs.png", "--json", tmp_path / "clean.json"),
    )
    found = json.loads((tmp_path / "clean.json").read_text())
    assert found["pairs"]
    assert found["counts"]["evaluation_face"] + found["counts"]["evaluation_image"] >= 2
    lines = (tmp_path / "e.tsv").read_text().splitlines()
    for again in ("again55", "again65"):
        assert any(f"\t-\t{again}/x.jpg: " in line for line in lines), again
    with Image.open(tmp_path / "pairs.png") as sheet:
        assert sheet.info["Software"] == "attfc"
    assert "pairs.png" in shown
    assert " in two of the evaluation sets: " in shown
    assert "'another name' of one = 'two66' of two" in shown
    copies = attfc(*clean, "--against", tmp_path / "one", "--against", tmp_path / "two", "--no-broken")
    assert "1 person is in two of the evaluation sets: 'another name' of one = 'two66' of two" in copies
    for option in (("--merge",), ("--sheet", tmp_path / "p.png")):
        assert f"{option[0]} compares faces: give --model RUN too" in attfc(*clean, *option, status=1)


def test_clean_writes_a_list_that_training_honours(kinds, tmp_path, attfc) -> None:
    folder = tmp_path / "set"
    store = PackedStore(kinds["packed"])
    for position in range(len(store)):
        encoded, label = store.read(position)
        (folder / f"p{label:02d}").mkdir(parents=True, exist_ok=True)
        (folder / f"p{label:02d}" / f"{position}.jpg").write_bytes(encoded)
    (folder / "p00" / "copy.jpg").write_bytes((folder / "p00" / "0.jpg").read_bytes())
    (folder / "p01" / "broken.jpg").write_bytes((folder / "p01" / "5.jpg").read_bytes()[:100])
    evaluation = tmp_path / "evaluation" / "p05"  # a name of the training set
    evaluation.mkdir(parents=True)
    (evaluation / "a.jpg").write_bytes(b"no matter")
    cache = ("--cache", tmp_path / "cache")
    edits = tmp_path / "clean.tsv"
    before = sorted(path.name for path in folder.rglob("*.jpg"))
    shown = attfc(
        *("data", "clean", folder, "-o", edits, "--against", tmp_path / "evaluation", "--fewest", 2),
        *("--workers", 0, *cache, "--json", tmp_path / "clean.json"),
    )
    assert sorted(path.name for path in folder.rglob("*.jpg")) == before
    counts = json.loads((tmp_path / "clean.json").read_text())["counts"]
    assert {reason: count for reason, count in counts.items() if count} == {
        "broken": 1,
        "duplicate_within": 1,
        "evaluation_name": 5,
        "small_identity": 1,
    }
    assert "data.edits=[" in shown
    assert len(read_edits(edits)) == 8
    shown = attfc("data", "inspect", folder, "--edits", edits, "--workers", 0, *cache)
    assert "10 identities, 50 images" in shown
    attfc(
        *(
            "train",
            "demo",
            *QUICK,
            f"data.root={folder}",
            f"data.edits=[{edits}]",
            f"data.index_cache={tmp_path / 'cache'}",
        ),
        f"output={tmp_path}",
    )
    records = [json.loads(line) for line in (tmp_path / "demo-001" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if record["kind"] == "train"] == [1, 2, 3, 4]  # 50 images, 16 a step
    assert not [record for record in records if record["kind"] == "broken"]
    wrong = attfc("data", "inspect", kinds["packed"], "--edits", edits, status=1)
    assert "is about 58 images of 12 identities, packed holds 56" in wrong


def test_noise_of_a_known_amount(kinds, tmp_path, attfc) -> None:
    attfc("data", "noise", kinds["packed"], "flip", "--share", 0.4, "-o", tmp_path / "flip.tsv", "--seed", 1)
    store, noisy = open_store(kinds["packed"]), open_store(kinds["packed"], edits=[tmp_path / "flip.tsv"])
    names = [[of.identity_name(int(label)) for label in of.labels(np.arange(56))] for of in (store, noisy)]
    assert sum(a != b for a, b in zip(*names, strict=True)) == 22
    attfc("data", "noise", kinds["packed"], "conflict", "--share", 0.5, "-o", tmp_path / "conflict.tsv")
    assert len(open_store(kinds["packed"], edits=[tmp_path / "conflict.tsv"]).identities) == 18
    assert "share = 1.5" in attfc("data", "noise", kinds["packed"], "flip", "--share", 1.5, "-o", "x", status=1)


def test_make_bin_is_what_pickle_reads(kinds, tmp_path, attfc) -> None:
    store = open_store(kinds["packed"])
    people = [store.identity_name(label) for label in (0, 2, 4, 6)]
    genuine = [f"{name}\t1\t{2 + i}" for name in people[:2] for i in range(2)]
    impostor = [f"{people[i]}\t1\t{people[i + 1]}\t{1 + i}" for i in range(3)] + [f"{people[0]}\t2\t{people[3]}\t2"]
    pairs = tmp_path / "pairs.txt"
    pairs.write_text("2\t2\n" + "\n".join(genuine[:2] + impostor[:2] + genuine[2:] + impostor[2:]) + "\n", "utf-8")
    shown = attfc("data", "make-bin", kinds["packed"], pairs, tmp_path / "mine.bin")
    assert "8 pairs, 4 of one person" in shown
    found = read_verification_set(tmp_path / "mine.bin")
    encoded, same = pickle.loads((tmp_path / "mine.bin").read_bytes())  # noqa: S301  (made here, a line above)
    assert (encoded, same) == (found.encoded, [True, True, False, False, True, True, False, False])
    assert encoded[0] == store.read(0)[0]
    attfc("data", "make-bin", kinds["packed"], pairs, tmp_path / "mine.bin")  # its own file is replaced
    told = attfc("data", "make-bin", kinds["packed"], pairs, pairs, status=1)
    assert f"{pairs} exists and is not what this option writes" in told
    assert pairs.read_text("utf-8").startswith("2\t2\n")


def test_sources_with_weights_train_and_keep_their_weights_on_resume(kinds, tmp_path, attfc) -> None:
    sources = f"data.sources=[{{root: {kinds['packed']}, weight: 0.5}}, {{root: 'synthetic:identities=5,images=4', weight: 3}}]"
    attfc(*("train", "demo", *QUICK, sources, f"output={tmp_path}"))
    run = tmp_path / "demo-001"
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps[-1]["step"] == 6  # an epoch of 28 + 60 queries, 16 a step
    assert steps[-1]["epoch"] == pytest.approx(96 / 88)
    other = sources.replace("weight: 3", "weight: 1")
    assert "sampling weights the run began with" in attfc("train", "--resume", run, other, status=1)
    merged = attfc("train", "demo", *QUICK, "data.merge_names=true", status=1)
    assert "data.merge_names joins data.sources" in merged
    assert "give each source its own edits" in attfc("train", "demo", *QUICK, sources, "data.edits=[x]", status=1)


@pytest.mark.parametrize("kind", ["folder", "packed", "rec", "list"])
def test_broken_images_of_every_store_are_counted_and_named_in_the_report(kinds, kind, tmp_path, attfc) -> None:
    folder, cache = tmp_path / "set", tmp_path / "cache"
    store = PackedStore(kinds["packed"])
    for position in range(len(store)):
        encoded, label = store.read(position)
        (folder / f"p{label:02d}").mkdir(parents=True, exist_ok=True)
        (folder / f"p{label:02d}" / f"{position:02d}.jpg").write_bytes(encoded if position != 7 else encoded[:300])
    root = folder
    if kind in ("packed", "rec"):
        root = tmp_path / kind
        attfc("data", "convert", folder, root, "--to", kind, "--cache", cache)
    if kind == "list":
        root = tmp_path / "faces.txt"
        root.write_text("".join(f"{path}\t{path.parent.name}\n" for path in sorted(folder.rglob("*.jpg"))))
    attfc(
        *(
            "train",
            "demo",
            *QUICK,
            f"data.root={root}",
            f"data.index_cache={cache}",
            f"output={tmp_path}",
        ),
        *("data.broken_limit=0.2", "center=key_attention", "report.write=true"),
    )
    page = (tmp_path / "demo-001" / "report.html").read_text(encoding="utf-8")
    where = open_store(root, cache=cache).where(7)
    assert "1 broken image" in page
    assert where in page
    complaint = attfc(
        *(
            "train",
            "demo",
            *QUICK,
            f"data.root={root}",
            f"data.index_cache={cache}",
            f"output={tmp_path}",
        ),
        *("data.broken_limit=0.001", "center=key_attention"),
        status=1,
    )
    assert where in complaint


def test_what_is_no_training_set_is_told_apart(kinds, tmp_path, attfc) -> None:
    (tmp_path / "lfw.bin").write_bytes(b"\x80\x04N.")
    (tmp_path / "model.onnx").write_bytes(b"x")
    assert "is a verification set" in attfc("data", "inspect", tmp_path / "lfw.bin", status=1)
    assert "is a file of no known kind; supported are folders" in attfc(
        "data", "inspect", tmp_path / "model.onnx", status=1
    )
    assert "no such folder; did you mean 'synthetic'" in attfc("data", "inspect", "syntetic:images=2", status=1)
    two = tmp_path / "two"
    two.mkdir()
    for name in ("a.rec", "b.rec"):
        (two / name).write_bytes(b"")
    assert "holds 2 .rec files (a.rec, b.rec)" in attfc("data", "inspect", two, status=1)


def test_only_a_file_of_its_own_kind_is_replaced(attfc, tmp_path) -> None:
    """Result files are written again; what the option does not write is refused before anything is computed."""
    faces = "synthetic:identities=4,images=3,seed=1"
    for option, command in {
        "--json": ["data", "inspect", faces, "--workers", 0],
        "-o": ["data", "preview", faces, "--images", 2],
        "--output": ["data", "noise", faces, "flip", "--share", 0.5],
    }.items():
        file = tmp_path / f"file{option}"
        attfc(*command, option, file)
        written = file.read_bytes()
        attfc(*command, option, file)
        assert file.read_bytes() == written
        file.write_text("mine, and not to be lost")
        told = attfc(*command, option, file, status=1)
        assert f"{file} exists and is not what this option writes: name another file, or remove it first" in told
        assert file.read_text() == "mine, and not to be lost"
        file.write_bytes(b"")
        attfc(*command, option, file)
