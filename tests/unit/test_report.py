"""The report of a run: complete, self-contained, escaped, sparing with faces, and patient with what is missing."""

import json
import re
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest

from attfc.data.index import IdentityIndex
from attfc.data.stores.store import Images
from attfc.errors import UserError
from attfc.evaluation.report.plots import Curve, GroupRate, curve_figure, group_figure, line_figure, roc_figure
from attfc.evaluation.report.run import write_report
from attfc.evaluation.report.run_record import read_run

EVIL = "<script>alert('x')</script>&\"</pre>"


class Page(HTMLParser):
    """Gathers ids, text and everything that could be loaded. Checks that tags close in order, and what readers of screens and keyboards need:

    headings in order, a text for each picture and drawing, a name for each row and column, keys that reach what scrolls.
    """

    VOID = ("meta", "img", "br", "wbr", "link", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.text, self.level = "", 0
        self.cells: list[str] = []
        self.labelled: set[str | None] = set()
        self.feed(text)
        assert self.open == []
        assert all(cell.strip() for cell in self.cells), self.cells

    def handle_starttag(self, tag, attrs) -> None:
        self.tags.append(tag)
        given = dict(attrs)
        if re.fullmatch("h[1-6]", tag):
            assert int(tag[1]) <= self.level + 1, f"{tag} below h{self.level}"
            self.level = int(tag[1])
        if tag == "img":
            assert given.get("alt"), given
        if tag == "svg" and given.get("aria-hidden") != "true":
            assert given.get("role") == "img", given
            assert given.get("aria-label"), given
        if tag == "th":
            assert given.get("scope") in ("row", "col"), given
            self.cells.append("")
        if given.get("class") == "panel":
            assert given.get("tabindex") == "0", given
            assert given.get("role"), given
            assert given.get("aria-label"), given
        if tag == "label":
            self.labelled.add(given.get("for"))
        if tag == "input":
            assert given.get("aria-label") or given.get("id") in self.labelled, given
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "xlink:href"):
                self.addresses.append(value)

    def handle_startendtag(self, tag, attrs) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data) -> None:
        self.text += data
        if "th" in self.open:
            self.cells[-1] += data


