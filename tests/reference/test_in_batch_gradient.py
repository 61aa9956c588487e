"""The gradient through the batch's own centers: against finite differences, and where it must not flow."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from attfc.config import load_config
from attfc.errors import UserError
from attfc.heads import AttFC, CenterTable, KeyAttention, OtherImages, OwnEmbedding, Pairs, RecentCenters
from attfc.losses import CosFace
from attfc.run.components import build_head

SIZE, IDENTITIES, IMAGES = 6, 10, 30  # three images each
LABELS = torch.arange(IMAGES) // 3


RULES = {"query": lambda: OwnEmbedding(0.6), "others": lambda: OtherImages(IMAGES), "batch": lambda: Pairs(0.6)}


def attfc(source: str, in_batch: str = "push") -> AttFC:
    negatives = RecentCenters(count=IDENTITIES, policy="unique") if source == "batch" else None
    margin = CosFace(scale=8.0, margin=0.2)
    return AttFC(SIZE, margin, identities=IDENTITIES, center=RULES[source](), negatives=negatives, in_batch=in_batch)


def step(head: AttFC, embeddings: Tensor, positions: Tensor) -> Tensor:
    return head(embeddings, LABELS[positions], positions_B=positions if head.takes_positions else None)


def drawn(count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    embeddings = torch.randn(count, SIZE, dtype=torch.float64, generator=generator)
    return 3 * embeddings, torch.randint(IMAGES, (count,), generator=generator)


def filled(source: str, in_batch: str = "push") -> AttFC:
    head = attfc(source, in_batch)
    for seed in range(4):  # some identities stay unseen
        step(head, *drawn(4, seed))
    return head.eval()


@pytest.mark.parametrize("source", ["query", "others"])
def test_all_of_the_gradient_is_there(source: str) -> None:
    """Positives and drawn rows are of earlier steps, so the loss as a function of the batch has no other gradient than its own."""
    head = filled(source)
    embeddings, positions = drawn(7, 9)
    assert len(set(LABELS[positions].tolist())) < 7, "one identity twice, whose centers are merged"
    inputs = embeddings.requires_grad_()
    assert torch.autograd.gradcheck(lambda given: step(head, given, positions), inputs)
    one_way = filled(source, "fixed")
    assert step(one_way, inputs, positions) == step(head, inputs, positions)
    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        torch.autograd.gradcheck(lambda given: step(one_way, given, positions), inputs)


def test_of_pairs_the_negatives_alone_pass_it_on() -> None:
    head = attfc("batch")
    embeddings = drawn(4, 0)[0].requires_grad_()
    labels = torch.tensor([3, 3, 5, 5])
    (mine,) = torch.autograd.grad(head(embeddings, labels), embeddings)
    unit = normalize(embeddings, dim=1)
    partners = unit.detach()[[1, 0, 3, 2]]  # nothing is stored yet: the partner is the center
    negatives = normalize(torch.stack([unit[2] + unit[3], unit[0] + unit[1]]), dim=1)[[0, 0, 1, 1]]
    logits = torch.stack([(unit * partners).sum(1) - 0.2, (unit * negatives).sum(1)], dim=1)
    loss = torch.nn.functional.cross_entropy(8.0 * logits, torch.zeros(4, dtype=torch.int64))
    torch.testing.assert_close(mine, torch.autograd.grad(loss, embeddings)[0])


@pytest.mark.parametrize("source", ["query", "others", "batch"])
def test_it_pushes_apart_and_changes_nothing_that_is_kept(source: str) -> None:
    kept = []
    for in_batch in ("push", "fixed"):
        head = attfc(source, in_batch)
        for seed in range(3):
            embeddings, positions = drawn(6, seed)
            step(head, embeddings.requires_grad_(), positions).backward()
        kept.append(head.state_dict())
        assert not any(tensor.requires_grad for tensor in kept[-1].values())
    assert all(torch.equal(one, other) for one, other in zip(kept[0].values(), kept[1].values(), strict=True))


def test_keys_have_nothing_to_push() -> None:
    with pytest.raises(
        UserError, match=r'^in_batch="push" does not go with center=KeyAttention: keys carry no gradient; take'
    ):
        AttFC(SIZE, CosFace(scale=8.0), identities=IDENTITIES, center=KeyAttention(), negatives=CenterTable())


@pytest.mark.parametrize(
    ("overrides", "pushes"),
    [
        ([], True),
        (["center=key_attention"], False),
        (["in_batch=none"], False),
        (["center=other_images"], True),
    ],
)
def test_a_configuration_says_nothing_where_it_does_not_apply(overrides: list[str], pushes: bool) -> None:
    config = load_config("demo", ["negatives.share=0.5", *overrides])
    head = build_head(config, IDENTITIES, images=IMAGES)
    assert isinstance(head, AttFC)
    assert (head.in_batch == "push") is pushes
