"""A domain of ours lives like one of xl's: when its guest reboots it comes up again."""

import time

import pytest

from tests.lab.harness import image
from tests.lab.harness.guests import Guest
from tests.lab.harness.lab import Lab
from tests.lab.harness.snapshots import create, goes_back, needs_restore, revert

WATCHER = "[p]yxlsnap.monitor"


def watchers(guest: Guest) -> int:
    """How many processes of ours watch domains."""
    return len(guest.dom0.run(f"pgrep -f '{WATCHER}'", check=False).out.split())


def log_of(guest: Guest) -> str:
    return guest.dom0.read(f"/var/log/xen/pyxlsnap-{guest.name}.log").decode()


def xl_watches(guest: Guest) -> bool:
    return guest.dom0.run(f"pgrep -f 'xl create -q {guest.config}'", check=False).rc == 0


def shut_down(guest: Guest, key: str) -> None:
    """Let the guest's own kernel reboot ("b"), power off ("o") or crash ("c")."""
    guest.dom0.run(["xl", "sysrq", guest.name, key])


def reboot(guest: Guest) -> None:
    """It comes up again as another domain, on its own disks, with nothing lost."""
    last, domid = guest.assert_healthy(), guest.domid()
    shut_down(guest, "b")
    tick = guest.wait_advance(3, timeout=240)
    while tick.boot == last.boot:  # what it still said before
        tick = guest.wait_advance(1, timeout=240)
    assert tick.ok, guest.bad_lines()[-20:]
    assert tick.n > last.n
    assert guest.domid() != domid


@pytest.mark.long
@pytest.mark.parametrize(
    "kind", ["pvh", *(pytest.param(k, marks=pytest.mark.soak) for k in ("pv", "hvm"))]
)
def test_a_guest_that_reboots_comes_up_again(fresh_lab: Lab, kind: str) -> None:
    """After a snapshot, whether xl's process stays at the suspend or not; and after a revert."""
    needs_restore(kind)
    xl_stays = image.wanted().xl_stays
    fresh_lab.spend()
    guest = fresh_lab.guest(kind)
    assert xl_watches(guest)
    made = create(guest, "--name", "watched")
    assert made["warnings"] == []
    assert watchers(guest) == (0 if xl_stays else 1)
    reboot(guest)
    assert xl_watches(guest) == xl_stays

    later, mark = guest.assert_healthy(), guest.mark()
    result = revert(guest, made["cfgfile"])
    assert result["warnings"] == []
    goes_back(guest, mark, later)
    assert watchers(guest) == 1  # the one before has seen its domain go
    reboot(guest)

    reboots = 1 if xl_stays else 2
    assert log_of(guest).count("shut down (reboot): performing the action restart") == reboots
    if kind == "hvm":  # whose kernel ends in a reboot, whatever the key
        return
    # Without help from its user space only a PV guest's kernel powers off.
    shut_down(guest, "o" if kind == "pv" else "c")
    end = time.monotonic() + 60
    while watchers(guest):
        assert time.monotonic() < end, "nothing is left to watch"
    assert log_of(guest).count(" shut down (") == reboots + 1
    assert guest.exists() == (kind != "pv")  # a crash is configured to be preserved


@pytest.mark.soak
def test_xl_in_the_foreground_is_noticed(spent_lab: Lab) -> None:
    """It has no log, ends at the suspend before Xen 4.20, and its service manager may react."""
    guest = spent_lab.guest("pvh")
    guest.assert_healthy()
    guest.destroy()
    guest.dom0.run(
        f"setsid xl create -F {guest.config} </dev/null >/tmp/foreground.log 2>&1 & sleep 5"
    )
    first = guest.wait_advance(3, timeout=240)
    made = create(guest, "--name", "foreground")
    if image.wanted().xl_stays:
        assert made["warnings"] == []
        assert watchers(guest) == 0
    else:
        (warning,) = made["warnings"]
        assert "xl watches pvh in the foreground (pid " in warning
        assert f"xl create -F {guest.config}), and ends when the guest is suspended" in warning
        assert watchers(guest) == 1
        assert guest.dom0.run("pgrep -f '[x]l create -F'", check=False).rc == 1
    assert guest.assert_healthy().n > first.n
    reboot(guest)


@pytest.mark.soak
def test_a_watch_of_ones_own(spent_lab: Lab) -> None:
    """An embedder's: without a process of ours it gets the events, and ends the watch."""
    guest = spent_lab.guest("pvh")
    made = create(guest, "--name", "own", "--no-monitor")
    if image.wanted().xl_stays:
        assert made["warnings"] == []
        assert xl_watches(guest)
        made = revert(guest, made["cfgfile"], "--no-monitor")
    assert ["no process watches pvh now" in w for w in made["warnings"]] == [True]
    assert watchers(guest) == 0
    spent_lab.dom0.write("/tmp/own.py", OWN)
    with spent_lab.dom0.start(["python3", "/tmp/own.py", "pvh"]) as running:
        assert "watching" in next(running.lines(timeout=60))
        reboot(guest)
        shut_down(guest, "c")  # which is configured to be preserved
        done = running.wait(120)
    assert done.rc == 0, done
    assert done.out.splitlines()[1:] == ["reboot restart True", "crash preserve False", "over"]
    assert guest.state() == "---sc-"


OWN = b"""\
import sys, threading, pyxlsnap
def show(event):
    print(event.reason, event.action, event.new_domid not in (None, event.domid), flush=True)
print("watching", flush=True)
pyxlsnap.monitor_domain(sys.argv[1], on_event=show)
print("over")
"""
