"""Heads: shapes, messages, geometry that can be checked by hand, and what a save preserves."""

import copy
import math
import sys
from collections.abc import Callable

import pytest
import torch
from torch.nn.functional import normalize

from attfc.errors import UserError
from attfc.heads import (
    AttFC,
    FullFC,
    Head,
    KeyAttention,
    OwnEmbedding,
    Pairs,
    RecentCenters,
    generative_class_center,
)
from attfc.heads.banks.bank import Batch
from attfc.losses import AdaFace, ArcFace, CosFace, Margin

SIZE = 8


def batch(seed: int = 0, samples: int = 6, identities: int = 20, keys: int = 2) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    embeddings = 3 * torch.randn(samples, SIZE, generator=generator)
    labels = torch.randint(0, identities, (samples,), generator=generator)
    return embeddings, labels, 5 * torch.randn(samples, keys, SIZE, generator=generator)


def directions(*degrees: float) -> torch.Tensor:
    angles = torch.deg2rad(torch.tensor(degrees))
    return torch.stack([angles.cos(), angles.sin()], dim=1)


# generative_class_center


def test_equal_attention_gives_the_middle_of_two_keys() -> None:
    keys = directions(-30, 30).unsqueeze(0) * 7  # both 30 degrees from the query, any length
    torch.testing.assert_close(generative_class_center(directions(0), keys), directions(0))


def test_longer_keys_weigh_more() -> None:
    keys = torch.tensor([[[3.0, 0.0], [0.0, 1.0]]])
    center = generative_class_center(directions(45), keys)  # equal weights: 1.5, 0.5
    torch.testing.assert_close(center, normalize(torch.tensor([[3.0, 1.0]])))


def test_a_low_temperature_picks_the_nearest_key_and_a_high_one_none() -> None:
    keys = directions(10, 90).unsqueeze(0)
    torch.testing.assert_close(generative_class_center(directions(0), keys, 1e-3), directions(10))
    torch.testing.assert_close(generative_class_center(directions(0), keys, 1e6), directions(50))


def test_the_stored_center_is_a_candidate_of_the_keys_mean_length() -> None:
    keys = torch.stack([directions(-20), directions(20)], dim=1).expand(2, 2, 2) * torch.tensor([[[2.0], [6.0]]])
    stored = directions(90).expand(2, 2)
    center = generative_class_center(
        directions(0).expand(2, 2), keys, 0.5, stored_BD=stored, stored_B=torch.tensor([True, False])
    )
    near, far = math.exp(math.cos(math.radians(20)) / 0.5), math.exp(0.0)
    with_stored = near * 2 * directions(-20) + near * 6 * directions(20) + far * 4 * directions(90)
    torch.testing.assert_close(center[:1], normalize(with_stored))
    torch.testing.assert_close(center[1:], normalize(2 * directions(-20) + 6 * directions(20)))


def test_the_center_has_no_gradient_and_is_float32() -> None:
    query, keys = torch.randn(3, 4, requires_grad=True), torch.randn(3, 2, 4, requires_grad=True)
    center = generative_class_center(query, keys)
    assert not center.requires_grad
    assert generative_class_center(query.bfloat16(), keys.bfloat16()).dtype == torch.float32
    assert generative_class_center(query.double(), keys.double()).dtype == torch.float64


# pairs


