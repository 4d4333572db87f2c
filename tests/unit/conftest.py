"""Fixtures: the small world of fakes.py, in a directory of its own."""

import os
from pathlib import Path

import pytest

from tests.unit.fakes import CHOOSERS, PLACES, World
from tests.unit.standin import StandIn


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """An empty world; the package's directories and disk strategies are its own."""
    monkeypatch.setattr(os, "fsync", lambda _: None)  # no disk is waited for
    root = tmp_path / "world"
    root.mkdir()
    found = World(root)
    for module, name, place in PLACES:
        monkeypatch.setattr(module, name, root / place)
    for module in CHOOSERS:
        monkeypatch.setattr(module, "strategies", found.strategies)
    return found


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """Worker processes with stand-ins for what needs Xen."""
    return StandIn(tmp_path, monkeypatch)
