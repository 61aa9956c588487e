"""What options are where nobody gives them: profiles (the published method as a set of values), and sizes that follow from the identities."""

from functools import cache
from importlib import resources
from typing import Any

from attfc.config.safe_yaml import read_yaml

__all__ = ["PROFILES", "USUAL_SHARE", "profile_values", "usual_negatives", "usual_scale"]

PROFILES = ("published",)
USUAL_SHARE = 0.1  # of the identities: negatives of a step, slots of a container


@cache
def profile_values(name: str) -> dict[str, Any]:
    """Return the values of a profile."""
    values = read_yaml((resources.files("attfc") / "profiles" / f"{name}.yaml").read_text(encoding="utf-8"))
    return {"profile": name, "stored": None, **values}


def usual_negatives(identities: int) -> int:
    """Return the centers drawn in a step unless told otherwise: a tenth of the identities, at least 200, at most 20,000, never more than there are.

    >>> [usual_negatives(identities) for identities in (60, 9_000, 92_431, 2_000_000)]
    [60, 900, 9243, 20000]
    """
    return min(identities, max(200, min(20_000, identities // 10)))


def usual_scale(identities: int) -> int:
    """Return the margin's scale: 32, or 64 from 50,000 identities on, as the published presets have it."""
    return 32 if identities < 50_000 else 64
