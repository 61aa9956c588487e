"""The options of a component, read from the source text of its constructor: importing a head imports torch, which takes seconds.

An argument is an option where its annotation holds an `Option`. Names in the annotation are looked up as Python would: in the module, in the
modules of attfc that it imports them from (as text too), in the standard library. What cannot be had without running a module, a class of ours
or of torch, is not part of an option. Cost: some 3 ms per module, once. Not taken: a second description of every head in the configuration.
"""

import ast
import builtins
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

from attfc.config.option import Option

__all__ = ["described_arguments"]

ROOT = Path(__file__).parents[1]
PLAIN = ("attfc.config.", "typing", "pathlib", "math", "collections")
"""Modules that are imported: they are light."""


@cache
def _module(name: str) -> ast.Module:
    path = ROOT.joinpath(*name.split(".")[1:])
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def _meaning(module: str, name: str) -> Any:
    """Return what a name of a module stands for.

    Raises:
        LookupError: it is nothing that can be had from text.
    """
    for node in _module(module).body:
        if isinstance(node, ast.Assign) and any(
            isinstance(each, ast.Name) and each.id == name for each in node.targets
        ):
            return _value(module, node.value)
        if isinstance(node, ast.ImportFrom):
            found = next((each.name for each in node.names if (each.asname or each.name) == name), None)
            if found is not None and node.module is not None:
                if node.module.startswith(PLAIN):
                    return getattr(import_module(node.module), found)
                if node.module.startswith("attfc."):
                    return _meaning(node.module, found)
    if hasattr(builtins, name):
        return getattr(builtins, name)
    raise LookupError(name)


def _value(module: str, node: ast.expr) -> Any:
    """Return the value of an expression made of constants, names and calls of `Option`."""
    names = {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
    scope = {name: _meaning(module, name) for name in names}
    return eval(compile(ast.Expression(node), module, "eval"), {"__builtins__": {}}, scope)


@cache
def described_arguments(home: str) -> dict[str, tuple[Any, Any]]:
    """Return annotation and default of each option of a class, such as "attfc.heads.dcp:DCP", in their order.

    >>> described_arguments("attfc.losses.margins:CosFace")["margin"][1]
    0.4
    """
    module, _, name = home.partition(":")
    node = next(each for each in _module(module).body if isinstance(each, ast.ClassDef) and each.name == name)
    init = next((each for each in node.body if isinstance(each, ast.FunctionDef) and each.name == "__init__"), None)
    assert init, f"{home} has no __init__ of its own: its signature is where a configuration finds the options"
    arguments = [*init.args.posonlyargs, *init.args.args]
    last = zip(reversed(arguments), reversed(init.args.defaults), strict=False)
    defaults = [*last, *zip(init.args.kwonlyargs, init.args.kw_defaults, strict=True)]
    values = {argument.arg: value for argument, value in defaults if value}
    options: dict[str, tuple[Any, Any]] = {}
    for argument in (*arguments, *init.args.kwonlyargs):
        if argument.annotation is None or argument.arg not in values:
            continue
        try:
            annotation = _value(module, argument.annotation)
        except LookupError:
            continue
        if get_origin(annotation) is Annotated and any(isinstance(each, Option) for each in get_args(annotation)):
            options[argument.arg] = (annotation, _value(module, values[argument.arg]))
    return options
