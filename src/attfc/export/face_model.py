"""`attfc.load(PATH)`: any trained model, and what one does with it: embed faces, compare them.

    model = attfc.load("runs/demo-001")
    vectors = model.embed(["a.jpg", "b.jpg"])            # (2, D) float32, unit length
    cosine = model.similarity("a.jpg", "b.jpg")[0, 0]

An embedding is that of evaluation: image and mirror image, summed, then normalized (two passes of the network).
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from attfc.devices import choose_device
from attfc.errors import UserError
from attfc.evaluation.embed import device_of, embed_store
from attfc.export.face_list import open_faces
from attfc.export.model_inputs import ModelFacts, open_model
from attfc.typing import Float32, Progress

__all__ = ["FaceModel", "load"]


class FaceModel:
    """A trained model and its facts; `load` returns it.

    Args:
        module: (B, 3, S, S) float32 RGB, ``(x - 127.5) / 127.5`` -> (B, D) float32, with the attribute `image_size`.
        facts: of `open_model`.

    Attributes:
        module, facts: as given; the module is in eval mode.
    """

    def __init__(self, module: nn.Module, facts: ModelFacts) -> None:
        self.module, self.facts = module, facts

    @property
    def device(self) -> torch.device:
        """Where the model computes."""
        return device_of(self.module)

    def to(self, device: str | torch.device) -> "FaceModel":
        """Move the model to a device, or to the accelerator if there is one ("auto"); returns itself.

        Raises:
            UserError: this machine has no such device.
        """
        self.module = self.module.to(choose_device(str(device)))
        return self

    def embed(
        self,
        images: Any,
        *,
        batch_size: int = 256,
        flip: bool = True,
        device: str | torch.device | None = None,
        workers: int = 0,
        progress: Progress | None = None,
    ) -> Float32:
        """Embed one face or many.

        Args:
            images: a path (image file, folder of images, or any store: see `attfc.open_store`), a PIL image, a store, or a list that mixes
                these. Or a uint8 RGB array (height, width, 3) or (N, height, width, 3). Faces are aligned to the ArcFace template, as the
                model's training images were; of an image that is not square the central square is taken.
            batch_size: images per forward pass.
            flip: as evaluation does, add the embedding of the mirror image before normalizing; a second pass.
            device: move the model there first; None: where it is.
            workers: processes that read and decode; 0 = this one.
            progress: called as (images done, images).

        Returns:
            (N, D) float32, unit length, a row for each image in the order given; one image gives (1, D).

        Raises:
            UserError: no image, one that cannot be read (it is named), or a model that gives NaN.
        """
        if device is not None:
            self.to(device)
        store = open_faces(images)
        found = embed_store(
            self.module, store, batch_size=batch_size, flip=flip, device=self.device, workers=workers, progress=progress
        )
        if found.broken:
            row, reason = min(found.broken.items())
            more = f", and {len(found.broken) - 1:,} more of {len(store):,} images" if len(found.broken) > 1 else ""
            raise UserError(
                f"{store.where(row)} cannot be embedded: {reason}{more}; repair or leave out what is broken"
            )
        return found.vectors

    def similarity(self, a: Any, b: Any, **options: Any) -> Float32:
        """Compare every face of `a` with every face of `b`.

        Args:
            a, b: images, as `embed` takes them, or embeddings: a float array (N, D) or (D,), of any length.
            options: of `embed`.

        Returns:
            (N, M) float32 cosines, -1 to 1: row i, column j is face i of `a` with face j of `b`. Of two single faces it is [[cosine]].

        Raises:
            UserError: as `embed`; embeddings of another size, or of length 0, NaN or infinity.
        """
        rows_ND, columns_MD = (self._vectors(value, options) for value in (a, b))
        cosines_NM: Float32 = np.clip(rows_ND @ columns_MD.T, -1.0, 1.0)
        return cosines_NM

    def _vectors(self, value: Any, options: dict[str, Any]) -> Float32:
        if not (isinstance(value, np.ndarray) and np.issubdtype(value.dtype, np.floating)):
            return self.embed(value, **options)
        size = self.facts.embedding_size
        vectors_ND = value[None] if value.ndim == 1 else value
        if vectors_ND.ndim != 2 or vectors_ND.shape[1] != size:
            raise UserError(
                f"a float array of shape {value.shape} holds no embeddings of this model: give (N, {size}), or images as uint8"
            )
        exact_ND = vectors_ND.astype(np.float64)
        lengths_N = np.linalg.norm(exact_ND, axis=1, keepdims=True)
        if not (np.isfinite(lengths_N) & (lengths_N > 0)).all():
            raise UserError(
                "an embedding has length 0, NaN or infinity, so it has no direction to compare: leave it out"
            )
        unit_ND: Float32 = (exact_ND / lengths_N).astype(np.float32)
        return unit_ND

    def __repr__(self) -> str:
        """Return what it is and where it came from."""
        facts = self.facts
        return f"FaceModel({str(facts.path)!r}, {facts.network}, {facts.image_size} px -> {facts.embedding_size}, {self.device})"


def load(path: Path | str, *, device: str | torch.device = "auto", **said: Any) -> FaceModel:
    """Open any trained model: the one opener.

    Args:
        path: a run's folder, or a folder with model.safetensors and config.json (`attfc export --format hf`, the Hugging Face hub). Or a
            `.safetensors`, `.pt` or `.pth` state dict of attfc or arcface_torch, or an `.onnx` file (extra ``attfc[onnx]``). Nothing is
            downloaded or executed.
        device: where it computes; "auto": the accelerator if there is one.
        said: what the file does not say of itself: network, image_size, embedding_size, colour_order, mean, std, training_data, licence. Where the
            file says otherwise, that is an error.

    Returns:
        The model: `embed`, `similarity`, `to`; `module`, the torch module that takes float32 RGB; `facts`, with notes of what was assumed.

    Raises:
        UserError: nothing there, damaged, hostile, too large, or of an unknown network.

    >>> from attfc import create_backbone, save_model
    >>> folder = save_model(Path("tiny-model"), create_backbone("r6_tiny", embedding_size=8))  # doctest: +SKIP
    >>> load(folder).embed("face.jpg").shape  # doctest: +SKIP
    (1, 8)
    """
    on = choose_device(str(device))
    module, facts = open_model(os.path.expanduser(path), said, device=on.type)
    return FaceModel(module.to(on), facts)
