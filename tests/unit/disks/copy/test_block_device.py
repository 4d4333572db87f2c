"""Block devices that know no snapshots: a loop device over a file stands for them."""

import os
import stat
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from pyxlsnap.disks import in_use
from pyxlsnap.disks.copy import block_device
from pyxlsnap.disks.copy import content as copying
from pyxlsnap.disks.copy.block_device import BlockCopy
from pyxlsnap.disks.protocol import DiskStrategy
from pyxlsnap.disks.task import DiskTask
from pyxlsnap.errors import AlreadyExists, DiskError, PyxlsnapError, Refused
from pyxlsnap.model import Disk, DiskRequest
from tests.unit.support.loop_files import looped, opened, run
from tests.unit.support.system_calls import Fault, Killed, full_disk
from tests.unit.support.waiting import open_descriptors

SIZE = (9 << 20) + 3 * 512  # no multiple of what is copied at a time
BLOCK = 64 << 10
TASK = DiskTask("snap")


def content(seed: int) -> bytes:
    """Mostly zeros, with something at the beginning, in the middle and at the very end."""
    data = bytearray(SIZE)
    for offset in (0, 5 << 20, SIZE - 100):
        data[offset : offset + 100] = bytes([seed]) * 100
    return bytes(data)


OLD, NEW = content(1), content(2)


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Path]:
    backing = tmp_path / "backing"
    backing.write_bytes(OLD)
    with looped(backing) as found:
        yield found


@pytest.fixture
def disk(device: Path, tmp_path: Path) -> Disk:
    """By a link, as those in /dev/mapper and /dev/disk are."""
    (tmp_path / "by-name").symlink_to(device)
    return Disk("xvda", str(tmp_path / "by-name"), "raw", "phy")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "snap.raw"


def made(disk: Disk, path: Path | str, task: DiskTask = TASK) -> BlockCopy:
    return BlockCopy([(disk, DiskRequest(disk.vdev, str(path), "raw" if path else ""))], task)


def take(strategy: BlockCopy) -> None:
    strategy.check_create(7)
    strategy.prepare()
    strategy.create()
    strategy.settle()
    strategy.finish_create()
    strategy.close()


def write(device: Path, data: bytes) -> None:
    with device.open("r+b") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sectors_written(device: Path) -> int:
    return int(Path("/sys/block", device.name, "stat").read_text().split()[6])


# create


def test_a_snapshot_is_the_device_as_it_was(device: Path, disk: Disk, path: Path) -> None:
    before = open_descriptors()
    strategy: DiskStrategy = made(disk, path)
    assert (strategy.kind, strategy.vdevs) == ("block device", ("xvda",))
    take(made(disk, path))
    write(device, NEW)
    assert path.read_bytes() == OLD
    assert path.stat().st_blocks * 512 <= 3 * BLOCK
    assert stat.S_IMODE(path.stat().st_mode) == 0o400
    assert open_descriptors() == before


def test_what_was_written_past_the_cache_is_in_it(
    device: Path, disk: Disk, path: Path, tmp_path: Path
) -> None:
    with device.open("rb") as cached:
        cached.read()
        with (tmp_path / "backing").open("r+b") as file:  # as blkback does it
            file.write(NEW)
        cached.seek(0)
        assert cached.read() == OLD
        take(made(disk, path))
    assert path.read_bytes() == NEW


def test_the_time_that_it_takes_is_announced(disk: Disk, path: Path) -> None:
    strategy = made(disk, path)
    strategy.check_create(7)
    assert strategy.expected_seconds() == SIZE / copying.BYTES_PER_S
    [artefact] = strategy.artefacts("guest")
    assert (artefact.where, artefact.delete) == (f"{path} (xvda; copy)", f"rm {path}")


