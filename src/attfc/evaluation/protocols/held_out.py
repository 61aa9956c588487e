"""Everything about one model on one store of people it never saw: pairs, all pairs, rank-one.

Each image is embedded once however many pairs use it. A list of 6,000 pairs cannot state TAR at FAR 1e-4 with any
certainty, so the same embeddings are also scored all against all; the two stand apart, under `tar_at_far` and
`all_pairs`. Cost: one or two forward passes per image (bounded by `gallery_images`), then a few blocked products.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import nn

from attfc.data.attributes import Attributes, read_attributes
from attfc.data.stores.store import Store
from attfc.errors import UserError
from attfc.evaluation.bootstrap import FigurePath, Samples, in_words
from attfc.evaluation.embed import Embedder, Embeddings, ImageEvaluation
from attfc.evaluation.metrics import PairScores, Thresholds, evaluate_scores
from attfc.evaluation.people import few_people, heading_with_people
from attfc.evaluation.protocols.all_pairs import Slices, score_slices
from attfc.evaluation.protocols.all_pairs_scores import SPARE_FOR_INTERVALS, AllPairs, score_all_pairs
from attfc.evaluation.protocols.pair_lists import Pairs, generate_pairs, read_pairs
from attfc.evaluation.protocols.protocol import Board, Cell, Outcome, Protocol, Subject, Table, noted
from attfc.evaluation.protocols.search import RankOne
from attfc.evaluation.protocols.search import rank_one as identify
from attfc.evaluation.rates import FARS
from attfc.evaluation.samples import PairListSample
from attfc.evaluation.tail_sample import EXACT_IMPOSTORS
from attfc.evaluation.unit_rows import cosine_of_pairs
from attfc.typing import Array, Float64, Int64, Json

__all__ = ["PROTOCOL", "HardestPair", "HeldOutEvaluation", "evaluate_store", "gallery_of", "positions_of"]

GALLERY_IMAGES = 10_000  # of rank-one and all pairs, unless told otherwise


@dataclass(frozen=True)
class HardestPair:
    """A pair that fooled the model: positions in the store, where they come from, and the cosine."""

    same: bool
    score: float
    first: int
    second: int
    first_where: str
    second_where: str


@dataclass(frozen=True, eq=False)
class HeldOutEvaluation(ImageEvaluation):
    """What `evaluate_store` found.

    Attributes:
        pair_scores: figures of the list of pairs.
        pairs: the pairs scored, without those that use a broken image.
        skipped_pairs: how many those were.
        rank_one, all_pairs: None if not asked for or not possible; `notes` says why.
        hardest: worst mated, then worst non-mated pairs; of all pairs if those were scored, else of the list.
        pair_sample: the list of pairs with the identities behind it, for intervals.
        slices: all pairs within each value of each attribute; None without attributes.
    """

    pair_scores: PairScores
    pairs: Pairs
    skipped_pairs: int
    rank_one: RankOne | None
    all_pairs: AllPairs | None
    hardest: tuple[HardestPair, ...]
    pair_sample: PairListSample
    slices: Slices | None = None

    STATED: ClassVar = ("all_pairs", "people")

    def samples(self, exact: int = EXACT_IMPOSTORS) -> Samples:
        """Return the scores behind the figures, by where these stand in `figures()`, for intervals by identity.

        exact: how many of the highest non-mated scores of all pairs are drawn one by one; fewer are quicker.
        """
        ranked = [] if self.rank_one is None else [self.rank_one.sample()]
        found: Samples = {(): [self.pair_sample, *ranked]}
        if self.all_pairs is not None and self.all_pairs.stated:
            found["all_pairs",] = [self.all_pairs.sample(exact)]
        return found if self.slices is None else {**found, **self.slices.samples(exact)}

    @property
    def people(self) -> int:
        """How many people the figures rest on: those with a mated pair, or found again by rank-one."""
        ranked = 0 if self.rank_one is None else self.rank_one.sample().carriers
        return max(self.pair_sample.carriers, ranked)

    def figures(self) -> Json:
        """Return the figures in the form of a run folder's `evaluation.json`: plain JSON types, unknown ones as None."""
        found, seconds = super().figures(), self.embeddings.seconds
        return {
            **self.pair_scores.figures(),
            "pair_source": self.pairs.source,
            "skipped_pairs": self.skipped_pairs,
            "rank_one": None if self.rank_one is None else self.rank_one.rate,
            "rank_one_probes": 0 if self.rank_one is None else self.rank_one.probes,
            **found,
            **({} if self.slices is None else {"slices": self.slices.figures()}),
            "embedded_images_per_second": found["images"] / seconds if seconds > 0 else None,
            "notes": [*few_people(self.people), *self.pair_sample.notes(self.pairs.title), *self.notes],
        }

    def arrays(self) -> dict[str, Array]:
        """Return the arrays of a run folder's `evaluation.npz`; none needs pickle.

        scores, same, first, second, fold: (P,) the list of pairs. all_pairs_far, all_pairs_tar: points of the ROC over
        all pairs, if scored. hardest_*: HardestPair by column. broken_*: the images that could not be used.
        """
        far, tar = (np.zeros(0), np.zeros(0)) if self.all_pairs is None else self.all_pairs.curve()
        return {
            "scores": self.pair_scores.scores,
            "same": self.pair_scores.same,
            "first": self.pairs.first,
            "second": self.pairs.second,
            "fold": self.pairs.fold,
            "all_pairs_far": far,
            "all_pairs_tar": tar,
            **_columns("hardest", map(dataclasses.astuple, self.hardest), _HARDEST),
            **_columns("broken", self.broken, {"positions": np.int64, "where": np.str_, "reasons": np.str_}),
        }


