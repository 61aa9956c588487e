"""What the options are, for a reader: lists for the terminal and for docs/options.md, and a configuration with its options explained.

All of it is made from the descriptions in the schema (`attfc.config.option`). A terminal has 80 columns, so an option is a few short rows.
"""

import difflib
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Annotated, Any

import yaml
from pydantic import TypeAdapter
from pydantic.fields import FieldInfo

from attfc.config.kinds import IN_BATCH, KINDS, MEANINGS, PARTS, default_kind
from attfc.config.messages import keys_like, models_of_section
from attfc.config.option import Option as Described
from attfc.config.option import clauses
from attfc.config.overrides import as_typed, dotted
from attfc.config.profiles import profile_values
from attfc.config.schema import RunConfig
from attfc.config.short_names import SHORT_NAMES
from attfc.errors import UserError

__all__ = [
    "Option",
    "acts",
    "all_options",
    "commented_yaml",
    "find_options",
    "option_rows",
    "options_page",
    "section_title",
]

TITLES = {
    "head": "What turns embeddings and labels into a loss.",
    "margin": "The margin, which makes the own identity's cosine harder to satisfy, and the scale of all cosines.",
    "center": "What AttFC makes a class center from.",
    "negatives": "Which centers of other identities AttFC compares an embedding with, and where they are kept.",
}
WIDTH = 80


@dataclass(frozen=True)
class Option:
    """An option as a reader wants to know it; texts have no full stop at their end."""

    key: str  # dotted, as typed on the command line
    meaning: str
    default: Any
    published: Any  # under the profile `published`
    takes: str  # "true or false", "a | b", "number above 0"
    unit: str | None
    null: str | None
    acts: str | None
    short: str | None
    kinds: tuple[str, ...] = ()  # of the section that have it so; empty: all

    @property
    def section(self) -> str:
        """Name of the section, empty for the options of the run itself."""
        return self.key.rpartition(".")[0]

    def rows(self) -> list[str]:
        """Sentences below the key: meaning, null, when it acts, the other profile's default, the short name."""
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
        if self.short:
            rows.append(f"Short name: {self.short}.")
        return rows


@cache
def all_options() -> tuple[Option, ...]:
    """Every option, in the order of the schema; the options of the run itself come first."""
    sections = [name for name in RunConfig.model_fields if models_of_section(name) and name != "stored"]
    return tuple(option for section in ("", *sections) for option in _options(section))


def section_title(section: str) -> str:
    """One line about a section, from the schema."""
    model = models_of_section(section)[0] if section else RunConfig
    return TITLES.get(section) or (model.__doc__ or "").strip().split("\n")[0]


def sections() -> list[str]:
    """Names of the sections, in order; the run itself is the empty name."""
    return list(dict.fromkeys(option.section for option in all_options()))


def find_options(word: str) -> list[Option]:
    """Return the options of a section, the option of that key or short name, or those whose key or meaning has the word.

    Raises:
        UserError: nothing has it; the message names the nearest keys and sections.
    """
    options = all_options()
    key = SHORT_NAMES.get(word, word)
    found = [option for option in options if option.key == key]
    if key == word:  # a section that is no short name too, such as head
        found += [option for option in options if word and option.section == word]
    elif word in sections():
        found = [option for option in options if option.section == word]
    if not found:
        low = word.lower()
        found = [option for option in options if low in option.key.lower()]
        found += [option for option in options if low in option.meaning.lower() and option not in found]
    if not found:
        near = keys_like(word) or difflib.get_close_matches(
            word, [*sections(), *SHORT_NAMES, *(o.key for o in options)], cutoff=0.4
        )
        raise UserError(
            f"no option has {word!r} in its name or meaning"
            + (f"; near it: {', '.join(near)}" if near else "")
            + f" (sections: {', '.join(filter(None, sections()))})"
        )
    return found


def acts(option: Option, values: dict[str, Any]) -> bool:
    """Whether an option is there and does anything in a configuration; `values` are those of its `model_dump`."""
    flat = dotted(values)
    kind = flat.get(f"{option.section}.kind")
    there = option.section in values if option.section else option.key not in _OF_PARTS or option.key in values
    if not there or (option.kinds and kind not in option.kinds):
        return False
    return option.acts is None or any(
        all(any(_value(values, key) == _read(value) for value in expected) == equal for key, equal, expected in terms)
        for terms in clauses(option.acts)
    )


def commented_yaml(config: RunConfig) -> str:
    """Render what acts in a configuration as YAML, each option under its meaning.

    `load_config` reads it back; options that are left out then have their defaults, which do nothing here.
    """
    values = config.model_dump(mode="json")
    lines = _comment("Every option: attfc options. Those that do nothing in this configuration are left out.", "")
    lines.append("")
    section = ""
    for option in (each for each in all_options() if acts(each, values)):
        if option.section != section:
            section = option.section
            lines += ["", *_comment(section_title(section), ""), f"{section}:"]
        indent = "  " if section else ""
        name = option.key.rpartition(".")[2]
        meaning = " ".join(option.rows()[: 2 if option.null and _value(values, option.key) is None else 1])
        lines += _comment(meaning, indent)
        written = yaml.safe_dump({name: _value(values, option.key)}, sort_keys=False, allow_unicode=True, width=120)
        lines += [indent + line for line in written.splitlines()]
    return "\n".join(lines) + "\n"


