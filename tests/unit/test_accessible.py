"""What keeps nobody from reading a page: contrast, names of pictures, columns and rows, headings in order. `Page` checks the HTML.

`.ci/axe.py` looks at the same in a browser, by hand.
"""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest
from test_report import Page, contrast, themes_of

from attfc.evaluation.report.compare import write_comparison_report
from attfc.evaluation.results import EvaluationResult
from attfc.evaluation.samples import PairListSample

ROOT = Path(__file__).resolve().parents[2]
SERVED = (ROOT / "src" / "attfc" / "serve" / "page.html").read_text(encoding="utf-8")
PAGES = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"))}


def prose(text: str) -> str:
    return re.sub(r"^( *)(```|~~~).*?^\1\2[^\n]*$", "", text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("models", [1, 2, 9])
def test_models_side_by_side(models: int, tmp_path: Path) -> None:
    random, same = np.random.default_rng(0), np.arange(400) % 2 == 0
    scores = np.where(same, 0.6, 0.1) + random.normal(0, 0.15, 400)
    people = np.arange(400) // 2 % 40
    sample = PairListSample(scores, same, np.arange(400) % 10, people, (people + ~same) % 40, np.zeros(0), (0.01,))
    group = {"tar_at_far": {"0.01": 0.5}, "identities": 20}
    figures = {"all_pairs": {"tar_at_far": {"0.01": 0.5}}, "groups": {"left": group, "right": group}, "notes": ["few"]}
    results = [
        EvaluationResult(f"m{number}", "held-out", ("lfw",), figures, {("all_pairs",): [sample]})
        for number in range(models)
    ]
    page = Page(write_comparison_report(tmp_path / "c.html", results).read_text(encoding="utf-8"))
    assert page.tags.count("table") == 3
    assert page.tags.count("svg") >= 3


def test_the_served_page() -> None:
    page = Page(re.sub(r"(?s)<script>.*?</script>", "", SERVED))
    assert page.level == 2
    assert page.tags.count("input") == 3
    for theme in themes_of(SERVED):
        for text in ("ink", "soft", "mark", "bad", "good"):
            assert min(contrast(theme[text], theme[ground]) for ground in ("paper", "sheet")) >= 4.5, text
    assert "aria-live" in SERVED
    assert ":focus-visible" in SERVED


@pytest.mark.parametrize("name", sorted(PAGES))
def test_pictures_columns_and_headings_of_a_document(name: str) -> None:
    text = prose(PAGES[name].read_text(encoding="utf-8"))
    assert not re.findall(r"!\[\s*\]\(", text)
    heads = re.findall(r"^(\|.*\|)\n\| *:?-", text, flags=re.MULTILINE)
    assert not [head for head in heads if re.search(r"\|\s*(?=\|)", head)], "a column without a name"
    levels = [len(signs) for signs in re.findall(r"^(#+) ", text, flags=re.MULTILINE)]
    assert levels[:1] == [1]
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