_HARDEST = {
    "same": np.bool_,
    "scores": np.float64,
    "first": np.int64,
    "second": np.int64,
    "first_where": np.str_,
    "second_where": np.str_,
}


def _columns(prefix: str, rows: Iterable[tuple[Any, ...]], kinds: Mapping[str, Any]) -> dict[str, Array]:
    """Rows as arrays, one per column, whose names and types are given in order."""
    columns = list(zip(*rows, strict=True)) or [()] * len(kinds)
    return {
        f"{prefix}_{name}": np.array(column, dtype=kind)
        for (name, kind), column in zip(kinds.items(), columns, strict=True)
    }


def evaluate_store(
    model: nn.Module | Embedder,
    store: Store,
    *,
    pairs: Pairs | None = None,
    generated_pairs: int = 6000,
    seed: int = 0,
    folds: int = 10,
    thresholds: Thresholds = "exact",
    fars: Sequence[float] = FARS,
    rank_one: bool = True,
    all_pairs: bool = True,
    gallery_images: int = GALLERY_IMAGES,
    hardest: int = 12,
    attributes: Attributes | None = None,
    spare: float = 1.0,
    broken_limit: float = 0.01,
) -> HeldOutEvaluation:
    """Evaluate a backbone on a store of identities that it was not trained on.

    Args:
        model: the backbone, or an `Embedder` that says how it embeds. Ranks share the embedding; each then has all figures.
        store: the images.
        pairs: pairs to verify, from `read_pairs`; None = `generated_pairs` pairs drawn with `seed`.
        folds: folds of generated pairs; given pairs bring their own.
        thresholds, fars: see `evaluate_scores`.
        rank_one, all_pairs: also identify, and score every image against every other.
        gallery_images: these two use the whole store, or whole identities drawn by `seed` up to so many images.
        hardest: how many of the worst mated and of the worst non-mated pairs to name.
        attributes: from `read_attributes`: with all pairs also score those within each value of each.
        spare: see `score_all_pairs`; intervals of the all-pairs figures want 2.
        broken_limit: the largest share of broken images that is left out and counted; a larger one is an error.

    Raises:
        UserError: the store allows no pairs, too many images are broken, or the model gives NaN or zeros.
    """
    try:
        wanted = generate_pairs(store.identities, generated_pairs, seed, folds=folds) if pairs is None else pairs
    except UserError as error:
        raise UserError(f"{store.name}: {error}") from None
    if len(wanted) == 0:
        raise UserError(f"{wanted.source}: no pairs to evaluate")
    gallery, note = gallery_of(store, gallery_images, seed) if rank_one or all_pairs else (np.zeros(0, np.int64), None)
    embedder, positions = Embedder.of(model), np.union1d(wanted.positions(), gallery)
    embeddings = embedder.embed_within(store, positions, broken_limit, missing=wanted.missing)
    kept, *sides = wanted.with_rows(embeddings)
    _refuse_one_kind(store, wanted, kept, embeddings)
    scores = cosine_of_pairs(embeddings.vectors, *sides)
    figures = evaluate_scores(scores, kept.same, kept.fold, thresholds=thresholds, fars=fars)
    skipped = len(wanted) - len(kept)
    notes = [*wanted.notes, *figures.notes, *([] if note is None else [note])]
    if skipped:
        using = f"they use one of {len(embeddings.broken)} broken images"
        notes.append(f"{skipped:,} of {len(wanted):,} pairs were skipped: {using}")
    rows = np.flatnonzero(embeddings.valid & np.isin(embeddings.positions, gallery))
    images = embeddings.positions[rows]
    vectors, labels = torch.from_numpy(embeddings.vectors[rows]), store.labels(images)
    options: dict[str, Any] = {"fars": fars, "spare": spare, "device": embedder.on}
    ranked = everything = slices = None
    if (rank_one or all_pairs) and not _comparable(labels):
        notes.append("rank-one and all pairs are left out: they need two identities, one of them with two images")
    else:
        ranked = identify(vectors, labels, device=embedder.on) if rank_one else None
        everything = score_all_pairs(vectors, labels, hardest=hardest, **options) if all_pairs else None
    if everything is not None:
        slices = score_slices(vectors, labels, everything, attributes, images, **options)
        notes += [*everything.notes, *(slices.notes if slices is not None else ())]
    return HeldOutEvaluation(
        name=store.name,
        embeddings=embeddings,
        notes=tuple(notes),
        pair_scores=figures,
        pairs=kept,
        skipped_pairs=skipped + wanted.skipped,
        rank_one=ranked,
        all_pairs=everything,
        hardest=_hardest(store, hardest, kept, scores, everything, images),
        pair_sample=PairListSample.of(figures, store.labels(kept.first), store.labels(kept.second)),
        slices=slices,
    )