class FacelessStore:
    """A store of plain grey squares, two an identity."""

    name = "grey"

    def __init__(self, images: int = 40) -> None:
        self.n = images
        self.identities = IdentityIndex.from_labels(np.arange(images) // 2)

    def __len__(self) -> int:
        return self.n

    def where(self, position: int) -> str:
        return f"person {position // 2}/{position} {EVIL}.jpg"

    def images(self, positions, size: int, out=None) -> Images:
        return Images(np.full((len(positions), size, size, 3), 90, np.uint8))


def evaluation_files(folder, store) -> None:
    rng = np.random.default_rng(0)
    same = np.arange(200) % 2 == 0
    scores = np.where(same, 0.6, 0.1) + rng.normal(0, 0.15, 200)
    hardest = np.arange(24)
    np.savez(
        folder / "evaluation.npz",
        scores=scores,
        same=same,
        first=np.arange(200) % 40,
        second=(np.arange(200) + 1) % 40,
        all_pairs_far=np.array([1e-3, 1e-2, 0.1]),
        all_pairs_tar=np.array([0.2, 0.5, 0.9]),
        hardest_same=hardest < 12,
        hardest_scores=hardest / 24,
        hardest_first=hardest,
        hardest_second=hardest + 1,
        hardest_first_where=np.array([store.where(p) for p in hardest]),
        hardest_second_where=np.array([store.where(p + 1) for p in hardest]),
        broken_positions=np.array([3]),
        broken_where=np.array([f"sick/{EVIL}.jpg"]),
        broken_reasons=np.array(["cut short"]),
    )
    figures = {
        "accuracy": 0.9575,
        "accuracy_std": 0.01,
        "threshold": 0.35,
        "auc": 0.98,
        "eer": 0.04,
        "impostor_pairs": 100,
        "genuine_pairs": 100,
        "pair_source": EVIL,
        "tar_at_far": {"0.1": 0.9, "0.01": 0.625, "0.001": None},
        "rank_one": 0.875,
        "rank_one_probes": 40,
        "all_pairs": {"impostor_pairs": 5000, "genuine_pairs": 20, "tar_at_far": {"0.01": 0.55, "0.001": 0.25}},
        "notes": [f"note {EVIL}"],
    }
    (folder / "evaluation.json").write_text(json.dumps({"step": 200, **figures}))


def metrics_lines(steps: int = 200) -> list[str]:
    lines = []
    for step in range(10, steps + 1, 10):
        train = {"loss": 30 / step, "loss_average": 35 / step, "learning_rate": 0.1, "images_per_second": 1234.0}
        more = {"epoch": step / 100, "memory_mib": 512.0, "seconds": step * 0.5, "filled_slots": step, "odd": None}
        lines.append(json.dumps({"kind": "train", "step": step, **train, **more}))
        if step % 100 == 0:
            lines.append(json.dumps({"kind": "evaluation", "step": step, "accuracy": 0.9, "rank_one": None}))
    lines.append(
        json.dumps({"kind": "broken", "step": 20, "position": 7, "where": f"Ann/{EVIL}", "reason": "empty file"})
    )
    return lines


@pytest.fixture
def store() -> FacelessStore:
    return FacelessStore()


@pytest.fixture
def run(tmp_path, store):
    folder = tmp_path / "run-001 <b>"
    (folder / "model").mkdir(parents=True)
    (folder / "model" / "model.safetensors").write_bytes(b"")
    (folder / "config.yaml").write_text(f"head:\n  name: attfc\nbackbone:\n  name: r50\nnote: |\n  {EVIL}\n")
    environment = {"versions": {"torch": "2.15.0"}, "machine": {"device": EVIL, "cores": 2}, "started": "2026-11-23"}
    (folder / "environment.json").write_text(json.dumps(environment))
    (folder / "metrics.jsonl").write_text("\n".join(metrics_lines()) + "\n")
    evaluation_files(folder, store)
    return folder


@pytest.fixture
def undrawn(run):
    """The same without curves: quicker."""
    (run / "metrics.jsonl").unlink()
    return run


def test_everything_is_there_and_nothing_is_loaded_or_run(run) -> None:
    path = write_report(run)
    assert path == run / "report.html"
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    for shown in (
        *("run-001 <b>", "attfc · r50", "finished", "95.75 %", "± 1.00", "0.9800", "87.50 %", "not stated"),
        *(
            "25.00 %",
            "TAR at FAR 0.01",
            "512 MiB",
            "1,234",
            "1 min 40 s",
            "200 (2.00 epochs)",
            "2.15.0",
            "empty file",
            "cut short",
        ),
        *(
            "Loss",
            "Learning rate",
            "Images per second",
            "Evaluation over steps",
            "Filled slots",
            "Hardest pairs",
            "config.yaml",
        ),
    ):
        assert shown in page.text, shown
    assert page.tags.count("svg") == 7  # ROC, scores, loss, evaluation, learning rate, images/s, filled slots
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert page.text.count("<script>") >= 6  # shown as text, everywhere it was planted
    assert all(address.startswith("#") for address in page.addresses)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert len(page.ids) == len(set(page.ids))
    assert {a[1:] for a in page.addresses} <= set(page.ids)
    assert set(re.findall(r"url\(#([^)]*)\)", text)) <= set(page.ids)
    assert not list(run.glob(".report*"))


def test_the_name_of_a_metric_cannot_leave_its_figure(undrawn) -> None:
    evil = f'"><script>\\1 {EVIL}'
    (undrawn / "metrics.jsonl").write_text(json.dumps({"kind": "train", "step": 1, evil: 0.5}) + "\n")
    page = Page(write_report(undrawn).read_text())
    assert "script" not in page.tags
    assert page.tags.count("svg") == 3
    assert "<script>" in page.text


def test_intervals_stand_below_the_figures_they_belong_to(undrawn) -> None:
    file = undrawn / "evaluation.json"
    figures = json.loads(file.read_text())
    assert 'class="interval"' not in write_report(undrawn).read_text()
    figures["intervals"] = {
        "accuracy": [0.9411, 0.9722],
        "auc": [0.97111, 0.98888],
        "eer": None,
        "rank_one": [0.81, 0.9333],
        "tar_at_far": {"0.1": [0.85, 0.9456], "0.01": "no"},
        "all_pairs": {"tar_at_far": {"0.001": [0.2234, 0.2876]}},
    }
    figures["interval_identities"] = 28
    figures["interval_notes"] = [f"the intervals rest on 28 identities {EVIL}"]
    figures["uncertainty"] = {"confidence": 0.95, "resamples": 400}
    file.write_text(json.dumps(figures))
    text = write_report(undrawn).read_text()
    Page(text)
    for shown, times in (
        ('95.75 %</div><div class="interval">[94.11, 97.22]<', 1),  # the card
        ('95.75 % ± 1.00<br><span class="interval">[94.11, 97.22]<', 1),  # the table
        ('0.9800</div><div class="interval">[0.9711, 0.9889]<', 1),
        ('0.9800<br><span class="interval">[0.9711, 0.9889]<', 1),
        ('4.00 %</div><div class="more">', 1),  # no interval
        ('87.50 %</div><div class="interval">[81.00, 93.33]<', 1),
        ('90.00 %<br><span class="interval">[85.00, 94.56]<', 1),
        ("62.50 %</td>", 1),
        ('25.00 %<br><span class="interval">[22.34, 28.76]<', 1),
        ("95 % intervals from 400 bootstrap resamples of the identities (28 with several images)", 1),
        ("<li>the intervals rest on 28 identities &lt;script", 1),
    ):
        assert text.count(shown) == times, shown
    assert EVIL not in text
    figures["all_pairs"]["impostor_pairs"] = 50_000  # now FAR 0.001 rests on 50 false accepts: the card's
    file.write_text(json.dumps(figures))
    assert '25.00 %</div><div class="interval">[22.34, 28.76]<' in write_report(undrawn).read_text()


def test_figures_use_the_colours_of_the_page(run) -> None:
    text = write_report(run).read_text(encoding="utf-8")
    drawn = "".join(re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL))
    assert not set(re.findall(r"#[0-9a-f]{6}\b", drawn)) - {"#000000", "#ffffff"}
    for variable in set(re.findall(r"var\(--(\w+)\)", text)):
        assert text.count(f"--{variable}:") == 3, variable  # light, dark, print


