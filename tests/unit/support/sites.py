"""``sitecustomize``: Python imports it before a process of ours runs, to put scenarios in place."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

_SITE = """
import sys

class Before:
    def find_spec(self, name, path, target=None):
        if name == {before!r}:
            sys.meta_path.remove(self)
            from {site} import install
            install({here!r})
        return None

sys.meta_path.insert(0, Before())
"""


def write_site(here: Path, *, before: str, site: str) -> Path:
    """A directory with a ``sitecustomize`` for processes that load a module of ours.

    :param before: the module.
    :param site: the module whose ``install`` is called with ``here`` before that.
    """
    directory = here / "site"
    directory.mkdir()
    text = _SITE.format(before=before, site=site, here=str(here))
    (directory / "sitecustomize.py").write_text(text)
    return directory


def import_from(directory: Path, monkeypatch: "pytest.MonkeyPatch") -> None:
    """Let processes that are started from now on import from a directory first."""
    monkeypatch.syspath_prepend(directory)
    monkeypatch.setenv("PYTHONPATH", ":".join(p for p in sys.path if p))
