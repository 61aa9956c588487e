"""Robust centers, wrong labels, leakage and the whole of cleaning: geometry in the plane, and slow loops."""

import io
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from attfc.data import FolderStore
from attfc.data.cleaning import label_cleaning
from attfc.data.cleaning.clean import clean
from attfc.data.cleaning.identity_centers import center_blocks, identity_centers
from attfc.data.cleaning.label_cleaning import mislabelled
from attfc.data.cleaning.same_people import alike
from attfc.data.stores.edits import EditedStore
from attfc.errors import UserError

F64 = npt.NDArray[np.float64]


def plane(*degrees: float) -> npt.NDArray[np.float32]:
    """Embeddings at angles, of lengths 1, 2, 3 ...: lengths must not matter."""
    angles = np.deg2rad(degrees)
    lengths = np.arange(1, len(degrees) + 1)[:, None]
    return (np.stack([np.cos(angles), np.sin(angles)], axis=1) * lengths).astype(np.float32)


def cosines_of(embeddings: npt.NDArray[np.float32], labels: list[int], threshold: float = 0.5) -> F64:
    cosines = np.full(len(labels), np.nan)
    for block in center_blocks(embeddings, np.array(labels), threshold):
        cosines[block.rows] = block.cosines
    return cosines


def cos(degrees: float) -> float:
    return float(np.cos(np.deg2rad(degrees)))


def test_an_image_is_no_part_of_its_own_center() -> None:
    # With a threshold of 0.9 the center is that of the first two: each is compared with the other one alone.
    assert cosines_of(plane(0, 20, 80), [0, 0, 0], 0.9) == pytest.approx([cos(20), cos(20), cos(70)], abs=1e-6)
    # With 0.1 all three agree; each is compared with the middle of the other two.
    expected = [cos(50), cos(20), cos(70)]
    assert cosines_of(plane(0, 20, 80), [0, 0, 0], 0.1) == pytest.approx(expected, abs=1e-6)


def test_outliers_do_not_drag_the_center() -> None:
    # Five of eleven at 75 degrees: the plain mean is at 34, 41 degrees from the outliers (cosine 0.75).
    embeddings = plane(*[0] * 6, *[75] * 5)
    assert cosines_of(embeddings, [0] * 11, 0.5) == pytest.approx([1] * 6 + [cos(75)] * 5, abs=1e-6)
    found = mislabelled(embeddings, np.zeros(11, np.int64), 0.5)
    assert found.positions.tolist() == [6, 7, 8, 9, 10]
    assert found.cosines == pytest.approx([cos(75)] * 5, abs=1e-6)
    assert (found.compared, found.unclear.tolist()) == (11, [])


def test_where_nobody_can_tell_nothing_is_taken() -> None:
    labels = np.array([0, 0, 1, 1, 1, 1, 2, 3, 3, 3, 4, 4])
    embeddings = plane(0, 90, 0, 0, 90, 90, 45, 0, 90, 180, 0, 10)
    found = mislabelled(embeddings, labels, 0.5)
    assert found.positions.tolist() == []
    assert found.unclear.tolist() == [0, 1, 3], (
        "a pair that differs, two halves, three that differ; not the single image"
    )
    assert found.compared == 11


def test_broken_rows_and_left_out_images_are_not_there() -> None:
    embeddings = plane(0, 0, 5, 90, 90, 90)
    embeddings[1] = 0
    labels = np.array([0, 0, 0, 0, -1, 7])
    # Of identity 0 images 0, 2, 3 count: without the row of zeros and the image left out two of three agree.
    found = mislabelled(embeddings, labels, 0.5)
    assert found.positions.tolist() == [3]
    assert found.compared == 3
    assert np.isnan(cosines_of(embeddings, labels.tolist())[[1, 4, 5]]).all()
    centers = identity_centers(embeddings, labels, 9, 0.5)
    assert centers[0] == pytest.approx([cos(2.5), np.sin(np.deg2rad(2.5))], abs=1e-6)
    assert centers[7] == pytest.approx([0, 1], abs=1e-6)
    assert not centers[[1, 2, 3, 4, 5, 6, 8]].any()


