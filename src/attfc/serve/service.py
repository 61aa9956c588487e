"""What the service answers, without the web: encoded photos in, plain values out; nothing of a photo outlives its answer.

A photo is decoded and its face aligned as `attfc verify --align` does, and embedded by `FaceModel.embed`, so scores are those of the commands.
Detectors serve one thread at a time: each thread opens its own. The gallery is opened for each search, some milliseconds: people who are added or
removed meanwhile are seen, and no thread keeps a mapped file of somebody who was erased.
"""

import base64
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel

from attfc.data.images import BrokenImageError, decode_image, encode_image
from attfc.evaluation.operating_point.point import OperatingPoint
from attfc.evaluation.report.thresholds import lowest_far
from attfc.export import FaceModel
from attfc.gallery.gallery import Gallery, named, strangers_named
from attfc.photos.detector import Detector
from attfc.photos.faces import align_faces
from attfc.photos.opening import open_detector
from attfc.photos.reading import decode_photo
from attfc.typing import UInt8

__all__ = ["NO_THRESHOLD", "About", "Embedded", "Found", "Service", "Taken", "Verified"]

Taken = Literal["largest", "central"]
NO_THRESHOLD = "No threshold is known for this model, so the cosine alone decides nothing."


class Face(BaseModel):
    """The face that was taken; pixels of the upright photo.

    Attributes:
        box: left, top, right, bottom. landmarks: x, y of eyes, nose, corners of the mouth.
        yaw, pitch: degrees. sharpness: variance of the Laplacian.
    """

    box: list[float]
    landmarks: list[list[float]]
    confidence: float
    yaw: float
    pitch: float
    sharpness: float


class Photo(BaseModel):
    """What was seen in a photo.

    Attributes:
        width, height: of the upright photo, pixels; of an aligned face those that the model takes.
        boxes: of all faces that were found, the surest first.
        face: that was taken; None: the photo is an aligned face.
        crop: that was embedded, a PNG as a data URL, if it was asked for.
        notes: what one should know beside it.
    """

    width: int
    height: int
    boxes: list[list[float]] = []
    face: Face | None = None
    crop: str | None = None
    notes: list[str] = []


class Decision(BaseModel):
    """Whether a score is above the threshold of a FAR."""

    far: float
    threshold: float
    accepted: bool


class Embedded(BaseModel):
    """An embedding of unit length."""

    embedding: list[float]
    photo: Photo


class Verified(BaseModel):
    """How alike two faces are.

    Attributes:
        cosine: -1 to 1.
        far: the lowest stated false accept rate at which they are accepted as one person; None: at none, or none is known.
        decisions: at each stated rate.
        same_person_probability: by the model's operating point, where both are as likely before the photos are seen; None: it has none.
        notes: what one should know of the score.
    """

    cosine: float
    far: float | None
    decisions: list[Decision]
    same_person_probability: float | None
    a: Photo
    b: Photo
    notes: list[str]


class Person(BaseModel):
    """Somebody of the gallery: name, cosine with the best template, and the lowest stated FAR at which it is accepted."""

    name: str
    score: float
    far: float | None


class Found(BaseModel):
    """Whom a photo shows: name is None where nobody is near enough, or no threshold was chosen."""

    name: str | None
    threshold: float | None
    nearest: list[Person]
    photo: Photo


class GalleryFacts(BaseModel):
    """The gallery: how many templates, the FAR and threshold at which a name is given, and the share of strangers who get one."""

    templates: int
    far: float | None
    threshold: float | None
    strangers_named: float | None


class About(BaseModel):
    """What is served."""

    network: str
    image_size: int
    embedding_size: int
    digest: str
    align: bool
    threshold_at_far: list[tuple[float, float]]
    gallery: GalleryFacts | None


