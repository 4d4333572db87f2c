"""Whether a domain can be snapshotted: all that hinders it, where a plan stops at the first."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pyxlsnap import paths
from pyxlsnap.create.plan import generated_name
from pyxlsnap.disks.protocol import DiskTask
from pyxlsnap.disks.registry import close_all, default_request, strategies
from pyxlsnap.errors import DomainNotFound, PyxlsnapError
from pyxlsnap.guest import checks
from pyxlsnap.guest.protocols import Guest, Host
from pyxlsnap.journal import Journal
from pyxlsnap.linux.files import refusing_os_errors
from pyxlsnap.model import Disk
from pyxlsnap.results import Feasibility


def feasibility(
    host: Host, domain: str, *, check: Callable[[], None] = lambda: None
) -> Feasibility:
    """See :func:`pyxlsnap.can_snapshot`. Changes nothing and takes no lock.

    :param check: called again and again by what takes long; what it raises ends that.
    """
    guest = host.find(domain)
    reasons: list[str] = []
    live_reasons: list[str] = []
    with _noted(reasons):
        checks.run_state(guest)
    if not reasons:  # else there is nothing to look at
        _look(host, guest, reasons, live_reasons, check)
    return Feasibility(guest.name, guest.uuid, tuple(reasons), tuple(live_reasons))


def _look(
    host: Host,
    guest: Guest,
    reasons: list[str],
    live_reasons: list[str],
    check: Callable[[], None],
) -> None:
    config = guest.config()
    disks = [disk for disk in config.disks if not disk.left_out]
    with _noted(reasons):
        Journal(guest.uuid).refuse_unfinished()
    with _noted(reasons):
        checks.refuse_config(config, guest)
    with _noted(live_reasons):
        checks.refuse_live(host, config, guest)
    with _noted(reasons):
        checks.refuse_shared(host, guest, disks)
    with _noted(reasons):
        checks.refuse_full(paths.SNAPSHOTS, guest.info().memory_kb)
    _look_at_disks(guest, disks, reasons, check)
    with _noted(reasons):
        checks.wait_for_frontends(guest, check=check)


def _look_at_disks(
    guest: Guest, disks: list[Disk], reasons: list[str], check: Callable[[], None]
) -> None:
    """All together, for they may share room; if that will not do, each by itself."""
    together: list[str] = []
    with _noted(together):
        _check_create(guest, disks, check)
    alone: list[str] = []
    for disk in disks if together else ():
        with _noted(alone):
            _check_create(guest, [disk], check)
    reasons += alone or together


@refusing_os_errors()
def _check_create(guest: Guest, disks: list[Disk], check: Callable[[], None]) -> None:
    name = generated_name(time.time())
    task = DiskTask(name, asked=False, check=check)
    found = strategies([(disk, default_request(disk, name)) for disk in disks], task)
    try:
        for strategy in found:
            strategy.check_create(guest.domid)
    finally:
        close_all(found)


@contextmanager
def _noted(reasons: list[str]) -> Iterator[None]:
    try:
        yield
    except DomainNotFound:  # it has gone meanwhile
        raise
    except PyxlsnapError as e:
        reasons.append(str(e))
