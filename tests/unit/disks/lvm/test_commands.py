"""Which volume a disk is, and the one function that runs LVM's commands."""

import subprocess
import time
from pathlib import Path

import pytest

from pyxlsnap.disks.lvm import commands, names
from pyxlsnap.disks.lvm.thin import LvmThin
from pyxlsnap.disks.task import DiskTask
from pyxlsnap.errors import DiskError, PyxlsnapError, Refused
from pyxlsnap.model import Disk, DiskRequest
from tests.unit.support.lvm import VG, FakeLvm


class TestWhichVolume:
    def test_a_volume_and_its_kind_are_known(self, fake: FakeLvm) -> None:
        for name, thin in (("thin-a", True), ("thick-a", False)):
            assert commands.is_lvm(str(fake.path(name)))
            assert commands.is_thin(str(fake.path(name))) == thin

    def test_a_link_to_a_volume_is_followed(self, fake: FakeLvm, tmp_path: Path) -> None:
        link = tmp_path / "link"
        link.symlink_to(fake.path("thin-a"))
        assert names.names_of(str(link)) == (VG, "thin-a")
        assert names.stays_valid(str(link), VG, "thin-a")

    def test_a_missing_one_counts_if_its_group_is_there(self, fake: FakeLvm) -> None:
        assert commands.is_lvm(str(fake.path("gone")))
        assert commands.is_thin(str(fake.path("gone")))
        assert not commands.is_lvm(f"{fake.dev}/elsewhere/gone")
        assert not commands.is_lvm("/srv/vg/file.img")

    def test_another_block_device_is_none(self, fake: FakeLvm, tmp_path: Path) -> None:
        (tmp_path / "7").touch()
        assert not commands.is_lvm(str(tmp_path / "7"))
        assert names.names_of(str(tmp_path / "7")) is None
        with pytest.raises(Refused, match="is not an LVM volume"):
            LvmThin(
                [(Disk("xvda", str(tmp_path / "7"), "raw"), DiskRequest("xvda"))], DiskTask("x")
            )

    def test_a_path_that_would_not_lead_to_the_disk_after_a_revert_is_refused(
        self, fake: FakeLvm
    ) -> None:
        target = str(fake.data("thin-a"))  # as /dev/dm-3
        one = LvmThin([(Disk("xvda", target, "raw"), DiskRequest("xvda"))], DiskTask("x"))
        with pytest.raises(Refused, match="would not lead to the disk after a revert"):
            one.check_create(1)


class TestExecute:
    """The one function that the fake stands for, with real commands."""

    def test_the_environment_is_lvms_and_the_input_is_empty(self) -> None:
        script = "env; cat; echo complaint >&2; exit 3"
        status, out, err = commands.execute(["sh", "-c", script], 10.0)
        assert (status, err) == (3, "complaint\n")
        assert {"LC_ALL=C", "LVM_SUPPRESS_FD_WARNINGS=1"} <= set(out.splitlines())

    def test_a_daemon_that_keeps_the_output_open_is_not_waited_for(self) -> None:
        began = time.monotonic()
        assert commands.execute(["sh", "-c", "sleep 5 & echo done"], 4.0)[1] == "done\n"
        assert time.monotonic() - began < 3

    def test_what_takes_too_long_is_asked_to_stop(self) -> None:
        began = time.monotonic()
        with pytest.raises(subprocess.TimeoutExpired):
            commands.execute(["sleep", "30"], 0.1)
        assert time.monotonic() - began < 5

    def test_what_does_not_stop_is_never_killed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(commands, "_STOPPING_S", 0.2)
        script = "trap '' TERM; echo $$ >$0; sleep 1; echo survived >>$0"
        with pytest.raises(subprocess.TimeoutExpired):
            commands.execute(["sh", "-c", script, str(tmp_path / "mark")], 0.3)
        time.sleep(1.5)
        assert "survived" in (tmp_path / "mark").read_text()

    def test_failures_are_disk_errors_of_one_line(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(commands, "_ROOT_PATH", "/nonexistent")
        with pytest.raises(DiskError, match="xvda: lvs is missing: install lvm2"):
            commands.volumes("xvda", "vg")

        def late(command: list[str], timeout_s: float) -> tuple[int, str, str]:
            raise subprocess.TimeoutExpired(command, timeout_s)

        monkeypatch.setattr(commands, "execute", late)
        with pytest.raises(DiskError, match="xvda: lvs vg did not end in 120 s"):
            commands.volumes("xvda", "vg")

        monkeypatch.setattr(commands, "execute", lambda command, timeout_s: (0, "garbage", ""))
        with pytest.raises(PyxlsnapError, match="xvda: unexpected output from lvs: 'garbage'"):
            commands.volumes("xvda", "vg")
