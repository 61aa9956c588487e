"""Identification on a store of unseen people: some are enrolled, everybody is searched.

A share of the identities with enough images, drawn by seed, is enrolled with `enrolled_images` images each, drawn too. All other images are probes:
those of enrolled identities have a mate in the gallery (closed set: rank-k, CMC), those of the others have none (open set: TPIR at FPIR, DIR
curve). Every image is embedded once. Who is enrolled depends on the seed and the store alone, so two models are searched in the same gallery.

Sources: see `search`.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from attfc.data.index import IdentityIndex
from attfc.data.stores.store import Store
from attfc.errors import UserError
from attfc.evaluation.bootstrap import FigurePath, Sample
from attfc.evaluation.embed import BrokenImage, Embedder
from attfc.evaluation.people import few_people
from attfc.evaluation.protocols.protocol import Board, Cell, Outcome, Protocol, Subject, Table, noted
from attfc.evaluation.protocols.search import Identification, identify, search_sample
from attfc.typing import Int64, Progress

__all__ = ["PROTOCOL", "StoreIdentification", "choose_gallery", "identify_in_store"]


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
    broken: tuple[BrokenImage, ...]
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

    def samples(self) -> dict[FigurePath, list[Sample]]:
        """Return the searches behind the figures, for intervals by identity."""
        return {(): [search_sample([self.found])]}


def choose_gallery(index: IdentityIndex, enrolled: float = 0.5, enrolled_images: int = 1, seed: int = 0) -> Int64:
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
    model: nn.Module | Embedder,
    store: Store,
    *,
    enrolled: float = 0.5,
    enrolled_images: int = 1,
    seed: int = 0,
    ranks: Sequence[int] = (1, 5, 10),
    fpirs: Sequence[float] = (0.01, 0.1),
    broken_limit: float = 0.01,
    progress: Progress | None = None,
) -> StoreIdentification:
    """Embed a store of unseen identities, enroll some of them and search everybody.

    Args:
        model: the backbone, or an `Embedder` that says how it embeds.
        store: the images.
        enrolled: share of the identities that are enrolled, of those with an image left to search.
        enrolled_images: images of each in the gallery; the best of them counts.
        seed: draws who is enrolled, and with which images.
        ranks, fpirs: see `identify`.
        broken_limit: the largest share of broken images that is left out and counted; a larger one is an error.
        progress: called as (images done, images).

    Raises:
        UserError: nobody to enroll or no mated probe; too many broken images; a model that gives NaN or zeros.
    """
    embedder = Embedder.of(model)
    gallery = choose_gallery(store.identities, enrolled, enrolled_images, seed)
    embeddings, broken = embedder.embed_within(store, None, broken_limit, progress=progress)
    positions, valid = embeddings.positions, embeddings.valid
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
        device=embedder.device,
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


def _run(
    subject: Subject,
    name: str,
    paths: Sequence[str],
    *,
    enrolled: float,
    enrolled_images: int,
    seed: int,
    broken_limit: float,
) -> Outcome:
    path, store, shared = subject.open_store(name, paths)
    with subject.progress("faces") as progress:
        result = identify_in_store(
            subject.embedder,
            store,
            enrolled=enrolled,
            enrolled_images=enrolled_images,
            seed=seed,
            broken_limit=broken_limit,
            progress=progress,
        )
    figures = {"store": path, **result.figures()}
    return Outcome(figures, result.samples(), [_table(result), *noted(result.notes)], shared)


def _table(result: StoreIdentification) -> Table:
    figures = result.found.to_dict()
    rates = [(name, rate) for name in ("rank", "tpir_at_fpir") for rate in figures[name]]
    titles = (f"rank {rate}" if name == "rank" else f"TPIR@{rate}" for name, rate in rates)
    counts = {"enrolled": "gallery_identities", "mated probes": "mated_probes", "strangers": "stranger_searches"}
    row: list[str | Cell] = [
        result.name,
        *(Cell(place) for place in rates),
        *(Cell((name,), "count") for name in counts.values()),
    ]
    return Table(("1:N, %", *titles, *counts), [row])


def _board(protocol: str, data: str, place: FigurePath) -> Board:
    return Board((protocol, data), f"{data}: identification", ((f"{data} rank 1", ("rank", "1")),))


PROTOCOL = Protocol(("identify",), _run, _board, without_pairs="searches images, not pairs: leave out --pairs")
