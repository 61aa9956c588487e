"""Labels that are one person, near copies, people of other sets: planted into embeddings whose answer is known, and into small pictures."""

import dataclasses
import tracemalloc
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image, ImageDraw
from torch import nn

from attfc.data import FolderStore
from attfc.data.cleaning.clean import clean
from attfc.data.cleaning.label_cleaning import closest_centers
from attfc.data.cleaning.same_people import alike, chance_threshold, near_copies
from attfc.data.index import IdentityIndex
from attfc.data.stores.store import IndexedStore
from attfc.errors import UserError
from attfc.evaluation import Embedder
from attfc.evaluation.unseen import compare_with_training
from attfc.run.trained_people import with_look_alikes

DIMENSIONS = 64
Rows = npt.NDArray[np.float32]


class Named(IndexedStore):
    """People without images: for embeddings alone."""

    def __init__(self, labels: npt.ArrayLike, name: str) -> None:
        self._index, self.name, self.path = IdentityIndex.from_labels(np.asarray(labels)), name, Path(name)

    @property
    def identities(self) -> IdentityIndex:
        return self._index

    def labels(self, positions: npt.ArrayLike) -> npt.NDArray[np.int64]:
        return self._index.labels()[positions]

    def identity_name(self, label: int) -> str:
        return f"{self.name}-{label}"

    def where(self, position: int) -> str:
        return f"{self.name} {position}"


def faces(people: npt.ArrayLike, seed: int = 0, noise: float = 0.6) -> Rows:
    """Embeddings of images of people: unit directions, equal for equal people in every call, and noise of that length."""
    people = np.asarray(people)
    directions = np.random.default_rng(99).standard_normal((1000, DIMENSIONS))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    drawn = np.random.default_rng(seed).standard_normal((len(people), DIMENSIONS)) * noise / DIMENSIONS**0.5
    return (directions[people] + drawn).astype(np.float32)


def test_the_closest_centers_equal_a_full_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attfc.data.cleaning.label_cleaning._QUERIES", 7)
    monkeypatch.setattr("attfc.data.cleaning.label_cleaning._CENTERS", 5)
    rows, centers = faces(np.arange(40)), faces(np.arange(23), seed=1)
    rows[3], centers[4] = 0, 0
    own = np.arange(40) % 23
    best, (first, second, third) = closest_centers(rows, None, centers, "cpu", own, ranks=3)
    unit = [part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-9) for part in (rows, centers)]
    scores = unit[0] @ unit[1].T
    scores[np.arange(40), own] = scores[:, 4] = -2
    scores[3] = -2
    assert np.allclose(first, np.sort(scores, axis=1)[:, -1], atol=1e-5)
    assert np.allclose(second, np.sort(scores, axis=1)[:, -2], atol=1e-5)
    assert np.allclose(third, np.sort(scores, axis=1)[:, -3], atol=1e-5)
    known = np.arange(40) != 3
    assert (best[known] == scores.argmax(axis=1)[known]).all()
    alone, (highest,) = closest_centers(rows, None, centers, "cpu", own)
    assert (alone[known] == best[known]).all()
    assert np.array_equal(highest, first)
    few = closest_centers(rows, None, centers[:1], "cpu", ranks=3)[1]
    assert (few[1:] == -2).all()  # nobody is second of one


