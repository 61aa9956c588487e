"""Types that many files name: arrays by the type of their numbers, and the callback of long work."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = ["Bools", "Float32", "Float64", "Int64", "Progress", "UInt8"]

Bools = NDArray[np.bool_]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
UInt8 = NDArray[np.uint8]

Progress = Callable[[int, int], None]
"""Called as (done, in all) while long work goes on."""
