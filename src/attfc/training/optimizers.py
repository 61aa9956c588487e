"""Optimizers and their parameter groups.

Every parameter that takes a gradient is in exactly one group, shared ones once. Norm and bias parameters are told by shape: fewer than two
dimensions (weights of BatchNorm, LayerNorm and PReLU, and every bias). Weight decay 5e-4 on everything is what arcface_torch does; sparing
norms and biases is the option (arXiv 1812.01187, section 3.1). A head without parameters (AttFC) adds nothing. Parameters with sparse
gradients (the rows of Partial FC) are trained row by row: `row_optimizers`.

Where torch's fused kernels pay, they take the step: one pass over weight, gradient and state, no temporary of a parameter's size. On CUDA always
(untested). On a processor SGD: bits are equal, but for what is left where 64 does not divide a
parameter's count, so a group with such a parameter keeps the plain kernel. Not taken there: AdamW's, which is faster too and rounds otherwise
(2e-7 of a weight after 8 steps).
"""

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from attfc.errors import UserError
from attfc.training.row_optimizers import RowAdamW, RowSGD, Stores

__all__ = ["build_optimizer", "parameter_groups", "steps_in_place", "trunk_of"]


def parameter_groups(
    modules: Sequence[nn.Module],
    weight_decay: float = 5e-4,
    decay_norms_and_biases: bool = True,
    *,
    head_learning_rate_scale: float = 1.0,
    trunk_rate: float = 1.0,
) -> list[dict[str, Any]]:
    """Sort the parameters of `modules` into optimizer groups.

    Args:
        modules: the query encoder first; the others are heads.
        weight_decay: of the decayed parameters, >= 0.
        decay_norms_and_biases: False: parameters of fewer than two dimensions get no decay.
        head_learning_rate_scale: learning rate of the heads as a multiple of the encoder's, > 0.
        trunk_rate: learning rate of the encoder's trunk (`trunk_of`) as a share of the encoder's; its groups follow those of the rest.

    Returns:
        Groups with "params", "weight_decay" and "learning_rate_scale"; no group is empty; order follows `modules`.

    Raises:
        UserError: a negative decay or scale, or nothing to train.

    >>> groups = parameter_groups([nn.Linear(2, 3), nn.Linear(3, 4)], 0.1, False, head_learning_rate_scale=10.0)
    >>> [(len(group["params"]), group["weight_decay"], group["learning_rate_scale"]) for group in groups]
    [(1, 0.1, 1.0), (1, 0.0, 1.0), (1, 0.1, 10.0), (1, 0.0, 10.0)]
    """
    if weight_decay < 0:
        raise UserError(f"weight decay {weight_decay} is negative: use 0 or more, such as 0.0005")
    if head_learning_rate_scale <= 0:
        raise UserError(f"head learning rate scale {head_learning_rate_scale} must be above 0: 1 leaves it as it is")
    seen: set[int] = set()
    groups: list[dict[str, Any]] = []
    for number, module in enumerate(modules):
        scale = 1.0 if number == 0 else head_learning_rate_scale
        parts = [(list(module.parameters()), scale)]
        if number == 0 and trunk_rate != 1.0:
            trunk = trunk_of(module)
            parts = [(parts[0][0][len(trunk) :], scale), (trunk, trunk_rate)]
        for part, rate in parts:
            decayed: list[nn.Parameter] = []
            spared: list[nn.Parameter] = []
            for parameter in part:
                if parameter.requires_grad and id(parameter) not in seen:
                    seen.add(id(parameter))
                    (spared if parameter.ndim < 2 and not decay_norms_and_biases else decayed).append(parameter)
            groups += [
                {"params": parameters, "weight_decay": decay, "learning_rate_scale": rate}
                for parameters, decay in ((decayed, weight_decay), (spared, 0.0))
                if parameters
            ]
    if not groups:
        raise UserError(
            "nothing to train: no parameter takes a gradient (a frozen backbone needs a head with parameters)"
        )
    return groups


def trunk_of(network: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of a network below its last matrix: all but what makes the embedding of the features.

    >>> [tuple(each.shape) for each in trunk_of(nn.Sequential(nn.Linear(2, 3), nn.PReLU(), nn.Linear(3, 4), nn.BatchNorm1d(4)))]
    [(3, 2), (3,), (1,)]
    """
    parameters = list(network.parameters())
    matrices = [place for place, parameter in enumerate(parameters) if parameter.ndim >= 2]
    return parameters[: matrices[-1]] if matrices else []


def build_optimizer(
    name: Literal["sgd", "adamw"],
    groups: Iterable[dict[str, Any]],
    *,
    learning_rate: float = 0.1,
    momentum: float = 0.9,
    stores: Stores | None = None,
) -> Optimizer:
    """Build SGD (with momentum) or AdamW over `groups` of `parameter_groups`.

    Args:
        name: "sgd" | "adamw".
        groups: a group's "learning_rate_scale" multiplies `learning_rate`.
        learning_rate: > 0; 0.1 suits SGD at batch 512, 0.001 AdamW.
        momentum: of SGD, in [0, 1).
        stores: where the optimizer state of a parameter lives, if not beside it (`RowStore`).

    Raises:
        UserError: unknown name, or a number out of its range.
    """
    if learning_rate <= 0:
        raise UserError(f"learning rate {learning_rate} must be above 0: 0.1 suits SGD, 0.001 AdamW")
    if not 0.0 <= momentum < 1.0:
        raise UserError(f"SGD momentum {momentum} is outside [0, 1): 0.9 is the usual one")
    scaled = [
        {
            **group,
            "lr": learning_rate * group.get("learning_rate_scale", 1.0),
            "fused": all(_fused(name, each) for each in group["params"]) or None,
        }
        for group in groups
    ]
    if name == "sgd":
        return RowSGD(scaled, lr=learning_rate, momentum=momentum, stores=stores)
    if name == "adamw":
        return RowAdamW(scaled, lr=learning_rate, stores=stores)
    raise UserError(f"optimizer {name!r} is unknown: use 'sgd' or 'adamw'")


def steps_in_place(name: str, device: torch.device) -> bool:
    """Whether that optimizer has a fused kernel on `device`, which makes no temporary of a parameter's size."""
    return device.type == "cuda" or (device.type == "cpu" and name == "sgd")


def _fused(name: str, parameter: Tensor) -> bool:
    whole = parameter.device.type != "cpu" or parameter.numel() % 64 == 0
    return whole and parameter.is_floating_point() and steps_in_place(name, parameter.device)
