"""Opening one safetensors file, in one place and without the imports of a checkpoint, which take a second."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from attfc.errors import UserError

__all__ = ["open_weights"]


@contextlib.contextmanager
def open_weights(path: Path) -> Iterator[Any]:
    """Open a safetensors file, with safetensors' own `get_tensor` and the like.

    Raises:
        UserError: it is damaged, or is none; also while it is read.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged or no safetensors file: {str(error)[:200]}") from None
