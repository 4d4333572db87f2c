"""Whether a domain can be snapshotted: all that hinders it, where a plan stops at the first."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pyxlsnap import checks, create_plan
from pyxlsnap.disks import default_request, strategies
from pyxlsnap.errors import DomainNotFound, PyxlsnapError
from pyxlsnap.journal import Journal
from pyxlsnap.model import Disk, Possibility
from pyxlsnap.ports import DiskTask, Guest, Host

_NAME = "possible"  # of the snapshot that might be


def possibility(
    host: Host, domain: str, *, check: Callable[[], None] = lambda: None
) -> Possibility:
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
    return Possibility(guest.name, guest.uuid, tuple(reasons), tuple(live_reasons))


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
        checks.refuse_full(create_plan.SNAPSHOT_DIR, guest.info().memory_kb)
    for disk in disks:
        with _noted(reasons):
            _look_at_disk(guest, disk, check)
    with _noted(reasons):
        checks.wait_for_frontends(guest, check=check)


def _look_at_disk(guest: Guest, disk: Disk, check: Callable[[], None]) -> None:
    task = DiskTask(_NAME, asked=False, check=check)
    for strategy in strategies([(disk, default_request(disk, _NAME))], task):
        try:
            strategy.check_create(guest.domid)
        finally:
            strategy.close()


@contextmanager
def _noted(reasons: list[str]) -> Iterator[None]:
    try:
        yield
    except DomainNotFound:  # it has gone meanwhile
        raise
    except PyxlsnapError as e:
        reasons.append(str(e))
