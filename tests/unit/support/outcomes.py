"""The allowed outcomes of any attempt: a whole snapshot, or an error of one clear line."""

from pathlib import Path

from pyxlsnap.cfgfile import read
from pyxlsnap.errors import PyxlsnapError
from pyxlsnap.model import SnapshotConfig
from pyxlsnap.results import Snapshot
from pyxlsnap.text import one_line
from tests.unit.support import operations
from tests.unit.support.guest import FakeGuest
from tests.unit.support.trees import tree
from tests.unit.support.world import World


def check_clear(error: PyxlsnapError) -> None:
    """It is of a class that says something, and one line."""
    assert type(error) is not PyxlsnapError
    assert str(error) == one_line(str(error)) != ""
    assert error.exit_code in (1, 2, 3, 4, 5)


def check_refused(error: PyxlsnapError) -> None:
    """Before anything was tried: it could be known."""
    assert error.exit_code in (2, 3), str(error)


def create_and_revert(world: World, guest: FakeGuest, wanted: SnapshotConfig) -> Snapshot | None:
    """A snapshot that holds what was asked for; ``None`` if it was refused, and nothing changed."""
    before = tree(world.root)
    try:
        snapshot = operations.create(world.host, guest.uuid, wanted)
    except PyxlsnapError as error:
        check_clear(error)
        check_refused(error)
        assert tree(world.root) == before
        assert guest.runs
        return None
    said = read(snapshot.cfgfile)
    assert said.description == (wanted.description or None)
    assert said.memory_path == snapshot.memory_path
    assert wanted.disks is None or said.disks == wanted.disks
    reverted = operations.revert(world.host, guest.uuid, said, Path(snapshot.cfgfile))
    assert (reverted.name, reverted.domain) == (snapshot.name, guest.name)
    assert before.items() <= tree(world.root).items()
    return snapshot
