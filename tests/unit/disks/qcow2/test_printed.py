"""The printed command that deletes a frozen file: it stops before it could damage anything."""

import os
import shutil
from pathlib import Path

import pytest

from pyxlsnap.model import Disk
from tests.unit.support.chains import Chains, shell
from tests.unit.support.qemu import SIZE, Qemu, qemu_img


@pytest.fixture
def chains(disks: list[Disk], qemu: Qemu, tmp_path: Path) -> Chains:
    frozen = tmp_path / "frozen files"
    frozen.mkdir()
    return Chains(disks, qemu, frozen)


def printed(chains: Chains, name: str) -> list[str]:
    """Take a snapshot; the commands that delete its disk snapshots."""
    artefacts = chains.take(name).artefacts("vm1")
    return [a.delete.rpartition("domain off: ")[2] for a in artefacts]


class TestOfTheFirstOfTwo:
    @pytest.fixture
    def commands(self, chains: Chains) -> list[str]:
        chains.write(1)
        found = printed(chains, "s1")
        chains.write(2)
        chains.take("s2")
        chains.write(3)
        chains.qemu.close()
        return found

    def test_it_stops_because_the_second_stands_on_it(
        self, chains: Chains, commands: list[str]
    ) -> None:
        for command in commands:
            run = shell(command)
            assert run.returncode == 1
            assert run.stderr.startswith("stopped, nothing was changed: ")
            assert "does not stand on" in run.stderr
        chains.check({"s1": 1, "s2": 2, "": 3})

    def test_also_after_a_revert_to_the_first(self, chains: Chains, commands: list[str]) -> None:
        """The disk stands on it directly then, and so does the second one."""
        chains.revert("s1")
        for command, disk in zip(commands, chains.disks, strict=True):
            run = shell(command)
            assert run.returncode == 1
            there = f"{chains.frozen_file(disk, 's2')} stands on {chains.frozen_file(disk, 's1')}"
            assert there in run.stderr
        chains.check({"s1": 1, "s2": 2, "": 1})

    def test_it_works_when_the_second_is_deleted(self, chains: Chains, commands: list[str]) -> None:
        chains.revert("s1")
        for disk in chains.disks:
            chains.frozen_file(disk, "s2").unlink()
        for command in commands:
            assert shell(command).returncode == 0
        chains.check({"": 1})
        assert not list(chains.frozen.glob("*.s1"))

    def test_a_directory_that_a_process_has_open_is_no_use_of_the_files_in_it(
        self, chains: Chains, commands: list[str]
    ) -> None:
        chains.revert("s1")
        for disk in chains.disks:
            chains.frozen_file(disk, "s2").unlink()
        fd = os.open(Path(chains.disks[0].target).parent, os.O_RDONLY)
        try:
            assert [shell(command).returncode for command in commands] == [0, 0]
        finally:
            os.close(fd)
        chains.check({"": 1})

    def test_a_name_that_only_begins_like_it_is_another(
        self, chains: Chains, commands: list[str]
    ) -> None:
        chains.revert("s1")
        for disk in chains.disks:
            second = chains.frozen_file(disk, "s2")
            copy = chains.frozen_file(disk, "s10")
            shutil.copy(chains.frozen_file(disk, "s1"), copy)
            qemu_img("rebase", "-u", "-f", "qcow2", "-b", str(copy), "-F", "qcow2", str(second))
        assert [shell(command).returncode for command in commands] == [0, 0]
        chains.check({"s2": 2, "": 1})


def test_it_stops_while_the_domain_runs(chains: Chains) -> None:
    chains.write(1)
    commands = printed(chains, "s1")
    chains.write(2)
    for command in commands:
        run = shell(command)
        assert (run.returncode, run.stdout) == (1, "")
        assert "is in use" in run.stderr
    chains.qemu.close()
    chains.check({"s1": 1, "": 2})


def test_it_stops_where_the_disk_has_snapshots_inside(chains: Chains) -> None:
    """A rebase fills only the present content of an image, not its snapshots' content."""
    chains.write(1)
    commands = printed(chains, "s1")
    chains.qemu.close()
    for disk in chains.disks:
        qemu_img("snapshot", "-c", "inside", disk.target)
    for command in commands:
        run = shell(command)
        assert run.returncode == 1
        assert "has snapshots inside" in run.stderr
    for disk in chains.disks:
        qemu_img("snapshot", "-a", "inside", disk.target)
    chains.check({"s1": 1, "": 1})


def test_a_chain_without_recorded_formats(chains: Chains, tmp_path: Path) -> None:
    """qemu-img takes no backing file without a format."""
    chains.qemu.close()
    for disk in chains.disks:
        base = tmp_path / f"{disk.vdev}.base"
        shutil.move(disk.target, base)
        qemu_img("create", "-q", "-f", "qcow2", disk.target, str(SIZE))
        qemu_img("rebase", "-q", "-u", "-f", "qcow2", "-b", str(base), "-F", "qcow2", disk.target)
        _forget_format(Path(disk.target))
    chains.qemu.start()
    chains.write(1)
    commands = printed(chains, "s1")
    assert all("-F qcow2" in command for command in commands)
    chains.write(2)
    chains.qemu.close()
    for command in commands:
        run = shell(command)
        assert run.returncode == 0, run.stderr
    chains.check({"": 2})


def _forget_format(image: Path) -> None:
    """Make the header extension with the backing format one that nobody knows."""
    data = image.read_bytes()
    extension = bytes.fromhex("e2792aca")
    assert data.count(extension) == 1
    image.write_bytes(data.replace(extension, bytes.fromhex("00796173")))
