"""A folder of photos -> a folder of aligned faces with the same tree, and a manifest.

Photos are decoded, searched and warped by several processes, one processor core each: some 0.03 s for a photo of 250 x 250, 0.6 s for one of 16
megapixels. A face is written whole, then the photo's rows go to the manifest: a run that was killed at any moment goes on behind the last photo with
rows, and a photo that changed since is aligned anew. Nothing is deleted but aligned faces of photos that changed.

A photo `a/b.jpg` becomes `a/b.jpg`; one of another format keeps its name and gets `.jpg` behind it; with the policy all, every face has its number
behind it: `a/b.jpg.1.jpg`. Faces are JPEG, quality 95, without chroma subsampling.
"""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from PIL import Image

from attfc.data.images import BrokenImageError, reason_of
from attfc.data.loading.workers import in_workers
from attfc.errors import UserError
from attfc.files import LONGEST_NAME, read_json, write_json_whole, written_whole
from attfc.photos.detector import Detector
from attfc.photos.faces import AlignedFace, NoFaceError, Policy, align_faces
from attfc.photos.manifest import MEASURES, PLACES, Manifest, Row
from attfc.photos.opening import open_detector
from attfc.photos.reading import Photo, list_photos, read_photo
from attfc.typing import Json, Progress

__all__ = ["Alignment", "align_folder", "read_boxes"]

SETTINGS = "align.json"
_FORMAT = "attfc aligned faces 1"
_MOST_SETTINGS = 2**20
_QUALITY = 95


@dataclass(frozen=True)
class Alignment:
    """What aligning a folder did.

    Attributes:
        photos: in the folder; aligned: of these, with a face; faces: aligned ones.
        several: photos with more than one face.
        no_face: photos in which no face was found.
        reused: photos that an earlier run had aligned or refused.
        gone: photos of the manifest that are not in the folder; their faces stay.
        refused: the rows of photos without an aligned face.
    """

    photos: int
    aligned: int
    faces: int
    several: int
    no_face: int
    reused: int
    gone: int
    refused: tuple[Row, ...] = field(repr=False)

    def to_dict(self) -> Json:
        """Return plain values for JSON."""
        return {**vars(self), "refused": [{"photo": row.photo, "reason": row.reason} for row in self.refused]}


@dataclass(frozen=True)
class _Work:
    """What a worker process needs: where photos are and faces go, and how they are aligned."""

    photos: Path
    output: Path
    detector: Path | None
    policy: Policy
    boxes: Mapping[str, Sequence[float]] | None

    def start(self) -> Callable[[Photo], list[Row]]:
        """Open the detector and return the function of a photo."""
        return partial(self.rows_of, detector=open_detector(self.detector))

    def rows_of(self, photo: Photo, detector: Detector) -> list[Row]:
        """Align a photo, write its faces and return its rows.

        Raises:
            UserError: a face cannot be written.
        """
        facts: Json = {"photo": photo.name, "bytes": photo.bytes, "modified_ns": photo.modified_ns}
        try:
            if photo.fault:
                raise BrokenImageError(photo.fault)
            box = None if self.boxes is None else self.boxes.get(photo.name)
            if self.policy == "box" and box is None:
                raise NoFaceError("no box is given for it")
            longest = _aligned_name(photo.name, 99 if self.policy == "all" else 0)
            if len(os.fsencode(os.path.basename(longest))) > LONGEST_NAME:
                raise BrokenImageError(
                    f"the name of its face would have more than {LONGEST_NAME} bytes: give it a shorter one"
                )
            faces = align_faces(read_photo(self.photos / photo.name), detector, self.policy, box)
        except (OSError, BrokenImageError) as error:
            return [Row(**facts, reason=reason_of(error))]
        except MemoryError:
            return [Row(**facts, reason="needs more memory than there is")]
        rows = []
        for number, face in enumerate(faces, 1):
            name = _aligned_name(photo.name, number if self.policy == "all" else 0)
            path = self.output / name
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(
                    f"{path.parent} cannot be made: {error.strerror}; make room or permission there"
                ) from None
            with written_whole(path) as file:
                Image.fromarray(face.pixels).save(file, "JPEG", quality=_QUALITY, subsampling=0)
            rows.append(_row(face, name, facts))
        return rows


def _aligned_name(photo: str, number: int) -> str:
    """Return the path of a photo's face; number 0: its only one.

    >>> _aligned_name("a/b.jpg", 0), _aligned_name("a/b.png", 0), _aligned_name("a/b.jpg", 2)
    ('a/b.jpg', 'a/b.png.jpg', 'a/b.jpg.2.jpg')
    """
    if number:
        return f"{photo}.{number}.jpg"
    return photo if photo.endswith(".jpg") else f"{photo}.jpg"


def _row(face: AlignedFace, name: str, facts: Json) -> Row:
    places = dict(zip(PLACES, (*face.box.tolist(), *face.landmarks.ravel().tolist()), strict=True))
    measures = {key: getattr(face, key) for key in MEASURES}
    return Row(**facts, aligned=name, **places, **measures)


