"""Copies, names, small identities and the edit list of it all, against slow loops and folders made by hand."""

import io
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from attfc.data import FolderStore
from attfc.data.cleaning.duplicates import Contents, find_duplicates, read_contents
from attfc.data.cleaning.evaluation_people import normal_name, overlap_by_name
from attfc.data.cleaning.findings import Findings, small_identities
from attfc.data.content_hash import content_hash
from attfc.data.index import IdentityIndex
from attfc.data.stores.edits import EditedStore, read_edits, write_edits
from attfc.errors import UserError


def jpeg(level: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (16, 16), (level, 0, 0)).save(out, "JPEG")
    return out.getvalue()


def folder(root: Path, people: dict[str, list[bytes]]) -> FolderStore:
    for name, files in people.items():
        (root / name).mkdir(parents=True)
        for number, content in enumerate(files):
            (root / name / f"{number}.jpg").write_bytes(content)
    return FolderStore(root)


class Named:
    """As much of a store as names and labels take."""

    def __init__(self, *names: str, labels: list[int] | None = None) -> None:
        self.names, self.name = names, "named"
        self.identities = IdentityIndex.from_labels(np.array(labels or [], np.int64), len(names))

    def __len__(self) -> int:
        return self.identities.images

    def identity_name(self, label: int) -> str:
        return self.names[label]

    def where(self, position: int) -> str:
        return f"image {position}"


