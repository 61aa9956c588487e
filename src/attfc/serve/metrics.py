"""Counts and times of requests as Prometheus text: endpoint and status are the only labels, so nothing says who asked, or about whom.

Source: prometheus.io, "Exposition formats", text format 0.0.4. Written here, since it takes a page.
"""

import os
from collections import Counter, defaultdict
from pathlib import Path

__all__ = ["Metrics"]

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """What one process has answered; changed from one thread.

    Attributes:
        in_progress: requests that are being answered.
    """

    def __init__(self) -> None:
        self.in_progress = 0
        self._requests: Counter[tuple[str, int]] = Counter()
        self._within: Counter[tuple[str, float]] = Counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def count(self, endpoint: str, status: int, seconds: float) -> None:
        """Count a request that was answered."""
        self._requests[endpoint, status] += 1
        self._seconds[endpoint] += seconds
        self._within.update((endpoint, bound) for bound in (*SECONDS, float("inf")) if seconds <= bound)

    def text(self) -> str:
        """Return all of it in the text format."""
        lines = ["# HELP attfc_requests_total Requests answered.", "# TYPE attfc_requests_total counter"]
        for (endpoint, status), count in sorted(self._requests.items()):
            lines.append(f'attfc_requests_total{{endpoint="{endpoint}",status="{status}"}} {count}')
        name = "attfc_request_seconds"
        lines += [f"# HELP {name} From the first byte of a request to its answer.", f"# TYPE {name} histogram"]
        for endpoint, seconds in sorted(self._seconds.items()):
            for bound in (*SECONDS, float("inf")):
                label = "+Inf" if bound == float("inf") else f"{bound:g}"
                lines.append(f'{name}_bucket{{endpoint="{endpoint}",le="{label}"}} {self._within[endpoint, bound]}')
            total = self._within[endpoint, float("inf")]
            lines += [
                f'{name}_sum{{endpoint="{endpoint}"}} {seconds:.6f}',
                f'{name}_count{{endpoint="{endpoint}"}} {total}',
            ]
        gauges = [("attfc_requests_in_progress", "Requests being answered.", self.in_progress)]
        if (memory := resident_bytes()) is not None:
            gauges.append(("process_resident_memory_bytes", "Resident memory size in bytes.", memory))
        for name, meaning, value in gauges:
            lines += [f"# HELP {name} {meaning}", f"# TYPE {name} gauge", f"{name} {value}"]
        return "\n".join(lines) + "\n"


def resident_bytes() -> int | None:
    """Return the resident memory of this process; None where the system has no /proc."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError, ValueError):
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
