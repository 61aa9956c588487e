"""Trained rows beside generated centers: against a dense formula in float64, and at both limits, nobody and everybody."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from attfc.heads import AttFC, CenterTable, FullFC
from attfc.losses import ArcFace, CosFace

SIZE, IDENTITIES, SCALE, M = 6, 20, 16.0, 0.3
COUNTS = [7 * label % IDENTITIES for label in range(IDENTITIES)]  # 0 to 19, each once


def hybrid(trained: int, exact: bool = True, in_batch: str = "push", **options: object) -> AttFC:
    """A head that draws everybody, so that a step has no chance in it; exact: in float64."""
    bank = CenterTable(count=IDENTITIES, trained=trained, image_counts=COUNTS)
    margin = CosFace(SCALE, M)
    head = AttFC(SIZE, margin, identities=IDENTITIES, negatives=bank, in_batch=in_batch, **options)  # type: ignore[arg-type]
    if exact:
        bank.rows = bank.rows.double()
        if bank.frequent is not None:
            bank.frequent.double()
    return head


class Dense:
    """One softmax over a dictionary: trained rows, means of embeddings, and what the batch makes of these."""

    def __init__(self, rows: dict[int, Tensor], in_batch: str, share: float = 0.6) -> None:
        self.rows, self.in_batch, self.share = rows, in_batch, share
        self.means: dict[int, Tensor] = {}

    def __call__(self, embeddings: Tensor, labels: list[int], threshold: float | None, filtering: str) -> Tensor:
        queries = normalize(embeddings, dim=1)
        trained = {label: row / row.norm() for label, row in self.rows.items()}
        new: dict[int, list[Tensor]] = {}
        for query, label in zip(queries, labels, strict=True):
            if label not in trained:
                present = query if self.in_batch == "push" else query.detach()
                stored = self.means.get(label)
                blend = present if stored is None else self.share * stored + (1 - self.share) * present
                new.setdefault(label, []).append(blend / blend.norm())
        means = {label: sum(each) / sum(each).norm() for label, each in new.items()}  # type: ignore[union-attr,arg-type]
        negatives = trained | self.means | (means if self.in_batch != "none" else {})
        losses = []
        for query, label in zip(queries, labels, strict=True):
            positive = trained.get(label, self.means.get(label))
            if positive is None:
                losses.append(0.0 * query.sum())
                continue
            logits = [SCALE * (query @ positive - M)]
            for other, row in negatives.items():
                cosine = query @ row
                if other == label or (threshold is not None and cosine > threshold and filtering == "drop"):
                    continue
                logits.append(SCALE * (cosine * 0 if threshold is not None and cosine > threshold else cosine))
            losses.append(torch.logsumexp(torch.stack(logits), 0) - logits[0])
        self.means |= {label: mean.detach() for label, mean in means.items()}
        return torch.stack(losses).mean()


def batches(count: int = 6) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    return [
        (torch.randn(12, SIZE, generator=draw, dtype=torch.float64), torch.randint(IDENTITIES, (12,), generator=draw))
        for _ in range(count)
    ]


@pytest.mark.parametrize("filters", [(None, "drop"), (0.3, "drop"), (0.3, "zero")])
@pytest.mark.parametrize(("trained", "in_batch"), [*itertools.product([1, 7, IDENTITIES], ["push", "fixed", "none"])])
def test_loss_and_gradients_are_those_of_the_dense_formula(trained, in_batch, filters) -> None:
    head = hybrid(trained, in_batch=in_batch, filter_above=filters[0], filtering=filters[1])
    weight, frequent = head.table.frequent.weight, head.table.frequent.labels.tolist()
    assert frequent == sorted(sorted(range(IDENTITIES), key=lambda label: -COUNTS[label])[:trained])
    slow_weight = weight.detach().clone().requires_grad_()
    dense = Dense({}, in_batch)
    for embeddings, labels in batches():
        mine, theirs = embeddings.clone().requires_grad_(), embeddings.clone().requires_grad_()
        dense.rows = dict(zip(frequent, slow_weight, strict=True))
        expected = dense(theirs, labels.tolist(), *filters)
        found = head(mine, labels)
        gradients = torch.autograd.grad(expected + 0 * slow_weight.sum(), [theirs, slow_weight])
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
        for got, right in zip(torch.autograd.grad(found, [mine, weight]), gradients, strict=True):
            torch.testing.assert_close(got, right, rtol=1e-9, atol=1e-11)
        with torch.no_grad():
            weight -= 0.3 * gradients[1]
            slow_weight -= 0.3 * gradients[1]
    assert not head.table.rows[frequent].any(), "who has a trained row has none in the table"


def test_nobody_is_the_default_bit_for_bit() -> None:
    state = torch.get_rng_state()
    none = hybrid(0, exact=False)
    assert torch.equal(state, torch.get_rng_state()), "no row is drawn"
    assert list(none.parameters()) == []
    plain = AttFC(SIZE, CosFace(SCALE, M), identities=IDENTITIES, negatives=CenterTable(count=IDENTITIES))
    assert none.state_dict().keys() == plain.state_dict().keys()
    for embeddings, labels in batches():
        found = []
        for head in (none, plain):
            query = embeddings.float().requires_grad_()
            loss = head(query, labels)
            found.append((loss.detach(), *torch.autograd.grad(loss, query)))
        assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert none.statistics() == plain.statistics()


@pytest.mark.parametrize("margin", [CosFace(SCALE, M), ArcFace(SCALE, 0.4)])
@pytest.mark.parametrize("in_batch", ["push", "fixed", "none"])
def test_everybody_is_a_full_fc(in_batch, margin) -> None:
    """The same rows at the start, the same losses, and the same gradients of embeddings and rows, step by step, with momentum and decay."""
    torch.manual_seed(5)
    bank = CenterTable(trained=IDENTITIES + 9, image_counts=COUNTS)
    mine = AttFC(SIZE, margin, identities=IDENTITIES, negatives=bank, in_batch=in_batch)
    torch.manual_seed(5)
    full = FullFC(SIZE, IDENTITIES, margin)
    assert torch.equal(bank.frequent.weight, full.weight)
    optimizers = [torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4) for head in (mine, full)]
    for embeddings, labels in batches():
        found = []
        for head, optimizer in zip((mine, full), optimizers, strict=True):
            query = embeddings.float().requires_grad_()
            optimizer.zero_grad()
            loss = head(query, labels)
            loss.backward()
            optimizer.step()
            found.append((loss.detach(), query.grad, next(head.parameters()).grad))
        for got, right in zip(*found, strict=True):
            torch.testing.assert_close(got, right, rtol=2e-5, atol=1e-6)
        torch.testing.assert_close(bank.frequent.weight, full.weight)
    rows = normalize(full.weight.double(), dim=1)
    query = normalize(embeddings, dim=1)
    if isinstance(margin, CosFace):
        cosines = query @ rows.T - M * torch.nn.functional.one_hot(labels, IDENTITIES)
        torch.testing.assert_close(mine(embeddings.float(), labels).double(), cross_entropy(SCALE * cosines, labels))
