"""YAML of a configuration as plain values, within bounds: a file from elsewhere ends in values or in one error, at once.

PyYAML's safe loader runs no code, but 315 bytes of anchors within anchors stand for 10^9 values, and a date such as 2024-13-01 is a
ValueError. Here a text has at most 256 KiB, all values that its anchors stand for are counted before one is made, and dates stay text.
"""

import stat
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from attfc.errors import one_line

__all__ = ["read_yaml", "read_yaml_text"]

MAX_BYTES = 256 * 1024
MAX_VALUES = 20_000
"""Counted with every use of an anchor; a whole configuration has some 150."""

MAX_DEPTH = 32

_NESTED = "its values are nested too deeply"


class _Loader(yaml.SafeLoader):
    """Dates and times are text, also 12:30:00, which YAML 1.1 takes for the whole number 45000."""

    yaml_implicit_resolvers = {  # noqa: RUF012  as in PyYAML, which looks it up on the class
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:
        """Stop at once: PyYAML takes seconds to find out that it cannot go this deep."""
        if self.flow_level >= MAX_DEPTH:
            raise ValueError(_NESTED)
        super().fetch_flow_collection_start(TokenClass)


def _number(construct: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    return lambda loader, node: node.value if ":" in str(node.value) else construct(loader, node)


_Loader.add_constructor("tag:yaml.org,2002:int", _number(yaml.SafeLoader.construct_yaml_int))
_Loader.add_constructor("tag:yaml.org,2002:float", _number(yaml.SafeLoader.construct_yaml_float))


def read_yaml(text: str) -> Any:
    """Return the value of a YAML document; None if it is empty.

    Raises:
        ValueError: too long, no YAML, nested too deeply, or more values than a configuration has; in one line.

    >>> read_yaml("{name: 2024-13-01, seed: 3}")
    {'name': '2024-13-01', 'seed': 3}
    """
    if len(text) > MAX_BYTES:
        raise ValueError(f"it has {len(text):,} characters, more than the {MAX_BYTES:,} that are read")
    loader = None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {})
        return loader.construct_document(node)
    except RecursionError:
        raise ValueError(_NESTED) from None
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        # Beside YAMLError, of tags and numbers that are none (!!int x, !!timestamp y) PyYAML makes Python's own errors.
        raise ValueError(one_line(error)[:300]) from None
    finally:
        if loader is not None:
            loader.dispose()


def read_yaml_text(path: Path) -> str:
    """Return the text of a YAML file.

    Raises:
        OSError: no such file, or it cannot be read.
        ValueError: no regular file, not UTF-8, or longer than `read_yaml` takes.
    """
    if not stat.S_ISREG(path.stat().st_mode):  # before it is opened: a pipe would wait for its writer
        raise ValueError("it is not a regular file")
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"it is longer than the {MAX_BYTES:,} bytes that are read")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start + 1} is not UTF-8 text: save it as UTF-8") from None


def _count(node: yaml.Node, known: dict[int, int]) -> int:
    """Return how many values a node stands for, anchors followed; each node is looked at once."""
    number = id(node)
    if number in known:
        if not known[number]:
            raise ValueError("an anchor holds itself")
        return known[number]
    known[number] = 0
    below: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        below = [entry for pair in node.value for entry in pair]
        names = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if twice := [name for name, count in names.items() if count > 1]:
            raise ValueError(f"key {twice[0]!r} stands twice in one section, and only one would count: join them")
    elif isinstance(node, yaml.SequenceNode):
        below = node.value
    known[number] = 1 + sum(_count(entry, known) for entry in below)
    if known[number] > MAX_VALUES:
        raise ValueError(f"its anchors stand for more than {MAX_VALUES:,} values")
    return known[number]
