"""Going back with a fault at every step: nothing changed, or the same command finishes it."""

import errno
import json
import shlex
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

import pyxlsnap.create.examination as create_examination
from pyxlsnap import cfgfile, paths
from pyxlsnap.cancel import Cancel
from pyxlsnap.create.sequence import Creation
from pyxlsnap.disks import rivals
from pyxlsnap.errors import (
    BadMemoryFile,
    Busy,
    ConfigError,
    DiskError,
    DomainNotFound,
    Interrupted,
    NeedsAttention,
    OperationFailed,
    QmpError,
    Refused,
    Risky,
    XenError,
)
from pyxlsnap.guest import destroy, qemu_version
from pyxlsnap.guest.device_model import DeviceModel
from pyxlsnap.journal import Journal
from pyxlsnap.linux.locks import DomainLock
from pyxlsnap.memory import read_header, write_header
from pyxlsnap.memory.header import MAGIC
from pyxlsnap.model import Disk, DiskRequest, DomainConfig, RunState, SnapshotConfig
from pyxlsnap.monitor.xl import Xl
from pyxlsnap.request import Callbacks, RevertRequest
from pyxlsnap.results import Progress, Reverted
from pyxlsnap.revert import other_watch
from pyxlsnap.revert.operation import revert
from pyxlsnap.revert.plan import RevertPlan
from pyxlsnap.revert.saved import saved_uuid
from pyxlsnap.revert.sequence import Reversion
from tests.unit.support import operations, streams
from tests.unit.support.entries import create_entry, killed_revert
from tests.unit.support.faults import FailsAtStep, run_until
from tests.unit.support.guest import FakeGuest, config_of
from tests.unit.support.loop_files import looped
from tests.unit.support.operations import plan_create, plan_revert
from tests.unit.support.qemu import qemu_img
from tests.unit.support.values import OTHER_UUID, UUID
from tests.unit.support.world import World

STEPS = [name for name, _ in Reversion.__new__(Reversion).steps()]
UNTOUCHED = STEPS[: STEPS.index("destroy") + 1]
FORWARD = STEPS[STEPS.index("destroy") + 1 :]
FAULTS: dict[str, Callable[[], BaseException]] = {
    "xen": lambda: XenError("no", rc=-3, operation="some call"),
    "full": lambda: OSError(errno.ENOSPC, "No space left on device"),
    "qemu": lambda: QmpError("no", command="x"),
    "bug": lambda: RuntimeError("a bug"),
    "ctrl-c": KeyboardInterrupt,
}
NAME = "snap"


class Faulty(FailsAtStep, Reversion):
    """A reversion that fails at one of its steps."""


