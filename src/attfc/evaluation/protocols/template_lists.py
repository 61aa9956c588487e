"""The lists of a template protocol (IJB-B, IJB-C): which face belongs to which template and media, which templates are compared.

    FOLDER/loose_crop/             the faces, cut loosely from photographs and video frames
    FOLDER/meta/SET_name_5pts_score.txt       name, x y of five landmarks, detector score
    FOLDER/meta/SET_face_tid_mid.txt          name, template, media
    FOLDER/meta/SET_template_pair_label.txt   template, template, 1 (one person) or 0
    FOLDER/meta/SET_1N_gallery_G1.csv, ..._G2.csv, SET_1N_probe_mixed.csv   header, then template,subject and whatever else

IJB-B's galleries are released as S1 and S2: either name is found. Fields are separated by blanks, lines end in LF or CR LF, mixed as they like. The
published scripts take line i of the first two lists for the same face without looking at the names; here the names decide, and
what one list has and the other lacks is counted. 15.7 million pairs are read in about 5 seconds, without a Python object a line.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from attfc.data.text_lines import BLANK, LineBlock, line_blocks, open_regular, whole_numbers
from attfc.errors import UserError
from attfc.evaluation.alignment import similarity_to_template
from attfc.evaluation.bootstrap import linked_identities
from attfc.typing import Bools, Float64, Int64, Progress

__all__ = ["FaceList", "SubjectList", "TemplateLists", "TemplatePairs", "read_template_lists", "subjects_of_templates"]


_NOT_BLANK = ~BLANK & (np.arange(256) != 0x0A)


@dataclass(frozen=True, eq=False)
class FaceList:
    """F faces in the order of SET_face_tid_mid.txt.

    Attributes:
        names: file names below loose_crop.
        landmarks: (F, 5, 2) float64 x, y in pixels; NaN where there are none.
        detector_scores: (F,) float64; NaN where there is none.
        templates, medias: (F,) int64.
        unusable: face -> why it cannot be used, known from the lists alone.
    """

    names: tuple[str, ...]
    landmarks: Float64
    detector_scores: Float64
    templates: Int64
    medias: Int64
    unusable: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of faces."""
        return len(self.names)


@dataclass(frozen=True, eq=False)
class TemplatePairs:
    """P pairs of templates: (P,) int64 numbers as the list has them, (P,) true where both show one person."""

    first: Int64
    second: Int64
    same: Bools

    def __len__(self) -> int:
        """Return the number of pairs."""
        return len(self.same)


@dataclass(frozen=True, eq=False)
class SubjectList:
    """Templates of a gallery or of the probes, each once, and whom they show: (n,) int64 both."""

    name: str
    templates: Int64
    subjects: Int64


@dataclass(frozen=True, eq=False)
class TemplateLists:
    """All lists of a protocol folder.

    Attributes:
        name: "ijbb", "ijbc".
        folder: holds loose_crop and meta.
        faces: the faces.
        pairs: of the 1:1 protocol; None if the folder has none.
        galleries, probes: of the 1:N protocol; empty and None if the folder has none.
        counts: faults that were counted and not refused, by name.
        notes: the same in words, and what is missing.
    """

    name: str
    folder: Path
    faces: FaceList
    pairs: TemplatePairs | None
    galleries: tuple[SubjectList, ...]
    probes: SubjectList | None
    counts: dict[str, int]
    notes: tuple[str, ...]


