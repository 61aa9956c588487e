"""Heads at their limits are other heads: Partial FC at rate 1 the full FC, below it a dense classifier of the sampled classes."""

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize

from attfc.heads import FullFC, PartialFC
from attfc.heads.banks.draw import draw_classes
from attfc.losses import ArcFace, CosFace
from attfc.training.optimizers import build_optimizer, parameter_groups

SIZE, IDENTITIES = 16, 90


def trained(head: torch.nn.Module, dtype: torch.dtype, name: str, steps: int = 6) -> tuple[list[torch.Tensor], ...]:
    """Losses, gradients of embeddings and rows, and the rows after each of some steps."""
    optimizer = build_optimizer(
        name, parameter_groups([head], weight_decay=0.05), learning_rate=0.1 if name == "sgd" else 0.01
    )
    draw = torch.Generator().manual_seed(1)
    losses, embedding_gradients, row_gradients, rows = [], [], [], []
    for _ in range(steps):
        embeddings = torch.randn(20, SIZE, generator=draw, dtype=dtype).requires_grad_()
        labels = torch.randint(0, IDENTITIES, (20,), generator=draw)
        labels[1] = labels[0]
        optimizer.zero_grad()
        loss = head(embeddings, labels)
        loss.backward()
        gradient = head.weight.grad
        losses.append(loss.detach())
        embedding_gradients.append(embeddings.grad)
        row_gradients.append(gradient.to_dense() if gradient.is_sparse else gradient.clone())
        optimizer.step()
        rows.append(head.weight.detach().clone())
    return losses, embedding_gradients, row_gradients, rows


@pytest.mark.parametrize("filtering", [None, "drop", "zero"])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_partial_fc_at_rate_1_is_the_full_fc(dtype: torch.dtype, name: str, filtering: str | None) -> None:
    options = {} if filtering is None else {"filter_above": 0.2, "filtering": filtering}
    full = FullFC(SIZE, IDENTITIES, ArcFace(scale=16.0, margin=0.3), **options).to(dtype)
    part = PartialFC(SIZE, IDENTITIES, ArcFace(scale=16.0, margin=0.3), 1.0, **options).to(dtype)
    part.weight.data.copy_(full.weight.data)
    for expected, mine in zip(trained(full, dtype, name), trained(part, dtype, name), strict=True):
        for one, other in zip(expected, mine, strict=True):
            if dtype == torch.float32 and name == "sgd":
                assert torch.equal(one, other)  # the same operations in the same order
            elif dtype == torch.float32:
                torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
            else:
                torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("threshold", [None, 0.15])
@pytest.mark.parametrize("place", ["device", "host", "file", "device, all rows move"])
def test_partial_fc_below_rate_1_is_a_dense_classifier_of_the_sampled_classes(
    place: str, threshold: float | None, tmp_path
) -> None:
    """Dense logits of the drawn columns, torch's autograd, SGD with momentum and decay written out, in float64."""
    head = PartialFC(
        SIZE, IDENTITIES, CosFace(scale=16.0, margin=0.25), 0.4, seed=7, place=place.split(",")[0],
        unsampled="move" if "," in place else "rest", folder=tmp_path if place == "file" else None, filter_above=threshold,
    )  # fmt: skip
    weight, momentum = head.weight.detach().double().clone(), torch.zeros(IDENTITIES, SIZE, dtype=torch.float64)
    draw = torch.Generator().manual_seed(1)
    expected_losses, expected_gradients, expected_rows = [], [], []
    for step in range(6):
        embeddings = torch.randn(20, SIZE, generator=draw).double().requires_grad_()
        labels = torch.randint(0, IDENTITIES, (20,), generator=draw)
        labels[1] = labels[0]
        sampled = draw_classes(labels, IDENTITIES, 36, 7, step)
        rows = weight[sampled].requires_grad_()
        cosine = normalize(embeddings) @ normalize(rows).T
        target = sampled == labels[:, None]
        if threshold is not None:
            cosine = cosine.masked_fill((cosine > threshold) & ~target, -torch.inf)
        loss = cross_entropy(16.0 * torch.where(target, cosine - 0.25, cosine), target.int().argmax(1))
        loss.backward()
        moved = torch.arange(IDENTITIES) if head.unsampled == "move" else sampled
        gradient = torch.zeros_like(weight).index_copy_(0, sampled, rows.grad)
        momentum[moved] = 0.9 * momentum[moved] + gradient[moved] + 0.05 * weight[moved]
        weight[moved] -= 0.1 * momentum[moved]
        expected_losses.append(loss.detach())
        expected_gradients.append(embeddings.grad)
        expected_rows.append(weight.clone())
    losses, gradients, _, rows = trained(head, torch.float32, "sgd")
    for expected, mine in ((expected_losses, losses), (expected_gradients, gradients), (expected_rows, rows)):
        for one, other in zip(expected, mine, strict=True):
            torch.testing.assert_close(other.double(), one, rtol=1e-4, atol=1e-5)  # float32 sums of six steps
