"""One option of a configuration: its default and its description as data.

An option carries its meaning, its unit, the meaning of its null, and the condition under which it acts. `attfc options`, docs/options.md and
`--print-config` are made from these; nothing is described twice. Conditions are text that is read and evaluated: `optimizer.name=sgd and
schedule.name=cosine|polynomial or head.kind=dcp`. `and` binds before `or`; `|` separates values; `!=` is its opposite.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["NotNegative", "Option", "Positive", "Section", "Share", "clauses", "option", "types_in"]

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]


@dataclass(frozen=True)
class Option:
    """What a reader knows of an argument that a run's configuration may set: `scale: Annotated[float, Option("factor of all cosines", gt=0)] = 64.0`.

    A head, margin, center rule or bank describes its options so in its own signature; arguments without an `Option` are supplied by the run.
    The signature is read from the source text, because importing a head imports torch at the start of a command. So an annotation is made of
    built-in types, `Literal`, `Annotated`, `Path`, `Option` and names that a module of attfc gives to such; a default is a constant.

    Attributes:
        meaning: one sentence or two, without a full stop at the end.
        unit: of the number, such as "steps" or "MiB".
        null: what None means.
        acts: condition under which the option does anything; None: always.
        gt, ge, lt, le: bounds of a number: above, from, below, to.
    """

    meaning: str
    unit: str | None = None
    null: str | None = None
    acts: str | None = None
    gt: float | None = None
    ge: float | None = None
    lt: float | None = None
    le: float | None = None

    __is_annotated_types_grouped_metadata__: ClassVar[Literal[True]] = True

    def __iter__(self) -> Iterator[object]:
        """Return the bounds as pydantic takes them."""
        bounds: dict[str, Any] = {"gt": self.gt, "ge": self.ge, "lt": self.lt, "le": self.le}
        return iter(Field(**bounds).metadata)


def types_in(annotation: Any) -> frozenset[Any]:
    """Return an annotation and all that it is made of.

    >>> float in types_in(Share | None)
    True
    """
    return frozenset([annotation]).union(*map(types_in, get_args(annotation)))


class Section(BaseModel):
    """Base of all sections: unknown keys are an error, assignments are checked."""

    model_config = ConfigDict(
        extra="forbid",
        validate_assignment=True,
        allow_inf_nan=False,
        coerce_numbers_to_str=True,
        protected_namespaces=(),  # pydantic 2.9 warns of fields such as teacher.model_is
    )

    @model_validator(mode="before")
    @classmethod
    def _truth_is_no_number(cls, values: Any) -> Any:
        """Hand count=true on as a text, which no number is: pydantic would take it for 1."""
        if not isinstance(values, dict):
            return values
        kinds = {name: types_in(field.annotation) for name, field in cls.model_fields.items()}
        return {
            name: str(value).lower() if isinstance(value, bool) and {int, float} & kinds.get(name, set()) else value
            for name, value in values.items()
        }


def option(
    default: Any,
    meaning: str,
    *,
    unit: str | None = None,
    null: str | None = None,
    acts: str | None = None,
    **rest: Any,
) -> Any:
    """Describe an option.

    Args:
        default: its value where nobody sets it.
        meaning: one sentence or two, without a full stop at the end.
        unit: of the number, such as "steps" or "MiB".
        null: what the value null means.
        acts: condition under which the option does anything; None: always.
        rest: bounds, as pydantic's Field takes them.
    """
    rest["default_factory" if callable(default) else "default"] = default
    return Field(description=meaning, json_schema_extra={"option": Option(meaning, unit, null, acts)}, **rest)  # type: ignore[dict-item]


def clauses(condition: str) -> list[list[tuple[str, bool, tuple[str, ...]]]]:
    """Read a condition: alternatives, each a list of (key, whether it must equal one of the values, values).

    >>> clauses("head.kind=dcq|dcp or margin.kind!=cosface")
    [[('head.kind', True, ('dcq', 'dcp'))], [('margin.kind', False, ('cosface',))]]
    """
    alternatives = []
    for alternative in condition.split(" or "):
        terms = []
        for term in alternative.split(" and "):
            match = re.fullmatch(r"([\w.]+)(!?=)(\S+)", term.strip())
            assert match, f"{term!r} is not a condition"
            terms.append((match[1], match[2] == "=", tuple(match[3].split("|"))))
        alternatives.append(terms)
    return alternatives
