"""QEMU with Xen in it: booted from cold, saved to a file, started again from the file.

A machine is thrown away after use: it writes to an overlay in a directory of its own, and it never
outlives the process that started it.
"""

import atexit
import fcntl
import json
import queue
import re
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Self

from . import cache
from .dom0 import CommandFailed, Dom0
from .image import Image
from .patience import patient

QEMU = "qemu-system-x86_64"
# Plain CPU on purpose. SMAP kills the dom0, RDTSCP kills PVH guests, and AVX/XSAVE bring rare odd
# faults, all of them faults of QEMU's emulation. SVM and nested paging are what HVM guests need.
CPU = "qemu64,+svm,+npt,+ssse3,+sse4.1,+sse4.2,+popcnt"
# One CPU on purpose, too. With two, guests of the HVM kind now and then end in a triple fault, with
# Xen's own RIP in the guest's state, and Xen spins for seconds on locks whose holder's thread does
# not run because this machine has other work. Neither has been seen with one.
CPUS = 1
MEMORY_MIB, DOM0_MIB = 2048, 768
XEN_OPTIONS = (
    "console=com1 com1=115200,8n1 loglvl=warning guest_loglvl=warning spec-ctrl=no xpti=no "
    f"dom0_mem={DOM0_MIB}M,max:{DOM0_MIB}M dom0_max_vcpus=1"
)
BOOT_TIMEOUT, START_TIMEOUT = 300.0, 60.0


class MachineFailed(Exception):
    """QEMU ended or did not come up; the text has the ends of its logs."""


