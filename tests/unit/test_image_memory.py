"""The memory of every image: what it keeps, centers of the others, and AttFC with it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from attfc.config import load_config
from attfc.errors import UserError
from attfc.heads import AttFC, CenterTable, ImageMemory, OtherImages, OwnEmbedding, RecentCenters
from attfc.heads.banks.bank import Bank
from attfc.losses import CosFace
from attfc.run.components import build_head

SIZE, IDENTITIES = 8, 12
COUNTS = torch.tensor([1, 2, 3, 1, 5, 2, 2, 4, 1, 3, 2, 4])
LABELS = torch.arange(IDENTITIES).repeat_interleave(COUNTS)
IMAGES = len(LABELS)


def memory_of(**options: object) -> ImageMemory:
    return ImageMemory(**options).bind(SIZE, IDENTITIES, images=IMAGES)  # type: ignore[arg-type]


def recent() -> RecentCenters:
    return RecentCenters(count=IDENTITIES, policy="unique")


def attfc(negatives: Bank | None = None, images: int = IMAGES, **options: object) -> AttFC:
    parts = {"center": OtherImages(images), "negatives": negatives, "in_batch": "fixed"} | options
    return AttFC(SIZE, CosFace(scale=16.0), identities=IDENTITIES, **parts)  # type: ignore[arg-type]


def batches(count: int, batch: int = 9) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Embeddings and positions; identities repeat in a batch, and now and then an image does."""
    draw = torch.Generator().manual_seed(0)
    return [
        (torch.randn(batch, SIZE, generator=draw), torch.randint(IMAGES, (batch,), generator=draw))
        for _ in range(count)
    ]


def steps(head: AttFC, count: int = 12) -> list[float]:
    return [float(head(each, LABELS[at], positions_B=at)) for each, at in batches(count)]


@given(st.lists(st.lists(st.integers(0, IMAGES - 1), min_size=1, max_size=12), min_size=1, max_size=15))
@settings(max_examples=40, deadline=None)
def test_sums_are_those_of_the_last_embeddings_whatever_came(history: list[list[int]]) -> None:
    memory, last = memory_of(), torch.zeros(IMAGES, SIZE)
    for positions in map(torch.tensor, history):
        embeddings = normalize(torch.randn(len(positions), SIZE, generator=torch.Generator().manual_seed(3)), dim=1)
        memory.store_images(embeddings, memory.lookup(LABELS[positions], positions)[0], LABELS[positions], positions)
        for row, position in enumerate(positions):
            last[position] = embeddings[row].bfloat16().float()
    everybody = torch.arange(IMAGES)
    kept, sums = memory.lookup(LABELS, everybody)
    assert torch.equal(kept, last)
    others, any_others = memory.others(kept, sums)
    for position in everybody:
        mates = last[(LABELS[position] == LABELS) & (everybody != position)]
        assert bool(any_others[position]) == bool(mates.any())
        torch.testing.assert_close(others[position], mates.sum(dim=0), rtol=0, atol=1e-6)
        assert others[position].any() == mates.any(), "what rounding leaves of a sum of one is no center"


def test_the_positive_is_the_mean_of_the_other_images_and_never_ones_own() -> None:
    head = attfc(in_batch="none")
    first = normalize(torch.randn(3, SIZE), dim=1)
    of_four = torch.arange(IMAGES)[LABELS == 4]
    head(first, LABELS[of_four[:3]], positions_B=of_four[:3])
    query = torch.randn(1, SIZE)
    head(query, torch.tensor([4]), positions_B=of_four[:1])
    expected = normalize(first[1:].bfloat16().float().sum(dim=0), dim=0) @ normalize(query[0], dim=0)
    assert head.statistics()["positive_cosine"] == pytest.approx(float(expected), abs=1e-5)
    assert head.statistics()["stored_share"] == 1.0


