"""The heads against slow ones: Python dictionaries for the container, one sample at a time for the mathematics."""

import itertools
import math
from collections import OrderedDict, deque

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from attfc.heads import AttFC, FullFC, KeyAttention, OwnEmbedding, PartialFC, RecentCenters
from attfc.losses import ArcFace, CosFace, Margin, container_softmax

SIZE = 6
COUNTS = [1 + label % 20 for label in range(100)]  # images of each identity


def attfc(
    slots: int, margin: Margin, size: int = SIZE, *, policy: str = "fifo", dtype: str = "float32", initial: str = "empty",
    source: str = "keys", share: float = 0.0, include_stored: bool = False, temperature: float = 1.0,
    in_batch: str = "none", memory: float = 0.0, **filters: object,
) -> AttFC:  # fmt: skip
    """The published parts, but for what is given."""
    rule = (
        OwnEmbedding(share, memory, COUNTS)
        if source == "query"
        else KeyAttention(2, temperature, include_stored, share)
    )
    bank = RecentCenters(count=slots, policy=policy, dtype=dtype, initial=initial)
    return AttFC(size, margin, identities=None, center=rule, negatives=bank, in_batch=in_batch, **filters)


class SlowAttFC:
    """The steps of docs/heads.md, one by one, in float64; rows in a deque (fifo) or an OrderedDict (unique)."""

    def __init__(
        self, slots: int, scale: float, m: float, *, temperature=1.0, include_stored=False, share=0.0,
        policy="fifo", in_batch="none", source="keys", filter_above=None, filtering="drop", memory=0.0,
        filter_gap=None,
    ) -> None:  # fmt: skip
        self.gap, self.aside, self.suspect_share = filter_gap, 0, 0.0
        self.memory = memory
        self.slots, self.scale, self.m, self.temperature = slots, scale, m, temperature
        self.include, self.blend, self.policy = include_stored, share, policy
        self.in_batch, self.source = in_batch != "none", source
        self.pushes_back = in_batch == "push"
        self.threshold, self.filtering = filter_above, filtering
        self.ring: deque[tuple[int, Tensor]] = deque(maxlen=slots)
        self.pool: OrderedDict[int, Tensor] = OrderedDict()

    def stored(self, label: int) -> Tensor | None:
        if self.policy == "unique":
            return self.pool.get(label)
        return next((row for other, row in reversed(self.ring) if other == label), None)

    def rows(self) -> list[tuple[int, Tensor]]:
        return list(self.pool.items()) if self.policy == "unique" else list(self.ring)

    def new_center(self, query: Tensor, keys: Tensor, label: int) -> Tensor:
        stored = self.stored(label)
        if self.source == "query":
            center = query
        else:
            candidates = list(keys)
            if self.include and stored is not None:
                candidates.append(stored * sum(float(key.norm()) for key in keys) / len(keys))
            weights = [math.exp(float(query @ c / c.norm()) / self.temperature) for c in candidates]
            total = sum(weight * c for weight, c in zip(weights, candidates, strict=True)) / sum(weights)
            center = total / total.norm()
        if self.blend and stored is not None:
            averaged = max(self.memory * COUNTS[label], 1 / (1 - self.blend))  # images
            center = (1 - 1 / averaged) * stored + center / averaged
            center = center / center.norm()
        return center

    def __call__(self, embeddings: Tensor, labels: list[int], keys: Tensor) -> Tensor:
        queries = [e / e.norm() for e in embeddings]
        present = queries if self.pushes_back else [q.detach() for q in queries]
        new = [self.new_center(q, k, y) for q, k, y in zip(present, keys, labels, strict=True)]
        together: dict[int, list[Tensor]] = {}
        for y, g in zip(labels, new, strict=True):
            together.setdefault(y, []).append(g)
        means = {y: sum(gs) / (sum(gs)).norm() for y, gs in together.items()}  # type: ignore[union-attr,arg-type]

        negatives = self.rows()
        if self.in_batch and self.policy == "unique":
            negatives = [(y, row) for y, row in negatives if y not in means] + list(means.items())
        elif self.in_batch:
            negatives = negatives + list(zip(labels, new, strict=True))

        losses, kept, suspects = [], [], 0
        for query, label, center in zip(queries, labels, new, strict=True):
            kept.append(center.detach())
            positive = self.stored(label) if self.source == "query" else center
            if positive is None:
                losses.append(0.0 * query.sum())
                continue
            logits = [self.scale * (query @ positive - self.m)]
            still = query.detach()
            cosines = [float(still @ row.detach()) for other, row in negatives if other != label]
            own, nearest = float(still @ positive.detach()), max([-2.0, *cosines])
            whole, half = (2.0 if self.gap is None else max(self.threshold, own + self.gap / n) for n in (1, 2))
            suspects += nearest > whole
            if nearest > half and self.suspect_share >= 0.1:
                losses.append(0.0 * query.sum())
                kept[-1] = kept[-1] if self.stored(label) is None else self.stored(label)
                self.aside += 1
                continue
            for other, row in negatives:
                if other != label:
                    cosine = query @ row
                    if self.threshold is not None and self.gap is None and cosine > self.threshold:
                        if self.filtering == "drop":
                            continue
                        cosine = 0.0 * cosine
                    logits.append(self.scale * cosine)
            losses.append(torch.logsumexp(torch.stack(logits), 0) - logits[0])

        self.suspect_share = suspects / len(labels)
        together = {y: [g for z, g in zip(labels, kept, strict=True) if z == y] for y in means}
        means = {y: sum(gs) / (sum(gs)).norm() for y, gs in together.items()}  # type: ignore[union-attr,arg-type]
        if self.policy == "unique":
            for label in labels:  # identities that are here already are refreshed before anyone is evicted
                if label in self.pool:
                    self.pool.move_to_end(label)
            for label in labels:
                self.pool[label] = means[label].detach()
                self.pool.move_to_end(label)
            while len(self.pool) > self.slots:
                self.pool.popitem(last=False)
        else:
            self.ring.extend(zip(labels, kept, strict=True))
        return torch.stack(losses).mean()