class Machine:
    """One QEMU. ``boot`` and ``start`` make one; ``close`` (or ``with``) ends it."""

    def __init__(self, image: Image, disk: Path, incoming: Path | None = None) -> None:
        self.image = image
        self.directory, self._lock = _run_directory()
        atexit.register(self.close)
        try:
            self.disk = self.directory / "disk.qcow2"
            make_overlay(disk, self.disk)
            command = qemu_command(image, self.directory, self.disk)
            if incoming:
                command += ["-incoming", f"exec:zstd -q -d -c '{incoming}'"]
            self._process = _launch(command, self.directory / "qemu.log")
            self.qmp = self._connect_qmp()
            self.dom0 = Dom0(self._agent_port())
        except BaseException:
            self.close()
            raise

    @classmethod
    def boot(cls, image: Image) -> Self:
        """Boot Xen and dom0 from the image: some 20 s."""
        machine = cls(image, image.disk)
        machine._await_agent(patient(BOOT_TIMEOUT))
        return machine

    @classmethod
    def start(cls, image: Image, memory: Path, disk: Path) -> Self:
        """Start from a saved state: some 3 s."""
        machine = cls(image, disk, memory)
        deadline = time.monotonic() + patient(START_TIMEOUT)
        while machine.qmp("query-status")["status"] == "inmigrate":
            if time.monotonic() > deadline:
                raise machine._failed("the saved state was not loaded")
            time.sleep(0.05)
        machine.qmp("cont")
        machine._await_agent(patient(START_TIMEOUT))
        machine.dom0.run(f"date -u -s @{time.time():.3f}")  # it stood still in the file
        return machine

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def save(self, memory: Path, disk: Path) -> None:
        """Stop the machine and keep its state in two files; closes it."""
        self.qmp("stop")
        self.qmp("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
        self.qmp("migrate", uri=f"exec:zstd -q -T0 -3 -f -o '{memory}'")
        while (state := self.qmp("query-migrate"))["status"] != "completed":
            if state["status"] in ("failed", "cancelled"):
                raise self._failed(f"saving the state failed: {state}")
            time.sleep(0.05)
        self.qmp("quit")
        self._process.wait(30)
        make_portable(self.disk, disk, self.image.disk)
        self.close()

    def collect_logs(self, dest: Path) -> None:
        """Keep what tells a fault of the emulation from one of ours; works as far as it can."""
        dest.mkdir(parents=True, exist_ok=True)
        for name in ("console.log", "qemu.log"):
            if (self.directory / name).exists():
                shutil.copy(self.directory / name, dest)
        if not (self.alive and self.dom0.answers(10)):
            (dest / "dom0.txt").write_text("the command agent of dom0 does not answer\n")
            return
        report = "\n".join(
            f"echo '== {command}'; timeout 20 {command} 2>&1"
            for command in ("xl list", "xl info", "xl dmesg", "dmesg", "ps axfww", "xenstore-ls -f")
        )
        try:
            (dest / "dom0.txt").write_text(self.dom0.run(report, check=False, timeout=90).out)
            archive = self.dom0.start("tar -C /var/log -cf - xen lab-agent.log")
            with archive:
                archive.end_input()
                archive.wait(60)
            subprocess.run(["tar", "-C", str(dest), "-xf", "-"], input=archive.out_bytes)
        except (OSError, CommandFailed) as error:
            (dest / "incomplete.txt").write_text(f"{error}\n")

    def close(self) -> None:
        """End QEMU and remove its files. May be called again."""
        atexit.unregister(self.close)
        process: subprocess.Popen[bytes] | None = getattr(self, "_process", None)
        if process is not None and process.poll() is None:
            process.kill()
            process.wait(30)
        shutil.rmtree(self.directory, ignore_errors=True)
        self._lock.close()

    def _connect_qmp(self) -> "Qmp":
        deadline = time.monotonic() + patient(START_TIMEOUT)
        while True:
            try:
                return Qmp(self.directory / "qmp.sock")
            except OSError as error:
                if not self.alive or time.monotonic() > deadline:
                    raise self._failed("QEMU did not start") from error
                time.sleep(0.05)

    def _agent_port(self) -> int:
        text = self.qmp("human-monitor-command", **{"command-line": "info usernet"})
        found = re.search(r"HOST_FORWARD\]\s+\S+\s+127\.0\.0\.1\s+(\d+)", text)
        if not found:
            raise self._failed(f"no port leads to the dom0: {text}")
        return int(found[1])

    def _await_agent(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not self.dom0.answers(2.0):
            if not self.alive or time.monotonic() > deadline:
                raise self._failed(f"dom0 did not come up in {timeout:.0f} s")

    def _failed(self, what: str) -> MachineFailed:
        ends = [what]
        for name in ("qemu.log", "console.log"):
            path = self.directory / name
            if path.exists():
                lines = path.read_text(errors="replace").splitlines()[-15:]
                ends.append(f"--- {name}\n" + "\n".join(lines))
        self.close()
        return MachineFailed("\n".join(ends))


class Qmp:
    """The monitor of our own QEMU: call it with a command."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(patient(START_TIMEOUT))
        self._socket.connect(str(path))
        self._file = self._socket.makefile("rw")
        self._file.readline()  # the greeting
        self("qmp_capabilities")

    def __call__(self, command: str, **arguments: object) -> Any:
        self._file.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._file.flush()
        while line := self._file.readline():
            answer = json.loads(line)
            if "error" in answer:
                raise RuntimeError(f"{command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]
        raise ConnectionError(f"QEMU ended during {command}")


def qemu_command(image: Image, directory: Path, disk: Path) -> list[str]:
    """The machine. A saved state can only be started by the command that it was made with."""
    return [
        *(QEMU, "-name", "pyxlsnap-lab", "-accel", "tcg,thread=multi,tb-size=512"),
        *("-cpu", CPU, "-smp", str(CPUS), "-m", str(MEMORY_MIB), "-machine", "pc"),
        *("-display", "none", "-nodefaults", "-no-user-config", "-no-reboot"),
        *("-kernel", str(image.xen), "-append", XEN_OPTIONS, "-initrd"),
        f"{image.vmlinux} console=hvc0 quiet loglevel=4 mitigations=off,{image.initrd}",
        *("-drive", f"if=none,id=d0,file={disk},format=qcow2,cache=unsafe,discard=unmap"),
        *("-device", "virtio-blk-pci,drive=d0"),
        # A free port of QEMU's choice leads to the agent; the dom0 reaches nothing.
        *("-netdev", "user,id=n0,restrict=on,hostfwd=tcp:127.0.0.1:0-:2222"),
        *("-device", "virtio-net-pci,netdev=n0,romfile="),
        *("-serial", f"file:{directory}/console.log"),
        *("-qmp", f"unix:{directory}/qmp.sock,server=on,wait=off"),
    ]


def qemu_version() -> str:
    """The first line of ``--version``: a saved state belongs to the QEMU that wrote it."""
    run = subprocess.run([QEMU, "--version"], check=True, capture_output=True, text=True)
    return run.stdout.splitlines()[0]


def make_overlay(base: Path, overlay: Path) -> None:
    command = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(base), "-F", "qcow2"]
    subprocess.run([*command, str(overlay)], check=True)


def make_portable(overlay: Path, dest: Path, base: Path) -> None:
    """Keep an overlay elsewhere in the cache, its backing file named relative to it."""
    shutil.move(overlay, dest)
    relative = Path("..") / base.parent.name / base.name
    command = ["qemu-img", "rebase", "-u", "-f", "qcow2", "-b", str(relative), "-F", "qcow2"]
    subprocess.run([*command, str(dest)], check=True)


def _run_directory() -> tuple[Path, Any]:
    """A directory for one machine, and the lock that says it is in use.

    Directories whose lock has fallen are those of killed runs: they are removed here.
    """
    runs = cache.home() / "run"
    runs.mkdir(exist_ok=True)
    with (runs / "lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        for old in runs.glob("*/lock"):
            with old.open("w") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                shutil.rmtree(old.parent, ignore_errors=True)
        directory = Path(tempfile.mkdtemp(dir=runs))
        lock = (directory / "lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
    return directory, lock


def _launch(argv: list[str], log: Path) -> subprocess.Popen[bytes]:
    """Start QEMU so that it dies with this process, however that ends.

    The kernel binds this to the thread that starts it, so a thread does and then waits for QEMU.
    """
    started: queue.SimpleQueue[subprocess.Popen[bytes] | OSError] = queue.SimpleQueue()

    def body() -> None:
        try:
            with log.open("wb") as file:
                command = ["setpriv", "--pdeathsig", "KILL", "--", *argv]
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, process_group=0
                )
        except OSError as error:
            started.put(error)
            return
        started.put(process)
        process.wait()

    threading.Thread(target=body, name="qemu", daemon=True).start()
    result = started.get()
    if isinstance(result, OSError):
        raise result
    return result