def test_an_image_without_others_has_itself_and_at_first_sight_nobody_anything() -> None:
    head = attfc()
    alone = torch.arange(IMAGES)[LABELS == 0]
    assert steps(attfc(), 1)[0] == 0.0, "nobody has a positive yet"
    seen = torch.randn(1, SIZE)
    head(seen, torch.tensor([0]), positions_B=alone)
    assert head.statistics()["positive_cosine"] == 0.0
    query = torch.randn(1, SIZE)
    head(query, torch.tensor([0]), positions_B=alone)
    expected = torch.cosine_similarity(seen.bfloat16().float(), query).item()
    assert head.statistics()["positive_cosine"] == pytest.approx(expected, abs=1e-2)
    assert head.statistics()["stored_share"] == 0.0


def test_gradient_flows_into_the_queries_alone_and_is_that_of_differences() -> None:
    head = attfc(in_batch="none").double()  # the batch's own centers move with the queries, without gradient
    steps(head, 9)
    head.eval()
    embeddings, positions = batches(1)[0]
    torch.autograd.gradcheck(
        lambda each: head(each, LABELS[positions], positions_B=positions), embeddings.double().requires_grad_()
    )


@pytest.mark.parametrize("in_batch", ["fixed", "none"])
def test_drawing_everybody_is_a_container_with_a_slot_for_everyone(in_batch: str) -> None:
    """Not where an identity comes twice in a batch: the container keeps the mean of its centers, the memory all images."""
    drawn, held = (attfc(bank, in_batch=in_batch) for bank in (None, recent()))
    assert drawn.banks == [drawn.memory]
    assert held.banks == [held.container, held.memory]
    firsts = torch.cat([torch.zeros(1, dtype=torch.long), COUNTS.cumsum(0)[:-1]])
    for number in range(6):
        at = firsts + torch.minimum(torch.tensor(number), COUNTS - 1)
        embeddings = torch.randn(IDENTITIES, SIZE)
        losses = [float(head(embeddings, LABELS[at], positions_B=at)) for head in (drawn, held)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-2)  # bfloat16


def test_who_was_not_seen_is_nobodys_negative_and_draws_are_new_in_each_step() -> None:
    memory = memory_of()
    at = torch.tensor([0, 1, 2])
    memory.store_images(torch.eye(SIZE)[:3], memory.lookup(LABELS[at], at)[0], LABELS[at], at)
    rows, labels, _ = memory.negatives(torch.tensor([5]))
    assert sorted(set(labels.tolist())) == [-1, 0, 1]
    torch.testing.assert_close(rows[labels >= 0].norm(dim=1), torch.ones(2))
    memory.size = 4
    before = memory.negatives(torch.tensor([5]))[1]
    assert torch.equal(before, memory.negatives(torch.tensor([5]))[1]), "a look draws nothing new"
    memory.store_images(torch.eye(SIZE)[:1], memory.lookup(LABELS[:1], at[:1])[0], LABELS[:1], at[:1])
    assert len(memory.negatives(torch.tensor([5, 6, 7]))[1]) == 7, "those of the batch on top"


def test_in_eval_nothing_is_kept() -> None:
    head = attfc().eval()
    steps(head, 2)
    assert not head.memory.rows.any()
    assert not head.memory.sums.any()


@pytest.mark.parametrize("place", ["host", "file"])
def test_what_is_outside_the_device_stays_there_as_it_is(place: str, tmp_path: Path) -> None:
    head = attfc(ImageMemory(place=place, folder=tmp_path if place == "file" else None))  # type: ignore[arg-type]
    steps(head, 3)
    rows, sums = head.memory.rows, head.memory.sums
    head.double()
    assert (head.memory.rows is rows, head.memory.sums is sums) == (True, True)
    head.to("meta")
    assert {head.memory.rows.device.type, head.memory.sums.device.type} == {"cpu"}


@pytest.mark.parametrize("negatives", [recent, lambda: None], ids=["recent centers", "its own rows"])
def test_a_saved_memory_goes_on_and_others_are_refused(negatives: Callable[[], Bank | None]) -> None:
    head, again = attfc(negatives()), attfc(negatives())
    steps(head)
    again.load_state_dict(head.state_dict())
    assert steps(head) == steps(again)
    other = attfc(negatives(), images=IMAGES + 1)
    with pytest.raises(
        UserError, match=rf"memory of images holds rows of shape \({IMAGES}, 8\) .* this one \({IMAGES + 1}, 8\)"
    ):
        other.load_state_dict(head.state_dict())


