"""A QEMU or an xl that is stopped does not end with its domain: the revert is refused before."""

import os
import signal
import subprocess
from collections.abc import Iterator

import pytest

from pyxlsnap.errors import Refused
from pyxlsnap.linux import stopped
from pyxlsnap.linux.stopped import is_stopped
from pyxlsnap.monitor.xl import Xl
from pyxlsnap.revert import stopped as module
from pyxlsnap.revert.stopped import refuse_stopped
from tests.unit.support.guest import FakeGuest
from tests.unit.support.waiting import eventually
from tests.unit.support.world import World


@pytest.fixture
def pid() -> Iterator[int]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process.pid
        process.kill()


@pytest.fixture
def guest(world: World, pid: int) -> FakeGuest:
    found = world.guest()
    found.device_model = pid
    return found


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    assert eventually(lambda: stopped._state(pid) == b"T")


def test_a_qemu_that_is_stopped_is_refused(guest: FakeGuest, pid: int) -> None:
    refuse_stopped(guest, "vm1")
    refuse_stopped(None, "vm1")
    stop(pid)
    with pytest.raises(Refused, match=rf"^sleep \(pid {pid}\) of vm1 is stopped.*kill -CONT {pid}"):
        refuse_stopped(guest, "vm1")
    os.kill(pid, signal.SIGCONT)
    refuse_stopped(guest, "vm1")


def test_so_is_an_xl_that_watches_the_domain(
    guest: FakeGuest, pid: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int | None]] = []
    for has_log in (True, False):
        xl = Xl(pid, ("xl", "create"), has_log=has_log)

        def xl_process(name: str, domid: int | None, xl: Xl = xl) -> Xl:
            asked.append((name, domid))
            return xl

        monkeypatch.setattr(module, "xl_process", xl_process)
        refuse_stopped(None, "vm1")
        stop(pid)
        if has_log:
            with pytest.raises(Refused, match="is stopped"):
                refuse_stopped(None, "vm1")
        else:
            refuse_stopped(None, "vm1")  # it may watch another domain: the revert warns of it
        os.kill(pid, signal.SIGCONT)
    guest.device_model = None
    refuse_stopped(guest, "vm1")
    assert asked[-1] == ("vm1", guest.domid)


def test_one_that_is_traced_runs_between_its_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    """strace stops a process at each system call."""
    states = [b"t", b"t", b"t", b"S"]
    monkeypatch.setattr(stopped, "_state", lambda _: states.pop(0))
    assert not is_stopped(1)
    monkeypatch.setattr(stopped, "_MOMENT_S", 0.05)
    monkeypatch.setattr(stopped, "_state", lambda _: b"t")
    assert is_stopped(1)


def test_one_that_has_ended_is_not_stopped(pid: int) -> None:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    assert not is_stopped(process.pid)
    assert not is_stopped(pid)
