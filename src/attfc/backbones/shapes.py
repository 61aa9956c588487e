"""Build networks for their shapes alone: names, sizes and dtypes of every tensor, without memory and without initialization."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["shapes_only"]


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
    ...     torch.nn.Linear(2, 3).weight.device
    device(type='meta')
    """
    with torch.device("meta"), _Unfilled():
        yield
