"""Methods of other papers, built from parts or as options, against slow dense versions of themselves in float64."""

import copy

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize, one_hot

from attfc.distributed import Ranks
from attfc.errors import UserError
from attfc.heads import AttFC, FullFC, Pairs, RecentCenters
from attfc.losses import CosFace

SIZE, IDENTITIES, SCALE, MARGIN = 6, 40, 8.0, 0.2


def group_batch(seed: int, groups: int = 3, each: int = 4) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randperm(IDENTITIES, generator=draw)[:groups].repeat_interleave(each)
    return torch.randn(groups * each, SIZE, generator=draw, dtype=torch.float64).requires_grad_(), labels


def test_prototype_memory_is_a_list_of_group_means_of_which_the_oldest_leaves() -> None:
    """A prototype is the mean of its group's unit embeddings; memory: a list, refreshed at its end, cut at its start."""
    slots, share = 12, 0.3
    head = AttFC(
        SIZE, CosFace(SCALE, MARGIN), identities=IDENTITIES, center=Pairs(share, group=4, own=True), in_batch="fixed",
        negatives=RecentCenters(count=slots, policy="unique"),
    ).double()  # fmt: skip
    memory: dict[int, Tensor] = {}  # in the order of their last refresh
    for seed in range(20):
        embeddings, labels = group_batch(seed)
        unit = normalize(embeddings, dim=1)
        new = {}
        for label in dict.fromkeys(labels.tolist()):
            mean = normalize(unit.detach()[labels == label].sum(0), dim=0)
            new[label] = normalize(share * memory[label] + (1 - share) * mean, dim=0) if label in memory else mean
        memory = {label: row for label, row in memory.items() if label not in new} | new
        known = list(memory)
        cosines = unit @ torch.stack([memory[label] for label in known]).T
        places = torch.tensor([known.index(label) for label in labels.tolist()])
        adjusted = cosines - MARGIN * one_hot(places, len(known))
        expected = cross_entropy(SCALE * adjusted, places)
        mine = head(embeddings, labels)
        torch.testing.assert_close(mine, expected)
        torch.testing.assert_close(
            torch.autograd.grad(mine, embeddings), torch.autograd.grad(expected, embeddings), rtol=1e-6, atol=1e-7
        )
        memory = dict(list(memory.items())[-slots:])
    assert set(memory) == set(head.negatives.labels.tolist())


def dense_loss(embeddings: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    cosines = normalize(embeddings, dim=1) @ normalize(weight, dim=1).T
    return cross_entropy(SCALE * (cosines - MARGIN * one_hot(labels, len(weight))), labels)


def test_past_embeddings_train_the_rows_and_the_batch_the_network() -> None:
    """BroadFace's two losses written out: x + |x| / |w| (w' - w) for each of the last 20, and the rows' mean over them and the batch."""
    head = FullFC(SIZE, IDENTITIES, CosFace(SCALE, MARGIN), past=20).double()
    with torch.no_grad():
        head.weight *= 100  # of length 2.4: a step turns them
    queue: list[tuple[Tensor, int, Tensor]] = []
    resumed = None
    for seed in range(8):
        embeddings, labels = group_batch(seed, groups=3, each=2)
        weight = head.weight.detach().clone().requires_grad_()
        past = [x + x.norm() / then.norm() * (weight.detach()[label] - then) for x, label, then in queue]
        every = torch.cat([torch.stack([*past]), embeddings.detach()]) if past else embeddings.detach()
        every_label = torch.tensor([*(label for _, label, _ in queue), *labels.tolist()])
        of_batch, of_all = dense_loss(embeddings, weight.detach(), labels), dense_loss(every, weight, every_label)
        loss = head(embeddings, labels)
        torch.testing.assert_close(loss, of_batch)
        mine = torch.autograd.grad(loss, [embeddings, head.weight])
        torch.testing.assert_close(mine[0], torch.autograd.grad(of_batch, embeddings)[0])
        torch.testing.assert_close(mine[1], torch.autograd.grad(of_all, weight)[0])
        if resumed is not None:
            assert torch.equal(resumed(embeddings, labels), loss)
        queue = [*queue, *zip(embeddings.detach(), labels.tolist(), weight.detach()[labels], strict=True)][-20:]
        with torch.no_grad():
            head.weight -= 3.0 * mine[1]
        resumed = FullFC(SIZE, IDENTITIES, CosFace(SCALE, MARGIN), past=20).double()
        resumed.load_state_dict(copy.deepcopy(head.state_dict()))
    head.eval()(embeddings, labels)
    assert head.past.seen == 48


def test_what_past_embeddings_do_not_go_with() -> None:
    with pytest.raises(
        UserError, match="past=20 goes with one process and one center per person, not with 2 processes"
    ):
        FullFC(SIZE, IDENTITIES, CosFace(), past=20, ranks=Ranks(0, 2))
    with pytest.raises(UserError, match="not with subcenters=3"):
        FullFC(SIZE, IDENTITIES, CosFace(), past=20, subcenters=3)
    with pytest.raises(UserError, match=r"head.past=5 is smaller than the batch \(12\): raise it to 12 or more"):
        FullFC(SIZE, IDENTITIES, CosFace(), past=5)(*group_batch(0))
