"""Measures the source and holds it to the limits that keep it readable; `make check` runs this and prints the figures.

Counted are Python tokens without comments and docstrings, so neither a comment nor a line break costs anything. Refused are files above 450 lines,
functions above 80, folders with more than 15 Python files, imports that point upwards, and circles of imports.
"""

import ast
import io
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

SOURCE = Path(__file__).resolve().parent.parent / "src" / "attfc"
TOKENS_OF_0_1 = 272_633
FILE_LINES, FUNCTION_LINES, FOLDER_FILES = 450, 80, 15
FLOORS = (
    {
        "config",
        "devices",
        "distributed",
        "errors",
        "files",
        "machine",
        "precision",
        "random_streams",
        "templates",
        "typing",
    },
    {"backbones", "losses", "synthetic"},
    {"data", "heads"},
    {"evaluation", "photos", "plan"},
    {"training"},
    {"export", "run"},
    {"gallery"},
    {"lab", "serve"},
    {"commands", "cli", "__main__"},
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
SILENT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
    tokenize.ENCODING,
}
Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def tokens(text: str, tree: ast.Module) -> int:
    """Count the tokens of a file without comments and docstrings."""
    docstrings = {
        (node.body[0].lineno, node.body[0].col_offset)
        for node in ast.walk(tree)
        if isinstance(node, Documented) and ast.get_docstring(node, clean=False) is not None
    }
    count = inside = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        name = tokenize.tok_name[token.type]
        inside -= name == "FSTRING_END"  # from Python 3.12 on an f-string is several tokens: counted as one, as before
        count += not inside and name != "FSTRING_END" and token.type not in SILENT and token.start not in docstrings
        inside += name == "FSTRING_START"
    return count


def imported(tree: ast.Module, modules: set[str]) -> Iterator[str]:
    """Yield the modules of attfc that a file imports anywhere but under `if TYPE_CHECKING`."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            waiting += node.orelse
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in modules else node.module for name in names if node.module in modules)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        waiting += ast.iter_child_nodes(node)


def main() -> int:
    """Print the figures and the faults; 1 where there are any."""
    files = {path: path.read_text(encoding="utf-8") for path in sorted(SOURCE.rglob("*.py"))}
    trees = {path: ast.parse(text) for path, text in files.items()}
    module_of = {
        path: ".".join(path.relative_to(SOURCE.parent).with_suffix("").parts).removesuffix(".__init__")
        for path in files
    }
    faults, size, graph = [], Counter[str](), {}
    for path, tree in trees.items():
        place, parts = path.relative_to(SOURCE.parent.parent), path.relative_to(SOURCE).with_suffix("").parts
        room = parts[0] if len(parts) > 1 or parts[0] in FLOOR_OF else "."
        size[room] += tokens(files[path], tree)
        lines = files[path].count("\n")
        if lines > FILE_LINES:
            faults.append(f"{place}: {lines} lines, at most {FILE_LINES}")
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
                and node.end_lineno - node.lineno + 1 > FUNCTION_LINES
            ):
                length = node.end_lineno - node.lineno + 1
                faults.append(f"{place}:{node.lineno}: {node.name} has {length} lines, at most {FUNCTION_LINES}")
        if parts == ("__init__",):
            continue
        if room not in FLOOR_OF:
            faults.append(f"{place}: {room} stands on no floor of .ci/house.py")
            continue
        graph[module_of[path]] = needs = set(imported(tree, set(module_of.values()))) - {module_of[path], "attfc"}
        above = sorted(other for other in needs if FLOOR_OF.get(other.split(".")[1], 0) > FLOOR_OF[room])
        faults += [f"{place}: imports {other}, which stands above it" for other in above]
    for folder, count in Counter(path.parent for path in files).items():
        if count > FOLDER_FILES:
            faults.append(f"{folder.relative_to(SOURCE.parent.parent)}: {count} Python files, at most {FOLDER_FILES}")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        faults.append(f"imports run in a circle: {' <- '.join(error.args[1])}")
    total = sum(size.values())
    print(*(f"{count:>8,} {room}" for room, count in size.most_common()), sep="\n")
    print(f"{total:>8,} tokens in {len(files)} files, {total / TOKENS_OF_0_1:.1%} of version 0.1")
    print(*faults, sep="\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