def options_page() -> str:
    """The text of docs/options.md."""
    lines = [
        "# Options",
        "",
        "Every option of `attfc train`, made from the schema by `make docs`. `attfc options WORD` shows the same in a terminal.",
        "An option is typed as `section.option=value`; in a YAML file it stands in its section. Short names are for the command line and Python.",
        "A word for `head`, `margin`, `center`, `negatives` or `stored` is its kind: `head=full_fc` is `head.kind=full_fc`. "
        "`center`, `negatives`, `stored` and `in_batch` are parts of `head.kind=attfc`. "
        "`key_encoder` is there where keys are embedded: `center.kind=key_attention`, `head.kind=dcq|dcp`.",
        "`a|b` in a condition means either of both values.",
        "",
    ]
    for section in sections():
        lines += [f"## {section or 'The run itself'}", ""]
        if section:
            lines += [section_title(section), ""]
        for option in all_options():
            if option.section == section:
                kind = option.takes.replace("|", "\\|")
                lines.append(f"- **`{option.key}`** = `{as_typed(option.default)}` ({kind})  ")
                lines.append(f"  {' '.join(option.rows())}")
        lines.append("")
    return "\n".join(lines[:-1]) + "\n"


def option_rows(option: Option) -> list[str]:
    """The rows of an option in a terminal: key and default, then its sentences, all within 80 columns."""
    head = f"{option.key}={as_typed(option.default)}"
    kind = f"({option.takes})"
    first = [f"  {head}  {kind}"] if len(head) + len(kind) + 4 <= WIDTH else [f"  {head}", *_wrapped(kind, 6)]
    return first + [line for row in option.rows() for line in _wrapped(row, 6)]


def _wrapped(text: str, indent: int) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=" " * indent,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _comment(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH - 2,
        initial_indent=f"{indent}# ",
        subsequent_indent=f"{indent}# ",
        break_long_words=False,
        break_on_hyphens=False,
    )


_OF_PARTS = frozenset(part for parts in PARTS.values() for part in parts)


def _options(section: str) -> Iterator[Option]:
    """Yield the options of a section; one that several kinds have alike is one option."""
    if not section:
        for name, field in RunConfig.model_fields.items():
            if not models_of_section(name) or name == "stored":
                yield _option(name, field)
        return
    found: dict[str, tuple[Option, list[str]]] = {}
    for model in models_of_section(section):
        for name, field in model.model_fields.items():
            if name == "kind" and section in KINDS:
                continue
            option = _option(f"{section}.{name}", field)
            found.setdefault(repr(option), (option, []))[1].append(model.__name__.removeprefix(f"{section}_"))
    if section in KINDS:
        default = default_kind(section)
        published = profile_values("published").get(section, {}).get("kind", default)
        takes = " | ".join(KINDS[section])
        yield Option(f"{section}.kind", MEANINGS[section], default, published, takes, None, None, None, short=section)
    for option, kinds in found.values():
        everyone = section not in KINDS or len(kinds) == len(KINDS[section])
        yield option if everyone else replace(option, kinds=tuple(kinds))


def _option(key: str, field: FieldInfo) -> Option:
    """Describe a field of a model, whether it stands in the schema or in a component's signature."""
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    said = next((each for each in field.metadata if isinstance(each, Described)), None)
    default = field.get_default(call_default_factory=True) if key != "in_batch" else IN_BATCH[1]
    takes: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    published = dotted(profile_values("published")).get(key, default) if key != "profile" else default
    return Option(
        key=key,
        meaning=said.meaning if said else field.description or "",
        default=default,
        published=published,
        takes=_kind(TypeAdapter(takes).json_schema()) if key != "stored" else "null | bank of negatives",
        unit=said.unit if said else _optional_text(extra, "unit"),
        null=said.null if said else _optional_text(extra, "null"),
        acts=_optional_text(extra, "acts"),
        short=next((short for short, name in SHORT_NAMES.items() if name == key), None),
    )


def _optional_text(extra: dict[str, Any], name: str) -> str | None:
    return str(extra[name]) if name in extra else None


def _kind(about: dict[str, Any]) -> str:
    """Say what a property of the JSON schema takes."""
    if "anyOf" in about:
        return " or ".join(dict.fromkeys(_kind(part) for part in about["anyOf"]))
    if "const" in about:
        return str(about["const"])
    if "enum" in about:
        return " | ".join(map(str, about["enum"]))
    kinds = {"boolean": "true or false", "string": "text", "null": "null", "object": "mapping"}
    if about["type"] == "array":
        if "prefixItems" in about:
            return f"list of {len(about['prefixItems'])} numbers"
        return "list"
    if about["type"] in kinds:
        return kinds[about["type"]]
    number = "whole number" if about["type"] == "integer" else "number"
    least, above = about.get("minimum"), about.get("exclusiveMinimum")
    most, below = about.get("maximum"), about.get("exclusiveMaximum")
    bounds = [
        f"above {above:g}" if above is not None else f"from {least:g}" if least is not None else "",
        f"below {below:g}" if below is not None else f"to {most:g}" if most is not None else "",
    ]
    return " ".join(filter(None, [number, *bounds]))


def _value(values: dict[str, Any], key: str) -> Any:
    section, _, name = key.rpartition(".")
    return (values[section] if section else values)[name]


def _read(text: str) -> Any:
    return yaml.safe_load(text)


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