def _comparable(labels: Int64) -> bool:
    counts = np.unique(labels, return_counts=True)[1]
    return len(counts) >= 2 and int(counts.max()) >= 2


def _refuse_one_kind(store: Store, wanted: Pairs, kept: Pairs, embeddings: Embeddings) -> None:
    genuine, broken = int(kept.same.sum()), len(embeddings.broken)
    if 0 < genuine < len(kept):
        return
    if not broken:
        raise UserError(f"{wanted.source}: all pairs are of one kind: verification needs mated and non-mated pairs")
    raise UserError(
        f"{store.name}: of {len(wanted)} pairs {genuine} mated and {len(kept) - genuine} non-mated pairs "
        f"are left, since {broken} images are broken; {embeddings.first_left_out}"
    )


def positions_of(store: Store, pairs: Pairs, seed: int) -> Int64:
    """Return the images that `evaluate_store` embeds with its defaults: rising positions, int64."""
    return np.union1d(pairs.positions(), gallery_of(store, GALLERY_IMAGES, seed)[0])


def gallery_of(store: Store, limit: int, seed: int) -> tuple[Int64, str | None]:
    """All positions, or those of whole identities drawn by seed, up to `limit` images."""
    if limit < 2:
        raise UserError(f"gallery_images={limit}: use at least 2")
    if len(store) <= limit:
        return np.arange(len(store), dtype=np.int64), None
    index = store.identities
    labels = np.random.default_rng([seed, 1]).permutation(len(index))
    labels = labels[np.cumsum(index.counts()[labels]) <= limit]
    chosen = np.concatenate([np.zeros(0, np.int64), *(index.of(int(label)) for label in labels)])
    note = (
        f"rank-one and all pairs are over {len(chosen):,} of {len(store):,} images, "
        f"those of {len(labels):,} identities (gallery_images)"
    )
    return np.sort(chosen), note


