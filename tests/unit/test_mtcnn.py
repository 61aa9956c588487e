"""MTCNN's second look: whatever the place, size and turn of a face, its points come back where they are, if the network finds them in the crops."""

import numpy as np
import pytest
from PIL import Image

from attfc.photos.alignment import ARCFACE_TEMPLATE
from attfc.photos.mtcnn import LAST, LOOKS, Mtcnn

COLOURS = np.array([(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.7, 0.7, 0), (0, 0.7, 0.7)])


def spots(points: np.ndarray, radius: float) -> Image.Image:
    """A black photo with a round spot of its own colour at each point."""
    y, x = np.mgrid[0:400, 0:400]
    heights = [np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / (2 * radius**2)) for at in points]
    return Image.fromarray(np.rint(255 * np.tensordot(heights, COLOURS, (0, 0)).clip(0, 1)).astype(np.uint8))


def find_spots(stage: int, crops: np.ndarray) -> list[np.ndarray]:
    """What O-net gives, of a network that knows the spots: five x, then five y, from the center of the first pixel, as shares."""
    assert stage == 2
    assert crops.shape == (len(LOOKS), LAST, LAST, 3)
    pixels = crops.astype(float)
    whose = (pixels @ (COLOURS / np.linalg.norm(COLOURS, axis=1, keepdims=True)).T).argmax(axis=-1)
    weight = np.where(pixels.max(axis=-1) > 8, pixels.sum(axis=-1), 0)
    y, x = np.mgrid[0:LAST, 0:LAST] / LAST
    places = [
        [(weight * (whose == spot) * at).sum((1, 2)) / (weight * (whose == spot)).sum((1, 2)) for spot in range(5)]
        for at in (x, y)
    ]
    return [np.empty(0), np.concatenate(places).T.astype(np.float32), np.empty(0)]


@pytest.mark.parametrize(("scale", "turn"), [(0.9, 0), (1, 20), (2.2, -30), (2.2, 170)])
def test_the_second_look_finds_points_where_they_are(scale: float, turn: float, monkeypatch) -> None:
    by = scale * np.exp(1j * np.radians(turn))
    template = ARCFACE_TEMPLATE @ [1, 1j]
    truth = by * (template - template.mean()) + (201.3 + 190.8j)
    points = np.column_stack([truth.real, truth.imag])
    detector = object.__new__(Mtcnn)
    monkeypatch.setattr(detector, "_run", find_spots)
    guess = points + np.random.default_rng(0).normal(0, 1.5 * scale, (5, 2))  # the first look's
    # Landmarks count from the edge of the first pixel until a photo's scale is undone.
    found = detector._upright(spots(points, 3 * scale), guess + 0.5) - 0.5
    assert np.abs(found - points).max() < 0.15 * scale


def test_landmarks_without_extent_stay(monkeypatch) -> None:
    detector = object.__new__(Mtcnn)
    monkeypatch.setattr(detector, "_run", lambda *_: pytest.fail("looked at nothing"))
    one = np.full((5, 2), 7.0)
    assert detector._upright(Image.new("RGB", (9, 9)), one) is one
