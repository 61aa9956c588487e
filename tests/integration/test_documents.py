"""What the documents show is run: their Python, their commands' options, their byte examples, the presets for a processor."""

import importlib.util
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import BaseModel

import attfc
from attfc.cli import app
from attfc.config import RunConfig, load_config, preset_names
from attfc.config.arguments import read_words
from attfc.photos.alignment import ARCFACE_TEMPLATE
from attfc.run.build import new_run

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FILES = {"README.md": ROOT / "README.md"} | {
    path.relative_to(ROOT / "docs").as_posix(): path for path in (ROOT / "docs").rglob("*.md")
}
PAGES = {name: path.read_text(encoding="utf-8") for name, path in FILES.items()}
COMMAND = typer.main.get_command(app)


def python_of(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", PAGES[page], flags=re.DOTALL | re.MULTILINE)


def test_python_snippets_of_the_readme_run() -> None:
    snippets = python_of("README.md")
    assert len(snippets) == 1
    for snippet in snippets:
        names: dict[str, object] = {}
        exec(compile(snippet, "README.md", "exec"), names)
        assert float(names["loss"].detach()) > 0
    body = snippets[0].split("import attfc\n")[1].strip().splitlines()
    assert len([line for line in body if line.strip()]) < 15


def test_python_of_the_page_of_heads_trains() -> None:
    names: dict[str, Any] = {}
    snippet, save, parts, trained = python_of("heads.md")
    assert len([line for line in snippet.splitlines() if line.strip() and not line.startswith("import")]) < 15
    exec(compile(snippet, "heads.md", "exec"), names)
    assert names["head"].statistics()["positive_share"] == 1
    assert 0 < float(names["loss"].detach()) < 25
    for more in (save, parts):
        exec(compile(more, "heads.md", "exec"), names)
    assert names["again"].table.draws == names["head"].table.draws > 0
    assert names["with_a_table"].stored is names["with_a_table"].table
    exec(compile(trained, "heads.md", "exec"), names)
    assert [rows.shape for group in names["rows"].param_groups for rows in group["params"]] == [(10, 128)]


def test_measured_tables_are_those_of_their_results(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
    assert spec is not None
    assert spec.loader is not None
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    stale = [page.name for page in tables.PAGES if tables.renewed(page) != page.read_text(encoding="utf-8")]
    assert not stale, f"run make docs: {stale}"
    real = tables.load

    def changed(name: str) -> dict[str, Any]:
        record: dict[str, Any] = real(name)
        if name == "study_final":
            record["results"][0]["steps"] += 1
        return record

    monkeypatch.setattr(tables, "load", changed)
    page = ROOT / "docs" / "study" / "faces.md"
    assert tables.renewed(page) != page.read_text(encoding="utf-8")


# docs/formats.md: one run of all its Python, top to bottom, then its blocks against the files that this left.

MARKED = re.compile(r"^<!-- (bytes|text) of (\S+) -->\n```\w+\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
BLOCKS = {(kind, file): block for kind, file, block in MARKED.findall(PAGES["formats.md"])}


@pytest.fixture(scope="module")
def files_of_formats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("formats")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run_in_order("formats.md")
    return folder


def run_in_order(page: str) -> int:
    names: dict[str, Any] = {}
    for number, snippet in enumerate(python_of(page), start=1):
        exec(compile(snippet, f"{page} snippet {number}", "exec"), names)
    return len(python_of(page))


def shown_bytes(block: str) -> bytes:
    """Read a block of lines `offset  bytes  meaning`; `20 x61` is a byte and how often it stands there."""
    found = b""
    for line in block.splitlines():
        offset, rest = line.split(maxsplit=1)
        assert int(offset) == len(found), f"a line is marked {offset} and follows {len(found)} bytes"
        words = rest.split()
        taken = 0
        while taken < len(words) and re.fullmatch(r"[0-9A-F]{2}|x\d+", words[taken]):
            word = words[taken]
            found += found[-1:] * (int(word[1:]) - 1) if word.startswith("x") else bytes.fromhex(word)
            taken += 1
        assert taken, f"no bytes in {line!r}"
    return found


def test_formats_shows_all_its_blocks() -> None:
    kinds = [kind for kind, _ in BLOCKS]
    assert (kinds.count("bytes"), kinds.count("text")) == (7, 6)
    assert PAGES["formats.md"].count("<!-- ") == len(BLOCKS) + 3  # and the figures of cleaning; a table, and its end
    assert len(python_of("formats.md")) == 13


def test_the_template_of_formats_is_the_one_that_faces_are_warped_to() -> None:
    rows = re.findall(
        r"^\| [^|]*(?:eye|nose|mouth)[^|]* \| ([\d.]+) \| ([\d.]+) \|$", PAGES["formats.md"], flags=re.MULTILINE
    )
    assert [[float(x), float(y)] for x, y in rows] == ARCFACE_TEMPLATE.tolist()


@pytest.mark.parametrize(("kind", "file"), BLOCKS)
def test_files_of_formats_are_as_shown(files_of_formats: Path, kind: str, file: str) -> None:
    written = (files_of_formats / file).read_bytes()
    if kind == "bytes":
        assert shown_bytes(BLOCKS[kind, file]).hex(" ") == written.hex(" ")
    else:
        assert BLOCKS[kind, file].replace("<TAB>", "\t") == written.decode()


def test_cleaning_figures_of_formats_are_those_measured() -> None:
    record = json.loads((ROOT / "benchmarks" / "results" / "cleaning.json").read_text(encoding="utf-8"))
    settings = record["results"]["wrong_labels"]["exchange"]["settings"]
    measured = {
        (f"{row['threshold']:g}", "-" if row["margin"] is None else f"{row['margin']:g}"): (
            f"{row['precision']:.2f}",
            f"{row['recall']:.2f}",
            f"{row['sound_images_lost']:.4f}",
        )
        for row in settings
    }
    _, _, table = PAGES["formats.md"].partition("<!-- figures of cleaning.json -->\n")
    lines = table.split("\n\n")[0].splitlines()[2:]
    assert len(lines) == 6
    for line in lines:
        threshold, margin, *shown = [cell.strip() for cell in line.strip("|").split("|")]
        assert tuple(shown) == measured[threshold, margin]
    assert record["config"]["share_flipped"] == 0.05
    assert f"{record['config']['images']:,} real faces" in PAGES["formats.md"]


@pytest.mark.parametrize(("page", "snippets"), [("datasets.md", 1), ("gallery.md", 1), ("privacy.md", 2)])
def test_python_snippets_of_the_other_data_pages_run(
    page: str, snippets: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_in_order(page) == snippets


@pytest.mark.parametrize("page", sorted(page for page in PAGES if page.startswith("how-to/") and python_of(page)))
def test_python_of_the_how_to_pages_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_in_order(page) >= 1


def test_the_api_page_has_every_public_name() -> None:
    shown = set(re.findall(r"^\.\. auto\w+:: (\w+)", PAGES["reference/api.md"], flags=re.MULTILINE))
    assert shown == set(attfc.__all__)


# Commands and configuration keys, wherever a page names them.


def shown_commands() -> Iterator[tuple[str, str, list[str]]]:
    """Yield (page, "block" or "inline", words after `attfc`) of every command line in a page."""
    for page, text in PAGES.items():
        blocks = "\n".join(re.findall(r"^```sh\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE))
        for line in blocks.replace("\\\n", " ").splitlines():
            if match := re.match(r"\s*(?:\.venv/bin/)?attfc\s+(.*)", line):
                yield page, "block", shlex.split(match[1], comments=True)
        without_blocks = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
        for code in re.findall(r"`(?:\.venv/bin/)?attfc\s+([^`]+)`", without_blocks):
            yield page, "inline", shlex.split(code)


COMMANDS = list(shown_commands())


def command_named(words: list[str]) -> tuple[Any, list[str]]:
    """Follow the names of groups and commands; return the last one and the words after it."""
    command: Any = COMMAND
    rest = list(words)
    while hasattr(command, "commands") and rest and re.fullmatch(r"[a-z][a-z-]*", rest[0]):
        name = rest.pop(0)
        assert name in command.commands, (
            f"attfc {' '.join(words)}: no command {name!r}; there are {sorted(command.commands)}"
        )
        command = command.commands[name]
    return command, rest


def test_commands_were_collected() -> None:
    assert sum(how == "block" for _, how, _ in COMMANDS) >= 20
    assert sum(how == "inline" for _, how, _ in COMMANDS) >= 20
    assert {page for page, _, _ in COMMANDS} >= {"README.md", "formats.md", "datasets.md", "privacy.md"}


@pytest.mark.parametrize("page", sorted(PAGES))
def test_commands_of_the_documents_exist(page: str) -> None:
    for words in [words for of, _, words in COMMANDS if of == page]:
        for alternative in (
            words[1].split("|") if len(words) > 1 and "|" in words[1] else [None]
        ):  # data inspect|preview
            command, rest = command_named(words if alternative is None else [words[0], alternative, *words[2:]])
            known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
            for word in rest:
                option = word.partition("=")[0]
                assert not option.startswith("-") or option in {*known, "--help"}, (
                    f"attfc {' '.join(words)}: no {option}"
                )


@pytest.mark.parametrize("page", sorted({page for page, how, _ in COMMANDS if how == "block"}))
def test_whole_command_lines_are_accepted(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arguments, types and required options too, by typer's own parser; nothing is run."""
    monkeypatch.chdir(tmp_path)
    for words in [words for of, how, words in COMMANDS if of == page and how == "block"]:
        command, rest = command_named(words)
        try:
            context = command.make_context(words[0], list(rest))
        except typer.exceptions.TyperException as error:
            pytest.fail(f"{page}: attfc {' '.join(words)}: {error}")
        except typer.Exit:  # --help, --version
            continue
        if command.name == "train" and context.params["resume"] is None:
            accept_words(context.params["words"])


def accept_words(words: list[str]) -> None:
    """Read the words of `attfc train` where data and files that they name exist."""
    for word in words:
        if "=" not in word and word not in preset_names():
            file = Path(word)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("{}") if file.suffix in (".yaml", ".rec") else file.mkdir(exist_ok=True)
    read_words(words).resolve()


def test_configuration_keys_of_the_documents_exist() -> None:
    sections = {
        name: set(field.annotation.model_fields)
        for name, field in RunConfig.model_fields.items()
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }
    checked = 0
    for page, text in PAGES.items():
        for section, key in re.findall(r"`(\w+)\.(\w+)(?:=[^`]*)?`", text):
            if section in sections and key not in ("html", "json", "mdb", "pt"):  # those are files
                assert key in sections[section], f"{page}: there is no {section}.{key}"
                checked += 1
    assert checked >= 30


def test_train_commands_of_the_readme_have_known_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    commands = [line.partition("  #")[0] for line in README.splitlines() if line.startswith("attfc train ")]
    checked = 0
    for command in commands:
        words = shlex.split(command)[2:]  # after `attfc train`
        if "--resume" in words:
            continue
        accept_words([word for word in words if not word.startswith("--")])
        checked += 1
    assert checked == 3


@pytest.mark.parametrize("page", sorted(PAGES))
def test_links_of_the_documents_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", PAGES[page]):
        if "://" in target or target.startswith("mailto:"):
            continue
        file, _, anchor = target.partition("#")
        path = FILES[page].parent / file if file else FILES[page]
        assert path.exists(), f"{page}: {target}"
        if anchor and path.suffix == ".md":
            titles = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert anchor in anchors, f"{page}: no section {anchor} in {path.name}; there are {sorted(anchors)}"


@pytest.mark.parametrize("preset", ["demo", "faces112"])  # the large ones: test_presets.py
def test_presets_for_a_processor_take_two_steps(tmp_path, preset) -> None:
    run = new_run(
        load_config(
            preset,
            [
                *("data.root=synthetic:identities=64,images=4,seed=0", "data.workers=0", "data.decoded_cache_mib=0"),
                *("batch_size=16", "schedule.max_steps=2", "schedule.warmup_epochs=0", "eval.root=null", "log.every=1"),
                *("log.tensorboard=false", f"output={tmp_path}"),
            ],
        )
    )
    run.trainer.train()
    assert run.trainer.step == 2
    assert (run.folder / "model" / "model.safetensors").exists()


def test_the_study_is_short_and_its_numbers_lead_to_their_tables() -> None:
    text = re.sub(
        r"<!-- table.*?<!-- end -->|^```.*?^```|^#.*?$", "", PAGES["study.md"], flags=re.DOTALL | re.MULTILINE
    )
    assert 1000 < len(re.sub(r"\]\([^)]*\)", "]", text).split()) <= 4000
    assert PAGES["study.md"].count("<!-- table ") == 3
    assert text.count("![") == 2
    judged = re.sub(r"### Words.*?## Results", "", PAGES["study.md"], flags=re.DOTALL)
    judged = re.sub(r"<!-- table.*?<!-- end -->|!\[.*?\]\(.*?\)|^#.*?$", "", judged, flags=re.DOTALL | re.MULTILINE)
    names = re.compile(r"`[^`]*`|\]\([^)]*\)|rank-1|FAR 1e-\d|[Tt]able \d", flags=re.IGNORECASE)
    for sentence in re.split(r"(?<=[.])\**\s+|\n\s*\n|\n- ", judged):
        if re.search(r"\d|(?<!in )\bpoints?\b", names.sub("]", sentence)):
            assert "](" in sentence, sentence
