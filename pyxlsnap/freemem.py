"""Memory for a domain to be restored, made as xl makes it: dom0 gives some, under xl's lock."""

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyxlsnap._libxl import parse_cfg
from pyxlsnap.errors import ConfigError, Refused
from pyxlsnap.journal import write_lock
from pyxlsnap.model import DomainConfig
from pyxlsnap.ports import Host

XL_CONF = Path("/etc/xen/xl.conf")
XL_LOCK = Path("/run/lock/xl")
_DOM0_MEM = re.compile(r"(^|\s)dom0_mem=((min:|max:)?\d+[bkmg]?,?)+(\s|$)", re.IGNORECASE)
_ROUNDS, _ROUND_S = 3, 10


def may_shrink_dom0(host: Host) -> bool:
    """Whether xl would balloon dom0: ``autoballoon`` of xl.conf(5).

    "auto", the default, means: unless Xen's command line fixes dom0's memory.
    """
    try:
        found = parse_cfg(
            XL_CONF.read_bytes(), file=str(XL_CONF), strings=["autoballoon"], lists=[]
        )
        setting = str(found.get("autoballoon", "auto"))
    except (OSError, ConfigError):
        setting = "auto"
    if setting in ("auto", ""):
        return not _DOM0_MEM.search(host.xen_command_line())
    return setting in ("on", "1")


def make_room(host: Host, config: DomainConfig) -> None:
    """Make sure that Xen has the memory for a domain, shrinking dom0 if xl would.

    :raises Refused: there is not enough.
    """
    need = host.needed_memory_kb(config)
    with _xl_lock():
        for _ in range(_ROUNDS):
            short = need - host.free_memory_kb()
            if short <= 0:
                return
            if not may_shrink_dom0(host):
                break
            host.shrink_dom0(short, wait_s=_ROUND_S)
    raise Refused(
        f"not enough memory for {config.name}: {need // 1024} MiB needed, "
        f"{host.free_memory_kb() // 1024} MiB free"
    )


@contextmanager
def _xl_lock() -> Iterator[None]:
    """The lock under which xl starts domains. An OFD lock excludes xl's own kind, too."""
    fd = os.open(XL_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLKW, write_lock())
        yield
    finally:
        os.close(fd)