def read_template_lists(folder: str | os.PathLike[str], name: str, progress: Progress | None = None) -> TemplateLists:
    """Read the lists of a folder in the released layout.

    Counted and noted: faces without landmarks, landmarks without a face, landmarks or detector scores that are no finite numbers or fit no
    similarity, a detector score below 0, face lines that occur twice (used once), pairs of a template with itself (left out).

    Args:
        folder: with loose_crop and meta, or with a folder IJBB or IJBC that has them.
        name: "ijbb" or "ijbc": the first part of the file names.
        progress: called as (bytes done, bytes) while the pairs are read.

    Raises:
        UserError: a list is missing or malformed (file, line, and what is wrong), a template shows two subjects, or nothing to evaluate.
    """
    root = Path(folder)
    if not (root / "meta").is_dir() and (root / name.upper() / "meta").is_dir():
        root = root / name.upper()
    meta = root / "meta"
    for needed in (meta, root / "loose_crop"):
        if not needed.is_dir():
            raise UserError(f"{needed} is no folder: {name} needs FOLDER with loose_crop and meta, as released")
    counts: dict[str, int] = {}
    notes: list[str] = []
    faces = _read_faces(meta / f"{name}_name_5pts_score.txt", meta / f"{name}_face_tid_mid.txt", counts, notes)
    pair_file = meta / f"{name}_template_pair_label.txt"
    pairs = _read_pairs(pair_file, counts, notes, progress) if pair_file.exists() else None
    galleries, probes = _read_search(meta, name, notes)
    if pairs is None:
        if probes is None:
            raise UserError(f"{meta} has neither {pair_file.name} nor galleries and probes: nothing to evaluate")
        notes.append(f"{pair_file.name} is missing: no 1:1 figures")
    return TemplateLists(name, root, faces, pairs, galleries, probes, counts, tuple(notes))


def _read_faces(points_file: Path, template_file: Path, counts: dict[str, int], notes: list[str]) -> FaceList:
    point_names, numbers = _read_landmarks(points_file)
    names, templates, medias = _read_templates(template_file)
    if names == point_names:
        rows = np.arange(len(names))
    else:
        row_of: dict[str, int] = {}
        for row, name in enumerate(point_names):
            if name in row_of and not np.array_equal(numbers[row_of[name]], numbers[row], equal_nan=True):
                raise UserError(
                    f"{points_file}: {name!r} is listed twice with different numbers, and the order of {template_file.name} is another: "
                    "which landmarks are meant is unknown; correct the list"
                )
            row_of[name] = row
        rows = np.array([row_of.get(name, -1) for name in names], dtype=np.int64)
        unused = len(set(point_names).difference(names))
        if unused:
            counts["landmark_lines_without_template"] = unused
            notes.append(f"{unused:,} faces of {points_file.name} are in no template: not used")
    kept = _drop_repeated(names, templates, medias, template_file, counts, notes)
    rows, templates, medias = rows[kept], templates[kept], medias[kept]
    names = [names[face] for face in kept.tolist()]
    values = np.where((rows >= 0)[:, None], numbers[rows], np.nan)
    landmarks, detector_scores = values[:, :10].reshape(-1, 5, 2), values[:, 10]
    unusable: dict[int, str] = {}
    fits = np.isfinite(similarity_to_template(landmarks)).all(axis=(1, 2))
    reasons = (
        ("faces_without_landmark_line", rows < 0, f"no line in {points_file.name}"),
        ("faces_with_broken_landmarks", (rows >= 0) & ~fits, "landmarks are not finite or lie on one point"),
        (
            "faces_with_broken_detector_score",
            (rows >= 0) & fits & ~(np.isfinite(detector_scores) & (detector_scores >= 0)),
            "detector score is not a finite number from 0 on",
        ),
    )
    for what, where, reason in reasons:
        found = np.flatnonzero(where).tolist()
        if found:
            counts[what] = len(found)
            unusable.update(dict.fromkeys(found, reason))
    return FaceList(tuple(names), landmarks, detector_scores, templates, medias, unusable)


def _drop_repeated(
    names: list[str], templates: Int64, medias: Int64, file: Path, counts: dict[str, int], notes: list[str]
) -> Int64:
    """Return the face lines to use, rising: each (name, template, media) once."""
    number_of = {name: number for number, name in enumerate(dict.fromkeys(names))}
    keys = np.stack([np.array([number_of[name] for name in names], dtype=np.int64), templates, medias], axis=1)
    order = np.lexsort(keys.T)
    fresh = np.ones(len(keys), dtype=np.bool_)
    fresh[order[1:]] = (np.diff(keys[order], axis=0) != 0).any(axis=1)
    repeated = int((~fresh).sum())
    if repeated:
        counts["repeated_face_lines"] = repeated
        notes.append(f"{repeated:,} lines of {file.name} repeat a face of the same template and media: used once")
    return np.flatnonzero(fresh)


