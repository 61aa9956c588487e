"""Embed the faces of a template protocol: read, align in worker processes, image and mirror image through the model, onto disk.

A face that cannot be used (no such file, damaged, landmarks that fit nothing) never ends an evaluation: its rows are zeros, and it is named.
Landmarks outside the crop are usual for faces at a photograph's edge: such faces are used and counted; only when the middle of the five
lies outside the crop is it not the crop that the landmarks were found in, and the face counts as broken.
"""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from attfc.data.images import BrokenImageError, decode_image, reason_of
from attfc.data.text_lines import open_regular
from attfc.errors import UserError
from attfc.evaluation.embed import Embedder, usable_lengths
from attfc.evaluation.embedding_cache import Batch, CacheKey, FaceEmbeddings, cached_embeddings, model_digest
from attfc.evaluation.protocols.template_lists import FaceList
from attfc.evaluation.unit_rows import fault_of
from attfc.photos.alignment import warp_face
from attfc.typing import Float64, Progress

__all__ = ["FaceImages", "embed_faces"]

MAX_FILE_BYTES = 64 * 1024 * 1024

AlignedBatch = tuple[Tensor, dict[int, str], list[int]]


class FaceImages(Dataset[AlignedBatch]):
    """Aligned faces by number of batch; what a loader worker runs.

    Item k: uint8 (B, size, size, 3) RGB, black where broken; {face: reason}; faces with a landmark outside their crop.

    Args:
        folder: loose_crop. faces: the list. size: side in pixels. batch_size: faces an item. start: the first face of item 0.
    """

    def __init__(self, folder: Path, faces: FaceList, size: int, batch_size: int, start: int) -> None:
        self.folder, self.size, self.batch_size, self.start = folder, size, batch_size, start
        self.names, self.landmarks, self.unusable = faces.names, faces.landmarks, faces.unusable

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-(len(self.names) - self.start) // self.batch_size)

    def __getitem__(self, number: int) -> AlignedBatch:
        """Return a batch; never raises for a broken face."""
        first = self.start + number * self.batch_size
        stop = min(first + self.batch_size, len(self.names))
        pixels = np.zeros((stop - first, self.size, self.size, 3), np.uint8)
        broken: dict[int, str] = {}
        outside: list[int] = []
        for face in range(first, stop):
            if face in self.unusable:
                broken[face] = self.unusable[face]
                continue
            try:
                crop = decode_image(self._read(self.names[face]))
                if _check_landmarks(self.landmarks[face], crop.shape[1], crop.shape[0]):
                    outside.append(face)
                pixels[face - first] = warp_face(crop, self.landmarks[face], self.size)
            except (OSError, BrokenImageError) as error:
                broken[face] = reason_of(error)
        return torch.from_numpy(pixels), broken, outside

    def _read(self, name: str) -> bytes:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise BrokenImageError("its name leads out of loose_crop")
        descriptor = open_regular(self.folder / name)
        with os.fdopen(descriptor, "rb") as file:
            encoded = file.read(MAX_FILE_BYTES + 1)
        if len(encoded) > MAX_FILE_BYTES:
            raise BrokenImageError(f"larger than {MAX_FILE_BYTES:,} bytes")
        return encoded


def _check_landmarks(points: Float64, width: int, height: int) -> bool:
    """Return whether a landmark lies outside the crop; raise BrokenImageError if their middle does."""
    limit = np.array([width, height]) - 0.5
    middle = points.mean(axis=0)
    if (middle < -0.5).any() or (middle > limit).any():
        raise BrokenImageError(
            f"landmarks around ({middle[0]:.0f}, {middle[1]:.0f}) are not in its {width} x {height} pixels"
        )
    return bool((points < -0.5).any() or (points > limit).any())


def embed_faces(
    embedder: Embedder,
    folder: Path,
    faces: FaceList,
    cache: Path,
    *,
    model_key: str | None,
    progress: Progress | None,
) -> FaceEmbeddings:
    """Return the embeddings of all faces and of their mirror images, from the cache as far as they are there.

    Args:
        embedder: of a backbone with `image_size` and `embedding_size`; its workers read, decode and align, and mirror images are always embedded.
        folder: loose_crop.
        faces: the list.
        cache: folder of the cache, see `embedding_cache`.
        model_key: names the model's contents in the cache; None = a digest of its state_dict.
        progress: called as (faces done, faces).

    Raises:
        UserError: a model without image_size or embedding_size, or one that gives another size, NaN, infinity or length 0; what the cache raises.
    """
    model = embedder.model
    image_size, embedding_size = (_size_of(model, name) for name in ("image_size", "embedding_size"))
    # The folder's time changes when an image comes or goes; one that is overwritten in place goes unnoticed.
    status = os.stat(folder)
    key = CacheKey(
        model_key if model_key is not None else model_digest(model),
        image_size=image_size,
        embedding_size=embedding_size,
        **embedder.of_cache,
        folder=os.path.realpath(folder),
        changed=status.st_mtime_ns,
    )
    key.add("names", "\0".join(faces.names).encode("utf-8", "surrogateescape"))
    key.add("landmarks", faces.landmarks).add("unusable", repr(sorted(faces.unusable.items())).encode())

    def embed(start: int) -> Iterator[Batch]:
        first = start
        images = FaceImages(folder, faces, image_size, embedder.batch_size, start)
        for *both, broken, outside in embedder.passes(images, mirror=True):
            image_BD, mirror_BD = (vectors.cpu() for vectors in both)
            rows = [face - first for face in broken]
            image_BD[rows], mirror_BD[rows] = 0.0, 0.0
            _refuse_unusable(faces, first, broken, image_BD, mirror_BD)
            yield image_BD, mirror_BD, broken, tuple(outside)
            first += len(image_BD)

    return cached_embeddings(cache, key, len(faces), embedding_size, embed, progress)


def _size_of(model: nn.Module, name: str) -> int:
    value = getattr(model, name, None)
    if not isinstance(value, int):
        raise UserError(f"{type(model).__name__} has no {name} attribute: set it to the model's")
    return value


def _refuse_unusable(faces: FaceList, first: int, broken: dict[int, str], *both: Tensor) -> None:
    for vectors_BD in both:
        norms_B = torch.linalg.vector_norm(vectors_BD, dim=1)
        for row in torch.nonzero(~usable_lengths(norms_B)).ravel().tolist():
            if first + row not in broken:
                raise UserError(
                    f"the embedding of {faces.names[first + row]} has {fault_of(norms_B[row])}: the model has diverged; "
                    "take an earlier checkpoint, or evaluate without mixed precision"
                )