@pytest.mark.parametrize("options", [{}, {"policy": "fifo", "in_batch": "none", "count": 16}, {"share": 0.0}])
def test_in_pairs_each_query_is_the_others_key(options: dict[str, object]) -> None:
    """The same as K = 1 with the neighbour's embedding, which takes a key pass there."""
    made = {"policy": "unique", "in_batch": "fixed", "share": 0.5} | options
    share = made.pop("share")
    pairs, keys = attfc(center=Pairs(share), **made), attfc(center=KeyAttention(1, share=share), **made)
    assert pairs.keys_per_query == 0
    for seed in range(6):
        embeddings, labels, _ = batch(seed, samples=6)
        labels = labels.repeat_interleave(2)
        embeddings = torch.cat([embeddings, embeddings.flip(1)]).requires_grad_()
        partners = embeddings.detach().view(6, 2, SIZE).flip(1).reshape(12, 1, SIZE)
        losses = [pairs(embeddings, labels), keys(embeddings, labels, partners)]
        gradients = [torch.autograd.grad(loss, embeddings)[0] for loss in losses]
        torch.testing.assert_close(losses[0], losses[1])
        torch.testing.assert_close(gradients[0], gradients[1])
    torch.testing.assert_close(pairs.container.rows, keys.container.rows)


def test_a_query_whose_neighbour_is_somebody_else_has_its_stored_center_or_nothing() -> None:
    head = attfc(center=Pairs(0.5), policy="unique")
    first = torch.eye(SIZE)[:2]
    assert float(head(first, torch.tensor([3, 4]))) == 0.0  # no partner, nothing stored
    embeddings = torch.eye(SIZE)[[0, 2]].requires_grad_()
    loss = head(embeddings, torch.tensor([3, 5]))
    loss.backward()
    expected = torch.nn.functional.softplus(
        torch.tensor(0.0) - 16.0 * (1.0 - 0.4)
    )  # one negative at cosine 0; the other counts 0
    torch.testing.assert_close(loss.detach(), expected / 2)
    assert not embeddings.grad[1].any()
    assert head.container.fill == 3


def test_pairs_need_an_even_batch() -> None:
    with pytest.raises(UserError, match="got 3 queries: 2i and 2i"):
        attfc(center=Pairs())(torch.eye(SIZE)[:3], torch.tensor([1, 1, 2]))
    with pytest.raises(UserError, match=r"got 3 queries: 4i to 4i \+ 3 are each other's key, pass a multiple of 4"):
        attfc(center=Pairs(group=4))(torch.eye(SIZE)[:3], torch.tensor([1, 1, 2]))


def test_in_a_group_each_query_has_the_mean_of_its_others() -> None:
    """Neighbours of another identity (a broken image was replaced) are left out; who has none is not stored and teaches nothing."""
    embeddings, labels = directions(0, 40, 80, 100), torch.tensor([1, 1, 1, 2])
    for own, angles in ((False, [60, 40, 20]), (True, [40, 40, 40])):
        head = attfc(2, center=Pairs(0.0, group=4, own=own))
        batch = Batch(embeddings, labels, labels)
        proposal = head.center(batch, embeddings, head._recall(batch))
        torch.testing.assert_close(proposal.positive_BD[:3], directions(*angles))
        torch.testing.assert_close(proposal.new_BD, directions(*angles, 100))
        assert proposal.has_positive_B.tolist() == [True, True, True, False]


# errors