def contrast(one: str, other: str) -> float:
    """As WCAG 2.1 computes it."""

    def luminance(colour: str) -> float:
        digits = colour[1:] if len(colour) == 7 else "".join(2 * sign for sign in colour[1:])
        parts = [int(digits[k : k + 2], 16) / 255 for k in (0, 2, 4)]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def themes_of(page: str) -> list[dict[str, str]]:
    """The colours of a page by name, in each theme that it has."""
    style = page.partition("</style>")[0]
    return [
        dict(re.findall(r"--([\w-]+): (#\w+);", block)) for block in re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    ]


def test_text_and_lines_stand_out_in_light_dark_and_print(undrawn) -> None:
    """4.5 for text and lines, on the ground where they stand."""
    themes = themes_of(write_report(undrawn).read_text())
    assert len(themes) == 3
    for theme in themes:
        for text, ground in (
            ("ink", "panel"),
            ("ink", "page"),
            ("muted", "panel"),
            ("muted", "page"),
            ("warn", "warn-ground"),
        ):
            assert contrast(theme[text], theme[ground]) >= 4.5, (text, ground)
        for line in ("first", "second", "third", "fourth"):  # names stand in the colours of their lines
            assert contrast(theme[line], theme["panel"]) >= 4.5, line


def test_pictures_only_when_asked_for_with_a_store(undrawn, store) -> None:
    assert "data:image" not in write_report(undrawn, store).read_text()
    assert "data:image" not in write_report(undrawn, None, pictures=True).read_text()
    page = Page(write_report(undrawn, store, pictures=True).read_text())
    pictures = [address for address in page.addresses if address.startswith("data:image/jpeg;base64,")]
    assert len(pictures) == page.tags.count("img") == 24
    assert "script" not in page.tags


