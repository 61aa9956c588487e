"""Identification on a store of unseen people: some are enrolled, everybody is searched.

A share of the identities with enough images, drawn by seed, is enrolled with `enrolled_images` images each, drawn too. All other images are probes:
those of enrolled identities have a mate in the gallery (closed set: rank-k, CMC), those of the others have none (open set: TPIR at FPIR, DIR
curve). Every image is embedded once. Who is enrolled depends on the seed and the store alone, so two models are searched in the same gallery.

Sources: see `identification`.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from attfc.data.index import IdentityIndex
from attfc.data.stores.store import Store
from attfc.errors import UserError
from attfc.evaluation.bootstrap import Path, Sample
from attfc.evaluation.embed import broken_images, check_broken_limit, embed_store
from attfc.evaluation.people import few_people
from attfc.evaluation.protocols.identification import Identification, identify
from attfc.evaluation.samples import SearchSample

__all__ = ["StoreIdentification", "choose_gallery", "identify_in_store"]

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class StoreIdentification:
    """What `identify_in_store` found.

    Attributes:
        name: of the store. found: the figures and curves.
        images: how many were embedded, the broken ones included. broken: (position, where, reason).
        embedding_seconds, search_seconds: wall time.
        notes: what a reader of the figures should know.
    """

    name: str
    found: Identification
    images: int
    broken: tuple[tuple[int, str, str], ...]
    embedding_seconds: float
    search_seconds: float
    notes: tuple[str, ...]

    def figures(self) -> dict[str, Any]:
        """Return the figures as plain JSON types, rates as text, unknown figures as None."""
        return {
            **self.found.to_dict(),
            "images": self.images,
            "broken": len(self.broken),
            "embedding_seconds": self.embedding_seconds,
            "search_seconds": self.search_seconds,
            "notes": list(self.notes),
        }

    def samples(self) -> dict[Path, list[Sample]]:
        """Return the searches behind the figures, for intervals by identity."""
        return {(): [SearchSample.of([self.found])]}


def choose_gallery(index: IdentityIndex, enrolled: float = 0.5, enrolled_images: int = 1, seed: int = 0) -> Ints:
    """Return the positions to enroll, rising: `enrolled_images` of a share of the identities that have more images than that.

    Raises:
        UserError: a share that is none, or too few identities with an image left to search.
    """
    if not 0 < enrolled <= 1:
        raise UserError(f"enrolled={enrolled} is no share of the identities: use a number above 0 and at most 1")
    candidates = np.flatnonzero(index.counts() > enrolled_images)
    number = round(enrolled * len(candidates))
    if number < 1:
        raise UserError(
            f"{len(candidates):,} of {len(index):,} identities have more than {enrolled_images} images, and {enrolled:g} of them is none: "
            "enroll fewer images of each, or a larger share"
        )
    rng = np.random.default_rng([seed, 2])
    chosen = np.sort(rng.permutation(candidates)[:number])
    return np.sort(
        np.concatenate([rng.choice(index.of(int(label)), enrolled_images, replace=False) for label in chosen])
    ).astype(np.int64)


def identify_in_store(
    model: nn.Module,
    store: Store,
    *,
    enrolled: float = 0.5,
    enrolled_images: int = 1,
    seed: int = 0,
    ranks: Sequence[int] = (1, 5, 10),
    fpirs: Sequence[float] = (0.01, 0.1),
    broken_limit: float = 0.01,
    flip: bool = True,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    workers: int = 0,
    autocast_dtype: torch.dtype | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> StoreIdentification:
    """Embed a store of unseen identities, enroll some of them and search everybody.

    Args:
        model: (B, 3, S, S) float32 RGB in [-1, 1] -> (B, D), with an `image_size`; its mode is left as it was.
        store: the images.
        enrolled: share of the identities that are enrolled, of those with an image left to search.
        enrolled_images: images of each in the gallery; the best of them counts.
        seed: draws who is enrolled, and with which images.
        ranks, fpirs: see `identify`.
        broken_limit: the largest share of broken images that is left out and counted; a larger one is an error.
        flip, batch_size, device, workers, autocast_dtype, progress: see `embed_store`.

    Raises:
        UserError: nobody to enroll or no mated probe; too many broken images; a model that gives NaN or zeros.
    """
    check_broken_limit(broken_limit)
    gallery = choose_gallery(store.identities, enrolled, enrolled_images, seed)
    embeddings = embed_store(
        model,
        store,
        batch_size=batch_size,
        flip=flip,
        device=device,
        workers=workers,
        autocast_dtype=autocast_dtype,
        progress=progress,
    )
    positions, valid = embeddings.positions, embeddings.valid
    broken = broken_images(embeddings, store.name, store.where, broken_limit)
    notes: list[str] = []
    in_gallery = np.isin(positions, gallery)
    if broken:
        lost = int((in_gallery & ~valid).sum())
        notes.append(
            f"{len(broken):,} of {len(positions):,} images are broken and left out, {lost:,} of them enrolled; "
            f"the first is {broken[0][1]}: {broken[0][2]}"
        )
    start = time.perf_counter()
    enrolled_rows, probe_rows = np.flatnonzero(in_gallery & valid), np.flatnonzero(~in_gallery & valid)
    if not len(enrolled_rows) or not len(probe_rows):
        raise UserError(
            f"{store.name}: {len(enrolled_rows):,} images to enroll and {len(probe_rows):,} to search are left: both are needed"
        )
    found = identify(
        embeddings.vectors[enrolled_rows],
        store.labels(positions[enrolled_rows]),
        embeddings.vectors[probe_rows],
        store.labels(positions[probe_rows]),
        ranks,
        fpirs,
        device=device,
    )
    return StoreIdentification(
        name=store.name,
        found=found,
        images=len(positions),
        broken=broken,
        embedding_seconds=embeddings.seconds,
        search_seconds=time.perf_counter() - start,
        notes=(*few_people(len(np.unique(found.probe_labels))), *notes, *found.notes),
    )
