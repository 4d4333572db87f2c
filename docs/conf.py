"""Sphinx: the reference documentation, from the docstrings, and the man pages.

``make docs`` builds both.
"""

from typing import Any

from sphinx.application import Sphinx

from pyxlsnap.version import VERSION

project = "pyxlsnap"
version = release = VERSION
copyright = "the authors of pyxlsnap; LGPL-2.1-only"  # noqa: A001

# Of the man pages, to be changed with a release: they are kept, and must not be new every day.
today = "2026-11-25"

extensions = ["sphinx.ext.autodoc", "docs.directives"]
smartquotes = False
man_pages: list[tuple[str, str, str, list[str], int]] = [
    ("pyxlsnap.1", "pyxlsnap", "whole-domain snapshots of Xen guests", [], 1),
    ("pyxlsnap.cfg.5", "pyxlsnap.cfg", "what a snapshot of pyxlsnap(1) is made of", [], 5),
]
man_make_section_directory = True

html_theme = "alabaster"
html_theme_options = {"description": "Whole-domain snapshots for Xen", "page_width": "1080px"}

# What is public, in the order of __all__ and of the source.
autodoc_default_options = {"members": True, "member-order": "bysource"}
python_maximum_signature_line_length = 80

# A reference that leads nowhere is an error; the documentation of Python is not here.
nitpicky = True
nitpick_ignore_regex = [
    ("py:class", r"(asyncio|collections|contextlib|enum|os|pathlib|typing)\..*"),
    ("py:class", r"pyxlsnap\.xen\.context\.Context"),  # only Toolstack.find makes a Domain
]


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-signature", _without_factories)


def _without_factories(*event: Any) -> tuple[str | None, str | None]:
    """Write a dataclass's default as Python, or it cannot be read."""
    signature, returns = event[-2:]
    return signature and signature.replace("<factory>", "{}"), returns
