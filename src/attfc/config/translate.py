"""Configurations of attfc 0.1 in the spelling of today: the only place that knows the old one.

0.1 had one section for each matter (`container`, `keys`, `attention`) and asked of each option whether it said anything; today a head, margin, rule
or bank owns its options. `translate` reads a saved run, a checkpoint or a file without `format: 2`; `refuse_old_spelling` names the new spelling of
what was typed. What the old defaults had otherwise than the parts have it today is written out, so that what is built stays the same.

Saved runs of 0.1 come in two generations. Those without `eval.share`, the older ones,
- kept a container with a slot for everyone, and no table of centers, where they said a table and a container ratio of 1;
- gave vision transformers a drop path rate of 0.05, and masked 5 % of the tokens of `vit_b` and `vit_l`, where no option said otherwise.
"""

from collections.abc import Collection, Mapping
from typing import Any

from attfc.config.kinds import KINDS, common_options, default_kind, model_of, takes_keys
from attfc.config.overrides import as_typed, dotted, nested
from attfc.config.profiles import profile_values
from attfc.config.schema import RunConfig, described_fields
from attfc.errors import UserError, nearest

__all__ = ["FORMAT", "new_spelling", "refuse_old_spelling", "taken_as_old", "translate"]

FORMAT = 2
OLD_VIT = {
    "vit_t": {"drop_path": 0.05, "mask_ratio": 0.0},
    "vit_s": {"drop_path": 0.05, "mask_ratio": 0.0},
    "vit_b": {"drop_path": 0.05, "mask_ratio": 0.05},
    "vit_l": {"drop_path": 0.05, "mask_ratio": 0.05},
}
RULES = {"query": "own_embedding", "keys": "key_attention", "batch": "pairs", "others": "other_images"}

# The options of 0.1 that have another name or place, with what they were under the profile `tuned`, and under `published`.
_OLD: dict[str, Any] = {
    "head.name": "attfc",
    "head.interclass_filtering_threshold": None,
    "head.sample_rate": 0.1,
    "head.rows": "device",
    "head.rows_folder": None,
    "head.enter_first": 2 / 3,
    "head.hardest_weight": 1.0,
    "margin.name": "cosface",
    "margin.margin": 0.4,
    "margin.m1": 1.0,
    "margin.m2": 0.0,
    "margin.m3": 0.4,
    "margin.h": 0.333,
    "margin.gradient": "exact",
    "margin.beyond_pi": "linear",
    "keys.per_query": 2,
    "keys.distinct": True,
    "keys.sampling": "each_once",
    "key_encoder.momentum": 0.0,
    "key_encoder.momentum_schedule": "constant",
    "key_encoder.batch_norm": "batch",
    "attention.temperature": 1.0,
    "attention.include_stored_center": False,
    "center.blend": 0.6,
    "center.source": "query",
    "center.table": "host",
    "center.table_folder": None,
    "container.ratio": 0.1,
    "container.slots": None,
    "container.policy": "unique",
    "container.dtype": "float32",
    "container.initial": "empty",
    "negatives.in_batch": True,
    "negatives.in_batch_gradient": True,
    "negatives.source": "table",
}
_PUBLISHED = _OLD | {
    "margin.gradient": "straight_through",
    "margin.beyond_pi": "wrap",
    "keys.distinct": False,
    "key_encoder.momentum": 0.999,
    "center.blend": 0.0,
    "center.source": "keys",
    "center.table": "none",
    "container.policy": "fifo",
    "negatives.in_batch": False,
    "negatives.in_batch_gradient": False,
    "negatives.source": "container",
}
_WORDS: dict[str, Collection[str]] = {
    "head.name": KINDS["head"],
    "margin.name": KINDS["margin"],
    "center.source": RULES,
    "negatives.source": ("table", "container"),
}
_FOLLOWING = {name: f"key_encoder.{name}" for name in ("momentum", "momentum_schedule", "batch_norm")}
GONE = frozenset(_OLD).difference(described_fields())
"""Keys that 0.1 had and this version has not."""