@pytest.fixture
def store(tmp_path: Path) -> FolderStore:
    return folder(
        tmp_path / "faces",
        {
            "ann": [jpeg(0), jpeg(20), jpeg(0), jpeg(40)],  # 0 1 2 3
            "bob": [jpeg(60), b"", jpeg(20), jpeg(60)[:100]],  # 4 5 6 7
            "cat": [jpeg(80), jpeg(80), jpeg(20), jpeg(20)],  # 8 9 10 11
        },
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_contents(store: FolderStore, workers: int) -> None:
    seen: list[tuple[int, int]] = []
    contents = read_contents(store, workers=workers, progress=lambda done, total: seen.append((done, total)))
    assert contents.sound.tolist() == [p not in (5, 7) for p in range(12)]
    assert contents.reasons[0] == "empty file"
    assert contents.reasons[1].startswith("cannot be decoded")
    assert contents.hashes[4] == content_hash(jpeg(60))
    assert seen == [(12, 12)]
    (Path(store.root) / "ann" / "3.jpg").unlink()
    undecoded = read_contents(store, decode=False)
    assert undecoded.sound.tolist() == [p != 3 for p in range(12)], "an empty file can be read"
    assert undecoded.reasons == ["cannot be read (No such file or directory)"]


def test_contents_of_many_chunks(tmp_path: Path) -> None:
    many = folder(tmp_path, {f"p{i:03}": [jpeg(i % 256)] for i in range(300)})
    (tmp_path / "p270" / "0.jpg").write_bytes(b"text")
    contents = read_contents(many, workers=2)
    assert contents.hashes.tolist() == [0 if i == 270 else content_hash(jpeg(i % 256)) for i in range(300)]
    assert np.flatnonzero(~contents.sound).tolist() == [270]


@pytest.mark.parametrize(
    ("across", "out", "by_identity"),
    [
        ("drop_all", {1: 6, 2: 0, 6: 1, 9: 8, 10: 1, 11: 1}, {1, 6, 10, 11}),
        ("keep_first", {2: 0, 6: 1, 9: 8, 10: 1, 11: 1}, {6, 10, 11}),
        ("report", {2: 0, 9: 8, 11: 10}, set()),
    ],
)
def test_duplicates(store: FolderStore, across: str, out: dict[int, int], by_identity: set[int]) -> None:
    found = find_duplicates(store, across=across)
    assert dict(zip(found.positions.tolist(), found.copy_of.tolist(), strict=True)) == out
    assert set(found.positions[found.across].tolist()) == by_identity
    # The empty file and the damaged one are each alone with their bytes.
    assert (found.groups_within, found.groups_across, found.images_across) == (2, 1, 4)
    assert found.shared == ((0, 1, 1), (0, 2, 1))


def slow_duplicates(hashes: list[int], labels: list[int], across: str) -> dict[int, bool]:
    """Left-out position -> because of another identity. One group at a time."""
    groups = defaultdict(list)
    for position, key in enumerate(hashes):
        if labels[position] >= 0:
            groups[key].append(position)
    out = {}
    for members in groups.values():
        mixed = len({labels[p] for p in members}) > 1
        for place, p in enumerate(members):
            again = any(labels[q] == labels[p] for q in members[:place])
            if mixed and across == "drop_all":
                out[p] = True
            elif mixed and across == "keep_first" and place:
                out[p] = labels[p] != labels[members[0]]
            elif again:
                out[p] = False
    return out


@pytest.mark.parametrize("across", ["drop_all", "keep_first", "report"])
@pytest.mark.parametrize("seed", range(20))
def test_duplicates_equal_a_loop(across: str, seed: int) -> None:
    draw = np.random.default_rng(seed)
    number = int(draw.integers(0, 40))
    hashes, labels = draw.integers(0, 12, number).astype(np.uint64), draw.integers(-1, 4, number)
    named = Named("a", "b", "c", "d")
    sound = draw.random(number) < 0.8
    hashes[~sound] = 0  # broken images are not copies of each other, nor of an image whose hash is 0
    contents = Contents(hashes, sound, [])
    found = find_duplicates(named, across=across, contents=contents, labels=labels)  # type: ignore[arg-type]
    expected = slow_duplicates(hashes.tolist(), np.where(sound, labels, -1).tolist(), across)
    assert found.positions.tolist() == sorted(expected)
    assert found.across.tolist() == [expected[p] for p in sorted(expected)]
    assert (hashes[found.copy_of] == hashes[found.positions]).all()
    assert (found.copy_of != found.positions).all()
    assert (labels[found.copy_of] >= 0).all()
    assert sound[found.copy_of].all()
    assert ((labels[found.copy_of] != labels[found.positions]) == found.across).all()


def test_an_unknown_policy(store: FolderStore) -> None:
    with pytest.raises(UserError, match="duplicates='keep_fist': one of drop_all, keep_first, report; did you mean"):
        find_duplicates(store, across="keep_fist")  # type: ignore[arg-type]


def test_small_identities() -> None:
    labels = np.array([5, 5, 5, 0, -1, -1, 2, 2, 10**15])
    assert small_identities(labels, 1).tolist() == []
    assert small_identities(labels, 2).tolist() == [0, 10**15]
    assert small_identities(labels, 3).tolist() == [0, 2, 10**15]
    assert small_identities(np.zeros(0, np.int64), 3).tolist() == []


def test_names_are_compared_without_case_and_spaces() -> None:
    train = Named("Ann Lee", "BOB", "cat", "17", "identity 3", "m.01", "__")
    evaluation = Named("m.01", "ann__lee", "17", "Identity_3", "bob ", "_", "ANN LEE")
    pairs = overlap_by_name(train, evaluation)  # type: ignore[arg-type]
    assert pairs.tolist() == [[0, 1], [1, 4], [5, 0]]
    assert overlap_by_name(train, evaluation, numbers=True).tolist() == [[0, 1], [1, 4], [3, 2], [4, 3], [5, 0]]  # type: ignore[arg-type]
    assert overlap_by_name(train, Named()).shape == (0, 2)  # type: ignore[arg-type]
    assert normal_name("ＡＮＮ　Lee") == normal_name("ann_lee"), "full-width letters too"


def test_findings_keep_to_their_order(tmp_path: Path) -> None:
    named = Named("a", "b", "c", labels=[0, 0, 0, 1, 1, 2])
    findings = Findings(named)  # type: ignore[arg-type]
    findings.leave_out("broken", np.array([1]), lambda i: f"broken {i}")
    findings.move("moved", np.array([0, 2]), np.array([1, 2]), lambda i: f"moved {i}")
    findings.leave_out("mislabelled", np.array([0, 1, 5]), lambda i: f"far\t{i}")  # 0 moved before, 1 is out already
    findings.leave_out_identities("evaluation_name", np.array([0, 2]), lambda i: f"identity number {i}")
    findings.note("a note")
    report = findings.report()
    assert report.edits.positions.tolist() == [0, 1, 2, 5]
    assert report.edits.labels.tolist() == [-1, -1, -1, -1]
    assert report.edits.comments == [
        "image 0: moved 0; far 0",
        "image 1: broken 0",
        "image 2: moved 1; identity number 1",
        "image 5: far 2",
    ]
    assert {k: n for k, n in report.counts.items() if n} == {"broken": 1, "mislabelled": 2, "evaluation_name": 1}
    assert (report.images, report.identities) == ((6, 2), (3, 1))
    assert report.examples["evaluation_name"] == ["image 2: identity number 1"]
    text = report.to_text(lines_each=1)
    for part in (
        "named: 6 images of 3 identities; after the edits 2 of 1",
        "broken images: 1",
        "image 0: far 0",
        "a note",
    ):
        assert part in text
    assert "image 5" not in text
    assert "... and 1 more" in text


def test_a_long_edit_list_goes_without_comments() -> None:
    named = Named("a", labels=[0] * 10)
    for most, comments in ((5, 5), (4, None)):
        findings = Findings(named)  # type: ignore[arg-type]
        findings.leave_out("broken", np.arange(5), str)
        report = findings.report(examples=2, most_comments=most)
        assert (None if report.edits.comments is None else len(report.edits.comments)) == comments
        assert report.examples == {"broken": ["image 0: 0", "image 1: 1"]}
        assert report.counts["broken"] == 5
        assert any("no comments" in note for note in report.notes) == (comments is None)


def test_nothing_found() -> None:
    report = Findings(Named("a", labels=[0, 0])).report()  # type: ignore[arg-type]
    assert len(report.edits) == 0
    assert "nothing to change" in report.to_text()


def test_the_edit_list_is_honoured(store: FolderStore, tmp_path: Path) -> None:
    findings = Findings(store)
    contents = read_contents(store)
    findings.leave_out("broken", np.flatnonzero(~contents.sound), lambda i: contents.reasons[i])
    found = find_duplicates(store, contents=contents, labels=findings.labels)
    findings.leave_out("duplicate_within", found.positions, lambda i: store.where(int(found.copy_of[i])))
    report = findings.report()
    write_edits(tmp_path / "list", report.edits, store.name)
    view = EditedStore(store, read_edits(tmp_path / "list"))
    assert [view.where(i) for i in range(len(view))] == ["ann/0.jpg", "ann/3.jpg", "bob/0.jpg", "cat/0.jpg"]
    assert (len(view), len(view.identities)) == (report.images[1], report.identities[1])
