"""Figures say their result in words that follow the data, show four series at most, and suit dark mode; pages show operating points and slices."""

import hashlib
import importlib.util
import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from attfc.evaluation.bootstrap import IdentityDraw, nested
from attfc.evaluation.operating_point.judging import judged_at
from attfc.evaluation.operating_point.point import OperatingPoint
from attfc.evaluation.protocols.protocol import Outcome
from attfc.evaluation.report.compare import write_comparison_report
from attfc.evaluation.report.curves import result_of
from attfc.evaluation.report.plots import Curve
from attfc.evaluation.report.run import write_report
from attfc.evaluation.results import EvaluationResult, add_intervals
from attfc.evaluation.samples import SearchSample
from attfc.evaluation.tail_sample import TailSample
from attfc.lab.pages import study_figure

ROOT = Path(__file__).resolve().parents[2]


def point(digest: str = "0" * 64, threshold: float = 0.35) -> OperatingPoint:
    counts = dict.fromkeys(("mated_people", "false_matches", "failures", "splits", "seed"), 7)
    counts |= {"images": 200, "comparisons": 123 * 122 // 2}
    text = {"attfc": "0", "created": "2026", "network": "r50", "digest": digest, "store": "people-B", "people": 123}
    rates = {"asked_fmr": 1e-3, "threshold": threshold, "threshold_interval": (0.3, 0.4), "fmr": 9e-4}
    measured = {"fmr_upper": 2.1e-3, "fnmr": {"value": 0.1234, "low": 0.1, "high": 0.15}, "confidence": 0.95}
    probability = {"slope": 1.0, "offset": 0.0, "brier": 0.1}
    shown = {"flip": False, "aligned": False, "worth": 10.0, "failures_counted": False, "probability": probability}
    return OperatingPoint.model_validate({**counts, **text, **rates, **measured, **shown})


def results(model: str, strength: float, calibrated: bool) -> list[EvaluationResult]:
    """All pairs of 40 people, and searches with slices by age."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(40), 4)
    first, second = np.triu_indices(len(labels), 1)
    same = labels[first] == labels[second]
    scores = np.where(same, strength, 0.05) + rng.normal(0, 0.12, len(same))
    pairs = TailSample.of_list(scores, same, labels[first], labels[second], fars=(1e-2, 1e-3))
    outcome = Outcome({"all_pairs": figures_of(pairs)}, {("all_pairs",): [pairs]}, [])
    outcome = judged_at(point(), outcome) if calibrated else outcome
    people, strangers = np.repeat(np.arange(40), 3), rng.normal(0.2, 0.1, 80)
    ranks, mates = rng.geometric(strength, 120), rng.normal(strength, 0.15, 120)
    none = np.zeros(120, dtype=np.int64)
    of_strangers = np.repeat(np.arange(40), 2)
    search = SearchSample(ranks, mates, people, none, strangers, of_strangers, none[:80], (1, 5), (0.1,), 40)
    ages = {age: search.probing(people % 2 == number) for number, age in enumerate(("young", "old"))}
    found = {**figures_of(search), "slices": {"age": {age: figures_of(sample) for age, sample in ages.items()}}}
    samples = {(): [search], **{("slices", "age", age): [sample] for age, sample in ages.items()}}
    both = [
        EvaluationResult(model, "all-pairs", ("people/",), outcome.figures, outcome.samples),
        EvaluationResult(model, "identify", ("people/",), found, samples),
    ]
    for result in both:
        add_intervals(result, 20, 0.95, 0)
    return both


def figures_of(sample: Any) -> dict[str, Any]:
    return nested(sample.figures(IdentityDraw(np.ones(sample.identities))))


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    several = [results(f"m{number}.onnx", 0.6 - 0.04 * number, number == 1) for number in range(5)]
    target = tmp_path_factory.mktemp("page") / "page.html"
    return write_comparison_report(target, [result for both in several for result in both]).read_text()


def test_four_models_are_drawn_and_named_and_all_are_in_the_tables(page: str) -> None:
    drawn = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(drawn) == 5  # ROC, DET, CMC, DIR, slices
    for svg in drawn:
        texts = re.findall(r"<text[^>]*>(.*?)</text>", svg)
        assert [f"m{number}.onnx" in texts for number in range(5)] == [True] * 4 + [False]
    assert page.count("the first 4 of 5 models") == 5
    assert page.count('<th scope="row">m4.onnx</th>') == 1
    assert 'class="number">m4.onnx</th>' in page


def test_the_page_shows_operating_points_with_intervals_and_slices_of_searches(page: str) -> None:
    row = re.search(r'<tr><th scope="row">FNMR at the operating point, %</th>(.*?)</tr>', page, flags=re.DOTALL)
    assert row is not None
    cells = re.findall(r"<td.*?</td>", row[1], flags=re.DOTALL)
    assert [bool(re.search(r'\d\.\d\d<br><span class="interval">\[', cell)) for cell in cells] == [
        *(False, True, False, False, False)
    ]
    assert '<th scope="row">FMR at the operating point</th>' in page
    assert "people: identification: groups and slices" in page
    assert page.count('<th scope="row">age: young</th>') == 5
    assert re.search(r"<figcaption>TPIR at FPIR 0.1: [\d.]+ % for age: \w+ \(m3.onnx\) to ", page)


def test_the_title_of_curves_is_their_values_the_best_first() -> None:
    one, other = (Curve(name, np.array([1e-3, 0.01, 1]), np.array(y), 1e-3) for name, y in (("a", [0.2, 0.5, 1]), ("b", [0.4, 0.6, 1])))  # fmt: skip
    assert result_of("roc", [one, other]) == "Mated pairs accepted at FAR 0.001: b 40.0 %, a 20.0 %"
    assert result_of("det", [one, other]) == "Mated pairs rejected at FAR 0.001: a 20.0 %, b 40.0 %"
    sure = Curve("a", one.x, one.y, 5e-3)  # certain from there on only
    assert result_of("roc", [sure, other]) == "Mated pairs accepted at FAR 0.01: b 60.0 %, a 50.0 %"


def test_a_run_shows_the_operating_point_of_its_model_and_of_no_other(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights")
    assert "At the operating point" not in write_report(tmp_path).read_text()
    file = tmp_path / "model" / "operating_point.json"
    point(hashlib.sha256(b"weights").hexdigest()).write(file)
    judged = {"threshold": 0.35, "fnmr": 0.25, "fmr": 0.002, "intervals": {"fnmr": [0.2, 0.3]}}
    (tmp_path / "evaluation.json").write_text(json.dumps({"at_operating_point": {"all_pairs": judged}}))
    text = write_report(tmp_path).read_text()
    said = ("At the operating point", "12.34 %", "[10.00, 15.00]", "95 % sure below 0.0021", "123 people of people-B")
    for shown in (*said, "[0.3, 0.4]"):
        assert shown in text, shown
    assert '25.00 %<br><span class="interval">[20.00, 30.00]' in text
    point().write(file)
    text = write_report(tmp_path).read_text()
    assert "is the operating point of another model" in text
    assert "12.34" not in text


def cells(rates: dict[str, float], machine: str = "one", load: float = 1.0) -> list[dict[str, Any]]:
    curve = {"step": 10, "seconds": 2.0}
    where = {"environment": {"machine": {"processor": machine, "cores": 1}}, "load_average": load}
    return [
        {
            **{"variant": name, "seed": 0, "steps": 10, "seconds": 2.0, "head_bytes": 2**20, "people": {}, "images": 9},
            **{"curve": [{**curve, "tar": rate}], "world": {"kind": "vectors"}, "identities": 3, **where},
            "figures": {split: {"tar": rate} for split in ("test", "all")},
        }
        for name, rate in rates.items()
    ]


def words_of(svg: str) -> str:
    return " ".join(" ".join(ElementTree.fromstring(svg).itertext()).split())


def test_a_study_states_its_order_of_four_and_seconds_of_one_quiet_machine_only() -> None:
    rates = {"a": 0.5, "b": 0.75, "c": 0.25, "d": 0.7, "e": 0.1}
    words = words_of(study_figure(cells(rates), "tar", "TAR"))
    assert "TAR: b 75.0 %, d 70.0 %, a 50.0 %, c 25.0 %" in words
    assert "e (" not in words
    assert "seconds of training" in words
    two = cells({"a": 0.5}) + cells({"b": 0.6}, machine="two")
    for mixed in (two, cells(rates, load=3.0)):
        assert "steps of training" in words_of(study_figure(mixed, "tar", "TAR"))


def test_titles_of_the_documents_figures_follow_the_cells() -> None:
    spec = importlib.util.spec_from_file_location("study_figures", ROOT / "benchmarks" / "study_figures.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    known = module.cells_of("vectors_100k")
    turned = {**known, "full_fc": known["attfc 0.01"], "attfc 0.01": known["full_fc"]}
    for draw in (module.many_people, module.readme):
        assert "AttFC is best" in words_of(draw(known))
    assert re.search(r"AttFC is \d+ points below full classifier", words_of(module.readme(turned)))


@pytest.mark.parametrize(
    "file", [*(ROOT / "docs").glob("*.svg"), *(ROOT / "docs" / "figures").glob("*.svg")], ids=lambda file: file.stem
)
def test_figures_of_the_documents_suit_dark_mode_and_a_phone(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    tree = ElementTree.fromstring(text)
    assert re.search(r"prefers-color-scheme: ?dark", text)
    assert "<rect" in text.split("<g", 1)[0]  # a ground of its own
    assert float(tree.attrib["viewBox"].split()[2]) <= 390
    assert len(tree.attrib.get("aria-label") or tree[0].text or "") > 30  # what it shows, in a sentence
