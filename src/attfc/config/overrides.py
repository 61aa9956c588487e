"""`key=value` as it is typed, and values by dotted name.

A value is YAML, with two exceptions: a text stays as typed, and `on`, `off`, `yes`, `no` are texts where the option takes none of true and false.
A few keys have short names (`lr=0.05`), the same here and in Python. A word for a section that has kinds is its kind: `head=full_fc`.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from attfc.config.kinds import KINDS
from attfc.config.messages import no_section
from attfc.config.option import types_in
from attfc.config.safe_yaml import read_yaml
from attfc.config.schema import described_fields, models_of
from attfc.config.short_names import SHORT_NAMES
from attfc.errors import UserError

__all__ = ["as_typed", "dotted", "nested", "parse_overrides"]


def parse_overrides(overrides: Iterable[str]) -> dict[str, Any]:
    """Return the values of `key=value` texts, nested by section.

    Raises:
        UserError: a text of another form, or a plain value for a section that has no kinds.
    """
    pairs: list[tuple[str, Any]] = []
    for override in overrides:
        key, equals, text = override.partition("=")
        key = key.strip()
        if not equals or not key:
            raise UserError(
                f"override {override!r} is not of the form key=value, for example optimizer.learning_rate=0.05"
            )
        value = _value(key, text)
        if not isinstance(value, dict):  # head={kind: dcp} is the section itself
            key = SHORT_NAMES.get(key, key)
            if key in KINDS and isinstance(value, str):
                key = f"{key}.kind"
            elif models_of(key) and not (value is None and key in KINDS):
                raise UserError(no_section(key, value, text))
        pairs.append((key, value))
    return nested(pairs)


def _value(key: str, text: str) -> Any:
    try:
        value = read_yaml(text) if text else ""
    except ValueError:
        value = text
    if text == "none" and key == "stored":
        return None
    known = described_fields().get(SHORT_NAMES.get(key, key), [])
    two_valued = any(bool in types_in(field.annotation) for _, field in known)
    word = isinstance(value, bool) and text.lower() not in ("true", "false") and not two_valued
    if (isinstance(value, str) and text[:1] not in ("'", '"')) or word:
        return text  # as typed: YAML would take " #2" for a comment
    return value


def as_typed(value: Any) -> str:
    """Return a value as it is typed on the command line.

    >>> as_typed(0.5), as_typed(None), as_typed([{"root": "A"}])
    ('0.5', 'null', '[{root: A}]')
    """
    if isinstance(value, float):
        return f"{value:g}"
    return yaml.safe_dump(value, default_flow_style=True, width=1000, allow_unicode=True).removesuffix("...\n").strip()


def dotted(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values by dotted name.

    >>> dotted({"seed": 3, "head": {"kind": "attfc"}})
    {'seed': 3, 'head.kind': 'attfc'}
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def nested(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Return values by dotted name as nested ones; later ones win.

    Raises:
        UserError: a name goes into a plain value.

    >>> nested([("seed", 3), ("head.kind", "attfc")])
    {'seed': 3, 'head': {'kind': 'attfc'}}
    """
    values: dict[str, Any] = {}
    for key, value in pairs:
        target = values
        *sections, last = key.split(".")
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise UserError(
                    f"override '{key.removesuffix('.kind')}={as_typed(value)}' goes into {section!r}, which an earlier override set to a plain value"
                )
        both = isinstance(value, dict) and isinstance(target.get(last), dict)
        target[last] = target[last] | value if both else value
    return values