def attfc(size: int = SIZE, margin: Margin | None = None, **options: object) -> AttFC:
    """With the published parts: two keys, a first-in first-out container of 32, nothing of the batch; its options go to the container."""
    bank = {name: options.pop(name) for name in ("count", "policy", "dtype", "initial") if name in options}
    parts = {"center": KeyAttention(), "negatives": RecentCenters(**{"count": 32} | bank), "in_batch": "none"} | options
    return AttFC(size, margin or CosFace(scale=16.0), identities=None, **parts)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            (torch.zeros(4, 5), torch.zeros(4, dtype=torch.int64), torch.zeros(4, 2, 5)),
            "embeddings have shape (4, 5), the head expects (B, 8): build backbone and head with the same embedding_size",
        ),
        (
            (torch.zeros(4, 8), torch.zeros(3, dtype=torch.int64), torch.zeros(4, 2, 8)),
            "labels have shape (3,), the embeddings (4, 8): pass one label per sample, shape (4,)",
        ),
        (
            (torch.zeros(4, 8), torch.zeros(4), torch.zeros(4, 2, 8)),
            "labels are torch.float32, not torch.int64: convert them with labels.long() "
            "(float32 would merge identities above 2**24)",
        ),
        (
            (torch.zeros(4, 8), torch.tensor([0, -1, 2, 3]), torch.zeros(4, 2, 8)),
            "a label is -1: labels count from 0, negative ones are reserved",
        ),
        (
            (torch.zeros(0, 8), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 2, 8)),
            "the batch is empty (B = 0): the mean loss of no sample is not defined",
        ),
        (
            (torch.zeros(4, 8), torch.arange(4), torch.zeros(4, 0, 8)),
            "keys_BKD holds no keys (K = 0): the attention loader needs keys_per_query >= 1",
        ),
        (
            (torch.zeros(4, 8), torch.arange(4), torch.zeros(4, 2, 7)),
            "keys have shape (4, 2, 7), the queries (4, 8): "
            "embed K images per query with the key encoder, shape (4, K, 8)",
        ),
        (
            (torch.zeros(4, 8), torch.arange(4), torch.zeros(8, 8)),
            "keys have shape (8, 8), the queries (4, 8): embed K images per query with the key encoder, shape (4, K, 8)",
        ),
        (
            (torch.zeros(4, 8), torch.arange(4)),
            "AttFC got no keys: pass head(embeddings, labels, keys) with the key encoder's (B, K, D), "
            "or build it with center=OwnEmbedding()",
        ),
        (
            (torch.zeros(33, 8), torch.arange(33), torch.zeros(33, 2, 8)),
            "container has 32 slots, which is smaller than the batch (33): "
            "raise count to at least 33 (it may exceed the identities), or lower the batch to 32",
        ),
    ],
)
def test_wrong_batches_are_refused_in_one_line(arguments: tuple[torch.Tensor, ...], message: str) -> None:
    head = attfc()
    with pytest.raises(UserError) as error:
        head(*arguments)
    assert str(error.value) == message
    assert int(head.container.fill) == 0


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: RecentCenters(count=0), "RecentCenters: count is 0, and must be at least 1: slots"),
        (
            lambda: RecentCenters(share=1.5),
            "RecentCenters: share is 1.5, and must be above 0 and at most 1: slots as a",
        ),
        (lambda: RecentCenters(share=0.1, count=9), "RecentCenters got share=0.1 and count=9: give one of them"),
        (lambda: KeyAttention(keys=0), "KeyAttention: keys is 0, and must be at least 1: keys per query"),
        (lambda: KeyAttention(temperature=0.0), "KeyAttention: temperature is 0.0, and must be above 0: below 1, keys"),
        (lambda: OwnEmbedding(share=1.0), "OwnEmbedding: share is 1.0, and must be at least 0 and below 1: share of"),
        (
            lambda: attfc(in_batch="psh"),
            "AttFC: in_batch is 'psh': choose one of push, fixed, none; did you mean 'push'?",
        ),
        (lambda: attfc(filtering="drp"), "AttFC: filtering is 'drp': choose one of drop, zero; did you mean 'drop'?"),
        (lambda: attfc(size=0), "embedding_size is 0"),
    ],
)
def test_wrong_options_are_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError) as error:
        build()
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_full_fc_refuses_labels_out_of_range_and_no_identities() -> None:
    head = FullFC(SIZE, 10, Margin(scale=16.0))
    with pytest.raises(UserError) as error:
        head(torch.zeros(2, SIZE), torch.tensor([3, 10]))
    assert str(error.value) == (
        "label 10 is outside 0 to 9: build the head with identities = the data set's number of identities"
    )
    with pytest.raises(UserError, match="identities is 0"):
        FullFC(SIZE, 0, Margin())


# the step