class Case:
    """A domain with a snapshot of two disks, which has run on since."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.guest = world.guest(world.image("xvda"), world.image("xvdb"))
        wanted = SnapshotConfig(name=NAME)
        made = plan_create(world.host, self.guest, wanted)
        Creation(made).run()
        self.memory_path, self.cfg = made.memory_path, made.cfgfile
        world.storage.content.update(xvda="since", xvdb="since")
        world.events.clear()
        self.cancel = Cancel()
        self.before = world.photo()

    def plan(
        self, domain: str = "vm1", *, running: bool = False, force: bool = False
    ) -> RevertPlan:
        wanted = cfgfile.read(self.cfg)
        return plan_revert(self.world.host, domain, wanted, self.cfg, running=running, force=force)

    def run(self, domain: str = "vm1", *, force: bool = False) -> Reverted:
        plan = self.plan(domain, force=force)
        return Reversion(self.world.host, plan, cancel=self.cancel).run()

    def fails_at(
        self, step: str, when: str, fault: Callable[[], None], kind: type[OperationFailed]
    ) -> OperationFailed:
        reversion = Faulty(self.world.host, self.plan(), cancel=self.cancel)
        reversion.at, reversion.when, reversion.fault = step, when, fault
        with pytest.raises(OperationFailed) as caught:
            reversion.run()
        assert type(caught.value) is kind
        assert "\n" not in str(caught.value)
        return caught.value

    def edit(self, text: str) -> None:
        self.cfg.write_text(text)

    def save_memory(
        self, *, config: str | None = None, stream: bytes | None = None, ours: bool = True
    ) -> None:
        """Write the memory file anew."""
        data = self.memory_path.read_bytes()
        text = config or self.guest.configuration.json
        optional = len(text + "\0").to_bytes(4, "little") + text.encode() + b"\0"
        fixed = b"".join(n.to_bytes(4, "little") for n in (0x01020304, 3, 0, len(optional)))
        assert not ours, "the metadata is pyxlsnap's to write"
        tail = data[data.index(streams.LIBXL_HEADER) :]
        self.memory_path.write_bytes(MAGIC + fixed + optional + (stream or tail))

    def assert_nothing_changed(self, guest: FakeGuest | None = None) -> None:
        assert (guest or self.guest).runs
        assert self.world.photo() == self.before
        assert set(self.world.storage.content.values()) == {"since"}

    def assert_reverted(self, *, name: str = "vm1", paused: bool = False) -> None:
        (now,) = [g for g in self.world.host.guests if g.exists and g.uuid == UUID]
        assert now is not self.guest
        assert (now.name, now.paused, now.runs) == (name, paused, not paused)
        assert self.world.storage.content == {"xvda": "before", "xvdb": "before"}
        assert self.world.photo() == self.before  # no journal, nothing kept, the snapshot whole


def raising(make: Callable[[], BaseException]) -> Callable[[], None]:
    def fault() -> None:
        raise make()

    return fault


@pytest.fixture
def case(world: World) -> Case:
    return Case(world)


# A fault at every step


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    ("step", "when"),
    [(s, w) for s in UNTOUCHED for w in ("before", "after")][:-1],
)
def test_a_fault_before_the_destroy_changes_nothing(
    case: Case, step: str, when: str, fault: str
) -> None:
    kind = Interrupted if fault == "ctrl-c" else OperationFailed
    error = case.fails_at(step, when, raising(FAULTS[fault]), kind)
    assert error.step == step
    assert "nothing was changed" in str(error)
    case.assert_nothing_changed()


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    ("step", "when"),
    [("destroy", "after"), *[(s, w) for s in FORWARD for w in ("before", "after")]],
)
def test_after_the_destroy_the_same_command_finishes_it(
    case: Case, step: str, when: str, fault: str
) -> None:
    error = case.fails_at(step, when, raising(FAULTS[fault]), NeedsAttention)
    assert isinstance(error, NeedsAttention)
    assert error.step == step
    assert error.left
    command = shlex.split(error.finish)
    assert command == ["pyxlsnap", "snapshot-revert", UUID, str(case.cfg)]
    case.run(command[2])
    case.assert_reverted()


@pytest.mark.parametrize("vdev", ["xvda", "xvdb"])
def test_a_kept_disk_that_cannot_be_removed_is_a_warning(case: Case, vdev: str) -> None:
    """The domain is back and runs: to revert it once more would be worse."""
    case.world.fail(f"drop {vdev}", OSError("no"))
    result = case.run()
    assert result.state is RunState.RUNNING
    assert vdev in result.warnings[-1]


@pytest.mark.parametrize("verb", ["wait_gone", "revert xvda", "revert xvdb", "restore", "unpause"])
@pytest.mark.parametrize("after", [False, True])
def test_a_verb_that_fails_within_a_step_is_finished_too(
    case: Case, verb: str, after: bool
) -> None:
    case.world.fail(verb, XenError("no", rc=-3, operation=verb), after=after)
    with pytest.raises(NeedsAttention):
        case.run()
    case.world.faults.clear()
    case.run(UUID)
    case.assert_reverted()


def test_the_failures_of_all_disks_are_told(case: Case) -> None:
    first = DiskError("no", vdev="xvda")
    first.add_note("xvdb: no space")  # as of disks that are put back side by side
    case.world.fail("revert xvda", first)
    with pytest.raises(NeedsAttention, match=r"failed \(disks\): xvda: no; xvdb: no space; "):
        case.run()


def test_a_destroy_that_fails_changes_nothing(case: Case) -> None:
    case.world.fail("destroy", XenError("no", rc=-3, operation="destroy"))
    with pytest.raises(OperationFailed) as caught:
        case.run()
    assert type(caught.value) is OperationFailed
    case.assert_nothing_changed()


def test_a_destroy_that_got_as_far_as_the_pause_needs_a_person(case: Case) -> None:
    def paused() -> None:
        case.guest.paused = True  # and its QEMU may be gone
        raise XenError("no", rc=-3, operation="destroy")

    case.guest.destroy = paused  # type: ignore[method-assign]
    with pytest.raises(NeedsAttention):
        case.run()


def test_a_destroy_that_fails_half_way_needs_a_person(case: Case) -> None:
    case.world.fail("destroy", XenError("no", rc=-3, operation="destroy"), after=True)
    with pytest.raises(NeedsAttention):
        case.run()
    case.world.faults.clear()
    case.run()
    case.assert_reverted()


@pytest.mark.parametrize("step", STEPS[1:])
def test_a_cancel_is_heeded_only_before_the_destroy(case: Case, step: str) -> None:
    reversion = Faulty(case.world.host, case.plan(), cancel=case.cancel)
    reversion.at, reversion.when = STEPS[STEPS.index(step) - 1], "after"
    reversion.fault = case.cancel.set
    if step in UNTOUCHED:
        with pytest.raises(Interrupted):
            reversion.run()
        case.assert_nothing_changed()
    else:
        reversion.run()
        case.assert_reverted()


@pytest.mark.parametrize("runs", [True, False])
def test_a_domain_that_is_started_just_before_the_restore_is_not_removed(
    case: Case, monkeypatch: pytest.MonkeyPatch, runs: bool
) -> None:
    """It has the uuid that the restored domain was to have. It may be new, and paused."""
    started: list[FakeGuest] = []

    def taken(config: DomainConfig, fd: int) -> FakeGuest:
        started.append(case.world.host.start(config))
        started[0].paused, started[0].has_run = not runs, runs
        raise XenError("uuid in use", rc=-3, operation="restore")

    monkeypatch.setattr(case.world.host, "restore", taken)
    with pytest.raises(NeedsAttention) as caught:
        case.run()
    assert started[0].exists
    line, disks = caught.value.left
    assert line == f"{started[0]} was started meanwhile, and was left alone"
    assert disks == "the disks of vm1 may be reverted already"


def test_a_domain_that_is_renamed_meanwhile_would_come_back_under_its_old_name(case: Case) -> None:
    plan = case.plan()
    case.guest.present = "vm9"
    with pytest.raises(OperationFailed, match="vm1 was renamed to vm9 meanwhile; nothing was"):
        Reversion(case.world.host, plan).run()
    assert case.guest.runs
    assert Journal(UUID).read() is None


def test_a_restored_domain_that_cannot_be_unpaused_is_not_called_off(case: Case) -> None:
    case.world.fail("unpause", XenError("no", rc=-3, operation="unpause"))
    with pytest.raises(NeedsAttention) as caught:
        case.run()
    assert "restored" in caught.value.left[0]
    assert " is off" not in str(caught.value)


@pytest.mark.parametrize("event", ["wait_gone", "revert xvdb"])
def test_a_domain_started_meanwhile_is_left_alone(case: Case, event: str) -> None:
    started: list[FakeGuest] = []

    def somebody(done: str) -> None:
        if done == event:
            started.append(case.world.host.start(case.guest.configuration))

    case.world.on_event = somebody
    with pytest.raises(NeedsAttention, match="another domain"):
        case.run()
    assert started[0].runs


def test_the_restore_gets_the_stream_not_the_header(case: Case) -> None:
    case.run()  # FakeHost.restore walks what it is given
    assert "restore" in case.world.events


def test_the_order_is_that_of_the_design(case: Case) -> None:
    case.run()
    verbs = ("destroy", "wait_gone", "revert", "restore", "unpause", "drop")
    order = [e for e in case.world.events if e.split()[0] in verbs]
    assert order == [
        "destroy",
        "wait_gone",
        "revert xvda",
        "revert xvdb",
        "restore",
        "unpause",
        "drop xvda",
        "drop xvdb",
    ]


# QEMU outlives its domain


@pytest.fixture
def qemu(case: Case) -> Iterator[subprocess.Popen[bytes]]:
    """What has the guest's disks open."""
    with ExitStack() as files:
        disks = case.guest.configuration.disks
        fds = [files.enter_context(open(d.target, "r+b")).fileno() for d in disks]
        with subprocess.Popen(["sleep", "60"], pass_fds=fds) as process:
            yield process
            process.kill()


