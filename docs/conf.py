"""How the site is built from these pages: Sphinx, MyST for Markdown, the PyData theme (`make site`; docs/decisions.md says why these).

Nothing is fetched: fonts, scripts and the index of the search are files of the folder, so it opens from file:// and anywhere else. A warning is an
error, a link that leads nowhere too.
"""

from importlib.metadata import version as installed

project = "attfc"
author = "The attfc authors"
copyright = "the attfc authors, Apache-2.0"
version = release = installed("attfc")
language = "en"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_static"]
nitpicky = True

myst_heading_anchors = 4  # the anchors that a forge gives the headings
myst_enable_extensions = ["deflist", "attrs_inline"]

default_role = "code"  # docstrings have names in single backticks
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False

html_theme = "pydata_sphinx_theme"
html_title = "attfc"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "search_as_you_type": True,
    "show_nav_level": 2,
    "secondary_sidebar_items": ["page-toc"],
    "footer_start": ["copyright"],
    "footer_end": [],
    "header_links_before_dropdown": 6,
}
