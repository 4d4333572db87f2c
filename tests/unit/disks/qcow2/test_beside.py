"""Internal snapshots beside the memory, and external ones after it, with a real QEMU."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pyxlsnap.disks.qcow2.internal import Internal
from pyxlsnap.disks.qcow2.qemu import GuestQemu
from pyxlsnap.disks.qcow2.qmp import QmpConnection
from pyxlsnap.disks.qcow2.strategy import Qcow2
from pyxlsnap.disks.task import DiskTask
from pyxlsnap.errors import QmpError
from pyxlsnap.model import Disk, DiskRequest
from tests.unit.support.qemu import DOMID, Qemu, content, tags

Make = Callable[..., Qcow2]


@pytest.fixture
def make(qemu: Qemu, disks: list[Disk], tmp_path: Path) -> Iterator[Make]:
    """Makes strategies: the first disk has an internal snapshot, and the second, if so asked."""
    made: list[Qcow2] = []

    def one(*, external: bool = True, **more: Any) -> Qcow2:
        path = str(tmp_path / "frozen.qcow2") if external else ""
        first, second = disks
        requests = [
            (first, DiskRequest(first.vdev)),
            (second, DiskRequest(second.vdev, path, "qcow2" if path else "")),
        ]
        made.append(Qcow2(requests, DiskTask("snap", **more)))
        made[-1].check_create(DOMID)
        return made[-1]

    yield one
    for strategy in made:
        strategy.close()


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The commands that QEMU is given."""
    found: list[str] = []
    execute = QmpConnection.execute

    def noting(self: QmpConnection, command: str, *args: Any, **words: Any) -> Any:
        found.append(command)
        return execute(self, command, *args, **words)

    monkeypatch.setattr(QmpConnection, "execute", noting)
    return found


def test_internal_snapshots_are_taken_beside_and_not_again(
    make: Make, disks: list[Disk], told: list[str]
) -> None:
    strategy = make(external=False)
    strategy.prepare()
    assert list(strategy.beside()) == ["xvda", "xvdb"]
    told.clear()
    strategy.create_beside()
    assert told == ["query-status", "transaction"]
    strategy.create()
    assert told == ["query-status", "transaction"]
    assert [tags(disk) for disk in disks] == [["snap"], ["snap"]]


def test_qemu_writes_to_no_memory_that_is_read_already(make: Make, told: list[str]) -> None:
    """So nothing need be asked of it first."""
    strategy = make(external=False, memory_read=lambda: True)
    strategy.prepare()
    told.clear()
    strategy.create_beside()
    assert told == ["transaction"]


def test_an_external_snapshot_is_taken_last(make: Make, disks: list[Disk], qemu: Qemu) -> None:
    """It cannot be undone."""
    strategy = make()
    strategy.prepare()
    assert list(strategy.beside()) == ["xvda"]
    before = Path(disks[1].target).stat().st_ino
    strategy.create_beside()
    assert [tags(disk) for disk in disks] == [["snap"], []]
    assert Path(disks[1].target).stat().st_ino == before
    strategy.create()
    strategy.finish_create()
    assert Path(disks[1].target).stat().st_ino != before
    assert tags(disks[0]) == ["snap"]
    qemu.write("xvdb", 9)
    strategy.close()
    qemu.close()
    frozen = Path(disks[1].target).parent / "frozen.qcow2"
    assert content(Disk("x", str(frozen), "qcow2")) == 1
    assert content(disks[1]) == 9
    qemu.start()


def test_what_was_taken_beside_is_undone_if_the_memory_fails(
    make: Make, disks: list[Disk], tmp_path: Path
) -> None:
    strategy = make()
    files = set(tmp_path.iterdir())
    strategy.prepare()
    strategy.create_beside()
    strategy.settle()
    strategy.undo_create()
    assert [tags(disk) for disk in disks] == [[], []]
    assert set(tmp_path.iterdir()) == files


def test_what_was_taken_beside_is_undone_if_the_last_transaction_fails(
    make: Make, disks: list[Disk], tmp_path: Path
) -> None:
    strategy = make()
    strategy.prepare()
    strategy.create_beside()
    Path(strategy.state()["xvdb overlay"]).unlink()
    with pytest.raises(QmpError):
        strategy.create()
    strategy.settle()
    strategy.undo_create()
    assert [tags(disk) for disk in disks] == [[], []]
    assert not (tmp_path / "frozen.qcow2").exists()


def test_a_transaction_beside_that_qemu_refuses_leaves_nothing(
    make: Make, disks: list[Disk], qemu: Qemu
) -> None:
    """Somebody has taken the name since the check: that snapshot stays."""
    strategy = make(external=False)
    qemu.execute("blockdev-snapshot-internal-sync", {"device": "xvdb-qcow2", "name": "snap"})
    with pytest.raises(QmpError):
        strategy.create_beside()
    strategy.settle()
    assert strategy.undo_create() == []
    assert [tags(disk) for disk in disks] == [[], ["snap"]]


@pytest.mark.parametrize("did_it", [True, False])
def test_another_process_finishes_what_was_begun_beside(
    make: Make, disks: list[Disk], tmp_path: Path, did_it: bool
) -> None:
    """The worker was killed while the memory was written."""
    strategy = make()
    strategy.prepare()
    if did_it:
        strategy.create_beside()
    state = strategy.state()
    strategy.close()
    heir = Qcow2(
        [
            (disks[0], DiskRequest("xvda")),
            (disks[1], DiskRequest("xvdb", str(tmp_path / "frozen.qcow2"), "qcow2")),
        ],
        DiskTask("snap"),
    )
    heir.adopt_create(DOMID, began=0.0, state=state)
    heir.settle()
    heir.undo_create()
    heir.close()
    assert [tags(disk) for disk in disks] == [[], []]
    assert not (tmp_path / "frozen.qcow2").exists()


@pytest.mark.parametrize(
    ("hvm", "inactive", "version", "seconds", "beside"),
    [
        (False, False, (7, 2), 60.0, True),
        (True, False, (7, 2), 1.0, True),
        (True, False, (7, 2), 6.0, False),
        (True, True, (7, 2), 1.0, False),
        (True, True, (9, 2), 1.0, False),
        (True, True, (10, 0), 1.0, True),
        (True, True, (10, 0), 6.0, False),
    ],
)
def test_the_qemu_of_an_hvm_guest_must_answer_libxl_and_must_not_run(
    make: Make,
    monkeypatch: pytest.MonkeyPatch,
    hvm: bool,
    inactive: bool,
    version: tuple[int, int],
    seconds: float,
    beside: bool,
) -> None:
    """Before release 10, only `cont` makes its images writable after a live suspend."""
    monkeypatch.setattr(GuestQemu, "version", lambda _: version)
    monkeypatch.setattr(Internal, "expected_seconds", lambda _: seconds)
    strategy = make(device_model=hvm, inactive=inactive)
    assert list(strategy.beside()) == ["xvda"] * beside


def test_what_is_not_beside_is_taken_in_one_transaction(
    make: Make, disks: list[Disk], told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GuestQemu, "version", lambda _: (9, 2))
    strategy = make(device_model=True, inactive=True)
    assert list(strategy.beside()) == []
    strategy.prepare()
    told.clear()
    strategy.create()
    assert told == ["cont", "stop", "transaction"]
    assert tags(disks[0]) == ["snap"]
