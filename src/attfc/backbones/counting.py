"""Count parameters and multiply-accumulates of any network, without its memory and without running it.

The network is built and called on the meta device, where tensors have shapes and no numbers, and every torch function that
multiplies is seen on its way: convolutions, linear layers, matrix products and attention. Elementwise work and
normalization are left out, as is the custom. Watching functions rather than modules also counts products that no module
stands for, such as those of attention (of timm's networks too). Cost: about 0.1 s for r100, no memory.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.overrides import TorchFunctionMode

__all__ = ["Macs", "count_macs", "count_parameters", "shapes_only"]


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one image."""

    dense: int
    """Convolutions and linear layers."""
    attention: int
    """Products of activations with activations: QK^T and AV."""


class _Counter(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.dense = 0
        self.attention = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        if func in _CONVOLUTIONS:
            self.dense += output.numel() * _operand(args, kwargs, 1, "weight")[0].numel()
        elif func is F.linear:
            self.dense += output.numel() * _operand(args, kwargs, 1, "weight").shape[-1]
        elif func is F.scaled_dot_product_attention:
            query, key, value = (_operand(args, kwargs, i, name) for i, name in enumerate(("query", "key", "value")))
            pairs = query.numel() // query.shape[-1] * key.shape[-2]
            self.attention += pairs * (query.shape[-1] + value.shape[-1])
        elif func in _MATRIX_PRODUCTS:
            self.attention += output.numel() * args[0].shape[-1]
        return output


_CONVOLUTIONS = {torch.conv1d, torch.conv2d, torch.conv3d}
_MATRIX_PRODUCTS = {torch.matmul, torch.bmm, torch.mm, Tensor.matmul, Tensor.bmm, Tensor.mm, Tensor.__matmul__}


def _operand(args: Sequence[Any], kwargs: Mapping[str, Any], position: int, name: str) -> Tensor:
    operand = kwargs[name] if name in kwargs else args[position]
    assert isinstance(operand, Tensor)
    return operand


class _Unfilled(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func in _FILLS or getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


_FILLS = {Tensor.normal_, Tensor.uniform_, Tensor.fill_, Tensor.zero_}


@contextmanager
def shapes_only() -> Iterator[None]:
    """Build networks on the meta device and skip their initialization, which takes seconds there.

    >>> with shapes_only():
    ...     nn.Linear(2, 3).weight.device
    device(type='meta')
    """
    with torch.device("meta"), _Unfilled():
        yield


def count_macs(network: nn.Module, image_size: int) -> Macs:
    """Count the multiply-accumulates of one (3, image_size, image_size) image in evaluation.

    Args:
        network: on the meta device, such as ``with shapes_only(): network = create_backbone("r50")``, or on any other
            (then it is really run).
        image_size: height and width in pixels.

    >>> with shapes_only():
    ...     count_macs(nn.Conv2d(3, 8, 3), image_size=4)
    Macs(dense=864, attention=0)
    """
    training = network.training
    device = next(network.parameters()).device
    try:
        with torch.no_grad(), _Counter() as counter:
            network.eval()(torch.empty(1, 3, image_size, image_size, device=device))
    finally:
        network.train(training)
    return Macs(counter.dense, counter.attention)


def count_parameters(network: nn.Module) -> int:
    """Count the numbers in all parameters, trained or fixed."""
    return sum(parameter.numel() for parameter in network.parameters())