_SAME = {
    "head.filtering",
    "head.block_mib",
    "margin.scale",
}  # options of its parts that are not in _OLD: they have their name and default of today
_OLD_SECTIONS = {"container", "keys", "attention"}


def translate(
    values: Mapping[str, Any], identities: int | None = None, tensors: Collection[str] = (), *, saved: bool = False
) -> dict[str, Any]:
    """Return the values of a configuration as this version writes them; one of `format: 2` as it is.

    Args:
        values: of a file; not changed.
        identities: of the data: a container with a slot for everyone once stood in for a table.
        tensors: names of the tensors in the run's newest checkpoint, which say the same for certain.
        saved: they are the `config.yaml` of a run, which names every option.
    """
    sections = {key: dict(value) if isinstance(value, dict) else value for key, value in values.items()}
    is_new = "format" in sections or _is_new(sections)
    if sections.get("start_from") and (saved or not is_new):
        sections.setdefault("finetune", {"batch_norm": "adapted"})  # written before there was a choice
    if is_new:
        return sections
    first = saved and isinstance(sections.get("eval"), dict) and "share" not in sections["eval"]
    backbone = sections.get("backbone")
    if first and isinstance(backbone, dict) and backbone.get("name") in OLD_VIT:
        backbone["options"] = OLD_VIT[backbone["name"]] | (backbone.get("options") or {})
    flat: dict[str, Any] = {}
    for key in _OLD:
        section, name = key.split(".")
        if isinstance(sections.get(section), dict) and name in sections[section]:
            flat[key] = sections[section].pop(name)
    profile = "published" if sections.get("profile") == "published" else None
    old = (_PUBLISHED if profile else _OLD) | flat
    if first and _kept_a_container(old, identities, tensors):
        old["negatives.source"] = "container"
        if old["center.source"] != "others":
            old["center.table"] = "none"
    kept = {key: value for key, value in sections.items() if value != {} or key == "backbone"}
    if kept.get("profile") in ("tuned", "published"):
        del kept["profile"]
    for section, part in nested(_written(_new(old), flat, profile).items()).items():
        both = isinstance(kept.get(section), dict) and isinstance(part, dict)
        kept[section] = part | kept[section] if both else part
    return {"format": FORMAT, **({"profile": profile} if profile else {}), **kept}


def taken_as_old(values: Mapping[str, Any]) -> list[str]:
    """Return, as they are typed, the defaults of 0.1 that a file gets without `format: 2` and without any option that tells the versions apart."""
    if "format" in values or _has_old_options(values) or _is_new(values):
        return []
    flat = dotted(values)
    added = {key: value for key, value in dotted(translate(values)).items() if key not in flat and key != "format"}
    return [f"{key}={as_typed(value)}" for key, value in added.items()]


def _is_new(sections: Mapping[str, Any]) -> bool:
    """Whether values without `format` name anything that only this version has."""
    words = any(isinstance(sections.get(section), str) for section in KINDS)
    kinds = any("kind" in sections[section] for section in KINDS if isinstance(sections.get(section), dict))
    if words or kinds or "in_batch" in sections or "stored" in sections:
        return not _OLD_SECTIONS & sections.keys()
    parts = (*KINDS, "key_encoder", "finetune", "teacher")
    known = {key for key in described_fields() if key.partition(".")[0] in parts}
    return bool(dotted(sections).keys() & known - _OLD.keys() - _SAME) and not _has_old_options(sections)


def _has_old_options(sections: Mapping[str, Any]) -> bool:
    """Whether values name anything that only 0.1 had."""
    gone = GONE & dotted(sections).keys()
    return bool(gone or _OLD_SECTIONS & sections.keys()) or sections.get("profile") == "tuned"


def _kept_a_container(old: Mapping[str, Any], identities: int | None, tensors: Collection[str]) -> bool:
    """Whether a run of the older generation had a container with a slot for everyone, whatever table it asked for."""
    if tensors:
        return any(name.startswith("head/container.") for name in tensors)
    slots, ratio = old["container.slots"], old["container.ratio"] or 0
    everyone = ratio >= 1 if slots is None else identities is not None and slots >= identities
    return bool(old["container.policy"] == "unique" and everyone)


