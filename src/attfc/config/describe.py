"""What the options are, for a reader: lists for the terminal and for docs/options.md, and a configuration with its options explained.

All of it is made from the descriptions in the schema (`attfc.config.option`). A terminal has 80 columns, so an option is a few short rows.
"""

import difflib
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import yaml
from pydantic import BaseModel

from attfc.config.option import clauses
from attfc.config.overrides import PROFILES, SHORT_NAMES, keys_like
from attfc.config.schema import RunConfig
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
    "typed",
]

WIDTH = 80


@dataclass(frozen=True)
class Option:
    """An option as a reader wants to know it; texts have no full stop at their end."""

    key: str  # dotted, as typed on the command line
    meaning: str
    default: Any  # under the profile `tuned`, which is the default one
    published: Any  # under the profile `published`
    kind: str  # what it takes: "true or false", "a | b", "number above 0"
    unit: str | None
    null: str | None
    acts: str | None
    short: str | None

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
        if self.acts:
            rows.append(f"Only where {_condition(self.acts)}.")
        if self.published != self.default:
            rows.append(f"With profile=published the default is {typed(self.published)}.")
        if self.short:
            rows.append(f"Short name: {self.short}.")
        return rows


@cache
def all_options() -> tuple[Option, ...]:
    """Every option, in the order of the schema; the options of the run itself come first."""
    return tuple(_options(RunConfig, ""))


def section_title(section: str) -> str:
    """One line about a section, from the schema."""
    model = RunConfig.model_fields[section].annotation if section else RunConfig
    assert model is not None
    return (model.__doc__ or "").strip().split("\n")[0]


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
    """Whether an option does anything in a configuration; `values` are those of its `model_dump`."""
    return option.acts is None or any(
        all(any(_value(values, key) == _read(value) for value in expected) == equal for key, equal, expected in terms)
        for terms in clauses(option.acts)
    )


def commented_yaml(config: RunConfig) -> str:
    """Render what acts in a configuration as YAML, each option under its meaning.

    `load_config` reads it back; options that are left out then have their defaults, which do nothing here.
    """
    values = config.model_dump(mode="json")
    acting = [option for option in all_options() if acts(option, values)]
    lines = _comment("Every option: attfc options. Those that do nothing in this configuration are left out.", "")
    lines.append("")
    section = ""
    for option in acting:
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
        "Defaults are those of `profile=tuned`; `a|b` in a condition means either of both values.",
        "",
    ]
    for section in sections():
        lines += [f"## {section or 'The run itself'}", ""]
        if section:
            lines += [section_title(section), ""]
        for option in all_options():
            if option.section == section:
                kind = option.kind.replace("|", "\\|")
                lines.append(f"- **`{option.key}`** = `{typed(option.default)}` ({kind})  ")
                lines.append(f"  {' '.join(option.rows())}")
        lines.append("")
    return "\n".join(lines[:-1]) + "\n"


def typed(value: Any) -> str:
    """A value as it is typed on the command line."""
    if isinstance(value, float):
        return f"{value:g}"
    return yaml.safe_dump(value, default_flow_style=True, width=1000, allow_unicode=True).removesuffix("...\n").strip()


def option_rows(option: Option) -> list[str]:
    """The rows of an option in a terminal: key and default, then its sentences, all within 80 columns."""
    head = f"{option.key}={typed(option.default)}"
    kind = f"({option.kind})"
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


def _options(model: type[BaseModel], section: str) -> Iterator[Option]:
    schema = RunConfig.model_json_schema()
    properties = schema["$defs"][model.__name__]["properties"] if section else schema["properties"]
    short = {key: name for name, key in SHORT_NAMES.items()}
    below = []
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            below.append((annotation, name))
            continue
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        default = field.get_default(call_default_factory=True)
        key = f"{section}.{name}" if section else name
        yield Option(
            key=key,
            meaning=field.description or "",
            default=PROFILES["tuned"].get(section, {}).get(name, default),
            published=PROFILES["published"].get(section, {}).get(name, default),
            kind=_kind(properties[name]),
            unit=_optional_text(extra, "unit"),
            null=_optional_text(extra, "null"),
            acts=_optional_text(extra, "acts"),
            short=short.get(key),
        )
    for annotation, name in below:
        yield from _options(annotation, name)


def _optional_text(extra: dict[str, Any], name: str) -> str | None:
    return str(extra[name]) if name in extra else None


def _kind(about: dict[str, Any]) -> str:
    """Say what a property of the JSON schema takes."""
    if "anyOf" in about:
        return " or ".join(_kind(part) for part in about["anyOf"])
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
