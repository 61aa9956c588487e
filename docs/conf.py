"""How the site is built from these pages: Sphinx, MyST for Markdown, the PyData theme (`make site`; docs/decisions.md says why these).

Nothing is fetched: fonts, scripts and the index of the search are files of the folder, so it opens from file:// and anywhere else. A warning is an
error, a link that leads nowhere too. The search finds sections, not pages: `write_sections` lists
them, docs/_static/search.js looks through the list.
"""

import json
from importlib.metadata import version as installed
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx

project = "attfc"
author = "The attfc authors"
copyright = "the attfc authors, Apache-2.0"
version = release = installed("attfc")
language = "en"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_static"]

myst_heading_anchors = 4  # the anchors that a forge gives the headings
myst_enable_extensions = ["deflist"]

default_role = "code"  # docstrings have names in single backticks
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = "pydata_sphinx_theme"
html_title = "attfc"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_js_files = [("sections.js", {"defer": ""}), ("search.js", {"defer": ""})]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "search_as_you_type": True,
    "search_bar_text": "Search these pages",
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "header_links_before_dropdown": 6,
}
html_sidebars = {"index": []}

PARTS = (nodes.section, addnodes.desc)


def own_text(node: nodes.Node) -> str:
    """The words of a part without those of the parts inside it."""
    if isinstance(node, nodes.Text):
        return node.astext()
    if isinstance(node, (nodes.comment, nodes.title, *PARTS)):
        return ""
    return " ".join(own_text(child) for child in node.children)


def write_sections(app: Sphinx, error: Exception | None) -> None:
    """List page, anchor, title and words of every section and every name of the API, for the search."""
    if error is not None or app.builder.name != "html":
        return
    found = []
    for page in sorted(app.env.found_docs):
        tree = app.env.get_doctree(page)
        name = app.env.titles[page].astext()
        for part in tree.findall(nodes.section):
            title = next(iter(part.findall(nodes.title))).astext()
            words = " ".join(own_text(child) for child in part.children)
            found.append([page, part["ids"][0] if title != name else "", name, title, " ".join(words.split())])
        for part in tree.findall(addnodes.desc):
            signature = part[0]
            words = " ".join(own_text(child) for child in part.children)
            if signature.get("ids"):
                found.append([page, signature["ids"][0], name, signature["fullname"], " ".join(words.split())])
    text = json.dumps(found, ensure_ascii=False, separators=(",", ":"))
    (Path(app.outdir) / "_static" / "sections.js").write_text(f"const SECTIONS = {text};\n", encoding="utf-8")


def setup(app: Sphinx) -> None:
    """Write the list for the search once the pages are there."""
    app.connect("build-finished", write_sections)
