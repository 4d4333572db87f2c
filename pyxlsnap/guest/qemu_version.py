"""The QEMU that a restore starts: it must be there, and not be older than the one that saved.

The memory file of an HVM guest holds the state of its QEMU, and an older QEMU may not be able to
load the state of a newer one. A create stores the version of the guest's QEMU in the memory file.
The QEMU of a PV or PVH guest has no state there: it must only start.

libxl opens the file with the state, and gives QEMU its descriptor (``-incoming fd:N`` in
libxl_dm.c, up to Xen 4.23 at least). QEMU 9.1 deprecates that; QEMU 11.1 does not load it.
"""

import os
import re
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

from pyxlsnap import paths
from pyxlsnap.guest.findings import Finding, refused, risky, said
from pyxlsnap.guest.protocols import Guest, Host
from pyxlsnap.linux.owners import who_can_change
from pyxlsnap.linux.there import is_file
from pyxlsnap.model import DomainConfig, GuestKind
from pyxlsnap.text import readable, shortened

_START_S = 30.0
_VERSION = re.compile(r"([0-9]+)\.([0-9]+)(?:\.([0-9]+))?")
# The releases before this one load from a file's descriptor. What a QEMU says that does not.
_MAY_NOT_LOAD = (11, 0, 0)
_DOES_NOT_LOAD = "migration to a file is not supported"
# The status of a shell or loader that cannot start a program, or lacks a library of it.
_NOT_STARTED = (126, 127)

Version = tuple[int, int, int]


def examine_qemu(
    host: Host, config: DomainConfig, recorded: str, guest: Guest | None = None
) -> Iterator[Finding]:
    """Find what would let a restore fail with this host's QEMU.

    :param recorded: the version of the QEMU that saved the guest, "" if it is not known.
    :param guest: a domain whose QEMU may be of the same files; ``None``: none.
    """
    path, chosen = program(host, config), _chosen(config)
    if not path or not needs_qemu(config):
        return
    if not (os.access(path, os.X_OK) and is_file(path)):
        way_out = "put the file back (device_model_override)" if chosen else "install QEMU for Xen"
        yield refused(
            f"the device model {shortened(path)}, which libxl would start, is missing or not "
            f"executable: {way_out}"
        )
    elif config.kind is GuestKind.HVM:
        yield from _compare(path, recorded, named=bool(chosen))
    elif not (guest and runs(guest.device_model_pid(), path)):
        yield from _start(path, named=bool(chosen))[1]


def examine_loading(path: str, version: str = "", *, named: bool = False) -> Iterator[Finding]:
    """Find whether a QEMU does not load a saved HVM guest as libxl asks it to.

    :param path: what :func:`program` said.
    :param version: what it says that it is; "" to ask it.
    :param named: a memory file names it (``device_model_override``).
    """
    if not is_file(path) or not _may_be_started(path, named=named):
        return
    version = version or _start(path, named=named)[0]
    known = _version(version)
    if known and known >= _MAY_NOT_LOAD and _refuses_files(path):
        yield risky(
            f"the device model {shortened(path)} (QEMU {version}) does not load a saved guest from "
            f"libxl: no HVM guest can be restored with it, by xl neither: use another QEMU (10.0 "
            f"loads them)"
        )


def _chosen(config: DomainConfig) -> str:
    return str(config.section("b_info").get("device_model") or "")


def program(host: Host, config: DomainConfig) -> str:
    """The QEMU that libxl would start; "" if there is none."""
    return _chosen(config) or host.device_model()


