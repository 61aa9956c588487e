"""Layers of a configuration: profile, preset or YAML file, then the `key=value` overrides of the command line.

Later wins: the defaults of the schema, the values of the `profile` (published | tuned), the preset (a name in attfc/presets or a path to a YAML
file), the overrides. Presets leave the options that a profile governs alone, so `profile=published` on the command line means what it says.
Unknown keys are refused with the nearest known one. A few keys have short names (`lr=0.05`), the same here and in Python.
"""

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from attfc.config.safe_yaml import read_yaml, read_yaml_text
from attfc.config.schema import RunConfig
from attfc.config.short_names import SHORT_NAMES
from attfc.errors import UserError

__all__ = [
    "PROFILES",
    "SHORT_NAMES",
    "Asked",
    "apply_overrides",
    "config_to_yaml",
    "dotted",
    "keys_like",
    "load_config",
    "preset_names",
    "read_preset",
]

# What a profile governs, once as the AttFC paper and its code have them, once as docs/study.md found best.
PROFILES: dict[str, dict[str, Any]] = {
    "published": {
        "keys": {"distinct": False},
        "key_encoder": {"momentum": 0.999, "momentum_schedule": "constant", "batch_norm": "batch"},
        "attention": {"temperature": 1.0, "include_stored_center": False},
        "center": {"blend": 0.0, "source": "keys", "table": "none"},
        "container": {"policy": "fifo", "dtype": "float32"},
        "negatives": {"in_batch": False, "in_batch_gradient": False, "source": "container"},
        "margin": {"gradient": "straight_through", "beyond_pi": "wrap"},
    },
    "tuned": {
        "keys": {"distinct": True},
        "key_encoder": {"momentum": 0.0, "momentum_schedule": "constant", "batch_norm": "batch"},
        "attention": {"temperature": 1.0, "include_stored_center": False},
        "center": {"blend": 0.6, "source": "query", "table": "host"},
        "container": {"policy": "unique", "dtype": "float32"},
        "negatives": {"in_batch": True, "in_batch_gradient": True, "source": "table"},
        "margin": {"gradient": "exact", "beyond_pi": "linear"},
    },
}


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
    """

    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    origin: str = "of the command line"
    automatic: bool = False

    @classmethod
    def of(cls, config: "RunConfig | Asked") -> "Asked":
        """Return what asks for a whole configuration, or what was asked for already."""
        return config if isinstance(config, Asked) else cls(config.model_dump(mode="json"), origin="as given")

    def typed(self) -> frozenset[str]:
        """Return the dotted keys that the overrides set: what was asked for by name, beside what a preset or default says."""
        return frozenset(dotted(_parse_overrides(list(self.overrides))))

    def given(self) -> dict[str, Any]:
        """Return what is settled already, by dotted name: of the preset, of the command line, and of a profile that somebody named.

        The values are those of the configuration: `lr=1e-3` is a text in YAML, and a number here.
        """
        typed = _parse_overrides(list(self.overrides))
        below = _merge(dict(self.values), typed)
        keys = dotted(_merge(PROFILES["published"], below) if below.get("profile") == "published" else below)
        settled = dotted(self.resolve().model_dump(mode="json"))
        return {key: settled.get(key, value) for key, value in keys.items()}

    def resolve(self, chosen: Mapping[str, Any] | None = None) -> RunConfig:
        """Return the configuration: `chosen` values, by dotted name, lie above those of the profile and below everything asked for."""
        below: dict[str, Any] = {}
        for key, value in (chosen or {}).items():
            *sections, last = key.split(".")
            target = below
            for section in sections:
                target = target.setdefault(section, {})
            target[last] = value
        return apply_overrides(_merge(below, dict(self.values)), list(self.overrides), self.origin)


def read_preset(preset: str, overrides: list[str] | None = None) -> Asked:
    """Return what a preset, or a YAML file, and overrides ask for.

    Raises:
        UserError: unknown preset, unreadable YAML.
    """
    values, origin = _read_preset(preset)
    return Asked(values, tuple(overrides or []), origin)


def load_config(preset: str, overrides: list[str] | None = None) -> RunConfig:
    """Resolve a preset name or YAML path with overrides like ``optimizer.learning_rate=0.05``.

    Raises:
        UserError: unknown preset, unreadable YAML, unknown key, or a value of the wrong kind; one line a fault, with the nearest known name.
    """
    return read_preset(preset, overrides).resolve()


def apply_overrides(values: dict[str, Any], overrides: list[str], origin: str) -> RunConfig:
    """Merge profile defaults under `values` and overrides over them, then validate; `origin` names the values in errors."""
    changed = _parse_overrides(overrides)
    profile = changed.get("profile", values.get("profile", "tuned"))
    if not isinstance(profile, str) or profile not in PROFILES:
        raise UserError(f"profile={profile!r} is unknown: choose one of {', '.join(PROFILES)}")
    merged = _merge(PROFILES[profile], values)
    if "profile" in changed:  # asked for by name: all of it, also over a resolved configuration
        merged = _merge(merged, PROFILES[profile])
    merged = _merge(merged, changed)
    try:
        return RunConfig.model_validate(merged)
    except ValidationError as error:
        raise UserError(_explain(error, origin)) from None


def config_to_yaml(config: RunConfig) -> str:
    """Render the resolved configuration as YAML; `load_config` reads it back to an equal object."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def _read_preset(preset: str) -> tuple[dict[str, Any], str]:
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
            + (f"; did you mean {_one_of(near)}?" if near else "")
            + " (attfc presets lists them; a folder of faces is given by its path: attfc train FOLDER, a configuration by its .yaml file)"
        )
    try:
        values = read_yaml(text)
    except ValueError as error:
        raise UserError(f"{preset} is not valid YAML: {error}") from None
    if values is None:
        values = {}
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UserError(
            f"{preset} holds {type(values).__name__}, expected a mapping of sections such as data, backbone, head"
        )
    return values, preset


