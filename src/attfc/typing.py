"""Types that many files name: arrays by the type of their numbers, paths, and the callback of long work."""

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "Bools", "Float32", "Float64", "Int64", "Json", "PathLike", "Progress", "Texts", "UInt8", "UInt64"]

Array = NDArray[Any]
Bools = NDArray[np.bool_]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Texts = NDArray[np.str_]
UInt8 = NDArray[np.uint8]
UInt64 = NDArray[np.uint64]

Json = dict[str, Any]
"""A JSON object: what a file, a record or an answer holds, by name."""

PathLike = str | os.PathLike[str]

Progress = Callable[[int, int], None]
"""Called as (done, in all) while long work goes on."""
