"""`attfc --help`: the commands by what one wants to do, each with its whole sentence, then lines to copy."""

from typing import Any

from typer.core import TyperGroup

__all__ = ["EXAMPLES", "USES", "CommandsByUse"]

USES = {
    "Train": ("train", "presets", "options", "backbones", "plan"),
    "Judge a model": ("evaluate", "compare", "report"),
    "Use a model": ("embed", "verify", "export"),
    "Prepare data": ("data",),
    "Measure": ("bench", "study"),
}
EXAMPLES = (
    ("attfc train faces/", "a folder with a folder per person"),
    ("attfc train faces/ backbone=r50 epochs=5", "any option: attfc options"),
    ("attfc train --resume runs/faces-001", "go on after an interruption"),
    ("attfc evaluate runs/faces-001 held-out people/", "on people it never saw"),
    ("attfc export runs/faces-001 face.onnx", "the model for other programs"),
)


class CommandsByUse(TyperGroup):
    """A group whose help lists its commands by use; a command without a use comes last."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a list of commands for each use."""
        listed = {name for names in USES.values() for name in names}
        rest = tuple(name for name in self.list_commands(ctx) if name not in listed)
        for use, names in {**USES, "More": rest}.items():
            commands = [(name, self.get_command(ctx, name)) for name in names]
            rows = [
                (name, command.get_short_help_str(1000)) for name, command in commands if command and not command.hidden
            ]
            if rows:
                with formatter.section(use):
                    formatter.write_dl(rows)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples, a line each."""
        with formatter.section("Examples"):
            for line, meaning in EXAMPLES:
                formatter.write(f"{'':{formatter.current_indent}}{line}\n")
                formatter.write(f"{'':{formatter.current_indent + 4}}{meaning}\n")
        formatter.write("\nHelp of a command: attfc COMMAND --help\n")
