"""A guest in every state of life: no snapshot, and the guest unharmed; or one that comes back."""

import json
import time

import pytest

from tests.lab.harness.guests import FIRST_TICK, Guest
from tests.lab.harness.lab import Lab
from tests.lab.harness.snapshots import (
    cannot_go_back,
    create,
    forget,
    goes_back,
    needs_restore,
    pyxlsnap,
    restores,
    revert,
    run_script,
)

SOAK = pytest.mark.soak
KINDS = [pytest.param("pv", marks=SOAK), "pvh", pytest.param("hvm", marks=SOAK)]


def states(guest: Guest) -> str:
    """The xenbus state of each device, for the log."""
    base = f"/local/domain/{guest.domid()}/device"
    look = f"for d in $(xenstore-list -p {base} | grep -v suspend); do xenstore-ls -fp $d; done"
    return guest.dom0.run(f"{look} | grep /state", check=False).out


def assert_lives(guest: Guest, timeout: float = FIRST_TICK) -> None:
    """It counts, or does once it has booted, and finds nothing wrong on the disks that it has."""
    tick = guest.wait_advance(3, timeout=timeout)
    assert tick.mem_ok
    there = [ok for vdev, (_, ok) in tick.disks.items() if vdev in guest.disks]
    assert all(there), guest.bad_lines()[-20:]


def comes_back_or_is_refused(guest: Guest, name: str, *words: str) -> int:
    """Take a snapshot of a guest in whatever state; returns the exit status."""
    paused = "p" in guest.state()
    done = pyxlsnap(guest.dom0, "snapshot-create", guest.name, "--name", name, *words)
    print(f"{guest.name} {name}: {done.rc} {done.err.strip()}\n{states(guest)}")
    assert done.rc in (0, 1, 3), done
    assert ("p" in guest.state()) == paused
    if done.rc == 0 and restores(guest.kind):
        made = f"/var/lib/xen/snapshots/{guest.uuid}/{name}.cfg"
        revert(guest, made, "--running")
    elif paused:
        guest.unpause()
    assert_lives(guest)
    forget(guest, name)
    return done.rc


def emulated_disks(guest: Guest) -> list[str]:
    """QEMU's names of the disks that it emulates."""
    blocks = [block for block in guest.qmp("query-block") if block.get("inserted")]
    return [b["device"] for b in blocks if b["device"] and not b["inserted"]["ro"]]


def refused(guest: Guest, *says: str) -> None:
    done = pyxlsnap(guest.dom0, "snapshot-create", guest.name, "--name", "no")
    assert done.rc == 3, done
    (line,) = done.err.splitlines()
    assert all(word in line for word in says), line


@pytest.mark.soak
@pytest.mark.usefixtures("tidy")
@pytest.mark.parametrize("kind", ["pv", "pvh", "hvm"])
def test_one_that_is_paused_since_its_restore(lab: Lab, kind: str) -> None:
    """Its drivers believe themselves connected, and its devices are not."""
    needs_restore(kind)
    guest = lab.guest(kind)
    guest.assert_healthy()
    guest.pause()
    paused = create(guest, "--name", "paused")
    assert revert(guest, paused["cfgfile"])["state"] == "paused"
    refused(guest, f"{kind} has not run since it was started or restored", f"xl unpause {kind}")
    assert guest.state() == "--p---"

    # The same, but for a moment in which it has run.
    guest.dom0.run(f"xl unpause {kind}; sleep 0.05; xl pause {kind}")
    comes_back_or_is_refused(guest, "moment")

    # And once it has really run.
    made = create(guest, "--name", "later")
    later, mark = guest.wait_advance(8), guest.mark()
    revert(guest, made["cfgfile"])
    goes_back(guest, mark, later)


@pytest.mark.soak
@pytest.mark.usefixtures("tidy")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("words", [[], ["--live"]], ids=["stopped", "live"])
def test_one_that_was_restored_just_now(lab: Lab, kind: str, words: list[str]) -> None:
    if (kind, words) == ("pv", ["--live"]):
        pytest.skip("Debian's Xen cannot log the dirty pages of a PV guest")
    needs_restore(kind)
    guest = lab.guest(kind)
    guest.assert_healthy()
    made = create(guest, "--name", "base")
    for number in range(3):
        revert(guest, made["cfgfile"])
        comes_back_or_is_refused(guest, f"soon{number}", *words)


@SOAK
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kind", ["pv", "pvh", "hvm", "tinyhvm"])
def test_one_that_is_new_or_boots(spent_lab: Lab, kind: str) -> None:
    """At growing times after its start: in its firmware, without drivers, and with."""
    guest = Guest(spent_lab.dom0, "new", kind)
    guest.create()
    guest.destroy()
    guest.dom0.run(["xl", "create", "-q", "-p", guest.config])
    refused(guest, "new has not run since it was started or restored")
    guest.unpause()
    outcomes = []
    for delay_s in (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0):
        time.sleep(delay_s)
        outcomes.append(comes_back_or_is_refused(guest, f"after{delay_s:g}"))
        guest.destroy()
        guest.start()
    time.sleep(1)
    assert_lives(guest)
    print(f"{kind}: {outcomes}")


