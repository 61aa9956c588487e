"""Every image against every other: exact TAR at FARs that a list of a few thousand pairs cannot state.

The 1,624,305 images of MFR-ALL are 1.3e12 pairs (2.6e12 if (a, b) and (b, a) count as two; every rate is the same), of which
FAR 1e-6 accepts 1.3 million impostors. Blocked matrix products over the upper triangle; every genuine score is kept, and of
the impostors only those that can still be among the highest, above a threshold that rises as they come in. No histogram,
never the pair matrix.

Exact means: the figures are those of the exact scores (`exact_scores`), with ties as ties, whatever the products were computed in. A product
in float32 or bfloat16 is off by at most `error` (a proven bound, below), so a pair is thrown away only when even
product + error stays below the n-th highest lower bound found so far; all others are scored again exactly. Tiles in which
many pairs pass (the first ones; a collapsed model) are computed in float64 at once.

Bounds, of unit rows x, y and their roundings x', y' to bfloat16: |x.y - x'.y'| <= d (2 + d) with d the greatest |x - x'| of this very
list (about 0.0017); plus the accumulation's D 2^-24 / (1 - D 2^-24), four times that for tensor cores, which cut off
instead of rounding; plus 2^-8 where the product comes out in bfloat16. Float32: the accumulation alone (3e-5 at D = 512).
Each pair scored again is a check of the bound; a violation ends the evaluation.

Time: N^2 D / 2 multiplications, then about 3 us a genuine pair and a kept impostor. Memory: N x D x 4 bytes, 24 bytes a
genuine pair, 96 bytes x FAR an impostor pair; never more than `budget`.

Source: the protocol of MFR-ALL (InsightFace challenge), which scores all pairs of its test images; error bounds as in
`exact_scores`.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from attfc.errors import UserError
from attfc.evaluation.exact_scores import STEP, block_scores, pair_scores, product_error, unit_tensor
from attfc.evaluation.metrics import FARS, far_name, pairs_needed, tar_of_kinds
from attfc.evaluation.people import dominant_person
from attfc.evaluation.protocols.all_pairs_scores import AllPairs, HardPairs
from attfc.precision import fast_bfloat16, without_autocast

__all__ = [
    "ALL_PAIRS_FARS",
    "SPARE_FOR_INTERVALS",
    "AllPairs",
    "HardPairs",
    "bytes_needed",
    "check_budget",
    "score_all_pairs",
    "score_groups",
]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Precision = Literal["auto", "float32", "bfloat16", "float64"]

ALL_PAIRS_FARS: tuple[float, ...] = (1e-4, 1e-5, 1e-6)
SPARE_FOR_INTERVALS = 2.0
"""Impostor scores to keep, times those that the largest FAR needs: a resample's threshold may lie lower."""
_COLUMNS = {
    "cpu": 4096,
    "cuda": 32_768,
}  # of a tile: 16 MiB on the CPU, so that the passes after the product find it in the cache
_ROWS = {"cpu": 1024, "cuda": 4096}
_DENSE = 1 / 32  # share of a tile from which float64 for all of it is cheaper than pair by pair
_FLOAT64_FROM = 1 / 200  # share of impostors kept from which all tiles are computed in float64
_BYTES_KEPT = 96  # score and pair number (12), up to twice as many as asked for, and three times as much while sorting
_BYTES_SCRATCH = 2**27  # pairs being scored again, a tile in float64


def bytes_needed(images: int, dimension: int, genuine_pairs: int, kept: int, device: str = "cpu") -> int:
    """Return the least `budget` for a list, in bytes; `kept` is the number of impostor scores to keep, FAR x impostor pairs + 2."""
    rows = 4 * images * dimension + 48 * images
    tile = 4 * min(_ROWS[device], images) * min(_COLUMNS[device], images)
    return rows + 24 * genuine_pairs + 3 * tile + _BYTES_SCRATCH + _BYTES_KEPT * kept


