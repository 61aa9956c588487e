"""One optimizer step: the same for a run, a study, a benchmark and anybody's own loop.

(1) the key encoder follows the query encoder, (2) the keys of the batch are embedded without gradient in one pass, (3) the queries are embedded,
(4) the head turns both into a loss, (5) backward, clip, optimizer. With gradient accumulation a step takes several batches and descends their
mean loss. No head is known by name: one with ``keys_per_query == 0`` gets no keys, and costs no key passes.

Several ranks: each brings its share of the batch, and DistributedDataParallel averages the gradients of the query encoder once per step.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from attfc.data.loader import Batch
from attfc.data.transforms import Augment
from attfc.distributed import ALONE, Ranks, data_parallel, grad_scaler
from attfc.heads.head import Head
from attfc.losses.teacher import TeacherLoss
from attfc.precision import autocast, tuned
from attfc.training.batch_norm import average_running_statistics
from attfc.training.momentum import MomentumPair

__all__ = ["Augmented", "Inputs", "TrainStep", "head_alone"]


@dataclass(frozen=True)
class Inputs:
    """What the networks and the head see of a batch, on the device of both.

    Attributes:
        queries: (B, ...) float, as the query encoder takes them.
        labels: int64 (B,).
        keys: (B, K, ...) float, as the key encoder takes them; None where the head wants none.
        positions: int64 (B,) of the queries in the store; for heads that remember images.
        targets: (B, E) float, a teacher's embeddings of the queries' images; where there is a teacher to follow.
    """

    queries: Tensor
    labels: Tensor
    keys: Tensor | None = None
    positions: Tensor | None = None
    targets: Tensor | None = None


@dataclass(frozen=True)
class Augmented:
    """Turns a batch of the loader into `Inputs`: on the device, keys augmented before queries; `targets_of` gives those of positions."""

    augment: Augment
    device: torch.device
    channels_last: bool = False
    targets_of: Callable[[Tensor], Tensor] | None = None

    def __call__(self, batch: Batch) -> Inputs:
        """Move, augment, and lay out the images of a batch."""
        seeds, labels, positions = (
            numbers.to(self.device, non_blocking=True) for numbers in (batch.seeds, batch.labels, batch.positions)
        )
        keys = None
        if batch.keys.shape[1]:
            images = self._images(batch.keys.flatten(0, 1), seeds[:, 1:].reshape(-1))
            keys = images.view(*batch.keys.shape[:2], *images.shape[1:])
        targets = self.targets_of and self.targets_of(batch.positions).to(self.device, non_blocking=True)
        return Inputs(self._images(batch.queries, seeds[:, 0]), labels, keys, positions, targets)

    def _images(self, images: Tensor, seeds: Tensor) -> Tensor:
        images = self.augment(images.to(self.device, non_blocking=True), seeds)
        return images.contiguous(memory_format=torch.channels_last) if self.channels_last else images


class TrainStep:
    """Takes optimizer steps: ``loss = step([batch])``.

    Args:
        pair: query encoder and key encoder, on the device of the training.
        head: any head of attfc.heads, on the same device.
        optimizer: over the parameters of the query encoder and the head.
        prepare: batch -> `Inputs`, called when its turn comes, such as `Augmented`; default: the batches are `Inputs`.
        device: of pair and head.
        autocast_dtype: bfloat16 or float16 for mixed precision of the encoders (float16 brings a gradient scaler), None for float32.
        clip: largest gradient norm of the query encoder; 0 is off.
        ranks: the processes that train together.
        tuned: take the steps as `attfc.precision.tuned` says.
        teacher_loss: of embeddings and targets, added to the head's; its parameters are among the optimizer's.

    >>> _ = torch.manual_seed(0)
    >>> from attfc.heads import FullFC
    >>> from attfc.losses import CosFace
    >>> pair, head = MomentumPair(nn.Linear(3, 8)), FullFC(8, 5, CosFace(16.0, 0.1))
    >>> optimizer = torch.optim.SGD([*pair.query.parameters(), *head.parameters()], lr=0.1)
    >>> step = TrainStep(pair, head, optimizer)
    >>> losses = [step([Inputs(torch.eye(3), torch.tensor([0, 1, 2]))]) for _ in range(9)]
    >>> bool(losses[-1] < losses[0])
    True
    """

    def __init__(
        self,
        pair: MomentumPair,
        head: Head,
        optimizer: Optimizer,
        prepare: Callable[[Any], Inputs] | None = None,
        *,
        device: torch.device = torch.device("cpu"),  # noqa: B008
        autocast_dtype: torch.dtype | None = None,
        clip: float = 5.0,
        ranks: Ranks = ALONE,
        tuned: bool = False,
        teacher_loss: TeacherLoss | None = None,
    ) -> None:
        self.pair, self.head, self.optimizer, self.prepare = pair, head, optimizer, prepare
        self.device, self.autocast_dtype, self.clip, self.ranks = device, autocast_dtype, clip, ranks
        self.tuned = tuned
        self.scaler = grad_scaler(device, autocast_dtype is torch.float16, ranks)
        self._encoder = data_parallel(pair.query, ranks, device)
        self._scoring = data_parallel(head, ranks, device, apart=head.row_shards())
        self.teacher_loss = teacher_loss
        self._following = None if teacher_loss is None else data_parallel(teacher_loss, ranks, device)

    def __call__(self, batches: Sequence[Any]) -> Tensor:
        """Take one optimizer step over the mean loss of `batches`; return that loss, detached, without waiting for the device.

        It is NaN if the gradient was not finite. Several ranks: the loss of this rank's batches; the step is that of all ranks' mean.
        """
        with tuned(self.device, self.tuned):
            return self._step(batches)

    def _step(self, batches: Sequence[Any]) -> Tensor:
        if self.head.keys_per_query:
            self.pair.update()
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        for number, batch in enumerate(batches, 1):
            with self._without_reduction() if number < len(batches) else contextlib.nullcontext():
                loss = self.loss(batch) / len(batches)
                self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total += loss.detach()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(list(self.pair.query.parameters()), self.clip or math.inf)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        # A replicated head has figures of its rank's share too (AdaFace's norms); one in shards saw the whole batch. Kept statistics are equal,
        # and their mean over three ranks would round.
        own = [] if self._scoring is self.head else [self.head]
        average_running_statistics(own if self.pair.keep_statistics else [self.pair, *own], self.ranks)
        # A gradient that is not finite makes the loss so too, and a run stops before the weights are saved. With a scaler
        # it is no fault: that step was skipped and the next is scaled down.
        return total if self.scaler.is_enabled() else total + 0.0 * norm

    def loss(self, batch: Any) -> Tensor:
        """Return the loss of one batch, with gradient."""
        # Labels of the loader are known to the host: rows that live there come while the encoders run.
        known = (batch.labels, batch.positions) if isinstance(batch, Batch | Inputs) else None
        ahead = None if known is None else self.head.bring(*known, self.device)
        seen: Inputs = batch if self.prepare is None else self.prepare(batch)
        with autocast(self.device, self.autocast_dtype):
            keys = None if seen.keys is None else self.pair.embed_keys(seen.keys)
            embeddings = self._encoder(seen.queries)
        at: dict[str, Any] = {"positions_B": seen.positions} if self.head.takes_positions else {}
        if ahead:
            at["ahead"] = ahead
        loss: Tensor = self._scoring(embeddings, seen.labels, keys, **at)
        return loss if self._following is None else loss + self._following(embeddings, seen.targets)

    def statistics(self) -> dict[str, float]:
        """Return figures of the last step, the head's and those of the teacher's loss; waits for the device."""
        return self.head.statistics() | ({} if self.teacher_loss is None else self.teacher_loss.statistics())

    @contextlib.contextmanager
    def _without_reduction(self) -> Iterator[None]:
        """Gradients add up on this rank; the last batch of a step reduces them all."""
        with contextlib.ExitStack() as stack:
            for module in (self._encoder, self._scoring, self._following):
                if isinstance(module, nn.parallel.DistributedDataParallel):
                    stack.enter_context(module.no_sync())
            yield


def head_alone(head: Head, optimizer: Optimizer | None, device: torch.device) -> TrainStep:
    """Return the step of a head without encoders: the queries and keys of its `Inputs` are embeddings."""
    if optimizer is None:  # the head has nothing to train
        optimizer = torch.optim.SGD([torch.zeros(0)], lr=0.0)
    return TrainStep(MomentumPair(nn.Identity()), head, optimizer, device=device)