CASES: list[dict] = [
    *(
        {"policy": policy, "in_batch": negatives, "share": blend, "include_stored": include}
        for policy, negatives, blend, include in itertools.product(
            ["fifo", "unique"], ["none", "fixed"], [0.0, 0.7], [False, True]
        )
    ),
    *(
        {"policy": policy, "source": "query", "share": blend, "in_batch": negatives}
        for policy, blend, negatives in itertools.product(["fifo", "unique"], [0.0, 0.8], ["none", "fixed"])
    ),
    *(
        {"policy": policy, "source": "query", "share": blend, "in_batch": "push"}
        for policy, blend in itertools.product(["fifo", "unique"], [0.0, 0.7])
    ),
    {"policy": "unique", "source": "query", "in_batch": "push", "filter_above": 0.2},
    {"policy": "unique", "source": "query", "share": 0.5, "memory": 0.3, "in_batch": "push"},
    {"policy": "unique", "source": "query", "share": 0.5, "in_batch": "push", "filter_above": 0.2, "filter_gap": 0.1},
    {"policy": "fifo", "share": 0.5, "in_batch": "fixed", "filter_above": 0.2, "filter_gap": 0.1},
    {"temperature": 0.1},
    {"policy": "unique", "filter_above": 0.3, "in_batch": "fixed"},
    {"policy": "fifo", "filter_above": 0.2, "filtering": "zero"},
]


