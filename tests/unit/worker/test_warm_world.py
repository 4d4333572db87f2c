"""Many reverts through one warm process on a fake host, where something changes between two."""

import os
import select
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyxlsnap import Reverter
from pyxlsnap.errors import BadMemoryFile, Busy, ConfigError, PyxlsnapError, Refused, Risky
from pyxlsnap.guest import read_once
from pyxlsnap.journal import Journal
from pyxlsnap.linux import files
from pyxlsnap.linux.locks import DomainLock
from pyxlsnap.request import RevertRequest
from pyxlsnap.results import Reverted
from pyxlsnap.worker import modules, warm
from pyxlsnap.worker.channel import Channel
from pyxlsnap.worker.warm import Warm
from tests.unit.support.guest import config_of
from tests.unit.support.hosted import Hosted, load, save
from tests.unit.support.values import OTHER_UUID, UUID

pytestmark = pytest.mark.usefixtures("nothing_is_left")


@pytest.fixture
def hosted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hosted:
    """A host with a guest and a snapshot of the guest, which has gone on since."""
    host = Hosted(tmp_path, monkeypatch)
    host.world.guest(host.world.image("xvda"))
    done = host.run("snapshot-create", "vm1", "--name=snap")
    assert done.returncode == 0, done.stderr
    host.world.storage.content["xvda"] = "after"
    host.serve(monkeypatch)
    return host


@pytest.fixture
def reverter(hosted: Hosted) -> Iterator[Reverter]:
    with Reverter("vm1", snapshot(hosted).with_suffix(".cfg"), monitor=False) as found:
        yield found


def snapshot(host: Hosted) -> Path:
    return host.world.directory / UUID / "snap.save"


def revert(host: Hosted, reverter: Reverter) -> Reverted:
    save(host.world)
    try:
        return reverter.revert()
    finally:
        load(host.world)


def test_each_is_correct_in_memory_and_on_the_disks(hosted: Hosted, reverter: Reverter) -> None:
    domids = set()
    for n in range(5):
        hosted.world.storage.content["xvda"] = hosted.guest.memory = f"after {n}"
        domids.add(revert(hosted, reverter).domid)
        assert hosted.world.storage.content["xvda"] == "before"
        assert hosted.guest.runs
        assert hosted.guest.memory != f"after {n}"
        assert Journal(UUID).read() is None
    assert len(domids) == 5


def memory_file_damaged(host: Hosted) -> None:
    os.truncate(snapshot(host), snapshot(host).stat().st_size - 5)


def memory_file_replaced(host: Hosted) -> None:
    path = snapshot(host)
    found = path.stat()
    path.rename(path.with_suffix(".old"))
    path.write_bytes(bytes(found.st_size))
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))


def memory_file_gone(host: Hosted) -> None:
    snapshot(host).unlink()


def cfgfile_gone(host: Hosted) -> None:
    snapshot(host).with_suffix(".cfg").unlink()


def cfgfile_wrong(host: Hosted) -> None:
    snapshot(host).with_suffix(".cfg").write_text("name = ")


def name_taken(host: Hosted) -> None:
    host.guest.exists = False
    kernel = str(host.world.kernel)
    host.world.host.start(config_of(host.world.image("xvdz"), uuid=OTHER_UUID, kernel=kernel))


def disk_taken(host: Hosted) -> None:
    kernel = str(host.world.kernel)
    disks = host.guest.configuration.disks
    host.world.host.start(config_of(*disks, name="vm2", uuid=OTHER_UUID, kernel=kernel))


def disk_added(host: Hosted) -> None:
    disks = (*host.guest.configuration.disks, host.world.image("xvdy"))
    host.guest.configuration = config_of(*disks, kernel=str(host.world.kernel))


def kernel_gone(host: Hosted) -> None:
    host.world.kernel.unlink()


