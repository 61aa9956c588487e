"""The table of all centers: what it keeps, where it stays, and AttFC with it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from attfc.config import load_config
from attfc.errors import UserError
from attfc.heads import AttFC, CenterTable, KeyAttention, OwnEmbedding, Pairs, RecentCenters
from attfc.heads.banks.bank import Bank
from attfc.heads.centers import CenterRule
from attfc.losses import CosFace
from attfc.run.components import build_head

SIZE, IDENTITIES = 8, 40


def steps(head: AttFC, count: int = 12, identities: int = IDENTITIES) -> list[float]:
    """Losses of some steps; the batches have repeated identities."""
    draw = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(count):
        embeddings = torch.randn(10, SIZE, generator=draw)
        labels = torch.randint(identities, (10,), generator=draw)
        keys = torch.randn(10, 2, SIZE, generator=draw) if head.keys_per_query else None
        losses.append(float(head(embeddings, labels, keys)))
    return losses


def table_of(identities: int = IDENTITIES, size: int = SIZE, **options: object) -> CenterTable:
    return CenterTable(**options).bind(size, identities)  # type: ignore[arg-type]


def attfc(
    center: CenterRule | None = None, negatives: Bank | int = IDENTITIES, stored: Bank | None = None,
    identities: int = IDENTITIES, exact: bool = False, in_batch: str = "fixed",
) -> AttFC:  # fmt: skip
    """Own embeddings unless told otherwise; a number: slots of a container with one row per identity; exact: a table in float32."""
    bank = RecentCenters(count=negatives, policy="unique") if isinstance(negatives, int) else negatives
    rule = OwnEmbedding(0.8) if center is None else center
    head = AttFC(
        SIZE, CosFace(scale=16.0), identities=identities, center=rule, negatives=bank, stored=stored, in_batch=in_batch
    )  # type: ignore[arg-type]
    if exact:
        head.table.rows = head.table.rows.float()
    return head


def test_who_was_not_seen_has_zeros_and_twins_share_their_mean() -> None:
    table = table_of(5, 2)
    table.rows = table.rows.float()
    assert not table.lookup(torch.tensor([0, 4])).any()
    table.store_centers(torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]), torch.tensor([3, 1, 3]))
    expected = torch.stack([normalize(torch.ones(2), dim=0), torch.tensor([0.6, 0.8]), torch.zeros(2)])
    torch.testing.assert_close(table.lookup(torch.tensor([3, 1, 0])), expected)


RULES = [lambda: OwnEmbedding(0.8), lambda: KeyAttention(share=0.8), lambda: KeyAttention(include_stored=True)]


@pytest.mark.parametrize("rule", RULES)
def test_with_a_slot_for_everyone_a_table_changes_nothing(rule: Callable[[], CenterRule]) -> None:
    assert steps(attfc(rule(), stored=CenterTable(), exact=True)) == steps(attfc(rule()))


def test_drawing_everybody_is_a_container_with_a_slot_for_everyone() -> None:
    for rule, in_batch in (
        (lambda: OwnEmbedding(0.8), "fixed"),
        (lambda: KeyAttention(share=0.8), "none"),
        (lambda: Pairs(0.5), "fixed"),
    ):
        drawn = attfc(rule(), CenterTable(count=IDENTITIES), exact=True, in_batch=in_batch)
        assert drawn.banks == [drawn.table]
        assert steps(drawn) == pytest.approx(steps(attfc(rule(), in_batch=in_batch)), rel=1e-5)


def test_a_draw_has_the_batch_and_others_new_in_each_step() -> None:
    table = table_of(seed=4, count=9)  # and those of the batch
    table.store_centers(torch.eye(SIZE).repeat(5, 1), torch.arange(IDENTITIES))
    batch = torch.tensor([3, 9, 3])
    rows, labels, _ = table.negatives(batch)
    assert rows.shape == (12, SIZE)
    assert {3, 9} <= set(labels.tolist())
    assert len(set(labels.tolist())) == 12
    torch.testing.assert_close(rows.float(), torch.eye(SIZE)[labels % SIZE])
    assert labels.tolist() == table.negatives(batch)[1].tolist(), "a look draws nothing new"
    table.store_centers(torch.eye(SIZE)[:1], torch.tensor([8]))
    assert labels.tolist() != table.negatives(batch)[1].tolist()
    assert len(table_of(count=10**6).negatives(batch)[1]) == IDENTITIES


def test_who_was_not_seen_is_nobodys_negative() -> None:
    table = table_of()
    table.store_centers(torch.eye(SIZE)[:2], torch.tensor([5, 6]))
    assert sorted(set(table.negatives(torch.tensor([5]))[1].tolist())) == [-1, 5, 6]
    head = attfc(negatives=CenterTable(count=20), in_batch="none")
    assert steps(head, 1) == [0.0]  # nobody is known yet
    assert steps(head, 12)[-1] > 0


def test_who_was_seen_is_who_has_a_row_that_is_not_zeros() -> None:
    table = table_of()
    table.store_centers(torch.eye(SIZE)[:3] * torch.tensor([[1.0], [0.0], [-1.0]]), torch.tensor([5, 6, 7]))
    assert table.seen.nonzero().flatten().tolist() == [5, 7]
    again = table_of()
    again.load_state_dict(table.state_dict())  # which holds rows alone, as saved runs of all versions
    assert torch.equal(again.seen, table.seen)
    again.load_state_dict(table_of().state_dict())
    assert not again.seen.any()


def test_drawn_negatives_may_be_fewer_than_the_batch() -> None:
    few = ["negatives.share=0.01", "batch_size=64"]
    head = build_head(load_config("demo", few), 1000)
    assert isinstance(head, AttFC)
    assert isinstance(head.negatives, CenterTable)
    assert head.negatives.size == 10
    held = build_head(load_config("demo", [*few, "negatives=recent_centers"]), 1000)
    assert isinstance(held, AttFC)
    assert held.negatives.size == 64  # a whole batch enters
    with pytest.raises(
        UserError, match=r"negatives.count=10 is smaller than batch_size=64.*: set negatives.count=64, or batch_size=10"
    ):
        build_head(load_config("demo", ["batch_size=64", "negatives=recent_centers", "negatives.count=10"]), 1000)


def test_with_few_slots_the_table_still_knows_everyone() -> None:
    seen = {}
    for name, table in (("without", None), ("with", CenterTable())):
        head = attfc(negatives=12, stored=table)
        steps(head, 40)
        seen[name] = head.statistics()["stored_share"]
    assert seen["with"] == 1.0
    assert seen["without"] < 0.7


def test_in_eval_nothing_is_kept() -> None:
    head = attfc(negatives=12, stored=CenterTable()).eval()
    steps(head, 2)
    assert not head.table.rows.any()


@pytest.mark.parametrize("place", ["host", "file"])
def test_rows_outside_the_device_stay_there_as_they_are(place: str, tmp_path: Path) -> None:
    table = CenterTable(place=place, folder=tmp_path if place == "file" else None)  # type: ignore[arg-type]
    head = attfc(negatives=12, stored=table)
    steps(head, 3)
    rows, kept = head.table.rows, head.table.rows.clone()
    head.double()
    assert head.table.rows is rows
    assert head.table.rows.dtype == torch.bfloat16
    assert table.store.holds(rows) is (place == "file")
    assert torch.equal(head.table.rows, kept)
    head.to("meta")
    assert head.table.rows.device.type == "cpu"
    assert head.container.rows.device.type == "meta"


@pytest.mark.parametrize("beside", [True, False], ids=["beside a container", "alone"])
def test_a_saved_table_goes_on_and_others_are_refused(beside: bool) -> None:
    def built(**options: object) -> AttFC:
        return (
            attfc(negatives=12, stored=CenterTable(), **options)
            if beside
            else attfc(negatives=CenterTable(count=12), **options)
        )

    head, again = built(), built()
    steps(head)
    again.load_state_dict(head.state_dict())
    assert steps(head) == steps(again)
    with pytest.raises(UserError, match=r"table of centers holds 40 identities of 8 numbers .* this one 41 of 8"):
        built(identities=41).load_state_dict(head.state_dict())
    with pytest.raises(UserError, match=r"torch.bfloat16\), this one 40 of 8 \(torch.float32\)"):
        built(exact=True).load_state_dict(head.state_dict())


def test_what_cannot_be() -> None:
    with pytest.raises(UserError, match=r"label [45]\d is outside 0 to 39: build the head with identities"):
        steps(attfc(negatives=12, stored=CenterTable()), 9, identities=60)
    with pytest.raises(UserError, match="CenterTable keeps a row per identity: give the head identities=N"):
        AttFC(SIZE, CosFace(), identities=None, negatives=CenterTable(count=9))
    with pytest.raises(
        UserError, match="CenterTable has no count: give the head identities=N, of which it takes a share"
    ):
        AttFC(SIZE, CosFace(), identities=None)
    with pytest.raises(UserError, match="this CenterTable belongs to a head already: give each head its own"):
        attfc(negatives=table_of())
    with pytest.raises(UserError, match=r"negatives\.place=host: negatives\.kind=recent_centers has no option place"):
        load_config("demo", ["profile=published", "negatives.place=host"])
    with pytest.raises(
        UserError, match=r"stored=center_table is given and center=key_attention uses no stored centers"
    ):
        build_head(load_config("demo", ["profile=published", "stored=center_table"]), 200)
    with pytest.raises(UserError, match=r"negatives\.place=file needs negatives\.folder"):
        load_config("demo", ["negatives.place=file"])
