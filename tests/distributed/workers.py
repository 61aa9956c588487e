"""What the ranks of these tests do: without pytest, which takes each new process seconds to import."""

from typing import Any

import torch
from torch import Tensor

from attfc.distributed import Ranks
from attfc.heads import AttFC, FullFC
from attfc.losses import AdaFace, CombinedMargin, CosFace

D, K, STEPS = 12, 2, 9
MARGINS = {
    "cosface": lambda: CosFace(scale=16.0, margin=0.2),
    "adaface": lambda: AdaFace(scale=16.0),
    "combined": lambda: CombinedMargin(16.0, 1.0, 0.3, 0.1),
}


def batches(dtype: torch.dtype, identities: int, batch: int = 16) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Global batches with repeated identities."""
    draw = torch.Generator().manual_seed(3)
    return [
        (
            torch.randn(batch, D, generator=draw, dtype=torch.float64).to(dtype),
            torch.randint(identities, (batch,), generator=draw),
            torch.randn(batch, K, D, generator=draw, dtype=torch.float64).to(dtype),
        )
        for _ in range(STEPS)
    ]


def run_head(kind: str, options: dict[str, Any], dtype: torch.dtype) -> dict[str, list[Tensor]]:
    """Several steps of a head on this rank's share; gradients as DistributedDataParallel leaves them."""
    ranks = Ranks.world()
    torch.manual_seed(1)
    options = {"block_mib": 0.001, **options, "margin": MARGINS[options.get("margin", "cosface")]()}
    build = {"attfc": lambda: AttFC(D, keys_per_query=K, ranks=ranks, **options)}
    build["full_fc"] = lambda: FullFC(D, 37, ranks=ranks, **options).to(dtype)
    head = build[kind]()
    losses, gradients, weights, labels = [], [], [], []
    for embeddings_BD, labels_B, keys_BKD in batches(dtype, 60 if kind == "attfc" else 37):
        own_BD = ranks.own(embeddings_BD).clone().requires_grad_()
        head.zero_grad()
        loss = head(own_BD, ranks.own(labels_B), ranks.own(keys_BKD))
        loss.backward()
        losses.append(ranks.mean(loss.detach()))
        gradients.append(ranks.gather(own_BD.grad) / ranks.size)
        if kind == "attfc":
            labels.append(head.container.labels.clone())
        else:
            weights.append(head.weight.grad.clone())
            with torch.no_grad():
                head.weight -= head.weight.grad
    last = [head.container.rows.double()] if kind == "attfc" else [head.weight.detach()]
    scales = [head.container.row_scales] if kind == "attfc" and head.container.row_scales is not None else []
    margin = [buffer.clone() for buffer in head.margin.buffers()]
    shards = [*weights, *last, *scales]
    return {"losses": losses, "gradients": gradients, "labels": labels, "margin": margin, "shards": shards}


def run_heads(cases: list[tuple[str, dict[str, Any], torch.dtype]]) -> list[dict[str, list[Tensor]]]:
    """`run_head` for each case, all in the same processes."""
    return [run_head(*case) for case in cases]
