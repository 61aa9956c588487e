"""SGD and AdamW in which a parameter with a sparse gradient is trained row by row: what the gradient does not name is not touched.

`torch.optim.SGD` turns the momentum of a sparse gradient into a sparse tensor and refuses weight decay, `SparseAdam` knows neither weight
decay nor other parameters. Here parameters with dense gradients go the way of the parent class, unchanged; for one with a
sparse COO gradient (the rows of Partial FC) each row has an optimizer of its own, whose clock ticks only in the steps that name the row:
momentum, weight decay and the step count of AdamW's bias correction rest while the row is absent, and go on from where they
were when it comes again. With every row named in every step this is the dense optimizer. The state is dense and named as the
parent names it (`momentum_buffer`; `exp_avg`, `exp_avg_sq`, `step`), and `row_steps` (N,) for AdamW.
Cost: reads and writes of the named rows and their state; temporaries of one block of rows.

Not taken: a hook of the head that the trainer calls with the learning rate. The gradient is the contract: accumulation adds sparse
gradients, the scaler unscales and skips them, the schedule, groups, decay and state_dict are those of any parameter, and a trainer that
has never heard of rows is right.
Source: the update of Partial FC (arXiv 2203.15565) with SGD; resting momentum as in arcface_torch's partial_fc.py, until 2023. Its PartialFC_V2 has a
dense gradient with zeros, so that rows which were not sampled move too, by momentum and weight decay.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from attfc.heads.banks.row_store import RowStore

__all__ = ["RowAdamW", "RowSGD"]

Stores = Mapping[Tensor, RowStore]
Parameters = Iterable[Tensor] | Iterable[dict[str, Any]]
State = dict[str, Any]
_BLOCK_BYTES = {"cpu": 4 << 20}  # of a block of rows: a few such fit a cache; elsewhere fewer, larger launches
_BLOCK_BYTES_ELSEWHERE = 64 << 20


class _RowWise(Optimizer):
    """The parent's optimizer (the class behind this one) for dense gradients, and `_update_rows` for sparse ones."""

    def __init__(self, params: Parameters, stores: Stores | None, **options: Any) -> None:
        super().__init__(params, **options)
        self.stores: Stores = stores or {}

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; a closure is evaluated first."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        sparse: list[tuple[Tensor, Tensor, State]] = []
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.grad.is_sparse:
                    sparse.append((parameter, parameter.grad, group))
                    parameter.grad = None
            if group["fused"] and group.get("momentum"):
                self._complete_momentum(group)
        dense_step: Any = super().step
        if getattr(
            dense_step, "hooked", False
        ):  # torch wraps the parent's step too once a plain parent exists: hooks would run twice
            dense_step = dense_step.__func__.__wrapped__.__get__(self)
        try:
            dense_step()
        finally:
            for parameter, gradient, _ in sparse:
                parameter.grad = gradient
        # Last: rows of the host are updated while the device works on what was asked of it.
        for parameter, gradient, group in sparse:
            self._update(parameter, gradient.coalesce(), group)  # at once if the head vouched for it
        return loss

    def _update(self, parameter: Tensor, gradient: Tensor, group: State) -> None:
        state, (rows, values) = self.state[parameter], (gradient.indices()[0], gradient.values())
        self._prepare(parameter, state, group)
        # A block at a time, so that temporaries stay small and in cache.
        bytes_a_row = max(1, values[:1].numel() * values.element_size())
        block = max(1, _BLOCK_BYTES.get(parameter.device.type, _BLOCK_BYTES_ELSEWHERE) // bytes_a_row)
        for part in zip(torch.split(rows, block), torch.split(values, block), strict=True):
            self._update_rows(parameter, *part, state, group)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a saved state; state that lives in a store is copied into it, if it is not there already.

        Which kernel steps is this device's affair, not the saved run's. A fused one wants state laid out as the parameter is, and AdamW's count of
        steps on the device.
        """
        fused = [group["fused"] for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, kernel in zip(self.param_groups, fused, strict=True):
            group["fused"] = kernel
            for parameter in group["params"]:
                state, store = self.state.get(parameter, {}), self.stores.get(parameter)
                if kernel and isinstance(state.get("step"), Tensor):
                    state["step"] = state["step"].to(parameter.device)
                for name, value in state.items():
                    if not isinstance(value, Tensor) or value.shape != parameter.shape:
                        continue
                    there = value.stride() == parameter.stride() if store is None else store.holds(value)
                    if not there:
                        state[name] = self._zeros_like(parameter).copy_(value)

    def _complete_momentum(self, group: State) -> None:
        """Give zeros to parameters that get their first gradient after others of the group did: a fused kernel wants all momenta or none."""
        dense = [each for each in group["params"] if each.grad is not None]
        missing = [each for each in dense if self.state[each].get("momentum_buffer") is None]
        if len(missing) < len(dense):
            for parameter in missing:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    def _zeros_like(self, parameter: Tensor) -> Tensor:
        store = self.stores.get(parameter)
        if store is None:
            return torch.zeros_like(parameter)
        return store.zeros(*parameter.shape, dtype=parameter.dtype, device=parameter.device)

    def _prepare(self, parameter: Tensor, state: State, group: State) -> None:
        """Make what is missing of the state of a parameter with a sparse gradient."""
        raise NotImplementedError

    def _update_rows(self, parameter: Tensor, rows: Tensor, values: Tensor, state: State, group: State) -> None:
        raise NotImplementedError


class RowSGD(_RowWise, SGD):
    """SGD with momentum and weight decay, row by row for sparse gradients.

    g = gradient + decay w;  m = momentum m + g;  w = w - lr m, for the rows named by the gradient.

    Args:
        params, lr, momentum, weight_decay: as `torch.optim.SGD`; `params` are parameters, or groups such as `parameter_groups` makes.
        stores: where the state of a parameter is to live, for those whose rows are not ordinary memory: `{head.weight: head.rows}`.

    >>> rows = torch.nn.Parameter(torch.ones(3, 1))
    >>> rows.grad = torch.sparse_coo_tensor([[2]], [[1.0]], (3, 1), check_invariants=True)
    >>> RowSGD([rows], lr=0.1, weight_decay=0.5).step()
    >>> rows.flatten().tolist()  # only the row that the gradient names moved, and decayed
    [1.0, 1.0, 0.8500000238418579]
    """

    def __init__(
        self,
        params: Parameters,
        lr: float,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        *,
        stores: Stores | None = None,
    ) -> None:
        super().__init__(params, stores, lr=lr, momentum=momentum, weight_decay=weight_decay)

    def _prepare(self, parameter: Tensor, state: State, group: State) -> None:
        if group["momentum"] and state.get("momentum_buffer") is None:
            state["momentum_buffer"] = self._zeros_like(parameter)

    def _update_rows(self, parameter: Tensor, rows: Tensor, values: Tensor, state: State, group: State) -> None:
        old = parameter.index_select(0, rows)
        step = values
        if group["weight_decay"]:
            step = step.add(old, alpha=group["weight_decay"])
        if group["momentum"]:
            buffer = state["momentum_buffer"]
            step = buffer.index_select(0, rows).mul_(group["momentum"]).add_(step)
            buffer.index_copy_(0, rows, step)
        parameter.index_copy_(0, rows, old.add_(step, alpha=-group["lr"]))


class RowAdamW(_RowWise, AdamW):
    """AdamW, row by row for sparse gradients; arguments as `torch.optim.AdamW`, and `stores` as `RowSGD`."""

    def __init__(
        self,
        params: Parameters,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        stores: Stores | None = None,
    ) -> None:
        super().__init__(params, stores, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def _prepare(self, parameter: Tensor, state: State, group: State) -> None:
        for name in ("exp_avg", "exp_avg_sq"):
            if name not in state:
                state[name] = self._zeros_like(parameter)
        taken = state.setdefault("step", torch.zeros(()))  # the parameter's; a loaded one may be of a dense run
        if "row_steps" not in state:
            state["row_steps"] = torch.full((len(parameter),), float(taken), device=parameter.device)
        taken += 1

    def _update_rows(self, parameter: Tensor, rows: Tensor, values: Tensor, state: State, group: State) -> None:
        beta1, beta2 = group["betas"]
        steps = state["row_steps"].index_select(0, rows).add_(1)
        state["row_steps"].index_copy_(0, rows, steps)
        steps = steps.double().unsqueeze(1)  # 1 - 0.999^t cancels in float32
        old = parameter.index_select(0, rows).mul_(1 - group["lr"] * group["weight_decay"])
        mean = state["exp_avg"].index_select(0, rows).lerp_(values, 1 - beta1)
        square = state["exp_avg_sq"].index_select(0, rows).mul_(beta2).addcmul_(values, values, value=1 - beta2)
        state["exp_avg"].index_copy_(0, rows, mean)
        state["exp_avg_sq"].index_copy_(0, rows, square)
        rate = (group["lr"] / (1 - beta1**steps)).to(old.dtype)
        root = (1 - beta2**steps).sqrt().to(old.dtype)
        old.sub_(mean.mul_(rate).div_(square.sqrt_().div_(root).add_(group["eps"])))
        parameter.index_copy_(0, rows, old)