def test_another_store_is_refused(run) -> None:
    class Other(FacelessStore):
        def where(self, position: int) -> str:
            return f"other/{position}"

    with pytest.raises(UserError, match="but grey has other/0: pass the store that was evaluated"):
        write_report(run, Other(), pictures=True)
    with pytest.raises(UserError, match="but grey has only 1 images"):
        write_report(run, FacelessStore(images=1), pictures=True)


def test_run_without_evaluation(run) -> None:
    for name in ("evaluation.json", "evaluation.npz"):
        (run / name).unlink()
    (run / "metrics.jsonl").write_text("\n".join(line for line in metrics_lines() if '"evaluation"' not in line) + "\n")
    page = Page(write_report(run).read_text())
    assert "has not been evaluated" in page.text
    assert "Loss" in page.text
    assert "Hardest pairs" not in page.text


def test_interrupted_run_with_a_torn_line(run) -> None:
    (run / "model" / "model.safetensors").unlink()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 210, "lo')
    text = Page(write_report(run).read_text()).text
    assert "not finished at step 200" in text
    assert "last line of metrics.jsonl was cut short" in text


def test_a_bare_folder_and_a_run_that_only_began(tmp_path) -> None:
    (tmp_path / "config.yaml").write_text("head: [unclosed\n")
    assert "No training step was logged" in Page(write_report(tmp_path).read_text()).text
    one = {"kind": "train", "step": 1, "loss": None, "learning_rate": 0.0, "images_per_second": 5.0, "seconds": 0.2}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(one) + "\n")
    assert "Learning rate" in Page(write_report(tmp_path).read_text()).text


def test_evaluation_without_names_lists_positions(undrawn, store) -> None:
    run = undrawn
    with np.load(run / "evaluation.npz") as file:
        arrays = {name: file[name] for name in ("scores", "same", "first", "second")}
    np.savez(run / "evaluation.npz", **arrays)
    worst = int(np.flatnonzero(arrays["same"])[np.argmin(arrays["scores"][arrays["same"]])])
    assert f"position {arrays['first'][worst]}" in Page(write_report(run).read_text()).text
    assert Page(write_report(run, store, pictures=True).read_text()).tags.count("img") == 24


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        (
            "metrics.jsonl",
            b'{"kind": "train", "step": 1}\n{"kind": \n{"kind": "train", "step": 2}\n',
            "metrics.jsonl line 2: not a JSON",
        ),
        ("metrics.jsonl", b"[1]\n{}\n", "metrics.jsonl line 1: .*not an object"),
        ("evaluation.json", b"{", "evaluation.json: not JSON"),
        ("evaluation.json", b"[]", "evaluation.json: holds a list"),
        ("evaluation.npz", b"PK\x03\x04 no", "evaluation.npz: not a readable .npz"),
        ("environment.json", b"no", "environment.json: not JSON"),
    ],
)
def test_damaged_files_are_named(run, name, content, text) -> None:
    (run / name).write_bytes(content)
    with pytest.raises(UserError, match=text):
        write_report(run)


def test_pickles_are_not_opened(run) -> None:
    np.savez(run / "evaluation.npz", scores=np.array([{"a": 1}], dtype=object))
    with pytest.raises(UserError, match=r"evaluation\.npz: not a readable"):
        read_run(run)


def test_a_folder_that_is_no_run(tmp_path) -> None:
    with pytest.raises(UserError, match="is not a run"):
        write_report(tmp_path)
    with pytest.raises(UserError, match="is not a run"):
        write_report(tmp_path / "none")


