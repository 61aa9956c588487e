"""From the pixels of a photo to its aligned faces, each with what the manifest says of it.

Which faces are taken is the policy: the largest, the most central, all, or the one nearest to a box that is given. Yaw and pitch come from the five
landmarks and a rigid head with the template's proportions: rough (some 10 degrees), good for sorting out profiles. Sharpness is the
variance of the Laplacian of the aligned face: low for blurred faces and for small ones that were enlarged.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from attfc.data.images import BrokenImageError
from attfc.photos.alignment import ARCFACE_TEMPLATE, TEMPLATE_SIZE, similarity_to_template, warp_face
from attfc.photos.detector import Faces
from attfc.typing import Float64, UInt8

__all__ = ["POLICIES", "AlignedFace", "NoFaceError", "Policy", "align_faces", "head_turn", "sharpness"]

Policy = Literal["largest", "central", "all", "box"]
POLICIES: tuple[Policy, ...] = get_args(Policy)
MOST_OUTSIDE = 0.5
"""Largest share of the aligned face that may lie beyond the photo."""
_DEPTHS = np.array([0.0, 0.0, 15.0, 2.0, 2.0])  # of the five points towards the viewer, in pixels of the template


class NoFaceError(BrokenImageError):
    """No face of a photo can be aligned; the message is the reason."""


@dataclass(frozen=True, eq=False)
class AlignedFace:
    """A face, aligned.

    Attributes:
        pixels: uint8 (112, 112, 3) RGB; black beyond the photo.
        box: (4,) left, top, right, bottom; landmarks: (5, 2); both in pixels of the upright photo.
        confidence: the detector's score, 0 to 1.
        faces: how many the photo has.
        size: shorter side of the box, pixels.
        sharpness: variance of the Laplacian, grey levels squared.
        yaw: degrees, positive where the face is turned to the right of the photo; pitch: degrees, positive where it looks up.
        outside: share of the aligned face that lies beyond the photo.
    """

    pixels: UInt8
    box: Float64
    landmarks: Float64
    confidence: float
    faces: int
    size: float
    sharpness: float
    yaw: float
    pitch: float
    outside: float


def align_faces(
    pixels: UInt8, detector: Callable[[UInt8], Faces], policy: Policy = "largest", box: Sequence[float] | None = None
) -> list[AlignedFace]:
    """Find the faces of a photo and warp those that the policy takes to the ArcFace template.

    Args:
        pixels: uint8 (height, width, 3) RGB, upright.
        detector: finds them; a `Detector`.
        policy: largest, central, all (the surest first), or box.
        box: left, top, right, bottom in pixels, for the policy box.

    Raises:
        NoFaceError: none was found, none is at the box, or more than half of the face lies beyond the photo.
    """
    found = detector(pixels)
    if not len(found):
        raise NoFaceError("no face was found")
    aligned = [_aligned(pixels, found, row) for row in _chosen(found, policy, pixels.shape[1::-1], box)]
    kept = [face for face in aligned if face.outside <= MOST_OUTSIDE]
    if not kept:
        raise NoFaceError(f"the face is cut by the border: {aligned[0].outside:.0%} of it lies beyond the photo")
    return kept


def _chosen(found: Faces, policy: Policy, size: tuple[int, ...], box: Sequence[float] | None) -> Sequence[int]:
    low, high = found.boxes[:, :2], found.boxes[:, 2:]
    if policy == "all":
        return range(len(found))
    if policy == "largest":
        return [int(np.prod(high - low, axis=1).argmax())]
    centers, goal = (low + high) / 2, np.asarray(size) / 2
    if policy == "box":
        assert box is not None
        asked = np.asarray(box, dtype=np.float64)
        goal = (asked[:2] + asked[2:]) / 2
    nearest = int(np.linalg.norm(centers - goal, axis=1).argmin())
    if policy == "box" and (np.minimum(high[nearest], asked[2:]) <= np.maximum(low[nearest], asked[:2])).any():
        raise NoFaceError(f"no face was found at the box, {len(found):,} elsewhere")
    return [nearest]


def _aligned(pixels: UInt8, found: Faces, row: int) -> AlignedFace:
    landmarks, box = found.landmarks[row], found.boxes[row]
    face = warp_face(pixels, landmarks, antialias=True)
    yaw, pitch = head_turn(landmarks)
    return AlignedFace(
        face,
        box,
        landmarks,
        confidence=float(found.scores[row]),
        faces=len(found),
        size=float((box[2:] - box[:2]).min()),
        sharpness=sharpness(face),
        yaw=yaw,
        pitch=pitch,
        outside=_outside(landmarks, pixels.shape[1::-1]),
    )


def _outside(landmarks: Float64, size: tuple[int, ...]) -> float:
    """Return the share of the aligned face, looked at in a grid, that lies beyond a photo of (width, height)."""
    (a, _, b_x), (c, _, b_y) = similarity_to_template(landmarks)
    at = np.linspace(0, TEMPLATE_SIZE - 1, 32)
    places = (at[None, :] + 1j * at[:, None] - complex(b_x, b_y)) / complex(a, c)
    width, height = size
    inside = (places.real > -0.5) & (places.real < width - 0.5) & (places.imag > -0.5) & (places.imag < height - 0.5)
    return float(1 - inside.mean())


def sharpness(face: UInt8) -> float:
    """Return the variance of the Laplacian of a face, uint8 (height, width, 3): some 10 where it is blurred, some 1,000 where it is sharp."""
    grey = face.astype(np.float64).mean(axis=2)
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float((around - 4 * grey[1:-1, 1:-1]).var())


def head_turn(landmarks: Float64) -> tuple[float, float]:
    """Return yaw and pitch in degrees of five landmarks (5, 2): a rigid head under a distant camera, fitted by least squares.

    >>> [round(angle, 6) + 0.0 for angle in head_turn(3 * ARCFACE_TEMPLATE + 7)]
    [0.0, 0.0]
    """
    (a, b, _), (c, d, _) = similarity_to_template(landmarks)
    upright = landmarks @ np.array([[a, c], [b, d]])
    head = np.column_stack([ARCFACE_TEMPLATE, _DEPTHS])
    camera, *_ = np.linalg.lstsq(head - head.mean(axis=0), upright - upright.mean(axis=0), rcond=None)
    u, _, v = np.linalg.svd(camera.T, full_matrices=False)  # the nearest two rows of a rotation
    right, down = u @ v
    ahead = np.array([right[2], down[2], np.cross(right, down)[2]])
    return float(np.degrees(np.arctan2(ahead[0], ahead[2]))), float(np.degrees(np.arcsin(-ahead[1])))
