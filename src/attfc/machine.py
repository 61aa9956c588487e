"""What the machine has free."""

from pathlib import Path

__all__ = ["available_memory"]


def available_memory(swap: bool = False) -> int | None:
    """Return the bytes of host memory that a program could take now; None where the system does not say (not Linux).

    Args:
        swap: with the free swap space.
    """
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
        kilobytes = {name: int(rest.split()[0]) for name, rest in (line.split(":", 1) for line in lines)}
        return (kilobytes["MemAvailable"] + (kilobytes["SwapFree"] if swap else 0)) * 1024
    except (OSError, ValueError, IndexError, KeyError):
        return None
