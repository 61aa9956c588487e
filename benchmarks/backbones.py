"""Images per second of our tiny backbones on the CPU, forward and forward + backward, float32 and bfloat16 autocast.

    python benchmarks/backbones.py [--threads 2] [--batch 128] [--repeats 5]

Channels-last, batch statistics, no optimizer step. All cases run in turns, and the fastest turn counts beside the median: on a
shared machine only the fastest one is close to what the network costs.
"""

import argparse
import functools
import time

import torch
from common import write_result

from attfc.backbones import create_backbone, list_backbones
from attfc.precision import autocast

NAMES = ("r10_tiny", "r6_tiny")


def step(
    network: torch.nn.Module, images: torch.Tensor, weights: torch.Tensor, dtype: torch.dtype, backward: bool
) -> None:
    """Embed `images` once, autocast to `dtype`, and with `backward` compute all gradients and drop them."""
    amp = None if dtype == torch.float32 else dtype
    with torch.set_grad_enabled(backward), autocast(images.device, amp):
        embeddings = network(images)
    if backward:
        # A sum of squares would be constant behind the last BatchNorm and leave only denormal gradients.
        (embeddings * weights).sum().backward()
        for parameter in network.parameters():
            parameter.grad = None


def main() -> None:
    """Time every case in turns and write benchmarks/results/backbones.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    cases = {}
    for name in NAMES:
        network = create_backbone(name).to(memory_format=torch.channels_last)
        size = int(network.image_size)
        images = torch.randn(arguments.batch, 3, size, size).contiguous(memory_format=torch.channels_last)
        weights = torch.randn(arguments.batch, 512) / arguments.batch
        for dtype in ("float32", "bfloat16"):
            for kind in ("forward", "forward_backward"):
                case = functools.partial(step, network, images, weights, getattr(torch, dtype), kind != "forward")
                cases[name, dtype, kind] = case
    seconds: dict[tuple[str, str, str], list[float]] = {case: [] for case in cases}
    for turn in range(1 + arguments.repeats):
        for case, fn in cases.items():
            start = time.perf_counter()
            fn()
            if turn:
                seconds[case].append(time.perf_counter() - start)
    rows = {row.name: row for row in list_backbones()}
    results = [
        {
            "backbone": name,
            "dtype": dtype,
            "pass": kind,
            "images_per_second_best": round(arguments.batch / min(values)),
            "images_per_second_median": round(arguments.batch / sorted(values)[len(values) // 2]),
            "params": rows[name].params,
            "gmacs": round(rows[name].gmacs, 5),
        }
        for (name, dtype, kind), values in seconds.items()
    ]
    write_result("backbones", vars(arguments), results)


if __name__ == "__main__":
    main()