def _parse_overrides(overrides: list[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise UserError(
                f"override {override!r} is not of the form key=value, for example optimizer.learning_rate=0.05"
            )
        try:
            value = read_yaml(text) if text else ""
        except ValueError:
            value = text
        if isinstance(value, str) and text[:1] not in ("'", '"'):
            value = text  # as typed: YAML would take " #2" for a comment
        key = key.strip()
        if not isinstance(value, dict):  # head={name: dcp} is the section itself
            key = SHORT_NAMES.get(key, key)
            if _section(key) is not None:
                raise UserError(_no_section(key, value, text))
        target = values
        *sections, last = key.split(".")
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise UserError(
                    f"override {override!r} goes into {section!r}, which an earlier override set to a plain value"
                )
        target[last] = value
    return values


def _section(key: str) -> type[BaseModel] | None:
    field = RunConfig.model_fields.get(key)
    annotation = field.annotation if field else None
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _no_section(key: str, value: Any, text: str) -> str:
    """Say what goes into a section that was given a plain value: its first option that takes such a value."""
    section = _section(key)
    assert section is not None
    options = sorted(section.model_fields, key=lambda name: name not in ("name", "root", key))
    fitting = next((name for name in options if _takes(section, name, value)), None)
    write = f"write {key}.{fitting}={text}" if fitting else f"write {key}.OPTION=VALUE"
    return f"{key}={text}: {key} is a section of options and takes no value itself; {write} (attfc options {key} lists them)"


def _takes(section: type[BaseModel], name: str, value: Any) -> bool:
    try:
        taken = getattr(section.model_validate({name: value}), name)
        return bool(taken == value and isinstance(taken, bool) == isinstance(value, bool))
    except ValidationError:
        return False


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def dotted(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by dotted name.

    >>> dotted({"seed": 3, "head": {"name": "attfc"}})
    {'seed': 3, 'head.name': 'attfc'}
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _explain(error: ValidationError, origin: str) -> str:
    lines = []
    for fault in error.errors():
        place = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            lines.append(f"unknown key {place!r}{_nearest_key(fault['loc'])}")
        elif fault["type"] == "value_error":
            lines.append(str(fault["ctx"]["error"]))
        elif fault["type"] == "model_type" and _section(place) is not None:
            lines.append(_no_section(place, fault["input"], str(fault["input"])))
        else:
            lines.append(f"{place}={_shortened(fault['input'])}: {fault['msg'][0].lower()}{fault['msg'][1:]}")
    return f"configuration {origin}: " + "; ".join(lines)


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _nearest_key(location: tuple[int | str, ...]) -> str:
    """Suggest the known keys nearest to an unknown one: those of its section first, then those of any."""
    found = keys_like(".".join(map(str, location)))
    return f"; did you mean {_one_of(found)}?" if found else " (attfc options lists the known ones)"


def keys_like(key: str, most: int = 3) -> list[str]:
    """Return the dotted keys that somebody who wrote `key` may have meant; empty: nothing is near.

    >>> keys_like("learning_rate"), keys_like("optimizer.lr"), keys_like("optimizer.momentun")
    (['optimizer.learning_rate'], ['optimizer.learning_rate'], ['optimizer.momentum'])
    """
    known = _all_keys(RunConfig)
    *sections, last = key.split(".")
    if sections:
        near = _nearest_by_last_part(last, [name for name in known if name.split(".")[:-1] == sections])
        if near:
            return near
    if last in SHORT_NAMES:
        return [SHORT_NAMES[last]]
    same = [name for name in known if name.split(".")[-1] == last]
    return (
        same[:most]
        or difflib.get_close_matches(last, [*RunConfig.model_fields, *SHORT_NAMES], n=1)
        or _nearest_by_last_part(last, known)
    )


def _nearest_by_last_part(last: str, keys: list[str]) -> list[str]:
    near = difflib.get_close_matches(last, [key.split(".")[-1] for key in keys], n=1)
    return [key for key in keys if key.split(".")[-1] == near[0]] if near else []


def _one_of(names: list[str]) -> str:
    quoted = [repr(name) for name in names]
    return " or ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)


def _all_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            keys += _all_keys(annotation, f"{prefix}{name}.")
        keys.append(prefix + name)
    return keys
