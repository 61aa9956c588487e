"""Reused shared memory in which workers decode batches and in which the training process finds them.

A fresh piece of shared memory a batch costs a page fault per 4 KiB in the worker (4 us each in a virtual machine: a fifth of
the decoding of a face), and a map in the receiver. Here every worker owns a few slots that stay mapped in both; it decodes
into its lowest free one and sends the number. The slot is free again when nothing in the training process holds the batch
any more: views, tensors moved by reference, all count, because they share one storage, whose end releases the slot.
A byte a slot says which are taken: set by the worker alone, cleared by the receiver alone, so there is no lock. A worker
without a free slot (somebody keeps batches) is told so and takes new memory.
"""

import itertools
import weakref

import numpy as np
import torch
from torch import Tensor

from attfc.data.shared_bytes import SharedBytes
from attfc.typing import UInt8

__all__ = ["BatchRing"]

_numbers = itertools.count()
_made_here: "weakref.WeakValueDictionary[int, BatchRing]" = weakref.WeakValueDictionary()


class BatchRing:
    """Slots for decoded batches.

    Args:
        workers: processes that decode.
        slots: batches that each may have under way: prefetched, in the queue, and in use.
        batch_bytes: bytes of one batch.
    """

    def __init__(self, workers: int, slots: int, batch_bytes: int) -> None:
        self.workers, self.slots, self.batch_bytes = workers, slots, batch_bytes
        self.number = next(_numbers)
        self._memory = SharedBytes(workers * slots * (batch_bytes + 1), "batch ring")
        _made_here[self.number] = self

    @staticmethod
    def of_number(number: int) -> "BatchRing | None":
        """Return the ring that this process made under a number; None if it is gone."""
        return _made_here.get(number)

    def _taken(self) -> UInt8:
        return self._memory.array[self.workers * self.slots * self.batch_bytes :].reshape(self.workers, self.slots)

    def _bytes(self, worker: int, slot: int) -> UInt8:
        first = (worker * self.slots + slot) * self.batch_bytes
        return self._memory.array[first : first + self.batch_bytes]

    def claim(self, worker: int) -> tuple[int, UInt8] | None:
        """In a worker: take its lowest free slot; (slot, uint8 (batch_bytes,) to fill), or None if all are taken."""
        taken = self._taken()[worker]
        free = np.flatnonzero(taken == 0)
        if not free.size:
            return None
        slot = int(free[0])
        taken[slot] = 1
        return slot, self._bytes(worker, slot)

    def hand_out(self, worker: int, slot: int) -> Tensor:
        """In the process that made the ring: uint8 (batch_bytes,), no copy; the end of its storage frees the slot."""
        batch = self._bytes(worker, slot)
        release = weakref.finalize(batch, self._taken().__setitem__, (worker, slot), 0)
        release.atexit = False
        return torch.from_numpy(batch)  # the storage holds `batch` itself
