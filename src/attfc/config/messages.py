"""What is said of a configuration that cannot be: one line a fault, with the value, what it should be, and the nearest known name."""

import difflib
from functools import cache
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from attfc.config.kinds import KINDS, model_of
from attfc.config.schema import KeyEncoderConfig, RunConfig
from attfc.config.short_names import SHORT_NAMES

__all__ = [
    "all_keys",
    "explain",
    "keys_like",
    "known_annotation",
    "models_of_section",
    "no_section",
    "one_of",
    "section_model",
]


def models_of_section(name: str) -> list[type[BaseModel]]:
    """Return the models that a section may have, that of its default kind first; empty: there is no such section."""
    if name in KINDS:
        return [model_of(name, kind) for kind in KINDS[name]]
    if name == "key_encoder":
        return [KeyEncoderConfig]
    field = RunConfig.model_fields.get(name)
    annotation = field.annotation if field else None
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []


def section_model(name: str) -> type[BaseModel] | None:
    """Return the model of a section, that of its default kind; None: there is no such section."""
    return next(iter(models_of_section(name)), None)


def known_annotation(key: str) -> tuple[Any, ...]:
    """Return the types that an option takes, of whatever kind has it; empty for an unknown one."""
    section, _, name = SHORT_NAMES.get(key, key).rpartition(".")
    models = models_of_section(section) if section else [RunConfig]
    types = [model.model_fields[name].annotation for model in models if name in model.model_fields]
    return tuple(part for each in types for part in (each, *get_args(each)))


def no_section(key: str, value: Any, text: str) -> str:
    """Say what goes into a section that was given a plain value: its first option that takes such a value."""
    section = section_model(key)
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


def explain(error: ValidationError, origin: str) -> str:
    """Return the faults of a configuration in one line."""
    lines = []
    for fault in error.errors():
        location = fault["loc"]
        if location and location[0] in KINDS:  # the kind stands between the section and its option
            location = (location[0], *location[2:])
        place = ".".join(map(str, location))
        if fault["type"] == "extra_forbidden":
            lines.append(f"unknown key {place!r}{_nearest_key(place)}")
        elif fault["type"] == "value_error":
            lines.append(str(fault["ctx"]["error"]))
        elif fault["type"] == "model_type" and section_model(place) is not None:
            lines.append(no_section(place, fault["input"], str(fault["input"])))
        else:
            lines.append(f"{place}={_shortened(fault['input'])}: {fault['msg'][0].lower()}{fault['msg'][1:]}")
    return f"configuration {origin}: " + "; ".join(dict.fromkeys(lines))


_SUPPLIED = {"identities": "the data", "images": "the data", "ranks": "the processes that torchrun starts"}


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _nearest_key(key: str) -> str:
    """Suggest the known keys nearest to an unknown one: those of its section first, then those of any."""
    section, _, name = key.rpartition(".")
    if section in KINDS and name in _SUPPLIED:
        return f": the run supplies it, from {_SUPPLIED[name]}"
    found = keys_like(key)
    return f"; did you mean {one_of(found)}?" if found else " (attfc options lists the known ones)"


def keys_like(key: str, most: int = 3) -> list[str]:
    """Return the dotted keys that somebody who wrote `key` may have meant; empty: nothing is near.

    >>> keys_like("learning_rate"), keys_like("optimizer.lr"), keys_like("optimizer.momentun")
    (['optimizer.learning_rate'], ['optimizer.learning_rate'], ['optimizer.momentum'])
    """
    known = all_keys()
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
        or _nearest_by_last_part(last, list(known))
    )


def _nearest_by_last_part(last: str, keys: list[str]) -> list[str]:
    near = difflib.get_close_matches(last, [key.split(".")[-1] for key in keys], n=1)
    return [key for key in keys if key.split(".")[-1] == near[0]] if near else []


def one_of(names: list[str], quote: str = "'") -> str:
    """Return names as a reader says a choice.

    >>> one_of(["a", "b", "c"])
    "'a', 'b' or 'c'"
    """
    quoted = [f"{quote}{name}{quote}" for name in names]
    return " or ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)


@cache
def all_keys() -> tuple[str, ...]:
    """Return every dotted key and every section."""
    keys: dict[str, None] = {}
    for name in RunConfig.model_fields:
        models = models_of_section(name) if name != "stored" else []
        keys |= {f"{name}.{option}": None for model in models for option in model.model_fields}
        keys[name] = None
    return tuple(keys)
