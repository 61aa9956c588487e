"""What `make gpu` measures, cell by cell: each function runs in a process of its own (`attfc.lab.children.in_child`) and returns what JSON can hold.

Heads are `attfc.lab.head_cell`'s, and two that only compare: the dense formulation of a full FC, and cut-cross-entropy's where it is installed.
A cell that raises returns its error: the next one starts in a new process, so a broken context of CUDA reaches no other.
"""

import time
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from attfc.backbones import create_backbone
from attfc.data import open_store
from attfc.heads import FullFC
from attfc.heads.head import unit_length
from attfc.lab.head_cell import Case, measure
from attfc.losses import CosFace

__all__ = ["container", "head", "loader", "network", "render", "told"]

Found = dict[str, Any]


def told(function: Callable[..., Found], *arguments: Any) -> Found:
    """Call it, and return an exception as a result."""
    try:
        return function(*arguments)
    except Exception as error:  # a cell that fails is a result
        return {
            "status": "failed",
            "error": f"{type(error).__name__}: {error}",
            "output": traceback.format_exc().splitlines(),
        }


class DenseFC(FullFC):
    """A full FC as margin heads are commonly written: rows normalized, all cosines at once, cross entropy, autograd."""

    def forward(self, embeddings_BD: Tensor, labels_B: Tensor, keys_BKD: Tensor | None = None) -> Tensor:
        """Return the mean loss."""
        query_BD, norms_B = unit_length(embeddings_BD)
        cosine_BN = query_BD @ normalize(self.weight).T
        own_B1 = labels_B[:, None]
        adjusted_B = self.margin(cosine_BN.gather(1, own_B1)[:, 0], norms_B)
        return cross_entropy(self.margin.scale * cosine_BN.scatter(1, own_B1, adjusted_B[:, None]), labels_B)


class CutCrossEntropyFC(FullFC):
    """The softmax of Cut Cross-Entropy (arXiv 2411.09009) in bfloat16 over normalized rows; it knows no margin, so there is none."""

    def forward(self, embeddings_BD: Tensor, labels_B: Tensor, keys_BKD: Tensor | None = None) -> Tensor:
        """Return the mean loss."""
        from cut_cross_entropy import linear_cross_entropy

        query_BD, _ = unit_length(embeddings_BD)
        way = "cce" if query_BD.device.type == "cuda" else "torch_compile"
        rows_ND = normalize(self.weight).bfloat16()
        loss: Tensor = linear_cross_entropy((self.margin.scale * query_BD).bfloat16(), rows_ND, labels_B, impl=way)
        return loss.float()


COMPARED = {"dense": DenseFC, "cut_cross_entropy": CutCrossEntropyFC}


def head(kind: str, options: dict[str, Any]) -> Found:
    """Seconds and peak memory of a head's step: `kind` of `Case`, or of `COMPARED`; `options`: the other fields of `Case`."""
    if kind not in COMPARED:
        return measure(Case(kind, **options))  # type: ignore[arg-type]
    case = Case("full_fc", **options)
    return measure(case, build=partial(COMPARED[kind], case.embedding_size, case.identities, CosFace(64.0, 0.4)))


def container(slots: int, kind: str, device: str, side: int) -> Found:
    """Container softmax, forward and backward, beside the dense formulation, two bare products and what bytes and products allow at least.

    Bytes: every row is read once, at the rate at which the device copies. Products: 4 B C D operations, at the rate of a square product of
    `side` rows and columns in the type of the rows (int8: bfloat16's).
    """
    from common import median_seconds_each
    from container_softmax import B, D, dense, floor, make_case, streamed

    with torch.device(device):
        case = make_case(slots, kind)
        wide = case if kind == "float32" else {**case, "rows": case["rows"].float()}
        product_type = torch.bfloat16 if kind == "int8" else case["rows"].dtype
        square, large = torch.ones(side, side, dtype=product_type), torch.ones(side * side)
        ways: dict[str, Callable[[], object]] = {"streamed": lambda: streamed(case), "dense": lambda: dense(wide)}
        if kind != "int8":
            ways["products"] = floor(case, slots)
        seconds = median_seconds_each({**ways, "square": lambda: square @ square, "copy": large.clone}, 7, 2)
    by_bytes = case["rows"].nbytes * seconds.pop("copy") / (2 * large.nbytes)
    by_products = 4 * B * D * slots * seconds.pop("square") / (2 * side**3)
    return {
        "seconds": seconds,
        "floor_seconds": {"bytes": by_bytes, "products": by_products},
        "times_the_floor": seconds["streamed"] / max(by_bytes, by_products),
        "times_faster_than_dense": seconds["dense"] / seconds["streamed"],
    }


def network(name: str, batch: int, dtype: str, channels_last: bool, backend: str | None, device: str) -> Found:
    """Images/s of a network's forward pass, and of forward and backward; `backend`: of torch.compile, None: not compiled."""
    from backbones import step
    from common import median_seconds

    where = torch.device(device)
    torch.manual_seed(0)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = create_backbone(name).to(where).to(memory_format=layout)
    size = int(getattr(model, "image_size", 112))
    images = torch.randn(batch, 3, size, size, device=where).contiguous(memory_format=layout)
    weights = torch.randn(batch, 512, device=where) / batch
    if backend is not None:
        model.compile(backend=backend)
    kind = getattr(torch, dtype)
    found: Found = {}
    for what, backward in (("forward_backward", True), ("forward", False)):
        model.train(backward)
        if where.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        begun = time.perf_counter()
        step(model, images, weights, kind, backward)  # the choices of cuDNN, or the compiler
        seconds = median_seconds(lambda backward=backward: step(model, images, weights, kind, backward), 10, 2)
        found[what] = {"images_per_second": batch / seconds, "seconds": seconds}
        found[what]["first_seconds"] = time.perf_counter() - begun - 12 * seconds
        if where.type == "cuda":
            found[what]["peak_bytes"] = torch.cuda.max_memory_allocated()
    return found


def render(folder: str, identities: int, images: int, workers: int) -> Found:
    """Write a folder of rendered faces, IDENTITY/NUMBER.jpg, by several processes."""
    begun = time.perf_counter()
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        parts = [range(start, identities, workers) for start in range(workers)]
        list(pool.map(partial(_render, folder, identities, images), parts))
    return {"images": identities * images, "seconds": time.perf_counter() - begun}


def _render(folder: str, identities: int, images: int, part: range) -> None:
    torch.set_num_threads(1)
    store = open_store(f"synthetic:identities={identities},images={images},seed=0")
    for identity in part:
        person = Path(folder) / f"{identity:06}"
        person.mkdir(parents=True)
        first = identity * images
        for number, encoded in enumerate(store.read_many(range(first, first + images))):
            (person / f"{number}.jpg").write_bytes(encoded)


def loader(options: list[str], batches: int) -> Found:
    """Images/s of a run's loader with nobody training: what its workers decode, as batches in memory."""
    from attfc.config import load_config
    from attfc.run.build import new_run

    stream = new_run(load_config("ms1mv3_attfc_r50", options)).trainer.loader.batches(batches)
    for _ in range(batches // 4):  # made before anybody asked
        next(stream)
    begun = time.perf_counter()
    images = sum(len(batch.labels) for batch in stream)
    return {"images_per_second": images / (time.perf_counter() - begun)}
