"""A nested state as JSON beside a flat dict of tensors, and back: what makes a checkpoint free of pickle.

JSON knows no tensors, tuples or keys that are not text, so three tags stand for them: {"$tensor": name}, {"$tuple": [...]} and
{"$items": [[key, value], ...]}. Floats keep every bit (Python writes the shortest text that reads back the same); inf and nan are written as
Python's json does. Not kept: the class of a dict (an OrderedDict comes back as a dict) and whether a tensor takes a gradient.
"""

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from attfc.errors import UserError

__all__ = ["join_state", "split_state"]

MAX_DEPTH = 64


def split_state(state: Mapping[str, Any]) -> tuple[Any, dict[str, Tensor]]:
    """Take the tensors out of `state`.

    Returns:
        The JSON-able rest, with {"$tensor": name} in place of each tensor, and the tensors by name: their keys joined with "/".
        The tensors are those of `state`, not copies.

    Raises:
        TypeError: a value that is neither a tensor nor plain (None, bool, int, float, str, list, tuple, dict), named by its place.

    >>> import torch
    >>> split_state({"step": 3, "state": {0: torch.zeros(2)}, "betas": (0.9, 0.99)})
    ({'step': 3, 'state': {'$items': [[0, {'$tensor': 'state/0'}]]}, 'betas': {'$tuple': [0.9, 0.99]}}, {'state/0': tensor([0., 0.])})
    """
    tensors: dict[str, Tensor] = {}
    return _split(state, (), tensors), tensors


def _split(value: Any, place: tuple[str, ...], tensors: dict[str, Tensor]) -> Any:
    where = "/".join(place)
    if len(place) > MAX_DEPTH:
        raise TypeError(f"the state is nested more than {MAX_DEPTH} deep at {where[:200]}")
    if isinstance(value, Tensor):
        name, copies = where, 1
        while name in tensors:  # keys that hold "/" themselves
            copies += 1
            name = f"{where}~{copies}"
        tensors[name] = value
        return {"$tensor": name}
    if value is None:
        return None
    for plain in (bool, int, float, str):
        if isinstance(value, plain):
            return plain(value)
    if isinstance(value, list | tuple):
        items = [_split(item, (*place, str(number)), tensors) for number, item in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple": items}
    if isinstance(value, Mapping):
        pairs = [(key, _split(item, (*place, str(key)), tensors)) for key, item in value.items()]
        if all(isinstance(key, str) and not key.startswith("$") for key, _ in pairs):
            return dict(pairs)
        for key, _ in pairs:
            finite = math.isfinite(key) if isinstance(key, float) else isinstance(key, int | str | None)
            if not finite:
                raise TypeError(f"a key of the state at {where!r} is a {type(key).__name__}: use text or whole numbers")
        return {"$items": [[key, item] for key, item in pairs]}
    raise TypeError(
        f"the state at {where!r} is a {type(value).__module__}.{type(value).__name__}: "
        "a checkpoint holds tensors, None, bool, int, float, str, list, tuple, dict"
    )


def join_state(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Undo `split_state` for a tree that may come from a stranger.

    Raises:
        UserError: an unknown tag, or a tensor that is not there.

    >>> join_state({"state": {"$items": [[0, {"$tuple": [1, 2]}]]}}, {})
    {'state': {0: (1, 2)}}
    """
    if isinstance(tree, list):
        return [join_state(item, tensors) for item in tree]
    if not isinstance(tree, dict):
        return tree
    tag = next((key for key in tree if key.startswith("$")), None)
    if tag is None:
        return {key: join_state(item, tensors) for key, item in tree.items()}
    match [*tree.items()]:
        case [("$tensor", str(name))]:
            if name not in tensors:
                raise UserError(f"the state names tensor {name[:200]!r}, which is not in the checkpoint")
            return tensors[name]
        case [("$tuple", list(items))]:
            return tuple(join_state(items, tensors))
        case [("$items", list(pairs))]:
            if any(not isinstance(pair, list) or len(pair) != 2 or isinstance(pair[0], list | dict) for pair in pairs):
                raise UserError("the state has a $items entry that is not [key, value]")
            return {key: join_state(item, tensors) for key, item in pairs}
    raise UserError(f"the state has an unknown entry {tag[:80]!r}: was it written by a newer attfc?")
