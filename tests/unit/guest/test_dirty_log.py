"""QEMU records no more after a save that failed, and is never told what ends it."""

import logging
import os
from pathlib import Path

import pytest

from pyxlsnap import paths
from pyxlsnap.guest import dirty_log
from tests.unit.support.guest import FakeGuest
from tests.unit.support.qmp_server import COMMAND, recording
from tests.unit.support.world import World


@pytest.fixture
def guest(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeGuest:
    monkeypatch.setattr(paths, "QEMU_SOCKETS", tmp_path)
    found = world.guest()
    found.device_model = os.getpid()
    return found


@pytest.mark.parametrize("records", [False, True])
@pytest.mark.parametrize("version", [(4, 2), (6, 1), (7, 0), (7, 2), (10, 0)])
def test_it_is_off_afterwards(guest: FakeGuest, version: tuple[int, int], records: bool) -> None:
    with recording(guest.domid, version, records=records) as qemu:
        dirty_log.switch_off(guest)
    assert qemu.told
    assert not qemu.records
    assert not qemu.died


@pytest.mark.parametrize("records", [False, True])
def test_a_qemu_that_could_end_is_not_told(guest: FakeGuest, records: bool) -> None:
    with recording(guest.domid, (6, 2), records=records) as qemu:
        dirty_log.switch_off(guest)
    assert qemu.told == []


@pytest.mark.parametrize("there", [False, True])
def test_a_failure_is_logged(
    guest: FakeGuest, there: bool, caplog: pytest.LogCaptureFixture
) -> None:
    if there:
        with recording(guest.domid) as qemu:
            qemu.refuses = {COMMAND: "CommandNotFound"}
            dirty_log.switch_off(guest)
    else:
        dirty_log.switch_off(guest)
    (said,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert said.startswith("the QEMU of vm1 may go on recording")


def test_a_guest_without_qemu(guest: FakeGuest, caplog: pytest.LogCaptureFixture) -> None:
    guest.device_model = None
    dirty_log.switch_off(guest)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
