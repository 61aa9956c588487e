"""Partial FC: a trained class center for every identity, of which a step sees the batch's and a random share of the others.

A step draws S = round(r N) classes (at least B), those of the batch always among them (`draw`), and computes the margin softmax
over their rows alone, which are gathered a block at a time (`class_softmax`). The gradient of `weight` is a sparse tensor of the S
rows, so there is no N x D gradient, and an optimizer for rows (`attfc.training.row_optimizers`) changes those rows and their
momentum only: a row that is not sampled keeps both bit for bit, and no weight decay reaches it. Memory: N D 4 B twice (rows,
momentum), and for the step S D 4 B once (the gradient; once more with gradient accumulation a batch, once more for rows from elsewhere).
Time: three or four products of B x S x D (`class_softmax`), the gather twice, and the draw.

The rows may live in host memory or in a file (`row_store`); the softmax runs where the embeddings are. Labels that the host knows (`bring`) name the
step's rows before the network runs: they are drawn and gathered on the host meanwhile, and the loss waits for no copy.

Several ranks: each holds a block of the rows and their momentum (in its own memory, its host's memory or a file of its own). The draw is that
of one process, over all classes: every rank computes it whole (O(S) integers) and takes the part that is its own, so loss, gradients and rows
do not depend on the number of ranks, and a run goes on with another number of them. A step moves the B labels, B x 2D numbers and what
the full FC moves; with the rows on a GPU the step waits once, for the number of rows drawn here. Not taken: a draw of r N / R classes on each rank
(arcface_torch), which needs no such number, but is another draw for every number of ranks.
Source: Partial FC (arXiv 2203.15565); arcface_torch, revision 7fadd42. Differs: the draw is a function of (seed, step) and not of a generator; a
row that was not sampled rests, where PartialFC_V2 moves it by momentum and weight decay (`unsampled="move"`, at the price of an N x D gradient);
round(r N) classes, there int(r n) of each rank's n.
"""

from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Optimizer, SparseAdam
from torch.optim.optimizer import register_optimizer_step_pre_hook

from attfc.config.option import Option
from attfc.distributed import Ranks
from attfc.errors import UserError
from attfc.heads.banks.draw import draw_classes, drawn_classes
from attfc.heads.banks.row_store import DrawnRows, RowStore, sampled_rows
from attfc.heads.banks.rows_ahead import Ahead, Arriving, gathered, to_device
from attfc.heads.checked import checked
from attfc.heads.full_fc import TrainedRows
from attfc.heads.memory import HeadMemory, class_softmax_bytes
from attfc.heads.options import BlockMib, FilterAbove, FilterGap, Filtering
from attfc.losses.margins import Margin

__all__ = ["PartialFC"]


class _Drawn(NamedTuple):
    """The rows of a step.

    Attributes:
        own_S: which of this rank's block, where they live.
        first: the place of the first of them among all drawn.
        sent: the places of this rank's labels among all drawn, (B,), on their way to the device of the step; with them the rows, (S, D), that
            live elsewhere.
        moment: of which draw, and which state of the rows.
    """

    own_S: Tensor
    first: int
    sent: Arriving
    moment: tuple[int, int]