def test_figures_leave_no_state_and_are_repeatable() -> None:
    before = dict(matplotlib.rcParams)
    lines = [("loss", np.arange(5000), np.r_[np.nan, np.ones(4999)])]
    one, two = line_figure(lines, "loss", key="a"), line_figure(lines, "loss", key="a")
    assert one == two
    assert len(one) < 60_000
    assert dict(matplotlib.rcParams) == before


def test_roc_is_dotted_where_few_false_accepts_carry_it() -> None:
    rng = np.random.default_rng(0)
    same = np.arange(4000) % 2 == 0
    scores = same * 0.5 + rng.normal(0, 0.3, 4000)
    assert "stroke-dasharray" in roc_figure(scores, same, None)
    few = np.arange(20) % 2 == 0
    assert "stroke-dasharray" in roc_figure(few * 1.0, few, None)  # nothing certain: still drawn


def marks(svg: str, colour: str) -> dict[str, list[tuple[float, float]]]:
    """(x, y) of the dots, hollow marks and ends of intervals of a colour, in the order drawn; y grows downwards."""
    found: dict[str, list[tuple[float, float]]] = {"dot": [], "hollow": [], "end": []}
    ends = re.findall(r'<path id="([^"]*)" d="M 0 3 \nL 0 -3 \n"', svg)
    inside = "".join(re.findall(r"<g clip-path[^>]*>.*?</g>", svg, flags=re.DOTALL))  # not the legend
    for name, x, y, style in re.findall(
        r'<use xlink:href="#([^"]*)" x="([\d.]+)" y="([\d.]+)" style="([^"]*)"', inside
    ):
        if f"stroke: var(--{colour})" in style:
            kind = "end" if name in ends else "hollow" if "fill-opacity: 0" in style else "dot"
            found[kind].append((float(x), float(y)))
    return found


def test_groups_are_dots_with_intervals_on_a_line_of_their_own() -> None:
    rates = [
        GroupRate("$a_$ <i>", "_first", 0.5, 0.4, 0.7, 0.6),
        GroupRate("$a_$ <i>", "$\\frac$", 0.3, None, None, None),
        GroupRate("b" * 60, "_first", 0.9, 0.85, 0.95, 0.8),
        GroupRate("c", "$\\frac$", None, None, None, 0.2),
    ]
    svg = group_figure(rates, "by group", key="g", x_label="TAR, %")
    text = "".join(re.findall(r"<text[^>]*>(.*?)</text>", svg))
    for shown in ("$a_$ &lt;i&gt;", "b" * 27 + "…", "_first", "$\\frac$", "TAR, %"):
        assert shown in text, shown
    assert "b" * 28 not in svg
    assert "font-family" not in svg  # the page's
    first, second = marks(svg, "first"), marks(svg, "second")
    (left, upper), (right, lower) = first["dot"]
    assert upper < lower

    def read(places: list[tuple[float, float]]) -> list[tuple[float, bool]]:
        """The rate that a mark shows, and whether it is on the line of the first model and group."""
        return [(round(0.5 + 0.4 * (x - left) / (right - left), 3), y == upper) for x, y in places]

    assert read(first["dot"]) == [(0.5, True), (0.9, False)]
    assert read(first["end"]) == [(0.4, True), (0.7, True), (0.85, False), (0.95, False)]
    assert read(first["hollow"]) == [(0.6, True), (0.8, False)]
    assert (read(second["dot"]), read(second["hollow"]), second["end"]) == ([(0.3, False)], [(0.2, False)], [])
    assert upper < second["dot"][0][1] < lower < second["hollow"][0][1]
    curves = [Curve(name, np.array([0.1, 1.0]), np.array([0.5, 1.0])) for name in ("_x", "$\\bad$")]
    drawn = curve_figure(curves, "roc", key="r", kind="roc")
    assert "_x" in drawn
    assert "$\\bad$" in drawn