def test_the_disks_wait_for_the_end_of_qemu(case: Case, qemu: subprocess.Popen[bytes]) -> None:
    case.guest.device_model = qemu.pid
    ended: list[bool] = []

    def ends(event: str) -> None:
        if event == "destroy":
            threading.Timer(0.2, qemu.kill).start()
        if event.startswith("revert"):
            ended.append(qemu.poll() is not None)

    case.world.on_event = ends
    case.run()
    assert ended == [True, True]


def test_a_qemu_that_does_not_end_is_not_waited_for_without_end(
    case: Case, qemu: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(destroy, "_GONE_S", 0.1)
    case.guest.device_model = qemu.pid
    start = time.monotonic()
    with pytest.raises(NeedsAttention, match=r"QEMU of vm1 \(pid \d+\) has not exited"):
        case.run()
    assert time.monotonic() - start < 5
    assert case.world.storage.content == {"xvda": "since", "xvdb": "since"}


def test_a_device_model_that_has_exited_already_is_no_failure(
    case: Case, qemu: subprocess.Popen[bytes]
) -> None:
    qemu.kill()
    qemu.wait()
    case.guest.device_model = qemu.pid
    case.run()
    case.assert_reverted()


# What comes back


def test_a_running_snapshot_comes_back_running(case: Case) -> None:
    result = case.run()
    assert (result.state, result.disks) == (RunState.RUNNING, ("xvda", "xvdb"))
    assert (result.name, result.domain, result.uuid) == (NAME, "vm1", UUID)
    assert result.domid != case.guest.domid
    case.assert_reverted()


def paused_plan(case: Case, *, running: bool) -> RevertPlan:
    """As from a memory file that says paused (create makes none such yet)."""
    data = case.memory_path.read_bytes()
    with case.memory_path.open("rb") as file:
        header = read_header(file, "x")
    assert header.metadata
    with case.memory_path.open("wb") as file:
        metadata = replace(header.metadata, state=RunState.PAUSED)
        write_header(file, config_json=header.config_json, metadata=metadata)
        file.write(data[header.stream_offset :])
    return case.plan(running=running)


def test_a_paused_snapshot_comes_back_paused(case: Case) -> None:
    result = Reversion(case.world.host, paused_plan(case, running=False)).run()
    assert result.state is RunState.PAUSED
    case.assert_reverted(paused=True)


def test_a_paused_snapshot_runs_if_it_is_told_to(case: Case) -> None:
    result = Reversion(case.world.host, paused_plan(case, running=True)).run()
    assert result.state is RunState.RUNNING
    case.assert_reverted()


def test_the_command_to_finish_says_running_and_force_if_they_were_said(case: Case) -> None:
    case.world.fail("restore", XenError("no", rc=-3, operation="restore"))
    with pytest.raises(NeedsAttention) as caught:
        operations.revert(
            case.world.host, "vm1", cfgfile.read(case.cfg), case.cfg, running=True, force=True
        )
    assert set(shlex.split(caught.value.finish)[4:]) == {"--running", "--force"}


def test_a_domain_that_is_off_comes_back(case: Case) -> None:
    case.guest.exists = False
    for domain in ("vm1", UUID):
        assert case.plan(domain).guest is None
    assert case.run().domain == "vm1"
    assert "destroy" not in case.world.events
    case.assert_reverted()


def test_a_renamed_domain_comes_back_under_its_present_name(case: Case) -> None:
    case.guest.name = "renamed"
    assert case.run("renamed").domain == "renamed"
    case.assert_reverted(name="renamed")


def test_the_old_name_of_a_renamed_domain_is_answered_with_the_new_one(case: Case) -> None:
    case.guest.name = "renamed"
    with pytest.raises(Refused, match="called 'renamed' now"):
        case.plan("vm1")


def test_a_domain_that_the_snapshot_is_not_of_is_not_found(case: Case) -> None:
    with pytest.raises(DomainNotFound, match="the snapshot is of 'vm1'"):
        case.plan("vm2")


# Refused, whatever is forced


def test_dom0_is_refused(case: Case) -> None:
    dom0 = case.world.guest(name="Domain-0", uuid=OTHER_UUID)
    dom0.domid = 0
    with pytest.raises(Refused, match="domain 0"):
        case.plan("Domain-0", force=True)


def test_a_stub_domain_is_refused(case: Case) -> None:
    stub = case.world.guest(name="vm1-dm", uuid=OTHER_UUID)
    stub.stub_domain = True
    with pytest.raises(Refused, match="vm1-dm is a stub domain"):
        case.plan("vm1-dm", force=True)


def test_a_name_held_by_another_domain_is_refused(case: Case) -> None:
    case.guest.exists = False
    case.world.guest(name="vm1", uuid=OTHER_UUID)
    with pytest.raises(Refused, match="holds vm1"):
        case.plan(UUID, force=True)


def test_a_uuid_held_by_another_domain_is_refused(case: Case) -> None:
    case.world.guest(name="vm2", uuid=OTHER_UUID)
    with pytest.raises(Refused, match=f"holds {UUID}"):
        case.plan("vm2", force=True)
    assert case.guest.runs


def test_a_disk_that_another_domain_has_now_is_refused(case: Case) -> None:
    disk = case.guest.configuration.disks[1]
    case.world.guest(disk, name="vm2", uuid=OTHER_UUID)
    with pytest.raises(Refused, match="xvdb: domain vm2 uses"):
        case.plan(force=True)


def test_a_disk_that_another_program_has_open_is_refused(case: Case) -> None:
    image = case.world.root / "images" / "xvda.qcow2"
    with image.open() as file, subprocess.Popen(["sleep", "60"], stdin=file) as other:
        try:
            with pytest.raises(Refused, match=rf"xvda: .* is in use by sleep \(pid {other.pid}\)"):
                case.run()
            case.guest.device_model = other.pid
            with pytest.raises(Risky, match=r"xvdb: .* is not the file that sleep"):
                case.plan()
        finally:
            other.kill()
    assert case.guest.runs


def test_a_disk_that_the_kernel_has_is_refused(case: Case) -> None:
    with looped(case.world.root / "images" / "xvda.qcow2") as device:
        says = f"xvda: .* is in use by {device.name}, "
        with pytest.raises(Refused, match=says):
            case.run(force=True)
    case.assert_nothing_changed()


def test_a_user_who_comes_after_the_plan_is_noticed(case: Case) -> None:
    plan = case.plan()
    with looped(case.world.root / "images" / "xvdb.qcow2") as device:
        says = f"xvdb: .* is in use by {device.name}, "
        with pytest.raises(Refused, match=says) as e:
            Reversion(case.world.host, plan).run()
    assert "nothing was changed" in str(e.value)
    case.assert_nothing_changed()


@pytest.mark.parametrize("after", ["checking", "prepare"])
def test_the_wait_for_who_looks_at_a_disk_can_be_cancelled(
    case: Case, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    """In the plan, and in the last look."""
    phases: list[str] = []

    def on_progress(progress: Progress) -> None:
        phases.append(progress.phase)
        if progress.phase.startswith("waiting"):
            case.cancel.set()

    monkeypatch.setattr(rivals, "_LOOKS_S", 0.0)
    monkeypatch.setattr(rivals, "users", lambda *_: ["lvs (pid 7)"] * (after in phases))
    request = RevertRequest(domain="vm1", cfgfile=str(case.cfg))
    with pytest.raises(Interrupted):
        revert(case.world.host, request, Callbacks(on_progress=on_progress), case.cancel)
    assert phases[-1] == "waiting for lvs (pid 7) to leave xvda alone"
    case.assert_nothing_changed()


def test_a_missing_disk_snapshot_is_refused(case: Case) -> None:
    del case.world.storage.snapshots["xvdb", NAME]
    with pytest.raises(Refused, match="xvdb has no disk snapshot"):
        case.plan(force=True)


def test_a_memory_file_that_others_can_change_is_risky(case: Case, public: Path) -> None:
    """Root would run what its configuration names."""
    reason = "others than root can change the memory file"
    there = public / case.memory_path.name
    shutil.copy(case.memory_path, there)
    case.edit(f'memory_path="{there}"\n')
    case.plan()
    there.chmod(0o606)
    with pytest.raises(Risky, match=rf"{reason} .*\.save is writable for everybody") as caught:
        case.run()
    assert caught.value.exit_code == 5
    case.assert_nothing_changed()
    assert any(reason in line for line in case.plan(force=True).warnings)


def test_a_missing_kernel_is_refused(case: Case) -> None:
    case.world.kernel.unlink()
    with pytest.raises(Refused, match="vmlinuz, which does not exist"):
        case.plan(force=True)


def test_a_missing_image_is_refused(case: Case) -> None:
    """Of a disk that is not put back; of the others their strategies know."""
    case.edit(f'memory_path="{case.memory_path}"\ndisks=[",,xvdb"]\n')
    Path(case.guest.configuration.disks[0].target).unlink()
    with pytest.raises(Refused, match=r"xvda\.qcow2, which does not exist"):
        case.plan(force=True)


@pytest.mark.parametrize("bridge", ["nosuchbr0", "x" * 5000])
def test_a_missing_bridge_is_refused(case: Case, bridge: str) -> None:
    config = config_of(*case.guest.configuration.disks, nics=[{"bridge": bridge}])
    case.save_memory(config=config.json, ours=False)
    with pytest.raises(Refused, match=f"bridge {bridge[:100]}"):
        case.plan(force=True)


class TestHost:
    """What the host lacks is in the plan: test_host_needs.py and test_qemu_version.py have all."""

    def saved_by(self, world: World, monkeypatch: pytest.MonkeyPatch, version: str) -> Case:
        model = DeviceModel(version)
        monkeypatch.setattr(create_examination, "examine_device_model", lambda *_: model)
        monkeypatch.setattr(qemu_version, "_refuses_files", lambda _: False)  # an 11.1 refuses
        world.host.device_model_path = shutil.which("qemu-system-i386") or ""
        return Case(world)

    def test_an_older_qemu_is_risky(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        case = self.saved_by(world, monkeypatch, "999.0.0")
        with pytest.raises(Risky, match=r"saved by QEMU 999\.0\.0"):
            case.run()
        case.assert_nothing_changed()
        assert "999.0.0" in case.run(force=True).warnings[0]
        case.assert_reverted()

    def test_a_newer_qemu_is_fine(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        case = self.saved_by(world, monkeypatch, "0.9.0")
        assert case.plan().warnings == ()

    def test_a_missing_qemu_is_refused(self, case: Case) -> None:
        case.world.host.device_model_path = "/nonexistent/qemu-system-i386"
        with pytest.raises(Refused, match="install QEMU for Xen"):
            case.plan(force=True)
        case.assert_nothing_changed()

    def test_a_snapshot_of_an_earlier_release_is_reverted_to(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        case = self.saved_by(world, monkeypatch, "")
        (warning,) = case.plan().warnings
        assert "does not tell which QEMU" in warning
        case.run()
        case.assert_reverted()

    def test_a_kernel_that_only_a_reboot_needs_is_said(self, case: Case) -> None:
        config = config_of(*case.guest.configuration.disks, kind="pvh", kernel="/nonexistent")
        case.save_memory(config=config.json, ours=False)
        case.edit(f'name="{NAME}"\nmemory_path="{case.memory_path}"\n')
        (warning,) = case.plan().warnings
        assert "cannot reboot" in warning


def test_too_little_memory_is_refused(case: Case) -> None:
    case.world.host.needed_kb = 2 << 20
    with pytest.raises(Refused, match="needs 2048 MiB of memory and Xen has 1025 MiB"):
        case.plan(force=True)


def test_memory_is_made_where_xl_would(case: Case) -> None:
    case.world.host.command_line = "console=vga"
    case.world.host.needed_kb = 2 << 20
    case.run()
    assert sum(case.world.host.shrunk_kb) == 1 << 20
    case.assert_reverted()


def test_memory_used_up_since_the_plan_is_refused(case: Case) -> None:
    plan = case.plan()
    case.world.host.needed_kb = 2 << 20
    with pytest.raises(Refused, match=r"not enough memory for vm1.*; nothing was changed"):
        Reversion(case.world.host, plan).run()
    case.assert_nothing_changed()


def test_memory_used_up_after_the_destroy_needs_a_person(case: Case) -> None:
    def used_up(event: str) -> None:
        if event == "destroy":
            case.world.host.needed_kb = 2 << 20

    case.world.on_event = used_up
    with pytest.raises(NeedsAttention, match="not enough memory for vm1"):
        case.run()
    case.world.on_event = lambda _: None
    case.world.host.needed_kb = 1024
    case.run()
    case.assert_reverted()


# Risky


def another_uuid(case: Case) -> str:
    case.guest.exists = False
    other = case.world.guest(*case.guest.configuration.disks, name="vm1", uuid=OTHER_UUID)
    assert other.runs
    return "another uuid"


def a_disk_added(case: Case) -> str:
    more = [*case.guest.configuration.disks, case.world.image("xvdc")]
    case.guest.configuration = config_of(*more)
    return "changed since: xvdc"


def a_disk_removed(case: Case) -> str:
    case.guest.configuration = config_of(*case.guest.configuration.disks[:1])
    return "changed since: xvdb"


def a_disk_elsewhere(case: Case) -> str:
    first, second = case.guest.configuration.disks
    other = replace(second, target=str(case.world.kernel))
    case.guest.configuration = config_of(first, other)
    return "changed since: xvdb"


def a_disk_not_in_it(case: Case) -> str:
    case.edit(f"memory_path = '{case.memory_path}'\ndisks = [',,xvda']\n")
    image = case.guest.configuration.disks[1].target  # that stays must be one that QEMU opens
    qemu_img("create", "-q", "-f", "qcow2", image, "1M")
    return "disks are not in the snapshot and may have changed since: xvdb"


def another_xen(case: Case) -> str:
    case.world.host.version = (4, 20)
    return "saved on Xen 4.17, and this host runs Xen 4.20"


def libvirt(case: Case) -> str:
    paths.LIBVIRT_DOMAINS.mkdir()
    (paths.LIBVIRT_DOMAINS / "vm1.xml").touch()
    return "managed by libvirt"


def what_only_qemu_has(case: Case) -> str:
    """As xl saves it, and earlier releases did."""
    usbctrls = [{"type": "devicemodel", "devid": 0}]
    case.save_memory(
        config=json.dumps({**case.guest.configuration.values, "usbctrls": usbctrls}), ours=False
    )
    case.edit(f"name = '{NAME}'\nmemory_path = '{case.memory_path}'\n")
    return "the saved domain has an emulated USB controller, and a restore may fail"


RISKS: list[Callable[[Case], str]] = [
    another_uuid,
    a_disk_added,
    a_disk_removed,
    a_disk_elsewhere,
    a_disk_not_in_it,
    another_xen,
    libvirt,
    what_only_qemu_has,
]


@pytest.mark.parametrize("risk", RISKS, ids=lambda r: r.__name__)
def test_a_risky_revert_is_done_only_with_force(case: Case, risk: Callable[[Case], str]) -> None:
    reason = risk(case)
    with pytest.raises(Risky) as caught:
        case.run()
    assert caught.value.exit_code == 5
    assert len(caught.value.reasons) == 1
    assert reason in caught.value.reasons[0]
    assert "destroy" not in case.world.events
    result = case.run(force=True)
    assert result.warnings[:-1] == caught.value.reasons
    (now,) = [g for g in case.world.host.guests if g.exists]
    assert (now.uuid, now.runs) == (UUID, True)


def test_all_risks_are_named_at_once(case: Case) -> None:
    another_xen(case)
    a_disk_added(case)
    with pytest.raises(Risky) as caught:
        case.run()
    assert len(caught.value.reasons) == 2


@pytest.mark.parametrize(
    "disk",
    [
        Disk("hdc", "", "empty", cdrom=True),
        Disk("hdc", "/nonexistent.iso", "raw", cdrom=True, readwrite=False),
        Disk("xvdr", "/nonexistent.img", "raw", readwrite=False),
    ],
)
def test_a_read_only_disk_more_is_no_risk(case: Case, disk: Disk) -> None:
    case.guest.configuration = config_of(*case.guest.configuration.disks, disk)
    case.run()
    case.assert_reverted()


# cfgfile and memory file


def test_another_snapshots_name_in_the_cfgfile_is_refused(case: Case) -> None:
    case.edit(f"name = 'other'\nmemory_path = '{case.memory_path}'\n")
    with pytest.raises(ConfigError, match="name: is 'other', but the memory file belongs to") as e:
        case.plan(force=True)
    assert (e.value.file, e.value.item) == (str(case.cfg), "name")


def test_a_cfgfile_that_names_no_memory_file_is_refused(case: Case) -> None:
    case.edit("name = 'snap'\n")
    with pytest.raises(ConfigError, match="memory_path: names no memory file"):
        case.plan()


def test_a_cfgfile_that_names_an_unknown_disk_is_refused(case: Case) -> None:
    case.edit(f"memory_path = '{case.memory_path}'\ndisks = [',,xvdz']\n")
    with pytest.raises(ConfigError, match="no disk xvdz"):
        case.plan()


def test_a_cfgfile_with_the_memory_file_alone_is_enough(case: Case) -> None:
    case.edit(f"memory_path = '{case.memory_path}'\n")
    case.run()
    assert case.world.storage.content == {"xvda": "before", "xvdb": "before"}


def test_a_relative_memory_path_is_beside_the_cfgfile(case: Case) -> None:
    case.edit(f"memory_path = '{case.memory_path.name}'\n")
    assert case.plan().memory_path == case.memory_path


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("cut", [1, 8, 100, 10_000])
def test_a_truncated_memory_file_is_refused_before_anything_happens(
    case: Case, cut: int, force: bool
) -> None:
    case.memory_path.write_bytes(case.memory_path.read_bytes()[: -min(cut, 10_000)])
    with pytest.raises(BadMemoryFile) as caught:
        case.run(force=force)
    assert caught.value.exit_code == 3
    assert caught.value.path == str(case.memory_path)
    assert case.guest.runs


@pytest.mark.parametrize("uuid", ["../../etc/x", UUID.upper(), ""])
def test_a_memory_file_whose_uuid_is_none_is_refused_before_a_lock_is_named_after_it(
    case: Case, uuid: str
) -> None:
    """The uuid names files of ours."""
    with case.memory_path.open("r+b") as file:
        header = read_header(file, "x")
        assert header.metadata
        file.seek(header.stream_offset)
        stream = file.read()
    config = config_of(uuid=uuid)
    with case.memory_path.open("wb") as file:
        write_header(file, config_json=config.json, metadata=header.metadata)
        file.write(stream)
    with pytest.raises(BadMemoryFile, match="uuid"):
        case.run()
    with pytest.raises(BadMemoryFile, match="uuid"):
        saved_uuid(
            RevertRequest(domain="vm1", cfgfile=str(case.cfg), config=cfgfile.read(case.cfg))
        )


def test_a_domain_whose_configuration_cannot_be_read_comes_back_by_force(case: Case) -> None:
    """Its QEMU has crashed: just the case for a revert."""
    case.world.fail("config", XenError("no QEMU", rc=-3, operation="retrieve"))
    with pytest.raises(Risky, match="cannot be read"):
        case.run()
    case.run(force=True)
    case.world.faults.clear()
    case.assert_reverted()


def test_the_domain_is_watched_afterwards(case: Case) -> None:
    started: list[str] = []
    result = Reversion(case.world.host, case.plan(), Callbacks(start_monitor=started.append)).run()
    assert started == [UUID]
    assert result.warnings == ()


def test_a_domain_without_a_watch_is_reported(case: Case) -> None:
    (warning,) = case.run().warnings
    assert "no process watches vm1 now:" in warning


def test_a_watch_that_does_not_begin_is_no_failure_of_the_revert(case: Case) -> None:
    def fail(uuid: str) -> None:
        raise OperationFailed("no process", step="monitor")

    (warning,) = (
        Reversion(case.world.host, case.plan(), Callbacks(start_monitor=fail)).run().warnings
    )
    assert "no process watches vm1 now (no process)" in warning
    case.assert_reverted()


def test_a_missing_memory_file_is_refused(case: Case) -> None:
    case.memory_path.unlink()
    with pytest.raises(BadMemoryFile, match="cannot be read: No such file"):
        case.plan(force=True)


def test_a_foreign_memory_file_is_refused(case: Case) -> None:
    case.memory_path.write_bytes(b"GIF89a" + bytes(10_000))
    with pytest.raises(BadMemoryFile, match="not a memory file"):
        case.plan(force=True)


def test_a_memory_file_of_xl_save_needs_the_name_from_the_cfgfile(case: Case) -> None:
    case.save_memory(ours=False)
    case.edit(f"memory_path = '{case.memory_path}'\n")
    with pytest.raises(ConfigError, match="name: is missing"):
        case.plan()


def test_a_memory_file_of_xl_save_can_be_reverted_to(case: Case) -> None:
    case.save_memory(ours=False)
    case.before = case.world.photo()
    result = case.run()
    assert (result.state, result.disks) == (RunState.RUNNING, ("xvda", "xvdb"))
    case.assert_reverted()


# The whole function


class TestTheWholeFunction:
    def revert(self, case: Case, domain: str = "vm1", **options: object) -> Reverted:
        return operations.revert(
            case.world.host,
            domain,
            cfgfile.read(case.cfg),
            case.cfg,
            **options,  # type: ignore[arg-type]
        )

    def test_reverts_and_lets_go_of_the_lock(self, case: Case) -> None:
        phases: list[str] = []

        def note(progress: Progress) -> None:
            phases.append(progress.phase)

        self.revert(case, on_progress=note)
        assert phases == ["checking", *STEPS]
        case.assert_reverted()
        DomainLock(UUID, domain="vm1").release()

    def test_takes_the_locks_of_both_domains(self, case: Case) -> None:
        another_uuid(case)
        shared: list[str] = []
        self.revert(case, force=True, share_lock=lambda uuid, _: shared.append(uuid))
        assert set(shared) == {UUID, OTHER_UUID}

    @pytest.mark.parametrize("uuid", [UUID, OTHER_UUID])
    def test_another_operation_on_either_domain_is_busy(self, case: Case, uuid: str) -> None:
        another_uuid(case)
        lock = DomainLock(uuid, domain="vm1")
        with pytest.raises(Busy):
            self.revert(case, force=True)
        lock.release()
        for free in (UUID, OTHER_UUID):
            DomainLock(free, domain="vm1").release()

    def test_a_domain_that_is_off_is_reverted_by_its_uuid(self, case: Case) -> None:
        case.guest.exists = False
        self.revert(case, UUID)
        case.assert_reverted()

    def test_a_killed_create_is_recovered_first(self, case: Case) -> None:
        entry = create_entry(name="half")
        Journal(UUID).write(entry)
        with pytest.raises(Refused, match=f"snapshot-recover {UUID}"):
            self.revert(case)
        assert Journal(UUID).read() == entry
        assert case.guest.exists

    def test_a_journal_of_a_killed_revert_does_not_stop_it(self, case: Case) -> None:
        case.fails_at("restore", "before", raising(FAULTS["bug"]), NeedsAttention)
        assert Journal(UUID).read() is not None
        self.revert(case, UUID)
        case.assert_reverted()

    def test_a_cancel_while_the_memory_file_is_read(self, case: Case) -> None:
        def cancel_now(progress: Progress) -> None:
            case.cancel.set()

        with pytest.raises(Interrupted, match="reverting vm1 was interrupted"):
            self.revert(case, on_progress=cancel_now, cancel=case.cancel)
        assert "destroy" not in case.world.events
        assert case.guest.runs

    def test_a_dry_run_describes_the_run_and_changes_nothing(self, case: Case) -> None:
        before = case.world.photo()
        plan = operations.preview_revert(
            case.world.host, "vm1", cfgfile.read(case.cfg), case.cfg, running=True
        )
        assert (plan.operation, plan.name, plan.domain) == ("revert", NAME, "vm1")
        assert [(d.vdev, d.how) for d in plan.disks] == [("xvda", "fake"), ("xvdb", "fake")]
        assert plan.seconds_suspended is None
        assert case.world.photo() == before
        assert case.guest.runs

    def test_a_dry_run_is_risky_as_the_run_would_be(self, case: Case) -> None:
        case.guest.uuid = OTHER_UUID
        with pytest.raises(Risky):
            operations.preview_revert(case.world.host, "vm1", cfgfile.read(case.cfg), case.cfg)
        plan = operations.preview_revert(
            case.world.host, "vm1", cfgfile.read(case.cfg), case.cfg, force=True
        )
        assert any("another uuid" in w for w in plan.warnings)


class TestKeepCurrent:
    """The present is a snapshot, too, before it is destroyed."""

    def revert(self, case: Case, **options: object) -> Reverted:
        return operations.revert(
            case.world.host,
            "vm1",
            cfgfile.read(case.cfg),
            case.cfg,
            keep_current=True,
            **options,  # type: ignore[arg-type]
        )

    def test_one_can_go_back_to_it(self, case: Case) -> None:
        result = self.revert(case)
        assert case.world.storage.content == {"xvda": "before", "xvdb": "before"}
        kept = Path(result.kept)
        assert kept.stem.startswith(f"before-{NAME}-")
        back = operations.revert(case.world.host, "vm1", cfgfile.read(kept), kept)
        assert back.state is RunState.RUNNING
        assert case.world.storage.content == {"xvda": "since", "xvdb": "since"}
        assert Journal(UUID).read() is None

    def test_if_it_cannot_be_kept_nothing_else_is_done(self, case: Case) -> None:
        case.world.fail("create xvdb", XenError("no", rc=-3, operation="x"))
        with pytest.raises(OperationFailed, match="everything is as before"):
            self.revert(case)
        assert "destroy" not in case.world.events
        assert case.guest.runs

    def test_the_kept_snapshot_is_named_when_the_revert_fails(self, case: Case) -> None:
        case.world.fail("restore", XenError("no", rc=-3, operation="x"))
        with pytest.raises(
            NeedsAttention, match=r"the snapshot of the present state stays: .*/before-snap-.*\.cfg"
        ):
            self.revert(case)

    def test_of_a_domain_that_is_off_there_is_nothing_to_keep(self, case: Case) -> None:
        case.guest.exists = False
        with pytest.raises(Refused, match="vm1 is off and has no present state to keep"):
            self.revert(case)
        assert case.world.storage.content == {"xvda": "since", "xvdb": "since"}

    def test_its_disks_are_beside_those_that_are_put_back(
        self, case: Case, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One inside a file that the revert replaces would go with it."""
        wanted = replace(
            cfgfile.read(case.cfg),
            disks=(DiskRequest("xvda", "/srv/frozen", "qcow2"), DiskRequest("xvdb")),
        )
        result = operations.revert(
            case.world.host, "vm1", wanted, case.cfg, keep_current=True, force=True
        )
        kept = cfgfile.read(Path(result.kept))
        assert kept.disks == (
            DiskRequest("xvda", f"/srv/frozen.{kept.name}", "qcow2"),
            DiskRequest("xvdb"),
        )

    def test_a_raw_disk_that_is_left_alone_is_not_copied(self, case: Case) -> None:
        raw = case.world.root / "images" / "raw.img"
        raw.touch()
        disks = (*case.guest.configuration.disks, Disk("xvdc", str(raw), "raw", "phy"))
        case.guest.configuration = config_of(*disks, kernel=str(case.world.kernel))
        kept = cfgfile.read(Path(self.revert(case, force=True).kept))
        assert kept.disks
        assert [d.vdev for d in kept.disks] == ["xvda", "xvdb"]

    def test_a_revert_no_longer_possible_is_noticed_before_the_destroy(self, case: Case) -> None:
        """The kept snapshot has taken the space."""
        full = Refused("no space")

        def fill(event: str) -> None:
            if event == "finish xvdb":
                case.world.fail("check_revert", full)

        case.world.on_event = fill
        with pytest.raises(OperationFailed, match=r"no space; .* stays: .*/before-snap-.*\.cfg"):
            self.revert(case)
        assert "destroy" not in case.world.events
        assert case.guest.runs

    def test_an_unfinished_revert_is_finished_first(self, case: Case) -> None:
        plan = case.plan()
        for name, do in Reversion(case.world.host, plan).steps():
            do()
            if name == "restore":
                break
        before = Journal(UUID).read()
        with pytest.raises(Refused, match="was killed"):
            self.revert(case)
        assert Journal(UUID).read() == before

    def test_a_dry_run_says_that_it_cannot_be_kept(self, case: Case) -> None:
        case.guest.exists = False
        with pytest.raises(Refused, match="vm1 is off and has no present state to keep"):
            operations.preview_revert(
                case.world.host, "vm1", cfgfile.read(case.cfg), case.cfg, keep_current=True
            )


def test_a_failure_while_a_killed_revert_is_finished_does_not_forget_that_one(case: Case) -> None:
    """Its disks are half-way back, and only the journal says so."""
    for name, do in Reversion(case.world.host, case.plan()).steps():
        do()
        if name == "disks":
            break
    case.world.fail("revert xvda", XenError("no", rc=-3, operation="x"))
    for _ in range(2):
        with pytest.raises(NeedsAttention):
            case.run()
        assert killed_revert().destroy_begun
    case.world.faults.clear()
    case.run()
    case.assert_reverted()


def test_a_domain_that_ends_by_itself_meanwhile_stops_the_revert(case: Case) -> None:
    """It may just be rebooting; the program that starts it again has its disks open."""
    plan = case.plan()
    case.guest.exists = False
    with pytest.raises(OperationFailed, match="nothing was changed"):
        Reversion(case.world.host, plan).run()
    assert "revert xvda" not in case.world.events


# A revert that a killed one has begun


def killed_after_the_destroy(case: Case) -> None:
    run_until(Reversion(case.world.host, case.plan()).steps(), "destroy")
    case.world.host.version = (4, 18)  # what was no risk then is a risk now


def test_finishing_a_revert_does_not_force_what_nobody_has_forced(case: Case) -> None:
    killed_after_the_destroy(case)
    case.world.fail("restore", XenError("no"))
    with pytest.raises(NeedsAttention) as caught:
        operations.revert(case.world.host, UUID, cfgfile.read(case.cfg), case.cfg)
    assert "--force" not in caught.value.finish
    assert not killed_revert().request.force
    case.world.faults.clear()
    operations.revert(case.world.host, UUID, cfgfile.read(case.cfg), case.cfg)
    case.assert_reverted()


def test_another_way_to_write_the_cfgfiles_path_finishes_it_too(case: Case) -> None:
    killed_after_the_destroy(case)
    path = f"{case.cfg.parent}//{case.cfg.name}"
    request = RevertRequest(domain=UUID, cfgfile=path)
    revert(case.world.host, request, Callbacks())
    case.assert_reverted()


@pytest.mark.parametrize("step", ["destroy", "disks", "restore"])
def test_a_cancel_before_the_first_step_does_not_forget_a_killed_revert(
    case: Case, step: str
) -> None:
    run_until(Reversion(case.world.host, case.plan()).steps(), step)
    plan = case.plan(UUID)
    case.cancel.set()
    with pytest.raises(NeedsAttention, match="run the command again to finish"):
        Reversion(case.world.host, plan, cancel=case.cancel).run()
    assert killed_revert().destroy_begun
    case.cancel = Cancel()
    case.run(UUID)
    case.assert_reverted()


class TestWhatIsKept:
    """What has the name of a kept disk is ours only if this run made it, or the one it finishes."""

    KEPT = ("xvda", f"{NAME}.pre-revert")

    def test_what_is_left_from_before_is_refused_beforehand(self, case: Case) -> None:
        case.world.storage.snapshots[self.KEPT] = "the user's"
        with pytest.raises(Refused, match=r"xvda has '.*\.pre-revert' already"):
            operations.revert(case.world.host, "vm1", cfgfile.read(case.cfg), case.cfg)
        assert case.guest.runs
        assert case.world.storage.snapshots[self.KEPT] == "the user's"

    def test_the_journal_tells_it(self, case: Case) -> None:
        run_until(Reversion(case.world.host, case.plan()).steps(), "disks")
        assert killed_revert().disk_state["xvda kept"] == ""
        assert case.world.storage.snapshots[self.KEPT] == "since"
        case.run(UUID)
        case.assert_reverted()

    def test_an_entry_of_version_1_tells_nothing(self, case: Case) -> None:
        """What is there may be the present: it is for the user to move away."""
        run_until(Reversion(case.world.host, case.plan()).steps(), "disks")
        Journal(UUID).rewrite(replace(killed_revert(), disk_state={}))
        with pytest.raises(Refused, match="already"):
            case.run(UUID)
        assert case.world.storage.snapshots[self.KEPT] == "since"

    def test_what_an_interrupted_revert_to_another_snapshot_kept_is_named(self, case: Case) -> None:
        run_until(Reversion(case.world.host, case.plan()).steps(), "disks")
        Journal(UUID).rewrite(replace(killed_revert(), name="other"))
        del case.world.storage.snapshots[self.KEPT]
        del case.world.storage.snapshots["xvdb", f"{NAME}.pre-revert"]
        warning = case.run(UUID).warnings[0]
        assert "the interrupted revert to other may have kept disks" in warning
        assert "end in .other.pre-revert" in warning

    def test_a_recovery_removes_it_and_no_more(self, case: Case) -> None:
        run_until(Reversion(case.world.host, case.plan()).steps(), "monitor")
        kept = case.world.storage.snapshots.pop(("xvdb", f"{NAME}.pre-revert"))
        entry = killed_revert()
        state = {k: v for k, v in entry.disk_state.items() if k != "xvdb kept"}
        Journal(UUID).rewrite(replace(entry, disk_state=state))
        case.world.storage.snapshots["xvdb", f"{NAME}.pre-revert"] = kept
        operations.recover(case.world.host, UUID)
        assert self.KEPT not in case.world.storage.snapshots
        assert ("xvdb", f"{NAME}.pre-revert") in case.world.storage.snapshots


def test_a_process_of_xl_that_was_only_told_the_name_is_no_failure(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It watches another domain: its config file was used for this one before, or since."""
    monkeypatch.setattr(other_watch, "_XL_S", 0.1)
    with subprocess.Popen(["sleep", "60"]) as other:
        found = Xl(other.pid, ("xl", "create", "-F", "vm1.cfg"), foreground=True, has_log=False)
        monkeypatch.setattr(other_watch, "xl_process", lambda *_: found)
        done = case.run()
        assert any(f"xl's process {other.pid} (xl create -F vm1.cfg)" in w for w in done.warnings)
        case.assert_reverted()
        monkeypatch.setattr(other_watch, "xl_process", lambda *_: replace(found, has_log=True))
        with pytest.raises(NeedsAttention, match="xl still watches vm1"):
            case.run()
        other.kill()


def test_xls_process_is_looked_for_by_the_domid(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another xl may have a log of the name: that of a domain which was renamed."""
    asked: list[tuple[str, int | None]] = []

    def xl_process(name: str, domid: int | None) -> None:
        asked.append((name, domid))

    monkeypatch.setattr(other_watch, "xl_process", xl_process)
    case.run()
    case.world.host.guests[-1].exists = False
    case.run()
    assert asked == [("vm1", case.guest.domid), ("vm1", None)]
