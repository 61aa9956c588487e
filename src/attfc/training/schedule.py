"""Learning rate by step: linear warm-up, then cosine, polynomial or constant.

The factor is a plain function of the step, so a resumed run needs nothing but its step number. Factors multiply the learning rate of each
parameter group. Sources: cosine without restarts, arXiv 1608.03983; polynomial with power 2, arcface_torch
before April 2023 (1 since); warm-up, arXiv 1706.02677.
"""

import math
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from attfc.errors import UserError

__all__ = ["build_schedule", "learning_rate_factor"]

Kind = Literal["cosine", "polynomial", "constant"]


def learning_rate_factor(
    step: int, total: int, warmup: int = 0, kind: Kind = "cosine", power: float = 2.0, final: float = 0.0
) -> float:
    """Return the share of the full learning rate that step number `step` uses (the first is 0).

    warm-up: (step + 1) / (warmup + 1), so that no step is wasted at zero and step `warmup` is the first at the full rate;
    then with x = (step - warmup) / (total - warmup):
    cosine: final + (1 - final) (1 + cos(pi x)) / 2;  polynomial: final + (1 - final) (1 - x)^power;  constant: 1.

    Args:
        step: >= 0; from `total` on the factor stays at `final`.
        total: steps of the whole run, warm-up included.
        warmup: steps of warm-up, < total.
        kind: "cosine" | "polynomial" | "constant".
        power: of the polynomial, > 0.
        final: last factor, in [0, 1]; unused by constant.

    Raises:
        UserError: warmup >= total, or an option out of its range.

    >>> [learning_rate_factor(step, total=6, warmup=2, kind="polynomial", power=1.0) for step in range(7)]
    [0.3333333333333333, 0.6666666666666666, 1.0, 0.75, 0.5, 0.25, 0.0]
    """
    if kind not in ("cosine", "polynomial", "constant"):
        raise UserError(f"learning rate schedule {kind!r} is unknown: use 'cosine', 'polynomial' or 'constant'")
    if warmup < 0 or warmup >= total:
        raise UserError(
            f"warm-up of {warmup} steps does not fit a run of {total} steps: use 0 <= warm-up < steps (fewer warm-up epochs, or a longer run)"
        )
    if power <= 0:
        raise UserError(f"schedule power {power} must be above 0: 2 is the usual one, 1 is a straight line")
    if not 0.0 <= final <= 1.0:
        raise UserError(f"final learning rate share {final} is outside [0, 1]: 0 ends at zero, 1 never falls")
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if kind == "constant":
        return 1.0
    x = min(1.0, (step - warmup) / (total - warmup))
    falling = 0.5 * (1.0 + math.cos(math.pi * x)) if kind == "cosine" else (1.0 - x) ** power
    return final + (1.0 - final) * falling


def build_schedule(
    optimizer: Optimizer,
    kind: Kind = "cosine",
    *,
    total: int,
    warmup: int = 0,
    power: float = 2.0,
    final: float = 0.0,
) -> LambdaLR:
    """Return a scheduler that sets every group's rate to its own times `learning_rate_factor`; call ``step()`` after each optimizer step.

    Raises:
        UserError: as `learning_rate_factor`, at once and not in mid-run: LambdaLR asks for the first factor.
    """
    # A plain function: LambdaLR would store a callable object's attributes in its state, and a resume would take up the old schedule.
    return LambdaLR(optimizer, lambda step: learning_rate_factor(step, total, warmup, kind, power, final))
