"""Detectors that look at a photo once, as ONNX files of the user: SCRFD, RetinaFace, YuNet, CenterFace, told apart by what they give.

The photo is scaled to the file's own input size, or to a longer side of 640 pixels where the file takes any; black fills the rest.
Each network gives, at every cell of a grid, a score, a box and five landmarks relative to the cell:

| detector | pixels in | cell | box | landmarks |
| --- | --- | --- | --- | --- |
| SCRFD (2105.04714) | RGB, (x - 127.5) / 128 | (column, row) x stride, two anchors | distances to the edges, in strides | in strides |
| RetinaFace (1905.00641), from PyTorch | BGR - (104, 117, 123) | two anchors | shift and log scale of the anchor | shift of the anchor |
| YuNet (2023), score sqrt(class x object) | BGR, 0 to 255 | (column, row) x stride | shift and log size, in strides | in strides |
| CenterFace (1911.03599) | RGB, 0 to 255 | (column, row) x 4 | shift and log size, in strides | shares of the box |
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from attfc.errors import UserError, first_line
from attfc.photos.detector import DetectorFacts, Faces, digest_of, open_session, suppress
from attfc.typing import Float32, Float64, UInt8

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

__all__ = ["SingleShot"]

LONGEST = 640
STRIDES = (8, 16, 32)
LEAST_SCORE, MOST_OVERLAP = 0.5, 0.4
MOST_CANDIDATES = 5000
_EXPECTED = "SCRFD, RetinaFace, YuNet or CenterFace is expected"
_ANCHORS = {8: (16, 32), 16: (64, 128), 32: (256, 512)}  # RetinaFace: sides in pixels
Found = tuple[Float64, Float64, Float64]  # boxes (N, 4), landmarks (N, 5, 2), scores (N,), in pixels of the input
Outputs = Sequence[Float32]


def _cells(size: tuple[int, int], stride: int, count: int) -> Float64:
    """Return (count, 2) column and row of the cells of an input of (width, height), each as often as it has anchors."""
    columns, rows = (-(-side // stride) for side in size)
    grid = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), axis=-1).reshape(-1, 2)
    return np.repeat(grid, count // len(grid), axis=0).astype(np.float64)


def _centered(centers: Float64, sides: Float64) -> Float64:
    return np.concatenate([centers - sides / 2, centers + sides / 2], axis=1)


def _joined(parts: Sequence[Found]) -> Found:
    boxes, landmarks, scores = (np.concatenate(part) for part in zip(*parts, strict=True))
    return boxes, landmarks, scores


def _scrfd(outputs: Outputs, size: tuple[int, int]) -> Found:
    parts = []
    for stride, *given in zip(STRIDES, outputs[:3], outputs[3:6], outputs[6:], strict=True):
        scores, edges, points = (each.reshape(-1, each.shape[-1]).astype(np.float64) for each in given)
        cells = _cells(size, stride, len(scores))
        boxes = np.concatenate([cells - edges[:, :2], cells + edges[:, 2:]], axis=1)
        parts.append((boxes * stride, (cells[:, None] + points.reshape(-1, 5, 2)) * stride, scores[:, 0]))
    return _joined(parts)


def _yunet(outputs: Outputs, size: tuple[int, int]) -> Found:
    parts = []
    for stride, *given in zip(STRIDES, *(outputs[kind : kind + 3] for kind in (0, 3, 6, 9)), strict=True):
        classes, objects, boxes, points = (each.reshape(-1, each.shape[-1]).astype(np.float64) for each in given)
        cells = _cells(size, stride, len(boxes))
        found = _centered(cells + boxes[:, :2], np.exp(np.minimum(boxes[:, 2:], 10)))
        scores = np.sqrt(np.clip(classes, 0, 1) * np.clip(objects, 0, 1))[:, 0]
        parts.append((found * stride, (cells[:, None] + points.reshape(-1, 5, 2)) * stride, scores))
    return _joined(parts)


def _retinaface(outputs: Outputs, size: tuple[int, int]) -> Found:
    moves, points, chances = (
        next(each[0] for each in outputs if each.shape[-1] == last).astype(np.float64) for last in (4, 10, 2)
    )
    centers, sides = [], []
    for stride, anchors in _ANCHORS.items():
        columns, rows = (-(-side // stride) for side in size)
        centers.append((_cells(size, stride, len(anchors) * columns * rows) + 0.5) * stride)
        sides.append(np.tile(anchors, columns * rows))
    center, side = np.concatenate(centers), np.concatenate(sides)[:, None].astype(np.float64)
    boxes = _centered(center + 0.1 * moves[:, :2] * side, side * np.exp(np.minimum(0.2 * moves[:, 2:], 10)))
    return boxes, center[:, None] + 0.1 * points.reshape(-1, 5, 2) * side[:, None], chances[:, 1]


def _centerface(outputs: Outputs, size: tuple[int, int]) -> Found:
    heat, scale, shift, points = (each[0].astype(np.float64).reshape(each.shape[1], -1).T for each in outputs)
    cells = _cells(size, 4, len(heat))
    sides = 4 * np.exp(np.minimum(scale[:, ::-1], 10))  # height, then width
    boxes = _centered((cells + shift[:, ::-1] + 0.5) * 4, sides)
    return boxes, boxes[:, None, :2] + points.reshape(-1, 5, 2)[..., ::-1] * sides[:, None], heat[:, 0]


@dataclass(frozen=True)
class _Kind:
    """A detector: how pixels go in and how outputs are read; `signature` is the last, or for maps the second, dimension of each output."""

    name: str
    signature: tuple[int, ...]
    read: Callable[[Outputs, tuple[int, int]], Found]
    bgr: bool = False
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    divisor: float = 1.0


_KINDS = (
    _Kind("SCRFD", (1, 1, 1, 4, 4, 4, 10, 10, 10), _scrfd, mean=(127.5, 127.5, 127.5), divisor=128.0),
    _Kind("YuNet", (1, 1, 1, 1, 1, 1, 4, 4, 4, 10, 10, 10), _yunet, bgr=True),
    _Kind("RetinaFace", (2, 4, 10), _retinaface, bgr=True, mean=(104.0, 117.0, 123.0)),
    _Kind("CenterFace", (1, 2, 2, 10), _centerface),
)


class SingleShot:
    """A user's detector.

    Args:
        path: the ONNX file.

    Raises:
        UserError: it cannot be read, or is none of the detectors above.
    """

    def __init__(self, path: Path) -> None:
        try:
            content = path.read_bytes()
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}") from None
        self._network = open_session(content, str(path))
        self._kind = self._kind_of(self._network, path)
        self.facts = DetectorFacts(f"{self._kind.name}, file {path.name}", digest_of([content]))

    def _kind_of(self, network: "InferenceSession", path: Path) -> _Kind:
        """Return which detector it is, by what it gives for a black photo."""
        inputs = network.get_inputs()
        shape = inputs[0].shape
        if len(inputs) != 1 or len(shape) != 4 or shape[1] != 3:
            raise UserError(f"{path} takes no single photo of 3 colours: {_EXPECTED}")
        self._size = tuple(side if isinstance(side, int) else 0 for side in (shape[3], shape[2]))
        width, height = (side or LONGEST for side in self._size)
        try:
            outputs = network.run(None, {inputs[0].name: np.zeros((1, 3, height, width), np.float32)})
        except Exception as error:  # onnxruntime has exceptions of its own without a common base
            raise UserError(f"{path} does not take a photo of {width} x {height}: {first_line(error)}") from None
        signature = tuple(each.shape[1] if each.ndim == 4 else each.shape[-1] for each in outputs)
        for kind in _KINDS:
            if kind.signature == (tuple(sorted(signature)) if kind.name == "RetinaFace" else signature):
                return kind
        without = " (a file without landmarks does not do)" if 10 not in signature else ""
        raise UserError(f"{path} gives {len(outputs)} outputs of {signature} numbers: {_EXPECTED}{without}")

    def __call__(self, pixels: UInt8) -> Faces:
        """Return the faces of a photo: uint8 (height, width, 3) RGB."""
        found = self._look(pixels, 1.0)
        return found if len(found) else self._look(pixels, 0.5)  # SCRFD misses a face that nearly fills its input

    def _look(self, pixels: UInt8, share: float) -> Faces:
        """Return the faces of a photo that takes up a share of the input's sides at most."""
        height, width, _ = pixels.shape
        room = [side or LONGEST for side in self._size]
        scale = share * min(room[0] / width, room[1] / height)
        wide, high = max(1, round(width * scale)), max(1, round(height * scale))
        sides = [side or -(-taken // 32) * 32 for side, taken in zip(self._size, (wide, high), strict=True)]
        canvas = np.zeros((sides[1], sides[0], 3), np.float32)
        photo = np.asarray(Image.fromarray(pixels).resize((wide, high), Image.Resampling.BILINEAR), np.float32)
        canvas[:high, :wide] = photo[..., ::-1] if self._kind.bgr else photo
        canvas = (canvas - np.array(self._kind.mean, np.float32)) / np.float32(self._kind.divisor)
        name = self._network.get_inputs()[0].name
        outputs = self._network.run(None, {name: np.ascontiguousarray(canvas.transpose(2, 0, 1))[None]})
        boxes, landmarks, scores = self._kind.read(outputs, (sides[0], sides[1]))
        usable = np.isfinite(boxes).all(axis=1) & np.isfinite(landmarks).all(axis=(1, 2))
        sure = np.flatnonzero(usable & (scores >= LEAST_SCORE))
        sure = sure[np.argsort(-scores[sure], kind="stable")[:MOST_CANDIDATES]]
        sure = sure[suppress(boxes[sure], scores[sure], MOST_OVERLAP)]
        back = np.array([width / wide, height / high])
        return Faces(
            (boxes[sure] + 0.5) * [*back, *back] - 0.5, (landmarks[sure] + 0.5) * back - 0.5, scores[sure].clip(0, 1)
        )
