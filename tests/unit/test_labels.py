"""A label without a row is refused with both numbers, by every head, bank and loss that knows how many identities there are."""

import re
from collections.abc import Callable

import pytest
import torch

from attfc.errors import UserError
from attfc.heads import AttFC, CenterTable, FullFC, ImageMemory, PartialFC
from attfc.losses import CosFace, class_softmax

SIZE, IDENTITIES = 4, 5
ROWS = torch.eye(SIZE)[:3]
BEYOND, BELOW = torch.tensor([0, 7, 5]), torch.tensor([0, -1, 2])
POSITIONS = torch.tensor([0, 1, 2])
HEAD = "build the head with identities = the data set's number of identities"
TABLE = HEAD.replace("head", "CenterTable")
MEMORY = HEAD.replace("head", "ImageMemory")
ROWS_MESSAGE = "weight_ND has 5 rows, one per class; pass labels that it has rows for"


def memory() -> ImageMemory:
    return ImageMemory(images=9, identities=IDENTITIES, embedding_size=SIZE)


def table() -> CenterTable:
    return CenterTable(IDENTITIES, SIZE)


def head_with(**options: object) -> AttFC:
    return AttFC(SIZE, IDENTITIES, CosFace(), negatives="table", **options)  # type: ignore[arg-type]


Call = Callable[[torch.Tensor], object]
HEADS: dict[str, Call] = {
    "full_fc": lambda labels: FullFC(SIZE, IDENTITIES, CosFace())(ROWS, labels),
    "partial_fc": lambda labels: PartialFC(SIZE, IDENTITIES, CosFace())(ROWS, labels),
    "default": lambda labels: AttFC.default(SIZE, IDENTITIES)(ROWS, labels),
    "table, keys": lambda labels: head_with(table=table())(ROWS, labels, ROWS.unsqueeze(1)),
    "pairs": lambda labels: head_with(table=table(), center_source="batch")(
        ROWS[[0, 1, 2, 2]], torch.cat([labels, labels[:1]])
    ),
    "others": lambda labels: head_with(memory=memory(), center_source="others")(ROWS, labels, positions_B=POSITIONS),
}
BANKS: dict[str, tuple[str, Call]] = {
    "table.lookup": (TABLE, lambda labels: table().lookup(labels)),
    "table.draw": (TABLE, lambda labels: table().draw(labels, 4)),
    "table.store": (TABLE, lambda labels: table().store(ROWS, labels)),
    "memory.recall": (MEMORY, lambda labels: memory().recall(labels, POSITIONS)),
    "memory.draw": (MEMORY, lambda labels: memory().draw(labels, 4)),
    "memory.store": (MEMORY, lambda labels: memory().store(ROWS, torch.zeros(3, SIZE), labels, POSITIONS)),
    "class_softmax": (
        ROWS_MESSAGE,
        lambda labels: class_softmax(ROWS, torch.ones(IDENTITIES, SIZE), labels, CosFace()),
    ),
}


@pytest.mark.parametrize("name", HEADS)
def test_heads_refuse_a_label_without_a_row(name: str) -> None:
    with pytest.raises(UserError, match=f"^label 7 is outside 0 to 4: {re.escape(HEAD)}$"):
        HEADS[name](BEYOND)
    with pytest.raises(UserError, match=r"^a label is -1: labels count from 0, negative ones are reserved$"):
        HEADS[name](BELOW)


@pytest.mark.parametrize("name", BANKS)
def test_banks_refuse_a_label_without_a_row(name: str) -> None:
    fix, call = BANKS[name]
    for labels, label in ((BEYOND, 7), (BELOW, -1)):
        with pytest.raises(UserError, match=f"^label {label} is outside 0 to 4: {re.escape(fix)}$"):
            call(labels)


def test_a_refused_batch_changes_nothing() -> None:
    kept = table()
    with pytest.raises(UserError):
        kept.store(ROWS, BEYOND)
    assert kept.draws == 0
    assert not kept.rows.any()


def test_a_position_without_a_row_is_refused() -> None:
    for call in (
        lambda at: memory().recall(POSITIONS, at),
        lambda at: memory().store(ROWS, torch.zeros(3, SIZE), POSITIONS, at),
    ):
        with pytest.raises(
            UserError, match=r"^position 9 is outside 0 to 8: build the memory with images = the data set's"
        ):
            call(torch.tensor([0, 9, 2]))
