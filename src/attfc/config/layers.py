"""Layers of a configuration: profile, what is chosen, preset or YAML file, then the `key=value` overrides of the command line.

Later wins: the defaults of each kind (`kinds`), the profile, what is chosen from data and machine (`choose`), the preset (a name in attfc/presets
or a path to a YAML file), the overrides. Five rules beside a plain merge of mappings:
1. A layer that names another kind of a section replaces what lies below; options that every kind of the section has stay, such as sizes of banks.
2. A typed option that the final kind lacks is refused, and one that is inherited is dropped.
3. A word in place of a section is its kind. Sections that the head is not put together from are absent; typed ones are refused.
4. A profile that is typed replaces the parts of AttFC, but not their sizes, over the preset too.
5. A file without `format: 2` is read as attfc 0.1 wrote it (`translate`), with a note where no option tells the versions apart. A key of 0.1
   that is typed is refused with its spelling of today.
"""

import dataclasses
import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from attfc.config.kinds import (
    KINDS,
    banks_beside,
    common_options,
    default_kind,
    in_batch_beside,
    kind_in,
    kinds_with,
    model_of,
    sections_of,
    uses_stored,
)
from attfc.config.messages import explain, one_of
from attfc.config.overrides import dotted, nested, parse_overrides
from attfc.config.profiles import PROFILES, profile_values
from attfc.config.safe_yaml import read_yaml, read_yaml_text
from attfc.config.schema import RunConfig
from attfc.config.translate import FORMAT, refuse_old_spelling, taken_as_old, translate
from attfc.errors import UserError, nearest

__all__ = ["Asked", "apply_overrides", "config_to_yaml", "load_config", "preset_names", "read_preset"]

_SIZES = {"share", "count"}
_OF_PROFILES = ("center", "negatives", "stored", "in_batch", "key_encoder")  # what a profile replaces as a whole


def preset_names() -> list[str]:
    """Names of the presets that come with the package."""
    folder = resources.files("attfc") / "presets"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


