"""Methods of other papers, built from parts or as options, against slow dense versions of themselves in float64."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from attfc.heads import AttFC, Pairs, RecentCenters
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
        adjusted = cosines - MARGIN * torch.nn.functional.one_hot(places, len(known))
        expected = cross_entropy(SCALE * adjusted, places)
        mine = head(embeddings, labels)
        torch.testing.assert_close(mine, expected)
        torch.testing.assert_close(
            torch.autograd.grad(mine, embeddings), torch.autograd.grad(expected, embeddings), rtol=1e-6, atol=1e-7
        )
        memory = dict(list(memory.items())[-slots:])
    assert set(memory) == set(head.negatives.labels.tolist())
