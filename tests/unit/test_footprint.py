"""Bytes of a head against closed forms in which the sizes are written out: an oracle for `Head.footprint`."""

from typing import Any, Literal

import pytest
import torch

from attfc.distributed import Ranks
from attfc.heads import (
    DCP,
    DCQ,
    AttFC,
    CenterTable,
    FullFC,
    Head,
    ImageMemory,
    KeyAttention,
    OtherImages,
    Pairs,
    PartialFC,
    RecentCenters,
)
from attfc.heads.memory import HeadMemory
from attfc.losses import CosFace
from attfc.losses.streaming_pass import LARGEST_BLOCK
from attfc.plan import NOTHING, HeadRates, _Live, plan_step

HeadName = Literal["full_fc", "partial_fc", "attfc", "attfc, no key passes", "dcq", "dcp"]
_ROW_BYTES = {"float32": lambda D: 4 * D, "bfloat16": lambda D: 2 * D, "int8": lambda D: D + 4}


def head_memory(
    name: HeadName,
    identities: int,
    batch: int,
    *,
    embedding_size: int = 512,
    slots: int | None = None,
    dtype: str = "float32",
    sample_rate: float = 0.1,
    keys_per_query: int = 2,
    block_mib: float = 32.0,
    ranks: int = 1,
    cached: bool = True,
    table: bool = False,
    drawn: bool = False,
    remembered: int | None = None,
) -> HeadMemory:
    """Bytes of one head on one rank; rows and slots are divided by `ranks`, the batch is that of one rank.

    Args:
        table: AttFC keeps a table of all identities' centers (bfloat16) in the memory that is counted.
        drawn: AttFC's negatives are drawn from the table, wherever it is: `slots` rows of it and the batch's, instead of a container.
        remembered: images whose last embeddings AttFC keeps in the memory that is counted, with their sums, in place of a table
            (`center=other_images`).
        cached: a processor, where blocks are kept small enough for its cache.

    """
    D, everyone = embedding_size, batch * ranks
    block = block_mib * 2**20

    def of_blocks(rows: int, bytes_a_row: float) -> float:
        """Bytes of the largest block of a pass over `rows`: see `row_blocks`."""
        return min(block, (min(rows, LARGEST_BLOCK) if cached else rows) * bytes_a_row)

    def of_class_softmax(rows: int, gathered: int = 0) -> float:
        """Logits kept for backward up to 512 MiB, a block of logits, weights and gathered rows, a length per row."""
        logits = rows * everyone * 4.0
        block = of_blocks(rows, everyone * 8.0)
        block += block / (everyone * 8.0) * gathered * 4.0
        return (logits if logits <= 512 * 2**20 else 0.0) + block + rows * 4.0

    if name in ("full_fc", "partial_fc"):
        rows = -(-identities // ranks)
        size = rows * D * 4.0
        if name == "full_fc":
            return HeadMemory(
                size,
                size,
                of_class_softmax(rows),
                0,
                rows,
                "dense",
            )
        sampled = min(rows, max(round(sample_rate * rows), everyone))
        small = sampled * D * 4.0
        # Five int64 per class for the draw and its sort.
        return HeadMemory(
            size,
            small,
            of_class_softmax(sampled, D) + sampled * 40,
            0,
            sampled,
            "sampled",
        )
    assert slots is not None
    held = -(-slots // ranks)
    positions = max(64, 1 << (4 * slots - 1).bit_length())
    index = slots * (8 + 8 + 4) + positions * 4
    keys = {"attfc": keys_per_query, "dcq": 1, "dcp": 1}.get(name, 0)
    # A block's logits, and its rows where they are not multiplied as they are stored.
    blocks = of_blocks(held, everyone * 8.0 + (0 if dtype == "float32" else 4 * D))
    containers = 2 if name == "dcp" else 1
    stored = containers * (held * _ROW_BYTES[dtype](D) + index)
    working = blocks + slots * 16 + everyone * D * 4 * (keys + 6)
    if name.startswith("attfc"):
        if drawn:  # the rows and what finds them are there for the step alone
            stored = 0.0
            held += -(-everyone // ranks)
            working = of_blocks(held, everyone * 8.0 + 4 * D) + held * _ROW_BYTES["bfloat16"](D) + slots * 40
            working += everyone * D * 4 * (keys + 6)
        if table or remembered is not None:
            stored += kept_bytes(identities, D, remembered, ranks)
    if name == "dcp":  # both slots' hardest rows, kept for backward
        working += 2 * everyone * D * 4 * (min(max(int(0.0002 * slots), 3), 10) + 6)
    return HeadMemory(stored, 0.0, working, keys, held, "pool" if name == "dcp" else "container")


def kept_bytes(identities: int, embedding_size: int, remembered: int | None = None, ranks: int = 1) -> int:
    """Bytes on one rank of AttFC's table of centers, or of its memory of `remembered` images and their sums (`center=other_images`)."""
    row: int = _ROW_BYTES["bfloat16"](embedding_size)
    if remembered is None:
        return -(-identities // ranks) * (row + 1)  # and whether it was seen
    return -(-remembered // ranks) * row + -(-identities // ranks) * 4 * (embedding_size + 1)


def test_relatives_of_the_full_fc_say_theirs() -> None:
    """Three rows per identity are three times the classes; 1,000 past embeddings are a larger batch, and are kept and copied."""
    N, D, batch = 9_000, 64, 32
    with torch.device("meta"):
        subcenters = FullFC(D, N, CosFace(), subcenters=3).footprint(batch)
        past = FullFC(D, N, CosFace(), past=1000).footprint(batch)
    assert subcenters == head_memory("full_fc", 3 * N, batch, embedding_size=D)
    larger = head_memory("full_fc", N, batch + 1000, embedding_size=D)
    assert (past.rows, past.gradient) == (larger.rows, larger.gradient)
    assert past.working == larger.working + 1000 * 4 * (4 * D + 4)
    assert past.streamed == round(N * 1032 / 32)


@pytest.mark.parametrize("ranks", [1, 4])
@pytest.mark.parametrize("cached", [True, False])
def test_heads_say_their_own_memory(ranks: int, cached: bool) -> None:
    N, D, batch, slots = 90_000, 64, 32, 5000
    shared = {"embedding_size": D, "ranks": ranks, "cached": cached}
    with torch.device("meta"):
        margin, rest = CosFace(), {"ranks": Ranks(0, ranks)}
        parts = {"margin": margin, "identities": N, **rest}
        recent = {dtype: RecentCenters(count=slots, dtype=dtype) for dtype in ("float32", "bfloat16", "int8")}  # type: ignore[arg-type]
        heads: list[tuple[Head, Any]] = [
            (FullFC(D, N, margin, **rest), head_memory("full_fc", N, batch, **shared)),
            (PartialFC(D, N, margin, 0.1, **rest), head_memory("partial_fc", N, batch, **shared)),
            (DCQ(D, margin, count=slots, **rest), head_memory("dcq", N, batch, slots=slots, **shared)),
            (DCP(D, margin, count=slots, **rest), head_memory("dcp", N, batch, slots=slots, **shared)),
            (
                AttFC(D, negatives=CenterTable(count=slots), **parts),
                head_memory("attfc, no key passes", N, batch, slots=slots, table=cached, drawn=True, **shared),
            ),
            (
                AttFC(D, center=OtherImages(700_001), negatives=ImageMemory(count=slots, place="device"), **parts),
                head_memory("attfc, no key passes", N, batch, slots=slots, drawn=True, remembered=700_001, **shared),
            ),
            (
                AttFC(D, negatives=RecentCenters(count=slots), stored=CenterTable(place="device"), **parts),
                head_memory("attfc, no key passes", N, batch, slots=slots, table=True, **shared),
            ),
            *(
                (
                    AttFC(D, center=KeyAttention(3), negatives=bank, in_batch="none", **parts),
                    head_memory("attfc", N, batch, slots=slots, dtype=dtype, keys_per_query=3, **shared),
                )
                for dtype, bank in recent.items()
            ),
        ]
    for head, planned in heads:
        own = head.footprint(batch, cached=cached)
        assert own.rows == pytest.approx(planned.rows, rel=1e-3), head
        assert own.working == pytest.approx(planned.working, rel=1e-9), head
        assert (own.gradient, own.keys_per_query, own.streamed, own.kind) == (
            planned.gradient, planned.keys_per_query, planned.streamed, planned.kind
        )  # fmt: skip


def test_memory_of_a_pool_a_table_and_a_memory_of_images_is_their_own() -> None:
    with torch.device("meta"):
        pool = DCP(64, CosFace(), count=5000)
        table = AttFC(64, CosFace(), identities=9000, negatives=RecentCenters(count=5000), stored=CenterTable())
        alone = AttFC(64, CosFace(), identities=9000, negatives=RecentCenters(count=5000))
    assert pool.footprint(128).rows == pytest.approx(sum(buffer.nbytes for buffer in pool.buffers()), rel=1e-3)
    own = kept_bytes(9000, 64)
    assert table.footprint(128).rows - alone.footprint(128).rows == table.stored.memory_bytes() == own
    assert (
        table.footprint(128, cached=False).rows == alone.footprint(128, cached=False).rows
    )  # on the host, and so elsewhere
    assert ImageMemory().bind(64, 9000, images=70_001).memory_bytes() == kept_bytes(9000, 64, 70_001)


def test_a_group_takes_a_product_with_each_of_its_others() -> None:
    """`Pairs` multiplies a query by K embeddings of its group, (B, K, D) float32, before their sum."""
    D, batch = 64, 512

    def working(group: int) -> float:
        head = AttFC.default(D, 1000, center=Pairs(group=group), negatives=RecentCenters(count=512))
        return head.footprint(batch).working

    assert working(64) - working(4) == batch * 60 * D * 4
    head = AttFC.default(D, 1000, center=Pairs(group=64), negatives=RecentCenters(count=512))
    embeddings, labels = torch.randn(batch, D, requires_grad=True), torch.arange(8).repeat_interleave(64)
    with _Live() as live:
        live.peak = start = live.now
        head(embeddings, labels).backward()
    assert batch * 64 * D * 4 <= live.peak - start <= head.footprint(batch).working


def test_trained_rows_elsewhere_leave_the_device_their_sample() -> None:
    with torch.device("meta"):
        device, host = (PartialFC(512, 100_000, CosFace(), 0.1, place=place) for place in ("device", "host"))
    for cached in (True, False):
        here, there = (head.footprint(128, cached=cached) for head in (device, host))
        assert there.rows == (here.rows if cached else 0)
        assert there.gradient == here.gradient == 10_000 * 512 * 4
        # The draw, five int64 per class, is made where the rows are; those of the step come whole, and not a block at a time.
        block = (8192 if cached else 10_000) * 512 * 4
        assert there.working == here.working + 10_000 * 512 * 4 - block - (0 if cached else 10_000 * 40)


@pytest.mark.parametrize(("ranks", "cached"), [(1, True), (1, False), (4, False)])
def test_trained_rows_of_a_table_are_on_the_device_with_their_gradient(ranks: int, cached: bool) -> None:
    N, D, trained, batch = 90_000, 512, 1000, 32
    with torch.device("meta"):
        plain, mixed = (
            AttFC.default(
                D, N, ranks=Ranks(0, ranks), negatives=CenterTable(trained=count, image_counts=torch.zeros(N))
            ).footprint(batch, cached=cached)
            for count in (0, trained)
        )
    own = trained // ranks
    assert mixed.rows == pytest.approx(plain.rows + own * D * 4, rel=1e-3)
    assert (plain.gradient, mixed.gradient) == (0, own * D * 4)
    # Rows of unit length and three gradients on the way to theirs; or, before them, float32 cosines and weights, and what is left out of them.
    assert mixed.working - plain.working == max(4 * own * D * 4, own * D * 4 + own * batch * ranks * (4 + 4 + 4 + 1))
    assert (mixed.streamed, mixed.dense, mixed.kind) == (plain.streamed, own, "container")
    taken = [plan_step("", NOTHING, each, batch, rates=HeadRates(1.0, 0.0, 3.0, 0.0)) for each in (plain, mixed)]
    assert taken[1].optimizer - taken[0].optimizer == own * D * 4  # momentum
    assert taken[1].head_rows - taken[0].head_rows == pytest.approx(3 * own * D * 4, rel=2e-3)
    assert taken[1].step_seconds - taken[0].step_seconds == 3.0 * own  # type: ignore[operator]