def align_folder(
    photos: Path,
    output: Path,
    *,
    detector: Path | None = None,
    policy: Policy = "largest",
    boxes: Mapping[str, Sequence[float]] | None = None,
    workers: int = 0,
    progress: Progress | None = None,
) -> Alignment:
    """Align the photos of a folder.

    Args:
        photos: the folder; read only.
        output: made if it is not there; an earlier run's is gone on with.
        detector: ONNX file; None: the default (`open_detector`).
        policy: which faces of a photo (`align_faces`).
        boxes: photo -> left, top, right, bottom, for the policy box.
        workers: processes; 0: this one.
        progress: called as (photos done, photos).

    Raises:
        UserError: no photos; an output that holds something else or was made otherwise; a disk that is full; a worker that was killed.
        OSError: a folder cannot be read.
    """
    _check_places(photos, output)
    opened = open_detector(detector)
    found = list(list_photos(photos))
    if not found:
        raise UserError(f"{photos} holds no photos (JPEG, PNG, WebP, BMP, HEIC), nor do its folders")
    settings = {"format": _FORMAT, "detector": opened.facts.to_dict(), "faces": policy, "size": 112}
    _check_settings(output, settings)
    work = _Work(photos, output, detector, policy, boxes)
    with Manifest(output) as manifest:
        _clear_drafts(output)
        waiting = []
        for photo in _without_clashes(found, policy):
            before = manifest.rows.get(photo.name)
            if before is not None and (before[0].bytes, before[0].modified_ns) == (photo.bytes, photo.modified_ns):
                continue
            waiting.append(photo)
            for row in before or ():
                if row.aligned:
                    (output / row.aligned).unlink(missing_ok=True)
        reused = len(found) - len(waiting)
        for number, rows in enumerate(_rows(work, waiting, opened, workers), 1):
            manifest.add(rows)
            if progress is not None:
                progress(reused + number, len(found))
        manifest.finish(photo.name for photo in found)
        here = [manifest.rows[photo.name] for photo in found]
        return Alignment(
            photos=len(found),
            aligned=sum(bool(rows[0].aligned) for rows in here),
            faces=sum(bool(row.aligned) for rows in here for row in rows),
            several=sum(rows[0].faces > 1 for rows in here),
            no_face=sum(rows[0].reason == "no face was found" for rows in here),
            reused=reused,
            gone=len(manifest.rows) - len(found),
            refused=tuple(rows[0] for rows in here if rows[0].reason),
        )


def _rows(work: _Work, photos: list[Photo], detector: Detector, workers: int) -> Iterator[list[Row]]:
    """Yield the rows of each photo, in order, a few ahead of the reader."""
    if workers < 1:
        yield from (work.rows_of(photo, detector) for photo in photos)
        return
    try:
        yield from in_workers(work.start, photos, workers)
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed, most likely for its memory: run the same command again with fewer --workers"
        ) from None


def _without_clashes(photos: list[Photo], policy: Policy) -> Iterator[Photo]:
    """Yield the photos; of two whose face would have one name, the one that is no .jpg is refused."""
    names = {photo.name for photo in photos}
    for photo in photos:
        name = _aligned_name(photo.name, 0)
        if policy != "all" and name != photo.name and name in names and not photo.fault:
            photo = replace(photo, fault=f"its aligned face would have the name of {name}: rename one of them")
        yield photo


def _check_places(photos: Path, output: Path) -> None:
    if not photos.is_dir():
        raise UserError(f"{photos} is not a folder: name the folder that holds the photos")
    inner, outer = (Path(os.path.realpath(path)) for path in (output, photos))
    if inner == outer or inner in outer.parents or outer in inner.parents:
        raise UserError(
            f"{output}: aligned faces go neither into the folder of photos nor above it: name a folder beside {photos}"
        )


def _check_settings(output: Path, settings: Json) -> None:
    """Note in the output how it is made, or check that it was made so."""
    path = output / SETTINGS
    if path.exists():
        before = read_json(path, _MOST_SETTINGS, "attfc align writes no such file")
        if before != settings:
            before = before if isinstance(before, dict) else {}
            differ = ", ".join(key for key in settings if before.get(key) != settings[key])
            raise UserError(f"{output} was aligned otherwise ({differ}; see {path}): name another folder")
        return
    try:
        output.mkdir(parents=True, exist_ok=True)
        if any(output.iterdir()):
            raise UserError(f"{output} is not empty and was not made by attfc align: name another folder")
    except OSError as error:
        raise UserError(f"{output} cannot be made: {error.strerror}; name another folder") from None
    write_json_whole(path, settings)


def _clear_drafts(output: Path) -> None:
    """Remove what a run that was killed had not finished writing."""
    for path in output.rglob(".*.part"):
        path.unlink(missing_ok=True)


def read_boxes(path: Path) -> dict[str, tuple[float, ...]]:
    """Read a file of boxes: lines of photo, left, top, right, bottom, separated by tabs; pixels of the upright photo.

    Raises:
        UserError: it cannot be read, or a line is none of these.
    """
    boxes = {}
    try:
        with path.open(encoding="utf-8", errors="surrogateescape") as file:
            for number, line in enumerate(file, 1):
                name, *texts = line.rstrip("\r\n").split("\t")
                with contextlib.suppress(ValueError):
                    left, top, right, bottom = boxes[name] = tuple(map(float, texts))
                    if left < right and top < bottom:
                        continue
                raise UserError(
                    f"{path}:{number}: expected photo, left, top, right, bottom, separated by tabs, left < right and top < bottom"
                )
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    return boxes
