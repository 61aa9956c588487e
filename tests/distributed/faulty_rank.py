"""`attfc` with a fault in one rank, for a launcher to start: FAULTY_RANK raises in FAULTY_STEP."""

import os

from attfc import cli
from attfc.training.trainer import Trainer

original = Trainer.train_step


def train_step(self, batches):
    if self.step + 1 == int(os.environ["FAULTY_STEP"]) and os.environ["RANK"] == os.environ["FAULTY_RANK"]:
        raise ZeroDivisionError("the fault of the test")
    return original(self, batches)


if __name__ == "__main__":
    Trainer.train_step = train_step
    cli.main()