def test_broken_rows_take_no_place_in_the_majority() -> None:
    embeddings = plane(0, 0, 0, 0, 115, 245)  # the last three are all far from each other
    embeddings[:3] = 0
    assert np.isnan(cosines_of(embeddings, [0] * 6)).tolist() == [True] * 3 + [False] * 3


def test_moving() -> None:
    # Identity 0 at 0 degrees, 1 at 90, 2 at 180.
    labels = np.array([0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2])
    embeddings = plane(0, 0, 0, 95, 135, 90, 90, 90, 180, 180, 180)
    found = mislabelled(embeddings, labels, 0.5, policy="move", move_threshold=0.9)
    assert found.positions.tolist() == [3, 4]
    assert found.labels.tolist() == [0, 0]
    assert found.moved_to.tolist() == [1, -1], "135 degrees is no closer than 45 to anybody: left out"
    assert found.nearest_cosines == pytest.approx([cos(5), cos(45)], abs=1e-3)
    assert mislabelled(embeddings, labels, 0.5).moved_to.tolist() == [-1, -1]
    loose = mislabelled(embeddings, labels, 0.5, policy="move", move_threshold=0.7)
    assert loose.moved_to.tolist()[0] == 1
    assert loose.moved_to.tolist()[1] in (1, 2)


def test_images_are_moved_to_clear_identities_only() -> None:
    labels = np.array([0, 0, 0, 0, 1, 2, 2])
    embeddings = plane(0, 0, 0, 90, 90, 90, -90)  # 1 has one image, 2 is a pair that differs
    found = mislabelled(embeddings, labels, 0.5, policy="move", move_threshold=0.5)
    assert (found.positions.tolist(), found.moved_to.tolist(), found.nearest.tolist()) == ([3], [-1], [-1])
    assert np.isnan(found.nearest_cosines).all()
    assert mislabelled(embeddings, labels, 0.5, margin=0.1).positions.tolist() == [], "no other center is closer"


def test_the_margin_spares_what_is_far_from_everybody() -> None:
    labels = np.array([0, 0, 0, 0, 0, 1, 1, 1])
    embeddings = plane(0, 0, 0, -80, 80, 90, 90, 90)
    assert mislabelled(embeddings, labels, 0.5).positions.tolist() == [3, 4]
    found = mislabelled(embeddings, labels, 0.5, margin=0.3)
    assert found.positions.tolist() == [4]
    assert found.nearest.tolist() == [1]
    moved = mislabelled(embeddings, labels, 0.5, margin=0.3, policy="move", move_threshold=0.9)
    assert (moved.positions.tolist(), moved.moved_to.tolist()) == ([4], [1])


