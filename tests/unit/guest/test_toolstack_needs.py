"""What libxl needs in each restore: its directories, its helper, and the daemon of the consoles."""

import errno
import math
import os
from pathlib import Path

import pytest

from pyxlsnap import paths
from pyxlsnap.guest import toolstack_needs
from pyxlsnap.guest.findings import Finding, Grade
from pyxlsnap.guest.protocols import Guest
from pyxlsnap.guest.toolstack_needs import examine_toolstack
from pyxlsnap.model import Disk
from tests.unit.support.guest import config_of
from tests.unit.support.world import World

QCOW2 = Disk("xvda", "/images/a", "qcow2")
RAW = Disk("xvda", "/images/a", "raw", "phy")


def examine(
    world: World, *disks: Disk, kind: str = "pvh", guest: Guest | None = None, **more: object
) -> list[Finding]:
    config = config_of(*disks, kind=kind, **more)  # type: ignore[arg-type]
    return list(examine_toolstack(world.host, config, guest))


def only(found: list[Finding], grade: Grade) -> str:
    (finding,) = found
    assert finding.grade is grade
    return finding.text


def test_a_host_that_has_all_is_nothing_to_say(world: World) -> None:
    before = world.photo()
    assert examine(world, QCOW2, kind="hvm") == []
    assert world.photo() == before


@pytest.mark.parametrize("way", ["removed", "not executable", "a directory"])
def test_a_helper_that_libxl_cannot_start_is_refused(world: World, way: str) -> None:
    helper = Path(world.host.places().save_helper)
    helper.chmod(0o644)
    if way != "not executable":
        helper.unlink()
    if way == "a directory":
        helper.mkdir()
    assert str(helper) in only(examine(world), Grade.REFUSED)


def test_a_libxl_that_was_replaced_is_a_risk(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than that: a revert that was killed after its destroy is finished all the same."""
    places = world.host.places()._replace(replaced=True)
    monkeypatch.setattr(world.host, "places", lambda: places)
    assert "libxl was replaced or removed" in only(examine(world), Grade.RISKY)


def test_without_xenconsoled_libxl_would_wait_in_vain(world: World) -> None:
    (world.root / "no xenconsoled").touch()
    assert "xenconsoled does not run" in only(examine(world), Grade.REFUSED)


class TestState:
    """libxl's directory of configurations and QEMUs' states."""

    @pytest.fixture
    def state(self, world: World) -> Path:
        return Path(world.host.places().state)

    def test_that_is_missing_is_refused(self, world: World, state: Path) -> None:
        state.rmdir()
        assert os.strerror(errno.ENOENT) in only(examine(world), Grade.REFUSED)

    def test_that_is_a_file_is_refused(self, world: World, state: Path) -> None:
        state.rmdir()
        state.touch()
        assert str(state) in only(examine(world), Grade.REFUSED)

    @pytest.mark.parametrize("error", [errno.EROFS, errno.EACCES, errno.EIO])
    def test_that_is_not_writable_is_refused(
        self, world: World, monkeypatch: pytest.MonkeyPatch, error: int
    ) -> None:
        def fail(*_: object) -> int:
            raise OSError(error, os.strerror(error))

        monkeypatch.setattr(os, "open", fail)
        assert os.strerror(error) in only(examine(world), Grade.REFUSED)

    @pytest.mark.parametrize("error", [errno.EOPNOTSUPP, errno.EISDIR])
    def test_whose_filesystem_has_no_files_without_a_name_is_not_tried(
        self, world: World, monkeypatch: pytest.MonkeyPatch, error: int
    ) -> None:
        def fail(*_: object) -> int:
            raise OSError(error, os.strerror(error))

        monkeypatch.setattr(os, "open", fail)
        assert examine(world) == []

    @pytest.mark.parametrize(
        ("room", "kind", "there", "grade"),
        [
            (0, "hvm", True, Grade.REFUSED),
            (4095, "hvm", True, Grade.REFUSED),
            (0, "pvh", False, Grade.REFUSED),
            # the destroyed domain leaves room for a configuration
            (0, "pvh", True, Grade.RISKY),
            (4096, "pvh", False, Grade.RISKY),
            (100_000, "hvm", False, Grade.RISKY),
            (100_000, "pvh", False, None),
            (2 << 20, "hvm", True, None),
        ],
    )
    def test_that_is_full(
        self,
        world: World,
        monkeypatch: pytest.MonkeyPatch,
        room: int,
        kind: str,
        there: bool,
        grade: Grade | None,
    ) -> None:
        left = room

        def write(_: int, data: bytes) -> int:
            nonlocal left
            if not left:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            done = min(left, len(data))
            left -= done
            return done

        guest = world.guest() if there else None
        monkeypatch.setattr(toolstack_needs, "_PLENTY", math.inf)
        monkeypatch.setattr(os, "write", write)
        found = examine(world, kind=kind, guest=guest)
        assert [f.grade for f in found] == ([grade] if grade else [])
        assert all("free space there" in f.text for f in found)

    def test_is_not_full_because_of_a_limit_of_this_process(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def write(*_: object) -> int:
            raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))

        monkeypatch.setattr(os, "write", write)
        assert examine(world) == []


class TestLogs:
    @pytest.fixture(autouse=True)
    def _gone(self, world: World) -> None:
        paths.XEN_LOGS.rmdir()

    @pytest.mark.parametrize(("kind", "disk"), [("hvm", RAW), ("pvh", QCOW2)])
    def test_of_qemu_are_needed(self, world: World, kind: str, disk: Disk) -> None:
        assert "QEMU" in only(examine(world, disk, kind=kind), Grade.REFUSED)

    def test_of_scripts_are_needed_as_far_as_is_known(self, world: World) -> None:
        assert "scripts" in only(examine(world, RAW, nics=[]), Grade.RISKY)
        assert "scripts" in only(examine(world), Grade.RISKY)

    def test_are_not_needed_by_a_domain_without_devices(self, world: World) -> None:
        assert examine(world, nics=[]) == []