def test_the_threshold_lets_few_strangers_in_and_stays_below_the_planted() -> None:
    for people in (200, 900):
        labels = np.repeat(np.arange(people), 6)
        centers = np.stack([faces(labels, seed=2)[labels == person].mean(axis=0) for person in range(people)])
        doubled = np.concatenate(
            [centers, faces(np.repeat(np.arange(people // 10), 3), seed=3).reshape(-1, 3, DIMENSIONS).mean(axis=1)]
        )
        found = alike(doubled, doubled, own=np.arange(len(doubled)))
        assert found.by_chance
        right = found.best[found.found] % people == found.found % people
        assert right.sum() == 2 * (people // 10), "both sides of every double"
        assert (~right).sum() <= 0.05 * len(doubled)
        assert len(found.borderline(5)) == 5
    assert chance_threshold(np.full(19, 0.3, np.float32), np.full(19, 0.3, np.float32)) is None
    assert alike(centers[:10], centers[:10], own=np.arange(10)).threshold == 0.7
    assert alike(centers, centers, 0.9, own=np.arange(len(centers))).threshold == 0.9


def unit(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


WORLDS = {
    "equally unlike": lambda own, draw: own,
    "few directions": lambda own, draw: own * np.exp(-np.arange(own.shape[1]) / 16),
    "a common direction": lambda own, draw: own + 6 * unit(draw.standard_normal((1, own.shape[1]))),
    "families of ten": lambda own, draw: own + 0.65 * draw.standard_normal(own.shape)[np.arange(len(own)) // 10],
    "eight regions, loose to tight": lambda own, draw: (
        own
        + (np.arange(8) / 6)[np.arange(len(own)) % 8, None]
        * draw.standard_normal((8, own.shape[1]))[np.arange(len(own)) % 8]
    ),
}


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("labels", [1, 2, 3])
def test_about_one_closest_stranger_reaches_the_threshold(world: str, labels: int) -> None:
    """600 people, of whom 20 have `labels` labels, 30 times: how many rows are taken for another label of a person that they are not."""
    draw = np.random.default_rng(3)
    wrong, missed = [], []
    for _ in range(30):
        people = unit(WORLDS[world](draw.standard_normal((600, DIMENSIONS)), draw))
        of = np.concatenate([np.arange(600), np.tile(np.arange(20), labels - 1)])
        rows = unit(people[of] + 0.3 * unit(draw.standard_normal((len(of), DIMENSIONS)))).astype(np.float32)
        found = alike(rows, rows, own=np.arange(len(rows)))
        same = of[found.best] == of
        wrong.append((~same[found.found]).sum())
        missed.append((same & (found.cosines < found.threshold)).sum() / max(1, same.sum()))
    assert 0.1 < np.mean(wrong) < 3.5
    assert np.mean(missed) < 0.05 or "regions" in world


def test_the_threshold_holds_where_most_people_have_two_labels() -> None:
    draw = np.random.default_rng(4)
    people = unit(draw.standard_normal((400, DIMENSIONS)))
    of = np.concatenate([np.arange(400), np.arange(300)])
    rows = unit(people[of] + 0.3 * unit(draw.standard_normal((700, DIMENSIONS)))).astype(np.float32)
    found = alike(rows, rows, own=np.arange(700))
    same = of[found.best] == of
    assert same[found.found].all()
    assert len(found.found) == 600


@pytest.fixture(scope="module")
def planted() -> tuple[Named, Rows, Named, Rows]:
    """A training set of 300 people, and 40 people to evaluate on.

    Labels 290 ... 299 are the people 0 ... 9 again; 280 ... 284 are the evaluation people 900 ... 904; image 3 of the labels 20 ... 24 is of the
    evaluation people 905 ... 909.
    """
    labels = np.repeat(np.arange(300), 8)
    people = labels.copy()
    people[labels >= 290] = labels[labels >= 290] - 290
    people[(labels >= 280) & (labels < 285)] += 620
    for number in range(5):
        people[(20 + number) * 8 + 3] = 905 + number
    theirs = np.repeat(np.arange(40), 3)
    return Named(labels, "train"), faces(people, seed=4), Named(theirs, "val"), faces(900 + theirs, seed=5)


def test_doubles_people_and_single_images_are_found(planted: tuple[Named, Rows, Named, Rows]) -> None:
    train, embeddings, val, theirs = planted
    options = {"broken": False, "duplicates": None, "names": False, "people": True, "threshold": None}
    report = clean(train, against=val, embeddings=embeddings, against_embeddings=theirs, **options)
    inside = {pair.labels for pair in report.pairs if not pair.between}
    assert {(n, 290 + n) for n in range(10)} <= {tuple(sorted(labels)) for labels in inside}
    assert len(inside) <= 10 + 0.05 * 300
    assert "labels look like a person of another label" in report.notes[0]
    assert report.notes[0].endswith("--merge gives both one label")
    assert report.counts["one_person"] == 0
    assert 40 <= report.counts["evaluation_face"] <= 40 + 8 * 0.05 * 300
    assert 5 <= report.counts["evaluation_image"] <= 5 + 0.005 * 2400
    out = set(report.edits.positions.tolist())
    assert {(20 + number) * 8 + 3 for number in range(5)} <= out
    assert set(range(280 * 8, 285 * 8)) <= out
    assert [pair.names for pair in report.pairs if pair.between and pair.labels[0] == 280] == [("train-280", "val-0")]
    assert all(isinstance(pair["cosine"], float) for pair in report.to_dict()["pairs"])
    strict = clean(train, against=val, embeddings=embeddings, against_embeddings=theirs, **options | {"threshold": 0.3})
    assert strict.counts["evaluation_image"] >= 5, "although they were left out as wrong labels before"
    assert strict.counts["mislabelled"] == 0
    merged = clean(train, embeddings=embeddings, merge=True, overlap_threshold=0.7, **options)
    assert merged.notes[0].startswith(
        "10 labels look like a person of another label (cosine from 0.70): 'train-290' = 'train-0', "
    )
    changes = dict(zip(merged.edits.positions.tolist(), merged.edits.labels.tolist(), strict=True))
    assert changes == {position: position // 8 - 290 for position in range(290 * 8, 300 * 8)}
    assert merged.edits.comments is not None
    assert merged.edits.comments[0] == "train 2320: moved to 'train-0', the same person"


def test_an_image_against_a_center_finds_what_a_center_hides(planted: tuple[Named, Rows, Named, Rows]) -> None:
    """Two of three images of an evaluation person are of somebody else: the center of the three is not the face, the third image is."""
    train, embeddings, val, theirs = planted
    mixed = theirs.copy()
    mixed[0:2] = faces([700, 700], seed=6, noise=0.1)
    options = {"broken": False, "duplicates": None, "names": False, "threshold": None}
    report = clean(train, against=val, embeddings=embeddings, against_embeddings=mixed, **options)
    assert set(range(280 * 8, 281 * 8)) <= set(report.edits.positions.tolist())
    assert 280 not in {pair.labels[0] for pair in report.pairs}, "not by the centers"


def picture(seed: int, shift: int = 0) -> Image.Image:
    draw = np.random.default_rng(seed)
    image = Image.new("RGB", (112, 112), (90, 80, 70))
    for _ in range(12):
        x, y = draw.integers(0, 90, 2)
        ImageDraw.Draw(image).ellipse((x, y, x + 30, y + 24), tuple(draw.integers(0, 255, 3).tolist()))
    return image.point(lambda value: min(255, value + shift))


def save(path: Path, image: Image.Image, quality: int = 95) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "JPEG", quality=quality)


def test_a_person_of_many_copies_takes_no_memory_of_all_their_pairs(tmp_path: Path) -> None:
    """A picture that says "not available", saved anew for each: 90,000 pairs of 32 x 32 pixels would be 700 MB."""
    save(tmp_path / "ann" / "000.jpg", picture(0))
    for number in range(1, 300):
        (tmp_path / "ann" / f"{number:03}.jpg").symlink_to("000.jpg")
    store = FolderStore(tmp_path, cache=tmp_path / "cache")
    labels, embeddings = store.identities.labels(), np.ones((300, DIMENSIONS), dtype=np.float32)
    tracemalloc.start()
    first, _ = near_copies((store, store), (embeddings, embeddings), (labels, labels))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(first) == 300 * 299
    assert most < 250 << 20


def test_near_copies_agree_in_pixels_not_only_in_embeddings(tmp_path: Path) -> None:
    for number in range(4):
        save(tmp_path / "ann" / f"{number}.jpg", picture(number))
        save(tmp_path / "bob" / f"{number}.jpg", picture(10 + number))
    save(tmp_path / "ann" / "again.jpg", picture(1).resize((100, 100)).resize((112, 112)), 40)
    save(tmp_path / "bob" / "wrong.jpg", picture(2, shift=20), 60)
    (tmp_path / "bob" / "zzz.jpg").write_bytes(b"broken")
    store = FolderStore(tmp_path, cache=tmp_path / "cache")
    labels = store.identities.labels()
    embeddings = np.eye(2, DIMENSIONS, dtype=np.float32)[labels]  # all images of a person are alike to the model
    wrong = next(p for p in range(len(store)) if store.where(p) == "bob/wrong.jpg")
    embeddings[wrong] = embeddings[0]
    pairs = near_copies((store, store), (embeddings, embeddings), (labels, labels))
    assert {tuple(sorted((store.where(a), store.where(b)))) for a, b in zip(*pairs, strict=True)} == {
        ("ann/1.jpg", "ann/again.jpg")
    }
    for policy, gone in (
        ("drop_all", {"ann/again.jpg", "bob/wrong.jpg", "ann/2.jpg"}),
        ("keep_first", {"ann/again.jpg", "bob/wrong.jpg"}),
        ("report", {"ann/again.jpg"}),
    ):
        report = clean(store, duplicates=policy, embeddings=embeddings, people=True, threshold=None, broken=False)
        assert {store.where(p) for p in report.edits.positions.tolist()} - {"ann/1.jpg"} == gone, policy
        assert report.counts["near_copy"] == len(report.edits)
    assert any("near copies under two labels are left as they are" in note for note in report.notes)


def test_a_sheet_shows_the_pairs_nearest_to_the_threshold(tmp_path: Path) -> None:
    for number in range(30):
        for image in range(2):
            save(tmp_path / f"p{number:02d}" / f"{image}.jpg", picture(100 * number + image))
    store = FolderStore(tmp_path, cache=tmp_path / "cache")
    people = np.repeat(np.arange(30), 2)
    people[-2:] = 0
    report = clean(
        store,
        embeddings=faces(people),
        people=True,
        threshold=None,
        broken=False,
        duplicates=None,
        overlap_threshold=0.8,
    )
    sheet = report.sheet(store, None)
    assert sheet.size == (8 * 114 + 2, len(report.borderline) * (114 + 26) + 2)
    assert any(pair.found and pair.names == ("p00", "p29") for pair in report.borderline)
    assert any(not pair.found for pair in report.borderline)
    with pytest.raises(UserError, match="no two labels were compared by their faces: there is no pair to draw"):
        clean(store, broken=False).sheet(store, None)
    with pytest.raises(UserError, match="people are compared by their faces: embeddings of the store are needed"):
        clean(store, people=True)
    with pytest.raises(UserError, match="overlap_threshold=2: a cosine from -1 to 1 is needed"):
        clean(store, embeddings=faces(people), overlap_threshold=2)


class Colours(nn.Module):
    """Embeds a picture as its pixels, small."""

    image_size = 16

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1) - images.mean()


def test_look_alikes_under_other_names_in_other_encodings(tmp_path: Path) -> None:
    for number in range(60):
        for image in range(2):
            save(tmp_path / "train" / f"name {number:02d}" / f"{image}.jpg", picture(number, shift=8 * image))
    for number in range(40):
        face = number if number < 12 else 1000 + number
        save(tmp_path / "val" / f"other {number:02d}" / "x.jpg", picture(face, shift=4), 60)
    train, val = (FolderStore(tmp_path / name, cache=tmp_path / "cache") for name in ("train", "val"))
    shared = compare_with_training(train, val)
    assert shared.shared_identities == 0
    assert with_look_alikes(shared, Embedder(Colours()), train, val, 0.0) is shared
    seen: list[int] = []
    found = with_look_alikes(shared, Embedder(Colours()), train, val, 60.0, lambda done, of: seen.append(done))
    assert found.looked_at == (40, 120)
    assert found.alike_names[:12] == tuple(f"other {number:02d}" for number in range(12))
    assert 12 <= len(found.alike_names) <= 14
    assert found.look_alikes == len(found.alike_names)
    (note,) = found.notes
    assert note.startswith(
        f"{found.look_alikes} of 40 evaluation people look like training people: other 00, other 01, "
    )
    assert "(120 training images compared by this model; attfc data clean " in note
    assert found.alike
    assert "other 0" not in found.alike
    assert seen == sorted(seen)
    by_name = dataclasses.replace(shared, shared_labels=(0, 1, 30), shared_identities=3)
    others = with_look_alikes(by_name, Embedder(Colours()), train, val, 60.0)
    assert others.alike_names == found.alike_names[2:], "who is known by name is named once"
    assert (
        f"{len(others.alike_names)} more of 40 evaluation people look like training people: other 02"
        in others.notes[-1]
    )
    kept = found.to_dict()
    assert (kept["look_alikes"], kept["looked_at"]) == (found.look_alikes, (40, 120))
    assert "other 0" not in str(kept), "files name nobody"
    assert "look_alikes" not in shared.to_dict()
    hurried = with_look_alikes(shared, Embedder(Colours()), train, val, 1e-9)
    assert hurried.looked_at == (40, 60), "one chunk of each set is always looked at"
    few = FolderStore(tmp_path / "train", cache=tmp_path / "cache")
    nobody = dataclasses.replace(shared)
    small = tmp_path / "small"
    save(small / "a" / "1.jpg", picture(1))
    assert (
        with_look_alikes(nobody, Embedder(Colours()), few, FolderStore(small, cache=tmp_path / "cache"), 9.0) is nobody
    )
