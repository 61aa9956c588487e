"""`attfc options`: what can be set, from the place where it is described; and what a shell may complete."""

import os
import textwrap
from typing import Annotated, Any

from typer import Argument, Context

from attfc.commands.common import out

__all__ = ["WORDS", "complete_word", "completions", "options", "written_as_flag"]


def options(word: Annotated[str | None, Argument(metavar="WORD")] = None) -> None:
    """List the options of a run: meaning, default, and when each has an effect.

    Args:
        word: section, key, or a word of the description; default: all options
    """
    from attfc.config.describe import all_options, find_options, option_rows, section_title

    shown = find_options(word) if word else all_options()
    out.print(
        "A default holds where neither a preset nor a file sets the option.\n"
        "attfc train DATA chooses some by itself: add --print-config to see yours.",
    )
    section = None
    for option in shown:
        if option.section != section:
            section = option.section
            title = f"{section}: {section_title(section)}" if section else section_title(section)
            out.print("\n" + textwrap.fill(title, 80))
        out.print("\n".join(option_rows(option)))


def complete_word(ctx: Context, incomplete: str) -> list[str]:
    """Presets and options that begin so, for the shell; folders it knows itself."""
    return completions(list(ctx.params.get("words") or ()), incomplete)


WORDS: Any = Argument(metavar="DATA | PRESET | KEY=VALUE", autocompletion=complete_word)
"""The argument that names data, or a preset, and options of a run."""


def completions(before: list[str], incomplete: str) -> list[str]:
    """Presets that begin so, and options with their defaults; of a single one, the values to choose from.

    bash takes ``=`` for the end of a word: it hands on ``head.kind``, ``=`` and what follows apart, and completes the last of them alone;
    of ``head.kind=`` itself only ``head.kind`` arrives.
    """
    from attfc.config import preset_names
    from attfc.config.describe import all_options
    from attfc.config.overrides import as_typed

    named = [(name, option) for option in all_options() for name in (option.short, option.key) if name]
    apart = before[-2] if len(before) > 1 and before[-1] == "=" else before[-1] if before and not incomplete else ""
    apart = apart if apart in dict(named) else ""
    key, equals, value = f"{apart}={incomplete}".partition("=") if apart else incomplete.partition("=")
    found = [(name, option) for name, option in named if name == key or (not equals and name.startswith(key))]
    if len({(name, option.takes) for name, option in found}) == 1:  # of one kind, or alike in several
        name, option = found[0]
        choices = ["true", "false"] if option.takes == "true or false" else option.takes.split(" | ")
        if len(choices) > 1:
            return [choice if apart else f"{name}={choice}" for choice in choices if choice.startswith(value)]
    shown = [("" if apart else f"{name}=") + as_typed(option.default) for name, option in found if not value]
    presets = [name for name in preset_names() if not equals and not apart and name.startswith(incomplete)]
    return list(dict.fromkeys(presets + shown))


def written_as_flag(words: list[str], flags: set[str]) -> str | None:
    """Return what to write where somebody typed an option of a run as ``--epochs 3`` or ``-epochs 3``; None: nobody did."""
    for number, word in enumerate(words):
        flag, _, value = word.partition("=")
        if not flag.startswith("-") or flag in flags:
            continue
        import difflib

        from attfc.config.messages import keys_like
        from attfc.config.short_names import SHORT_NAMES

        name = flag.lstrip("-").replace("-", "_")
        if len(name) < 2 or difflib.get_close_matches(flag, flags, cutoff=0.8):  # -h, --resum: the command's own hint
            continue
        near = [name] if name in SHORT_NAMES else keys_like(name, most=1)
        follows = words[number + 1] if number + 1 < len(words) else ""
        value = value or (follows if follows and not follows.startswith("-") and "=" not in follows else "VALUE")
        if os.path.exists(word):
            return f"{word} is there, but a word that begins with a dash is taken for an option: write ./{word}"
        write = f"write {near[0]}={value}" if near else "as KEY=VALUE; attfc options lists them"
        return f"there is no {flag}: options of a run are written without dashes{'; ' if near else ', '}{write}"
    return None
