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

import functools
import io
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from attfc.data.text_lines import LineBlock, blocks_of, lines_of
from attfc.errors import UserError
from attfc.evaluation.bootstrap import linked_identities
from attfc.photos.alignment import similarity_to_template
from attfc.typing import Array, Bools, Float64, Int64, PathLike, Progress

__all__ = ["FaceList", "SubjectList", "TemplateLists", "TemplatePairs", "read_template_lists"]


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

    def subjects_of(self, templates: Int64) -> Int64:
        """Return who templates show, numbered from 0, as far as the lists say.

        Galleries and probes name subjects; templates of a mated pair show one.
        """
        ids, subjects = self._subjects
        return subjects[np.searchsorted(ids, templates)]

    @functools.cached_property
    def _subjects(self) -> tuple[Int64, Int64]:
        """All template numbers, rising, and the subject of each."""
        none = np.zeros(0, np.int64)
        pairs = self.pairs or TemplatePairs(none, none, none.astype(np.bool_))
        named = [*self.galleries, *([] if self.probes is None else [self.probes])]
        listed = np.concatenate([none, *(one.templates for one in named)])
        subjects, of_listed = np.unique(np.concatenate([none, *(one.subjects for one in named)]), return_inverse=True)
        ids = np.unique(np.concatenate([self.faces.templates, listed, pairs.first, pairs.second]))
        first = np.searchsorted(ids, np.append(listed, pairs.first[pairs.same]))
        second = np.append(len(ids) + of_listed, np.searchsorted(ids, pairs.second[pairs.same]))
        linked = linked_identities(len(ids) + len(subjects), first, second)
        return ids, np.unique(linked[: len(ids)], return_inverse=True)[1].astype(np.int64)


def read_template_lists(folder: PathLike, name: str, progress: Progress | None = None) -> TemplateLists:
    """Read the lists of a folder in the released layout.

    Counted and noted: faces without landmarks, landmarks without a face, landmarks that fit no similarity, landmarks or detector scores that
    are not finite. Also detector scores below 0, face lines that occur twice (used once), pairs of a template with itself (left out).

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
            raise UserError(f"{needed} is not a folder: {name} needs FOLDER with loose_crop and meta, as released")
    faults = _Faults()
    faces = _read_faces(meta / f"{name}_name_5pts_score.txt", meta / f"{name}_face_tid_mid.txt", faults)
    pair_file = meta / f"{name}_template_pair_label.txt"
    pairs = _read_pairs(pair_file, faults, progress) if pair_file.exists() else None
    galleries, probes = _read_search(meta, name, faults)
    if pairs is None:
        if probes is None:
            raise UserError(f"{meta} has neither {pair_file.name} nor galleries and probes: nothing to evaluate")
        faults.notes.append(f"{pair_file.name} is missing: no 1:1 metrics")
    return TemplateLists(name, root, faces, pairs, galleries, probes, faults.counts, tuple(faults.notes))


class _Faults:
    """What is counted and noted, not refused."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.notes: list[str] = []

    def add(self, name: str, count: int, note: str) -> None:
        if count:
            self.counts[name] = count
            self.notes.append(f"{count:,} {note}")


def _read_faces(points_file: Path, template_file: Path, faults: _Faults) -> FaceList:
    point_names, numbers = _read_rows(points_file, 11, float, "name, x y of five landmarks, detector score (12 fields)")
    names, members = _read_rows(template_file, 2, _whole_number, "name, template, media (3 fields)")
    rows = np.arange(len(names))
    if names != point_names:
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
        faults.add(
            "landmark_lines_without_template", unused, f"faces of {points_file.name} are in no template: not used"
        )
    number_of = {name: number for number, name in enumerate(dict.fromkeys(names))}
    keys = np.column_stack([[number_of[name] for name in names], members])
    kept = np.sort(np.unique(keys, axis=0, return_index=True)[1])  # each (name, template, media) once
    note = f"lines of {template_file.name} repeat a face of the same template and media: used once"
    faults.add("repeated_face_lines", len(names) - len(kept), note)
    listed, members = rows[kept] >= 0, members[kept]
    values = np.where(listed[:, None], numbers[rows[kept]], np.nan)
    landmarks, scores = values[:, :10].reshape(-1, 5, 2), values[:, 10]
    fits = np.isfinite(similarity_to_template(landmarks)).all(axis=(1, 2))
    sound = np.isfinite(scores) & (scores >= 0)
    reasons = {
        "faces_without_landmark_line": (~listed, f"no line in {points_file.name}"),
        "faces_with_broken_landmarks": (listed & ~fits, "landmarks are not finite or lie on one point"),
        "faces_with_broken_detector_score": (fits & ~sound, "detector score is not a finite number from 0 on"),
    }
    unusable: dict[int, str] = {}
    for what, (where, reason) in reasons.items():
        if where.any():
            faults.counts[what] = int(where.sum())
            unusable |= dict.fromkeys(np.flatnonzero(where).tolist(), reason)
    kept_names = tuple(names[face] for face in kept.tolist())
    return FaceList(kept_names, landmarks, scores, members[:, 0].copy(), members[:, 1].copy(), unusable)


