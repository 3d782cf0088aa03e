"""Sphinx: ``make docs``."""

from torchrl_agentmixer import __version__

project = "torchrl_agentmixer"
author = "the torchrl_agentmixer developers"
release = version = __version__
html_title = f"torchrl_agentmixer {__version__}"
html_theme = "furo"
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
add_module_names = False
source_suffix = {".md": "markdown"}
myst_enable_extensions = ["dollarmath", "deflist", "colon_fence"]
myst_heading_anchors = 3
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # types and shapes are in the docstrings
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
