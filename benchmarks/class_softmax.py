"""Full FC and Partial FC, forward and backward without the optimizer, against three bare matrix products over the same rows.

Products: as autograd makes them, whose logits and gradients are new tensors in each step; *in place*: into memory that is there.
Dense: the usual PyTorch: normalized rows, cosines, a margin on the target, `cross_entropy`, autograd. Streamed: our way where the logits do not
fit (`KEPT_MIB` is set to 0), as for millions of classes. Cut: `linear_cross_entropy(impl="torch_compile")` of cut-cross-entropy if it is installed
(`pip install --no-deps cut-cross-entropy`); it knows neither unit rows nor margins, which makes its task smaller.

    python benchmarks/class_softmax.py [--threads 1] [--clock cpu|wall] [--repeats 5]

Each way has a process of its own, because what one frees decides how fast the next gets memory; they take turns. Writes
results/class_softmax.json: medians and ratios of them.
"""

import argparse
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from multiprocessing.connection import Connection

import torch
from common import write_result
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


def three_products_in_place(weight_ND: Tensor) -> Callable[[Tensor], None]:
    """Return the same three into memory that is made here, once."""
    logits_BN, query_gradient, gradient_ND = (
        torch.empty(B, len(weight_ND)),
        torch.empty(B, D),
        torch.empty_like(weight_ND),
    )

    def step(query_BD: Tensor) -> None:
        torch.mm(query_BD, weight_ND.T, out=logits_BN)
        torch.mm(logits_BN, weight_ND, out=query_gradient)
        torch.mm(logits_BN.T, query_BD, out=gradient_ND)

    return step


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


def cut(query_BD: Tensor, weight_ND: Tensor, labels_B: Tensor) -> None:
    """A plain linear layer and cross entropy by cut-cross-entropy."""
    from cut_cross_entropy import linear_cross_entropy

    query, weight = query_BD.detach().requires_grad_(), weight_ND.detach().requires_grad_()
    linear_cross_entropy(query, weight, labels_B, impl="torch_compile").backward()


WAYS = ("three_products", "three_products_in_place", "full_fc", "streamed", "partial_fc", "dense")


def step_of(way: str, classes: int) -> Callable[[], object]:
    """Everything that is timed over so many rows."""
    torch.manual_seed(0)
    query_BD = normalize(torch.randn(B, D))
    if way in ("full_fc", "streamed", "partial_fc"):
        full = way != "partial_fc"
        head = FullFC(D, classes, MARGIN) if full else PartialFC(D, round(classes / SHARE), MARGIN, SHARE)
        labels_B = torch.randint(0, head.identities, (B,))
        if way == "streamed":
            CLASS_SOFTMAX.KEPT_MIB = 0
        return lambda: head_step(head, query_BD, labels_B)
    weight_ND, labels_B = torch.randn(classes, D).mul_(0.01), torch.randint(0, classes, (B,))
    if way == "three_products_in_place":
        step = three_products_in_place(weight_ND)
        return lambda: step(query_BD)
    if way == "three_products":
        return lambda: three_products(query_BD, weight_ND)
    return lambda: {"dense": dense, "cut_cross_entropy": cut}[way](query_BD, weight_ND, labels_B)


def serve(turns: Connection, way: str, classes: int, threads: int, clock: str) -> None:
    """Take a step and say its seconds whenever asked, until the parent hangs up."""
    torch.set_num_threads(threads)
    step, now = step_of(way, classes), {"wall": time.perf_counter, "cpu": time.process_time}[clock]
    step()
    turns.send(None)
    while turns.recv():
        start = now()
        step()
        turns.send(now() - start)


def medians(classes: int, ways: tuple[str, ...], options: argparse.Namespace) -> dict[str, float]:
    """Return the median seconds of a step of each way, each in a process of its own, in turns."""
    context = multiprocessing.get_context("spawn")
    turns: dict[str, Connection] = {}
    for way in ways:
        turns[way], other = context.Pipe()
        asked = (other, way, classes, options.threads, options.clock)
        context.Process(target=serve, args=asked, daemon=True).start()
    for connection in turns.values():
        connection.recv()  # ready, and the first step is done
    if options.wait:
        input(f"{classes:,} rows are ready; go on with Enter\n")
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(options.repeats):
        for way in ways[:: -1 if turn % 2 else 1]:
            turns[way].send(True)
            seconds[way].append(turns[way].recv())
    for connection in turns.values():
        connection.send(False)
    return {way: statistics.median(each) for way, each in seconds.items()}


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--wait", action="store_true", help="make the processes ready, then ask: others may have to be sent away"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)  # for the record: the children do the work
    ways = WAYS + (("cut_cross_entropy",) if find_spec("cut_cross_entropy") else ())
    results = []
    for classes in CLASSES:
        seconds = medians(classes, ways, options)
        for way, own in seconds.items():
            results.append(
                {"rows": classes, "way": way, "seconds": own, "times_three_products": own / seconds["three_products"]}
            )
            print(f"{classes:>9,}  {way:24}{own:8.3f} s  {results[-1]['times_three_products']:.2f}")
    print(write_result("class_softmax", {"batch": B, "embedding_size": D, "share": SHARE, **vars(options)}, results))


if __name__ == "__main__":
    main()