@pytest.mark.parametrize(("named", "asked"), [(False, True), (False, False), (True, False)])
def test_only_a_path_that_was_asked_for_will_do(
    disk: Disk, path: Path, named: bool, asked: bool
) -> None:
    strategy = made(disk, path if named else "", DiskTask("snap", asked=asked))
    with pytest.raises(Refused, match=r"^xvda: .*'/path,raw,xvda'.*LVM"):
        strategy.check_create(7)


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        (DiskRequest("xvda", "/d/snap", "qcow2"), "is raw, not qcow2"),
        (DiskRequest("xvda", "snap", "raw"), "must be absolute"),
        (DiskRequest("xvda", "/d/a.pre-revert", "raw"), "a revert keeps a disk"),
    ],
)
def test_a_request_that_makes_no_sense_is_refused(request_: DiskRequest, says: str) -> None:
    strategy = BlockCopy([(Disk("xvda", "/dev/none", "raw", "phy"), request_)], TASK)
    with pytest.raises(Refused, match=says):
        strategy.check_create(7)
    with pytest.raises(Refused, match=says):
        strategy.check_revert()


@pytest.mark.parametrize("what", ["file", "link", "directory", "fifo", "nothing"])
def test_what_is_no_block_device_is_refused(tmp_path: Path, path: Path, what: str) -> None:
    wrong = tmp_path / "wrong"
    if what == "file":
        wrong.write_bytes(OLD)
    elif what == "link":
        wrong.symlink_to("nowhere")
    elif what == "directory":
        wrong.mkdir()
    elif what == "fifo":
        os.mkfifo(wrong)
    with pytest.raises(Refused, match=rf"^xvda: {tmp_path}/(wrong|nowhere): "):
        made(Disk("xvda", str(wrong), "raw", "phy"), path).check_create(7)


def test_what_has_the_name_stays(disk: Disk, path: Path) -> None:
    path.symlink_to("nowhere")
    with pytest.raises(AlreadyExists):
        made(disk, path).check_create(7)
    strategy = made(disk, path)
    with pytest.raises(AlreadyExists):
        strategy.prepare()
    assert strategy.undo_create() == []
    assert path.is_symlink()


def test_a_filesystem_without_room_is_refused(
    disk: Disk, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        f_bavail, f_frsize = (SIZE - 1) // 512, 512

    monkeypatch.setattr(os, "statvfs", lambda _: Full)
    with pytest.raises(Refused, match=r"^xvda: .* has 9 MiB left .* takes up to 10 MiB"):
        made(disk, path).check_create(7)


@pytest.mark.parametrize("killed", [True, False])
def test_create_can_be_undone_wherever_it_was_cut_off(
    disk: Disk, path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    fault = Fault(monkeypatch, Killed if killed else full_disk)
    for number in range(1, 200):
        strategy = made(disk, path)
        strategy.check_create(7)
        try:
            with fault.at(number):
                strategy.prepare()
                strategy.create()
                strategy.finish_create()
        except (Killed, PyxlsnapError):
            pass
        undoing = strategy
        if killed:
            undoing = made(disk, path)
            undoing.adopt_create(7, began=0.0, state=strategy.state())
        undoing.undo_create()
        assert not path.exists()
        strategy.close()
        if not fault.struck:
            return
    raise AssertionError("the end was not reached")


def test_a_short_write_is_gone_on_with(
    disk: Disk, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:1000], offset))
    take(made(disk, path))
    assert path.read_bytes() == OLD


# revert


@pytest.fixture
def taken(device: Path, disk: Disk, path: Path) -> Disk:
    """A disk with a snapshot, that has gone on."""
    take(made(disk, path))
    write(device, NEW)
    return disk


def direct(device: Path) -> bytes:
    """What is on a device now."""
    return b"".join(_chunks(device))


def _chunks(device: Path) -> Iterator[bytes]:
    fd = os.open(device, os.O_RDONLY | os.O_DIRECT)
    buffer = block_device._buffer()
    for offset in range(0, SIZE, len(buffer)):
        yield buffer[: os.preadv(fd, [buffer], offset)]
    os.close(fd)