@pytest.mark.parametrize("options", CASES, ids=lambda options: ",".join(f"{k}={v}" for k, v in options.items()))
def test_attfc_equals_the_slow_loop(options: dict) -> None:
    generator = torch.Generator().manual_seed(0)
    slots, scale, m = 12, 10.0, 0.2
    slow = SlowAttFC(slots, scale, m, **options)
    fast = attfc(slots, CosFace(scale=scale, margin=m), **options)
    for step in range(14):
        samples = int(torch.randint(1, 9, (1,), generator=generator)) if step else slots
        labels = torch.randint(0, 20, (samples,), generator=generator)
        embeddings = (4 * torch.randn(samples, SIZE, generator=generator)).requires_grad_()
        keys = 3 * torch.randn(samples, 3, SIZE, generator=generator)
        reference = embeddings.detach().double().requires_grad_()
        expected = slow(reference, labels.tolist(), keys.double())
        loss = fast(embeddings, labels, keys)
        (gradient,) = torch.autograd.grad(loss, embeddings)
        (expected_gradient,) = torch.autograd.grad(expected, reference)
        torch.testing.assert_close(loss.double(), expected.detach(), rtol=2e-5, atol=1e-6)
        torch.testing.assert_close(gradient.double(), expected_gradient, rtol=1e-4, atol=2e-6)
        held = sorted((y, round(float(row[0]), 4)) for y, row in slow.rows())
        rows, row_labels, _ = fast.container.negatives()
        filled = row_labels >= 0
        mine = sorted(zip(row_labels[filled].tolist(), rows[filled][:, 0].tolist(), strict=True))
        assert [y for y, _ in mine] == [y for y, _ in held]
        assert [x for _, x in mine] == pytest.approx([x for _, x in held], abs=2e-4)
    assert (slow.aside > 0) == ("filter_gap" in options)


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 2e-2), ("int8", 2e-2)])
@pytest.mark.parametrize("policy", ["fifo", "unique"])
def test_narrow_rows_stay_near_the_slow_loop(policy: str, dtype: str, tolerance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    size = 32
    slow = SlowAttFC(40, 10.0, 0.2, policy=policy, share=0.5)
    fast = attfc(40, CosFace(scale=10.0, margin=0.2), size, policy=policy, dtype=dtype, share=0.5)
    for _ in range(8):
        labels = torch.randint(0, 50, (8,), generator=generator)
        embeddings = torch.randn(8, size, generator=generator)
        keys = torch.randn(8, 2, size, generator=generator)
        expected = slow(embeddings.double(), labels.tolist(), keys.double())
        torch.testing.assert_close(fast(embeddings, labels, keys).double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("margin", [Margin(scale=16.0), CosFace(scale=16.0, margin=0.3)])
@pytest.mark.parametrize(("threshold", "filtering"), [(None, "drop"), (0.1, "drop"), (0.1, "zero")])
def test_full_fc_equals_dense_autograd(margin: Margin, threshold: float | None, filtering: str) -> None:
    torch.manual_seed(0)
    identities, samples = 37, 9
    head = FullFC(SIZE, identities, margin, filter_above=threshold, filtering=filtering, block_mib=0.001)
    assert float(head.weight.detach().std()) == pytest.approx(0.01, rel=0.2)
    embeddings = torch.randn(samples, SIZE, requires_grad=True)
    labels = torch.randint(0, identities, (samples,))
    head(embeddings, labels).backward()

    dense = embeddings.detach().double().requires_grad_()
    weight = head.weight.detach().double().requires_grad_()
    cosine = normalize(dense) @ normalize(weight).T
    target = torch.arange(identities) == labels.unsqueeze(1)
    if threshold is not None:
        cosine = cosine.masked_fill((cosine > threshold) & ~target, -math.inf if filtering == "drop" else 0.0)
    adjusted = torch.where(target, cosine - (0.3 if isinstance(margin, CosFace) else 0.0), cosine)
    expected = cross_entropy(16.0 * adjusted, labels)
    expected.backward()
    torch.testing.assert_close(head(embeddings, labels).double(), expected, rtol=1e-5, atol=1e-6)
    assert embeddings.grad is not None
    assert head.weight.grad is not None
    torch.testing.assert_close(embeddings.grad.double(), dense.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(head.weight.grad.double(), weight.grad, rtol=1e-4, atol=1e-4)
    mean_target = (normalize(dense) @ normalize(weight).T)[target].mean().item()
    assert head.statistics()["positive_cosine"] == pytest.approx(mean_target, abs=1e-5)


def test_a_checkpoint_made_before_images_were_set_aside_is_taken_up() -> None:
    """Its own first epoch begins then: a run saved with `filter_gap`, which left out negatives alone, goes on."""
    head = AttFC.default(4, 10, filter_above=0.3, filter_gap=0.2)
    state = head.state_dict()
    before = {name: value for name, value in state.items() if not name.startswith("set_aside")}
    assert len(before) == len(state) - 2
    head.load_state_dict(before)


@pytest.mark.parametrize(("kind", "options"), [(FullFC, {}), (PartialFC, {"share": 1.0})])
def test_rows_learn_nothing_of_images_that_are_set_aside(kind: type, options: dict) -> None:
    """From the second epoch on, once a tenth are suspect: loss and gradients are those of the other images alone, divided by all."""
    torch.manual_seed(0)
    identities, samples, margin = 37, 40, CosFace(scale=16.0, margin=0.3)
    filtered = kind(SIZE, identities, margin, filter_above=0.2, filter_gap=0.3, images=samples, **options)
    plain = kind(SIZE, identities, margin, **options)
    plain.load_state_dict({"weight": filtered.weight.detach()}, strict=False)
    plain.eval()
    weight = normalize(filtered.weight.detach())
    # The first epoch; a step that finds out how many are suspect; one that sets them aside; one without; one after it, when few were.
    for number, wrong in enumerate((True, True, True, False, True)):
        labels = torch.randint(0, identities, (samples,))
        embeddings = torch.randn(samples, SIZE) if wrong else weight[labels] + 0.01
        embeddings.requires_grad_()
        cosine = normalize(embeddings.detach()) @ weight.T
        own = cosine[torch.arange(samples), labels]
        nearest = cosine.scatter(1, labels.unsqueeze(1), -2.0).amax(1)
        suspect = (nearest > 0.2) & (nearest > own + 0.3)
        assert (0.1 < suspect.float().mean() < 0.95) == wrong
        stays = ~suspect if number == 2 else torch.ones_like(suspect)
        loss = filtered(embeddings, labels)
        expected = plain(embeddings[stays], labels[stays]) * stays.float().mean()
        torch.testing.assert_close(loss, expected)
        mine = torch.autograd.grad(loss, [embeddings, filtered.weight])
        its = torch.autograd.grad(expected, [embeddings, plain.weight])
        for one, other in zip(mine, its, strict=True):
            torch.testing.assert_close(one.to_dense(), other.to_dense(), rtol=1e-4, atol=1e-6)
        assert filtered.statistics()["set_aside_share"] == pytest.approx(1 - stays.float().mean().item())


@pytest.mark.parametrize("policy", ["fifo", "unique"])
def test_a_container_that_holds_every_center_is_a_full_fc(policy: str) -> None:
    """Frozen container = FullFC's rows, keys = the identity's row: the loss and the embeddings' gradient coincide."""
    torch.manual_seed(0)
    identities = 50
    full = FullFC(SIZE, identities, ArcFace(scale=16.0, margin=0.3))
    held = attfc(identities, ArcFace(scale=16.0, margin=0.3), policy=policy)
    centers = normalize(full.weight.detach())
    held.container.enqueue(centers, torch.arange(identities))
    held.eval()
    labels = torch.randint(0, identities, (20,))
    one = torch.randn(20, SIZE, requires_grad=True)
    two = one.detach().clone().requires_grad_()
    loss, expected = held(one, labels, 3 * centers[labels].unsqueeze(1)), full(two, labels)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(one.grad, two.grad, rtol=1e-4, atol=1e-6)


def test_in_batch_negatives_of_an_empty_unique_container_are_the_next_steps_container() -> None:
    """Negatives with in-batch centers before the enqueue = the container's rows after it."""
    torch.manual_seed(0)
    head = attfc(30, Margin(scale=10.0), policy="unique", in_batch="fixed")
    for _ in range(3):
        labels = torch.randint(0, 15, (10,))
        embeddings, keys = torch.randn(10, SIZE), torch.randn(10, 2, SIZE)
        loss = head(embeddings, labels, keys)
        rows, row_labels, _ = head.container.negatives()
        query = normalize(embeddings)
        weights = (query.unsqueeze(1) * normalize(keys, dim=2)).sum(2).softmax(1)
        positive = (query * normalize((weights.unsqueeze(2) * keys).sum(1))).sum(1)
        expected = container_softmax(query, positive, rows, row_labels, labels, 10.0).mean()
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("policy", ["fifo", "unique"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_a_step_runs_on_the_meta_device(policy: str, dtype: str) -> None:
    with torch.device("meta"):
        heads = [
            attfc(20, CosFace(), policy=policy, dtype=dtype, in_batch="fixed", share=0.5, include_stored=True, initial="random"),
            attfc(20, CosFace(), policy=policy, dtype=dtype, source="query", share=0.8, in_batch="fixed"),
            FullFC(SIZE, 20, ArcFace()),
        ]  # fmt: skip
        for head in heads:
            embeddings = torch.randn(5, SIZE, requires_grad=True)
            loss = head(embeddings, torch.zeros(5, dtype=torch.int64), torch.randn(5, 2, SIZE))
            loss.backward()
            assert loss.device.type == "meta"
            assert embeddings.grad is not None
            assert all(math.isnan(value) for value in head.statistics().values())
