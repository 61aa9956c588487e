"""What a face detector gives, and what it says about itself; and what detectors share.

A licence for code is none for weights, and neither is consent of the people whose faces a detector was trained on: `DetectorFacts`
keeps the three apart, and says "not stated" where nobody states it.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from attfc.errors import UserError, first_line
from attfc.typing import Float64, UInt8

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

__all__ = ["Detector", "DetectorFacts", "Faces", "digest_of", "open_session", "suppress"]


@dataclass(frozen=True, eq=False)
class Faces:
    """The faces of a photo, the surest first.

    Coordinates are pixels of the photo, x to the right, y down, (0, 0) the center of the first pixel.

    Attributes:
        boxes: (N, 4) float64: left, top, right, bottom.
        landmarks: (N, 5, 2) float64: left eye, right eye, nose, left and right corner of the mouth, as seen in the photo.
        scores: (N,) float64, 0 to 1, falling.
    """

    boxes: Float64
    landmarks: Float64
    scores: Float64

    def __len__(self) -> int:
        """Return the number of faces."""
        return len(self.scores)


@dataclass(frozen=True)
class DetectorFacts:
    """Which detector it is, and under which terms.

    Attributes:
        digest: SHA-256 of its files, one after the other.
        code_licence: of the package that carries the weights. weights_licence: of the weights themselves.
    """

    name: str
    digest: str
    code_licence: str = "not stated"
    weights_licence: str = "not stated"
    training_data: str = "not stated"

    def to_dict(self) -> dict[str, str]:
        """Return plain values for JSON."""
        return asdict(self)

    def to_text(self) -> str:
        """Return the facts for a terminal."""
        return (
            f"detector: {self.name}\nsha256: {self.digest}\nlicence of the code: {self.code_licence}\n"
            f"licence of the weights: {self.weights_licence}\ntraining data: {self.training_data}"
        )


class Detector(Protocol):
    """Finds faces; it may be called from one thread at a time."""

    @property
    def facts(self) -> DetectorFacts:
        """Which detector it is."""

    def __call__(self, pixels: UInt8) -> Faces:
        """Return the faces of a photo: uint8 (height, width, 3) RGB."""


def open_session(content: bytes, name: str) -> "InferenceSession":
    """Return an ONNX network that computes on one processor core.

    Raises:
        UserError: onnxruntime is not installed, or refuses the file.
    """
    try:
        import onnxruntime
    except ImportError:
        raise UserError('finding faces needs onnxruntime: install it with pip install "attfc[align]"') from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has exceptions of its own without a common base
        raise UserError(f"{name} is not an ONNX file that onnxruntime opens: {first_line(error)}") from None


def digest_of(contents: Sequence[bytes]) -> str:
    """Return the SHA-256 of contents, one after the other."""
    return hashlib.sha256(b"".join(contents)).hexdigest()


def suppress(boxes: Float64, scores: Float64, most: float, *, of_smaller: bool = False) -> list[int]:
    """Return which boxes stay: the surest first, without those that overlap a surer one by more than `most`.

    Args:
        boxes: (N, 4) left, top, right, bottom.
        scores: (N,).
        most: overlap as a share of the union, with `of_smaller` of the smaller box.

    >>> suppress(np.array([[0, 0, 10, 10], [1, 0, 11, 10], [20, 0, 30, 10.0]]), np.array([0.8, 0.9, 0.7]), 0.5)
    [1, 2]
    """
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    waiting, kept = np.argsort(-scores, kind="stable"), []
    while len(waiting):
        first, rest = waiting[0], waiting[1:]
        kept.append(int(first))
        low, high = np.maximum(boxes[first, :2], boxes[rest, :2]), np.minimum(boxes[first, 2:], boxes[rest, 2:])
        shared = np.prod(np.maximum(high - low, 0), axis=1)
        whole = np.minimum(area[first], area[rest]) if of_smaller else area[first] + area[rest] - shared
        waiting = rest[shared <= most * whole]
    return kept
