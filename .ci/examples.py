"""Runs every file of examples/ as its header says, or writes them into docs/examples.md.

    python .ci/examples.py              runs all, two at a time; the environment has the dependency group `examples`
    python .ci/examples.py NAME...      runs those
    python .ci/examples.py --page       writes docs/examples.md

An example opens with a docstring: "Title: what it shows.", then `$ COMMAND`, then what a reader should know.
A notebook opens with a cell of the same form.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "examples.md"
LIMIT_SECONDS = 400  # of one example; 40 at most on two idle cores
NOTEBOOK = """
import sys, nbclient, nbformat
notebook = nbclient.NotebookClient(nbformat.read(sys.argv[1], as_version=4), timeout=300, kernel_name="python3").execute()
print(*(out["text"] for out in notebook.cells[-1]["outputs"] if out["output_type"] == "stream"))
"""


class Example(NamedTuple):
    """A file, its heading, what it shows, the command that runs it, notes for a reader, and its code in cells."""

    path: Path
    title: str
    shows: str
    command: str
    notes: str
    cells: list[tuple[str, str]]  # "code" or "markdown", and the text


def read(path: Path) -> Example:
    """Read an example's header and code."""
    if path.suffix == ".ipynb":
        cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(path.read_text())["cells"]]
        (_, header), *cells = cells
        header = header.removeprefix("# ")
    else:
        _, header, body = path.read_text().split('"""', 2)
        cells = [("code", body.strip())]
    found = re.fullmatch(r"(.+?): (.+?)\n\n\$ (.+?)\n(.*)", header.strip() + "\n", flags=re.DOTALL)
    assert found, f'{path.name}: begin with "Title: what it shows.", an empty line, and "$ COMMAND"'
    title, shows, command, notes = found.groups()
    return Example(path, title, shows[0].upper() + shows[1:], command, notes.strip(), cells)


EXAMPLES = [read(path) for path in sorted((ROOT / "examples").iterdir()) if path.suffix in (".py", ".ipynb")]


def page() -> str:
    """Return docs/examples.md."""
    parts = [
        "# Examples\n\nEach file of `examples/` runs on a processor within a minute, on rendered faces, and ends with an assertion. "
        "`make examples` runs them all in an environment of its own.\n\n"
        + "\n".join(
            f"- [{each.title}](#{anchor(each.title)}): {each.shows[0].lower()}{each.shows[1:]}" for each in EXAMPLES
        )
    ]
    for each in EXAMPLES:
        parts.append(f"## {each.title}\n\n{each.shows}\n\n```sh\n{each.command}\n```")
        if each.notes:
            parts.append(each.notes)
        parts += [f"```python\n{text}\n```" if kind == "code" else text for kind, text in each.cells]
    return "\n\n".join(parts) + "\n"


def anchor(title: str) -> str:
    """Return the anchor that a heading gets."""
    return re.sub(r"[^\w-]", "", title.lower().replace(" ", "-"))


def run(example: Example) -> tuple[Example, float, int, str]:
    """Run an example; return its seconds, status and output."""
    folder = Path(sys.executable).parent
    words = shlex.split(example.command)
    words = (
        [sys.executable, "-c", NOTEBOOK, words[-1]]
        if example.path.suffix == ".ipynb"
        else [str(folder / words[0]), *words[1:]]
    )
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "PATH": f"{folder}:{os.environ['PATH']}",
    }
    began = time.monotonic()
    try:
        done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT_SECONDS)
    except subprocess.TimeoutExpired as error:
        return example, LIMIT_SECONDS, 124, f"{error.stderr or ''}\nstopped after {LIMIT_SECONDS} s"
    return (
        example,
        time.monotonic() - began,
        done.returncode,
        done.stdout if done.returncode == 0 else done.stdout + done.stderr,
    )


def main(arguments: list[str]) -> int:
    """Run or write; return how many examples failed."""
    if arguments == ["--page"]:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    chosen = [each for each in EXAMPLES if not arguments or each.path.stem in arguments or each.path.name in arguments]
    failed = int(not chosen)
    with ThreadPoolExecutor(int(os.environ.get("JOBS", "2"))) as pool:
        for example, seconds, status, output in pool.map(run, chosen):
            lines = output.strip().splitlines()
            failed += status != 0 or not lines
            said = output if status else lines[-1] if lines else "printed nothing"
            print(
                f"{'FAILED' if status or not lines else 'ok'} {example.path.name} {seconds:.0f} s: {said}", flush=True
            )
    print(f"{max(len(chosen) - failed, 0)} passed, {failed} failed")
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
