"""Reads at a place of an open file, by several threads at once, on every system."""

import os
import threading

__all__ = ["read_at"]

_turn = threading.Lock()


def read_at(descriptor: int, count: int, offset: int) -> bytes:
    """Return up to `count` bytes from `offset`: `os.pread` where the system has it (Linux, macOS), else one thread after the other."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, count, offset)
    with _turn:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.read(descriptor, count)
