"""Holds what a user reads to the rules for sentences in CONTRIBUTING.md; `make check` runs this and prints what breaks them.

Read are the help of the commands, the descriptions of the options, each text of the source with four words or more (messages, notes, the report), the
docstrings of the names in `__all__` of attfc and its rooms, the templates, README.md and docs/. Left out are code, tables, headings and addresses.
The rules are words and counts: a sentence that passes may still be hard to read.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "src"))  # the help is that of these files, whatever is installed
LONGEST = 29  # words per sentence
COUNTED = (
    "(?:bytes|numbers|rows|images|photos|faces|lines|keys|queries|steps|epochs|seconds|minutes|hours|ms|MB|[KMGT]i?B|pairs|centers|negatives"
    "|draws|products|samples|slots|visits|processes|once|(?:one|an?|[0-9]) (?:byte|number|row|image|photo|face|line|key|file|second))"
)
EACH = (
    "(?:second|minute|hour|day|step|epoch|batch|identity|image|number|row|person|key|query|photo|face|pair|element|center|slot|record|template"
    "|request|process|GPU|device|parameter|value|pixel|class|sample|comparison|rank|host)"
)
NO = "(?:[Nn]o|[Nn]ot|[Nn]ever|[Nn]othing|[Nn]obody|none|[Cc]annot)"  # None is a value of Python
RULES = {  # a word in -s behind "a person" is taken for a verb: "the images a person has"
    "say 'per', not 'a'": rf"\b{COUNTED} an? {EACH}\b(?!'| \w*s\b)|\btimes an? (?:second|minute|hour|day|step|epoch)\b",
    "say it without the double negation": rf"\b[Nn]ot without\b|\b[Uu]nless\b[^.,;:()]*\b{NO}\b|\b{NO}\b[^.,;:()]*\b(?:unless|without)\b",
    "say 'is not a', not 'is no'": r"(?<!there )(?<!There )\b(?:is|are|was|were) no (?!\w+er\b|more\b|less\b|worse\b|one\b|fault\b|use\b)\w",
    "say 'mated' and 'non-mated'": r"\b[Gg]enuine (?:pairs?|scores?)\b|\b[Ii]mpostors?\b",
    "leave history to CHANGELOG.md": r"\b(?:no longer|formerly|previously|used to (?:be|have|take|need|do|say))\b",
}
IN_HELP = {
    "begin with a verb or a noun, not with 'of'": r"\A[Oo]f\b",
    "say 'metric' for a number that an evaluation gives": r"\bfigures?\b",
}
ON_PAGES = {"leave history to CHANGELOG.md, or to decisions.md": r"\b(?:[Nn]ow|(?:was|were) removed|as before)\b"}
ABBREVIATIONS = re.findall(
    r"(\w+): ([^;]+)",
    "TAR: true accept rate; FAR: false accept rate; FMR: false match rate; FNMR: false non-match rate; EER: equal error rate; AUC: area under the;"
    "TPIR: true positive identification rate; FPIR: false positive identification rate; ROC: receiver operating characteristic;"
    "AMP: mixed precision; DDP: distributeddataparallel; EMA: moving average",
)
HISTORIES = ("decisions.md",)  # they tell what was tried
ALLOWED = {
    "genuine and impostor": "the other names, given once",
    "(impostor)": "the same, in the glossary",
}  # part of a text that breaks a rule: why it stays


class Text(NamedTuple):
    """What a user reads: where it stands; its kind, one of help, screen (all help of a command), message, docstring, page; the text."""

    place: str
    kind: str
    text: str


def sentences(text: str) -> Iterator[str]:
    """Yield the sentences; items of a list and paragraphs end one, too."""
    for part in re.split(r"(?<=[.!?])[)\"'*_]*\s+|\n\s*\n|\n\s*(?:[-*+]|\d+\.)\s", text):
        if sentence := " ".join(part.split()):
            yield sentence


def prose(page: str) -> str:
    """Return what is prose in Markdown or in a template; code within a line counts as one word, a link stays as its text in brackets."""
    page = re.sub(r"^( *)(```|~~~).*?^\1\2[^\n]*$|<!--.*?-->|\A---\n.*?^---$", "\n\n", page, flags=re.M | re.S)
    page = re.sub(r"<(script|style)\b.*?</\1>|\{%.*?%\}|\{#.*?#\}|^\s*\|.*?$|^#.*?$", "\n\n", page, flags=re.M | re.S)
    page = re.sub(r"</(?:p|li|h\d|td|th|div|title|label|option|button)>|(?<=\n\n)(?: {4,}\S.*\n)+", "\n\n", page)
    page = re.sub(r"\{\{.*?\}\}|``[^`]+``|`[^`]+`", "CODE", page)
    return re.sub(r"!\[[^\]]*\]\([^)]*\)|</?[a-z][^<>]*>|(?<=\])\([^)]*\)", "", page)


def of_help() -> Iterator[Text]:
    """Yield the help of each command and of what it takes, the rows of each option of a run, and the titles of the sections."""
    import typer

    from attfc.cli import app
    from attfc.config.describe import all_options, section_title, sections

    waiting: list[tuple[str, Any]] = [("attfc", typer.main.get_command(app))]
    for name, command in waiting:
        helps = [("", command.help or "")] + [
            (f" {each.name}", getattr(each, "help", "") or "") for each in command.params
        ]
        yield from (Text(name + of, "help", said) for of, said in helps)
        yield Text(name, "screen", "\n\n".join(said for _, said in helps))
        waiting += [(f"{name} {word}", each) for word, each in getattr(command, "commands", {}).items()]
    yield from (Text(f"option {each.key}", "help", row) for each in all_options() for row in each.rows())
    yield from (Text(f"section {each}", "help", section_title(each)) for each in sections() if each)


def literal(node: ast.AST | None) -> str | None:
    """Return a text that is put together in the source, with X for each value; None where the node is no text."""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(each.value) if isinstance(each, ast.Constant) else "X" for each in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        sides = literal(node.left), literal(node.right)
        return None if sides == (None, None) else "".join(side or "X" for side in sides)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def is_prose(text: str) -> bool:
    """Whether a text of the source is made of words: four or more, and no SQL, list of names or table of numbers."""
    words = [word for word in text.split() if word != "X"]
    return len(text.split()) > 3 and 3 * sum(bool(re.match("[a-z']+[.,;:)]*$", word)) for word in words) >= len(words)


def of_source(root: Path = ROOT / "src" / "attfc") -> Iterator[Text]:
    """Yield the messages of every file, and the docstrings of public names."""
    rooms = [path.read_text(encoding="utf-8") for path in (root / "__init__.py", *root.glob("*/__init__.py"))]
    public = {
        name
        for room in rooms
        for each in re.findall(r"(?s)^__all__ = \[.*?\]", room, re.M)
        for name in re.findall(r"\w+", each)
    }
    for path in sorted(root.rglob("*.py")):
        waiting: list[tuple[ast.AST, bool]] = [(ast.parse(path.read_text(encoding="utf-8")), False)]
        while waiting:
            node, shown = waiting.pop()
            place, text = f"{path.relative_to(root).as_posix()}:{getattr(node, 'lineno', 1)}", literal(node)
            if text is not None and is_prose(text):
                yield Text(place, "message", text)
            if text is not None or (isinstance(node, ast.Expr) and literal(node.value)):
                continue
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                shown = node.name in public or (shown and not node.name.startswith("_"))
                if shown and (text := ast.get_docstring(node)):
                    text = re.sub(
                        r"^ *>>>.*?(?=\n\s*\n|\Z)|^\s*(?:\*?\w+, )*\*{0,2}\w+:(?=\s)", "\n\n", text, flags=re.M | re.S
                    )
                    yield Text(place, "docstring", prose(text))
            waiting += [(each, shown) for each in ast.iter_child_nodes(node)]


def of_pages() -> Iterator[Text]:
    """Yield README.md, the pages of docs/ and the templates of the package."""
    templates = [path for end in ("md", "html", "jinja") for path in (ROOT / "src").rglob(f"*.{end}")]
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted(templates)):
        kind = "screen" if path.name in ("options.md", "commands.md") else "page"  # their sentences are read as help
        yield Text(path.relative_to(ROOT).as_posix(), kind, path.read_text(encoding="utf-8"))


def unexplained(text: str) -> Iterator[str]:
    """Yield the abbreviations whose first use is no link and has no explanation before it or in its paragraph."""
    for short, meaning in ABBREVIATIONS:
        if first := re.search(rf"\b{short}\b", text):
            end = text.find("\n\n", first.end())
            linked = re.search(rf"\[[^\]]*\b{short}\b[^\]]*\]", text[: first.end() + 40])
            if not linked and meaning not in " ".join(text[: end if end >= 0 else None].lower().split()):
                yield f"{short}: {' '.join(text[max(0, first.start() - 60) : first.end() + 20].split())}"


def faults_of(text: Text) -> Iterator[tuple[str, str]]:
    """Yield (rule, sentence) for whatever breaks a rule."""
    shown = prose(text.text) if text.kind == "page" else text.text
    if text.kind in ("page", "screen") and not text.place.endswith("glossary.md"):
        yield from (("explain or link an abbreviation at its first use", found) for found in unexplained(shown))
    past = ON_PAGES if text.kind in ("page", "help") and not text.place.endswith(HISTORIES) else {}
    rules = {**RULES, **past, **(IN_HELP if text.kind == "help" else {})}
    for sentence in sentences(shown) if text.kind != "screen" else ():
        length = sum(any(map(str.isalnum, word)) for word in sentence.split())
        if length > LONGEST:
            yield f"{length} words, at most {LONGEST}: make it two sentences or a list", sentence
        yield from ((rule, sentence) for rule, pattern in rules.items() if re.search(pattern, sentence))


def main() -> int:
    """Print the faults; 1 where there are any."""
    texts = [text for part in (of_help, of_source, of_pages) for text in part()]
    faults = dict.fromkeys(
        f"{text.place}: {rule}\n    {sentence}"
        for text in texts
        for rule, sentence in faults_of(text)
        if not any(part in sentence for part in ALLOWED)
    )
    print(*faults, f"{len(texts):,} texts read, {len(faults)} faults", sep="\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
