"""The file of a clone's serial line: there with the clone, and gone with it; no other file is."""

import errno
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from pyxlsnap.clone import line_files, operation, undeletable
from pyxlsnap.clone.delete import delete_clone
from pyxlsnap.clone.sequence import Cloning
from pyxlsnap.errors import OperationFailed, Refused, XenError
from pyxlsnap.request import Callbacks, CloneConfigurationRequest, DeleteCloneRequest
from tests.unit.support import operations
from tests.unit.support.clones import CLONE, CLONE_UUID, Origin, clone_steps
from tests.unit.support.faults import FailsAtStep, run_until
from tests.unit.support.world import World

STEPS = clone_steps(replaces=False)
REPLACED = clone_steps(replaces=True)


class Faulty(FailsAtStep, Cloning):
    """A clone that fails at one of its steps."""


@pytest.fixture(params=[True, False], ids=["attributes", "no attributes"])
def file(world: World, request: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the clone."""
    if not request.param:

        def none(path: str, *_: Any, **__: Any) -> bytes:
            raise OSError(errno.ENOTSUP, "Operation not supported", path)

        monkeypatch.setattr(os, "getxattr", none)
        monkeypatch.setattr(line_files, "set_attribute", lambda *_: None)
    return world.root / f"log, 1.{CLONE}"


@pytest.fixture
def origin(world: World, file: Path) -> Origin:
    return Origin(world, emulated={"serial": f"file:{file.with_suffix('')}"})


def delete(origin: Origin) -> tuple[str, ...]:
    request = DeleteCloneRequest(domain=CLONE)
    return delete_clone(origin.world.host, request, Callbacks()).lines


def written(file: Path) -> None:
    """What QEMU does with a file that is there."""
    with file.open("r+b") as found:
        found.truncate()
        found.write(b"login:")


def test_a_clone_is_made_again_after_its_delete(origin: Origin, file: Path) -> None:
    for _ in range(2):
        made = origin.clone()
        assert [a.where for a in made.artefacts if a.kind == "serial line"] == [str(file)]
        written(file)
        assert f"removed {file}" in delete(origin)
        origin.assert_as_before()


@pytest.mark.parametrize("step", STEPS)
def test_a_clone_that_fails_leaves_no_file(origin: Origin, step: str) -> None:
    cloning = Faulty(origin.world.host, origin.plan())
    cloning.at, cloning.when, cloning.fault = step, "before", lambda: run_into(step)
    with pytest.raises(OperationFailed):
        cloning.run()
    origin.assert_as_before()


def run_into(step: str) -> None:
    raise RuntimeError(step)


@pytest.mark.parametrize("step", STEPS[: STEPS.index("restore")])
def test_a_clone_that_is_killed_leaves_no_file(origin: Origin, step: str) -> None:
    run_until(Cloning(origin.world.host, origin.plan()).steps(), step)
    operations.recover(origin.world.host, CLONE_UUID, start_monitor=lambda _: None)
    origin.assert_as_before()


def test_a_clone_that_replaces_another_takes_the_file_over(origin: Origin, file: Path) -> None:
    origin.clone()
    for _ in range(2):
        written(file)
        origin.clone(replace=True)
        assert file.exists()
    file.unlink()
    origin.clone(replace=True)
    assert file.exists()
    delete(origin)
    origin.assert_as_before()


@pytest.mark.parametrize("step", REPLACED[: REPLACED.index("destroy")])
def test_the_file_of_a_clone_that_stays_is_kept(origin: Origin, file: Path, step: str) -> None:
    origin.clone()
    written(file)
    run_until(Cloning(origin.world.host, origin.plan(replace=True)).steps(), step)
    operations.recover(origin.world.host, None, start_monitor=lambda _: None)
    assert file.read_bytes() == b"login:"
    delete(origin)
    origin.assert_as_before()


def edited(origin: Origin, path: Path) -> str:
    """The configuration of the clone with another file for its serial line."""
    wanted = CloneConfigurationRequest(clone=origin.request(replace=True))
    found = operation.configuration(origin.world.host, wanted, Callbacks()).json
    values = json.loads(found)
    values["b_info"]["type.hvm"]["serial"] = f"file:{path}"
    return json.dumps(values)


def refuse_replace(origin: Origin, mine: Path, **words: Any) -> None:
    """QEMU would empty the file; the clone before goes on."""
    with pytest.raises(Refused, match="QEMU would replace its content"):
        origin.clone(replace=True, **words)
    assert mine.read_text() == "mine"
    assert origin.find()


def test_a_clone_that_is_replaced_gives_no_right_to_another_file(
    origin: Origin, file: Path
) -> None:
    origin.clone()
    mine = file.with_suffix(".mine")
    mine.write_text("mine")
    refuse_replace(origin, mine, edited=edited(origin, mine))
    mine.unlink()
    made = origin.clone(replace=True, edited=edited(origin, mine))
    assert str(mine) in [a.where for a in made.artefacts if a.kind == "serial line"]
    other = file.with_suffix(".other")  # with another inode
    other.write_text("mine")
    other.replace(file)  # the clone has that file no more
    refuse_replace(origin, file)
    assert f"removed {mine}" in delete(origin)
    assert file.read_text() == "mine"


def test_a_replaced_clone_whose_file_another_program_has_changed(
    origin: Origin, file: Path
) -> None:
    """It rotates logs, for one."""
    origin.clone()
    file.rename(file.with_suffix(".1"))
    file.write_text("mine")
    refuse_replace(origin, file)


@pytest.mark.parametrize("is_off", [False, True])
def test_a_socket_of_the_clone_that_is_replaced(world: World, is_off: bool) -> None:
    path = world.root / "line"
    origin = Origin(world, emulated={"serial": f"unix:{path},server,nowait"})
    origin.clone()
    own = Path(f"{path}.{CLONE}")
    with socket.socket(socket.AF_UNIX) as of_qemu:
        of_qemu.bind(str(own))
        of_qemu.listen()
        if not is_off:
            origin.clone(replace=True)
            return
        found = origin.find()
        assert found
        found.exists = False
        with pytest.raises(Refused, match="QEMU would replace its content"):  # another program
            origin.clone(replace=True)


def test_a_clone_whose_qemu_has_crashed_is_replaced(world: World) -> None:
    """Its configuration cannot be read then, and nobody listens on its socket."""
    path = world.root / "line"
    origin = Origin(world, emulated={"serial": f"unix:{path},server,nowait"})
    origin.clone()
    with socket.socket(socket.AF_UNIX) as of_qemu:
        of_qemu.bind(f"{path}.{CLONE}")
    world.fail("config", XenError("no QEMU", rc=-3, operation="retrieve"))
    origin.clone(replace=True)


def test_another_file_of_that_name_is_not_deleted(origin: Origin, file: Path) -> None:
    origin.clone()
    kept = file.with_suffix(".kept")
    file.rename(kept)
    file.write_text("mine")
    assert any(line.startswith(f"left {file}") for line in delete(origin))
    assert file.read_text() == "mine"


def test_a_file_that_was_there_first_is_not_deleted(origin: Origin, file: Path) -> None:
    cloning = Cloning(origin.world.host, origin.plan())
    run_until(cloning.steps(), "journal")
    file.write_text("")
    operations.recover(origin.world.host, CLONE_UUID, start_monitor=lambda _: None)
    assert file.exists()


@pytest.mark.parametrize("replace", [False, True])
def test_a_file_that_cannot_be_deleted_is_found_before_the_destroy(
    origin: Origin, file: Path, replace: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin.clone()

    def protected(path: Path, *, write: bool = True) -> str | None:
        return "is immutable" if path == file and not write else None

    monkeypatch.setattr(undeletable, "unchangeable", protected)
    with pytest.raises(Refused, match=r"cannot be deleted: .*log, 1\.vm1-a is immutable"):
        origin.clone(replace=True) if replace else delete(origin)
    assert file.exists()
