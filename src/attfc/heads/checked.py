"""Checks of a constructor's arguments by its own annotations: choices, bounds, and spellings of earlier versions.

An argument says what it may be once, in its annotation (`Literal`, and `Option` with bounds), for a configuration and for Python alike.
"""

import functools
import inspect
import numbers
import operator
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Concatenate, Literal, ParamSpec, TypeVar, get_args, get_origin, get_type_hints

from attfc.config.option import Option
from attfc.errors import UserError, nearest

__all__ = ["checked"]

P = ParamSpec("P")
T = TypeVar("T")
Init = Callable[Concatenate[T, P], None]

_BOUNDS = {"gt": (operator.gt, "above"), "ge": (operator.ge, "at least"), "lt": (operator.lt, "below"), "le": (operator.le, "at most")}  # fmt: skip


def checked(**former: str) -> Callable[[Init[T, P]], Init[T, P]]:
    """Let an `__init__` refuse values that its annotations do not admit.

    Args:
        former: names that an argument had in earlier versions, and what is written today.

    The decorated constructor raises a `UserError` for a value, and a `TypeError` that says the new spelling for a former name.
    """

    def decorate(init: Init[T, P]) -> Init[T, P]:
        hints = functools.cache(lambda: get_type_hints(init, include_extras=True))
        signature = inspect.signature(init)

        @functools.wraps(init)
        def check(self: T, /, *args: P.args, **kwargs: P.kwargs) -> None:
            kind = type(self).__name__
            for name in kwargs:
                if name in former and name not in signature.parameters:
                    raise TypeError(f"{kind} has no argument {name}: write {former[name]}")
            unknown = [name for name in kwargs if name not in signature.parameters]
            try:
                given = signature.bind(self, *args, **kwargs).arguments
            except TypeError as error:
                raise TypeError(
                    f"{kind}: {error}{nearest(unknown[0], signature.parameters) if unknown else ''}"
                ) from None
            for name, value in given.items():
                for fault in _faults(hints().get(name), value):
                    raise UserError(f"{kind}: {name} is {value!r}{fault}")
            init(self, *args, **kwargs)

        return check

    return decorate


def _faults(hint: Any, value: Any) -> Iterator[str]:
    """Yield what is wrong with a value: what follows "name is value"."""
    options: list[Option] = []
    if get_origin(hint) is Annotated:
        hint, *extras = get_args(hint)
        options = [extra for extra in extras if isinstance(extra, Option)]
    if get_origin(hint) is Literal and value not in get_args(hint):
        choices = get_args(hint)
        yield f": choose one of {', '.join(choices)}{nearest(value, choices) if isinstance(value, str) else ''}"
    if value is None or bool in (hint, *get_args(hint)):
        return
    for option in options:
        bounds = {name: bound for name in _BOUNDS if (bound := getattr(option, name)) is not None}
        whole = float not in (hint, *get_args(hint))
        if bounds and (isinstance(value, bool) or not isinstance(value, numbers.Integral if whole else numbers.Real)):
            yield f", and must be a {'whole ' * whole}number: {option.meaning}"
        elif bounds and not all(_BOUNDS[name][0](value, bound) for name, bound in bounds.items()):
            words = " and ".join(f"{_BOUNDS[name][1]} {bound:g}" for name, bound in bounds.items())
            yield f", and must be {words}: {option.meaning}"
