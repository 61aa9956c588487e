"""A label without a row is refused with both numbers, by every head, bank and loss that knows how many identities there are."""

import re
from collections.abc import Callable

import pytest
import torch

from attfc.errors import UserError
from attfc.heads import DCP, DCQ, AttFC, FullFC, KeyAttention, OtherImages, Pairs, PartialFC, RecentCenters
from attfc.losses import CosFace, class_softmax

SIZE, IDENTITIES = 4, 5
ROWS = torch.eye(SIZE)[:3]
BEYOND, BELOW = torch.tensor([0, 7, 5]), torch.tensor([0, -1, 2])
POSITIONS = torch.tensor([0, 1, 2])
HEAD = "build the head with identities = the data set's number of identities"
ROWS_MESSAGE = "weight_ND has 5 rows, one per class; pass labels that it has rows for"


def head_with(**options: object) -> AttFC:
    return AttFC(SIZE, CosFace(), identities=IDENTITIES, **options)  # type: ignore[arg-type]


Call = Callable[[torch.Tensor], object]
HEADS: dict[str, Call] = {
    "full_fc": lambda labels: FullFC(SIZE, IDENTITIES, CosFace())(ROWS, labels),
    "partial_fc": lambda labels: PartialFC(SIZE, IDENTITIES, CosFace())(ROWS, labels),
    "default": lambda labels: AttFC.default(SIZE, IDENTITIES)(ROWS, labels),
    "keys": lambda labels: head_with(center=KeyAttention(), in_batch="none")(ROWS, labels, ROWS.unsqueeze(1)),
    "recent": lambda labels: head_with(negatives=RecentCenters(count=8))(ROWS, labels),
    "pairs": lambda labels: head_with(center=Pairs())(ROWS[[0, 1, 2, 2]], torch.cat([labels, labels[:1]])),
    "others": lambda labels: head_with(center=OtherImages(images=9))(ROWS, labels, positions_B=POSITIONS),
    "dcq": lambda labels: DCQ(SIZE, CosFace(), identities=IDENTITIES, count=8)(ROWS, labels, ROWS.unsqueeze(1)),
    "dcp": lambda labels: DCP(SIZE, CosFace(), identities=IDENTITIES, count=8)(ROWS, labels, ROWS.unsqueeze(1)),
}


@pytest.mark.parametrize("name", HEADS)
def test_heads_refuse_a_label_without_a_row(name: str) -> None:
    with pytest.raises(UserError, match=f"^label 7 is outside 0 to 4: {re.escape(HEAD)}$"):
        HEADS[name](BEYOND)
    with pytest.raises(UserError, match=r"^a label is -1: labels count from 0, negative ones are reserved$"):
        HEADS[name](BELOW)


def test_the_loss_over_all_classes_refuses_a_label_without_a_row() -> None:
    for labels, label in ((BEYOND, 7), (BELOW, -1)):
        with pytest.raises(UserError, match=f"^label {label} is outside 0 to 4: {re.escape(ROWS_MESSAGE)}$"):
            class_softmax(ROWS, torch.ones(IDENTITIES, SIZE), labels, CosFace())


def test_a_refused_batch_changes_nothing() -> None:
    head = AttFC.default(SIZE, IDENTITIES)
    with pytest.raises(UserError):
        head(ROWS, BEYOND)
    assert head.table.draws == 0
    assert not head.table.rows.any()


def test_a_position_without_a_row_is_refused() -> None:
    head = head_with(center=OtherImages(images=9))
    with pytest.raises(
        UserError, match=r"^position 9 is outside 0 to 8: build OtherImages with images = the data set's"
    ):
        head(ROWS, POSITIONS, positions_B=torch.tensor([0, 9, 2]))