def _refuses_files(path: str) -> bool:
    """Whether a QEMU says that it does not load from the descriptor of a file."""
    fd = os.memfd_create("nothing", os.MFD_CLOEXEC)  # (a file, for QEMU)
    nothing = ["-machine", "none,accel=qtest:xen", "-nodefaults", "-display", "none", "-S"]
    try:
        run = subprocess.run(
            [path, *nothing, "-incoming", f"fd:{fd}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            pass_fds=[fd],
            timeout=_START_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    finally:
        os.close(fd)
    return _DOES_NOT_LOAD in readable(run.stderr)


def runs(pid: int | None, path: str) -> bool:
    """Whether a process runs a program, and all files that it was loaded from are still there.

    Then the program starts, and this is known much sooner than by a start.
    """
    try:
        mapped = (paths.PROC / f"{pid}/maps").read_text().splitlines()
        lines = (line.split(maxsplit=5) for line in mapped)
        files = {words[5]: int(words[4]) for words in lines if len(words) == 6 and "x" in words[1]}
        own = os.path.realpath(path)
        return own in files and all(
            os.stat(file).st_ino == number  # noqa: PTH116
            for file, number in files.items()
            if file.startswith("/")
        )
    except (OSError, ValueError):  # it has ended; or a file is gone, whose name ends in (deleted)
        return False


def needs_qemu(config: DomainConfig) -> bool:
    """Whether libxl starts a QEMU in dom0 for the domain (``libxl__need_xenpv_qemu``)."""
    if config.section("b_info").get("device_model_stubdomain") == "True":
        return False
    if config.kind is GuestKind.HVM or config.devices("vfbs") or config.devices("channels"):
        return True
    return any(disk.for_qemu and not disk.backend_domain for disk in config.disks)


def _compare(path: str, recorded: str, *, named: bool) -> Iterator[Finding]:
    present, problems = _start(path, named=named)
    if problems:
        yield from problems
        return
    yield from examine_loading(path, present, named=named)
    saved, now = _version(recorded), _version(present)
    if now is None:
        yield said(
            f"the version of the device model {shortened(path)} is not known: make sure that it is "
            f"not older than the QEMU that saved the guest ({shortened(recorded) or 'not known'})"
        )
    elif saved is None:
        yield said(
            f"the snapshot does not tell which QEMU saved the guest: if the QEMU of this host "
            f"({present}) is older, it may not load the guest's devices"
        )
    elif now < saved:
        yield risky(
            f"the guest was saved by QEMU {shortened(recorded)}, and this host has the older QEMU "
            f"{present} ({shortened(path)}), which may not load the guest's devices"
        )


def _start(path: str, *, named: bool) -> tuple[str, list[Finding]]:
    """Start a QEMU: the version that it says it is, "" if it says none; and why it does not start.

    What is no program of root's is not started.
    """
    try:
        return (_ask(path) if _may_be_started(path, named=named) else ""), []
    except _StartError as e:
        return "", [e.finding]


class _StartError(Exception):
    """The device model could not be started."""

    def __init__(self, finding: Finding) -> None:
        self.finding = finding


def _may_be_started(path: str, *, named: bool) -> bool:
    """Whether it is safe to start a program, just to ask it something.

    It must look like a QEMU, and nobody but root can have written it. If a memory file names it,
    nobody else can have put it there either.
    """
    found = Path(path).stat()  # itself, too: who_can_change() stops where nobody else can enter
    trusted = found.st_uid in (0, os.geteuid()) and not found.st_mode & (
        stat.S_IWGRP | stat.S_IWOTH
    )
    safe = trusted and "qemu" in Path(path).name
    return safe and not (named and who_can_change(Path(path)))


def _ask(path: str) -> str:
    """The version that a QEMU says it is; "" if it says none.

    :raises _StartError: it does not start, or does not end.
    """
    what = f"the device model {shortened(path)}"
    try:
        run = subprocess.run(
            [path, "-version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=_START_S
        )
    except OSError as e:
        raise _StartError(
            refused(f"{what} cannot be started: {e.strerror}: install it anew")
        ) from e
    except subprocess.TimeoutExpired as e:
        raise _StartError(
            risky(f"{what} did not answer -version within {_START_S:g} s, and may not start")
        ) from e
    if run.returncode == 0:
        found = _VERSION.search(readable(run.stdout))
        return found[0] if found else ""
    lines = readable(run.stderr).strip().splitlines() or [f"status {run.returncode}"]
    text = f"{what} cannot be started ({shortened(lines[-1])}): install it anew"
    certain = run.returncode in _NOT_STARTED or run.returncode < 0
    raise _StartError(refused(text) if certain else risky(text))


def _version(text: str) -> Version | None:
    found = _VERSION.fullmatch(text)
    return (int(found[1]), int(found[2]), int(found[3] or 0)) if found else None
