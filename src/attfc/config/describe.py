"""What the options are, for a reader: lists for the terminal and for docs/options.md, and a configuration with its options explained.

All of it is made from the descriptions in the schema (`attfc.config.option`). A terminal has 80 columns, so an option is a few short rows.
"""

import textwrap
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import yaml
from pydantic.fields import FieldInfo

from attfc.config.choose import Data, Machine, choose
from attfc.config.kinds import KINDS, PARTS
from attfc.config.messages import adapter, keys_like
from attfc.config.option import Option as Described
from attfc.config.option import clauses
from attfc.config.overrides import as_typed, dotted
from attfc.config.profiles import profile_values
from attfc.config.schema import RunConfig, described_fields, models_of
from attfc.config.short_names import SHORT_NAMES, short_name
from attfc.errors import UserError

if TYPE_CHECKING:
    from attfc.config.layers import Asked

__all__ = [
    "Option",
    "acts",
    "all_options",
    "commented_yaml",
    "find_options",
    "option_rows",
    "section_title",
    "sections",
    "without_effect",
]

TITLES = {
    "head": "What turns embeddings and labels into a loss.",
    "margin": "The margin, which asks for a higher cosine to the right class center, and the scale of all cosines.",
    "center": "What AttFC makes a class center from.",
    "stored": "The bank that keeps AttFC's stored centers, where it is not that of the negatives.",
    "negatives": "Which centers of other identities AttFC compares an embedding with, and where they are kept.",
}
WIDTH = 80


@dataclass(frozen=True, kw_only=True)
class Option(Described):
    """An option as a reader wants to know it; texts have no full stop at their end."""

    key: str  # dotted, as typed on the command line
    default: Any
    published: Any  # under the profile `published`
    takes: str  # "true or false", "a | b", "number above 0"
    short: str | None
    kinds: tuple[str, ...] = ()  # of the section that have it so; empty: all

    @property
    def section(self) -> str:
        """Name of the section, empty for the options of the run itself."""
        return self.key.rpartition(".")[0]

    def rows(self) -> list[str]:
        """Sentences below the key: meaning, null, when it acts, the other profile's default, whether it is chosen, the short name."""
        meaning = self.meaning + (f" ({self.unit})" if self.unit and self.unit not in self.meaning else "")
        rows = [f"{meaning[0].upper()}{meaning[1:]}."]
        if self.null:
            rows.append(f"null: {self.null}.")
        if self.kinds:
            rows.append(f"Only where {self.section}.kind={'|'.join(self.kinds)}.")
        if self.acts:
            rows.append(f"Only where {_condition(self.acts)}.")
        if self.published != self.default:
            rows.append(f"With profile=published the default is {as_typed(self.published)}.")
        if self.key in _chosen():
            rows.append("Chosen by attfc train DATA from the data and the machine.")
        if self.short:
            rows.append(f"Short name: {self.short}.")
        return rows


@cache
def _chosen() -> frozenset[str]:
    """Options that `attfc train DATA` chooses, whatever the data."""
    rows = choose(Data(identities=100, images=1000, with_pairs=100), Machine("cpu", 8, 8), {})
    return frozenset(key for row in rows for key in row.values)


@cache
def all_options() -> tuple[Option, ...]:
    """Every option, in the order of the schema; the options of the run itself come first. One that several kinds have alike is one option."""
    found: dict[str, tuple[Option, list[str]]] = {}
    for key, owners in described_fields().items():
        for kind, field in owners if not models_of(key) else ():
            option = _option(key, field)
            found.setdefault(repr(option), (option, []))[1].append(kind)
    options = [
        option if kinds == [""] or len(kinds) == len(KINDS[option.section]) else replace(option, kinds=tuple(kinds))
        for option, kinds in found.values()
    ]
    return tuple(sorted(options, key=lambda option: option.section != ""))


def section_title(section: str) -> str:
    """One line about a section, from the schema."""
    models = models_of(section) or {"": RunConfig}
    return TITLES.get(section) or (next(iter(models.values())).__doc__ or "").strip().split("\n")[0]


def sections() -> list[str]:
    """Names of the sections, in order; the run itself is the empty name."""
    return list(dict.fromkeys(option.section for option in all_options()))


def find_options(word: str) -> list[Option]:
    """Return the options of a section, the option of that key or short name, or those whose key or meaning has the word.

    Raises:
        UserError: nothing has it; the message names the nearest keys and sections.
    """
    options, low = all_options(), word.lower()
    found = [option for option in options if option.section == word]
    found = found or [option for option in options if option.key == SHORT_NAMES.get(word, word)]
    if not found:
        named = [option for option in options if low in option.key.lower()]
        found = named + [option for option in options if low in option.meaning.lower() and option not in named]
    if not found:
        near = keys_like(word)
        raise UserError(
            f"no option has {word!r} in its name or description"
            + (f"; near it: {', '.join(near)}" if near else "")
            + f" (sections: {', '.join(filter(None, sections()))})"
        )
    return found


def acts(option: Option, values: dict[str, Any]) -> bool:
    """Whether an option is there and does anything in a configuration; `values` are those of its `model_dump`."""
    part = values.get(option.section) if option.section else values
    if part is None or (option.key in _OF_PARTS and option.key not in values):
        return False
    if option.kinds and part["kind"] not in option.kinds:
        return False
    return option.acts is None or any(
        all(
            any(_value(values, key) == yaml.safe_load(value) for value in expected) == equal
            for key, equal, expected in terms
        )
        for terms in clauses(option.acts)
    )


