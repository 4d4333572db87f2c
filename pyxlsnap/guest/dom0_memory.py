"""Memory for a domain to be restored, made as xl makes it: dom0 is shrunk, under xl's lock."""

import re
import time

from pyxlsnap import paths
from pyxlsnap.errors import Refused
from pyxlsnap.guest.protocols import Host
from pyxlsnap.linux.locks import locked
from pyxlsnap.model import DomainConfig

_DOM0_MEM = re.compile(r"(^|\s)dom0_mem=((min:|max:)?\d+[bkmg]?,?)+(\s|$)", re.IGNORECASE)
_STALLED_S = 10
_PATIENCE_S = 30.0
_DOM0_LEAST_KB = 128 * 1024  # libxl refuses a lower target (LIBXL_MIN_DOM0_MEM)


def may_shrink_dom0(host: Host) -> bool:
    """Whether xl would shrink dom0: ``autoballoon`` of xl.conf(5).

    "auto" means: unless Xen's command line fixes dom0's memory.
    """
    setting = host.autoballoon()
    if setting == "auto":
        return not _DOM0_MEM.search(host.xen_command_line())
    return setting in ("on", "1")


def spare_dom0_kb(host: Host) -> int:
    """The most that :func:`make_room` can take from dom0, KiB."""
    if not may_shrink_dom0(host):
        return 0
    return sum(max(0, d.memory_kb - _DOM0_LEAST_KB) for d in host.domains() if d.domid == 0)


def make_room(host: Host, config: DomainConfig) -> None:
    """Make sure that Xen has the memory for a domain. Shrink dom0 if necessary and if xl would.

    :raises Refused: there is not enough.
    """
    need = host.needed_memory_kb(config)
    with locked(paths.XL_LOCK):  # xl holds this lock while it starts a domain
        if may_shrink_dom0(host):
            _shrink_dom0(host, need)
        free = host.free_memory_kb()
    if free < need:
        raise Refused(
            f"not enough memory for {config.name}: {need // 1024} MiB needed, "
            f"{free // 1024} MiB free: shut down another domain, or make it smaller (xl mem-set)"
        )


def _shrink_dom0(host: Host, need_kb: int) -> None:
    """Shrink dom0 until this much memory is free, or until dom0 gives no more.

    libxl lowers dom0's memory target relative to the old target, not to the memory that dom0 has.
    So each round waits until dom0 has reached its target: otherwise the next round would ask for
    the same memory again. If the old target was above dom0's memory, the first rounds free
    nothing, and more rounds follow.
    """
    end = time.monotonic() + _PATIENCE_S
    while (short := need_kb - host.free_memory_kb()) > 0 and time.monotonic() < end:
        host.shrink_dom0(short)
        if not host.wait_for_dom0(stalled_s=_STALLED_S):
            return