def test_the_batch_meets_the_container_as_it_was_before() -> None:
    head = attfc(2, Margin(scale=4.0), count=4)
    query, keys = directions(0), directions(0).unsqueeze(1)
    assert head(query, torch.tensor([0]), keys).item() == 0  # no negatives: not even itself
    assert head(query, torch.tensor([0]), keys).item() == 0  # its own row is masked
    expected = math.log(1 + math.exp(4 * math.cos(math.pi / 3)) * 2 / math.exp(4))  # two rows of identity 0
    loss = head(directions(60), torch.tensor([1]), directions(60).unsqueeze(1))
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_nothing_is_enqueued_in_eval() -> None:
    head = attfc().eval()
    head(*batch())
    assert int(head.container.fill) == 0


def test_arguments_stay_as_they_were() -> None:
    for options in ({}, {"policy": "unique", "in_batch": "fixed", "center": KeyAttention(share=0.5)}):
        head = attfc(**options)
        arguments = batch()
        copies = [argument.clone() for argument in arguments]
        head(*arguments)
        head(*arguments)
        assert all(torch.equal(a, b) for a, b in zip(arguments, copies, strict=True))


def test_gradient_reaches_the_embeddings_only() -> None:
    head = attfc(in_batch="fixed")
    head(*batch(1))
    embeddings, labels, keys = batch(2)
    embeddings.requires_grad_()
    keys.requires_grad_()
    head(embeddings, labels, keys).backward()
    assert embeddings.grad is not None
    assert embeddings.grad.abs().sum() > 0
    assert keys.grad is None
    assert not list(head.parameters())
    assert not any(buffer.requires_grad for buffer in head.buffers())


def test_embeddings_under_autocast_are_computed_in_float32() -> None:
    embeddings, labels, keys = (t.bfloat16() if t.is_floating_point() else t for t in batch(1, samples=12))
    heads: list[Head] = [attfc(), FullFC(SIZE, 20, ArcFace(scale=16.0))]
    for head in heads:
        plain = copy.deepcopy(head)
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16):
                loss = head(embeddings, labels, keys)
            expected = plain(embeddings.float(), labels, keys.float())
        assert loss.dtype == torch.float32
        assert torch.equal(loss, expected)


def test_adaface_receives_the_norms_of_the_embeddings() -> None:
    seen: list[torch.Tensor] = []

    class Spy(AdaFace):
        def forward(self, cosine_B: torch.Tensor, norms_B: torch.Tensor | None = None) -> torch.Tensor:
            assert norms_B is not None
            seen.append(norms_B.detach().clone())
            return super().forward(cosine_B, norms_B)

    embeddings, labels, keys = batch(1)
    attfc(margin=Spy())(embeddings, labels, keys)
    FullFC(SIZE, 20, Spy())(embeddings, labels)
    for norms in seen:
        torch.testing.assert_close(norms, embeddings.norm(dim=1))
    assert len(seen) >= 2


def test_centers_from_queries_need_no_keys_and_train_on_stored_identities_only() -> None:
    head = attfc(2, Margin(scale=4.0), count=4, center=OwnEmbedding(0.75))
    assert head.keys_per_query == 0
    embeddings = directions(0, 90).requires_grad_()
    loss = head(embeddings, torch.tensor([0, 1]))
    loss.backward()
    assert loss.item() == 0  # nobody is stored yet: nothing to learn from
    assert embeddings.grad is not None
    assert embeddings.grad.abs().sum() == 0
    assert torch.equal(head.container.rows[:2], directions(0, 90))

    embeddings = directions(40, 200)
    loss = head(
        embeddings, torch.tensor([0, 2])
    )  # 0 is stored at 0 degrees; 2 is not: it counts 0, the divisor stays 2
    expected = math.log(1 + math.exp(4 * math.cos(math.radians(50))) / math.exp(4 * math.cos(math.radians(40)))) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    found, rows = head.container.lookup(torch.tensor([0, 2]))
    assert found.all()
    torch.testing.assert_close(rows[:1], normalize(0.75 * directions(0) + 0.25 * directions(40)))
    torch.testing.assert_close(rows[1:], directions(200))
    assert head.statistics()["stored_share"] == 0.5
    assert head.statistics()["positive_cosine"] == pytest.approx(math.cos(math.radians(40)), rel=1e-5)


