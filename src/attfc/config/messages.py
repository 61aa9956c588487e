"""What is said of a configuration that cannot be: one line a fault, with the value, what it should be, and the nearest known name."""

import difflib
import re
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from attfc.config.kinds import KINDS
from attfc.config.schema import RunConfig, described_fields, models_of
from attfc.config.short_names import SHORT_NAMES

__all__ = [
    "adapter",
    "explain",
    "keys_like",
    "no_section",
    "one_of",
    "said_as_options",
]


def adapter(field: FieldInfo) -> TypeAdapter[Any]:
    """Return what checks the values of an option, bounds and all."""
    bounded: Any = Annotated[field.annotation, *(field.metadata or [None])]
    return TypeAdapter(bounded)


def takes(key: str, value: Any) -> bool:
    """Whether an option, of whatever kind has it, takes a value as it is."""
    for _, field in described_fields()[key]:
        try:
            taken = adapter(field).validate_python(value)
            return bool(taken == value and isinstance(taken, bool) == isinstance(value, bool))
        except ValidationError:
            pass
    return False


def no_section(key: str, value: Any, text: str) -> str:
    """Say what goes into a section that was given a plain value: its first option that takes such a value."""
    options = [each for each in described_fields() if each.startswith(f"{key}.")]
    options.sort(key=lambda each: each not in (f"{key}.name", f"{key}.root", f"{key}.{key}"))
    fitting = next((each for each in options if takes(each, value)), None)
    write = f"write {fitting}={text}" if fitting else f"write {key}.OPTION=VALUE"
    return f"{key}={text}: {key} is a section of options and takes no value itself; {write} (attfc options {key} lists them)"


def explain(error: ValidationError, origin: str) -> str:
    """Return the faults of a configuration in one line."""
    lines = []
    for fault in error.errors():
        location = fault["loc"]
        if location and location[0] in KINDS:  # the kind stands between the section and its option
            location = (location[0], *location[2:])
        if PIXEL_VALUES in location:
            continue
        if one_or_three := location[-1:] == ("float",):
            location = location[:-1]
        place = ".".join(map(str, location))
        if one_or_three:
            lines.append(f"{place}={_shortened(fault['input'])}: input should be one number, or three")
        elif fault["type"] == "extra_forbidden":
            lines.append(f"unknown key {place!r}{_nearest_key(place)}")
        elif fault["type"] == "value_error":
            lines.append(str(fault["ctx"]["error"]))
        elif fault["type"] == "model_type" and models_of(place):
            lines.append(no_section(place, fault["input"], str(fault["input"])))
        else:
            lines.append(f"{place}={_shortened(fault['input'])}: {fault['msg'][0].lower()}{fault['msg'][1:]}")
    return f"configuration {origin}: " + "; ".join(dict.fromkeys(lines))


PIXEL_VALUES = "tuple[float, float, float]"  # pydantic's name for the other thing that such an option may be
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


_ALIKE, _FAR_ALIKE = 0.7, 0.8  # of difflib's ratio: epoch and epochs 0.91, nane and name 0.75, dropout and root 0.73


def keys_like(key: str, most: int = 3) -> list[str]:
    """Return the dotted keys that somebody who wrote `key` may have meant, those of its own section first; empty: nothing is near.

    >>> keys_like("learning_rate"), keys_like("optimizer.lr"), keys_like("optimizer.momentun")
    (['optimizer.learning_rate'], ['optimizer.learning_rate'], ['optimizer.momentum'])
    >>> keys_like("augment.crop"), keys_like("warmup"), keys_like("teachr_of_mine")
    (['augment.crop_scale'], ['schedule.warmup_epochs'], [])
    """
    known = described_fields()
    section, _, last = key.rpartition(".")
    if "_" in key and (apart := key.replace("_", ".", 1)) in known:
        return [apart]
    if section:
        homes = difflib.get_close_matches(section, {name.rpartition(".")[0] for name in known}, n=1, cutoff=_ALIKE)
        own = [name for name in known if name.rpartition(".")[0] in homes]
        if near := _spelled_like(last, own) or _worded_like(last, own):
            return near[:most]
    if last in SHORT_NAMES:
        return [SHORT_NAMES[last]]
    same = [name for name in known if name.split(".")[-1] == last]
    far = (list({**dict.fromkeys(RunConfig.model_fields), **SHORT_NAMES}), list(known))
    near = same or next(filter(None, (_spelled_like(last, keys, _FAR_ALIKE) for keys in far)), [])
    return (near or ([] if section else _worded_like(last, list(known))))[:most]


def _spelled_like(last: str, keys: list[str], cutoff: float = _ALIKE) -> list[str]:
    near = difflib.get_close_matches(last, [key.split(".")[-1] for key in keys], n=1, cutoff=cutoff)
    return [key for key in keys if key.split(".")[-1] == near[0]] if near else []


def _worded_like(last: str, keys: list[str]) -> list[str]:
    """Return the keys that begin as a word does, then those that share a whole word with it."""
    names = {key: key.split(".")[-1] for key in keys}
    begin = [key for key, name in names.items() if name.replace("_", "").startswith(last.replace("_", ""))]
    words = {word for word in last.split("_") if len(word) > 2}
    return begin or [key for key, name in names.items() if words & set(name.split("_"))]


def said_as_options(refusal: str) -> str:
    """Say what a head says of its parts as it is typed.

    >>> said_as_options('in_batch="push" does not go with center=KeyAttention: take center=OtherImages(images=M), or CenterTable()')
    'in_batch=push does not go with center=key_attention: take center=other_images, or center_table'
    """
    kinds = {home.partition(":")[2]: kind for section in KINDS.values() for kind, home in section.items()}
    return re.sub(
        rf"\b({'|'.join(kinds)})\b(\([^()]*\))?", lambda found: kinds[found[1]], re.sub(r'"(\w+)"', r"\1", refusal)
    )


def one_of(names: list[str], quote: str = "'") -> str:
    """Return names as a reader says a choice.

    >>> one_of(["a", "b", "c"])
    "'a', 'b' or 'c'"
    """
    quoted = [f"{quote}{name}{quote}" for name in names]
    return " or ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)
