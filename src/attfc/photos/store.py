"""Photos as a store of aligned faces: each is found and warped when it is read, so whatever reads stores reads photos.

Cost: that of `attfc align` at each reading; nothing is kept. To read photos often, align them into a folder first.
"""

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from attfc.data.images import encode_image
from attfc.data.stores.store import EncodedStore, Store, StoreView
from attfc.photos.detector import Detector
from attfc.photos.faces import align_faces
from attfc.photos.opening import open_detector
from attfc.photos.reading import decode_photo
from attfc.typing import Int64

__all__ = ["AlignedPhotos"]


class AlignedPhotos(StoreView):
    """A Store over the largest face of each photo of another store; a photo without a face is a broken image.

    Args:
        photos: whole photos.
        detector: an ONNX file; None: the default (`open_detector`).

    Attributes:
        several: position -> faces, of the photos with more than one that were read in this process.

    Raises:
        UserError: as `open_detector`.
    """

    def __init__(self, photos: Store, detector: Path | None) -> None:
        self.photos, self._path, self.stores = photos, detector, (photos,)
        self.name, self.identities = photos.name, photos.identities
        self.several: dict[int, int] = {}
        self._opened: tuple[int, Detector] = os.getpid(), open_detector(detector)

    def __getstate__(self) -> dict[str, object]:
        """Leave the detector out: each process opens its own."""
        return {**self.__dict__, "_opened": (0, None)}

    def __len__(self) -> int:
        """Return the number of photos."""
        return len(self.photos)

    def read(self, position: int) -> tuple[bytes, int]:
        """Return the aligned face, encoded without loss, and the photo's label.

        Raises:
            OSError, BrokenImageError: the photo cannot be read, or no face can be aligned.
        """
        encoded, label = self.photos.read(position)
        process, detector = self._opened
        if process != os.getpid():  # in a worker process
            detector = open_detector(self._path)
            self._opened = os.getpid(), detector
        (face,) = align_faces(decode_photo(encoded), detector)
        if face.faces > 1:
            self.several[position] = face.faces
        return encode_image(face.pixels, "BMP"), label

    read_many, images = EncodedStore.read_many, EncodedStore.images  # aligned, not as the store below has them

    def source_of(self, positions: npt.ArrayLike) -> tuple[Int64, Int64]:
        """Return 0, the store of the photos, and the positions."""
        asked = np.asarray(positions, np.int64)
        return np.zeros_like(asked), asked

    def labels(self, positions: npt.ArrayLike) -> Int64:
        """Return the photos' labels."""
        return self.photos.labels(positions)

    def identity_name(self, label: int) -> str:
        """Return the identity's name."""
        return self.photos.identity_name(label)