def test_statistics_of_a_step() -> None:
    head = attfc(2, Margin(scale=4.0), count=4)
    assert head.statistics() == {"fill": 0.0, "center_age": 0.0}
    keys = torch.stack([directions(0), directions(60)], dim=1)
    head(directions(0), torch.tensor([3]), keys)
    weight = 1 / (1 + math.exp(-0.5))
    center = normalize(weight * directions(0) + (1 - weight) * directions(60))
    figures = head.statistics()
    assert figures["fill"] == 0.25
    assert figures["positive_cosine"] == pytest.approx(float(center[0, 0]), rel=1e-5)
    entropy = -(weight * math.log(weight) + (1 - weight) * math.log(1 - weight))
    assert figures["attention_entropy"] == pytest.approx(entropy, rel=1e-5)


OPTIONS: list[dict] = [
    {},
    {"policy": "unique", "in_batch": "fixed", "center": {"share": 0.8, "include_stored": True}},
    {"policy": "unique", "dtype": "int8", "center": {"share": 0.8}},
    {"dtype": "bfloat16", "initial": "random"},
    {"policy": "unique", "center": {"keys": None, "share": 0.5}},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_save_load_step_equals_the_uninterrupted_run(options: dict, tmp_path) -> None:
    rule = dict(options.get("center", {}))
    kind = OwnEmbedding if rule.pop("keys", 2) is None else KeyAttention
    straight, resumed = (attfc(count=11, **options | {"center": kind(**rule)}) for _ in range(2))
    for seed in range(5):
        straight(*batch(seed))
    torch.save(straight.state_dict(), tmp_path / "head.pt")
    resumed.load_state_dict(torch.load(tmp_path / "head.pt", weights_only=True))
    for seed in range(5, 10):
        assert torch.equal(straight(*batch(seed)), resumed(*batch(seed)))


def test_changing_the_number_of_slots_is_a_clear_error() -> None:
    with pytest.raises(UserError, match="the checkpoint's container has 11 slots of 8 numbers, this one 32 of 8"):
        attfc().load_state_dict(attfc(count=11).state_dict())


def test_no_matrix_of_batch_times_identities_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor that autograd keeps for the backward of FullFC (its logits do not fit) and AttFC, by size."""
    monkeypatch.setattr(sys.modules["attfc.losses.class_softmax"], "KEPT_MIB", 0)
    samples, rows = 16, 4096
    generator = torch.Generator().manual_seed(0)
    heads: list[Head] = [
        FullFC(SIZE, rows, Margin(scale=16.0), block_mib=0.05),
        attfc(count=rows, initial="random", block_mib=0.05),
    ]
    for head in heads:
        sizes: list[int] = []

        def note(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        embeddings = torch.randn(samples, SIZE, generator=generator).requires_grad_()
        keys = torch.randn(samples, 2, SIZE, generator=generator)
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            head(embeddings, torch.arange(samples), keys)
        assert max(sizes) <= rows * SIZE < samples * rows


def test_attfc_in_a_bare_loop() -> None:
    """The README's example: a head in anybody's loop."""
    backbone = torch.nn.Linear(12, SIZE)
    head = attfc(
        margin=ArcFace(scale=16.0, margin=0.5),
        center=KeyAttention(share=0.8),
        policy="unique",
        in_batch="fixed",
        count=64,
    )
    optimizer = torch.optim.SGD(backbone.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(0)
    people = torch.randn(16, 12, generator=generator)
    losses = []
    for _ in range(40):
        labels = torch.randint(0, 16, (16,), generator=generator)
        images = people[labels] + 0.1 * torch.randn(16, 12, generator=generator)
        with torch.no_grad():
            keys = backbone(people[labels]).unsqueeze(1)
        loss = head(backbone(images), labels, keys)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.7 * sum(losses[4:14])