def _read_landmarks(path: Path) -> tuple[list[str], Float64]:
    names: list[str] = []
    rows: list[list[float]] = []
    for number, line in _lines(path):
        fields = line.rsplit(None, 11)
        try:
            if len(fields) != 12:
                raise ValueError
            rows.append([float(word) for word in fields[1:]])
        except ValueError:
            raise _malformed(path, number, line, "name, x y of five landmarks, detector score (12 fields)") from None
        names.append(os.fsdecode(fields[0]))
    if not rows:
        raise UserError(f"{path} is empty: a line for each face is needed")
    return names, np.array(rows, dtype=np.float64)


def _read_templates(path: Path) -> tuple[list[str], Int64, Int64]:
    names: list[str] = []
    rows: list[tuple[int, int]] = []
    for number, line in _lines(path):
        fields = line.rsplit(None, 2)
        if len(fields) != 3 or not (_whole(fields[1]) and _whole(fields[2])):
            raise _malformed(path, number, line, "name, template, media (3 fields)")
        names.append(os.fsdecode(fields[0]))
        rows.append((int(fields[1]), int(fields[2])))
    if not rows:
        raise UserError(f"{path} is empty: a line for each face is needed")
    numbers = np.array(rows, dtype=np.int64)
    return names, numbers[:, 0].copy(), numbers[:, 1].copy()


def _read_pairs(path: Path, counts: dict[str, int], notes: list[str], progress: Progress | None) -> TemplatePairs:
    what = "template, template, 1 or 0 (3 fields)"
    parts: list[Int64] = []
    for block, size in _blocks(path):
        numbers = _number_table(path, block, 3, what)
        wrong = np.flatnonzero(numbers[:, 2] > 1)
        if wrong.size:
            raise _malformed(path, int(block.numbers[wrong[0]]), block.text(int(wrong[0])), what)
        parts.append(numbers)
        if progress is not None:
            progress(block.offset + len(block.data), size)
    table = np.concatenate(parts) if parts else np.zeros((0, 3), dtype=np.int64)
    if not len(table):
        raise UserError(f"{path} is empty: a line for each pair of templates is needed")
    with_itself = int((table[:, 0] == table[:, 1]).sum())
    if with_itself:
        counts["pairs_of_a_template_with_itself"] = with_itself
        notes.append(f"{with_itself:,} pairs of {path.name} compare a template with itself: left out")
        table = table[table[:, 0] != table[:, 1]]
    return TemplatePairs(table[:, 0].copy(), table[:, 1].copy(), table[:, 2] == 1)


def _read_search(meta: Path, name: str, notes: list[str]) -> tuple[tuple[SubjectList, ...], SubjectList | None]:
    """Return galleries and probes; nothing, with a note, where the folder has only some or none of the files."""
    found: list[Path] = []
    missing: list[str] = []
    for choices in (("gallery_G1", "gallery_S1"), ("gallery_G2", "gallery_S2"), ("probe_mixed",)):
        files = [meta / f"{name}_1N_{choice}.csv" for choice in choices]
        there = [file for file in files if file.exists()]
        if there:
            found.append(there[0])
        else:
            missing.append(files[0].name)
    if missing:
        notes.append(f"{', '.join(missing)} missing in {meta}: no 1:N figures")
        return (), None
    first, second, probes = (_read_subjects(path) for path in found)
    return (first, second), probes