def test_a_revert_writes_what_differs_and_can_be_repeated(
    device: Path, taken: Disk, path: Path
) -> None:
    strategy = made(taken, path)
    strategy.check_revert()
    for sectors in (2 * BLOCK // 512 + 3, 0):  # the last block is 3 sectors long
        before = sectors_written(device)
        strategy.revert()
        assert direct(device) == OLD
        assert sectors_written(device) - before == sectors
    assert strategy.finish_revert(8) == []
    assert path.read_bytes() == OLD


def test_what_only_the_cache_has_does_not_count(
    device: Path, taken: Disk, path: Path, tmp_path: Path
) -> None:
    with device.open("rb") as cached:
        cached.read()
        with (tmp_path / "backing").open("r+b") as file:
            file.write(content(3))
        strategy = made(taken, path)
        strategy.revert()
    assert (tmp_path / "backing").read_bytes() == OLD


@pytest.mark.parametrize("killed", [True, pytest.param(False, marks=pytest.mark.soak)])
def test_a_revert_cut_off_anywhere_is_run_again(
    device: Path, taken: Disk, path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    fault = Fault(monkeypatch, Killed if killed else full_disk)
    for number in range(1, 200):
        write(device, NEW)
        try:
            with fault.at(number):
                made(taken, path).revert()
        except (Killed, DiskError):
            pass
        struck = fault.struck
        again = made(taken, path)
        again.check_revert()
        again.revert()
        assert direct(device) == OLD
        if not struck:
            assert number > 10
            return
    raise AssertionError("the end was not reached")


def test_a_device_in_use_is_not_touched(
    device: Path, taken: Disk, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_use, "_UNUSED_S", 0.2)
    with opened(device), pytest.raises(DiskError, match=r"^xvda: .*by sleep"):
        made(taken, path).revert()
    with looped(device) as upper, pytest.raises(DiskError, match=f"by {upper.name}"):
        made(taken, path).revert()
    assert direct(device) == NEW


def test_a_mounted_device_is_not_touched(
    device: Path, taken: Disk, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_use, "_UNUSED_S", 0.2)
    run("mkfs.ext4", "-q", "-F", device)
    (tmp_path / "mounted").mkdir()
    run("mount", "-o", "ro", device, tmp_path / "mounted")
    try:
        before = direct(device)
        with pytest.raises(DiskError, match=r"^xvda: .*in use by a mount on"):
            made(taken, path).revert()
        assert direct(device) == before
    finally:
        subprocess.run(["umount", str(tmp_path / "mounted")], check=True)


def test_a_snapshot_of_another_size_is_refused(device: Path, taken: Disk, path: Path) -> None:
    path.chmod(0o600)
    os.truncate(path, SIZE - 512)
    with pytest.raises(Refused, match=f"^xvda: .*{SIZE - 512} bytes.*{SIZE}"):
        made(taken, path).check_revert()
    with pytest.raises(DiskError, match="another size"):
        made(taken, path).revert()
    assert direct(device) == NEW


@pytest.mark.parametrize("what", ["nothing", "fifo", "directory", "dangling"])
def test_a_snapshot_that_is_no_file_is_refused(taken: Disk, path: Path, what: str) -> None:
    path.unlink()
    if what == "fifo":
        os.mkfifo(path)
    elif what == "directory":
        path.mkdir()
    elif what == "dangling":
        path.symlink_to("nowhere")
    with pytest.raises(Refused, match=r"^xvda: .*snap\.raw: "):
        made(taken, path).check_revert()


def test_a_read_only_device_is_refused(device: Path, taken: Disk, path: Path) -> None:
    run("blockdev", "--setro", device)
    try:
        with pytest.raises(Refused, match=r"^xvda: .* is read-only"):
            made(taken, path).check_revert()
    finally:
        run("blockdev", "--setrw", device)


def test_all_devices_are_free_before_one_is_written(
    device: Path, taken: Disk, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(in_use, "_UNUSED_S", 0.2)
    (tmp_path / "second").write_bytes(NEW)
    with looped(tmp_path / "second") as second:
        disks: Sequence[tuple[Disk, DiskRequest]] = [
            (taken, DiskRequest("xvda", str(path), "raw")),
            (Disk("xvdb", str(second), "raw", "phy"), DiskRequest("xvdb", str(path), "raw")),
        ]
        with opened(second), pytest.raises(DiskError, match=r"^xvdb: "):
            BlockCopy(disks, TASK).revert()
        assert direct(device) == NEW
        BlockCopy(disks, TASK).revert()
        assert direct(device) == direct(second) == OLD
