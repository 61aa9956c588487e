"""The parts that a configuration names by their kind: heads, margins, center rules, banks. The only place that lists them.

A new head, margin, rule or bank is its own file and a line here. The options of a kind, with their defaults, bounds and meanings, are those of the
class's own signature (`attfc.config.signatures`); each kind becomes a model that takes these and nothing else, and a section is one of its models.
"""

from collections.abc import Mapping
from functools import cache
from typing import Annotated, Any, Literal, Union

from pydantic import Field, create_model

from attfc.config.option import Section
from attfc.config.signatures import described_arguments

__all__ = [
    "HOLDING_A_BATCH",
    "IN_BATCH",
    "KINDS",
    "MEANINGS",
    "PARTS",
    "Part",
    "banks_beside",
    "common_options",
    "default_kind",
    "in_batch_beside",
    "kind_in",
    "kinds_with",
    "model_of",
    "sections_of",
    "union_of",
    "uses_stored",
    "with_default_parts",
]

KINDS: dict[str, dict[str, str]] = {
    "head": {
        "attfc": "attfc.heads.attfc:AttFC",
        "full_fc": "attfc.heads.full_fc:FullFC",
        "partial_fc": "attfc.heads.partial_fc:PartialFC",
        "dcq": "attfc.heads.dcq:DCQ",
        "dcp": "attfc.heads.dcp:DCP",
    },
    "margin": {
        "cosface": "attfc.losses.margins:CosFace",
        "arcface": "attfc.losses.margins:ArcFace",
        "combined": "attfc.losses.margins:CombinedMargin",
        "adaface": "attfc.losses.margins:AdaFace",
    },
    "center": {
        "own_embedding": "attfc.heads.centers:OwnEmbedding",
        "key_attention": "attfc.heads.centers:KeyAttention",
        "pairs": "attfc.heads.centers:Pairs",
        "other_images": "attfc.heads.centers:OtherImages",
    },
    "negatives": {
        "center_table": "attfc.heads.banks.table:CenterTable",
        "recent_centers": "attfc.heads.banks.recent:RecentCenters",
        "image_memory": "attfc.heads.banks.images:ImageMemory",
    },
}
KINDS["stored"] = KINDS["negatives"]
"""Class of each kind, by section; the first kind of a section is its default."""

MEANINGS = {
    "head": "the head; full_fc: a trained center per identity; partial_fc: the same, a sample of them per step; attfc, dcq, dcp: centers made from "
    "embeddings",
    "margin": "kind of margin: arcface adds an angle, cosface subtracts a cosine, combined does both, adaface adapts to image quality",
    "center": "what a class center is made from. own_embedding: the embedding itself, blended with the stored center; key_attention: further "
    "images through the key encoder. pairs: the person's other image in the batch; other_images: the last embeddings of the person's other images",
    "stored": "another bank, beside the negatives, that keeps the stored centers",
    "negatives": "where they come from. center_table: a table of all identities' centers, drawn at random in each step; recent_centers: the most "
    "recent centers; image_memory: centers made from the last embeddings of all images",
}
"""What the kinds of a section are, for a reader."""

PARTS = {"attfc": ("center", "negatives", "stored", "in_batch")}
"""Sections that a kind of head is put together from; others have none of them."""

IN_BATCH = described_arguments(KINDS["head"]["attfc"])["in_batch"]
"""Type and default of an option of AttFC that stands beside its parts, and so at the top of a configuration."""

HOLDING_A_BATCH = frozenset({"recent_centers", "dcq", "dcp"})
"""Kinds that take in a whole batch at a time, and so are never smaller."""

_WITH_KEYS = frozenset({"key_attention", "dcq", "dcp"})


class Part(Section):
    """A section of some kind: `kind` and the options that this kind has."""

    kind: str = ""

    def get(self, name: str, otherwise: Any = None) -> Any:
        """Return an option, or `otherwise` where the kind has none of that name."""
        return getattr(self, name, otherwise)

    @property
    def options(self) -> dict[str, Any]:
        """All options but the kind, as the class takes them."""
        return {name: getattr(self, name) for name in type(self).model_fields if name != "kind"}


@cache
def model_of(section: str, kind: str) -> type[Part]:
    """Return the model of a kind."""
    fields: dict[str, Any] = {"kind": (Literal[kind], kind)}
    described = described_arguments(KINDS[section][kind])
    fields |= {name: about for name, about in described.items() if name not in PARTS.get(kind, ())}
    return create_model(f"{section}_{kind}", __base__=Part, **fields)


@cache
def union_of(section: str) -> Any:
    """Return the type of a section: one of its models, told apart by `kind`."""
    models = tuple(model_of(section, kind) for kind in KINDS[section])
    return Annotated[Union[models], Field(discriminator="kind")]  # noqa: UP007  made while running


def default_kind(section: str) -> str:
    """Return the kind of a section where nothing says another.

    >>> default_kind("center")
    'own_embedding'
    """
    return next(iter(KINDS[section]))


def kinds_with(section: str, option: str) -> list[str]:
    """Return the kinds that have an option.

    >>> kinds_with("negatives", "place")
    ['center_table', 'image_memory']
    """
    return [kind for kind in KINDS[section] if option in model_of(section, kind).model_fields]


@cache
def common_options(section: str) -> frozenset[str]:
    """Return the options that every kind of a section has: a change of kind keeps them."""
    fields = [set(model_of(section, kind).model_fields) for kind in KINDS[section]]
    return frozenset(set.intersection(*fields) - {"kind"})


def takes_keys(head: str | None, center: str | None) -> bool:
    """Whether further images of each person in the batch go through the key encoder."""
    return bool(_WITH_KEYS & {head, center})


def banks_beside(center: str | None) -> tuple[str, ...]:
    """Return the kinds of negatives that go with a center rule, the one that it takes by itself first."""
    return ("image_memory" if center == "other_images" else "center_table", "recent_centers")


def in_batch_beside(center: str | None) -> str:
    """Return what the batch's own centers do where nothing says it: keys carry no gradient, so centers made from them are fixed."""
    return "fixed" if center in _WITH_KEYS else str(IN_BATCH[1])


def uses_stored(values: Mapping[str, Any]) -> bool:
    """Whether the center rule of a configuration asks for what is stored of an identity: keys and pairs do for a share of it only."""
    kind = kind_in(values, "center")
    rule = model_of("center", str(kind))().model_dump() | dict(values.get("center") or {})
    return kind not in ("key_attention", "pairs") or bool(rule["share"] or rule.get("include_stored"))


def kind_in(values: Mapping[str, Any], section: str) -> str | None:
    """Return the kind of a section in a configuration, which may be an object or a mapping; None: the section is null."""
    part = values.get(section, {})
    return None if part is None else str(getattr(part, "kind", None) or dict(part).get("kind", default_kind(section)))


def sections_of(values: Mapping[str, Any]) -> list[str]:
    """Return the sections that the head of a configuration is put together from."""
    head = kind_in(values, "head")
    parts = list(PARTS.get(str(head), ()))
    return parts + ["key_encoder"] * takes_keys(head, kind_in(values, "center") if "center" in parts else None)


def with_default_parts(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration in which every section that its head is put together from is there, with the defaults of its kind."""
    center = kind_in(values, "center")
    defaults = {
        "center": {"kind": center},
        "negatives": {"kind": banks_beside(center)[0]},
        "in_batch": in_batch_beside(center),
        "key_encoder": {},
    }
    absent = [each for each in sections_of(values) if values.get(each) is None and each in defaults]
    return {**values, **{section: defaults[section] for section in absent}}
