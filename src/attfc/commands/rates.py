"""`--far`: false accept rates as the user types them."""

from collections.abc import Sequence
from typing import Annotated

import typer

from attfc.errors import UserError

__all__ = ["FarOption", "read_fars"]

FarOption = Annotated[
    list[str] | None,
    typer.Option(
        "--far",
        metavar="RATE",
        help="all-pairs: false accept rate at which TAR is given; may be given several times, or with commas; default 1e-6,1e-5,1e-4",
    ),
]


def read_fars(texts: Sequence[str]) -> tuple[float, ...]:
    """Return the rates, rising, each once; none for no texts.

    >>> read_fars(["1e-3,0.0001", "1e-3"])
    (0.0001, 0.001)
    """
    fars = set()
    for text in ",".join(texts).split(",") if texts else ():
        try:
            far = float(text)
        except ValueError:
            far = 0.0
        if not 0 < far < 1:
            raise UserError(
                f"--far {text.strip()!r} is no false accept rate: give numbers above 0 and below 1, such as --far 1e-5,1e-4"
            )
        fars.add(far)
    return tuple(sorted(fars))
