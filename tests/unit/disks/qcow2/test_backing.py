"""Chains of images with files missing, at any depth and by any name."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import Mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyxlsnap.disks.qcow2 import backing
from pyxlsnap.disks.qcow2.backing import chain_files, refuse_broken
from pyxlsnap.disks.qcow2.qemu import GuestQemu
from pyxlsnap.errors import Refused
from pyxlsnap.linux.processes import Process
from pyxlsnap.model import Disk
from tests.unit.support.qemu import DOMID, Qemu, qemu_img


def chain(directory: Path, relative: list[bool]) -> list[Path]:
    """A chain, the lowest file first; each but that names the one below."""
    paths = [directory / f"d{n}" / f"image {n}.qcow2" for n in range(len(relative) + 1)]
    for n, path in enumerate(paths):
        path.parent.mkdir()
        below = []
        if n:
            name = os.path.relpath(paths[n - 1], path.parent) if relative[n - 1] else paths[n - 1]
            below = ["-b", str(name), "-F", "qcow2"]
        qemu_img("create", "-q", "-f", "qcow2", *below, str(path), *(["1M"] * (n == 0)))
    return paths


@settings(max_examples=12)
@given(relative=st.lists(st.booleans(), min_size=1, max_size=4), data=st.data())
def test_the_file_that_is_missing_is_named(relative: list[bool], data: st.DataObject) -> None:
    with TemporaryDirectory() as name:
        paths = chain(Path(name), relative)
        top = Disk("xvda", str(paths[-1]), "qcow2")
        assert chain_files(paths[-1]) == paths[::-1]
        refuse_broken(top, paths[-1])
        gone = data.draw(st.integers(0, len(paths) - 2))
        paths[gone].unlink()
        assert chain_files(paths[-1]) == paths[gone:][::-1]
        with pytest.raises(Refused) as caught:
            refuse_broken(top, paths[-1])
        assert f"stands on {paths[gone]}, and there is no such file" in str(caught.value)


def test_an_image_that_is_missing_stands_on_nothing(tmp_path: Path) -> None:
    image = tmp_path / "a.qcow2"
    with pytest.raises(Refused, match=f"^xvda: there is no image {image}: put it back"):
        refuse_broken(Disk("xvda", str(image), "qcow2"), image)


def test_a_link_to_an_image_leads_to_what_it_stands_on(tmp_path: Path) -> None:
    paths = chain(tmp_path, [True])
    (tmp_path / "link").symlink_to(paths[1])
    assert chain_files(tmp_path / "link") == [tmp_path / "link", paths[0]]


def test_a_chain_that_bites_its_tail_ends(tmp_path: Path) -> None:
    paths = chain(tmp_path, [False])
    qemu_img("rebase", "-u", "-f", "qcow2", "-b", str(paths[1]), "-F", "qcow2", str(paths[0]))
    assert chain_files(paths[1]) == [paths[1], paths[0]]
    with pytest.raises(Refused):
        refuse_broken(Disk("xvda", str(paths[1]), "qcow2"), paths[1])


def test_a_name_that_only_qemu_understands_ends_the_list(tmp_path: Path) -> None:
    (image,) = chain(tmp_path, [])
    qemu_img("rebase", "-u", "-f", "qcow2", "-b", "nbd://host/x", "-F", "raw", str(image))
    assert chain_files(image) == [image]


def test_a_file_of_another_format_is_refused(tmp_path: Path) -> None:
    paths = chain(tmp_path, [False, False])
    paths[0].write_bytes(b"no image" * 1000)
    with pytest.raises(Refused, match=r"xvda: qemu-img info failed: .*image 0\.qcow2"):
        refuse_broken(Disk("xvda", str(paths[2]), "qcow2"), paths[2])


@pytest.fixture
def standing(tmp_path: Path) -> list[Path]:
    return chain(tmp_path, [False, False])


@pytest.fixture
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backing, "_LOOKS_S", 0.0)


@contextmanager
def served(file: Path, *options: str) -> Iterator[int]:
    """A qemu-nbd that has an image open; returns its pid."""
    number = file.with_name("nbd.pid")
    words = ["--fork", "-t", "-k", str(file.with_name("nbd.socket")), f"--pid-file={number}"]
    subprocess.run(["qemu-nbd", *words, *options, "-f", "qcow2", str(file)], check=True)
    pid = int(number.read_text())
    try:
        yield pid
    finally:
        with Process(pid) as process, suppress(ProcessLookupError):  # it may have ended
            os.kill(pid, signal.SIGTERM)
            assert process.ended(within_s=20)


@pytest.mark.usefixtures("_no_patience")
class TestWritten:
    """The guest's QEMU does not open a file below a disk that another QEMU may write to."""

    @pytest.mark.parametrize("number", [0, 1])
    def test_a_file_below(self, standing: list[Path], number: int) -> None:
        disk = Disk("xvda", str(standing[2]), "qcow2")
        with served(standing[number]) as pid:
            says = rf"^xvda: {standing[number]} is in use by qemu-nbd \(pid {pid}\), which may"
            with pytest.raises(Refused, match=says):
                refuse_broken(disk, standing[2])
            refused = subprocess.run(_opening(standing[2]), capture_output=True, text=True)
            assert "lock" in refused.stderr  # (as this QEMU says)
        refuse_broken(disk, standing[2])

    def test_the_file_that_a_disk_will_stand_on(self, standing: list[Path]) -> None:
        disk = Disk("xvda", str(standing[2]), "qcow2")
        with served(standing[1]), pytest.raises(Refused, match=f"^xvda: {standing[1]} is in use"):
            refuse_broken(disk, standing[1])

    def test_the_file_of_the_disk(self, standing: list[Path]) -> None:
        """Under Xen QEMU opens it with locking off; others see to it that nobody has it."""
        with served(standing[2]):
            refuse_broken(Disk("xvda", str(standing[2]), "qcow2"), standing[2])

    def test_a_reader(self, standing: list[Path]) -> None:
        with served(standing[0], "-r"), standing[1].open("r+b"):
            refuse_broken(Disk("xvda", str(standing[2]), "qcow2"), standing[2])

    def test_one_that_is_just_ending(
        self, standing: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        looks: list[list[int]] = []

        def seen(file: Path) -> list[int]:
            looks.append(found := _writers(file))
            for pid in found:
                os.kill(pid, signal.SIGTERM)
            return found

        _writers = backing._writers
        monkeypatch.setattr(backing, "_LOOKS_S", 60.0)
        monkeypatch.setattr(backing, "_writers", seen)
        with served(standing[1]) as pid:
            refuse_broken(Disk("xvda", str(standing[2]), "qcow2"), standing[2])
        assert looks[0] == [pid]

    def test_the_qemu_of_a_domain(
        self, standing: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It may keep the lock of a file that it has frozen; it ends before the restore."""
        waits = Mock()
        monkeypatch.setattr(time, "sleep", waits)
        monkeypatch.setattr(backing, "_LOOKS_S", 2.0)
        with served(standing[1]) as pid:
            monkeypatch.setattr(backing, "_is_device_model", pid.__eq__)
            refuse_broken(Disk("xvda", str(standing[2]), "qcow2"), standing[2])
        waits.assert_not_called()


def test_the_qemu_of_a_domain_is_known_by_its_command_line() -> None:
    script = "print(flush=True); input()"
    for words, expected in (["-xen-domid", "5"], True), (["of-xen-domid"], False):
        command = [sys.executable, "-c", script, *words]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(command, **pipes) as process:  # type: ignore[call-overload]
            process.stdout.readline()
            assert backing._is_device_model(process.pid) is expected
            process.stdin.close()
    assert backing._is_device_model(process.pid)


def test_the_guests_qemu_gives_up_the_lock_of_a_file_that_it_freezes(
    run_dir: Path, disks: list[Disk]
) -> None:
    """Else each revert would be refused: an overlay is opened with locks, unlike the first file."""
    path = Path(disks[0].target)
    overlays = [path.with_name(f"overlay {n}.qcow2") for n in range(2)]
    qemu = Qemu(run_dir, {"xvda": str(path)})
    try:
        qemu.has_opened()
        guest = GuestQemu()
        guest.connect(DOMID, disks[:1])
        node = guest.node("xvda")
        for n, overlay in enumerate(overlays):
            new = f"xlsnap-xvda-{n}"
            named = {"snapshot-file": str(overlay), "snapshot-node-name": new, "format": "qcow2"}
            guest.execute("blockdev-snapshot-sync", {"node-name": node, **named})
            node = new
        guest.close()
        assert [backing._is_locked(p) for p in (path, *overlays)] == [False, False, True]
        refuse_broken(disks[0], overlays[0])
    finally:
        qemu.close()


def _opening(image: Path) -> list[str]:
    """A QEMU that opens an image as libxl has it do."""
    file = {"driver": "file", "filename": str(image), "locking": "off"}
    disk = json.dumps({"driver": "qcow2", "node-name": "disk", "file": file})
    return ["qemu-system-x86_64", "-machine", "none", "-display", "none", "-S", "-blockdev", disk]
