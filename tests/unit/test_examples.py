"""Examples are short, say what they show, and stand on the page of examples as they are; `make examples` runs them."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("examples", ROOT / ".ci" / "examples.py")
assert spec is not None
assert spec.loader is not None
examples = importlib.util.module_from_spec(spec)
spec.loader.exec_module(examples)


@pytest.mark.parametrize("example", examples.EXAMPLES, ids=lambda each: each.path.name)
def test_an_example_is_short_and_asserts_something(example) -> None:
    code = "\n".join(text for kind, text in example.cells if kind == "code")
    shown = example.path.read_text(encoding="utf-8") if example.path.suffix == ".py" else code
    assert len(shown.splitlines()) <= 80
    assert re.search(r"^ *assert ", code, flags=re.MULTILINE)
    assert "seed" in code
    assert example.command.split()[-1] == f"examples/{example.path.name}"


@pytest.mark.parametrize("example", examples.EXAMPLES, ids=lambda each: each.path.name)
def test_a_loop_trains_any_head_that_is_put_in_place_of_the_default(example) -> None:
    """That has no parameters; those of others would stay as they were drawn, and no error says so."""
    code = "\n".join(text for kind, text in example.cells if kind == "code")
    if "AttFC" in code and "torch.optim" in code:
        assert re.search(r"head\.parameters\(\)|self\.parameters\(\)", code)


def test_the_page_shows_the_files_as_they_are() -> None:
    assert len(examples.EXAMPLES) >= 2
    assert examples.PAGE.read_text(encoding="utf-8") == examples.page(), "run make docs"


def test_notebooks_are_committed_without_outputs() -> None:
    for path in (ROOT / "examples").glob("*.ipynb"):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            assert not cell.get("outputs"), f"{path.name}: clear its outputs"
            assert cell.get("execution_count") is None, f"{path.name}: clear its outputs"
