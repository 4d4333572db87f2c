"""A QEMU that answers late, by any amount, at any point of its work: no disk goes wrong."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pyxlsnap.disks.qcow2 import qemu, qmp
from pyxlsnap.disks.qcow2.strategy import Qcow2
from pyxlsnap.disks.task import DiskTask
from pyxlsnap.errors import DiskError, DomainNotFound, QmpError, Refused
from pyxlsnap.model import Disk, DiskRequest
from tests.unit.support.qemu import DOMID, SIZE, Qemu, content, qemu_img, tags, write
from tests.unit.support.slow_files import SlowFiles, build_slow_files

LIMIT_S = 0.3


@dataclass
class Case:
    """A QEMU over slow files, and the snapshots that are taken of its disks."""

    disks: list[Disk]
    slow: SlowFiles
    frozen: Path
    qemu: Qemu
    opened: list[Qcow2] = field(default_factory=list)
    #: the byte that each frozen file must begin with
    expected: dict[Path, int] = field(default_factory=dict)
    #: the state of the snapshot whose overlays QEMU has now
    overlays: dict[str, str] = field(default_factory=dict)
    #: what a strategy said that it waits for
    waited: list[str] = field(default_factory=list)
    #: done when a strategy waits, for example what ends the wait
    while_waiting: Callable[[], None] = lambda: None
    #: the domain is gone, and perhaps its QEMU, too
    gone: bool = False

    def external(self, name: str) -> Qcow2:
        requests = [(d, DiskRequest(d.vdev, str(self.path(d, name)), "qcow2")) for d in self.disks]
        task = DiskTask(name, waiting=self._waiting, gone=lambda: self.gone)
        return self._opened(Qcow2(requests, task))

    def internal(self, name: str) -> Qcow2:
        requests = [(d, DiskRequest(d.vdev)) for d in self.disks]
        return self._opened(Qcow2(requests, DiskTask(name, waiting=self._waiting)))

    def path(self, disk: Disk, name: str) -> Path:
        return self.frozen / f"{disk.vdev}.{name}"

    def _opened(self, strategy: Qcow2) -> Qcow2:
        self.opened.append(strategy)
        return strategy

    def _waiting(self, what: str) -> None:
        self.waited.append(what)
        self.while_waiting()

    def prepared(self, name: str) -> Qcow2:
        """A snapshot that is ready for its transaction."""
        strategy = self.external(name)
        strategy.check_create(DOMID)
        strategy.prepare()
        return strategy

    def write(self, pattern: int) -> None:
        """As the guest would: through QEMU, which has then something to flush."""
        for disk in self.disks:
            self.qemu.write(disk.vdev, pattern)

    def file_of(self, strategy: Qcow2, operation: str, file: str, index: int) -> str:
        """The file that QEMU works on when it does that for a disk."""
        disk = self.disks[index]
        if file == "overlay":
            return strategy.state()[f"{disk.vdev} overlay"]
        # It opens a file by the name that it was first told; that of an overlay leads nowhere now.
        told = self.overlays.get(f"{disk.vdev} overlay", disk.target)
        return told if operation == "open" else disk.target

    def undo(self, strategy: Qcow2, *, name: str, switched: int | None) -> None:
        """What follows on a settle.

        :param switched: what is frozen if QEMU has switched; ``None``: it has not.
        """
        if switched is None:
            strategy.undo_create()
            assert not any(self.path(d, name).exists() for d in self.disks)
        else:
            with pytest.raises(DiskError, match="stands on"):
                strategy.undo_create()
            self.expected |= {self.path(d, name): switched for d in self.disks}
        strategy.close()

    def assert_right(self) -> None:
        """The next snapshot, the guest's disks and all that is frozen are right."""
        self.write(7)
        following = self.prepared("next")
        following.create()
        following.finish_create()
        following.close()
        self.expected |= {self.path(d, "next"): 7 for d in self.disks}
        self.write(8)
        self.qemu.close()
        found = {p: content(Disk("x", str(p), "qcow2")) for p in self.frozen.glob("xvd?.*")}
        found = {p: byte for p, byte in found.items() if p.suffix != ".raw"}
        assert found == self.expected
        for disk in self.disks:
            assert content(disk) == 8
            assert backing(disk.target) == str(self.path(disk, "next"))
            qemu_img("check", "-q", disk.target)
        assert not list(self.frozen.parent.glob(".*"))


def backing(path: str) -> str:
    info = json.loads(qemu_img("info", "--output=json", path))
    return str(info.get("full-backing-filename", ""))


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_slow_files(tmp_path_factory.mktemp("slow"))