class PartialFC(DrawnRows, TrainedRows):
    """Classifier on unit embeddings and unit class centers, over a sample of the classes, with a margin.

    Args:
        embedding_size: D.
        identities: N; labels are 0 to N - 1.
        margin: margin on the right identity's cosine; owns the scale s.
        share: r, share of the identities in a step. Fewer than the batch are never taken.
        place, folder: where rows and momentum live; default: on the device of the head.
        unsampled: `move`: the gradient is dense, with zeros for the rows that were not sampled, so that any optimizer moves them by momentum and
            weight decay. With `place="device"` alone.
        seed: names the draws; draw number t is a function of (seed, t).
        filter_above, filtering, filter_gap, images, block_mib: as every head (`Head`).
        ranks: as every head; `weight` is then the block `shard` of the rows, whose gradient is that of the mean over all ranks.

    Raises:
        UserError: `share` outside (0, 1], no identity, fewer identities than ranks.

    `weight` (N, D) float32 is a parameter, drawn as `FullFC` draws it. Its gradient is sparse: train it with `attfc.RowSGD` or
    `attfc.RowAdamW`; those of torch that refuse it say so by these names. In `eval()` the loss is that of the next draw, which stays the next.

    >>> head = PartialFC(embedding_size=8, identities=100, margin=Margin(scale=16.0), share=0.1)
    >>> head(torch.randn(4, 8), torch.tensor([3, 1, 4, 1])).backward()
    >>> head.weight.grad.values().shape  # of 100 rows
    torch.Size([10, 8])
    """

    @checked(sample_rate="share=...", interclass_filtering_threshold="filter_above=...", rows="place=..., folder=...")
    def __init__(
        self,
        embedding_size: int,
        identities: int,
        margin: Margin,
        share: Annotated[
            float, Option("share of the identities that a step sees; those of the batch always", gt=0, le=1)
        ] = 0.1,
        *,
        place: Annotated[
            Literal["device", "host", "file"],
            Option(
                "where the trained centers and their momentum live; host and file bring those of a step to the device"
            ),
        ] = "device",
        folder: Annotated[
            str | Path | None,
            Option(
                "folder on a fast disk for the trained centers and their momentum", null="none; place=file needs one"
            ),
        ] = None,
        unsampled: Annotated[
            Literal["rest", "move"],
            Option("trained centers outside a step: rest, or move by momentum and weight decay, as in arcface_torch"),
        ] = "rest",
        seed: int = 0,
        filter_above: FilterAbove = None,
        filtering: Filtering = "drop",
        filter_gap: FilterGap = None,
        images: int | None = None,
        block_mib: BlockMib = 32.0,
        ranks: Ranks | None = None,
    ) -> None:
        super().__init__(
            embedding_size,
            identities,
            margin,
            RowStore(place, folder),
            filter_above=filter_above,
            filtering=filtering,
            filter_gap=filter_gap,
            images=images,
            block_mib=block_mib,
            ranks=ranks,
        )
        if unsampled == "move" and place != "device":
            raise UserError(
                f"PartialFC: unsampled=move moves all rows in every step, and place={place} brings those of a step alone: take place=device"
            )
        self.share = share
        self.place = place
        self.unsampled = unsampled
        self.seed = seed
        self.weight.register_post_accumulate_grad_hook(self._say_of_gradient)  # type: ignore[no-untyped-call]
        self._sampled = 0
        _explain_refusals()

    def classes_in_a_step(self, batch: int) -> int:
        """Return S, the classes of a step with that many samples (of all ranks): round(r N), but never fewer than those or more than N."""
        return min(self.identities, max(round(self.share * self.identities), batch))

    def footprint(self, batch: int, *, cached: bool = True) -> HeadMemory:
        """Rows where they count, and the gradient of the sampled ones."""
        everyone = batch * self.ranks.size
        sampled = min(len(self.shard), max(round(self.share * len(self.shard)), everyone))
        small = sampled * self.embedding_size * 4.0
        here = self.place == "device"
        working = class_softmax_bytes(
            sampled, everyone, self.streaming["block_mib"], cached, self.embedding_size if here else 0
        )
        # Rows from elsewhere; five int64 per class for the draw, where it is made, and its sort.
        working += (0 if here else small) + (sampled * 40 if cached or here else 0)
        held = self.weight.nbytes if self.rows.counts(cached) else 0
        gradient = small if self.unsampled == "rest" else self.weight.nbytes + small
        return HeadMemory(held, gradient, working, 0, sampled, "sampled")

    def bring(self, labels_B: Tensor, positions_B: Tensor | None, device: torch.device) -> dict[str, Ahead]:
        """Start to bring the rows of the step from host memory or a file; after the optimizer's step of the batch before."""
        every_label_B = None if self.place == "device" else self._known_labels(labels_B)
        if every_label_B is None:
            return {}
        moment = self._moment()
        return {"weight": {"drawn": self.rows.ahead(lambda: self._read(every_label_B, device, moment), device)}}

    def _moment(self) -> tuple[int, int]:
        """Return the number of the draw, and of the changes that were made to the rows."""
        return self.draws, self.weight._version

    def _read(self, every_label_B: Tensor, device: torch.device, moment: tuple[int, int]) -> _Drawn:
        """Draw where the rows live, by labels that are there too, and start to bring their rows."""
        count = self.classes_in_a_step(len(every_label_B))
        sampled_S = draw_classes(every_label_B, self.identities, count, self.seed, moment[0])
        if self.ranks.size == 1 or len(sampled_S) == self.identities:
            first, stop = self.shard.start, self.shard.stop
        else:
            # How many are ours is not known beforehand: here the host waits for the device, if the rows are there.
            ends = torch.tensor([self.shard.start, self.shard.stop], device=sampled_S.device)
            first, stop = torch.searchsorted(sampled_S, ends).tolist()
        own_S = sampled_S[first:stop] - self.shard.start
        sent: tuple[Tensor, ...] = (torch.searchsorted(sampled_S, self.ranks.own(every_label_B)),)
        if self.place != "device":
            sent += (gathered(self.weight.detach(), own_S, device),)
        return _Drawn(own_S, first, to_device(sent, device), moment)

    def _rows_of_step(
        self, labels_B: Tensor, ahead: dict[str, Ahead] | None
    ) -> tuple[Tensor, Tensor | None, Tensor, int]:
        if ahead:
            drawn = ahead["weight"]["drawn"].result()
            if drawn.moment != self._moment():
                raise UserError(
                    "PartialFC: bring fetched the rows of another step: call bring for each batch, after the optimizer's step of the one before"
                )
        else:
            every_label_B = self.ranks.gather(labels_B)
            self._check_labels_below(every_label_B)
            drawn = self._read(every_label_B.to(self.weight.device), labels_B.device, self._moment())
        if self.training:
            self.draws += 1
            self._sampled = len(drawn.own_S)
            if self.place == "file":
                number, count = self.draws, self.classes_in_a_step(len(labels_B) * self.ranks.size)
                self.rows.thread.later(lambda: self._touch(number, count))
        places_B, *rows_SD = drawn.sent.here()
        if not rows_SD:
            return self.weight, drawn.own_S, places_B, drawn.first
        return sampled_rows(self.weight, drawn.own_S, *rows_SD), None, places_B, drawn.first

    def _touch(self, number: int, count: int) -> None:
        """Bring the pages of a draw into memory: what a step draws beside its batch's own can be known ahead."""
        if count < self.identities:
            drawn = drawn_classes(self.identities, count, self.seed, number, torch.device("cpu"))
            self.rows.touch(self.shard.select(drawn[drawn < self.identities][:count]) - self.shard.start)

    def _say_of_gradient(self, weight: nn.Parameter) -> None:
        """Say that the rows of the gradient are ascending and different: autograd forgets it, and finding out takes a sort.

        After one backward they are; several (gradient accumulation) append their rows, and the optimizer adds them up. A dense one names all.
        """
        gradient = weight.grad
        if gradient is not None and gradient.is_sparse and gradient._nnz() == self._sampled:
            gradient._coalesced_(True)
        if gradient is not None and self.unsampled == "move":
            weight.grad = gradient.to_dense()

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, share={self.share:g}"


@cache
def _explain_refusals() -> None:
    """From now on torch's optimizers that refuse sparse gradients name those that take them; torch's own message names neither head nor remedy."""
    register_optimizer_step_pre_hook(_refuse_by_name)


def _refuse_by_name(optimizer: Optimizer, *_: Any) -> None:
    kind = type(optimizer)
    if not kind.__module__.startswith("torch.optim") or kind is SparseAdam:
        return
    for group in optimizer.param_groups:
        decay = group.get("weight_decay", 0)
        if kind in (SGD, Adagrad) and not decay:
            continue
        if any(parameter.grad is not None and parameter.grad.is_sparse for parameter in group["params"]):
            with_decay = f" with weight_decay={decay:g}" if kind in (SGD, Adagrad) else ""
            instead = "RowAdamW(parameters, lr=..., weight_decay=...)"
            if "Adam" not in kind.__name__:
                instead = "RowSGD(parameters, lr=..., momentum=..., weight_decay=...)"
            raise UserError(
                f"torch.optim.{kind.__name__}{with_decay} cannot train rows with a sparse gradient, such as those of PartialFC: use attfc.{instead}"
            )
