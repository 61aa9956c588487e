"""`AttFC.default` and `AttFC.published`: what the configuration builds, for any number of identities and any batch."""

import json

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from attfc.config import load_config
from attfc.config.choose import Data, Machine, choose
from attfc.config.profiles import usual_negatives
from attfc.errors import UserError
from attfc.heads import AttFC, CenterTable, FullFC, Head, OtherImages, OwnEmbedding, Pairs, PartialFC
from attfc.heads.attfc import default_margin
from attfc.losses import CosFace
from attfc.run.components import build_head
from attfc.training.reports import LabelWatch

SIZE = 16
BATCH = 128
FEW = (2, 3, 20, 60, 127, 128)


def batch(step: int, identities: int, samples: int = BATCH, keys: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy views of one direction per identity; labels repeat."""
    random = torch.Generator().manual_seed(step)
    people = normalize(torch.randn(identities, SIZE, generator=torch.Generator().manual_seed(99)), dim=1)
    labels = torch.randint(0, identities, (samples,), generator=random)
    noise = 0.3 * torch.randn(1 + keys, samples, SIZE, generator=random)
    views = people[labels] + noise
    return views[0].requires_grad_(), labels, views[1:].transpose(0, 1)


def same_steps(head: AttFC, built: Head, identities: int, steps: int = 5) -> None:
    for step in range(steps):
        losses, gradients = [], []
        for each in (head, built):
            embeddings, labels, keys = batch(step, identities)
            loss = each(embeddings, labels, keys) if each.keys_per_query else each(embeddings, labels)
            loss.backward()
            losses.append(loss.detach())
            gradients.append(embeddings.grad)
        assert torch.equal(*losses)
        assert torch.equal(*gradients)
    assert losses[0] > 0


@pytest.mark.parametrize(("identities", "negatives"), [(60, 60), (900, 200), (3000, 300), (12_000, 1200)])
def test_default_is_what_the_configuration_builds(identities: int, negatives: int) -> None:
    overrides = [f"backbone.embedding_size={SIZE}", "margin.scale=32", f"negatives.count={negatives}", "seed=3"]
    built = build_head(load_config("ms1mv3_attfc_r50", [*overrides, "margin=cosface", "margin.margin=0.4"]), identities)
    same_steps(AttFC.default(SIZE, identities, negatives=CenterTable(seed=3)), built, identities)


def test_published_is_what_its_profile_builds() -> None:
    overrides = ["profile=published", f"backbone.embedding_size={SIZE}", "negatives.count=256"]
    built = build_head(load_config("glint360k_attfc_r50", overrides), 300)
    head = AttFC.published(SIZE, 256)
    same_steps(head, built, 300)
    assert (head.keys_per_query, head.margin.scale, head.margin.gradient) == (2, 64.0, "straight_through")


def test_default_numbers_follow_the_identities() -> None:
    expected = {2: (2, 32), 1000: (200, 32), 49_999: (4999, 32), 50_000: (5000, 64), 1_000_000: (20_000, 64)}
    for identities, (negatives, scale) in expected.items():
        head = AttFC.default(2, identities)
        assert isinstance(head.center, OwnEmbedding)
        assert (head.negatives.size, head.margin.scale, head.center.share) == (negatives, scale, 0.6)
        assert isinstance(head.margin, CosFace)
        assert head.margin.m3 == 0.4
    changed = AttFC.default(
        2,
        10,
        margin=CosFace(16.0, 0.2),
        negatives=CenterTable(count=5, place="device"),
        in_batch="none",
        center=OwnEmbedding(share=0.0),
    )
    assert (changed.negatives.size, changed.margin.scale, changed.in_batch) == (5, 16.0, "none")
    assert changed.table.store.place == "device"


@pytest.mark.parametrize("identities", [2, 60, 999, 10_009, 49_999, 50_000, 92_431, 3_000_000])
def test_default_numbers_are_those_that_the_command_line_chooses(identities: int) -> None:
    rows = choose(Data(identities, 20 * identities, identities), Machine("cpu", 16, 16), {})
    chosen = {key: value for row in rows for key, value in row.values.items()}
    margin = default_margin(identities)
    assert isinstance(margin, CosFace)
    assert usual_negatives(identities) == chosen["negatives.count"]
    assert (margin.scale, margin.m3) == (chosen["margin.scale"], chosen["margin.margin"])


@pytest.mark.parametrize("identities", FEW)
@pytest.mark.parametrize("kind", ["default", "full_fc", "partial_fc"])
def test_a_batch_larger_than_the_identities_just_works(kind: str, identities: int) -> None:
    torch.manual_seed(0)
    margin = CosFace(32.0, 0.4)
    heads = {
        "default": lambda: AttFC.default(SIZE, identities),
        "full_fc": lambda: FullFC(SIZE, identities, margin),
        "partial_fc": lambda: PartialFC(SIZE, identities, margin),
    }
    head = heads[kind]()
    for step in range(3):
        embeddings, labels, _ = batch(step, identities)
        loss = head(embeddings, labels)
        loss.backward()
        assert embeddings.grad is not None
        assert embeddings.grad.isfinite().all()
    assert loss > 0
    assert embeddings.grad.any()
    if kind == "default":
        assert head.statistics()["positive_share"] > 0.8


@pytest.mark.parametrize("identities", FEW)
@pytest.mark.parametrize(
    "options",
    [["profile=published", "negatives.share=0.1"], ["head=dcq", "head.share=0.1"], ["head=dcp", "head.share=0.1"]],
)
def test_a_container_takes_more_slots_than_there_are_identities(options: list[str], identities: int) -> None:
    overrides = [f"backbone.embedding_size={SIZE}", "data.root=faces", *options]
    head = build_head(load_config("faces112", overrides), identities)
    for step in range(3):
        embeddings, labels, keys = batch(step, identities, keys=head.keys_per_query)
        loss = head(embeddings, labels, keys)
        loss.backward()
        assert embeddings.grad is not None
        assert embeddings.grad.isfinite().all()
    assert loss > 0


def test_published_takes_more_slots_than_identities_and_refuses_fewer_than_the_batch() -> None:
    with pytest.raises(UserError) as error:
        AttFC.published(SIZE, 20)(*batch(0, 20))
    assert str(error.value) == (
        "container has 20 slots, which is smaller than the batch (128): raise count to at least 128 (it may exceed the "
        "identities), or lower the batch to 20"
    )
    for slots, samples in ((128, 128), (20, 20)):  # both ways out
        head = AttFC.published(SIZE, slots)
        losses = [head(*batch(step, 20, samples)).item() for step in range(3)]
        assert losses[-1] > 0


@pytest.mark.parametrize(
    ("identities", "changes", "message"),
    [
        (10, {"in_btch": "none"}, "AttFC: got an unexpected keyword argument 'in_btch'; did you mean 'in_batch'?"),
        (10, {"policy": "fifo"}, "AttFC has no argument policy: write negatives=RecentCenters(policy=...)"),
        (10, {"center_blend": 0.5}, "AttFC has no argument center_blend: write center=OwnEmbedding(share=...), or the share"),
        (1, {}, "identities is 1: training tells identities apart, so it needs at least 2"),
        (10, {"negatives": 5}, "AttFC: negatives is 5: give a bank, such as CenterTable(count=...)"),
        (10, {"negatives": "table"}, "AttFC: negatives is 'table': give a bank, such as CenterTable(count=...)"),
        (10, {"center": "query"}, "AttFC: center is 'query': give a center rule, such as OwnEmbedding(share=...)"),
        (10, {"in_batch_gradient": True}, "AttFC has no argument in_batch_gradient: write in_batch="),
    ],
)  # fmt: skip
def test_wrong_options_are_refused(identities: int, changes: dict, message: str) -> None:
    with pytest.raises((UserError, TypeError)) as error:
        AttFC.default(SIZE, identities, **changes)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_statistics_say_which_share_had_a_positive() -> None:
    margin, labels = CosFace(32.0, 0.4), torch.tensor([0, 0, 1, 2])
    embeddings = torch.randn(4, SIZE, generator=torch.Generator().manual_seed(0))
    head = AttFC.default(SIZE, 3)
    assert head(embeddings, labels).item() == 0
    assert head.statistics()["positive_share"] == 0
    assert head(embeddings, torch.tensor([0, 0, 1, 1])).item() > 0
    assert head.statistics()["positive_share"] == 1

    pairs = AttFC(SIZE, margin, identities=3, center=Pairs())
    pairs(embeddings, labels)  # the first two are each other's; the others are alone and not stored yet
    assert pairs.statistics()["positive_share"] == 0.5
    assert pairs.statistics()["stored_share"] == 0

    others = AttFC(SIZE, margin, identities=3, center=OtherImages(images=4))
    for share in (0, 1):
        others(embeddings, labels, positions_B=torch.arange(4))
        assert others.statistics()["positive_share"] == share
    assert others.statistics()["stored_share"] == 0.5  # the last two have no other image, but their own last embedding


def test_disagreeing_share_counts_images_far_from_the_center_of_their_label_since_it_was_last_asked() -> None:
    head = AttFC.default(4, identities=8)
    axes = torch.eye(4)
    head(axes[:2], torch.tensor([0, 1]))  # nobody has a center yet
    assert head.statistics()["disagreeing_share"] == 0
    head(axes[:2], torch.tensor([0, 1]))
    head(axes[[2, 1, 3]], torch.tensor([0, 1, 5]))  # an image of another person under label 0; label 5 is new
    assert head.statistics()["disagreeing_share"] == 0.25
    head(axes[1:2], torch.tensor([1]))
    assert head.statistics()["disagreeing_share"] == 0


def test_advice_on_wrong_labels_names_nothing_that_the_run_has_already() -> None:
    for sets_aside, advice in (
        (False, "head.filter_above=0.3 head.filter_gap=0.2"),
        (True, "train again without them"),
    ):
        watch = LabelWatch(sets_aside)
        said = [watch.note(200 * epoch, epoch, 0.2) for epoch in (0.8, 1.6, 1.9, 2.1)]
        assert said[:3] == [None] * 3
        assert advice in said[3]
        assert "`attfc data clean DATA --model RUN`" in said[3]
        assert ("head.filter" in said[3]) == (not sets_aside)


def test_a_resumed_run_says_the_advice_on_wrong_labels_no_second_time() -> None:
    watch, again = LabelWatch(), LabelWatch()
    early = [watch.note(200 * epoch, epoch, 0.2) for epoch in (0.8, 1.6, 1.9)]
    again.load_state_dict(json.loads(json.dumps(watch.state_dict())))
    assert again.state_dict()["shares"] == [0.2], "what was seen counts after the resume"
    assert early == [None] * 3
    assert again.note(420, 2.1, 0.2) is not None
    watch.load_state_dict(again.state_dict())
    assert [watch.note(200 * epoch, epoch, 0.2) for epoch in (2.2, 2.3)] == [None, None]
    watch.load_state_dict({})  # of a checkpoint of an earlier version
    assert watch.note(500, 2.5, 0.2) is not None
