"""What a network takes beside its passes: the key encoder, which a head without keys does without, and the optimizer's step, fused and plain.

Each case in a process of its own: resident memory of the pair of encoders, the peak of a step of SGD with momentum over weights, gradients and
momentum that are there (a temporary of a parameter's size shows here), and its processor seconds, median of 15 steps. r50 and r100, D = 512.
"""

import statistics
import time

import torch
from common import write_result

from attfc.backbones import create_backbone
from attfc.lab.children import in_child
from attfc.lab.head_cell import ResidentPeak, warm_up
from attfc.training.momentum import MomentumPair
from attfc.training.optimizers import build_optimizer, parameter_groups
from attfc.training.row_optimizers import RowSGD

NETWORKS, MIB, STEPS = ("r50", "r100"), 2**20, 15


def measure(network: str, keys: bool, fused: bool) -> dict[str, float]:
    """Return MiB of the encoders, MiB that a step takes beside what is there, and its seconds."""
    torch.set_num_threads(1)
    warm_up(torch.device("cpu"))
    meter = ResidentPeak()
    pair = MomentumPair(create_backbone(network), keys=keys)
    encoders = meter.peak()
    groups = parameter_groups([pair.query])
    optimizer = build_optimizer("sgd", groups) if fused else RowSGD(groups, lr=0.1, momentum=0.9)
    for parameter in pair.query.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    there, seconds = ResidentPeak(), []
    for _ in range(STEPS):
        start = time.process_time()
        optimizer.step()
        seconds.append(time.process_time() - start)
    return {
        "encoders_mib": encoders / MIB,
        "step_mib": there.peak() / MIB,
        "seconds": statistics.median(seconds),
    }


def main() -> None:
    """Measure and write benchmarks/results/optimizer_memory.json."""
    results = []
    for network in NETWORKS:
        for keys, fused in ((True, True), (False, True), (False, False)):
            results.append(
                {"network": network, "keys": keys, "fused": fused, **in_child(measure, network, keys, fused)}
            )
            print(results[-1])
    print(write_result("optimizer_memory", {"steps": STEPS}, results))


if __name__ == "__main__":
    main()
