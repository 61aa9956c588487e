"""`attfc serve` on loopback: times of embed, verify and search for one client and for 50 at once, and memory after 1,000 and 10,000 requests.

The server is a process of its own, as the command starts it, with a tiny network on aligned faces (JPEG, 112 x 112) and a gallery of 10,000
templates: so what is measured is the service, and not a network or a detector. The clients are threads of this process, on the same processor cores.

    python benchmarks/serve.py [--requests 10000] [--clients 50] [--templates 10000] [--workers 2]

Writes results/serve.json: milliseconds (median, 99th percentile) per kind of request, requests per second, resident memory of the server in MiB.
"""

import argparse
import http.client
import itertools
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from common import write_result

import attfc
from attfc.data import SyntheticFaces
from attfc.gallery import Gallery
from attfc.gallery.templates import Template, TemplateStore

NUMBERS, FIRST = 128, 1000
Times = dict[str, list[float]]


def form(**photos: bytes) -> bytes:
    """Return a form with photos, its boundary x."""
    parts = [
        f'--x\r\nContent-Disposition: form-data; name="{name}"; filename="f"\r\n\r\n'.encode() + photo + b"\r\n"
        for name, photo in photos.items()
    ]
    return b"".join(parts) + b"--x--\r\n"


def make(folder: Path, templates: int) -> None:
    """Save an untrained network, and a gallery of templates that point anywhere."""
    model = attfc.load(attfc.save_model(folder / "model", attfc.create_backbone("r6_tiny", embedding_size=NUMBERS)))
    Gallery.create(folder / "gallery", model).close()
    rows = np.random.default_rng(0).standard_normal((templates, NUMBERS), dtype=np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    with TemplateStore(folder / "gallery") as store:
        store.add([Template(f"person {number}", row, {}) for number, row in enumerate(rows)])


def memory(process: int) -> float:
    """Return the resident memory of a process in MiB."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


class Shared:
    """An iterator that several threads may ask."""

    def __init__(self, values: Iterable[str]) -> None:
        self._values, self._lock = iter(values), threading.Lock()

    def __iter__(self) -> "Shared":
        return self

    def __next__(self) -> str:
        with self._lock:
            return next(self._values)


def ask(port: int, bodies: dict[str, bytes], kinds: Shared, times: Times, status: Counter[int]) -> None:
    """Be one client: take the next kind of request until there is none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    for kind in kinds:
        start = time.perf_counter()
        connection.request("POST", f"/{kind}", bodies[kind], {"Content-Type": "multipart/form-data; boundary=x"})
        answer = connection.getresponse()
        answer.read()
        times[kind].append(time.perf_counter() - start)
        status[answer.status] += 1
    connection.close()


def load(port: int, bodies: dict[str, bytes], requests: int, clients: int) -> tuple[Times, Counter[int], float]:
    """Send requests of all kinds in turns from clients at once; return seconds of each, statuses, and seconds of all."""
    kinds = Shared(itertools.islice(itertools.cycle(bodies), requests))
    times: Times = {kind: [] for kind in bodies}
    status: Counter[int] = Counter()
    threads = [threading.Thread(target=ask, args=(port, bodies, kinds, times, status)) for _ in range(clients)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return times, status, time.perf_counter() - start


def summed_up(times: Times) -> dict[str, dict[str, float]]:
    """Return median and 99th percentile of each kind in milliseconds."""
    return {
        kind: {"p50_ms": 1e3 * statistics.median(seconds), "p99_ms": 1e3 * float(np.quantile(seconds, 0.99))}
        for kind, seconds in times.items()
    }


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--templates", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    encoded = [SyntheticFaces(2, 1, seed=1).read(position)[0] for position in range(2)]
    bodies = {
        "embed": form(photo=encoded[0]),
        "verify": form(a=encoded[0], b=encoded[1]),
        "search": form(photo=encoded[1]),
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, given.templates)
        command = [sys.executable, "-m", "attfc", "serve", str(folder / "model"), "--no-align", "--port", "0"]
        command += ["--gallery", str(folder / "gallery"), "--workers", str(given.workers), "--device", "cpu"]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as server:
            assert server.stdout is not None
            port = int(server.stdout.readline().split()[0].rsplit(":", 1)[1].strip("/"))
            try:
                mib = {"start": memory(server.pid)}
                alone, _, _ = load(port, bodies, 300, 1)
                _, first, _ = load(port, bodies, FIRST - 300, given.clients)
                mib["after_1,000"] = memory(server.pid)
                together, rest, seconds = load(port, bodies, given.requests - FIRST, given.clients)
                mib[f"after_{given.requests:,}"] = memory(server.pid)
            finally:
                server.send_signal(signal.SIGINT)
    results = {
        "one_client": summed_up(alone),
        "clients_at_once": summed_up(together),
        "requests_per_second": (given.requests - FIRST) / seconds,
        "statuses": dict(first + rest),
        "server_mib": mib,
    }
    print(json.dumps(results, indent=2))
    print(write_result("serve", vars(given) | {"cores": os.cpu_count()}, results))


if __name__ == "__main__":
    main()
