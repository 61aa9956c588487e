"""Ranks with a fault: as a program for a launcher (FAULTY_RANK raises in FAULTY_STEP), and as a function of ranks without one."""

import os
from pathlib import Path
from typing import Any

from torch import Tensor

from attfc import cli
from attfc.distributed import Ranks
from attfc.errors import UserError
from attfc.training.trainer import Trainer

from_trainer = Trainer.train_step


def raise_in_step(self: Trainer, batches: list[Any]) -> Tensor:
    if self.step + 1 == int(os.environ["FAULTY_STEP"]) and os.environ["RANK"] == os.environ["FAULTY_RANK"]:
        raise ZeroDivisionError("the fault of the test")
    return from_trainer(self, batches)


def lose(overrides: list[str], output: str) -> None:
    """Train; rank 1 is gone in the middle of step 4, and what rank 0 then says it leaves in a file."""
    from .workers import train

    def leave_in_step(self: Trainer, batches: list[Any]) -> Tensor:
        if self.step + 1 == 4 and self.ranks.rank == 1:
            os._exit(9)
        return from_trainer(self, batches)

    Trainer.train_step = leave_in_step  # type: ignore[method-assign]
    try:
        train(overrides, output)
    except UserError as error:
        (Path(output) / f"said_by_{Ranks.world().rank}").write_text(str(error))


if __name__ == "__main__":
    Trainer.train_step = raise_in_step  # type: ignore[method-assign]
    cli.main()
