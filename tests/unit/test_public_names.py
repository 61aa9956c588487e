"""`import attfc`: its names, what they cost, and nothing beside them."""

import subprocess
import sys
from importlib import metadata

import pytest

import attfc

DEFAULT_METHOD = {
    *("AttFC", "AttentionLoader", "Augment", "CenterTable", "CosFace", "ImageMemory", "Margin", "MomentumPair"),
    *("PartialFC", "RowAdamW", "RowSGD", "RowStore", "create_backbone", "open_store", "parameter_groups"),
}


def in_a_new_process(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_every_name_is_listed_once_and_found() -> None:
    assert len(attfc.__all__) == len(set(attfc.__all__))
    assert set(attfc.__all__) >= DEFAULT_METHOD
    assert set(attfc.__all__) == set(attfc._HOME_OF)
    for name in attfc.__all__:
        assert getattr(attfc, name).__module__.split(".")[0] == "attfc", name


def test_dir_shows_the_public_names_alone() -> None:
    shown = [name for name in dir(attfc) if not (name.startswith("__") and name.endswith("__"))]
    assert shown == sorted(attfc.__all__)
    assert "__version__" in dir(attfc)


def test_version_is_that_of_the_package() -> None:
    assert attfc.__version__ == metadata.version("attfc")
    with pytest.raises(AttributeError, match=r"^module 'attfc' has no attribute 'AttFCs'; did you mean 'AttFC'\?$"):
        attfc.AttFCs  # noqa: B018


def test_import_costs_nothing_and_a_star_import_draws_no_figures() -> None:
    code = "import attfc, attfc.cli, sys; dir(attfc); attfc.__version__; print([m for m in ('torch', 'numpy', 'PIL') if m in sys.modules])"
    assert in_a_new_process(code) == "[]"
    code = "from attfc import *; import sys; AttFC, open_store; print([m for m in ('matplotlib',) if m in sys.modules])"
    assert in_a_new_process(code) == "[]"
