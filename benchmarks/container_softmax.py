"""Container softmax (forward and backward) against two dense formulations and against its floor, two bare matrix products.

Dense: the leanest we can write, unit rows taken as they are. Usual: as margin heads are commonly written: rows normalized at
every step (a container of unit rows needs that no more than ours does), cosines clamped, then masked, scaled, cross_entropy.

    python benchmarks/container_softmax.py [--threads 2] [--clock wall|cpu] [--repeats 5]

Writes results/container_softmax.json: seconds, ratios within the run, extra memory, errors against float64. Memory is the rise of
the resident-set high-water mark of a fresh process over its state just before the call, inputs in place and torch warmed up on
tiny shapes; it counts everything, the allocator's and oneDNN's scratch too. On a shared machine take --clock cpu --threads 1.
"""

import argparse
import ctypes
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import median_seconds_each, write_result
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from attfc.losses import container_softmax
from attfc.precision import fast_bfloat16

B, D, SCALE = 128, 512, 64.0
SIZES = (28_000, 280_000)
KINDS = ("float32", "bfloat16", "int8")
Case = dict[str, Tensor]


def make_case(slots: int, kind: str) -> Case:
    """Random unit rows, two slots an identity, 2 % of the slots empty; built in pieces, so that building leaves no peak."""
    torch.manual_seed(0)
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}[kind]
    rows_CD, row_scales_C = torch.zeros(slots, D, dtype=dtype), torch.ones(slots)
    for start in range(0, slots, 1000):
        piece = normalize(torch.randn(min(1000, slots - start), D))
        if kind == "int8":
            row_scales_C[start : start + 1000] = piece.abs().amax(1) / 127
            piece = (piece / row_scales_C[start : start + 1000, None]).round()
        rows_CD[start : start + 1000] = piece
    row_labels_C = torch.randint(0, slots // 2, (slots,))
    row_labels_C[-slots // 50 :] = -1
    case = {
        "query": normalize(torch.randn(B, D)),
        "positive": torch.empty(B).uniform_(0.0, 0.4),
        "rows": rows_CD,
        "row_labels": row_labels_C,
        "labels": torch.randint(0, slots // 2, (B,)),
    }
    return case | ({"row_scales": row_scales_C} if kind == "int8" else {})


def streamed(case: Case) -> tuple[Tensor, Tensor]:
    """Losses and gradient to the query, our way."""
    query_BD = case["query"].detach().requires_grad_()
    loss_B = container_softmax(
        query_BD, case["positive"], case["rows"], case["row_labels"], case["labels"], SCALE,
        row_scales_C=case.get("row_scales"),
    )  # fmt: skip
    loss_B.sum().backward()
    return loss_B.detach(), query_BD.grad


def dense(case: Case) -> tuple[Tensor, Tensor]:
    """Losses and gradient to the query as everybody writes it, in the type of the query."""
    query_BD = case["query"].detach().requires_grad_()
    logits_BC = query_BD @ case["rows"].to(query_BD.dtype).T
    left_out_BC = (case["row_labels"] == case["labels"][:, None]) | (case["row_labels"] == -1)
    logits_BC = logits_BC.masked_fill(left_out_BC, -math.inf)
    logits = SCALE * torch.cat([case["positive"].to(query_BD.dtype)[:, None], logits_BC], 1)
    loss_B = cross_entropy(logits, torch.zeros(B, dtype=torch.int64), reduction="none")
    loss_B.sum().backward()
    return loss_B.detach(), query_BD.grad


def usual(case: Case) -> tuple[Tensor, Tensor]:
    """Losses and gradient to the query with what margin heads commonly do besides: normalize the rows, clamp the cosines."""
    unit = dict(case, rows=normalize(case["rows"]), query=case["query"])
    query_BD = unit["query"].detach().requires_grad_()
    logits_BC = (normalize(query_BD) @ unit["rows"].T).clamp(-1.0, 1.0)
    left_out_BC = (unit["row_labels"] == unit["labels"][:, None]) | (unit["row_labels"] == -1)
    logits_BC = torch.where(left_out_BC, torch.full_like(logits_BC, -math.inf), logits_BC)
    logits = torch.cat([unit["positive"][:, None], logits_BC], 1) * SCALE
    loss_B = cross_entropy(logits, torch.zeros(B, dtype=torch.int64), reduction="none")
    loss_B.sum().backward()
    return loss_B.detach(), query_BD.grad


def floor(case: Case, block: int = 4096) -> Callable[[], Tensor]:
    """Two matrix products over blocks that stay in the cache (no slower than over all rows at once) and nothing else."""
    rows_CD, query_BD = case["rows"], case["query"].to(case["rows"].dtype)
    weights, total_BD = torch.empty(B * block, dtype=rows_CD.dtype), torch.zeros_like(query_BD)

    def products() -> Tensor:
        for rows_RD in rows_CD.split(block):
            weights_BR = torch.mm(query_BD, rows_RD.T, out=weights[: B * len(rows_RD)].view(B, -1))
            total_BD.addmm_(weights_BR, rows_RD)
        return total_BD

    return products


def relative_error(mine: Tensor, reference: Tensor) -> float:
    """Norm of the difference over the norm of the reference."""
    return ((mine.double() - reference).norm() / reference.norm()).item()


def errors(case: Case) -> dict[str, float]:
    """Relative error of losses and gradient against float64 on the same stored rows."""
    reference = dict(case)
    rows_CD = case["rows"].double()
    reference["rows"] = rows_CD * case["row_scales"].double()[:, None] if "row_scales" in case else rows_CD
    reference["query"] = case["query"].double()
    return {
        name: relative_error(mine, exact)
        for name, mine, exact in zip(("loss", "gradient"), streamed(case), dense(reference), strict=True)
    }


def status_kib(field: str) -> int:
    """Return a memory figure of this process, KiB (Linux)."""
    text = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith(field)))


def extra_mib(way: str, slots: int, kind: str) -> float:
    """In this (fresh) process: how far the resident set rises above the inputs during one call."""
    run = {"streamed": streamed, "dense": dense}[way]
    run(make_case(64, kind))
    case = make_case(slots, kind)
    ctypes.CDLL(None).malloc_trim(0)  # else freed memory that the allocator kept would hide a part of the rise
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts from here
    before = status_kib("VmRSS")
    run(case)
    return (status_kib("VmHWM") - before) / 1024


def extra_mib_in_child(way: str, slots: int, kind: str, threads: int) -> float:
    """`extra_mib` in a fresh process."""
    command = [sys.executable, __file__, "--threads", str(threads), "--memory", way, str(slots), kind]
    return float(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", nargs=3, metavar=("WAY", "SLOTS", "KIND"), help="used by this script on itself")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.memory:
        way, slots, kind = options.memory
        print(json.dumps(extra_mib(way, int(slots), kind)))
        return

    clock = {"wall": time.perf_counter, "cpu": time.process_time}[options.clock]
    # Without instructions for it a bare product in bfloat16 takes 60 times that in float32: no floor of anything.
    has_bfloat16 = fast_bfloat16(torch.device("cpu"))
    floors = {"float32": "float32", "bfloat16": "bfloat16" if has_bfloat16 else "float32"}
    floors["int8"] = floors["bfloat16"]
    results = []
    for slots in SIZES:
        cases = {kind: make_case(slots, kind) for kind in KINDS}
        ways: dict[str, Callable[[], object]] = {
            "dense": lambda cases=cases: dense(cases["float32"]),
            "usual": lambda cases=cases: usual(cases["float32"]),
        }
        for kind in KINDS:
            ways[f"streamed_{kind}"] = lambda case=cases[kind]: streamed(case)
            if floors[kind] == kind:
                ways[f"floor_{kind}"] = floor(cases[kind])
        seconds = median_seconds_each(ways, options.repeats, clock=clock)
        dense_mib = extra_mib_in_child("dense", slots, "float32", options.threads)
        for kind in KINDS:
            own = seconds[f"streamed_{kind}"]
            floor_seconds = seconds[f"floor_{floors[kind]}"]
            results.append(
                {
                    "slots": slots,
                    "rows": kind,
                    "seconds": own,
                    "dense_seconds": seconds["dense"],
                    "floor_seconds": floor_seconds,
                    "usual_seconds": seconds["usual"],
                    "times_faster_than_dense": seconds["dense"] / own,
                    "times_faster_than_usual": seconds["usual"] / own,
                    "times_the_floor": own / floor_seconds,
                    "extra_mib": extra_mib_in_child("streamed", slots, kind, options.threads),
                    "dense_extra_mib": dense_mib,
                    "relative_error": errors(cases[kind]) if slots == min(SIZES) else None,
                }
            )
            print(json.dumps(results[-1]))
    config = {"B": B, "D": D, "scale": SCALE, "threads": options.threads, "clock": options.clock} | {
        "repeats": options.repeats,
        "dense": "float32 rows, all logits, masks, cross_entropy, autograd",
        "usual": "as dense, and rows normalized, cosines clamped, torch.where",
        "floor": f"two matrix products in blocks of 4096 rows; of bfloat16 and int8 rows: the {floors['int8']} floor",
    }
    print(write_result("container_softmax" if has_bfloat16 else "container_softmax_without_bfloat16", config, results))


if __name__ == "__main__":
    main()
