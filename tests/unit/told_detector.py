"""A face detector that finds what it is told."""

import numpy as np

from attfc.photos.alignment import ARCFACE_TEMPLATE
from attfc.photos.detector import DetectorFacts, Faces


class Told:
    """A detector that finds template faces at given (scale, x, y), the first the surest."""

    facts = DetectorFacts("told", "0")

    def __init__(self, *places: tuple[float, float, float]) -> None:
        corners = np.array([(x, y, x + 112 * scale, y + 112 * scale) for scale, x, y in places]).reshape(-1, 4)
        landmarks = np.array([scale * ARCFACE_TEMPLATE + (x, y) for scale, x, y in places]).reshape(-1, 5, 2)
        self.found = Faces(corners, landmarks, np.linspace(0.99, 0.9, len(places)))

    def __call__(self, pixels: np.ndarray) -> Faces:
        return self.found


THREE = Told((0.5, 10, 10), (1.5, 200, 180), (1, 120, 110))  # surest, largest, most central of 340 x 320
