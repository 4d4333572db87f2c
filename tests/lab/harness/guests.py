"""Guests that can tell: what they are started from, and what they say (files/guest.c)."""

import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import NAMESPACE_DNS, uuid5

from .dom0 import CommandTimeout, Dom0
from .emulation import EmulationFault, blames_the_processor
from .patience import patient

# Everything is in the lab's own directories in the dom0.
DISKS, CONFIGS, LOGS = "/lab/disk", "/lab/cfg", "/var/log/xen"
DISK_SIZE = "64M"
KERNEL_WORDS = "console=hvc0 loglevel=4 mitigations=off sysrq_always_enabled"
MEMORY_MIB = 128
# What a guest that is silent does: its CPU now and two seconds later, its devices, its QEMU.
LOOK = """\
id=$(xl domid {name}); tail -n 60 {log}; xl list; xl vcpu-list {name}
xenstore-ls -f | grep -E "^/local/domain/(0/backend/.*/)?$id/.*state = "
for look in 1 2; do sleep 2; /usr/lib/xen-*/bin/xenctx -a $id 0 | head -n 60; done
timeout 20 xl qemu-monitor-command {name} 'info status'
timeout 20 xl qemu-monitor-command {name} 'info block'
xl dmesg | tail -n 20; tail -n 20 {logs}/qemu-dm-{name}.log; top -b -n 1 | head -n 15
"""
# Generous: under emulation, on a machine that has other work too, all of this can take long.
FIRST_TICK = 300.0
WAIT = 120.0


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of guest: the domain's configuration, but for name and disks."""

    type: str
    settings: str
    vdevs: tuple[str, ...] = ("xvda", "xvdb")


def _linux(kernel: str) -> str:
    return f"""\
memory = {MEMORY_MIB}
kernel = "/lab/{kernel}"
ramdisk = "/lab/guest-initrd.img"
extra = "{KERNEL_WORDS} disks=2"
"""


# (A generation ID, so that a revert has something to renew.)
HEADLESS = 'ms_vm_genid = "generate"\nvga = "none"\nvnc = 0\nsdl = 0\n'
KINDS = {
    "pv": Kind("pv", _linux("vmlinux")),
    "pvh": Kind("pvh", _linux("vmlinux")),
    # Linux with PV drivers: it unplugs the emulated disks as it boots. Slow to boot, because its
    # firmware reads kernel and initrd byte by byte through a port.
    "hvm": Kind("hvm", _linux("vmlinuz") + HEADLESS + 'serial = "pty"\n'),
    # No PV drivers, a few KiB of code (files/tinyhvm.S). Its serial line goes on in the same file
    # when another QEMU takes over after a restore.
    "tinyhvm": Kind(
        "hvm",
        "memory = 16\n" + HEADLESS + 'serial = "chardev:log"\ndevice_model_args_hvm = '
        '["-chardev", "file,id=log,append=on,path={log}"]\n',
        vdevs=("hda",),
    ),
}
# These are in the saved state, each named after its kind, and paused: all at once they would take
# most of the emulated CPU.
STANDARD = ("pv", "pvh", "hvm")

TICK = re.compile(
    r"TICK n=(\d+) up=(\d+) mem=(ok|BAD)((?: \w+=\d+:(?:ok|BAD))*) bad=(\d+) boot=(\w+)"
)
DISK = re.compile(r" (\w+)=(\d+):(ok|BAD)")


@dataclass(frozen=True, slots=True)
class Tick:
    """One line of a guest: n, and what it found in its memory and on its disks."""

    n: int
    up_ms: int
    mem_ok: bool
    disks: dict[str, tuple[int, bool]] = field(hash=False)
    """By vdev: the n read back (that of the tick before) and whether all was as it must be."""
    bad: int
    boot: str

    @property
    def ok(self) -> bool:
        return self.mem_ok and self.bad == 0 and all(ok for _, ok in self.disks.values())


