"""What the ranks of test_evaluation do: without pytest, which takes each new process seconds to import."""

from typing import Any

import numpy as np
import torch

from attfc.backbones import create_backbone
from attfc.data import SyntheticFaces
from attfc.data.stores.store import Images
from attfc.distributed import Ranks
from attfc.errors import UserError
from attfc.evaluation.embed import embed_store


class Faces(SyntheticFaces):
    """Every seventh image is broken; rank `fails` cannot read at all."""

    fails = -1

    def images(self, positions, size: int, out=None) -> Images:
        if Ranks.world().rank == self.fails:
            raise UserError("the disk of this host is gone")
        images = super().images(positions, size, out)
        broken = dict.fromkeys(np.flatnonzero(np.asarray(positions) % 7 == 6).tolist(), "black")
        return Images(images.pixels, {**images.broken, **broken})


def embed(images: int, batch_size: int, fails: int = -1) -> dict[str, Any]:
    """Embeddings of the first images of a store by all ranks together, or what they say."""
    torch.manual_seed(0)
    model = create_backbone("r6_tiny", embedding_size=16)
    store = Faces(10, 5, seed=0)
    store.fails = fails
    seen: list[int] = []
    try:
        found = embed_store(
            model, store, np.arange(images), batch_size=batch_size, ranks=Ranks.world(), progress=lambda done, _: seen.append(done)
        )  # fmt: skip
    except UserError as error:
        return {"error": str(error)}
    return {
        "vectors": torch.from_numpy(found.vectors),
        "norms": torch.from_numpy(found.norms),
        "broken": found.broken,
        "passes": len(seen),
    }


def embed_several(cases: list[tuple[int, ...]]) -> list[dict[str, Any]]:
    """`embed` for each case, all in the same processes."""
    return [embed(*case) for case in cases]
