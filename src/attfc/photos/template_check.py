"""Whether pictures look aligned: the detector's landmarks in a sample of them, against the ArcFace template.

A header tells sizes, not where the eyes are; this looks. A tight crop is hard for a detector, so each picture gets a black margin first.
Cost: some 0.03 s per picture looked at. It is not a proof: other templates differ from this one by a few pixels, and drawn faces may not be found.
"""

from dataclasses import asdict, dataclass

import numpy as np

from attfc.data.index import spread
from attfc.data.stores.store import Store
from attfc.photos.alignment import ARCFACE_TEMPLATE, TEMPLATE_SIZE
from attfc.photos.detector import Detector
from attfc.typing import Json

__all__ = ["TemplateCheck", "check_template"]

FARTHEST = 6.0
"""Largest mean distance of the five points from the template in an aligned face, in pixels of 112 x 112."""
_MOSTLY = 0.5


@dataclass(frozen=True)
class TemplateCheck:
    """What a look at some pictures found.

    Attributes:
        looked_at: pictures that could be decoded.
        found: of these, with a face; aligned: of these, with all points near the template's.
        distance: median over pictures of the mean distance of the five points, pixels of 112 x 112; None: no face.
        advice: one sentence where most do not look aligned, or where nothing is known; else None.
    """

    looked_at: int
    found: int
    aligned: int
    distance: float | None
    advice: str | None

    def to_dict(self) -> Json:
        """Return plain values for JSON."""
        return asdict(self)


def check_template(store: Store, detector: Detector, count: int = 64) -> TemplateCheck:
    """Find the face in up to `count` pictures, spread evenly over a store, and compare its landmarks with the template."""
    positions = spread(len(store), count)
    images = store.images(positions, TEMPLATE_SIZE)
    distances, looked_at = [], 0
    for row, pixels in enumerate(images.pixels):
        if row in images.broken:
            continue
        looked_at += 1
        framed = np.pad(pixels, ((56, 56), (56, 56), (0, 0)))
        faces = detector(framed)
        if len(faces):
            points = faces.landmarks - 56
            distances.append(float(np.linalg.norm(points - ARCFACE_TEMPLATE, axis=2).mean(axis=1).min()))
    aligned = sum(distance <= FARTHEST for distance in distances)
    advice = None
    if looked_at and len(distances) < _MOSTLY * looked_at:
        advice = (
            f"a face was found in {len(distances):,} of {looked_at:,} pictures looked at: "
            "whether the others are aligned is not known; attfc data preview shows them"
        )
    elif looked_at and aligned < _MOSTLY * len(distances):
        advice = (
            f"in {len(distances) - aligned:,} of {len(distances):,} pictures looked at, eyes, nose and mouth are not where the ArcFace template "
            "has them: if these are photos, align them first (attfc align)"
        )
    return TemplateCheck(
        looked_at, len(distances), aligned, round(float(np.median(distances)), 2) if distances else None, advice
    )
