"""Making a clone, in this process: the locks, the plan, and the run of the sequence."""

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path

from pyxlsnap import cfgfile
from pyxlsnap.cancel import Cancel, Cancelled
from pyxlsnap.clone.names import check_clone_name, lock_name, refuse_unfinished
from pyxlsnap.clone.plan import ClonePlan, make_plan, own_configuration, read_origin
from pyxlsnap.clone.sequence import Cloning
from pyxlsnap.clone.undeletable import refuse_undeletable
from pyxlsnap.clone_file import IN_USE, find_clone, is_gone, is_of
from pyxlsnap.create.waiting import Reports, heard
from pyxlsnap.errors import AlreadyExists, Interrupted, Refused
from pyxlsnap.guest.protocols import Host
from pyxlsnap.journal import CloneEntry, Journal
from pyxlsnap.linux.files import refusing_os_errors
from pyxlsnap.linux.locks import DomainLock, SharedLock
from pyxlsnap.request import Callbacks, CloneConfigurationRequest, CloneRequest
from pyxlsnap.results import CloneConfiguration, Cloned, Plan, Progress


def clone(
    host: Host, request: CloneRequest, callbacks: Callbacks, cancel: Cancel | None = None
) -> Cloned:
    """Make a clone, in this process (see :mod:`pyxlsnap.create.operation`).

    :raises UsageError, Refused, Risky: the request is wrong, not possible or not shown to be safe;
        nothing was changed.
    :raises OperationFailed, Interrupted: it failed, or ``cancel`` was set; everything is as before.
    :raises NeedsAttention: it failed, and so did its undo; or it failed after the clone that was to
        be replaced had been destroyed. The error lists what is left.
    """
    cancel = cancel or Cancel()
    with _planned(host, request, callbacks, cancel) as plan:
        return Cloning(host, plan, callbacks, cancel).run()


def preview(
    host: Host, request: CloneRequest, callbacks: Callbacks, cancel: Cancel | None = None
) -> Plan:
    """Plan a clone without making it. Changes nothing.

    :raises UsageError, Refused, Risky, Interrupted: as :func:`clone`.
    """
    with _planned(host, request, callbacks, cancel or Cancel()) as plan:
        return plan.summary()


def configuration(
    host: Host,
    request: CloneConfigurationRequest,
    callbacks: Callbacks,
    cancel: Cancel | None = None,
) -> CloneConfiguration:
    """The configuration that a clone would have, for its caller to change. Changes nothing.

    What the caller may change is no reason to refuse it here.

    :raises UsageError, Refused, Interrupted: as :func:`clone`.
    """
    cancel = cancel or Cancel()
    with _locked(host, request.clone, callbacks, cancel) as (wanted, uuid, old):
        config = own_configuration(host, wanted, uuid, old, cancel)
        return CloneConfiguration(uuid, config.json)


def read_cfgfile(request: CloneRequest) -> CloneRequest:
    """Read the request's cfgfile into its ``config``. Needs no Xen.

    :raises UsageError: the cfgfile or the clone's name is wrong.
    """
    check_clone_name(request.domain)
    if request.config is not None:
        return request
    return replace(request, config=cfgfile.read(Path(request.cfgfile)))


@contextmanager
def _planned(
    host: Host, request: CloneRequest, callbacks: Callbacks, cancel: Cancel
) -> Iterator[ClonePlan]:
    """Make a plan, and hold the locks while the plan is used."""
    with _locked(host, request, callbacks, cancel) as (wanted, uuid, old):
        made = make_plan(host, wanted, uuid, old, cancel, Reports(callbacks))
        with closing(made) as plan:
            yield plan


@contextmanager
def _locked(
    host: Host, request: CloneRequest, callbacks: Callbacks, cancel: Cancel
) -> Iterator[tuple[CloneRequest, str, CloneEntry | None]]:
    """Hold the locks of a clone, and of the snapshot that it is made from.

    :returns: the request with the content of its cfgfile, the clone's uuid, and the clone that is
        replaced.
    """
    request, name = read_cfgfile(request), request.domain
    with ExitStack() as locks:
        try:
            origin, created = read_origin(request)
            locks.callback(lock_name(name).release)
            # Clones only read the snapshot: a delete of it must wait, and nobody else.
            locks.callback(SharedLock(origin, domain=request.cfgfile, kind=IN_USE).release)
            refuse_unfinished(name)
            found = find_clone(name)
            uuid = (found.uuid if found else request.uuid) or _new_uuid()
            lock = DomainLock(uuid, domain=name)
            locks.callback(lock.release)
            callbacks.share_lock(uuid, lock.fd)
            Journal(uuid).refuse_unfinished()
            callbacks.on_progress(Progress("checking"))
            old = _replaced(host, request, found, origin, created)
            if old:
                refuse_undeletable(host, old, heard(cancel, Reports(callbacks)))
            yield request, uuid, old
        except Cancelled:
            raise Interrupted(f"the clone {name} was interrupted", step="plan") from None


def _replaced(
    host: Host,
    request: CloneRequest,
    found: CloneEntry | None,
    origin: str,
    created: int | None,
) -> CloneEntry | None:
    """The clone of this name that is replaced.

    A clone that is off, and whose disks were deleted by hand, is there no more.

    :raises Refused: there is a clone of this name, which is not to be replaced, or is one of
        another snapshot.
    """
    with refusing_os_errors():
        if found is None or _is_gone(host, found):
            return None
    if not request.replace:
        raise AlreadyExists(
            f"there is a clone {found.domain} of the snapshot {found.name}: choose another name, "
            f"replace the clone (--replace), or delete it (pyxlsnap.delete_clone)",
            where=found.domain,
        )
    if found.origin != origin or not _same_file(found.cfgfile, request.cfgfile):
        raise Refused(
            f"the clone {found.domain} was made from {found.cfgfile}, and is replaced only by "
            f"another clone of that: delete it first (pyxlsnap.delete_clone)"
        )
    if not is_of(found, created):
        raise Refused(
            f"the clone {found.domain} was made from an earlier snapshot than that of "
            f"{request.cfgfile}: delete it first (pyxlsnap.delete_clone)"
        )
    return found


def _is_gone(host: Host, found: CloneEntry) -> bool:
    entries = (found, *found.leftovers)
    gone = all(is_gone(entry, child) for entry in entries for child in entry.children)
    return gone and host.find_if_there(found.uuid) is None


def _same_file(a: str, b: str) -> bool:
    try:
        return Path(a).samefile(b)
    except OSError:
        return a == b


def _new_uuid() -> str:
    from uuid import uuid4  # only here: this takes long to load

    return str(uuid4())
