"""Memory for a domain to be restored, made as xl makes it: dom0 gives some, under xl's lock."""

import fcntl
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager

from pyxlsnap import paths
from pyxlsnap.errors import ConfigError, Refused
from pyxlsnap.guest.protocols import Host
from pyxlsnap.linux.locks import write_lock
from pyxlsnap.model import DomainConfig
from pyxlsnap.xen.xlcfg import parse_cfg

_DOM0_MEM = re.compile(r"(^|\s)dom0_mem=((min:|max:)?\d+[bkmg]?,?)+(\s|$)", re.IGNORECASE)
_STALLED_S = 10
_PATIENCE_S = 30.0
_DOM0_LEAST_KB = 128 * 1024  # libxl refuses a lower target (LIBXL_MIN_DOM0_MEM)


def may_shrink_dom0(host: Host) -> bool:
    """Whether xl would balloon dom0: ``autoballoon`` of xl.conf(5).

    "auto", the default, means: unless Xen's command line fixes dom0's memory.
    """
    try:
        found = parse_cfg(
            paths.XL_CONF.read_bytes(), file=str(paths.XL_CONF), strings=["autoballoon"], lists=[]
        )
        setting = str(found.get("autoballoon", "auto"))
    except (OSError, ConfigError):
        setting = "auto"
    if setting in ("auto", ""):
        return not _DOM0_MEM.search(host.xen_command_line())
    return setting in ("on", "1")


def spare_dom0_kb(host: Host) -> int:
    """What :func:`make_room` can take from dom0 at the most."""
    if not may_shrink_dom0(host):
        return 0
    return sum(max(0, d.memory_kb - _DOM0_LEAST_KB) for d in host.domains() if d.domid == 0)


def make_room(host: Host, config: DomainConfig) -> None:
    """Make sure that Xen has the memory for a domain, shrinking dom0 if xl would.

    :raises Refused: there is not enough.
    """
    need = host.needed_memory_kb(config)
    with _xl_lock():
        if may_shrink_dom0(host):
            _shrink_dom0(host, need)
        free = host.free_memory_kb()
    if free < need:
        raise Refused(
            f"not enough memory for {config.name}: {need // 1024} MiB needed, "
            f"{free // 1024} MiB free: shut down another domain, or make it smaller (xl mem-set)"
        )


def _shrink_dom0(host: Host, need_kb: int) -> None:
    """Shrink dom0 until so much is free, or it gives no more.

    The target is lowered from what it was, not from what dom0 has: so never again before dom0 has
    reached it, or each round would take as much once more. If it was above what dom0 has, reaching
    it brings nothing, and it takes more than one round.
    """
    end = time.monotonic() + _PATIENCE_S
    while (short := need_kb - host.free_memory_kb()) > 0 and time.monotonic() < end:
        host.shrink_dom0(short)
        if not host.wait_for_dom0(stalled_s=_STALLED_S):
            return


@contextmanager
def _xl_lock() -> Iterator[None]:
    """The lock under which xl starts domains. An OFD lock excludes xl's own kind, too."""
    fd = os.open(paths.XL_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLKW, write_lock())
        yield
    finally:
        os.close(fd)
