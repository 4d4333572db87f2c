"""The QEMU of a restore: compared with the QEMU that saved, as both say it themselves."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyxlsnap.create import examination
from pyxlsnap.guest import qemu_version
from pyxlsnap.guest.device_model import DeviceModel
from pyxlsnap.guest.findings import Finding, Grade
from pyxlsnap.guest.qemu_version import examine_loading, examine_qemu
from pyxlsnap.model import Disk, SnapshotConfig
from tests.unit.support.guest import config_of
from tests.unit.support.operations import plan_create
from tests.unit.support.world import World

Examine = Callable[..., list[Finding]]

REAL = shutil.which("qemu-system-i386") or ""
QCOW2 = Disk("xvda", "/images/a", "qcow2")
RAW = Disk("xvda", "/images/a", "raw")


@pytest.fixture
def examine(world: World, monkeypatch: pytest.MonkeyPatch) -> Examine:
    """Examine the host's QEMU, a real one, for a guest that a QEMU saved.

    A new one may refuse to load a guest from a file: TestLoading has that.
    """
    refuses = qemu_version._refuses_files
    monkeypatch.setattr(qemu_version, "_refuses_files", lambda p: p != REAL and refuses(p))
    world.host.device_model_path = REAL

    def found(recorded: str = "", *disks: Disk, kind: str = "hvm", **more: object) -> list[Finding]:
        config = config_of(*disks, kind=kind, **more)  # type: ignore[arg-type]
        return list(examine_qemu(world.host, config, recorded))

    return found


def qemu(world: World, text: str, *, name: str = "own-qemu", mode: int = 0o755) -> str:
    """A program in the place of QEMU; its path."""
    path = world.root / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(mode)
    return str(path)


def only(found: list[Finding], grade: Grade) -> str:
    (finding,) = found
    assert finding.grade is grade
    return finding.text


class TestVersion:
    @pytest.mark.parametrize("recorded", ["0.9", "1.99.99", "3.1.0"])
    def test_that_is_newer_than_recorded_is_nothing_to_say(
        self, examine: Examine, recorded: str
    ) -> None:
        assert examine(recorded) == []

    @pytest.mark.parametrize("recorded", ["999.0.0", "999.0"])
    def test_that_is_older_is_risky(self, examine: Examine, recorded: str) -> None:
        text = only(examine(recorded), Grade.RISKY)
        assert f"saved by QEMU {recorded}" in text
        assert REAL in text

    @pytest.mark.parametrize(
        ("recorded", "present", "older"),
        [
            ("7.2.22", "7.2.22", False),
            ("7.2.22", "7.2.9", True),
            ("7.2.9", "7.2.22", False),
            ("10.0.0", "9.2.4", True),
            ("9.2.4", "10.0.0", False),
            ("7.2", "7.2.0", False),
        ],
    )
    def test_is_compared_by_its_numbers(
        self, examine: Examine, world: World, recorded: str, present: str, older: bool
    ) -> None:
        world.host.device_model_path = qemu(world, f"echo QEMU emulator version {present} '(x 1)'")
        assert [f.grade for f in examine(recorded)] == [Grade.RISKY] * older

    @pytest.mark.parametrize("recorded", ["", "unknown", "7", "7.2.22 or so", "²"])
    def test_that_was_not_recorded_is_said(self, examine: Examine, recorded: str) -> None:
        assert "does not tell which QEMU" in only(examine(recorded), Grade.SAID)

    @pytest.mark.parametrize("kind", ["pv", "pvh"])
    def test_does_not_matter_for_a_guest_whose_qemu_is_not_saved(
        self, examine: Examine, kind: str
    ) -> None:
        assert examine("999.0.0", QCOW2, kind=kind) == []

    @given(recorded=st.text(max_size=20))
    def test_of_any_text_is_one_line(self, recorded: str) -> None:
        found = list(qemu_version._compare(REAL, recorded, named=False))
        assert all("\n" not in f.text for f in found)


class TestLoading:
    """libxl gives QEMU the descriptor of a file: a QEMU may not load a saved guest from that."""

    def test_the_real_one_says_what_its_release_does(self) -> None:
        version = qemu_version._version(qemu_version._start(REAL, named=False)[0])
        assert version
        assert bool(list(examine_loading(REAL))) is (version >= (11, 1, 0))

    REFUSES = "-incoming fd:3: fd: migration to a file is not supported. Use file: instead."

    def program(self, world: World, version: str, says: str) -> str:
        text = f"test $1 = -version && exec echo QEMU emulator version {version}\n"
        text += f"echo $@ >{world.root}/asked; echo 'own-qemu: {says}' >&2; exit 1"
        return qemu(world, text)

    def test_a_qemu_that_refuses_is_risky(self, examine: Examine, world: World) -> None:
        world.host.device_model_path = self.program(world, "11.1.3", self.REFUSES)
        text = only(examine("11.1.3"), Grade.RISKY)
        assert "own-qemu (QEMU 11.1.3) does not load a saved guest from libxl" in text
        assert "-incoming fd:" in (world.root / "asked").read_text()

    def test_a_qemu_that_only_finds_nothing_to_load(self, examine: Examine, world: World) -> None:
        world.host.device_model_path = self.program(world, "11.1.3", "Not a migration stream")
        assert examine("11.1.3") == []
        assert (world.root / "asked").exists()

    def test_an_old_one_is_not_asked(self, examine: Examine, world: World) -> None:
        world.host.device_model_path = self.program(world, "10.2.1", self.REFUSES)
        assert examine("10.2.1") == []
        assert not (world.root / "asked").exists()

    def test_a_pvh_guest_has_nothing_to_load(self, examine: Examine, world: World) -> None:
        world.host.device_model_path = self.program(world, "11.1.3", self.REFUSES)
        assert examine("", QCOW2, kind="pvh") == []

    def test_what_cannot_be_asked(self, world: World) -> None:
        assert list(examine_loading("", "11.1.3")) == []
        assert list(examine_loading(str(world.root / "qemu"), "11.1.3")) == []
        assert list(examine_loading(self.program(world, "of my own", self.REFUSES))) == []

    def test_a_create_asks_no_qemu_whose_version_it_knows(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        world.host.device_model_path = qemu(world, f"touch {world.root}/started")
        own = DeviceModel("10.0.13")
        monkeypatch.setattr(examination, "examine_device_model", lambda *_: own)
        monkeypatch.setattr(examination, "runs", lambda *_: True)
        assert plan_create(world.host, world.guest(world.image("xvda")), SnapshotConfig("s"))
        assert not (world.root / "started").exists()

    def test_a_create_says_so(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        world.host.device_model_path = self.program(world, "11.1.3", self.REFUSES)
        own = DeviceModel("7.2.22")  # it has been upgraded since
        monkeypatch.setattr(examination, "examine_device_model", lambda *_: own)
        guest = world.guest(world.image("xvda"))
        plan = plan_create(world.host, guest, SnapshotConfig("s"))
        (warning,) = plan.warnings
        assert "(QEMU 11.1.3) does not load a saved guest from libxl" in warning


class TestMissing:
    GONE = "/nonexistent/qemu-system-i386"

    def test_is_refused(self, examine: Examine, world: World) -> None:
        world.host.device_model_path = self.GONE
        assert "install QEMU for Xen" in only(examine("7.2.22"), Grade.REFUSED)

    def test_override_is_refused(self, examine: Examine) -> None:
        found = examine("7.2.22", b_info={"device_model": self.GONE})
        assert "device_model_override" in only(found, Grade.REFUSED)

    @pytest.mark.parametrize(
        ("needed", "disks", "more"),
        [
            (True, (QCOW2,), {}),
            (True, (Disk("xvda", "/images/a", "qcow2"),), {}),
            (False, (RAW,), {}),
            (False, (Disk("xvda", "", "empty", cdrom=True),), {}),
            (True, (), {"vfbs": [{}]}),
            (True, (), {"channels": [{}]}),
            (False, (), {}),
        ],
    )
    def test_is_refused_for_a_pv_guest_only_if_it_serves_something(
        self,
        examine: Examine,
        world: World,
        needed: bool,
        disks: tuple[Disk, ...],
        more: dict[str, object],
    ) -> None:
        world.host.device_model_path = self.GONE
        assert [f.grade for f in examine("", *disks, kind="pv", **more)] == [Grade.REFUSED] * needed

    def test_in_dom0_is_nothing_to_a_stub_domain(self, examine: Examine, world: World) -> None:
        world.host.device_model_path = self.GONE
        assert examine("", b_info={"device_model_stubdomain": "True"}) == []

    def test_is_not_guessed_where_libxl_does_not_tell_the_path(
        self, examine: Examine, world: World
    ) -> None:
        world.host.device_model_path = ""
        assert examine("999.0.0") == []


class TestDoesNotStart:
    def override(self, examine: Examine, path: str) -> list[Finding]:
        return examine("7.2.22", b_info={"device_model": path})

    def test_for_a_library_that_is_gone_is_refused(self, examine: Examine, world: World) -> None:
        path = qemu(world, "echo libfoo.so.1: cannot open shared object file >&2; exit 127")
        assert "libfoo" in only(self.override(examine, path), Grade.REFUSED)

    def test_killed_by_a_signal_is_refused(self, examine: Examine, world: World) -> None:
        path = qemu(world, "kill -SEGV $$")
        assert "status -11" in only(self.override(examine, path), Grade.REFUSED)

    def test_with_an_error_of_its_own_is_risky(self, examine: Examine, world: World) -> None:
        path = qemu(world, "echo unknown option >&2; exit 1")
        assert "unknown option" in only(self.override(examine, path), Grade.RISKY)

    def test_in_time_is_risky(
        self, examine: Examine, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(qemu_version, "_START_S", 0.2)
        path = qemu(world, "exec sleep 20")
        assert "did not answer" in only(self.override(examine, path), Grade.RISKY)

    def test_as_it_is_no_program_is_refused(self, examine: Examine, world: World) -> None:
        path = Path(qemu(world, ""))
        path.write_bytes(b"\x7fELF no program")
        assert "cannot be started" in only(self.override(examine, str(path)), Grade.REFUSED)


class TestOfPvAndPvh:
    """Nothing of their QEMU is in the memory file, but the restore fails if QEMU does not start."""

    @pytest.mark.parametrize("kind", ["pv", "pvh"])
    def test_that_does_not_start_is_refused(
        self, examine: Examine, world: World, kind: str
    ) -> None:
        world.host.device_model_path = qemu(world, "echo libfoo.so.1: cannot open >&2; exit 127")
        assert "libfoo" in only(examine("", QCOW2, kind=kind), Grade.REFUSED)
        assert examine("", RAW, kind=kind) == []  # it is not started for this one

    def test_whose_version_is_not_known_is_nothing_to_say(
        self, examine: Examine, world: World
    ) -> None:
        world.host.device_model_path = qemu(world, "echo hello")
        assert examine("", QCOW2, kind="pvh") == []

    def test_that_the_guest_has_from_the_same_files_is_not_started(self, world: World) -> None:
        own, started = world.root / "qemu", world.root / "started"
        shutil.copy("/bin/sh", own)
        world.host.device_model_path = str(own)
        guest = world.guest(QCOW2, kind="pvh")
        command = [str(own), "-c", "echo; read line"]  # says when it has been loaded
        running = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        guest.device_model = running.pid

        def problems() -> list[Finding]:
            return list(examine_qemu(world.host, guest.configuration, "", guest))

        with running:
            assert running.stdout
            assert running.stdout.readline() == b"\n"
            assert not qemu_version.runs(os.getpid(), str(own))
            assert qemu_version.runs(running.pid, str(own))
            assert problems() == []
            own.unlink()  # an upgrade
            own.write_text(f"#!/bin/sh\ntouch {started}; exit 127\n")
            own.chmod(0o755)
            assert not qemu_version.runs(running.pid, str(own))
            assert [f.grade for f in problems()] == [Grade.REFUSED]
            assert started.exists()
            running.communicate(b"\n")
        assert not qemu_version.runs(running.pid, str(own))
        assert not qemu_version.runs(None, str(own))


class TestUnknown:
    def test_of_a_wrapper_is_said(self, examine: Examine, world: World) -> None:
        path = qemu(world, "echo hello")
        text = only(examine("7.2.22", b_info={"device_model": path}), Grade.SAID)
        assert "older than the QEMU that saved the guest (7.2.22)" in text

    @pytest.mark.parametrize(("name", "mode"), [("own-qemu", 0o777), ("rm", 0o755)])
    def test_since_a_memory_file_could_name_any_program_to_start(
        self, examine: Examine, world: World, name: str, mode: int
    ) -> None:
        started = world.root / "started"
        path = qemu(world, f"touch {started}", name=name, mode=mode)
        only(examine("7.2.22", b_info={"device_model": path}), Grade.SAID)
        assert not started.exists()

    def test_of_a_program_in_a_directory_of_others(
        self, examine: Examine, world: World, public: Path
    ) -> None:
        """They can put another program in its place, also by a link that they change later."""
        started, link = world.root / "started", public / "theirs" / "own-qemu"
        link.parent.mkdir()
        link.parent.chmod(0o777)
        link.symlink_to(qemu(world, f"touch {started}"))
        only(examine("7.2.22", b_info={"device_model": str(link)}), Grade.SAID)
        assert not started.exists()

    def test_the_one_of_libxl_is_asked_wherever_it_is(
        self, examine: Examine, world: World, public: Path
    ) -> None:
        """Xen that was built from source may be where a group of admins can write."""
        (public / "local").mkdir()
        (public / "local").chmod(0o2777)
        path = public / "local" / "qemu-system-i386"
        path.symlink_to(qemu(world, "echo QEMU emulator version 1.0.0"))
        world.host.device_model_path = str(path)
        assert "older QEMU 1.0.0" in only(examine("7.2.22"), Grade.RISKY)

    def test_of_a_strangers_program(
        self, examine: Examine, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if os.geteuid():
            pytest.skip("only root can give a file away")
        started = world.root / "started"
        path = qemu(world, f"touch {started}")
        os.chown(path, 65534, 65534)
        only(examine("7.2.22", b_info={"device_model": path}), Grade.SAID)
        assert not started.exists()