def check_budget(
    budget: int, dimension: int, counts: npt.ArrayLike, device: torch.device | str | None = None, hardest: int = 12
) -> int:
    """Return how many impostor scores a budget has room for; refuse one that has none, before anything is embedded.

    Args:
        budget: bytes. dimension: of the embeddings.
        counts: images of each identity.
        device, hardest: see `score_all_pairs`.

    Raises:
        UserError: too small.
    """
    images_I = np.asarray(counts, dtype=np.int64)
    images, genuine_pairs = int(images_I.sum()), int((images_I * (images_I - 1) // 2).sum())
    fixed = bytes_needed(images, dimension, genuine_pairs, 0, _kind(device))
    room = (budget - fixed) // _BYTES_KEPT
    if room < max(2, hardest):
        raise UserError(
            f"budget={budget:,} bytes is too small for {images:,} embeddings of {dimension} numbers and "
            f"{genuine_pairs:,} genuine pairs: at least {fixed + _BYTES_KEPT * max(2, hardest):,} are needed"
        )
    return room


def _kind(device: torch.device | str | None) -> str:
    kind = torch.device("cpu" if device is None else device).type
    return kind if kind in _ROWS else "cpu"


def score_all_pairs(
    embeddings: npt.NDArray[Any] | Tensor,
    labels: npt.ArrayLike,
    *,
    fars: Sequence[float] = FARS,
    hardest: int = 12,
    block: int | None = None,
    budget: int = 4 * 2**30,
    spare: float = 1.0,
    precision: Precision = "auto",
    device: torch.device | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> AllPairs:
    """Score all pairs of images and return exact TAR at FAR.

    Of I impostor pairs floor(FAR x I) may be accepted; a genuine pair is accepted when its score is above that of the next impostor;
    equal scores are accepted or rejected together (`tar_at_far`).

    Args:
        embeddings: (N, D) any length but 0; memory-mapped arrays are read once.
        labels: (N,) integers or text, any.
        fars: false accept rates; one that `budget` has no room for is not stated.
        hardest: how many of the worst genuine and impostor pairs to name.
        block: rows of a tile; None = 1,024 on the CPU, 4,096 elsewhere.
        budget: bytes, for a copy of the embeddings, the tiles and all scores kept.
        spare: keep so many times the impostor scores that the largest FAR needs: intervals look below its threshold.
        precision: of the products; "auto" is float64 where more than 1 in 200 impostors are kept, else bfloat16 where the device gains
            by it (`precision.fast_bfloat16`), else float32. The figures are the same.
        device: where to multiply; None = where the embeddings are.
        progress: called as (pairs done, pairs).

    Raises:
        UserError: no genuine or no impostor pair; embeddings that are not finite or have length 0; a FAR that is no rate; a
            budget that does not hold the embeddings.
    """
    label_N = np.asarray(labels)
    images = len(embeddings)
    if label_N.shape != (images,):
        raise UserError(f"{label_N.size} labels for {images} embeddings: pass one label per row")
    _, dense, counts = np.unique(label_N, return_inverse=True, return_counts=True)
    genuine_pairs = int((counts * (counts - 1) // 2).sum())
    impostor_pairs = images * (images - 1) // 2 - genuine_pairs
    if genuine_pairs == 0 or impostor_pairs == 0:
        raise UserError(
            f"{images} images of {len(counts)} identities make {genuine_pairs} genuine and "
            f"{impostor_pairs} impostor pairs: all-pairs figures need both kinds"
        )
    for far in fars:
        if not 0 < far <= 1:
            raise UserError(f"FAR {far} is not a rate: use a number above 0 and at most 1")
    if spare < 1:
        raise UserError(f"spare={spare}: 1 keeps the impostor scores that the largest FAR needs; use at least 1")
    order = np.argsort(dense, kind="stable")
    where = device if device is not None else embeddings.device if isinstance(embeddings, Tensor) else "cpu"
    kind = _kind(where)
    room = check_budget(budget, embeddings.shape[1], counts, where, hardest)
    wants = {
        far: min(impostor_pairs, math.floor(far * impostor_pairs) + 2) for far in fars
    }  # the threshold, and rounding
    stated = max((want for want in wants.values() if want <= room), default=0)
    keep = min(impostor_pairs, room, max(hardest, 2, math.ceil(spare * stated) if stated else room))
    rows_ND = unit_tensor(embeddings, where, order)
    chosen = _choose(precision, rows_ND, keep / impostor_pairs)
    starts = np.concatenate([[0], np.cumsum(counts)])
    with torch.no_grad(), without_autocast(rows_ND), _full_float32():
        genuine = _genuine(rows_ND, starts)
        top, codes, verified = _highest_impostors(
            rows_ND, dense[order], starts, keep, chosen, block or _ROWS[kind], _COLUMNS[kind], progress
        )
    tars = tar_of_kinds(genuine, top, fars, impostor_pairs)
    notes = []
    for far, tar in tars.items():
        if tar is None and impostor_pairs < pairs_needed(far):
            notes.append(
                f"all pairs: TAR at FAR {far_name(far)} is not stated: {impostor_pairs:,} impostor pairs, "
                f"at least {pairs_needed(far):,} needed"
            )
        elif tar is None:
            notes.append(
                f"all pairs: TAR at FAR {far_name(far)} is not stated: it takes a budget of "
                f"{bytes_needed(images, embeddings.shape[1], genuine_pairs, wants[far], kind):,} bytes, budget is {budget:,}"
            )
    notes += dominant_person(counts * (counts - 1) // 2, "all pairs")
    first_K, second_K = order[codes // images], order[codes % images]
    return AllPairs(
        images=images,
        genuine_scores=genuine,
        genuine_labels=np.repeat(np.arange(len(counts)), counts * (counts - 1) // 2),
        top_impostors=top,
        top_labels=np.stack([dense[first_K], dense[second_K]], axis=1),
        top_codes=np.minimum(first_K, second_K) * images + np.maximum(first_K, second_K),
        identities=len(counts),
        identity_images=counts.astype(np.int64),
        impostor_pairs=impostor_pairs,
        tar_at_far=tars,
        threshold_at_far={
            far: None if tar is None else _threshold(top, far, impostor_pairs) for far, tar in tars.items()
        },
        hardest_genuine=_hardest_genuine(genuine, order, starts, hardest),
        hardest_impostor=_hard_pairs(first_K[:hardest], second_K[:hardest], top[:hardest]),
        precision=chosen,
        verified=verified,
        notes=tuple(notes),
    )


def score_groups(
    embeddings: npt.NDArray[Any] | Tensor, labels: npt.ArrayLike, groups: npt.ArrayLike, **options: Any
) -> tuple[dict[str, AllPairs], tuple[str, ...]]:
    """Score all pairs within each group of images (children, a race), as MFR reports them.

    Pairs of two groups belong to none: FAR within a group is the rate at which its own people are confused.

    Args:
        embeddings, labels: see `score_all_pairs`.
        groups: (N,) text; "" = in no group.
        **options: of `score_all_pairs`.

    Returns:
        Group -> its figures, by name; and notes: groups without genuine or impostor pairs, images in no group, identities in several groups.
    """
    group_N, label_N = np.asarray(groups, dtype=np.str_), np.asarray(labels)
    if group_N.shape != (len(embeddings),):
        raise UserError(f"{group_N.size} groups for {len(embeddings)} embeddings: pass one per row, '' for none")
    notes: list[str] = []
    found: dict[str, AllPairs] = {}
    for name in np.unique(group_N[group_N != ""]).tolist():
        rows = np.flatnonzero(group_N == name)
        part = embeddings[torch.from_numpy(rows)] if isinstance(embeddings, Tensor) else embeddings[rows]
        try:
            found[name] = score_all_pairs(part, label_N[rows], **options)
        except UserError as error:
            if "need both kinds" not in str(error):
                raise
            notes.append(f"group {name} is left out: {error}")
        else:
            notes += [f"group {name}: {note}" for note in found[name].notes]
    without = int((group_N == "").sum())
    if without:
        notes.append(f"{without:,} of {len(group_N):,} images are in no group")
    pairs = np.unique(
        np.stack([np.unique(label_N, return_inverse=True)[1], np.unique(group_N, return_inverse=True)[1]]), axis=1
    )
    several = int((np.bincount(pairs[0]) > 1).sum())
    if several:
        notes.append(f"{several:,} identities have images in several groups; pairs across groups are in none")
    return found, tuple(notes)


def _choose(precision: Precision, rows_ND: Tensor, share_kept: float) -> str:
    if precision not in ("auto", "float32", "bfloat16", "float64"):
        raise UserError(f"precision={precision!r} is unknown: use auto, float32, bfloat16 or float64")
    if precision != "auto":
        return precision
    if share_kept > _FLOAT64_FROM and rows_ND.device.type != "mps":
        return "float64"
    return "bfloat16" if fast_bfloat16(rows_ND.device) else "float32"


@contextmanager
def _full_float32() -> Iterator[None]:
    """Float32 products in float32: a process may have allowed TF32 or bfloat16 for them, to which the bound does not apply."""
    before = torch.get_float32_matmul_precision()
    if before == "highest":
        yield
        return
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _genuine(rows_ND: Tensor, starts: Ints) -> npt.NDArray[np.float32]:
    """Scores of all pairs within an identity, identity by identity, (0, 1), (0, 2) ... (1, 2) ... of its rows."""
    partners = _partners(starts)
    scores = np.empty(int(partners.sum()), dtype=np.float32)
    ends = np.cumsum(partners)
    begin = 0
    while begin < len(partners):  # some 100,000 pairs at a time, at least one row's
        done = int(ends[begin] - partners[begin])
        end = max(begin + 1, int(np.searchsorted(ends, done + 100_000)))
        first = np.repeat(np.arange(begin, end), partners[begin:end])
        second = first + 1 + done + np.arange(len(first)) - (ends - partners)[first]
        part = pair_scores(rows_ND, *(torch.from_numpy(side).to(rows_ND.device) for side in (first, second)))
        scores[done : done + len(first)] = part.cpu().numpy()
        begin = end
    return scores


def _partners(starts: Ints) -> Ints:
    """How many later rows of its identity each row has."""
    return np.repeat(starts[1:], np.diff(starts)) - np.arange(starts[-1]) - 1


def _hardest_genuine(genuine: npt.NDArray[np.float32], order: Ints, starts: Ints, number: int) -> HardPairs:
    number = min(number, len(genuine))
    lowest = np.argpartition(genuine, number - 1)[:number] if number else np.zeros(0, dtype=np.int64)
    lowest = lowest[np.lexsort((lowest, genuine[lowest]))]
    ends = np.cumsum(_partners(starts))
    first = np.searchsorted(ends, lowest, side="right")
    second = first + 1 + lowest - (ends - _partners(starts))[first]
    return _hard_pairs(order[first], order[second], genuine[lowest])


def _hard_pairs(first: Ints, second: Ints, scores: npt.NDArray[np.float32]) -> HardPairs:
    return HardPairs(np.minimum(first, second), np.maximum(first, second), scores.astype(np.float64))


def _threshold(top: npt.NDArray[np.float32], far: float, impostor_pairs: int) -> float:
    allowed = min(math.floor(far * impostor_pairs + 1e-9), impostor_pairs)
    return -1.0 if allowed == impostor_pairs else float(top[allowed])


def _highest_impostors(
    rows_ND: Tensor,
    labels: Ints,
    starts: Ints,
    keep: int,
    precision: str,
    height: int,
    width: int,
    progress: Callable[[int, int], None] | None,
) -> tuple[npt.NDArray[np.float32], Ints, int]:
    """The `keep` highest impostor scores, falling, their pair numbers (row x N + column), and how many were scored again."""
    images, on = len(rows_ND), rows_ND.device
    product = _Product(rows_ND, precision, height, width)
    kept = _Highest(keep, rows_ND, product.error)
    labels_N, columns_N = torch.from_numpy(labels).to(on), torch.arange(images, device=on)
    total = images * (images - 1) // 2
    done = 0
    for start in range(0, images - 1, height):
        stop = min(start + height, images)
        mixed = max(
            stop, int(starts[labels[stop - 1] + 1])
        )  # from here on all columns are other people, and later ones
        for left in range(start, images, width):
            right = min(left + width, images)
            barred = None
            if left < mixed:
                barred = (labels_N[start:stop, None] == labels_N[left:right]) | (
                    columns_N[start:stop, None] >= columns_N[left:right]
                )
            product.tile(start, stop, left, right, barred, kept)
        done += (stop - start) * (images - stop) + (stop - start) * (stop - start - 1) // 2
        if progress is not None:
            progress(done, total)
    top, codes = kept.falling()
    return top.cpu().numpy(), codes.cpu().numpy(), kept.verified


class _Product:
    """Scores tiles and hands on what may be among the highest."""

    def __init__(self, rows_ND: Tensor, precision: str, height: int, width: int) -> None:
        self.rows_ND, self.precision = rows_ND, precision
        dimension = rows_ND.shape[1]
        self.operand, self.error = rows_ND, product_error(dimension, torch.float32) + STEP / 2
        self.float32_output = True
        if precision == "bfloat16":
            self.operand = rows_ND.bfloat16()
            # The residual of a row is exact in float32; its length is summed in float64, in parts.
            d = max(
                float((a.double() - b.double()).norm(dim=1).max())
                for a, b in zip(torch.split(rows_ND, 16_384), torch.split(self.operand, 16_384), strict=True)
            )
            self.float32_output = rows_ND.device.type == "cuda"
            rounded = 0.0 if self.float32_output else 2.0**-8 * (1 + d) ** 2
            self.error = d * (2 + d) + 4 * product_error(dimension, torch.float32) * (1 + d) ** 2 + rounded + STEP / 2
        elif precision == "float64":
            self.error = 0.0
        height, width = min(height, len(rows_ND)), min(width, len(rows_ND))
        output = torch.float32 if self.float32_output else torch.bfloat16
        self.buffer = torch.empty(height * width if precision != "float64" else 0, dtype=output, device=rows_ND.device)

    def tile(self, start: int, stop: int, left: int, right: int, barred: Tensor | None, kept: "_Highest") -> None:
        images = len(self.rows_ND)
        floor = kept.floor()
        if self.precision != "float64" and floor > -math.inf:
            shape = (stop - start, right - left)
            scores_BM = self.buffer[: shape[0] * shape[1]].view(shape)
            if self.precision == "bfloat16" and self.float32_output:
                torch.mm(self.operand[start:stop], self.operand[left:right].T, out_dtype=torch.float32, out=scores_BM)
            else:
                torch.mm(self.operand[start:stop], self.operand[left:right].T, out=scores_BM)
            if barred is not None:
                scores_BM.masked_fill_(barred, -2.0)
            scores_BM = scores_BM.float()  # the floor is a float32, which bfloat16 would round
            places = _above(scores_BM, floor, int(_DENSE * shape[0] * shape[1]))
            if places is not None:
                codes = (start + places // shape[1]) * images + left + places % shape[1]
                kept.add_products(scores_BM.view(-1)[places], codes)
                return
        for begin in range(start, stop, 256):  # float64 and its rounding hold several times the memory of float32
            end = min(begin + 256, stop)
            scores_BM = block_scores(self.rows_ND[begin:end].double(), self.rows_ND[left:right].double())
            if barred is not None:
                scores_BM.masked_fill_(barred[begin - start : end - start], -2.0)
            places = _above(scores_BM, max(kept.lowest, -1.9), scores_BM.numel())
            assert places is not None
            codes = (begin + places // (right - left)) * images + left + places % (right - left)
            kept.add_scores(scores_BM.view(-1)[places].float(), codes)


def _above(scores_BM: Tensor, floor: float, most: int) -> Tensor | None:
    """The places of a contiguous tile above the floor, row by row: (P,) int64; None where they are more than `most`."""
    if scores_BM.device.type == "cpu":  # 2 ms a tile; torch.nonzero alone takes ten times as long
        passed = scores_BM.numpy() > floor
        return None if np.count_nonzero(passed) > most else torch.from_numpy(np.flatnonzero(passed))
    places = torch.nonzero((scores_BM > floor).view(-1)).ravel()
    return None if len(places) > most else places


class _Highest:
    """The k highest of a stream of scores, exactly, with their pair numbers.

    Exact scores and products (known to within `error`) are held apart. `lowest` is at most the k-th highest score of the whole
    stream: the k-th highest of what is certain so far. Anything that cannot exceed it changes nothing.
    """

    def __init__(self, k: int, rows_ND: Tensor, error: float) -> None:
        self.k, self.rows_ND, self.error = k, rows_ND, error
        self.lowest = -math.inf
        on = rows_ND.device
        self.scores: list[tuple[Tensor, Tensor]] = [_nothing(on)]
        self.products: list[tuple[Tensor, Tensor]] = [_nothing(on)]
        self.held = self.verified = 0

    def floor(self) -> float:
        """Products that are not above this cannot belong to the highest; rounded down to float32, in which they are compared."""
        if self.lowest == -math.inf:
            return -math.inf
        return float(np.nextafter(np.float32(self.lowest - self.error), np.float32(-np.inf)))

    def add_scores(self, scores: Tensor, codes: Tensor) -> None:
        if len(scores) > self.k:
            scores, places = torch.topk(scores, self.k, sorted=False)
            codes = codes[places]
        self.scores.append((scores, codes))
        self._grow(len(scores))

    def add_products(self, products: Tensor, codes: Tensor) -> None:
        self.products.append((products, codes))
        self._grow(len(products))

    def _grow(self, number: int) -> None:
        self.held += number
        if self.held > 2 * self.k or (self.lowest == -math.inf and self.held >= self.k):
            self._shrink()
            if self.held > 2 * self.k:  # too many products within the error of the k-th highest
                self._verify()

    def _shrink(self) -> None:
        (scores, codes), (products, numbers) = _joined(self.scores), _joined(self.products)
        if len(scores) > self.k:
            scores, places = torch.topk(scores, self.k, sorted=False)
            codes = codes[places]
        certain = torch.cat([scores.double(), products.double() - self.error])
        if len(certain) >= self.k:
            self.lowest = max(self.lowest, float(torch.topk(certain, self.k, sorted=False).values.min()))
        stays = scores >= self.lowest
        possible = products.double() + self.error > self.lowest
        self.scores, self.products = [(scores[stays], codes[stays])], [(products[possible], numbers[possible])]
        self.held = int(stays.sum()) + int(possible.sum())

    def _verify(self) -> None:
        products, numbers = _joined(self.products)
        images = len(self.rows_ND)
        scores = pair_scores(self.rows_ND, numbers // images, numbers % images)
        self.verified += len(scores)
        if len(scores):
            off = float((scores.double() - products.double()).abs().max())
            if not off <= self.error:
                raise RuntimeError(
                    f"a product differs from its exact score by {off:.3g}, more than the proven {self.error:.3g}: this device does not "
                    "compute as it should; use precision='float64' and report it"
                )
        self.scores.append((scores, numbers))
        self.products = [_nothing(self.rows_ND.device)]
        self._shrink()

    def falling(self) -> tuple[Tensor, Tensor]:
        self._shrink()
        self._verify()
        scores, codes = _joined(self.scores)
        by_pair = torch.argsort(codes)
        order = by_pair[torch.argsort(scores[by_pair], descending=True, stable=True)][: self.k]
        return scores[order], codes[order]


def _nothing(device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.zeros(0, device=device), torch.zeros(0, dtype=torch.int64, device=device)


def _joined(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    return torch.cat([scores for scores, _ in parts]), torch.cat([codes for _, codes in parts])