def parse_ticks(log: str) -> list[Tick]:
    """The ticks of a console log. Lines torn by a restore or by a kernel message are left out."""
    ticks = []
    for line in log.splitlines(keepends=True):
        if line.endswith("\n") and (found := TICK.search(line)):
            n, up, mem, disks, bad, boot = found.groups()
            states = {name: (int(n), ok == "ok") for name, n, ok in DISK.findall(disks)}
            ticks.append(Tick(int(n), int(up), mem == "ok", states, int(bad), boot))
    return ticks


class Guest:
    """A guest by its name; it may be running or not, and change its domid."""

    def __init__(self, dom0: Dom0, name: str, kind: str | None = None) -> None:
        self.dom0 = dom0
        self.name = name
        self.kind = KINDS[kind or name]
        self.config = f"{CONFIGS}/{name}.cfg"
        self.log = f"{LOGS}/guest-{name}.log"
        self.disks = {
            vdev: f"{DISKS}/{name}-{letter}.qcow2"
            for vdev, letter in zip(self.kind.vdevs, "abcdefgh", strict=False)
        }

    def __repr__(self) -> str:
        return f"Guest({self.name!r})"

    @property
    def uuid(self) -> str:
        """The same each time that it is started."""
        return str(uuid5(NAMESPACE_DNS, self.name))

    # --- the domain

    def create(self) -> None:
        """Start it on new disks; its log begins anew."""
        self.dom0.run(["rm", "-f", self.log, *self.disks.values()])
        self.make_disks()
        self.dom0.write(self.config, self.config_text())
        self.start()

    def start(self) -> None:
        """Start it on the disks that it has."""
        self.dom0.run(["xl", "create", "-q", self.config])

    def make_disks(self) -> None:
        for path in self.disks.values():
            if self.kind is KINDS["tinyhvm"]:
                raw = f"{path}.raw"
                self.dom0.run(
                    f"cp /lab/tinyhvm.bin {raw} && truncate -s 8M {raw} && "
                    f"qemu-img convert -f raw -O qcow2 {raw} {path} && rm {raw}"
                )
            else:
                self.dom0.run(["qemu-img", "create", "-q", "-f", "qcow2", path, DISK_SIZE])

    def destroy(self) -> None:
        """Destroy it, if it is there."""
        if self.exists():
            self.dom0.run(["xl", "destroy", self.name])

    def pause(self) -> None:
        self.dom0.run(["xl", "pause", self.name])

    def unpause(self) -> None:
        self.dom0.run(["xl", "unpause", self.name])

    def exists(self) -> bool:
        return self.dom0.run(["xl", "domid", self.name], check=False).rc == 0

    def domid(self) -> int:
        return int(self.dom0.run(["xl", "domid", self.name]).out)

    def state(self) -> str:
        """The flags of ``xl list``: ``-b----``, ``--p---`` and so on."""
        return self.dom0.run(["xl", "list", self.name]).out.splitlines()[-1].split()[-2]

    def qmp(self, command: str, **arguments: object) -> Any:
        """Ask its QEMU, through the monitor that libxl does not use itself."""
        (answer,) = self.qmp_all([(command, arguments)])
        return answer

    def qmp_all(self, commands: Sequence[tuple[str, Mapping[str, object]]]) -> list[Any]:
        """Several commands on one connection; their answers."""
        monitor = f"UNIX-CONNECT:/run/xen/qmp-libxenstat-$(xl domid {self.name})"
        requests: list[dict[str, object]] = [
            {"execute": name, "arguments": arguments, "id": f"lab {number}"}
            for number, (name, arguments) in enumerate((("qmp_capabilities", {}), *commands))
        ]
        answers: list[Any] = []
        with self.dom0.start(f"exec socat - {monitor}") as running:
            for request in requests:
                running.send(json.dumps(request).encode() + b"\n")
            for line in running.lines():
                answer = json.loads(line)
                asked = requests[len(answers)]
                if answer.get("id") != asked["id"]:
                    continue  # the greeting, an event, or for a client that has left
                if "error" in answer:
                    raise RuntimeError(f"{asked}: {answer['error']['desc']}")
                answers.append(answer["return"])
                if len(answers) == len(requests):
                    return answers[1:]
        raise RuntimeError(f"no answer from the QEMU of {self.name}: {running.err}")

    # --- what it says

    def mark(self) -> int:
        """The place in its log where the next line will stand."""
        return int(self.dom0.run(["stat", "-c", "%s", self.log]).out)

    def text_since(self, mark: int) -> str:
        return self.dom0.run(["tail", "-c", f"+{mark + 1}", self.log]).out

    def ticks_since(self, mark: int) -> list[Tick]:
        return parse_ticks(self.text_since(mark))

    def ticks(self) -> list[Tick]:
        """All that the log has: it goes on through save and restore, and begins at ``create``."""
        return self.ticks_since(0)

    def bad_lines(self) -> list[str]:
        """What it complained about, in its own words."""
        lines = self.text_since(0).splitlines()
        return [line.strip() for line in lines if line.startswith("BAD ")]

    def last(self) -> Tick:
        """Its latest tick; it may be an old one, if the guest does not run."""
        ticks = parse_ticks(self.dom0.run(["tail", "-n", "40", self.log]).out)
        assert ticks, f"{self.name} has not said anything yet"
        return ticks[-1]

    def wait_first(self, timeout: float = FIRST_TICK) -> Tick:
        """The first tick in its log."""
        return self._wait(0, 1, timeout)

    def wait_tick(self, n: int, timeout: float = WAIT) -> Tick:
        """Wait until a line that is written from now on has at least this n."""
        return self._wait(self.mark(), n, timeout)

    def wait_advance(self, count: int = 5, timeout: float = WAIT) -> Tick:
        """Wait for that many more lines."""
        return self._wait(self.mark(), 0, timeout, count)

    def assert_healthy(self, count: int = 3) -> Tick:
        """It runs, and has found nothing wrong since it booted; returns a fresh tick."""
        tick = self.wait_advance(count)
        assert tick.ok, f"{self.name}: {tick}\n" + "\n".join(self.bad_lines()[-20:])
        return tick

    def _wait(self, mark: int, n: int, timeout: float, count: int = 1) -> Tick:
        # One command that follows the log, not one for each look at it: those are slow. By name
        # (-F), because the log may not be there yet.
        deadline = time.monotonic() + patient(timeout)
        seen = []
        with self.dom0.start(["tail", "-c", f"+{mark + 1}", "-F", "-s", "0.1", self.log]) as log:
            try:
                for line in log.lines(timeout):
                    seen += [tick for tick in parse_ticks(line) if tick.n >= n]
                    if len(seen) >= count:
                        return seen[-1]
                    if time.monotonic() > deadline:
                        break
            except (TimeoutError, CommandTimeout):
                pass
            end = "".join(log.out.splitlines(keepends=True)[-12:])
        found = f"its log from there on ends:\n{end}\nWhat it does:\n{self._look()}"
        fault = EmulationFault if blames_the_processor(found) else TimeoutError
        raise fault(f"{self.name}: no {count} ticks of n >= {n} in {timeout:.0f} s; {found}")

    def _look(self) -> str:
        try:
            command = LOOK.format(name=self.name, log=self.log, logs=LOGS)
            look = self.dom0.run(command, check=False, timeout=WAIT)
        except (CommandTimeout, OSError) as e:  # the dom0 is silent, too
            return str(e)
        return look.out + look.err

    def config_text(self) -> str:
        disks = ", ".join(
            f'"format=qcow2,vdev={vdev},access=rw,target={path}"'
            for vdev, path in self.disks.items()
        )
        # Without "native" every reading of the clock would trap: on the emulated CPU, which has no
        # invariant TSC, that takes most of a guest's time.
        common = (
            "vcpus = 1",
            'tsc_mode = "native"',
            'on_crash = "preserve"',
            'on_reboot = "restart"',
        )
        # The same domain each time that it is started.
        own = (
            f'name = "{self.name}"',
            f'uuid = "{self.uuid}"',
            f'type = "{self.kind.type}"',
            f"disk = [ {disks} ]",
        )
        return "\n".join((*own, *common, self.kind.settings.format(log=self.log)))


def fresh(dom0: Dom0, name: str, kind: str) -> Guest:
    """Another guest of a kind, on new disks, ticking; one of that name makes way for it."""
    guest = Guest(dom0, name, kind)
    guest.destroy()
    guest.create()
    guest.wait_first()
    return guest