@SOAK
@pytest.mark.timeout(3600)
def test_one_whose_kernel_has_unplugged_its_emulated_disks(spent_lab: Lab) -> None:
    """It boots: its drivers have connected no device yet. It keeps the CD in its drive."""
    guest = Guest(spent_lab.dom0, "new", "hvm")
    guest.create()
    guest.destroy()
    medium = "format=raw,vdev=hdd,devtype=cdrom,access=ro,target=/lab/disk/cd.iso"
    guest.dom0.run(["truncate", "-s", "1M", "/lab/disk/cd.iso"])
    config = guest.config_text().replace("disk = [", f'disk = [ "{medium}",')
    guest.dom0.write(guest.config, config)
    guest.start()
    outcomes = []
    for delay_s in (0.0, 1.0, 3.0):
        while emulated_disks(guest):
            time.sleep(0.2)
        assert any("cd.iso" in str(block) for block in guest.qmp("query-block"))
        time.sleep(delay_s)
        print(states(guest))
        outcomes.append(comes_back_or_is_refused(guest, f"unplugged{delay_s:g}"))
        guest.destroy()
        guest.start()
    assert_lives(guest)
    print(outcomes)


@pytest.mark.usefixtures("tidy")
def test_xenstore_reports_a_change_of_devices_before_it_answers_what_comes_later(lab: Lab) -> None:
    """So one answer without a report says that nothing has changed."""
    guest = lab.guest("pvh")
    done = run_script(lab.dom0, "devices_watched.py", guest.name)
    assert done.rc == 0, done
    found = json.loads(done.out)
    assert set(found["changed"]) == {True}
    assert set(found["first"] + found["again"]) == {False}
    guest.assert_healthy()


@SOAK
@pytest.mark.parametrize("kind", ["pvh", "hvm"])
def test_a_device_plugged_in_while_memory_is_saved(spent_lab: Lab, kind: str) -> None:
    guest = spent_lab.guest(kind)
    guest.assert_healthy()
    image = "/lab/disk/plugged.qcow2"
    guest.dom0.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "8M"])
    spec = f"format=qcow2,vdev=xvdp,access=rw,target={image}"
    with guest.dom0.start(f"sleep 4; xl block-attach {kind} '{spec}'") as plugging:
        first = pyxlsnap(guest.dom0, "snapshot-create", kind, "--live", "--name", "during")
        plugging.wait(120)
    assert first.rc in (0, 1, 3), first
    assert_lives(guest)
    forget(guest)
    made = create(guest, "--live", "--name", "with")
    if cannot_go_back(guest, made["cfgfile"]):
        return
    later, mark = guest.wait_advance(8), guest.mark()
    revert(guest, made["cfgfile"])
    goes_back(guest, mark, later)


@SOAK
@pytest.mark.usefixtures("tidy")
def test_a_usb_controller_that_was_added_later(lab: Lab) -> None:
    guest = lab.guest("hvm")
    guest.assert_healthy()
    guest.dom0.run(["xl", "usbctrl-attach", "hvm", "type=devicemodel", "version=2"])
    refused(guest, "an emulated USB controller", "xl usbctrl-detach hvm 0")
    guest.dom0.run(["xl", "usbctrl-detach", "hvm", "0"])
    made = create(guest, "--name", "without")
    if cannot_go_back(guest, made["cfgfile"]):
        return
    later, mark = guest.wait_advance(8), guest.mark()
    revert(guest, made["cfgfile"])
    goes_back(guest, mark, later)


@SOAK
def test_a_disk_that_only_qemu_knows(spent_lab: Lab) -> None:
    guest = Guest(spent_lab.dom0, "more", "tinyhvm")
    guest.create()
    guest.destroy()
    image = "/lab/disk/only-qemu.raw"
    guest.dom0.run(["truncate", "-s", "1M", image])
    drive = f"if=none,id=only,format=raw,file={image}"
    config = guest.config_text()
    assert '"-chardev"' in config
    more = config.replace('"-chardev"', f'"-drive", "{drive}", "-chardev"')
    guest.dom0.write(guest.config, more)
    guest.start()
    guest.wait_advance(3)
    refused(guest, f"-drive {drive}", "device_model_args")
    # The same, but added to the running QEMU.
    guest.destroy()
    guest.dom0.write(guest.config, config)
    guest.start()
    guest.wait_advance(3)
    guest.qmp("human-monitor-command", **{"command-line": f"drive_add 0 {drive}"})
    refused(guest, "none of the domain's", image)
    assert_lives(guest)


@SOAK
@pytest.mark.parametrize("kind", ["pv", "pvh", "hvm"])
def test_a_disk_that_was_detached(spent_lab: Lab, kind: str) -> None:
    """The guest lets it go between two ticks, and finds it missing from then on."""
    guest = spent_lab.guest(kind)
    guest.assert_healthy()
    guest.dom0.run(["xl", "block-detach", kind, "xvdb"], check=False, timeout=120)
    del guest.disks["xvdb"]
    time.sleep(2)
    comes_back_or_is_refused(guest, "detached")
