"""Full FC and Partial FC, forward and backward without the optimizer, against three bare matrix products over the same rows.

Dense: the usual PyTorch: normalized rows, cosines, a margin on the target, `cross_entropy`, autograd. Streamed: our way where the logits do not
fit (`KEPT_MIB` is set to 0), as for millions of classes. Cut: `linear_cross_entropy(impl="torch_compile")` of cut-cross-entropy if it is installed
(`pip install --no-deps cut-cross-entropy`); it knows neither unit rows nor margins, which makes its task smaller.

    python benchmarks/class_softmax.py [--threads 1] [--clock cpu|wall] [--repeats 7]

Writes results/class_softmax.json: medians of runs taken in turns, and ratios within the run.
"""

import argparse
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec

import torch
from common import median_seconds_each, write_result
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize, one_hot

from attfc import CosFace, FullFC, PartialFC

B, D = 128, 512
MARGIN = CosFace(64.0, 0.4)
CLASSES = (100_000, 280_000)
SHARE = 0.1  # of ten times as many classes: as many sampled rows as the full FC has
CLASS_SOFTMAX = sys.modules["attfc.losses.class_softmax"]


def three_products(query_BD: Tensor, weight_ND: Tensor) -> None:
    """Logits, the queries' gradient, the rows' gradient; nothing else."""
    logits_BN = query_BD @ weight_ND.T
    _ = logits_BN @ weight_ND, logits_BN.T @ query_BD


def dense(query_BD: Tensor, weight_ND: Tensor, labels_B: Tensor) -> None:
    """Forward and backward as everybody writes them."""
    query, weight = query_BD.detach().requires_grad_(), weight_ND.detach().requires_grad_()
    cosine_BN = normalize(query) @ normalize(weight).T
    logits_BN = MARGIN.scale * (cosine_BN - 0.4 * one_hot(labels_B, len(weight)))
    cross_entropy(logits_BN, labels_B).backward()


def head_step(head: FullFC | PartialFC, query_BD: Tensor, labels_B: Tensor) -> None:
    """Forward and backward of a head; its gradient is let go, as by an optimizer that sets it to None."""
    head(query_BD.detach().requires_grad_(), labels_B).backward()
    head.weight.grad = None


def streamed(head: FullFC, query_BD: Tensor, labels_B: Tensor) -> None:
    """`head_step` where no logits are kept."""
    kept = CLASS_SOFTMAX.KEPT_MIB
    CLASS_SOFTMAX.KEPT_MIB = 0
    try:
        head_step(head, query_BD, labels_B)
    finally:
        CLASS_SOFTMAX.KEPT_MIB = kept


def cut(query_BD: Tensor, weight_ND: Tensor, labels_B: Tensor) -> None:
    """A plain linear layer and cross entropy by cut-cross-entropy."""
    from cut_cross_entropy import linear_cross_entropy

    query, weight = query_BD.detach().requires_grad_(), weight_ND.detach().requires_grad_()
    linear_cross_entropy(query, weight, labels_B, impl="torch_compile").backward()


def ways_of(classes: int) -> dict[str, Callable[[], object]]:
    """Everything that is timed over so many rows."""
    torch.manual_seed(0)
    query_BD = normalize(torch.randn(B, D))
    full, partial = FullFC(D, classes, MARGIN), PartialFC(D, round(classes / SHARE), MARGIN, SHARE)
    labels_B, many_labels_B = torch.randint(0, classes, (B,)), torch.randint(0, partial.identities, (B,))
    weight_ND = full.weight.detach()
    ways: dict[str, Callable[[], object]] = {
        "three_products": lambda: three_products(query_BD, weight_ND),
        "full_fc": lambda: head_step(full, query_BD, labels_B),
        "streamed": lambda: streamed(full, query_BD, labels_B),
        "partial_fc": lambda: head_step(partial, query_BD, many_labels_B),
        "dense": lambda: dense(query_BD, weight_ND, labels_B),
    }
    if find_spec("cut_cross_entropy"):
        ways["cut_cross_entropy"] = lambda: cut(query_BD, weight_ND, labels_B)
    return ways


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="cpu")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = {"wall": time.perf_counter, "cpu": time.process_time}[options.clock]
    results = []
    for classes in CLASSES:
        seconds = median_seconds_each(ways_of(classes), options.repeats, clock=clock)
        for way, own in seconds.items():
            results.append(
                {"rows": classes, "way": way, "seconds": own, "times_three_products": own / seconds["three_products"]}
            )
            print(f"{classes:>9,}  {way:18}{own:8.3f} s  {results[-1]['times_three_products']:.2f}")
    print(write_result("class_softmax", {"batch": B, "embedding_size": D, "share": SHARE, **vars(options)}, results))


if __name__ == "__main__":
    main()