def without_effect(asked: "Asked", config: RunConfig) -> list[str]:
    """Say which options do nothing in a configuration, of those that were typed or that a file has otherwise than by default."""
    values, typed, said = config.model_dump(mode="json"), asked.typed(), dotted(asked.values)
    notes = []
    for option in all_options():
        if option.acts is None or acts(option, values) or not acts(replace(option, acts=None), values):
            continue
        inherited = {
            key for terms in clauses(option.acts) for key, _, _ in terms
        } & typed  # under a change that was typed
        if option.key in typed or (not inherited and said.get(option.key, option.default) != option.default):
            value = as_typed(_value(values, option.key))
            notes.append(f"{option.key}={value} has no effect: it acts only where {_condition(option.acts)}")
    return notes


def commented_yaml(config: RunConfig) -> str:
    """Render what acts in a configuration as YAML, each option under its meaning.

    `load_config` reads it back; options that are left out then have their defaults, which do nothing here.
    """
    values = config.model_dump(mode="json")
    lines = _comment("All options: attfc options. Options without effect in this configuration are left out.")
    lines.append("")
    section = ""
    for option in (each for each in all_options() if acts(each, values)):
        if option.section != section:
            section = option.section
            lines += ["", *_comment(section_title(section)), f"{section}:"]
        indent = "  " if section else ""
        name = option.key.rpartition(".")[2]
        meaning = " ".join(option.rows()[: 2 if option.null and _value(values, option.key) is None else 1])
        lines += _comment(meaning, indent)
        written = yaml.safe_dump({name: _value(values, option.key)}, sort_keys=False, allow_unicode=True, width=120)
        lines += [indent + line for line in written.splitlines()]
    return "\n".join(lines) + "\n"


def option_rows(option: Option) -> list[str]:
    """The rows of an option in a terminal: key and default, then its sentences, all within 80 columns."""
    head = f"{option.key}={as_typed(option.default)}"
    kind = f"({option.takes})"
    first = [f"  {head}  {kind}"] if len(head) + len(kind) + 4 <= WIDTH else [f"  {head}", *_wrapped(kind, " " * 6)]
    return first + [line for row in option.rows() for line in _wrapped(row, " " * 6)]


def _wrapped(text: str, before: str, width: int = WIDTH) -> list[str]:
    """Return a text as lines that each begin with `before`."""
    return textwrap.wrap(
        text, width, initial_indent=before, subsequent_indent=before, break_long_words=False, break_on_hyphens=False
    )


def _comment(text: str, indent: str = "") -> list[str]:
    return _wrapped(text, f"{indent}# ", WIDTH - 2)


_OF_PARTS = frozenset(part for parts in PARTS.values() for part in parts)


def _option(key: str, field: FieldInfo) -> Option:
    """Describe a field of a model, whether it stands in the schema or in a component's signature."""
    extra: Any = field.json_schema_extra or {}
    said = extra.get("option") or next(each for each in field.metadata if isinstance(each, Described))
    default = field.get_default(call_default_factory=True)
    short = short_name(key)
    return Option(
        **vars(said),
        key=key,
        default=default,
        published=dotted(profile_values("published")).get(key, default) if key != "profile" else default,
        takes=_kind(adapter(field).json_schema()),
        short=None if short == key else short,
    )


_TYPES = {
    "boolean": "true or false",
    "string": "text",
    "null": "null",
    "object": "mapping",
    "array": "list",
    "integer": "whole number",
    "number": "number",
}


def _kind(about: dict[str, Any]) -> str:
    """Say what a property of the JSON schema takes."""
    if "anyOf" in about:
        return " or ".join(dict.fromkeys(_kind(part) for part in about["anyOf"]))
    if "const" in about:
        return str(about["const"])
    if "enum" in about:
        return " | ".join("null" if each is None else str(each) for each in about["enum"])
    if "prefixItems" in about:
        return f"list of {len(about['prefixItems'])} numbers"
    bounds = {"exclusiveMinimum": "above", "minimum": "from", "exclusiveMaximum": "below", "maximum": "to"}
    return " ".join(
        [_TYPES[about["type"]], *(f"{word} {about[name]:g}" for name, word in bounds.items() if name in about)]
    )


def _value(values: dict[str, Any], key: str) -> Any:
    section, _, name = key.rpartition(".")
    return (values[section] if section else values)[name]


def _condition(condition: str) -> str:
    """A condition as a reader says it.

    >>> _condition("eval.pairs=null and eval.root!=null or eval.share!=0")
    'eval.pairs is null and eval.root is set, or where eval.share is above 0'
    """
    said = {
        ("=", "null"): "{} is null",
        ("=", "[]"): "{} is empty",
        ("!=", "null"): "{} is set",
        ("!=", "[]"): "{} is set",
        ("!=", "0"): "{} is above 0",
    }
    alternatives = []
    for terms in clauses(condition):
        words = []
        for key, equal, values in terms:
            sign, value = "=" if equal else "!=", "|".join(values)
            words.append(said.get((sign, value), "{}" + sign + value).format(key))
        alternatives.append(" and ".join(words))
    return ", or where ".join(alternatives)