def _hardest(
    store: Store,
    number: int,
    pairs: Pairs,
    scores: Float64,
    everything: AllPairs | None,
    gallery_positions: Int64,
) -> tuple[HardestPair, ...]:
    found: list[HardestPair] = []
    for same in (True, False):
        if everything is not None:
            worst = everything.hardest_genuine if same else everything.hardest_impostor
            measured, first, second = worst.scores, gallery_positions[worst.first], gallery_positions[worst.second]
        else:
            kind = np.flatnonzero(pairs.same == same)
            order = kind[np.argsort(scores[kind] if same else -scores[kind], kind="stable")][:number]
            measured, first, second = scores[order], pairs.first[order], pairs.second[order]
        for score, *sides in zip(measured.tolist(), first.tolist(), second.tolist(), strict=True):
            found.append(HardestPair(same, score, *sides, *map(store.where, sides)))
    return tuple(found)


def _run(
    subject: Subject,
    name: str,
    paths: Sequence[str],
    pairs: Path | None,
    attributes: Path | None,
    thresholds: Thresholds | None,
    keep_scores: bool,
    **options: Any,
) -> Outcome:
    path, store, shared = subject.open_store(name, paths)
    result = evaluate_store(
        subject.embedder,
        store,
        pairs=read_pairs(pairs, store, broken_limit=options["broken_limit"]) if pairs is not None else None,
        attributes=read_attributes(attributes, store),
        thresholds=thresholds or "exact",
        spare=SPARE_FOR_INTERVALS if keep_scores else 1.0,
        **options,
    )
    figures = result.figures()
    heading = f"{heading_with_people(shared.heading, result.people)} ({figures['people']:,} people, {figures['images']:,} images)"
    tables = [*_tables(figures), *(() if result.slices is None else result.slices.tables())]
    facts = {"store": path, "pairs_file": str(pairs) if pairs else None}
    return Outcome({**facts, **figures}, result.samples(), [heading, *tables, *noted(figures["notes"])], shared)


def _tables(figures: Mapping[str, Any]) -> list[Table]:
    """What the list of pairs and all pairs say at each FAR, then the figures that need none."""
    columns: dict[str, FigurePath] = {"pairs": ()}
    if figures.get("all_pairs"):
        columns |= {"all pairs": ("all_pairs",), "each person alike": ("all_pairs",)}
    tars = ["tar_at_far", "tar_at_far", "person_balanced_tar_at_far"][: len(columns)]
    rows: list[list[str | Cell]] = [
        [
            f"TAR at FAR {far}",
            *(Cell((*place, tar, far), "share") for place, tar in zip(columns.values(), tars, strict=True)),
        ]
        for far in figures["tar_at_far"]
    ]
    rows += [
        [in_words((count,)), *(Cell((*place, count), "count") for place in columns.values())]
        for count in ("genuine_pairs", "impostor_pairs")
    ]
    single = {
        "accuracy": "accuracy of pairs",
        "threshold": "its threshold (cosine)",
        "auc": "AUC",
        "eer": "EER",
        "rank_one": "rank-1",
    }
    return [
        Table(("", *columns), rows),
        Table(("", ""), [[words, Cell((name,), "share")] for name, words in single.items()]),
    ]


def _board(protocol: str, data: str, place: FigurePath) -> Board:
    if place == ("all_pairs",):
        column = (f"{data} all pairs(1E-3)", ("tar_at_far", "0.001"))
        return Board((protocol, data, *place), f"{data}: all pairs", (column,))
    return Board((protocol, data), f"{data}: pairs", ((f"{data} pairs", ("accuracy",)),))


PROTOCOL = Protocol(
    ("held-out",),
    _run,
    ("pairs", "attributes", "generated_pairs", "seed", "thresholds", "broken_limit", "keep_scores"),
    _board,
)
