"""What all ranks say about a step: its loss, whether somebody was asked to stop, and how many broken images it met.

One small sum per step tells everybody, so all act at the same step. The answer is looked at when the next step has been launched: an
accelerator never waits for the host.
"""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attfc.data.loader import Batch
from attfc.data.stores.store import Store
from attfc.distributed import AgreedError, Ranks
from attfc.errors import UserError
from attfc.training.checkpoints.checkpoint import latest_checkpoint

__all__ = ["LabelWatch", "StepReport"]

DISAGREEING_SHARE = 0.03  # of the images, from which on labels look wrong
_FROM, _UNTIL, _STEPS = 1.5, 2.0, 150  # epochs, and steps in a small set: before that a network knows too little


class StepReport:
    """A step as all ranks know it: summed over them and sent to the host without waiting for it. `read` it once the device has brought the figures.

    Args:
        step: its number.
        loss: of this rank.
        batches: of this rank.
        asked: this rank was asked to stop.
        ranks: those that take the step together.

    Attribute `figures`: on the host: mean loss, ranks asked to stop, broken images.
    """

    def __init__(self, step: int, loss: Tensor, batches: list[Batch], asked: bool, ranks: Ranks) -> None:
        self.step, self.loss, self.batches, self.ranks = step, loss, batches, ranks
        self.heard = False
        facts = [float(asked), float(sum(len(batch.broken) for batch in batches))]
        # Filled on the device: a copy from ordinary memory might wait.
        figures = ranks.sum(torch.stack([loss / ranks.size, *(loss.new_full((), fact) for fact in facts)]))
        self._arrived: Any = None
        if figures.device.type == "cuda":
            figures = torch.empty(len(figures), pin_memory=True).copy_(figures, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()
        self.figures = figures.to("cpu")

    def read(self) -> tuple[float, bool, int]:
        """Return the mean loss, whether a rank was asked to stop, and the broken images of all ranks; waits for the device."""
        self.heard = True
        if self._arrived is not None:
            self._arrived.synchronize()
        loss, asked, broken = self.figures.tolist()
        return loss, asked > 0, int(broken)

    def fault(self, loss: float, store: Store, run_folder: Path) -> UserError:
        """Return the error of a loss that is not finite: the step, the positions of the samples, what to try; all ranks say the same."""
        positions = [int(position) for batch in self.batches for position in batch.positions]
        shown = ", ".join(map(str, positions[:16]))
        if len(positions) > 16:
            shown += f", ... ({len(positions)} in all)"
        last = latest_checkpoint(run_folder / "checkpoints")
        saved = "the last checkpoint is intact" if last else "nothing was saved so far"
        text = (
            f"the loss or its gradient is {loss} at step {self.step}, in the batch of sample positions {shown} "
            f"(the first is {store.where(positions[0])}); {saved}. "
            "Try a smaller optimizer.learning_rate, a longer schedule.warmup_epochs, optimizer.clip=1, or precision.amp=none"
        )
        if self.ranks.size == 1:
            return UserError(text)
        said = self.ranks.objects((math.isfinite(float(self.loss)), text))
        return AgreedError(next((theirs for finite, theirs in said if not finite), text))


class LabelWatch:
    """Says once, after two epochs and 150 steps, that labels look wrong, from how many images lie far from the center of their label.

    The border lies between what sets with right labels and sets with a tenth of wrong ones showed in the second half of the second epoch. These
    were single trial runs, on generated vectors and on faces, and no script repeats them.

    Args:
        sets_aside: whether the head does so already with images that fit another person better.

    >>> watch = LabelWatch()
    >>> [watch.note(200 * epoch, epoch, 0.2) is not None for epoch in (0.8, 1.6, 1.9, 2.1, 2.5)]
    [False, False, False, True, False]
    """

    def __init__(self, sets_aside: bool = False) -> None:
        self.sets_aside = sets_aside
        self._since, self._said = (0.0, 0.0), False
        self._shares: list[float] = []

    def note(self, step: float, epoch: float, share: float | None) -> str | None:
        """Return the advice when it is due.

        Args:
            step, epoch: of a logged step. share: `disagreeing_share` of the head since the logged step before; None: it has none.
        """
        (first, since), self._since = self._since, (step, epoch)
        if share is None or self._said or since < _FROM or first < _STEPS:
            return None
        self._shares.append(share)
        if epoch < _UNTIL:
            return None
        self._said = True
        mean = sum(self._shares) / len(self._shares)
        if mean < DISAGREEING_SHARE:
            return None
        found = f"{mean:.0%} of the images do not look like the others of their label (cosine to its center below 0.1): labels may be wrong. "
        listed = "`attfc data clean DATA --model RUN` lists them when the run is done"
        if self.sets_aside:
            return f"{found}Those that fit another person better are set aside if they are a tenth or more. {listed}: train again without them"
        return f"{found}{listed}; head.filter_above=0.3 head.filter_gap=0.2 sets those aside that fit another person better"

    def state_dict(self) -> dict[str, Any]:
        """Return what it has seen, so that a resumed run goes on watching and says nothing twice."""
        return {"since": self._since, "said": self._said, "shares": self._shares}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a saved state; that of an earlier version is empty."""
        step, epoch = map(float, state.get("since", self._since))
        self._since, self._said = (step, epoch), bool(state.get("said", False))
        self._shares = [float(share) for share in state.get("shares", [])]