@contextmanager
def a_case(directory: Path, library: Path, count: int) -> Iterator[Case]:
    vdevs = ("xvda", "xvdb", "xvdc")[:count]
    disks = [Disk(v, str(directory / f"{v}.qcow2"), "qcow2") for v in vdevs]
    for disk in disks:
        qemu_img("create", "-q", "-f", "qcow2", disk.target, str(SIZE))
        write(disk, 1)
    (frozen := directory / "frozen").mkdir()
    slow = SlowFiles(library, directory / "stalled")
    machine = Qemu(directory, {d.vdev: d.target for d in disks}, slow.environment)
    case = Case(disks, slow, frozen, machine)
    try:
        yield case
    finally:
        slow.go_on()
        for strategy in case.opened:
            strategy.close()
        machine.close()


@pytest.fixture
def two(run_dir: Path, library: Path) -> Iterator[Case]:
    with a_case(run_dir, library, 2) as found:
        yield found


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What waits for seconds waits for a fraction of one."""
    monkeypatch.setattr(qemu, "_ASK_EVERY_S", 0.05)
    monkeypatch.setattr(qemu, "_CONNECT_S", 1.0)


@contextmanager
def limited() -> Iterator[None]:
    """QEMU has little time to answer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qmp.QmpConnection.execute, "__kwdefaults__", {"timeout_s": LIMIT_S})
        patch.setattr(qmp.QmpConnection.__init__, "__kwdefaults__", {"timeout_s": LIMIT_S})
        yield


def in_time(case: Case, strategy: Qcow2, name: str) -> Qcow2:
    """QEMU answers within the limit."""
    timer = threading.Timer(LIMIT_S, case.slow.go_on)
    timer.start()
    strategy.create()
    timer.join()
    strategy.finish_create()
    strategy.settle()  # as if a later step failed
    assert case.waited == []
    return strategy


def after_the_limit(case: Case, strategy: Qcow2, name: str) -> Qcow2:
    """QEMU answers when it is asked again, by the same process."""
    with limited(), pytest.raises(QmpError, match="did not answer transaction"):
        strategy.create()
    case.while_waiting = case.slow.go_on
    strategy.settle()
    strategy.settle()
    return strategy


def after_a_kill(case: Case, strategy: Qcow2, name: str) -> Qcow2:
    """The worker was killed; QEMU answers when a recovery asks."""
    with limited(), pytest.raises(QmpError, match="did not answer transaction"):
        strategy.create()
    strategy.close()
    heir = case.external(name)
    with limited(), pytest.raises(QmpError):
        heir.adopt_create(DOMID, began=0.0, state=strategy.state())
    case.while_waiting = case.slow.go_on
    heir.settle()
    return heir


#: in the order of QEMU's work: each disk's old file is flushed and its overlay opened; when that is
#: done for all disks, each old file is opened again, read-only
POINTS = [("sync", "disk"), ("open", "overlay"), COMMITTED := ("open", "disk")]
WHERE = [
    pytest.param(count, index, marks=[pytest.mark.soak] if (count, index) != (2, 1) else [])
    for count in (2, 3)
    for index in range(count)
]


@pytest.mark.parametrize(("count", "index"), WHERE, ids=lambda n: f"{n}")
@pytest.mark.parametrize(("operation", "file"), POINTS, ids=str)
def test_a_disk_that_stalls(
    run_dir: Path, library: Path, count: int, index: int, operation: str, file: str
) -> None:
    """The names of the overlays are gone by then: QEMU finds all of them, or undoes its work."""
    with a_case(run_dir, library, count) as case:
        for number, amount in enumerate((in_time, after_the_limit, after_a_kill), 1):
            name = f"s{number}"
            case.write(number)
            strategy = case.prepared(name)
            case.slow.stall(operation, case.file_of(strategy, operation, file, index))
            settled = amount(case, strategy, name)
            case.write(9)
            done = amount is in_time or (operation, file) == COMMITTED
            case.undo(settled, name=name, switched=number if done else None)
            if done:
                case.overlays = strategy.state()
        assert set(case.waited) == {"QEMU to answer"}
        case.assert_right()


@contextmanager
def stopped_at(case: Case, command: str) -> Iterator[None]:
    """QEMU stands still from a command on."""
    run = qmp.QmpConnection._run

    def running(connection: qmp.QmpConnection, coroutine: Any, said: str, limit_s: float) -> Any:
        if said == command:
            os.kill(case.qemu.pid, signal.SIGSTOP)
            limit_s = LIMIT_S
        return run(connection, coroutine, said, limit_s)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qmp.QmpConnection, "_run", running)
        try:
            yield
        finally:
            case.while_waiting = lambda: os.kill(case.qemu.pid, signal.SIGCONT)


