"""Every table that a command prints: whole for a pipe, on a terminal of 80 columns no line too long and no figure missing, a table at 120."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from attfc import load
from attfc.commands import screen
from attfc.commands.training_screen import print_choices
from attfc.config.choose import Choice
from attfc.gallery import Gallery
from attfc.lab import head_speed

from .commands import run_main
from .protocol_folder import write_bin, write_templates

ROOT = Path(__file__).resolve().parents[2]
FACES = "synthetic:identities=30,images=4,seed=0,first=1000"
FEW = ("--resamples", 40)
FACES_64 = "synthetic:identities=64,images=2,seed=5"
SMALL = "synthetic:identities=10,images=3,seed=0"
STUDY = (ROOT / "benchmarks" / "studies" / "vectors_tail.yaml", "-o", ROOT / "benchmarks/results/studies/vectors_tail")

# Command, and the header that its table at 120 columns begins with; None: it prints sentences and lists.
COMMANDS: dict[str, tuple[tuple[object, ...], str | None]] = {
    "presets": (("presets",), "preset "),
    "backbones": (("backbones",), "name "),
    "plan": (("plan", "wf42m_attfc_r100", "backbone.name=r6_tiny", "--memory", 40, "--no-calibrate"), "head "),
    "pairs": (("evaluate", "MODEL", "lfw,cfp_fp", "SETS", "--broken-limit", 0.02, *FEW), "set "),
    "held-out": (("evaluate", "MODEL", "held-out", FACES, "--generated-pairs", 100, *FEW), "on "),
    "all-pairs": (("evaluate", "MODEL", "all-pairs", FACES, "--far", "1e-3,1e-2,1e-1", *FEW), "TAR % at FAR "),
    "identify": (("evaluate", "MODEL", "identify", FACES, *FEW), "1:N, % "),
    "ijbc": (
        (
            "evaluate",
            "MODEL",
            "ijbc",
            "IJBC",
            "--embeddings",
            "CACHE",
            "--broken-limit",
            0.1,
            "--mode",
            "N1D1F1,N0D0F0",
            *FEW,
        ),
        "1:1 TAR % at FAR ",
    ),
    "compare": (("compare", "MODEL", "OTHER", "identify", FACES, "--resamples", 40), "metric "),
    "calibrate": (
        ("calibrate", "MODEL", FACES_64, "--fmr", 0.2, "--groups", "GROUPS", "--splits", 10, "-o", "POINT"),
        "group ",
    ),
    "study": (("study", "table", *STUDY), "variant "),
    "bench": (("bench", "heads"), "identities "),
    "inspect": (("data", "inspect", SMALL, "--workers", 0), None),
    "clean": (("data", "clean", SMALL, "--workers", 0, "-o", "EDITS"), None),
    "noise": (("data", "noise", FACES, "flip", "--share", 0.2, "-o", "EDITS"), None),
    "convert": (("data", "convert", SMALL, "PACKED", "--verify"), None),
    "export": (("export", "MODEL", "HUB", "--format", "hf"), None),
    "gallery search": (("gallery", "search", "GALLERY", SMALL, "--top", 2), "image "),
    "gallery stats": (("gallery", "stats", "GALLERY"), None),
}


@pytest.fixture(scope="session")
def places(models: list[Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("s")
    write_bin(root / "lfw.bin")
    write_bin(root / "cfp_fp.bin", seed=4, broken=7)
    write_templates(root / "IJBC")
    model = load(models[0], device="cpu")
    (root / "GROUPS").write_text("".join(f"identity {label}\t{label % 2}\n" for label in range(64)))
    (root / "far.json").write_text('{"threshold_at_far": {"0.001": 0.9}, "impostor_pairs": 100000}')
    with Gallery.create(root / "GALLERY", model, far=1e-3, evaluation=root / "far.json") as gallery:
        gallery.add(SMALL)
    return {
        "SETS": root,
        "MODEL": models[0],
        "OTHER": models[1],
        "IJBC": root / "IJBC",
        "GROUPS": root / "GROUPS",
        "GALLERY": root / "GALLERY",
    }


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch):
    """Make stdout a terminal of a width; rich sets neither in a console that exists."""

    def of_width(width: int | None) -> None:
        monkeypatch.setattr(screen.out, "_force_terminal", width is not None)
        monkeypatch.setattr(screen.out, "_width", width)

    return of_width


def measured_before(sweep: head_speed.Sweep, lines: Path, say: object) -> dict:
    """Stands for `run_sweep`: what it found on the machine of the documents."""
    lines.touch()
    return json.loads((ROOT / "benchmarks" / "results" / "head_speed.json").read_text(encoding="utf-8"))["results"]


def figures(text: str) -> Counter[str]:
    return Counter(word for word in re.findall(r"\S+", text) if any(map(str.isdigit, word)))


@pytest.mark.parametrize("name", COMMANDS)
def test_what_a_command_prints_fits(name, places, tmp_path, terminal, monkeypatch, capsys) -> None:
    arguments, header = COMMANDS[name]
    if name == "bench":
        monkeypatch.setattr(head_speed, "run_sweep", measured_before)
    shown = {}
    for width in (None, 80, 120):
        fresh = {place: tmp_path / f"{place}{width}" for place in ("EDITS", "PACKED", "HUB", "CACHE", "POINT")}
        terminal(width)
        here = [
            {**places, **fresh}.get(argument, argument) if isinstance(argument, str) else argument
            for argument in arguments
        ]
        status, shown[width], err = run_main(monkeypatch, capsys, *here)
        assert status == 0, err
    for width in (80, 120):
        long = [line for line in shown[width].splitlines() if len(line) > width]
        assert all(len(line.split()) <= 2 for line in long), long  # a path is not broken, nor taken from its name
    if name not in ("calibrate", "convert", "export", "clean", "noise"):  # those name a file of their own each
        unsteady = re.compile(r"embedd|spare|yours")  # a speed, and what is asked about
        whole = "\n".join(line for line in shown[None].splitlines() if not unsteady.search(line))
        assert not figures(whole) - figures(shown[80])
        assert not figures(whole) - figures(shown[120])
    if header is not None:
        assert any(line.startswith(header) and len(line.split()) > 2 for line in shown[120].splitlines()), shown[120]


def table() -> screen.Table:
    rows = [("a long name of a model", "93.60 [92.13, 94.90]", "6,000"), ("[b]short", "-", "12")]
    return screen.Table(("model", "TAR at FAR 1e-4 %", "pairs"), rows)


def test_a_table_is_tried_in_three_forms(terminal, capsys) -> None:
    forms = {}
    for width in (None, 60, 40, 25):
        terminal(width)
        screen.print_table(table())
        forms[width] = capsys.readouterr().out.splitlines()
    assert (
        forms[None]
        == forms[60]
        == [
            "model                      TAR at FAR 1e-4 %  pairs",
            "a long name of a model  93.60 [92.13, 94.90]  6,000",
            "[b]short                                   -     12",
        ]
    )
    assert forms[40] == [
        "model                  TAR at FAR  pairs",
        "                           1e-4 %",
        "a long name of a            93.60  6,000",
        "model              [92.13, 94.90]",
        "[b]short                        -     12",
    ]
    assert forms[25] == [
        *(
            "model              a long",
            "                   name",
            "                   of a",
            "                   model",
        ),
        *("TAR at FAR 1e-4 %  93.60", "                   [92.13, 94.90]", "pairs              6,000"),
        *("", "model              [b]short", "TAR at FAR 1e-4 %  -", "pairs              12"),
    ]


def test_sentences_are_broken_between_words_on_a_terminal_alone(terminal, capsys) -> None:
    sentence = "note: the file " + "/a/long/path" * 4 + " is [red]there[/red] already, so nothing is written"
    for width in (40, None):
        terminal(width)
        screen.out.print(sentence, markup=False)
        screen.out.print(sentence, markup=False, soft_wrap=True)
        lines = capsys.readouterr().out.splitlines()
        assert lines[-1] == sentence
        if width:
            assert lines[:-1] == [
                "note: the file",
                "/a/long/path" * 4,
                "is [red]there[/red] already, so nothing",
                "is written",
            ]
        else:
            assert len(lines) == 2


def test_rates_of_all_pairs_are_the_users(places, monkeypatch, capsys) -> None:
    def evaluate(*arguments: object) -> tuple[int, str, str]:
        return run_main(monkeypatch, capsys, "evaluate", places["MODEL"], *arguments, "--resamples", 0)

    status, out, _ = evaluate("all-pairs", FACES, "--far", "0.1, 1e-3", "--far", "0.2")
    assert status == 0
    assert re.search(r"TAR % at FAR +0\.001 +0\.1 +0\.2 +images", out)
    for rate in ("0", "1", "nan", "many", "-0.1", "1e-3,,1e-2"):
        status, _, err = evaluate("all-pairs", FACES, "--far", rate)
        assert status == 1
        assert "is not a false accept rate: give numbers above 0 and below 1, such as --far 1e-5,1e-4" in err
    status, _, err = evaluate("identify", FACES, "--far", "0.1")
    assert (status, err) == (1, "error: --far is an option of the protocol all-pairs: leave it out of identify\n")


def test_a_page_that_is_there_is_not_overwritten_unasked(places, tmp_path, monkeypatch, capsys) -> None:
    result, page = tmp_path / "a.npz", tmp_path / "models.html"
    evaluate = ("evaluate", places["MODEL"], "identify", FACES, "--resamples", 0, "--save", result)
    assert run_main(monkeypatch, capsys, *evaluate)[0] == 0
    page.write_text("mine")
    status, _, err = run_main(monkeypatch, capsys, "report", result, "--output", page)
    assert status == 1
    assert err == f"error: {page} is there already: name another page with --output, or overwrite it with --force\n"
    assert page.read_text() == "mine"
    assert run_main(monkeypatch, capsys, "report", result, "--output", page, "--force")[0] == 0
    assert page.read_text() != "mine"


@pytest.mark.parametrize(("columns", "most"), [(None, 80), ("60", 60), ("wide", 80), ("400", 400)])
def test_the_table_of_choices_fits_where_nobody_looks_too(columns, most, monkeypatch, capsys) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    why = (
        "their images judge the model; they are never trained on, and a sound verdict takes more of them (eval.share=)"
    )
    print_choices([Choice("kept aside", {"eval.share": 0.1}, "{:g} of all", why)])
    lines = capsys.readouterr().err.splitlines()
    assert max(map(len, lines)) <= most
    assert len(lines) == 2 or most < 100
    assert not figures(why) - figures(" ".join(lines))