def slow_center(vectors: F64, threshold: float) -> tuple[F64, bool]:
    """Cosine of each unit vector of one identity to its center without itself, and whether it is clear."""
    number = len(vectors)

    def leave_one_out(kept: set[int]) -> F64:
        result = np.full(number, np.nan)
        for i in range(number):
            others = [vectors[j] for j in sorted(kept - {i})]
            if others:
                center = np.sum(others, axis=0)
                result[i] = vectors[i] @ center / np.linalg.norm(center)
        return result

    cosines = leave_one_out(set(range(number)))
    kept = set(range(number))
    for _ in range(2):
        kept = set(sorted(range(number), key=lambda i: (-cosines[i], i))[: number // 2 + 1])
        cosines = leave_one_out(kept)
    for _ in range(2):
        reaching = {i for i in range(number) if cosines[i] >= threshold}
        kept = reaching if 2 * len(reaching) > number else kept
        cosines = leave_one_out(kept)
    return cosines, 2 * int((cosines >= threshold).sum()) > number


@pytest.mark.parametrize("block_rows", [1, 7, 50, 10_000])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_blocks_equal_a_loop(block_rows: int, dtype: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("attfc.data.cleaning.identity_centers._GATHER", 5)
    draw = np.random.default_rng(0)
    labels = np.repeat(np.arange(30), draw.integers(1, 20, 30))
    people = draw.normal(size=(30, 16))
    wrong = draw.random(len(labels)) < 0.2
    vectors = people[np.where(wrong, draw.integers(0, 30, len(labels)), labels)] + draw.normal(size=(len(labels), 16))
    order = draw.permutation(len(labels))
    labels, vectors = labels[order], vectors[order].astype(dtype)
    np.save(tmp_path / "embeddings.npy", vectors)
    mapped = np.load(tmp_path / "embeddings.npy", mmap_mode="r")
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    seen: list[tuple[int, int]] = []
    blocks = list(
        center_blocks(
            mapped, labels, 0.4, block_rows=block_rows, progress=lambda done, total: seen.append((done, total))
        )
    )
    assert np.concatenate([block.labels for block in blocks]).tolist() == list(range(30))
    assert sorted(np.concatenate([block.rows for block in blocks]).tolist()) == list(range(len(labels)))
    assert seen[-1] == (len(labels), len(labels))
    assert len(blocks) == (30 if block_rows == 1 else len(seen))
    outliers = []
    for block in blocks:
        for i, label in enumerate(block.labels.tolist()):
            rows = block.rows[block.offsets[i] : block.offsets[i + 1]]
            assert rows.tolist() == np.flatnonzero(labels == label).tolist()
            cosines, clear = slow_center(unit[rows], 0.4)
            assert block.cosines[block.offsets[i] : block.offsets[i + 1]] == pytest.approx(
                cosines, abs=1e-5, nan_ok=True
            )
            assert block.clear[i] == clear
            assert np.linalg.norm(block.centers[i]) == pytest.approx(1, abs=1e-5)
            outliers += rows[clear & (cosines < 0.4)].tolist()
    found = mislabelled(mapped, labels, 0.4, block_rows=block_rows)
    assert found.positions.tolist() == sorted(outliers)
    assert len(outliers) > 20


def test_nearest_centers_equal_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_cleaning, "_QUERIES", 5)
    monkeypatch.setattr(label_cleaning, "_CENTERS", 3)
    draw = np.random.default_rng(1)
    labels = np.repeat(np.arange(0, 40, 2), 8)
    vectors = (draw.normal(size=(20, 6))[labels // 2] + 0.7 * draw.normal(size=(160, 6))).astype(np.float32)
    centers = identity_centers(vectors, labels, 40, 0.6).astype(np.float64)
    clear = {label for block in center_blocks(vectors, labels, 0.6) for label in block.labels[block.clear].tolist()}
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    found = mislabelled(vectors, labels, 0.6, policy="move", move_threshold=0.6)
    assert len(found.positions) > 10
    assert (found.moved_to >= 0).any()
    assert (found.moved_to < 0).any()
    for row, own, cosine, nearest, nearest_cosine, moved in zip(
        found.positions, found.labels, found.cosines, found.nearest, found.nearest_cosines, found.moved_to, strict=True
    ):
        scores = {label: float(unit[row] @ centers[label]) for label in clear - {int(own)}}
        assert nearest == max(scores, key=lambda label: scores[label])
        assert nearest_cosine == pytest.approx(max(scores.values()), abs=2e-3), "float16 centers"
        assert moved == (nearest if nearest_cosine >= max(0.6, cosine + 0.3) else -1)


def test_overlap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_cleaning, "_QUERIES", 4)
    monkeypatch.setattr(label_cleaning, "_CENTERS", 3)
    train = plane(0, 45, 90, 135, 180, 225, 270, 315, 10)
    train[4] = 0
    evaluation = plane(2, 12, 88, 184, 0)
    evaluation[4] = 0
    seen: list[tuple[int, int]] = []
    found = alike(train, evaluation, cos(5), progress=lambda done, total: seen.append((done, total)))
    assert found.found.tolist() == [0, 2, 8]
    assert found.best[found.found].tolist() == [0, 2, 1]
    assert found.cosines[found.found] == pytest.approx([cos(2)] * 3, abs=1e-6)
    assert seen == [(4, 9), (8, 9), (9, 9)]
    assert alike(train, evaluation, cos(1)).found.tolist() == []
    assert alike(train, evaluation[:0], 0.5).found.tolist() == []
    assert 4 not in alike(train, evaluation, -1).found, "an identity without images is like nobody"
    assert alike(plane(180), np.stack([plane(0)[0], np.zeros(2)]), -1).best.tolist() == [0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.zeros(4, np.int64)}, r"shape \(5, 2\) for 4 labels"),
        ({"embeddings": np.zeros(5)}, r"shape \(5,\)"),
        ({"embeddings": np.zeros((5, 2), np.int64)}, "embeddings are int64"),
        ({"embeddings": np.full((5, 2), np.nan, np.float32)}, "row 0 is not finite"),
        ({"threshold": 1.5}, "threshold=1.5: a cosine"),
        ({"threshold": float("nan")}, "threshold=nan"),
        ({"move_threshold": 30}, "move_threshold=30"),
        ({"policy": "burn"}, "policy='burn': 'drop' or 'move'"),
    ],
)
def test_what_does_not_fit(change: dict[str, object], message: str) -> None:
    arguments = {"embeddings": plane(0, 0, 0, 0, 0), "labels": np.zeros(5, np.int64), **change}
    with pytest.raises(UserError, match=message):
        mislabelled(**arguments)


