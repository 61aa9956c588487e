"""DCQ against a loop over a deque, against AttFC at K = 1, and across a save."""

import copy
from collections import deque

import pytest
import torch
from torch.nn.functional import normalize

from attfc.errors import UserError
from attfc.heads import DCQ, AttFC, KeyAttention, RecentCenters
from attfc.losses import CosFace

SIZE, SLOTS = 6, 12


def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return (
        torch.randn(5, SIZE, generator=draw).requires_grad_(),
        torch.randint(0, 15, (5,), generator=draw),
        3 * torch.randn(5, 1, SIZE, generator=draw),
    )


@pytest.mark.parametrize("threshold", [None, 0.3])
def test_dcq_equals_a_loop_over_a_queue(threshold: float | None) -> None:
    head = DCQ(SIZE, CosFace(scale=10.0, margin=0.2), count=SLOTS, filter_above=threshold)
    queue: deque[tuple[int, torch.Tensor]] = deque(maxlen=SLOTS)
    for step in range(9):
        embeddings, labels, keys = batch(step)
        slow = embeddings.detach().double().requires_grad_()
        losses = []
        for query, label, key in zip(normalize(slow), labels.tolist(), normalize(keys[:, 0].double()), strict=True):
            logits = [10.0 * (query @ key - 0.2)]
            logits += [
                10.0 * (query @ row)
                for other, row in queue
                if other != label and (threshold is None or query @ row <= threshold)
            ]
            losses.append(torch.logsumexp(torch.stack(logits), 0) - logits[0])
        expected = torch.stack(losses).mean()
        queue.extend(zip(labels.tolist(), normalize(keys[:, 0].double()), strict=True))
        loss = head(embeddings, labels, keys)
        torch.testing.assert_close(loss.double(), expected, rtol=2e-5, atol=1e-6)
        (gradient,) = torch.autograd.grad(loss, embeddings)
        (expected_gradient,) = torch.autograd.grad(expected, slow)
        torch.testing.assert_close(gradient.double(), expected_gradient, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("temperature", [0.05, 1.0, 30.0])
def test_dcq_equals_attfc_at_one_key_whatever_the_temperature(temperature: float) -> None:
    margin = CosFace(scale=10.0, margin=0.2)
    rule, queue = KeyAttention(1, temperature), RecentCenters(count=SLOTS)
    attfc = AttFC(SIZE, margin, identities=None, center=rule, negatives=queue, in_batch="none")
    head = DCQ(SIZE, margin, count=SLOTS)
    for step in range(6):
        assert torch.equal(head(*batch(step)), attfc(*batch(step)))


@pytest.mark.parametrize("old", [False, True], ids=["now", "by version 0.1"])
def test_a_save_in_between_changes_nothing(old: bool) -> None:
    whole, cut = (DCQ(SIZE, CosFace(scale=10.0), count=SLOTS) for _ in range(2))
    losses = [whole(*batch(step)) for step in range(6)]
    for step in range(3):
        cut(*batch(step))
    resumed = DCQ(SIZE, CosFace(scale=10.0), count=SLOTS)
    resumed.load_state_dict(
        {(f"attfc.{name}" if old else name): copy.deepcopy(each) for name, each in cut.state_dict().items()}
    )
    assert [torch.equal(resumed(*batch(step)), losses[step]) for step in range(3, 6)] == [True] * 3
    assert "attention_entropy" not in resumed.statistics()


def test_another_number_of_keys_is_refused() -> None:
    embeddings, labels, keys = batch(0)
    with pytest.raises(
        UserError, match=r"DCQ got keys of shape \(5, 2, 6\): it takes one key per query, shape \(B, 1, 6\)"
    ):
        DCQ(SIZE, CosFace(), count=SLOTS)(embeddings, labels, keys.expand(5, 2, SIZE))
