"""The table of all centers: what it keeps, where it stays, and AttFC with it."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from attfc.config import load_config
from attfc.errors import UserError
from attfc.heads import AttFC, CenterTable, RowStore
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


def attfc(slots: int = IDENTITIES, table: CenterTable | None = None, **options: object) -> AttFC:
    return AttFC(SIZE, slots, CosFace(scale=16.0), table=table, **options)  # type: ignore[arg-type]


def test_who_was_not_seen_has_zeros_and_twins_share_their_mean() -> None:
    table = CenterTable(5, 2, dtype=torch.float32)
    assert not table.lookup(torch.tensor([0, 4])).any()
    table.store(torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]), torch.tensor([3, 1, 3]))
    expected = torch.stack([normalize(torch.ones(2), dim=0), torch.tensor([0.6, 0.8]), torch.zeros(2)])
    torch.testing.assert_close(table.lookup(torch.tensor([3, 1, 0])), expected)


@pytest.mark.parametrize(
    "options", [{"center_source": "query"}, {}, {"include_stored_center": True, "center_blend": 0.0}]
)
def test_with_a_slot_for_everyone_a_table_changes_nothing(options: dict[str, object]) -> None:
    table = CenterTable(IDENTITIES, SIZE, dtype=torch.float32)
    assert steps(attfc(table=table, **options)) == steps(attfc(**options))


def test_drawing_everybody_is_a_container_with_a_slot_for_everyone() -> None:
    for options in (
        {"center_source": "query"},
        {"in_batch_negatives": False},
        {"center_source": "batch", "center_blend": 0.5},
    ):
        drawn = attfc(table=CenterTable(IDENTITIES, SIZE, dtype=torch.float32), negatives="table", **options)
        assert drawn.container is None
        assert steps(drawn) == pytest.approx(steps(attfc(**options)), rel=1e-5)


def test_a_draw_has_the_batch_and_others_new_in_each_step() -> None:
    table = CenterTable(IDENTITIES, SIZE, seed=4)
    table.store(torch.eye(SIZE).repeat(5, 1), torch.arange(IDENTITIES))
    batch = torch.tensor([3, 9, 3])
    rows, labels = table.draw(batch, 12)
    assert rows.shape == (12, SIZE)
    assert {3, 9} <= set(labels.tolist())
    assert len(set(labels.tolist())) == 12
    torch.testing.assert_close(rows.float(), torch.eye(SIZE)[labels % SIZE])
    assert labels.tolist() == table.draw(batch, 12)[1].tolist(), "a look draws nothing new"
    table.store(torch.eye(SIZE)[:1], torch.tensor([8]))
    assert labels.tolist() != table.draw(batch, 12)[1].tolist()
    assert len(table.draw(batch, 1)[1]) == 3, "never fewer than the batch"
    assert len(table.draw(batch, 10**6)[1]) == IDENTITIES


def test_who_was_not_seen_is_nobodys_negative() -> None:
    table = CenterTable(IDENTITIES, SIZE)
    table.store(torch.eye(SIZE)[:2], torch.tensor([5, 6]))
    assert sorted(set(table.draw(torch.tensor([5]), IDENTITIES)[1].tolist())) == [-1, 5, 6]
    head = attfc(20, CenterTable(IDENTITIES, SIZE), negatives="table", center_source="query", in_batch_negatives=False)
    assert steps(head, 1) == [0.0]  # nobody is known yet
    assert steps(head, 12)[-1] > 0


def test_drawn_negatives_may_be_fewer_than_the_batch() -> None:
    few = ["container.ratio=0.01", "batch_size=64"]
    head = build_head(load_config("demo", few), 1000)
    assert isinstance(head, AttFC)
    assert (head.slots, head.container) == (10, None)
    assert (
        build_head(load_config("demo", [*few, "negatives.source=container"]), 1000).slots == 64
    )  # a whole batch enters
    with pytest.raises(
        UserError, match=r"container.slots=10 is smaller than batch_size=64.*: set container.slots=64, or batch_size=10"
    ):
        build_head(load_config("demo", [*few, "negatives.source=container", "container.slots=10"]), 1000)


def test_with_few_slots_the_table_still_knows_everyone() -> None:
    seen = {}
    for name, table in (("without", None), ("with", CenterTable(IDENTITIES, SIZE))):
        head = attfc(12, table, center_source="query")
        steps(head, 40)
        seen[name] = head.statistics()["stored_share"]
    assert seen["with"] == 1.0
    assert seen["without"] < 0.7


def test_in_eval_nothing_is_kept() -> None:
    table = CenterTable(IDENTITIES, SIZE)
    head = attfc(12, table, center_source="query").eval()
    steps(head, 2)
    assert not table.rows.any()


@pytest.mark.parametrize("place", ["host", "file"])
def test_rows_outside_the_device_stay_there_as_they_are(place: str, tmp_path: Path) -> None:
    store = RowStore(place, tmp_path if place == "file" else None)  # type: ignore[arg-type]
    head = attfc(12, CenterTable(IDENTITIES, SIZE, place=store), center_source="query")
    steps(head, 3)
    assert head.table is not None
    rows, kept = head.table.rows, head.table.rows.clone()
    head.double()
    assert head.table.rows is rows
    assert head.table.rows.dtype == torch.bfloat16
    assert store.holds(rows) is (place == "file")
    assert torch.equal(head.table.rows, kept)
    head.to("meta")
    assert head.table.rows.device.type == "cpu"
    assert head.container.rows.device.type == "meta"


@pytest.mark.parametrize("negatives", ["container", "table"])
def test_a_saved_table_goes_on_and_others_are_refused(negatives: str) -> None:
    options = {"center_source": "query", "negatives": negatives}
    head, again = (attfc(12, CenterTable(IDENTITIES, SIZE), **options) for _ in range(2))
    steps(head)
    again.load_state_dict(head.state_dict())
    assert steps(head) == steps(again)
    with pytest.raises(UserError, match=r"table of centers holds 40 identities of 8 numbers .* this one 41 of 8"):
        attfc(12, CenterTable(41, SIZE), **options).load_state_dict(head.state_dict())
    with pytest.raises(UserError, match=r"torch.bfloat16\), this one 40 of 8 \(torch.float32\)"):
        attfc(12, CenterTable(IDENTITIES, SIZE, dtype=torch.float32), **options).load_state_dict(head.state_dict())


def test_what_cannot_be() -> None:
    with pytest.raises(UserError, match=r"label [45]\d is outside 0 to 39: build the head with identities"):
        steps(attfc(12, CenterTable(IDENTITIES, SIZE), center_source="query"), 9, identities=60)
    with pytest.raises(UserError, match="no option uses stored centers: set center_blend"):
        attfc(12, CenterTable(IDENTITIES, SIZE), center_blend=0.0)
    with pytest.raises(UserError, match='negatives="table" needs a table of centers'):
        attfc(12, negatives="table")
    with pytest.raises(UserError, match="negatives is 'tabel': choose container or table; did you mean 'table'"):
        attfc(12, negatives="tabel")
    with pytest.raises(UserError, match=r"center\.table=host keeps stored centers and no option uses them"):
        load_config("demo", ["profile=published", "center.table=host"])
    with pytest.raises(UserError, match=r"center\.table=file needs center\.table_folder"):
        load_config("demo", ["center.table=file"])
