"""Help texts: the commands by what one wants to do, then lines to copy; and the options of each, described in the docstring of its function."""

import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any

from typer import Typer
from typer.core import TyperCommand, TyperGroup

__all__ = ["EXAMPLES", "USES", "Commands", "CommandsByUse"]

USES = {
    "Train": ("train", "presets", "options", "backbones", "plan"),
    "Judge a model": ("evaluate", "compare", "calibrate", "report"),
    "Use a model": ("embed", "verify", "gallery", "serve", "export"),
    "Prepare data": ("align", "data"),
    "Measure": ("bench", "study"),
}
EXAMPLES = (
    ("attfc train faces/", "a folder with a folder per person"),
    ("attfc train faces/ backbone=r50 epochs=5", "any option: attfc options"),
    ("attfc train --resume runs/faces-001", "continue after an interruption"),
    ("attfc evaluate runs/faces-001 held-out people/", "judge it on people it never saw"),
    ("attfc export runs/faces-001 face.onnx", "the model for other programs"),
)


class _Described(TyperCommand):
    """A command whose arguments and options are described under `Args:` of its docstring; a flag that is off has no form with `--no-`."""

    def __init__(self, name: str | None, *, params: list[Any], help: str | None = None, **options: Any) -> None:
        text, _, described = inspect.cleandoc(help or "").partition("\n\nArgs:\n")
        told = dict(re.findall(r"^    (\w+): (.+(?:\n {8}.+)*)", described, re.MULTILINE))
        for parameter in params:
            parameter.help = parameter.help or re.sub(r"\n +", " ", told.get(parameter.name, "")) or None
            if parameter.default is False:
                parameter.secondary_opts = []
        super().__init__(name, params=params, help=text, **options)


class WholeSentences(TyperGroup):
    """A group whose help has the whole first sentence of each command."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the list of commands."""
        self.write_commands(ctx, formatter, "Commands", self.list_commands(ctx))

    def write_commands(self, ctx: Any, formatter: Any, title: str, names: Iterable[str]) -> None:
        """Write those of these commands that are not hidden, under a title."""
        commands = [(name, self.get_command(ctx, name)) for name in names]
        rows = [(name, each.get_short_help_str(1000)) for name, each in commands if each and not each.hidden]
        if rows:
            with formatter.section(title):
                formatter.write_dl(rows)


class Commands(Typer):
    """Commands of which each takes the help of its options from its docstring."""

    def __init__(self, cls: type[TyperGroup] = WholeSentences, **options: Any) -> None:
        super().__init__(cls=cls, **options)

    def command(self, name: str | None = None, **options: Any) -> Callable[[Any], Any]:
        """Return the decorator that adds a command; see typer."""
        return super().command(name, cls=_Described, **options)


class CommandsByUse(WholeSentences):
    """A group whose help lists its commands by use; a command without a use comes last."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a list of commands for each use."""
        listed = {name for names in USES.values() for name in names}
        rest = tuple(name for name in self.list_commands(ctx) if name not in listed)
        for use, names in {**USES, "More": rest}.items():
            self.write_commands(ctx, formatter, use, names)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples, a line each."""
        with formatter.section("Examples"):
            for line, meaning in EXAMPLES:
                formatter.write(f"{'':{formatter.current_indent}}{line}\n")
                formatter.write(f"{'':{formatter.current_indent + 4}}{meaning}\n")
        formatter.write("\nHelp of a command: attfc COMMAND --help\n")
