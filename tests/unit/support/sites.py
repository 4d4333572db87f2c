"""``sitecustomize``: Python imports it before a process of ours runs, to put scenarios in place."""

import sys
from pathlib import Path

import pytest

_SITE = """
import sys
if {module!r} in sys.orig_argv:
    from {site} import install
    install({here!r})
"""


def write_site(here: Path, *, module: str, site: str) -> Path:
    """A directory with a ``sitecustomize`` for processes of a module of ours.

    :param module: the module that such a process runs.
    :param site: the module whose ``install`` is called with ``here`` before that.
    """
    directory = here / "site"
    directory.mkdir()
    text = _SITE.format(module=module, site=site, here=str(here))
    (directory / "sitecustomize.py").write_text(text)
    return directory


def import_from(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let processes that are started from now on import from a directory first."""
    monkeypatch.syspath_prepend(directory)
    monkeypatch.setenv("PYTHONPATH", ":".join(p for p in sys.path if p))