_Translated = tuple[Any, tuple[str, ...]]  # a value, and the old options that it comes from


def _new(old: Mapping[str, Any]) -> dict[str, _Translated]:
    """Return every option of the parts by its new name."""
    for key, words in _WORDS.items():
        if not isinstance(old[key], str) or old[key] not in words:
            raise UserError(
                f"{key}={as_typed(old[key])}: choose one of {', '.join(words)}{nearest(str(old[key]), words)}"
            )
    source, center = old["center.source"], RULES[old["center.source"]]
    elsewhere = (
        old["head.name"] == "full_fc" and old["head.rows"] != "device"
    )  # today such rows are those of partial_fc
    head = "partial_fc" if elsewhere else old["head.name"]
    attfc, pool = head == "attfc", head in ("dcq", "dcp")
    size = {"share": "container.ratio"} if old["container.slots"] is None else {"count": "container.slots"}
    tables = old["center.table"] != "none"
    draws = tables and old["negatives.source"] == "table"
    uses_stored = source != "keys" or old["center.blend"] or old["attention.include_stored_center"]
    bank = "image_memory" if source == "others" else "center_table"
    holder = "negatives" if draws else "stored"
    container = {name: f"container.{name}" for name in ("policy", "dtype", "initial")}
    renamed: list[
        tuple[Any, str, Mapping[str, str]]
    ] = [  # whether there are such options, their section, new name -> old option
        (True, "head", {"kind": "head.name", "filter_above": "head.interclass_filtering_threshold"}),
        (
            head == "partial_fc",
            "head",
            {"share": "head.sample_rate", "place": "head.rows", "folder": "head.rows_folder"},
        ),
        (head == "dcp", "head", {name: f"head.{name}" for name in ("enter_first", "hardest_weight")}),
        (True, "margin", {"kind": "margin.name"}),
        (True, "margin", {name: f"margin.{name}" for name in model_of("margin", old["margin.name"]).model_fields}),
        (True, "data", {"sampling": "keys.sampling"}),
        (pool, "head", size | {name: container[name] for name in ("dtype", "initial")}),
        (takes_keys(head, center if attfc else None), "key_encoder", {"distinct_keys": "keys.distinct"} | _FOLLOWING),
        (attfc, "center", {"kind": "center.source"} | ({} if source == "others" else {"share": "center.blend"})),
        (attfc and source == "keys", "center", {"keys": "keys.per_query", "temperature": "attention.temperature"}),
        (attfc and source == "keys", "center", {"include_stored": "attention.include_stored_center"}),
        (attfc, "negatives", {"kind": "negatives.source"} | size),
        (attfc and not draws and tables and uses_stored, "stored", {"kind": "center.table"}),
        (
            attfc and tables and (draws or uses_stored),
            holder,
            {"place": "center.table", "folder": "center.table_folder"},
        ),
        (attfc and not draws, "negatives", container),
    ]
    new: dict[str, _Translated] = {
        f"{section}.{name}": (old[key], (key,))
        for there, section, names in renamed
        for name, key in names.items()
        if there and key in old
    }
    new["head.kind"] = head, ("head.name", *["head.rows"] * elsewhere)
    if elsewhere:
        new["head.share"] = 1.0, ("head.name",)
    if attfc:
        new["center.kind"] = center, ("center.source",)
        drawn = bank if draws else "recent_centers"
        new["negatives.kind"] = drawn, ("negatives.source", "center.table", "center.source")
        gradient = "push" if old["negatives.in_batch_gradient"] and source != "keys" else "fixed"
        in_batch = gradient if old["negatives.in_batch"] else "none"
        new["in_batch"] = in_batch, ("negatives.in_batch", "negatives.in_batch_gradient")
    if "stored.kind" in new:
        new["stored.kind"] = bank, ("center.table", "negatives.source")
    return new


