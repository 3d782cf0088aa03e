"""Sphinx configuration (``make docs``)."""

from __future__ import annotations

import inspect
from typing import Any

from sphinx.application import Sphinx
from sphinx.util.inspect import stringify_signature

from torchrl_agentmixer import __version__

project = "torchrl_agentmixer"
author = "the torchrl_agentmixer developers"
release = version = __version__
html_title = f"torchrl_agentmixer {__version__}"
html_theme = "furo"
html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["custom.css"]
extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
add_module_names = False
source_suffix = {".md": "markdown"}
exclude_patterns = ["results/.*"]  # a report that `benchmarks/study.py` is writing
myst_enable_extensions = ["dollarmath", "deflist", "colon_fence"]
myst_heading_anchors = 3
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # types and shapes are in the docstrings
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False


def constructor_signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: Any
) -> tuple[str, Any] | None:
    """Show ``__init__``'s signature where a metaclass or ``__new__`` hides it behind ``*args``."""
    if what not in ("class", "exception") or signature != "(*args, **kwargs)":
        return None
    parameters = list(inspect.signature(obj.__init__).parameters.values())[1:]
    shown = inspect.Signature(parameters)
    return stringify_signature(shown, show_annotation=False), returns


def no_module_docstring(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Leave out the docstring of a module whose page has an introduction."""
    if what == "module" and name != "torchrl_agentmixer":
        lines.clear()


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", no_module_docstring)
    app.connect("autodoc-process-signature", constructor_signature)