def _read_rows(path: Path, columns: int, number: Callable[[bytes], float], what: str) -> tuple[list[str], Array]:
    """Return the names of a list, which may hold blanks, and the numbers behind them, (lines, columns)."""
    names: list[str] = []
    rows: list[list[float]] = []
    for line_number, line in lines_of(path, "list"):
        fields = line.rsplit(None, columns)
        try:
            if len(fields) != columns + 1:
                raise ValueError
            rows.append([number(word) for word in fields[1:]])
        except ValueError:
            raise _malformed(path, line_number, line, what) from None
        names.append(os.fsdecode(fields[0]))
    if not rows:
        raise UserError(f"{path} is empty: a line for each face is needed")
    return names, np.array(rows)


def _read_pairs(path: Path, faults: _Faults, progress: Progress | None) -> TemplatePairs:
    what = "template, template, 1 or 0 (3 fields)"
    size = path.stat().st_size
    parts = [np.zeros((0, 3), dtype=np.int64)]
    for block in blocks_of(path, "list"):
        parts.append(_number_table(path, block, 3, what))
        for wrong in np.flatnonzero(parts[-1][:, 2] > 1).tolist():
            raise _malformed(path, int(block.numbers[wrong]), block.text(wrong), what)
        if progress is not None:
            progress(block.offset + len(block.data), size)
    table = np.concatenate(parts)
    if not len(table):
        raise UserError(f"{path} is empty: a line for each pair of templates is needed")
    apart = table[:, 0] != table[:, 1]
    note = f"pairs of {path.name} compare a template with itself: left out"
    faults.add("pairs_of_a_template_with_itself", int((~apart).sum()), note)
    first, second, same = table[apart].T
    return TemplatePairs(first.copy(), second.copy(), same == 1)


def _read_search(meta: Path, name: str, faults: _Faults) -> tuple[tuple[SubjectList, ...], SubjectList | None]:
    """Return galleries and probes; nothing, with a note, where the folder has only some or none of the files."""
    kinds = (("gallery_G1", "gallery_S1"), ("gallery_G2", "gallery_S2"), ("probe_mixed",))
    choices = [[meta / f"{name}_1N_{kind}.csv" for kind in kinds_of_one] for kinds_of_one in kinds]
    found = [next((file for file in files if file.exists()), None) for files in choices]
    missing = [files[0].name for files, file in zip(choices, found, strict=True) if file is None]
    if missing:
        faults.notes.append(f"{', '.join(missing)} missing in {meta}: no 1:N metrics")
        return (), None
    first, second, probes = (_read_subjects(path) for path in found if path is not None)
    return (first, second), probes


def _read_subjects(path: Path) -> SubjectList:
    """A list may have a line for every image of a template, as NIST's have: each template is kept once."""
    subject_of: dict[int, int] = {}
    for place, (number, line) in enumerate(lines_of(path, "list")):
        fields = [field.strip().strip(b'"') for field in line.split(b",")]
        try:
            template, subject = map(_whole_number, fields[:2])
        except ValueError:
            if place == 0:
                continue  # the header
            raise _malformed(path, number, line, "template,subject") from None
        if subject_of.setdefault(template, subject) != subject:
            raise UserError(
                f"{path}: line {number}: template {template} shows subject {subject}, further up {subject_of[template]}: "
                "a template shows one person; correct the list"
            )
    if not subject_of:
        raise UserError(f"{path} has no templates: a header, then lines template,subject are needed")
    templates, subjects = np.array(list(subject_of.items()), dtype=np.int64).T.copy()
    return SubjectList(path.stem.rpartition("_")[2], templates, subjects)


def _number_table(path: Path, block: LineBlock, columns: int, what: str) -> Int64:
    """Return the whole numbers of a block's lines, (lines, columns): by numpy, and where that finds a fault, line by line."""
    text = block.data.tobytes()
    try:
        table: Int64 = np.loadtxt(io.StringIO(text.decode("latin-1")), np.int64, comments=None, ndmin=2)
        within = table.shape == (len(block.starts), columns) and 0 <= table.min() <= table.max() < 10**18
        if within and b"+" not in text:
            return table
    except ValueError:  # comments, a byte order mark, or no numbers
        pass
    rows: list[list[int]] = []
    for row, number in enumerate(block.numbers.tolist()):
        words = block.text(row).split()
        try:
            if len(words) != columns:
                raise ValueError
            rows.append([_whole_number(word) for word in words])
        except ValueError:
            raise _malformed(path, number, block.text(row), what) from None
    return np.array(rows, dtype=np.int64).reshape(-1, columns)


def _whole_number(word: bytes) -> int:
    if not word.isdigit() or len(word) > 18:
        raise ValueError(word)
    return int(word)


def _malformed(path: Path, number: int, line: bytes, what: str) -> UserError:
    shown = line[:80].decode("utf-8", "backslashreplace")
    return UserError(f"{path}: line {number}: {shown!r}: a line is {what}")
