"""A block of memory that worker processes share with the process that made it.

Anonymous (memfd where the system has it, else an anonymous map), so it is not bounded by /dev/shm, which containers often
keep at 64 MiB; it takes room only as it is written to, and vanishes with the last process that holds it.
"""

import mmap
import os
from multiprocessing import reduction
from typing import Any

import numpy as np

from attfc.errors import UserError
from attfc.typing import UInt8

__all__ = ["SharedBytes"]


class SharedBytes:
    """Zeroed memory, shared with workers started by fork everywhere; by spawn or forkserver where the system has memfd (Linux).

    Args:
        size: bytes.
        purpose: name for messages and for the system's list of maps.

    Attributes:
        array: uint8 (size,), writable in every process; an array or view of it keeps the memory alive.
    """

    def __init__(self, size: int, purpose: str) -> None:
        self.purpose = purpose
        self._fd = -1
        if hasattr(os, "memfd_create"):
            self._fd = os.memfd_create(f"attfc-{purpose.replace(' ', '-')}", os.MFD_CLOEXEC)
            os.ftruncate(self._fd, max(size, 1))
        self._attach(size)

    def _attach(self, size: int) -> None:
        self.array: UInt8 = np.frombuffer(mmap.mmap(self._fd, max(size, 1)), np.uint8)[:size]

    def __getstate__(self) -> dict[str, Any]:
        """Pickle for a new worker process: the memory travels as a file descriptor."""
        if self._fd < 0:
            raise UserError(
                f"{self.purpose}: this system shares it by fork only: use start_method 'fork' or no workers"
            )
        return {"purpose": self.purpose, "size": len(self.array), "descriptor": reduction.DupFd(self._fd)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Map the same memory in the new process."""
        self.purpose = state["purpose"]
        self._fd = state["descriptor"].detach()
        self._attach(state["size"])

    def __del__(self) -> None:
        """Close the descriptor; the memory goes with its last map."""
        if getattr(self, "_fd", -1) >= 0:
            os.close(self._fd)