CHANGES: dict[Callable[[Hosted], None], type[PyxlsnapError]] = {
    memory_file_damaged: BadMemoryFile,
    memory_file_replaced: BadMemoryFile,
    memory_file_gone: BadMemoryFile,
    cfgfile_gone: ConfigError,
    cfgfile_wrong: ConfigError,
    name_taken: Risky,
    disk_added: Risky,
    disk_taken: Refused,
    kernel_gone: Refused,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_world_is_noticed(
    hosted: Hosted, reverter: Reverter, change: Callable[[Hosted], None]
) -> None:
    revert(hosted, reverter)
    hosted.world.storage.content["xvda"] = "after"
    change(hosted)
    with pytest.raises(CHANGES[change]):
        revert(hosted, reverter)
    assert hosted.world.storage.content["xvda"] == "after"
    assert all(guest.runs for guest in hosted.world.host.guests if guest.exists)


def test_a_world_that_is_as_before_again_is_noticed_too(hosted: Hosted, reverter: Reverter) -> None:
    path = snapshot(hosted)
    path.rename(path.with_suffix(".moved"))
    with pytest.raises(BadMemoryFile):
        revert(hosted, reverter)
    path.with_suffix(".moved").rename(path)
    assert revert(hosted, reverter).name == "snap"
    assert hosted.world.storage.content["xvda"] == "before"


@pytest.mark.parametrize(("kind", "is_asked"), [("hvm", True), ("pvh", False)])
def test_the_modules_that_talk_to_qemu_are_loaded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, is_asked: bool
) -> None:
    """By the warm process, and not by each of its copies; only for a guest that has a QEMU."""
    host = Hosted(tmp_path, monkeypatch)
    host.world.guest(kind=kind)
    assert host.run("snapshot-create", "vm1", "--name=snap").returncode == 0
    monkeypatch.setattr(files, "_SETTLED_S", -1.0)
    monkeypatch.setattr(read_once, "_kept", None)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        request = RevertRequest(domain="vm1", cfgfile=str(snapshot(host).with_suffix(".cfg")))
        process = Warm(Channel(theirs), request)
        loaded: list[bool] = []
        monkeypatch.setattr(modules, "load_qmp", lambda: loaded.append(True))
        process._keep_memory()
        assert loaded == [True] * is_asked
        monkeypatch.setattr(modules, "load_qmp", raise_import_error)
        process._keep_memory()  # the copies say so


@pytest.mark.parametrize("has_kept", [True, False])
def test_nothing_is_looked_at_again_while_a_domain_begins_to_run(
    monkeypatch: pytest.MonkeyPatch, has_kept: bool
) -> None:
    """A copy ends when its domain was unpaused: the domain has the use of the processors.

    What could not be read yet is read at once: the next copy needs it.
    """
    waits: list[float | None] = []
    real = select.select

    def asks(r: list[int], w: list[int], x: list[int], quiet_s: float | None) -> object:
        waits.append(quiet_s)
        return real(r, w, x, quiet_s and 0.01)

    monkeypatch.setattr(select, "select", asks)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = Warm(Channel(ours), RevertRequest(domain="vm1", cfgfile="/x"))
        process._has_kept = has_kept
        ended(process)
        assert not process._wait()
        assert waits[0] is None
        assert waits[1] is not None
        assert (waits[1] > 1.5) is has_kept
        assert not process._copies
        Channel(theirs).send({"connection": True})
        assert process._wait()


def test_a_call_meanwhile_does_not_put_that_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller may never rest for so long: the files are looked at while a copy is at work."""
    monkeypatch.setattr(warm, "_QUIET_S", 0.2)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = Warm(Channel(ours), RevertRequest(domain="vm1", cfgfile="/x"))
        process._has_kept = True
        ended(process)
        while process._copies:
            Channel(theirs).send({"stderr": True})
            assert process._wait()
            process._channel.receive()
        assert not process._wait()


def ended(process: Warm) -> None:
    """Give the process a copy that has ended."""
    if not (pid := os.fork()):
        os._exit(0)
    process._copies[os.pidfd_open(pid)] = pid


def test_what_a_recovery_needs_is_loaded_before_a_copy_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If there is a journal. Each of many copies at a time would load it else."""
    done: list[str] = []
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = Warm(Channel(theirs), RevertRequest(domain="vm1", cfgfile="/x"))

        def copied(journals: list[str]) -> list[str]:
            done.clear()
            monkeypatch.setattr(warm, "unfinished", lambda: journals)
            process._channel.fds += [os.dup(theirs.fileno()), os.dup(theirs.fileno())]
            process._copy()
            return done

        def fork(*_: int) -> int:
            done.append("fork")
            return os.getpid()

        monkeypatch.setattr(warm, "fork_worker", fork)
        monkeypatch.setattr(modules, "load_any_recovery", lambda: done.append("load"))
        assert copied([]) == ["fork"]
        assert copied(["j"]) == ["load", "fork"]
        monkeypatch.setattr(modules, "load_any_recovery", raise_import_error)
        assert copied(["j"]) == ["fork"]  # the copy says so
        for pidfd in process._copies:
            os.close(pidfd)


def raise_import_error() -> None:
    raise ImportError


def test_other_operations_come_between(hosted: Hosted, reverter: Reverter) -> None:
    revert(hosted, reverter)
    lock = DomainLock(UUID, domain="vm1")
    with pytest.raises(Busy):
        revert(hosted, reverter)
    lock.release()
    assert hosted.run("snapshot-create", "vm1", "--name=between").returncode == 0
    assert revert(hosted, reverter).name == "snap"