def test_bytes_are_those_stated() -> None:
    memory = ImageMemory().bind(64, 300, images=1000)
    assert memory.memory_bytes() == 1000 * 2 * 64 + 300 * 4 * 65


def test_the_configuration_builds_it_where_it_says() -> None:
    others = ["center=other_images", "batch_size=16", "negatives.share=0.1"]
    head = build_head(load_config("demo", others), 200, images=700)
    assert isinstance(head, AttFC)
    assert isinstance(head.memory, ImageMemory)
    assert (head.memory.images, head.memory.identities, head.banks) == (700, 200, [head.memory])
    everyone = load_config("demo", [*others, "negatives.share=1"])
    held = build_head(everyone, 200, images=700)
    assert isinstance(held, AttFC)
    assert (held.banks, held.negatives.size) == ([held.memory], 200)  # everybody is drawn
    table = load_config("demo", ["center=other_images", "negatives=center_table"])
    with pytest.raises(UserError, match=r"^negatives=center_table does not go with center=other_images"):
        build_head(table, 200, images=700)


def test_what_cannot_be() -> None:
    head = attfc()
    embeddings, positions = batches(1)[0]
    with pytest.raises(
        UserError, match=r"needs the images' positions .* and got none: pass head\(embeddings, labels, positions_B="
    ):
        head(embeddings, LABELS[positions])
    with pytest.raises(UserError, match=r"got torch.int64 of shape \(3,\)"):
        head(embeddings, LABELS[positions], positions_B=positions[:3])
    with pytest.raises(UserError, match=rf"position 99 is outside 0 to {IMAGES - 1}: build OtherImages with images"):
        head(embeddings, LABELS[positions], positions_B=torch.where(positions == positions[0], 99, positions))
    with pytest.raises(UserError, match=r"label 12 is outside 0 to 11"):
        head(embeddings, LABELS[positions] * 0 + 12, positions_B=positions)
    with pytest.raises(UserError, match="ImageMemory does not go with center=OwnEmbedding, which remembers no images"):
        attfc(ImageMemory(), center=OwnEmbedding())
    with pytest.raises(UserError, match="negatives=CenterTable does not go with center=OtherImages"):
        attfc(CenterTable())
    with pytest.raises(UserError, match="it needs at least one image per identity"):
        ImageMemory().bind(SIZE, 4, images=3)


def test_of_an_image_that_is_set_aside_what_was_remembered_stays() -> None:
    """One seen before keeps its embedding, one never seen stays unseen; the sums are those of the rows."""
    head = attfc(filter_above=0.2, filter_gap=0.1)  # begins at the second step: `images` of an epoch is 0
    everybody = torch.arange(IMAGES)
    mine = normalize(torch.randn(IDENTITIES, SIZE), dim=1)
    seen = everybody[(COUNTS.cumsum(0) - 1)[4] != everybody]  # the last image of identity 4 was never seen
    for _ in range(2):
        head(mine[LABELS[seen]], LABELS[seen], positions_B=seen)
    before = head.memory.rows.clone(), head.memory.sums.clone()
    wrong = everybody[LABELS == 4]
    at = torch.cat([wrong, everybody[LABELS == 7]])
    strange = torch.cat([mine[5].expand(len(wrong), SIZE), normalize(mine[7] + 0.1, dim=0).expand(4, SIZE)])
    assert not head.memory.rows[wrong[-1]].any()
    head.set_aside.share.fill_(0.5)
    head(strange, LABELS[at], positions_B=at)
    assert head.statistics()["set_aside_share"] == pytest.approx(len(wrong) / len(at))
    assert torch.equal(head.memory.rows[wrong], before[0][wrong])
    assert torch.equal(head.memory.sums[4], before[1][4])
    assert not torch.equal(head.memory.rows[LABELS == 7], before[0][LABELS == 7])
