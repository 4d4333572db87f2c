"""The check of :func:`pyxlsnap.can_snapshot`: it collects all reasons; a plan stops at one."""

import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from pyxlsnap import paths
from pyxlsnap.cancel import Cancel
from pyxlsnap.create.places import generated_name
from pyxlsnap.disks.registry import close_all, default_request, strategies
from pyxlsnap.disks.served import ServedDisks
from pyxlsnap.disks.task import DiskTask
from pyxlsnap.errors import DomainNotFound, PyxlsnapError, Refused
from pyxlsnap.guest import checks
from pyxlsnap.guest.boot import boots_now
from pyxlsnap.guest.device_model import examine_device_model
from pyxlsnap.guest.frontends import wait_until_steady
from pyxlsnap.guest.protocols import Guest, Host
from pyxlsnap.journal import Journal
from pyxlsnap.linux.files import refusing_os_errors
from pyxlsnap.linux.room import Room
from pyxlsnap.model import Disk
from pyxlsnap.request import FeasibilityRequest
from pyxlsnap.results import Feasibility


def feasibility(
    host: Host, request: FeasibilityRequest, cancel: Cancel | None = None
) -> Feasibility:
    """Collect the reasons against a snapshot of the domain. Changes nothing and takes no lock.

    :raises DomainNotFound: there is no such domain, or it ended during the check.
    :raises Cancelled: ``cancel`` was set.
    """
    cancel = cancel or Cancel()
    guest = host.find(request.domain)
    if reasons := _reason(lambda: checks.run_state(guest)):  # other checks need a running domain
        return Feasibility(guest.name, guest.uuid, tuple(reasons), ())
    config = guest.config()
    need_kb = checks.memory_file_kb(guest.info().memory_kb, config)
    disks = [disk for disk in config.disks if not disk.left_out]
    reasons = [
        *_reason(Journal(guest.uuid).refuse_unfinished),
        *_reason(lambda: checks.refuse_config(config, guest)),
        *_reason(lambda: examine_device_model(guest, config)),
        *_reason(lambda: checks.refuse_shared(host, guest, disks)),
        *_reason(lambda: checks.refuse_full(paths.SNAPSHOTS, need_kb, Room().claim)),
        *_disk_reasons(guest, disks, need_kb, cancel),
        *_reason(
            lambda: wait_until_steady(
                guest,
                vcpus=config.vcpus,
                boots=partial(boots_now, guest, config),
                check=cancel.check,
            )
        ),
    ]
    live_reasons = _reason(lambda: checks.refuse_live(host, config, guest))
    return Feasibility(guest.name, guest.uuid, tuple(reasons), tuple(live_reasons))


def _reason(check: Callable[[], object]) -> list[str]:
    """The reason of a failed check; empty if the check passes."""
    try:
        check()
    except DomainNotFound:  # the domain ended meanwhile
        raise
    except PyxlsnapError as e:
        return [str(e)]
    return []


def _disk_reasons(guest: Guest, disks: list[Disk], need_kb: int, cancel: Cancel) -> list[str]:
    """Check all disks together, because they may share space.

    If the check fails, check each disk alone, to find every reason.

    :param need_kb: for the memory file.
    """
    together = _reason(lambda: _check_create(guest, disks, need_kb, cancel))
    if not together:
        return []
    alone = [_reason(partial(_check_create, guest, [disk], need_kb, cancel)) for disk in disks]
    return [reason for reasons in alone for reason in reasons] or together


@refusing_os_errors()
def _check_create(guest: Guest, disks: list[Disk], need_kb: int, cancel: Cancel) -> None:
    name = generated_name(time.time())
    claim = Room().claim
    with suppress(Refused):  # too little for the memory file is a reason of its own
        checks.refuse_full(paths.SNAPSHOTS, need_kb, claim)
    task = DiskTask(name, asked=False, check=cancel.check, claim=claim)
    found = strategies([(disk, default_request(disk, name)) for disk in disks], task)
    try:
        ServedDisks.of(disks, guest.domid, guest.device_model_pid()).refuse_replaced()
        for strategy in found:
            strategy.check_create(guest.domid)
    finally:
        close_all(found)
