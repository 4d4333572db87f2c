"""What one example of a property has for itself."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.unit.support.world import World, make_world


@contextmanager
def new_world() -> Iterator[World]:
    """A world of its own, for one example of a property."""
    with TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        yield make_world(Path(directory) / "world", patch)
