"""The commands of pyxlsnap(1) that take a frozen file out of a chain, on real images."""

import shlex
from pathlib import Path

import pytest

from pyxlsnap.model import Disk
from tests.guide import MAN, man_blocks
from tests.unit.support.chains import Chains, shell
from tests.unit.support.qemu import Qemu, qemu_img

(BLOCK,) = man_blocks("DELETING A SNAPSHOT, AND SHORTENING A CHAIN")
#: the disk, the frozen file, and the file below that, as the page calls them
DISK, FROZEN, BELOW = "/srv/web1.qcow2", "/srv/snap/web1.qcow2", "/srv/base.qcow2"
#: of the command, and what the page says to use if there is no file below
ON_BELOW, ON_NOTHING = f"-b {BELOW} -F qcow2", "-b ''"


@pytest.fixture
def chains(disks: list[Disk], qemu: Qemu, tmp_path: Path) -> Chains:
    """Two disks, each with the snapshots "s1" and "s2", and off."""
    frozen = tmp_path / "frozen files"
    frozen.mkdir()
    made = Chains(disks, qemu, frozen)
    for number, name in enumerate(("s1", "s2"), 1):
        made.write(number)
        made.take(name)
    made.write(3)
    qemu.close()
    return made


def command(word: str) -> str:
    """The only command of the page that has a word."""
    (found,) = (line for line in BLOCK.text.splitlines() if word in line)
    return found


def run(text: str, disk: str | Path, frozen: Path, below: Path | None = None) -> str:
    """Give commands of the page with other paths; what they print."""
    if below is None:
        text = text.replace(ON_BELOW, ON_NOTHING)
    for theirs, ours in ((DISK, disk), (FROZEN, frozen), (BELOW, below)):
        text = text.replace(theirs, shlex.quote(str(ours)))
    done = shell(f"set -eu\n{text}")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_frozen_file_of_the_last_snapshot(chains: Chains) -> None:
    for disk in chains.disks:
        s1, s2 = (chains.frozen_file(disk, name) for name in ("s1", "s2"))
        shown = run(BLOCK.text, disk.target, s2, s1)
        assert [shown.count(f"image: {path}\n") for path in (disk.target, s2, s1)] == [1, 1, 1]
        assert f"backing file: {s1}\n" in qemu_img("info", disk.target)
        assert not s2.exists()
    chains.check({"s1": 1, "": 3})


def test_a_frozen_file_that_stands_on_nothing(chains: Chains) -> None:
    for disk in chains.disks:
        s1, s2 = (chains.frozen_file(disk, name) for name in ("s1", "s2"))
        run(BLOCK.text, s2, s1)
        assert "backing file" not in qemu_img("info", str(s2))
    chains.check({"s2": 2, "": 3})


def test_two_files_that_stand_on_one_frozen_file(chains: Chains) -> None:
    chains.revert("s1")
    for disk in chains.disks:
        s1, s2 = (chains.frozen_file(disk, name) for name in ("s1", "s2"))
        for above in (s2, disk.target):
            run(command("qemu-img rebase"), above, s1)
        run(command("rm "), disk.target, s1)
    chains.check({"s2": 2, "": 1})


def test_the_page_says_what_to_use_if_there_is_no_file_below() -> None:
    assert ON_BELOW in command("qemu-img rebase")
    assert "use **-b ''** without **-F**" in MAN.read_text()