def _written(new: Mapping[str, _Translated], given: Mapping[str, Any], profile: str | None) -> dict[str, Any]:
    """Return what has to be written: what was given, and what is otherwise than with the defaults of today."""
    kinds = {key: value for key, (value, _) in new.items() if key.endswith(".kind")}
    defaults = dotted(RunConfig.model_validate(nested(kinds.items())).model_dump(mode="json"))
    defaults |= {f"{section}.kind": default_kind(section) for section in KINDS if section != "stored"}
    if profile:
        defaults |= {key: value for key, value in dotted(profile_values(profile)).items() if key in defaults}
    return {key: value for key, (value, sources) in new.items()
            if defaults.get(key, ...) != value or given.keys() & set(sources)}  # fmt: skip


def refuse_old_spelling(typed: Mapping[str, Any], below: Mapping[str, Any], origin: str = "") -> None:
    """Raise UserError where keys of 0.1 were typed, or stand in a file of this version, with what to write instead.

    Args:
        typed: nested by section.
        below: the values of the preset.
        origin: begins the message.
    """
    flat = dotted(typed)
    apart = {key: key.replace("_", ".", 1) for key in flat}  # margin_name, as arguments of Python are spelled
    spelled = {dot if dot in GONE else key: key for key, dot in apart.items()}
    flat = {key: flat[given] for key, given in spelled.items()}
    old = {key: value for key, value in flat.items() if key in GONE or (key, value) == ("profile", "tuned")}
    if not old:
        return
    above = {section: part for section, part in typed.items() if section in (*KINDS, "profile")}
    instead = new_spelling({key: value for key, value in flat.items() if key in _OLD}, _as_old({**below, **above}))
    said = " ".join(f"{spelled[key]}={as_typed(value)}" for key, value in old.items())
    raise UserError(
        f"{origin}{said}: the spelling of attfc 0.1; "
        + (f"write {' '.join(instead)}" if instead else "it says nothing here, leave it out")
    )


def new_spelling(typed: Mapping[str, Any], context: Mapping[str, Any]) -> list[str]:
    """Return what to type today for options of 0.1.

    Args:
        typed: by dotted name; all of them options that have another name or place today.
        context: what the other options of 0.1 are.

    >>> new_spelling({"center.source": "keys", "keys.per_query": 1}, {})
    ['center=key_attention', 'center.share=0.6', 'center.keys=1']
    """
    known = {**_OLD, **context}
    before, after = _new(known), _new({**known, **typed})
    written: dict[str, Any] = {}
    for key, (value, sources) in after.items():
        section, _, name = key.rpartition(".")
        kind, was = (each.get(f"{section}.kind", (None,))[0] for each in (after, before))
        if name == "kind":
            asked = sources[0] in typed or kind != was
        else:
            asked = bool(typed.keys() & set(sources))
            if (
                kind != was
                and name not in common_options(section)
                and not {"container.ratio", "container.slots"} & {*sources}
            ):
                asked |= value != model_of(section, kind).model_fields[name].default
        if asked:
            written[section if name == "kind" else key] = value
    return [f"{key}={as_typed(value)}" for key, value in written.items()]


def _as_old(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what options of 0.1 a configuration of today stands for, as far as others depend on them."""
    flat = dotted(values)
    old = dict(_PUBLISHED) if flat.get("profile") == "published" else {}
    kinds = {section: flat[f"{section}.kind"] for section in KINDS if f"{section}.kind" in flat}
    old |= {f"{section}.name": kinds[section] for section in ("head", "margin") if section in kinds}
    if "center" in kinds:
        old["center.source"] = {new: source for source, new in RULES.items()}.get(kinds["center"], "query")
        old["center.blend"] = model_of("center", kinds["center"])().get("share", 0.0)
        old["attention.include_stored_center"] = flat.get("center.include_stored", False)
    if kinds.get("negatives") == "recent_centers":
        old["negatives.source"] = "container"
        old["center.table"] = flat.get("stored.place", "host") if "stored" in kinds else "none"
        old["container.policy"] = flat.get("negatives.policy", "fifo")
    if "in_batch" in flat:
        old["negatives.in_batch"] = flat["in_batch"] != "none"
        old["negatives.in_batch_gradient"] = flat["in_batch"] == "push"
    same = {"center.share": "center.blend", "negatives.share": "container.ratio", "negatives.count": "container.slots"}
    return old | {same[key]: value for key, value in flat.items() if key in same}
