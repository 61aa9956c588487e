"""The one exception type for faults of the user's input.

The command line turns a `UserError` into one line on stderr and exit status 1; everything else keeps its traceback.
"""

import difflib
from collections.abc import Iterable

__all__ = ["UserError", "first_line", "nearest", "one_line"]


class UserError(ValueError):
    """The input is at fault: the message names the value, where it came from and what to do."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the known word closest to `word`, or an empty string."""
    known = {each.lower(): each for each in known}
    close = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.5)
    return f"; did you mean {known[close[0]]!r}?" if close else ""


def one_line(error: BaseException) -> str:
    """Return all that an exception says, on one line; its kind where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


def first_line(error: BaseException) -> str:
    """Return the first line of what an exception of another library says, 300 characters at most; its kind where it says nothing.

    >>> first_line(ValueError("no such operator\\nat ...")), first_line(KeyError())
    ('no such operator', 'KeyError')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
