"""Pages from templates that lie beside the code: HTML with every value escaped, Markdown with the signs that it would read escaped by `|marked`.

jinja2 is imported by the first page. A name that a template uses and nobody gave is an error, not an empty text.
"""

import functools
from pathlib import Path
from typing import Any

__all__ = ["filled_in", "macros_of"]


def filled_in(template: Path, **values: Any) -> str:
    """Return the text of a template with its values.

    Args:
        template: the file; values are escaped as HTML unless it ends in .md.
        values: by the names that the template uses.
    """
    text: str = _environment(template.parent).get_template(template.name).render(values)
    return text


def macros_of(template: Path, **values: Any) -> Any:
    """Return the macros of a template, by their names, to be called for parts of a page; they see the values."""
    return _environment(template.parent).get_template(template.name).make_module(values)


@functools.cache
def _environment(folder: Path) -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=lambda name: not str(name).endswith(".md"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["marked"] = _marked
    return environment


def _marked(text: str) -> str:
    """Return text that Markdown shows as it stands, on one line."""
    return " ".join("".join(f"\\{sign}" if sign in "\\`*_<>|#[]$" else sign for sign in text).split())
