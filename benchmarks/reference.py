"""Writes the pages of reference that are made from the source: docs/options.md and docs/reference/commands.md (`make docs`).

An option has a heading of its own, so that a link and a search lead to it. The commands' page is what `--help` prints, all commands on one page.
"""

import re
from typing import Any

import typer

from attfc.cli import app
from attfc.commands.help import USES
from attfc.config.describe import all_options, section_title, sections
from attfc.config.overrides import as_typed

__all__ = ["commands_page", "options_page"]

EXPLAINED = {  # pages on which a section's options, or one option, are explained, from docs/
    "in_batch": "[the default form](method.md#the-default-form), with what it costs",
    "data": "[formats](formats.md#what-a-path-means), [datasets](datasets.md)",
    "teacher": "[a teacher](teacher.md)",
    "head": "[heads](heads.md)",
    "margin": "[heads](heads.md)",
    "center": "[the center rule](heads.md#attfc-from-parts)",
    "stored": "[the bank](heads.md#attfc-from-parts)",
    "negatives": "[the bank of negatives](heads.md#attfc-from-parts)",
    "key_encoder": "[the published method](method.md#the-published-form)",
    "finetune": "[fine-tuning](recipes.md#fine-tuning)",
    "optimizer": "[recipes](recipes.md#rules-behind-it)",
    "schedule": "[recipes](recipes.md#rules-behind-it)",
    "precision": "[recipes](recipes.md#rules-behind-it)",
    "distributed": "[several processes](distributed.md)",
    "eval": "[evaluation](evaluation.md)",
    "checkpoint": "[run folder and checkpoints](formats.md#run-folder-and-checkpoints)",
    "report": "[read a report](how-to/read-a-report.md)",
    "log": "[run folder](formats.md#run-folder-and-checkpoints)",
}


def options_page() -> str:
    """The text of docs/options.md."""
    lines = [
        "# Options",
        "",
        "Every option of `attfc train`, made from the schema by `make docs`. `attfc options WORD` shows the same in a terminal.",
        "An option is typed as `section.option=value`; in a YAML file it stands in its section. Short names are for the command line and Python.",
        "A word given for `head`, `margin`, `center`, `negatives` or `stored` sets its kind: `head=full_fc` means `head.kind=full_fc`. "
        "`center`, `negatives`, `stored` and `in_batch` are parts of `head.kind=attfc`. "
        "`key_encoder` exists where keys are embedded: `center.kind=key_attention`, `head.kind=dcq|dcp`.",
        "A default holds where neither a preset nor a file sets the option; `attfc train DATA` chooses some by itself.",
        "`a|b` in a condition means one of these values.",
        "",
    ]
    before = ""
    for section in sections():
        lines += [f"## {section or 'The run itself'}", ""]
        if section:
            lines += [section_title(section), ""]
        if section in EXPLAINED:
            lines += [f"Explained in: {EXPLAINED[section]}.", ""]
        for option in all_options():
            if option.section == section:
                if option.key != before:
                    lines += [f"### `{option.key}`", ""]
                before = option.key
                lines += [
                    f"Default `{as_typed(option.default)}`; takes: {option.takes}.",
                    "",
                    " ".join(option.rows()),
                    "",
                ]
                if option.key in EXPLAINED:
                    lines += [f"Explained in: {EXPLAINED[option.key]}.", ""]
    return "\n".join(lines[:-1]) + "\n"


def commands_page() -> str:
    """The text of docs/reference/commands.md."""
    root: Any = typer.main.get_command(app)
    lines = [
        "# Commands",
        "",
        "Every command of `attfc`, made from its help by `make docs`; `attfc COMMAND --help` prints the same.",
        "`--debug` anywhere shows the traceback of an error.",
        "Exit status: 0 done; 1 the input is at fault, said in one line; 2 a word that no command knows; 130 interrupted.",
        "",
    ]
    for use, names in USES.items():
        lines += [f"## {use}", ""]
        for name in names:
            lines += _command(root.commands[name], f"attfc {name}")
    return "\n".join(lines[:-1]) + "\n"


def _command(command: Any, typed: str) -> list[str]:
    """A heading, the help and the parameters of a command; for a group, those of its commands."""
    lines = [f"### `{typed}`", "", _text(command.help or ""), ""]
    if hasattr(command, "commands"):
        return lines + [line for name, each in command.commands.items() for line in _command(each, f"{typed} {name}")]
    with typer.Context(command, info_name=typed) as context:
        usage = " ".join(command.collect_usage_pieces(context))
        lines += ["```text", f"{typed} {usage}", "```", ""]
        for parameter in command.params:
            record = parameter.get_help_record(context)
            if record is not None:
                name, meaning = record
                lines.append(f"- **`{name}`**: {_text(meaning)}" if meaning else f"- **`{name}`**")
    return [*lines, ""]


def _text(help: str) -> str:
    """A help text as Markdown: one line per paragraph, signs that Markdown would take for its own left as they are."""
    return re.sub(r"(?<!`)([<>_*|\[\]])(?!`)", r"\\\1", re.sub(r" *\n *(?!\n)", " ", help.strip()))
