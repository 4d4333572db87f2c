"""What libxl itself needs in a restore, whatever devices the domain has.

libxl writes the domain's configuration into its directory, and the state of an HVM guest's QEMU
from the memory file; it opens a log for each QEMU; a program of its own reads the memory file; and
it waits until xenconsoled serves the domain's console.
"""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

from pyxlsnap.guest.findings import Finding, refused, risky
from pyxlsnap.guest.protocols import Guest, Host
from pyxlsnap.guest.qemu_version import needs_qemu
from pyxlsnap.linux.there import is_dir, is_file
from pyxlsnap.model import DomainConfig, GuestKind
from pyxlsnap.text import shortened

_BLOCK = 4096
#: a configuration takes less than this, and the state of a QEMU with it, in bytes
_ENOUGH = 1 << 16
_ENOUGH_HVM = 1 << 20
#: with more free space than this, in bytes, the filesystem is not asked for all of that
_PLENTY = 1 << 26
#: what a file without a name cannot be made for: a filesystem that has no such files
_NO_TEMPORARY = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOSYS, errno.EINVAL)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_SCRIPT_LOG = "xen-hotplug.log"


def examine_toolstack(host: Host, config: DomainConfig, guest: Guest | None) -> Iterator[Finding]:
    """Find what would let libxl fail.

    :param guest: the domain that is destroyed before; ``None``: none.
    """
    places = host.places()
    if places.replaced:
        yield risky(
            "libxl was replaced or removed after this process had loaded it, and what it starts "
            "may not fit: do this in a new process"
        )
    helper = places.save_helper
    if "/" in helper and not (os.access(helper, os.X_OK) and is_file(helper)):
        yield refused(
            f"{shortened(helper)}, which reads the memory file for libxl, is missing or not "
            f"executable: install the tools of this Xen anew"
        )
    if not host.has_console_daemon():
        yield refused(
            "xenconsoled does not run, and libxl would wait for it in vain: start it (systemctl "
            "start xenconsoled)"
        )
    if places.state:
        yield from _state(places.state, config, guest)
    if places.logs:
        yield from _logs(places.logs, config)


def _state(directory: str, config: DomainConfig, guest: Guest | None) -> Iterator[Finding]:
    """libxl's directory: the restore fails if a file there cannot be made, or has no room."""
    hvm = config.kind is GuestKind.HVM
    enough = _ENOUGH_HVM if hvm else _ENOUGH
    error, written = _try_to_write(directory, enough)
    if error in _FULL:
        text = (
            f"{shortened(directory)}, where libxl keeps the state of domains, has less than "
            f"{enough >> 10} KiB free ({os.strerror(error)}): free space there"
        )
        # The destroyed domain leaves room for a configuration, but not for the state of a QEMU.
        certain = written < _BLOCK and (hvm or guest is None)
        yield refused(text) if certain else risky(text)
    elif error:
        yield refused(
            f"libxl cannot write in {shortened(directory)}, where it keeps the state of domains "
            f"({os.strerror(error)}): make the directory, or make it writable"
        )


def _try_to_write(directory: str, size: int) -> tuple[int, int]:
    """Write to a file that has no name, and so leaves nothing.

    Random bytes: some filesystems take little space for others.

    :returns: the number of the error, or 0; and how many bytes there was room for.
    """
    written, piece = 0, os.urandom(_ENOUGH)
    try:
        free = os.statvfs(directory)
        if free.f_bavail * free.f_frsize > _PLENTY:
            size = _ENOUGH
        fd = os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            while written < size:
                written += os.write(fd, piece[: size - written])
        finally:
            os.close(fd)
    except OSError as e:
        unknown = e.errno in _NO_TEMPORARY or e.errno == errno.EFBIG  # (a limit of this process)
        return (0 if unknown else e.errno or errno.EIO), written
    return 0, written


def _logs(directory: str, config: DomainConfig) -> Iterator[Finding]:
    """The directory of logs: libxl and the scripts end if they cannot open theirs."""
    if os.access(directory, os.W_OK | os.X_OK) and is_dir(directory):
        return
    text = f"{shortened(directory)} is missing or cannot be written to: make the directory"
    if needs_qemu(config):
        yield refused(f"{text}, as libxl must open a log of the domain's QEMU there")
        return
    scripts = config.devices("disks") or config.devices("nics")
    if scripts and not os.access(Path(directory, _SCRIPT_LOG), os.W_OK):
        yield risky(f"{text}, as Xen's scripts write a log there")