def test_centers_of_two_models_are_not_compared() -> None:
    with pytest.raises(UserError, match=r"shape \(3, 2\) and centers of shape \(3, 4\): both must come from"):
        alike(np.zeros((3, 2)), np.zeros((3, 4)))
    with pytest.raises(UserError, match="label 3 is beyond the last of 3"):
        identity_centers(plane(0), [3], 3, 0.5)


def jpeg(level: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (16, 16), (level, 0, 0)).save(out, "JPEG", comment=str(level).encode())
    return out.getvalue()


def folder(root: Path, people: dict[str, list[bytes]]) -> FolderStore:
    for name, files in people.items():
        (root / name).mkdir(parents=True)
        for number, content in enumerate(files):
            (root / name / f"{number}.jpg").write_bytes(content)
    return FolderStore(root, cache=root.parent / f"{root.name}-index")


@pytest.fixture
def sets(tmp_path: Path) -> tuple[FolderStore, FolderStore]:
    train = folder(
        tmp_path / "train",
        {
            "ann": [
                jpeg(1),
                jpeg(2),
                jpeg(3),
                jpeg(4),
                jpeg(1),
                jpeg(90),
            ],  # 0-5: 4 copies 0; 3 shows dan; 5 is bob's too
            "bob": [jpeg(90), jpeg(11), jpeg(12)],  # 6-8
            "cat": [jpeg(20), jpeg(21)],  # 9-10: a pair that differs
            "dan": [jpeg(30), jpeg(31), jpeg(32), b"text"],  # 11-14
            "eva": [jpeg(40), jpeg(41), jpeg(42)],  # 15-17: the evaluation set's Zoe
            "fay G": [jpeg(50), jpeg(51)],  # 18-19: fay_g
            "gus": [jpeg(60), jpeg(61), jpeg(62)],  # 20-22: one image is in the evaluation set
            "hal": [jpeg(70)],  # 23
        },
    )
    evaluation = folder(
        tmp_path / "evaluation", {"fay_g": [jpeg(200)], "zoe": [jpeg(210), jpeg(211)], "yan": [jpeg(61)]}
    )
    return train, evaluation


TRAIN_ANGLES = [0, 0, 0, 60, 0, 0] + [30] * 3 + [120, 210] + [60] * 3 + [0] + [90] * 3 + [150] * 2 + [180] * 3 + [300]
TRAIN = plane(*TRAIN_ANGLES)
TRAIN[14] = 0
EVALUATION = plane(270, 240, 91, 89)  # fay_g, yan, zoe, zoe


