"""Sphinx: the reference documentation (from the docstrings) and the man pages.

``make docs`` builds both.
"""

from typing import Any

from sphinx.application import Sphinx

from pyxlsnap.version import VERSION

project = "pyxlsnap"
version = release = VERSION
copyright = "the authors of pyxlsnap; LGPL-2.1-only"  # noqa: A001

# The date of the man pages, that of the release (a unit test compares them). They are in the
# repository, and must not change every day before it.
today = "2026-11-25"

extensions = ["sphinx.ext.autodoc", "docs.directives"]
smartquotes = False
man_pages: list[tuple[str, str, str, list[str], int]] = [
    ("pyxlsnap.1", "pyxlsnap", "whole-domain snapshots of Xen guests", [], 1),
    ("pyxlsnap.cfg.5", "pyxlsnap.cfg", "the cfgfile of a pyxlsnap snapshot", [], 5),
]
man_make_section_directory = True

html_theme = "alabaster"
html_theme_options = {"description": "Whole-domain snapshots for Xen", "page_width": "1080px"}

# The public names, in the order of __all__; members in the order of the source.
autodoc_default_options = {"members": True, "member-order": "bysource"}
python_maximum_signature_line_length = 80

# A reference without a target is an error. The documentation of Python is not included here.
nitpicky = True
nitpick_ignore_regex = [
    ("py:class", r"(asyncio|collections|contextlib|enum|os|pathlib|typing)\..*"),
    ("py:class", r"pyxlsnap\.xen\.context\.Context"),  # only Toolstack.find makes a Domain
]


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-signature", _without_factories)


def _without_factories(*event: Any) -> tuple[str | None, str | None]:
    """Write the default of a dataclass as Python: ``<factory>`` says nothing to a reader."""
    signature, returns = event[-2:]
    return signature and signature.replace("<factory>", "{}"), returns