def _read_subjects(path: Path) -> SubjectList:
    """A list may have a line for every image of a template, as NIST's have: each template is kept once."""
    subject_of: dict[int, int] = {}
    for place, (number, line) in enumerate(_lines(path)):
        fields = [field.strip().strip(b'"') for field in line.split(b",")]
        if len(fields) < 2 or not (_whole(fields[0]) and _whole(fields[1])):
            if place == 0:
                continue  # the header
            raise _malformed(path, number, line, "template,subject")
        template, subject = int(fields[0]), int(fields[1])
        if subject_of.setdefault(template, subject) != subject:
            raise UserError(
                f"{path}: line {number}: template {template} shows subject {subject}, further up {subject_of[template]}: "
                "a template shows one person; correct the list"
            )
    if not subject_of:
        raise UserError(f"{path} has no templates: a header, then lines template,subject are needed")
    name = path.stem.rpartition("_")[2]
    return SubjectList(
        name, np.array(list(subject_of), dtype=np.int64), np.array(list(subject_of.values()), dtype=np.int64)
    )


def _blocks(path: Path) -> Iterator[tuple[LineBlock, int]]:
    try:
        descriptor = open_regular(path)
    except OSError as error:
        raise UserError(f"{path}: list cannot be read ({error.strerror or error})") from None
    try:
        size = os.fstat(descriptor).st_size
        for block in line_blocks(path, descriptor):
            yield block, size
    finally:
        os.close(descriptor)


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    for block, _ in _blocks(path):
        text = block.data.tobytes()
        for number, start, end in zip(block.numbers.tolist(), block.starts.tolist(), block.ends.tolist(), strict=True):
            yield number, text[start:end]


def _number_table(path: Path, block: LineBlock, columns: int, what: str) -> Int64:
    """Return the whole numbers of a block's lines, (lines, columns)."""
    filled = _NOT_BLANK[block.data]
    filled[: int(block.starts[0]) if len(block.starts) else None] = False  # a byte order mark is no field
    starts = np.flatnonzero(filled & ~np.append(False, filled[:-1]))
    ends = np.flatnonzero(filled & ~np.append(filled[1:], False)) + 1
    line = np.searchsorted(block.starts, starts, side="right") - 1
    inside = (line >= 0) & (starts < block.ends[line]) if len(block.starts) else np.zeros(len(starts), np.bool_)
    starts, ends, line = starts[inside], ends[inside], line[inside]  # without those of comment lines
    fields = np.bincount(line, minlength=len(block.starts))
    wrong = fields != columns
    if not wrong.any():
        values, sound = whole_numbers(block.data, starts, ends)
        wrong = ~sound.reshape(-1, columns).all(axis=1)
        if not wrong.any():
            return values.reshape(-1, columns)
    first = int(np.argmax(wrong))
    raise _malformed(path, int(block.numbers[first]), block.text(first), what)


def _whole(word: bytes) -> bool:
    return word.isdigit() and len(word) <= 18


def _malformed(path: Path, number: int, line: bytes, what: str) -> UserError:
    shown = line[:80].decode("utf-8", "backslashreplace")
    return UserError(f"{path}: line {number}: {shown!r}: a line is {what}")


def subjects_of_templates(lists: TemplateLists) -> tuple[Int64, Int64]:
    """Return all template numbers, rising, and who each shows, numbered from 0, as far as the lists say.

    Galleries and probes name subjects; templates of a genuine pair show one.
    """
    pairs = lists.pairs
    named = [*lists.galleries, *(() if lists.probes is None else (lists.probes,))]
    ids = np.unique(
        np.concatenate(
            [
                lists.faces.templates,
                *(one.templates for one in named),
                *(() if pairs is None else (pairs.first, pairs.second)),
            ]
        )
    )
    subjects = np.unique(np.concatenate([np.zeros(0, np.int64), *(one.subjects for one in named)]))
    first = [np.searchsorted(ids, one.templates) for one in named]
    second = [len(ids) + np.searchsorted(subjects, one.subjects) for one in named]
    if pairs is not None:
        first.append(np.searchsorted(ids, pairs.first[pairs.same]))
        second.append(np.searchsorted(ids, pairs.second[pairs.same]))
    linked = linked_identities(len(ids) + len(subjects), np.concatenate(first), np.concatenate(second))
    return ids, np.unique(linked[: len(ids)], return_inverse=True)[1].astype(np.int64)