def test_clean_all(sets: tuple[FolderStore, FolderStore]) -> None:
    train, evaluation = sets
    before = {path: path.read_bytes() for path in Path(train.root).rglob("*.jpg")}
    seen: list[tuple[int, int]] = []
    report = clean(
        train,
        fewest=2,
        against=evaluation,
        embeddings=TRAIN,
        against_embeddings=EVALUATION,
        threshold=0.7,
        policy="move",
        move_threshold=0.9,
        overlap_threshold=0.95,
        progress=lambda done, total: seen.append((done, total)),
    )
    changes = dict(zip(report.edits.positions.tolist(), report.edits.labels.tolist(), strict=True))
    # 24 images: the broken one, the copy, the image of two people, the move, eva, fay G, gus, hal.
    assert changes == {14: -1, 4: -1, 5: -1, 6: -1, 3: 3} | dict.fromkeys([15, 16, 17, 18, 19, 20, 21, 22, 23], -1)
    assert {k: n for k, n in report.counts.items() if n} == {
        "broken": 1,
        "duplicate_within": 1,
        "duplicate_across": 2,
        "moved": 1,
        "evaluation_copy": 3,
        "evaluation_name": 2,
        "evaluation_face": 3,
        "small_identity": 1,
    }
    assert report.edits.comments is not None
    comments = dict(zip(report.edits.positions.tolist(), report.edits.comments, strict=True))
    assert comments[14].startswith("dan/3.jpg: not a JPEG")
    assert comments[4] == "ann/4.jpg: same bytes as ann/0.jpg"
    assert comments[5] == "ann/5.jpg: same bytes as bob/0.jpg"
    assert comments[6] == "bob/0.jpg: same bytes as ann/5.jpg"
    assert comments[3] == "ann/3.jpg: cosine 0.50 to the center of 'ann', moved to 'dan' (1.00)"
    assert comments[21] == "gus/1.jpg: same bytes as yan/0.jpg of evaluation"
    assert comments[22] == "gus/2.jpg: 'gus' has gus/1.jpg, same bytes as yan/0.jpg of evaluation"
    assert comments[18] == "fay G/0.jpg: evaluation has a 'fay_g' too" or comments[18].startswith(
        "fay G/0.jpg: evaluation"
    )
    assert comments[16].startswith("eva/1.jpg: cosine 1.00 between the centers of 'eva' and 'zoe' of evaluation")
    assert comments[23] == "hal/0.jpg: 'hal' has 1 images left, fewer than 2"
    assert "1 identities are left unchanged" in report.notes[0]
    assert "cat" in report.notes[0]
    assert report.notes[1].startswith("1 of 8 identities look like one of evaluation at a cosine of 0.95")
    view = EditedStore(train, report.edits)
    assert (len(view), len(view.identities)) == (report.images[1], report.identities[1])
    assert [view.identity_name(i) for i in range(len(view.identities))] == ["ann", "bob", "cat", "dan"]
    assert report.images == (24, 11)
    assert report.notes[2] == (
        "3 people are in evaluation too and are left out with all their images, 8 in all: 'eva' (3), 'fay G' (2), 'gus' (3)"
    )
    assert json.loads(json.dumps(report.to_dict()))["counts"]["moved"] == 1
    text = report.to_text()
    assert "24 images of 8 identities; after the edits 11 of 4" in text
    assert "images moved to the identity whose center is clearly closer: 1" in text
    assert seen == sorted(seen)
    assert seen[-1] == (24 + 4 + 24, 24 + 4 + 24)
    assert {path: path.read_bytes() for path in Path(train.root).rglob("*.jpg")} == before, "cleaning deletes nothing"