class TestQemuThatStandsStill:
    @pytest.mark.parametrize("command", ["connect", "query-block", "query-named-block-nodes"])
    def test_in_the_checks(self, two: Case, command: str) -> None:
        strategy = two.external("s1")
        with stopped_at(two, command), pytest.raises(Refused, match="cannot talk to the guest"):
            strategy.check_create(DOMID)
        two.while_waiting()
        strategy.close()
        two.assert_right()

    @pytest.mark.parametrize("kind", ["external", "internal"])
    def test_in_the_transaction(self, two: Case, kind: str) -> None:
        """No overlay is there any more; an internal snapshot is taken late, and is undone."""
        strategy = two.external("s1") if kind == "external" else two.internal("s1")
        strategy.check_create(DOMID)
        strategy.prepare()
        with stopped_at(two, "transaction"), pytest.raises(QmpError, match="did not answer"):
            strategy.create()
        strategy.settle()
        assert set(two.waited) == {"QEMU to answer"}
        two.write(9)
        strategy.undo_create()
        strategy.close()
        two.assert_right()
        assert [tags(disk) for disk in two.disks] == [[], []]

    def test_and_then_ends(self, two: Case) -> None:
        """No guest has a disk then. The disks' names stay with the files that they had."""
        two.write(3)
        strategy = two.prepared("s1")
        two.slow.stall("open", two.disks[1].target)
        with limited(), pytest.raises(QmpError, match="did not answer transaction"):
            strategy.create()
        two.while_waiting = two.qemu.kill
        inodes = self.inodes(two)
        for _ in range(2):
            with pytest.raises(DiskError, match="the guest's QEMU has ended"):
                strategy.settle()
        assert self.inodes(two) == inodes
        assert [content(disk) for disk in two.disks] == [3, 3]
        strategy.undo_create()
        assert not list(two.frozen.parent.glob(".*"))
        assert not list(two.frozen.iterdir())

    def inodes(self, case: Case) -> list[int]:
        return [Path(disk.target).stat().st_ino for disk in case.disks]

    def test_while_its_domain_is_destroyed_and_started_again(
        self, two: Case, run_dir: Path
    ) -> None:
        """It never ends, and another QEMU has the disks: they are as before for that one."""
        inodes = self.inodes(two)
        strategy = two.prepared("s1")
        with stopped_at(two, "transaction"), pytest.raises(QmpError):
            strategy.create()
        two.while_waiting = lambda: setattr(two, "gone", True)
        with ExitStack() as other, limited():
            for disk in two.disks:
                other.enter_context(open(disk.target, "rb"))
            for _ in range(2):
                with pytest.raises(DomainNotFound):
                    strategy.settle()
            assert len(strategy.undo_create()) == 4
        os.kill(two.qemu.pid, signal.SIGCONT)
        assert self.inodes(two) == inodes
        assert not list(two.frozen.iterdir())
        assert not list(two.frozen.parent.glob(".*"))

    def test_that_answers_after_its_domain_was_destroyed(self, two: Case) -> None:
        """It has switched, but another QEMU has the disks."""
        inodes = self.inodes(two)
        strategy = two.prepared("s1")
        two.slow.stall("open", two.disks[1].target)
        with limited(), pytest.raises(QmpError, match="did not answer transaction"):
            strategy.create()

        def destroyed() -> None:
            two.slow.go_on()
            time.sleep(LIMIT_S)  # it may have answered when the domain is looked at
            two.gone = True

        two.while_waiting = destroyed
        with pytest.raises(DomainNotFound):
            strategy.settle()
        strategy.undo_create()
        assert self.inodes(two) == inodes
        assert not list(two.frozen.iterdir())

    def test_and_then_ends_with_its_domain(self, two: Case) -> None:
        """A recovery has no guest to resume: the disks are those that the domain had."""
        strategy = two.prepared("s1")
        with stopped_at(two, "transaction"), pytest.raises(QmpError):
            strategy.create()
        strategy.close()
        two.qemu.kill()
        inodes = [Path(disk.target).stat().st_ino for disk in two.disks]
        heir = two.external("s1")
        with pytest.raises(QmpError):
            heir.adopt_create(DOMID, began=0.0, state=strategy.state())
        assert len(heir.undo_create()) == 4
        assert [Path(disk.target).stat().st_ino for disk in two.disks] == inodes
        assert not list(two.frozen.iterdir())
        assert not list(two.frozen.parent.glob(".*"))
        two.qemu.close()
        two.qemu.start()
        two.assert_right()


def test_another_client_has_the_monitor(two: Case) -> None:
    """A recovery waits for it: what QEMU has open says nothing."""
    strategy = two.prepared("s1")
    strategy.create()
    heir = two.external("s1")
    with limited(), pytest.raises(QmpError):
        heir.adopt_create(DOMID, began=0.0, state=strategy.state())
    two.while_waiting = strategy.close
    heir.settle()
    assert two.waited
    heir.close()
    two.expected |= {two.path(d, "s1"): 1 for d in two.disks}
    two.assert_right()