@dataclass(frozen=True)
class Asked:
    """What was asked for, before it is a configuration: the values of a preset or file, and the overrides as typed.

    Attributes:
        values: sections of the preset; empty where there is none.
        overrides: `key=value` texts.
        origin: names the values in errors.
        automatic: what nobody asked for is chosen from the data and the machine (`attfc.config.choose`).
        notes: what a reader of the file should know.
    """

    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    origin: str = "of the command line"
    automatic: bool = False
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, config: "RunConfig | Asked") -> "Asked":
        """Return what asks for a whole configuration, or what was asked for already."""
        return config if isinstance(config, Asked) else cls(config.model_dump(mode="json"), origin="as given")

    def typed(self) -> frozenset[str]:
        """Return the dotted keys that the overrides set: what was asked for by name, beside what a preset or default says."""
        return frozenset(dotted(parse_overrides(self.overrides)))

    def given(self) -> dict[str, Any]:
        """Return what is settled already, by dotted name: of the preset, of the command line, and of a profile that somebody named.

        The values are those of the configuration: `lr=1e-3` is a text in YAML, and a number here.
        """
        settled = dotted(self.resolve().model_dump(mode="json"))
        return {key: settled.get(key, value) for key, value in dotted(self._merged({})).items()}

    def resolve(self, chosen: Mapping[str, Any] | None = None) -> RunConfig:
        """Return the configuration: `chosen` values, by dotted name, lie above those of the profile and below everything asked for.

        Raises:
            UserError: an unknown key, a value of the wrong kind, an option that the final kind lacks; in one line.
        """
        merged = self._merged(chosen or {})
        try:
            return RunConfig.model_validate(merged)
        except ValidationError as error:
            raise UserError(explain(error, self.origin)) from None

    def _merged(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
        typed = parse_overrides(self.overrides)
        values = _kinds_for_words(self.values)
        for layer, origin in ((values, self.origin), (typed, "of the command line")):
            if layer.get("format", FORMAT) != FORMAT:
                raise UserError(
                    f"configuration {origin}: format={layer['format']!r}: this version reads format: {FORMAT}, and files of attfc 0.1, "
                    "which have none"
                )
            _refuse_no_kind(layer, origin)
        refuse_old_spelling(values, {}, f"configuration {self.origin}: ")
        refuse_old_spelling(typed, values)
        by_name = typed.get("profile")
        profile = by_name if "profile" in typed else values.get("profile")
        if profile not in (None, *PROFILES):
            raise UserError(
                f"profile={profile!r} is unknown: choose one of {', '.join(PROFILES)}, or null for the defaults"
            )
        merged = profile_values(profile) if profile else {}
        for layer in (nested(chosen.items()), values):
            merged = _over(merged, layer)
        if by_name:
            merged = _over(merged, profile_values(by_name), replacing=True)
        merged = _over(merged, typed)
        if profile:  # below all that was said of the margin, whatever kind it has become
            merged["margin"] = {**profile_values(profile)["margin"], **merged["margin"]}
        return _settled(merged, typed, values)


def read_preset(
    preset: str,
    overrides: list[str] | None = None,
    translated: Callable[[dict[str, Any]], dict[str, Any]] = translate,
) -> Asked:
    """Return what a preset, or a YAML file, and overrides ask for.

    Args:
        translated: from the values of a file to those of this version.

    Raises:
        UserError: unknown preset, unreadable YAML.
    """
    values = _read_values(preset)
    old = taken_as_old(values)
    note = f"{preset} has no line 'format: 2', so it is read as attfc 0.1 did, with {' '.join(old)}: add the line for the defaults of today"
    return Asked(translated(values), tuple(overrides or []), preset, notes=(note,) * bool(old))


def load_config(preset: str, overrides: list[str] | None = None) -> RunConfig:
    """Resolve a preset name or YAML path with overrides like ``optimizer.learning_rate=0.05``.

    Raises:
        UserError: unknown preset, unreadable YAML, unknown key, or a value of the wrong kind; one line a fault, with the nearest known name.
    """
    return read_preset(preset, overrides).resolve()


def apply_overrides(values: dict[str, Any], overrides: list[str], origin: str) -> RunConfig:
    """Resolve values of this version with overrides; `origin` names the values in errors."""
    return Asked(values, tuple(overrides), origin).resolve()


def config_to_yaml(config: RunConfig) -> str:
    """Render the resolved configuration as YAML; `load_config` reads it back to an equal object."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def _read_values(preset: str) -> dict[str, Any]:
    path = Path(preset)
    if path.suffix in (".yaml", ".yml"):
        try:
            text = read_yaml_text(path)
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read configuration {preset}: {error}") from None
    elif preset in preset_names():
        text = (resources.files("attfc") / "presets" / f"{preset}.yaml").read_text(encoding="utf-8")
    else:
        near = difflib.get_close_matches(preset, preset_names(), n=3, cutoff=0.3)
        raise UserError(
            f"unknown preset {preset!r}"
            + (f"; did you mean {one_of(near)}?" if near else "")
            + " (attfc presets lists them; a folder of faces is given by its path: attfc train FOLDER, a configuration by its .yaml file)"
        )
    try:
        values = read_yaml(text)
    except ValueError as error:
        raise UserError(f"{preset} is not valid YAML: {error}") from None
    if values is None:
        values = {}
    odd = [key for key in values if not isinstance(key, str)] if isinstance(values, dict) else []
    if not isinstance(values, dict) or odd:
        found = f"the key {odd[0]!r}, which is not a name" if odd else type(values).__name__
        raise UserError(f"{preset} holds {found}, expected a mapping of sections such as data, backbone, head")
    return values


def _kinds_for_words(values: Mapping[str, Any]) -> dict[str, Any]:
    def part(key: str, value: Any) -> Any:
        return {"kind": value} if key in KINDS and isinstance(value, str) else value

    return {key: part(key, None if (key, value) == ("stored", "none") else value) for key, value in values.items()}


def _refuse_no_kind(layer: Mapping[str, Any], origin: str) -> None:
    """Refuse a section whose kind is none of its own; null stands for the part that a head takes by itself, where it may be left out."""
    for section, kinds in KINDS.items():
        part = layer.get(section, {})
        if part is None and section not in ("head", "margin"):
            continue
        kind = part.get("kind", default_kind(section)) if isinstance(part, Mapping) else part
        if not isinstance(kind, str) or kind not in kinds:
            near = ""
            if isinstance(kind, str):
                elsewhere = (f"; {kind} is a {other}: {other}={kind}" for other in KINDS if kind in KINDS[other])
                near = "".join(elsewhere) or nearest(kind, kinds)
            raise UserError(f"configuration {origin}: {section}.kind={kind!r}: choose one of {', '.join(kinds)}{near}")


def _over(base: Mapping[str, Any], layer: Mapping[str, Any], replacing: bool = False) -> dict[str, Any]:
    """Lay a layer over what is below.

    Of a section that names another kind, or the parts of AttFC that it replaces (`replacing`), only what every kind has stays below.
    """
    merged = dict(base)
    for key, value in layer.items():
        below = merged.get(key)
        if key in KINDS and key != "stored" and value is None:
            continue  # nothing is said: the part is that of the layers below, or the one that a head takes by itself
        if isinstance(value, Mapping) and isinstance(below, Mapping):
            stays = set(below)
            kind = below.get("kind", default_kind(key) if key in KINDS else None)
            if value.get("kind", kind) != kind or (replacing and key in _OF_PROFILES):
                stays &= common_options(key) if key in KINDS else set()
            if key in KINDS and _SIZES & value.keys():
                stays -= _SIZES
            value = _over({name: each for name, each in below.items() if name in stays}, value)
        merged[key] = value
    return merged


def _settled(values: dict[str, Any], typed: Mapping[str, Any], preset: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the final kinds have of the values; refuse what is none of theirs and was typed, or said by a preset of these kinds."""
    head, center, present = str(kind_in(values, "head")), kind_in(values, "center"), sections_of(values)

    def own(section: str) -> bool:
        """Whether the preset names the kind that stays: then what it says beside it is no inheritance."""
        return bool((preset.get(section) or {}).get("kind") == kind_in(values, section))

    for section in _OF_PROFILES:
        decider = "center" if section == "key_encoder" and head == "attfc" else "head"
        said = (preset.get(section) if own(decider) else None) or typed.get(section)
        if section not in present and said not in (None, {}):
            raise UserError(_absent(section, said, head, center))
    if "negatives" in present:
        _fit(values, typed)
    elif "count" in model_of("head", head).model_fields and not _SIZES & values["head"].keys():
        sizes = {name: each for name, each in (values.get("negatives") or {}).items() if name in _SIZES}
        values["head"] = sizes | values["head"]
    values = {key: value for key, value in values.items() if key in present or key not in _OF_PROFILES}
    for section in KINDS:
        if values.get(section) is not None:
            said = preset.get(section) if own(section) else None
            values[section] = _of_kind(section, values[section], {**(said or {}), **(typed.get(section) or {})})
    return values


def _fit(values: dict[str, Any], typed: Mapping[str, Any]) -> None:
    """Change what is inherited and does not go with the center rule; what was typed is left, for the head to refuse."""
    center = kind_in(values, "center")
    fitting = banks_beside(center)
    if "kind" not in (typed.get("negatives") or {}) and kind_in(values, "negatives") not in fitting:
        values["negatives"] = {**values.get("negatives", {}), "kind": fitting[0]}
    # A table has trained centers beside every rule, so no kind lacks the option. Who names another rule wants it to make the centers.
    if center != "own_embedding" and "trained" not in (typed.get("negatives") or {}):
        values["negatives"] = {name: each for name, each in values.get("negatives", {}).items() if name != "trained"}
    stored = values.get("stored") and kind_in(values, "stored")
    fits = stored == fitting[0] != kind_in(values, "negatives") and uses_stored(values)
    if "stored" not in typed and not fits:
        values["stored"] = None
    if values.get("in_batch") == "push" and "in_batch" not in typed:
        values["in_batch"] = in_batch_beside(center)


def _of_kind(section: str, part: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    kind = part.get("kind", default_kind(section))
    fields = model_of(section, kind).model_fields
    lacking = {name for name in part if name not in fields and kinds_with(section, name)}
    for name in sorted(lacking & said.keys()):
        owners = one_of([f"{section}={each}" for each in kinds_with(section, name)], quote="")
        raise UserError(f"{section}.{name}={part[name]}: {section}.kind={kind} has no option {name}; {owners} has one")
    return {"kind": kind, **{name: value for name, value in part.items() if name not in lacking}}


def _absent(section: str, typed: Any, head: str, center: str | None) -> str:
    """Say why a section that was typed is not there."""
    name, value = next(iter(dotted({section: typed}).items()))
    if section == "key_encoder":
        of = f"head.kind={head}" + (f" and center.kind={center}" if head == "attfc" else "")
        return (
            f"{name}={value}: no keys are embedded with {of}; they are with center=key_attention, head=dcq or head=dcp"
        )
    option = name.rpartition(".")[2]
    own = f", and {head} has head.{option}" * (
        section == "negatives" and option in model_of("head", head).model_fields.keys() - {"kind"}
    )
    return f"{name}={value}: head.kind={head} has no {section}; head=attfc has{own}"