def test_each_step_can_be_left_out(sets: tuple[FolderStore, FolderStore]) -> None:
    train, evaluation = sets
    assert clean(train, broken=False, duplicates=None).edits.positions.tolist() == []
    assert clean(train, duplicates=None).edits.positions.tolist() == [14]
    assert clean(train, broken=False, duplicates="keep_first").edits.positions.tolist() == [4, 6]
    reported = clean(train, broken=False, duplicates="report")
    assert reported.edits.positions.tolist() == [4]
    assert reported.notes == ("2 images under several identities (1 different ones) are left as they are",)
    nothing_read = clean(train, broken=False, duplicates=None, against=evaluation)
    assert nothing_read.edits.positions.tolist() == [18, 19]
    assert clean(train, broken=False, duplicates=None, against=evaluation, names=False).edits.positions.tolist() == []
    copies = clean(train, broken=False, duplicates="report", against=evaluation, names=False)
    assert copies.edits.positions.tolist() == [4, 20, 21, 22]
    faces = clean(
        train,
        broken=False,
        duplicates=None,
        against=evaluation,
        names=False,
        embeddings=TRAIN,
        against_embeddings=EVALUATION,
        threshold=None,
        overlap_threshold=0.99,
    )
    assert faces.edits.positions.tolist() == [15, 16, 17]
    assert clean(train, broken=False, duplicates=None, embeddings=TRAIN, threshold=0.7).edits.positions.tolist() == [3]
    kept = clean(train, broken=False, duplicates=None, embeddings=TRAIN, threshold=0.7, margin=0.6)
    assert kept.edits.positions.tolist() == []


def test_a_copy_that_an_earlier_step_left_out_takes_its_person_along(tmp_path: Path) -> None:
    train = folder(
        tmp_path / "train", {"ann": [jpeg(1), jpeg(1), jpeg(2)], "bob": [jpeg(3), jpeg(4)], "cat": [jpeg(3)]}
    )
    evaluation = folder(tmp_path / "evaluation", {"x": [jpeg(1), jpeg(3)]})
    report = clean(train, against=evaluation, names=False)  # drop_all: the image of bob and cat is gone already
    assert report.images == (6, 0)
    assert {k: n for k, n in report.counts.items() if n} == {
        "duplicate_within": 1,
        "duplicate_across": 2,
        "evaluation_copy": 3,
    }


def test_identities_are_small_after_the_other_steps(sets: tuple[FolderStore, FolderStore]) -> None:
    train, _ = sets
    report = clean(train, fewest=3)
    # bob loses an image of three, dan the broken one of four; cat, fay G and hal have two or one.
    assert report.counts["small_identity"] == 2 + 2 + 2 + 1
    assert set(report.edits.positions.tolist()) == {4, 5, 6, 14} | {7, 8, 9, 10, 18, 19, 23}


def test_one_person_under_two_names_is_said(tmp_path: Path) -> None:
    store = folder(tmp_path / "s", {"ann": [jpeg(i) for i in range(0, 40, 10)], "anne": [jpeg(0), jpeg(10), jpeg(99)]})
    assert "'ann' and 'anne' share 2 images: one person under two names?" in clean(store).to_text()


def test_a_model_too_weak_is_said(sets: tuple[FolderStore, FolderStore]) -> None:
    train, _ = sets
    spread = plane(*[0, 0, 80] * 8)  # most identities of four lose one, which is not the embeddings' fault
    weak = clean(train, broken=False, duplicates=None, embeddings=spread, threshold=0.99)
    assert weak.counts["mislabelled"] > 0.2 * 23
    assert any("is the model good enough" in note and "25% below" in note for note in weak.notes)
    strong = clean(train, broken=False, duplicates=None, embeddings=TRAIN, threshold=0.7)
    assert not any("good enough" in note for note in strong.notes)


def test_clean_refuses(sets: tuple[FolderStore, FolderStore]) -> None:
    train, evaluation = sets
    with pytest.raises(UserError, match="train: embeddings of shape \\(23, 2\\) for 24 images"):
        clean(train, embeddings=TRAIN[:23])
    with pytest.raises(UserError, match="evaluation: embeddings of shape \\(3, 2\\) for 4 images"):
        clean(train, embeddings=TRAIN, against=evaluation, against_embeddings=EVALUATION[:3])
    with pytest.raises(UserError, match="against_embeddings need the evaluation set"):
        clean(train, against=evaluation, against_embeddings=EVALUATION)
    with pytest.raises(UserError, match="fewest=0"):
        clean(train, fewest=0)