class Service:
    """A model, its thresholds, a detector per thread, and a gallery.

    Args:
        model: of `attfc.load`.
        thresholds, point: of `thresholds_of`; empty, None: none is known.
        align: photos come in, and a face is looked for; False: aligned faces do.
        detector: an ONNX file; None: the default.
        gallery: folder of one; None: there is no search.

    Raises:
        UserError: a gallery that is damaged or of another model; a detector that is not there.
    """

    def __init__(
        self,
        model: FaceModel,
        thresholds: Mapping[float, float],
        point: OperatingPoint | None = None,
        *,
        align: bool = True,
        detector: Path | None = None,
        gallery: Path | None = None,
    ) -> None:
        self.model, self.thresholds, self.align = model, dict(sorted(thresholds.items())), align
        self.point = point
        self.gallery, self._detector_file, self._of_thread = gallery, detector, threading.local()
        self.digest = model.facts.digest
        if gallery is not None:
            Gallery.open(gallery, model).close()
        if align:
            self._detector()

    def _detector(self) -> Detector:
        if not hasattr(self._of_thread, "detector"):
            self._of_thread.detector = open_detector(self._detector_file)
        found: Detector = self._of_thread.detector
        return found

    def _face(self, which: str, encoded: bytes, take: Taken, crops: bool) -> tuple[UInt8, Photo]:
        """Return the aligned face of a photo, uint8 (S, S, 3), and what was seen.

        Raises:
            BrokenImageError: no photo, or none with a face; the message begins with `which`.
        """
        try:
            pixels, seen = self._aligned(encoded, take)
        except BrokenImageError as error:
            raise type(error)(f"{which}: {error}") from None
        if crops:
            seen.crop = f"data:image/png;base64,{base64.b64encode(encode_image(pixels, 'PNG')).decode()}"
        return pixels, seen

    def _aligned(self, encoded: bytes, take: Taken) -> tuple[UInt8, Photo]:
        if not self.align:
            pixels = decode_image(encoded, self.model.facts.image_size)
            return pixels, Photo(width=pixels.shape[1], height=pixels.shape[0])
        pixels = decode_photo(encoded)
        found = self._detector()(pixels)
        (face,) = align_faces(pixels, lambda _: found, take)
        notes = [f"{face.faces} faces were found: the {take} one was taken"] if face.faces > 1 else []
        if face.outside > 0:
            notes.append(f"{face.outside:.0%} of the aligned face lies beyond the photo")
        taken = Face(
            box=face.box.tolist(),
            landmarks=face.landmarks.tolist(),
            confidence=face.confidence,
            yaw=face.yaw,
            pitch=face.pitch,
            sharpness=face.sharpness,
        )
        height, width, _ = pixels.shape
        return face.pixels, Photo(width=width, height=height, boxes=found.boxes.tolist(), face=taken, notes=notes)

    def embed(self, photo: bytes, take: Taken = "largest", crops: bool = False) -> Embedded:
        """Return the embedding of a photo's face.

        Raises:
            BrokenImageError: no photo, or none with a face.
        """
        face, seen = self._face("photo", photo, take, crops)
        return Embedded(embedding=self.model.embed(face)[0].tolist(), photo=seen)

    def verify(self, a: bytes, b: bytes, take: Taken = "largest", crops: bool = False) -> Verified:
        """Return how alike the faces of two photos are.

        Raises:
            BrokenImageError: as `embed`.
        """
        both = [self._face(f"photo {which}", encoded, take, crops) for which, encoded in (("a", a), ("b", b))]
        vectors = self.model.embed([face for face, _ in both])
        cosine = float(vectors[0] @ vectors[1])
        return Verified(
            cosine=cosine,
            far=lowest_far(cosine, self.thresholds),
            decisions=[Decision(far=far, threshold=at, accepted=cosine > at) for far, at in self.thresholds.items()],
            same_person_probability=None if self.point is None else self.point.probability.at(cosine),
            a=both[0][1],
            b=both[1][1],
            notes=[] if self.thresholds else [NO_THRESHOLD],
        )

    def search(self, photo: bytes, top: int = 1, take: Taken = "largest", crops: bool = False) -> Found:
        """Return whom a photo shows.

        Raises:
            BrokenImageError: as `embed`. UserError: the gallery cannot be read, or is another model's by now.
        """
        face, seen = self._face("photo", photo, take, crops)
        with self._opened() as gallery:
            (best,) = gallery.search(self.model.embed(face, flip=gallery.facts.flip), top)
            threshold = gallery.facts.threshold
        people = [Person(name=each.name, score=each.score, far=each.far) for each in best]
        return Found(name=named(best, threshold), threshold=threshold, nearest=people, photo=seen)

    def _opened(self) -> Gallery:
        assert self.gallery is not None
        return Gallery.open(self.gallery, self.model)  # by now it may be another model's

    def about(self) -> About:
        """Return what is served."""
        facts, of_gallery = self.model.facts, None
        if self.gallery is not None:
            with self._opened() as gallery:
                stats = gallery.stats()
            far, templates = stats["far"], stats["templates"]
            share = None if stats["threshold"] is None else strangers_named(far, templates)
            of_gallery = GalleryFacts(templates=templates, far=far, threshold=stats["threshold"], strangers_named=share)
        return About(
            network=facts.network,
            image_size=facts.image_size,
            embedding_size=facts.embedding_size,
            digest=self.digest,
            align=self.align,
            threshold_at_far=list(self.thresholds.items()),
            gallery=of_gallery,
        )
