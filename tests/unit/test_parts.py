"""AttFC from parts: what goes with what, what each part takes, and what a head that is put together leaves in a save."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_model, save_model

from attfc.errors import UserError
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
    OwnEmbedding,
    Pairs,
    PartialFC,
    RecentCenters,
)
from attfc.losses import CosFace

SIZE, IDENTITIES, IMAGES = 6, 20, 60
RULES = {
    "own": OwnEmbedding,
    "keys": KeyAttention,
    "keys and stored": lambda: KeyAttention(include_stored=True),
    "pairs": Pairs,
    "pairs alone": lambda: Pairs(share=0.0),
    "groups": lambda: Pairs(group=4, own=True),
    "others": lambda: OtherImages(IMAGES),
}
BANKS: dict[str, Any] = {
    "none": lambda: None,
    "table": CenterTable,
    "recent": lambda: RecentCenters(count=16),
    "memory": ImageMemory,
}


def misfit(rule: str, negatives: str, stored: str, in_batch: str) -> str | None:
    """The rules of docs/heads.md, written once more: the beginning of the refusal, None where the parts go together."""
    if in_batch == "push" and rule.startswith("keys"):
        return 'in_batch="push" does not go with center=KeyAttention: keys carry no gradient'
    if rule == "others":
        if negatives == "table":
            return "negatives=CenterTable does not go with center=OtherImages"
        if stored not in ("none", "memory"):
            return f"stored={type(BANKS[stored]()).__name__} does not go with center=OtherImages"
        if stored == "memory" and negatives != "recent":
            return "stored=ImageMemory beside negatives=ImageMemory: one answers for both"
        return None
    if "memory" in (negatives, stored):
        return f"ImageMemory does not go with center={type(RULES[rule]()).__name__}, which remembers no images"
    if stored != "none" and stored == {"none": "table"}.get(negatives, negatives):
        kind = type(BANKS[stored]()).__name__
        return f"stored={kind} beside negatives={kind}: one answers for both"
    if stored != "none" and rule in ("keys", "pairs alone"):
        return (
            f"stored={type(BANKS[stored]()).__name__} is given and center={type(RULES[rule]()).__name__} uses no stored"
        )
    return None


def steps(head: Head, count: int = 3, pairs: bool = True) -> list[float]:
    draw = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(count):
        embeddings = torch.randn(8, SIZE, generator=draw)
        at = torch.randint(IDENTITIES, (4,), generator=draw).repeat_interleave(2)
        at = torch.stack([at[::2], at[1::2] + IDENTITIES * pairs], dim=1).flatten()
        keys = torch.randn(8, head.keys_per_query, SIZE, generator=draw) if head.keys_per_query else None
        positions = {"positions_B": at} if head.takes_positions else {}
        losses.append(float(head(embeddings, at % IDENTITIES, keys, **positions).detach()))
    return losses


@pytest.mark.parametrize("in_batch", ["push", "fixed", "none"])
@pytest.mark.parametrize("rule", RULES)
def test_what_goes_with_what(rule: str, in_batch: str) -> None:
    built = 0
    for negatives, stored in itertools.product(BANKS, BANKS):
        parts = {"center": RULES[rule](), "negatives": BANKS[negatives](), "stored": BANKS[stored]()}
        said = misfit(rule, negatives, stored, in_batch)
        if said is None:
            head = AttFC(SIZE, CosFace(16.0), identities=IDENTITIES, in_batch=in_batch, **parts)  # type: ignore[arg-type]
            losses = steps(head)
            assert losses[-1] > 0
            assert all(loss >= 0 for loss in losses)
            built += 1
        else:
            with pytest.raises(UserError) as error:
                AttFC(SIZE, CosFace(16.0), identities=IDENTITIES, in_batch=in_batch, **parts)  # type: ignore[arg-type]
            assert str(error.value).startswith(said), (negatives, stored)
            assert "\n" not in str(error.value)
    assert built == (
        0 if in_batch == "push" and rule.startswith("keys") else {"keys": 3, "pairs alone": 3, "others": 4}.get(rule, 6)
    )


def test_pairs_of_nobody_teach_nothing_and_are_no_fault() -> None:
    """A loader that draws no pairs: each query is treated as with its own embedding."""
    head = AttFC(SIZE, CosFace(16.0), identities=IDENTITIES, center=Pairs())
    embeddings, labels = torch.randn(4, SIZE), torch.tensor([0, 1, 2, 3])
    assert head(embeddings, labels).item() == 0
    assert head.statistics()["positive_share"] == 0
    own = AttFC(SIZE, CosFace(16.0), identities=IDENTITIES)
    own(embeddings, labels)
    assert head(embeddings, labels) == own(embeddings, labels)


def test_a_former_spelling_is_refused_with_the_one_of_today() -> None:
    margin = CosFace()
    for build, said in (
        (lambda: AttFC(8, slots=64, margin=margin), "AttFC has no argument slots: write negatives=RecentCenters(count=...)"),
        (lambda: AttFC(8, margin, identities=9, table=None), "AttFC has no argument table: write negatives=CenterTable()"),
        (lambda: AttFC(8, margin, identities=9, center_source="query"), "AttFC has no argument center_source: write"),
        (lambda: AttFC(8, margin, identities=9, interclass_filtering_threshold=0.3), "AttFC has no argument interclass_filter"),
        (lambda: PartialFC(8, 9, margin, sample_rate=0.1), "PartialFC has no argument sample_rate: write share=..."),
        (lambda: PartialFC(8, 9, margin, rows=None), "PartialFC has no argument rows: write place=..., folder=..."),
        (lambda: DCP(8, margin, slots=9), "DCP has no argument slots: write count=..."),
        (lambda: DCQ(8, margin, slots=9), "DCQ has no argument slots: write count=..."),
        (lambda: CenterTable(identities=9), "CenterTable has no argument identities: write AttFC(..., identities=N)"),
        (lambda: ImageMemory(images=9), "ImageMemory has no argument images: write OtherImages(images=M)"),
        (lambda: AttFC(8, 64, margin), "AttFC: too many positional arguments"),
    ):  # fmt: skip
        with pytest.raises(TypeError) as error:
            build()  # type: ignore[no-untyped-call]
        assert str(error.value).startswith(said)


HEADS: dict[str, Any] = {
    "default": lambda: AttFC.default(SIZE, IDENTITIES),
    "trained": lambda: AttFC.default(
        SIZE, IDENTITIES, negatives=CenterTable(trained=5, image_counts=range(IDENTITIES))
    ),
    "container": lambda: AttFC.published(SIZE, 16),
    "int8 beside a table": lambda: AttFC(
        SIZE, CosFace(), identities=IDENTITIES, center=KeyAttention(share=0.5), in_batch="fixed",
        negatives=RecentCenters(count=16, dtype="int8", policy="unique"), stored=CenterTable(),
    ),
    "images": lambda: AttFC(SIZE, CosFace(), identities=IDENTITIES, center=OtherImages(IMAGES)),
    "dcq": lambda: DCQ(SIZE, CosFace(), count=16),
    "dcp": lambda: DCP(SIZE, CosFace(), count=16),
    "full_fc": lambda: FullFC(SIZE, IDENTITIES, CosFace()),
    "partial_fc": lambda: PartialFC(SIZE, IDENTITIES, CosFace()),
}  # fmt: skip


@pytest.mark.parametrize("name", HEADS)
def test_safetensors_saves_a_head_and_loads_it(name: str, tmp_path: Path) -> None:
    head, again = HEADS[name](), HEADS[name]()
    steps(head)
    save_model(head, str(tmp_path / "head.safetensors"))
    load_model(again, str(tmp_path / "head.safetensors"))
    assert steps(head) == steps(again)
    assert head.full_state_dict().keys() == head.state_dict().keys()
    assert head.row_shards() == {}


def test_a_default_head_has_one_table_and_it_stays_on_the_host() -> None:
    head = AttFC.default(SIZE, IDENTITIES)
    assert list(head.state_dict()) == ["table.rows", "table._extra_state"]
    assert head.to("meta").table.rows.device.type == "cpu"
    table = CenterTable()
    assert AttFC(SIZE, CosFace(), identities=9, negatives=table, stored=table).banks == [table]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: AttFC.default(8, 9, in_batch=True), "in_batch is True: choose one of push, fixed, none"),
        (lambda: AttFC.default(8, 9, in_batch=None), "in_batch is None: choose one of push, fixed, none"),
        (lambda: CenterTable(share="0.1"), "share is '0.1', and must be a number"),  # type: ignore[arg-type]
        (lambda: CenterTable(share=True), "share is True, and must be a number"),
        (lambda: RecentCenters(count=2.5), "count is 2.5, and must be a whole number"),  # type: ignore[arg-type]
        (lambda: AttFC.default(8, 9, center=CenterTable()), "center is CenterTable(): give a center rule"),
        (lambda: AttFC(8, 64.0, identities=9), "AttFC: margin is 64.0: give a margin"),  # type: ignore[arg-type]
    ],
)
def test_a_value_of_another_type_is_refused_in_one_line(build: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        build()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_message_names_no_option_that_the_rule_lacks() -> None:
    with pytest.raises(UserError, match="center=Pairs uses no stored centers: set its share, or leave stored out"):
        AttFC.default(8, 9, center=Pairs(share=0.0), negatives=RecentCenters(count=9), stored=CenterTable())


def test_a_share_by_images_is_not_saved_takes_four_bytes_each_and_goes_where_nobody_has_many() -> None:
    def head(center: OwnEmbedding) -> AttFC:
        return AttFC.default(SIZE, IDENTITIES, center=center)

    plain, many = head(OwnEmbedding()), head(OwnEmbedding(memory=0.5, image_counts=range(1, IDENTITIES + 1)))
    assert many.state_dict().keys() == plain.state_dict().keys()
    assert many.footprint(8).rows - plain.footprint(8).rows == 4 * IDENTITIES
    few = OwnEmbedding(memory=0.1, image_counts=[25] * IDENTITIES)  # 2.5 images, as the share of 0.6 says
    assert few.image_counts is None
    assert OwnEmbedding(share=0.0, memory=0.5, image_counts=range(IDENTITIES)).image_counts is None
    assert OwnEmbedding(memory=0.5).image_counts is None
