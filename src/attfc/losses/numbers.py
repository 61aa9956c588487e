"""The check of labels, and of image positions, against how many there are; on the processor alone, where looking is free."""

from torch import Tensor

from attfc.distributed import ALONE, AgreedError, Ranks
from attfc.errors import UserError

__all__ = ["check_numbers"]


def check_numbers(numbers_B: Tensor, count: int, what: str, fix: str, ranks: Ranks = ALONE) -> None:
    """Refuse numbers outside 0 to `count` - 1. Looks only at numbers on the CPU: elsewhere it would wait for the device.

    Args:
        numbers_B: (B,) int64; of all ranks: then all refuse, and none waits for one that has left.
        what: "label" or "position".
        fix: what the user should do.

    Raises:
        UserError: names the first such number and the largest allowed; on several ranks as an `AgreedError`.
    """
    if numbers_B.device.type != "cpu":
        return
    outside_B = (numbers_B < 0) | (numbers_B >= count)
    if outside_B.any():
        error = UserError if ranks.size == 1 else AgreedError
        raise error(f"{what} {int(numbers_B[outside_B][0])} is outside 0 to {count - 1}: {fix}")
