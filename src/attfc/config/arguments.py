"""The words of `attfc train` and `attfc.train(...)`: which are data, a preset, a configuration file, overrides.

A word is, in this order: the name of a preset (`./demo` for a folder of that name); a path that ends in .yaml; data, if it starts with
`synthetic:` or is a path that exists; an override, if it holds `=`. At most one preset or file and one set of data, in any order.
"""

import os
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from attfc.config.layers import Asked, preset_names, read_preset
from attfc.config.short_names import SHORT_NAMES
from attfc.errors import UserError, nearest

__all__ = ["read_words", "short_overrides"]

SHORT_IN_PYTHON = (*SHORT_NAMES, "head", "batch_size", "seed", "device", "output", "name", "start_from")


def read_words(words: Iterable[str | os.PathLike[str]]) -> Asked:
    """Return what the words ask for; `automatic` where they name data, so that the rest is chosen.

    Raises:
        UserError: a word that is nothing of the above, two presets, two sets of data, no word at all.
    """
    preset: str | None = None
    data: str | None = None
    overrides: list[str] = []
    presets = preset_names()
    words = list(words)
    if "=" in words:
        raise UserError("options are written without spaces around the sign: epochs=3, not epochs = 3")
    for each in words:
        if not isinstance(each, str | os.PathLike):
            raise UserError(
                f"train() takes data as a path or synthetic:..., and options as texts such as 'epochs=5', not {type(each).__name__}"
            )
        word = os.fspath(each)
        if word in presets or (word.endswith((".yaml", ".yml")) and "=" not in word and not Path(word).is_dir()):
            if preset is not None:
                raise UserError(f"{preset} and {word} are two configurations: give one of them")
            preset = word
        elif word == "synthetic" or word.startswith("synthetic:") or _exists(word):
            if data is not None:
                raise UserError(
                    f"{data} and {word} are two sets of data: give one, or data.sources=[{{root: A}}, {{root: B}}]"
                )
            if os.path.isfile(os.path.join(word, "config.yaml")) and os.path.isfile(
                os.path.join(word, "environment.json")
            ):
                raise UserError(
                    f"{word} is a run and no data: to go on with it: attfc train --resume {shlex.quote(word)}; "
                    f"to start from its weights: attfc train FOLDER start_from={shlex.quote(word)}"
                )
            data = word
        elif "=" in word:
            overrides.append(word)
        else:
            raise UserError(_unknown(word, presets))
    asked = Asked(overrides=tuple(overrides)) if preset is None else read_preset(preset, overrides)
    named = {"data.root", "data.sources"} & Asked(overrides=tuple(overrides)).typed()
    if data is not None:
        if named:
            raise UserError(f"{data} and {min(named)}= both name the data: leave one of them out")
        asked = replace(asked, values={**asked.values, "data": {**_section(asked.values, "data"), "root": data}})
    elif preset is None and not named:
        raise UserError(
            "no data and no preset: write attfc train FOLDER (or a .rec, or a packed set); attfc presets lists the presets"
        )
    return replace(asked, automatic=data is not None or preset is None)


def short_overrides(short: Mapping[str, Any]) -> list[str]:
    """Return keyword arguments such as ``epochs=5`` as overrides.

    Raises:
        UserError: a name that is not one of the short ones.
    """
    for name in short:
        if name not in SHORT_IN_PYTHON:
            raise UserError(
                f"train() has no argument {name!r}{nearest(name, SHORT_IN_PYTHON)}; any other option is a text: "
                'attfc.train(data, "optimizer.weight_decay=1e-4")'
            )
    return [f"{name}={_text(value)}" for name, value in short.items()]


def _exists(word: str) -> bool:
    try:
        return os.path.exists(os.path.expanduser(word))
    except ValueError:  # a zero byte
        return False


def _section(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    section = values.get(name)
    return {key: value for key, value in section.items() if key != "sources"} if isinstance(section, dict) else {}


def _text(value: Any) -> str:
    folder = getattr(value, "folder", value)  # start_from=run
    if isinstance(folder, os.PathLike):
        return str(os.fspath(folder))
    if isinstance(value, str):
        return value
    try:  # numbers of numpy and torch are those of Python
        plain = value.item() if hasattr(value, "item") else value
        return str(yaml.safe_dump(plain, default_flow_style=True)).removesuffix("...\n").strip()
    except (yaml.YAMLError, ValueError, RuntimeError):  # torch.device("cpu"); an array of several numbers
        return str(value)


def _unknown(word: str, presets: list[str]) -> str:
    if word.startswith("-"):
        return f"unknown option {word}"
    if os.sep in word or Path(word).suffix:
        return f"{word}: no such file or folder (searched in {Path.cwd()}); to train on faces give the folder that holds one folder per person"
    import difflib

    close = difflib.get_close_matches(word, presets, n=3, cutoff=0.4)
    near = f"; presets near it: {', '.join(close)}" if close else ""
    return f"{word!r} is not a folder here, a preset or key=value{near}; to train on your faces: attfc train FOLDER"
