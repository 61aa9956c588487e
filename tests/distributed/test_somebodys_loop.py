"""A head in somebody's own module under DistributedDataParallel: kept apart it is one process's, and what would go wrong is said."""

import io
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import attfc
from attfc.distributed import ALONE, Ranks
from attfc.errors import UserError

from .launch import on_ranks

IDENTITIES, BATCH = 10, 4  # blocks of equal size: with others a copy over the others breaks at once


class Recognition(nn.Module):
    """Network and head in one, as Lightning and the Trainer of transformers want it."""

    def __init__(self, trained: bool = False, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Linear(6, 4)
        if trained:
            self.head: attfc.Head = attfc.FullFC(4, IDENTITIES, attfc.CosFace(16.0), **options)
        else:
            self.head = attfc.AttFC.default(4, identities=IDENTITIES, **options)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        loss: Tensor = self.head(self.backbone(images), labels)
        return loss


def train(apart: bool, trained: bool = False, **options: Any) -> tuple[list[Tensor], Tensor]:
    """Return the mean losses of five steps, and the rows of all ranks."""
    module, ranks = Recognition(trained, **options), Ranks.world()
    if apart:
        module.head.keep_apart(module)
    wrapped = module if ranks.size == 1 else DistributedDataParallel(module)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    generator, losses = torch.Generator().manual_seed(1), []
    for _ in range(5):
        images = torch.randn(BATCH, 6, generator=generator)
        labels = torch.randint(IDENTITIES, (BATCH,), generator=generator)
        loss = wrapped(ranks.own(images), ranks.own(labels))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(ranks.mean(loss.detach()))
    return losses, module.head.full_state_dict()["weight" if trained else "table.rows"]


def built_too_early() -> str:
    module = Recognition(ranks=ALONE)
    module.head._all_ranks = True  # as if there had been no process group yet
    try:
        module(torch.randn(2, 6), torch.tensor([0, 1]))
    except UserError as error:
        return str(error)
    return ""


def test_a_head_that_is_kept_apart_is_that_of_one_process() -> None:
    losses, rows = train(apart=True)
    for other_losses, other_rows in on_ranks(2, train, True):
        torch.testing.assert_close(other_losses, losses)
        torch.testing.assert_close(
            other_rows, rows, rtol=0, atol=1e-2
        )  # bfloat16: a rounding of ranks may tip a number


def test_trained_rows_take_the_gradient_of_the_mean_over_ranks_without_a_division() -> None:
    losses, rows = train(apart=True, trained=True)
    for other_losses, other_rows in on_ranks(2, train, True, True):
        torch.testing.assert_close(other_losses, losses)
        torch.testing.assert_close(other_rows, rows)


def test_the_state_of_one_rank_is_refused_by_another_and_that_of_all_is_taken() -> None:
    first, second = on_ranks(2, saved_and_loaded)
    assert first == ["", ""]
    assert second == [
        "this state has the part of the rows that rank 0 of 2 holds, and this is rank 1 of 2. "
        "Save head.full_state_dict() in place of state_dict(): any rank of any number loads it",
        "",
    ]


def test_a_head_built_before_the_process_group_is_refused() -> None:
    for said in on_ranks(2, built_too_early):
        assert "built for 1 process and is called in 2: build it after the process group" in said


def saved_and_loaded() -> list[str]:
    """Save as rank 0, load on every rank: what was said to the state of a rank, and to that of all."""
    ranks, said = Ranks.world(), []
    for trained in (False, True):
        module = Recognition(trained)
        for whole in (False, True):
            file = io.BytesIO()
            torch.save(module.head.full_state_dict() if whole else module.state_dict(), file)
            file = io.BytesIO(ranks.objects(file.getvalue())[0])
            try:
                (module.head if whole else module).load_state_dict(torch.load(file, weights_only=True))
                said.append("")
            except UserError as error:
                said.append(str(error))
    assert said[:2] == said[2:]
    return said[:2]


def overwritten() -> str:
    module = Recognition()
    wrapped = DistributedDataParallel(module)
    try:
        wrapped(torch.randn(2, 6), torch.tensor([0, 1]))
    except UserError as error:
        return str(error)
    return ""


def test_rows_that_were_overwritten_are_refused_on_all_ranks() -> None:
    for said in on_ranks(2, overwritten):
        assert "those of rank 0 were copied over the others'" in said
        assert "head.keep_apart(module)" in said
