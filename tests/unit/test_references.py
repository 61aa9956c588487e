"""Whatever the repository refers to exists: files, pages, modules and names of `attfc`."""

import ast
import importlib
import importlib.util
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("src", "tests", "docs", "benchmarks", "examples", ".github")
TEXT = (".py", ".md", ".yaml", ".yml", ".toml", ".cff", ".html")
FOREIGN = {  # files and names of other projects
    *(
        "ijb_evals.py",
        "ijb_1n.py",
        "ms1mv2_r50.py",
        "ms1mv3_r50.py",
        "wf4m_r50.py",
        "wf12m_r50.py",
        "wf42m_pfc02_r100.py",
    ),
    *(
        "FileSystemReader",
        "HuggingFaceStorageWriter",
        "AveragedModel",
        "SparseAdam",
        "find_class",
        "roc_curve",
        "to_empty",
        "swa_utils",
    ),
    *("mask_005", "vit_l_dp005_mask_005", "tensors_00000"),
}


def texts() -> Iterator[tuple[str, str]]:
    files = [path for path in ROOT.iterdir() if path.is_file() and (path.suffix in TEXT or path.name == "Makefile")]
    files += [path for name in FOLDERS for path in (ROOT / name).rglob("*") if path.suffix in TEXT]
    for path in sorted(files):
        yield path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8")


TEXTS = dict(texts())
FILES = {
    f"/{path.relative_to(ROOT).as_posix()}"
    for name in FOLDERS
    for path in (ROOT / name).rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
} | {f"/{path.name}" for path in ROOT.iterdir() if path.is_file()}


def exists(name: str) -> bool:
    return any(path.endswith(f"/{name}") for path in FILES)


def test_texts_were_collected() -> None:
    assert len(TEXTS) > 250
    assert {"README.md", "CONTRIBUTING.md", "docs/decisions.md", "src/attfc/run/build.py", "Makefile"} <= set(TEXTS)


def test_nothing_refers_to_documents_outside_the_repository() -> None:
    word = "DESI" + "GN"
    for name, text in TEXTS.items():
        assert not re.search(rf"\b{word}\b", text), name
        assert not re.search(rf"\b(CHOICES|STYLE|{word})\.md\b", text), name


def test_python_files_that_are_named_exist() -> None:
    checked = 0
    for name, text in TEXTS.items():
        if name in ("tests/unit/test_references.py", "CHANGELOG.md"):
            continue
        if not name.endswith(".md"):  # of code: comments and docstrings name files with their folder
            found = re.findall(
                r"(?<![\w/.{<])((?:attfc|src|tests|benchmarks|docs|heads|data|training|evaluation|config|commands)/[\w/-]+\.(?:py|md))\b",
                text,
            )
        else:
            found = re.findall(r"`([\w/-]+\.py)`", text)
        for file in found:
            assert exists(file) or file in FOREIGN, f"{name} names {file}, which does not exist"
            checked += 1
    assert checked > 60


@pytest.mark.parametrize("page", sorted(name for name in TEXTS if name.endswith(".md") and name != "CHANGELOG.md"))
def test_pages_and_results_that_are_named_exist(page: str) -> None:
    for file in re.findall(r"`((?:docs|benchmarks|tests|examples|src)/[\w./-]+\.\w+)`", TEXTS[page]):
        written_later = ("benchmarks/results/recipes.json", "benchmarks/results/gpu/PART.json")
        assert exists(file) or file in written_later, f"{page} names {file}, which does not exist"


def test_names_in_the_docstrings_of_the_package_exist() -> None:
    """A name in backticks is that of something in the code: defined, passed, or a key."""
    sources = {name: text for name, text in TEXTS.items() if name.startswith("src/") and name.endswith(".py")}
    known: set[str] = set()
    for text in sources.values():
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.NAME or (token.type == tokenize.STRING and "`" not in token.string):
                known |= set(re.findall(r"\w+", token.string))
    checked = 0
    for name, text in sources.items():
        for dotted in re.findall(r"`([A-Za-z_][\w.]*)(?:\(\))?`", text):
            for part in dotted.split("."):
                if "_" in part or re.search("[a-z][A-Z]", part):
                    assert part in known | FOREIGN, f"{name} names {dotted}, which does not exist"
                    checked += 1
    assert checked > 300


def test_paths_in_the_commands_of_messages_are_quoted() -> None:
    """What a message says to type works as it stands, also for a folder with a space in its name."""
    verbs = "train --resume|evaluate|compare|calibrate|report|export|verify|gallery [a-z]+"
    checked = 0
    for name, text in TEXTS.items():
        if name.startswith("src/") and name.endswith(".py"):
            for command, path in re.findall(rf"(attfc (?:{verbs}) )\{{([^}}]*)", text):
                assert path.startswith("shlex."), f"{name}: {command}{{{path}}}"
                checked += 1
    assert checked > 5


def test_names_of_attfc_in_the_pages_exist() -> None:
    checked = 0
    for page, text in TEXTS.items():
        if not page.endswith(".md") or page == "CHANGELOG.md":
            continue
        for dotted in re.findall(r"`(attfc(?:\.\w+)+)[`(]", text):
            found: object = importlib.import_module("attfc")
            path = "attfc"
            for part in dotted.split(".")[1:]:
                path += f".{part}"
                found = getattr(found, part) if hasattr(found, part) else importlib.import_module(path)
            checked += 1
    assert checked > 10


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda path: path.stem)
def test_benchmarks_import_what_is_there(path: Path) -> None:
    """No test runs most of them, and what they import of the library may be private."""
    imports = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.ImportFrom)]
    for node in imports:
        if (node.module or "").partition(".")[0] == "attfc":
            module = importlib.import_module(node.module or "")
            for name in (alias.name for alias in node.names):
                assert hasattr(module, name) or importlib.util.find_spec(f"{node.module}.{name}"), name
