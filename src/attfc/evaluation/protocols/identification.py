"""Identification on a store of unseen people: some are enrolled, everybody is searched.

A share of the identities with enough images, drawn by seed, is enrolled with `enrolled_images` images each, drawn too. All other images are probes:
those of enrolled identities have a mate in the gallery (closed set: rank-k, CMC), those of the others have none (open set: TPIR at FPIR, DIR
curve). Every image is embedded once. Who is enrolled depends on the seed and the store alone, so two models are searched in the same gallery.

Sources: see `search`.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import nn

from attfc.data.attributes import read_attributes
from attfc.data.index import IdentityIndex
from attfc.data.stores.store import Store
from attfc.errors import UserError
from attfc.evaluation.bootstrap import FigurePath, Samples
from attfc.evaluation.embed import Embedder, ImageEvaluation
from attfc.evaluation.people import few_people
from attfc.evaluation.protocols.protocol import Board, Cell, Outcome, Protocol, Subject, Table, noted, with_slices
from attfc.evaluation.protocols.search import Identification, identify, rate_columns, search_sample
from attfc.typing import Int64, Json, Progress

__all__ = ["PROTOCOL", "StoreIdentification", "choose_gallery", "identify_in_store"]


@dataclass(frozen=True, eq=False)
class StoreIdentification(ImageEvaluation):
    """What `identify_in_store` found: the figures and curves, and the wall time of the search beside what `ImageEvaluation` has.

    `probes`: (mated probes,) int64, their positions in the store.
    """

    found: Identification
    search_seconds: float
    probes: Int64

    STATED: ClassVar = ("search_seconds",)

    def figures(self) -> Json:
        """Return the figures as plain JSON types, rates as text, unknown figures as None."""
        return {**self.found.figures(), **super().figures()}

    def samples(self) -> Samples:
        """Return the searches behind the figures, for intervals by identity."""
        return {(): [search_sample([self.found])]}


def choose_gallery(index: IdentityIndex, enrolled: float = 0.5, enrolled_images: int = 1, seed: int = 0) -> Int64:
    """Return the positions to enroll, rising: `enrolled_images` of a share of the identities that have more images than that.

    Raises:
        UserError: a share that is none, or too few identities with an image left to search.
    """
    if not 0 < enrolled <= 1:
        raise UserError(f"enrolled={enrolled} is not a share of the identities: use a number above 0 and at most 1")
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
    embeddings = embedder.embed_within(store, None, broken_limit, progress=progress)
    positions, valid, broken = embeddings.positions, embeddings.valid, len(embeddings.broken)
    notes: list[str] = []
    in_gallery = np.isin(positions, gallery)
    if broken:
        lost = int((in_gallery & ~valid).sum())
        notes.append(
            f"{broken:,} of {len(positions):,} images are broken and left out, {lost:,} of them enrolled; {embeddings.first_left_out}"
        )
    start = time.perf_counter()
    sides = [np.flatnonzero(chosen & valid) for chosen in (in_gallery, ~in_gallery)]
    if not all(map(len, sides)):
        raise UserError(
            f"{store.name}: {len(sides[0]):,} images to enroll and {len(sides[1]):,} to search are left: both are needed"
        )
    (gallery_ND, enrolled_N), (probe_MD, searched_M) = (
        (embeddings.vectors[side], store.labels(positions[side])) for side in sides
    )
    found = identify(gallery_ND, enrolled_N, probe_MD, searched_M, ranks, fpirs, device=embedder.device)
    return StoreIdentification(
        name=store.name,
        embeddings=embeddings,
        notes=(*few_people(len(np.unique(found.probe_labels))), *notes, *found.notes),
        found=found,
        search_seconds=time.perf_counter() - start,
        probes=positions[sides[1]][np.isin(searched_M, enrolled_N)],
    )


def _run(subject: Subject, name: str, paths: Sequence[str], attributes: Path | None, **options: Any) -> Outcome:
    path, store, shared = subject.open_store(name, paths)
    known = read_attributes(attributes, store)
    with subject.progress("faces") as progress:
        result = identify_in_store(subject.embedder, store, progress=progress, **options)
    counts = {
        "enrolled": "gallery_identities",
        "mated probes": "mated_probes",
        "non-mated searches": "stranger_searches",
    }
    columns = rate_columns(result.found) | {title: Cell((figure,), "count") for title, figure in counts.items()}
    table = Table.of("1:N, %", columns, [(result.name, ())])
    shown: list[str | Table] = [table, *noted((*result.notes, *(known.notes if known else ())))]
    outcome = Outcome({"store": path, **result.figures()}, result.samples(), shown, shared)
    if known is None:
        return outcome
    values = {column: of[result.probes] for column, of in known.columns.items()}
    return with_slices(outcome, (), values, search_sample([result.found]).probing, rate_columns(result.found))


def _board(protocol: str, data: str, place: FigurePath) -> Board:
    return Board((protocol, data), f"{data}: identification", ((f"{data} rank 1", ("rank", "1")),))


PROTOCOL = Protocol(
    ("identify",),
    _run,
    ("attributes", "enrolled", "enrolled_images", "seed", "broken_limit"),
    _board,
    without_pairs="searches images, not pairs: leave out --pairs",
)
