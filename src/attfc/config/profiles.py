"""Profiles: named sets of values below a preset, such as the published method as a whole."""

from functools import cache
from importlib import resources
from typing import Any

from attfc.config.safe_yaml import read_yaml

__all__ = ["PROFILES", "profile_values"]

PROFILES = ("published",)


@cache
def profile_values(name: str) -> dict[str, Any]:
    """Return the values of a profile."""
    values = read_yaml((resources.files("attfc") / "profiles" / f"{name}.yaml").read_text(encoding="utf-8"))
    return {"profile": name, "stored": None, **values}
