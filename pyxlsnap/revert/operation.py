"""Going back to a snapshot, in this process: the locks, the plan, and the run of the sequence."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path

from pyxlsnap import cfgfile
from pyxlsnap.cancel import Cancel, Cancelled
from pyxlsnap.create.waiting import Reports
from pyxlsnap.disks.in_use import wait_for_qemu_img
from pyxlsnap.errors import DomainNotFound, Interrupted, Refused
from pyxlsnap.guest.protocols import Guest, Host
from pyxlsnap.journal import Journal, RevertEntry
from pyxlsnap.linux.locks import DomainLock
from pyxlsnap.request import Callbacks, RevertRequest
from pyxlsnap.results import Plan, Progress, Reverted
from pyxlsnap.revert.plan import RevertPlan, make_plan
from pyxlsnap.revert.ready import take_back
from pyxlsnap.revert.saved import saved_uuid
from pyxlsnap.revert.sequence import Reversion


def revert(
    host: Host,
    request: RevertRequest,
    callbacks: Callbacks,
    cancel: Cancel | None = None,
    *,
    recheck: Callable[[Guest | None], None] = lambda _: None,
) -> Reverted:
    """Revert a domain to a snapshot, in this process (see :mod:`pyxlsnap.create.operation`).

    :param recheck: called with the domain to destroy (``None``: it is off) when the locks are held
        and the plan is made. An error of it ends the revert before anything is changed.
    :raises UsageError, Refused, Risky: the request is wrong, not possible or not shown to be safe;
        nothing was changed.
    :raises OperationFailed, Interrupted: it ended before the domain was destroyed; nothing was
        changed, but a snapshot of the present state (``keep_current``) may stay.
    :raises NeedsAttention: it failed later. The error lists what is left (usually the domain is
        off) and has the command that finishes the revert.
    """
    cancel = cancel or Cancel()
    with _planned(host, request, callbacks, cancel, clean=True) as plan:
        recheck(plan.guest)
        kept = ""
        if request.keep_current:
            from pyxlsnap.revert.keep_current import plan_present, take_present

            with closing(plan_present(host, plan, callbacks, cancel)) as present:
                kept = take_present(present, plan, callbacks, cancel)
        return Reversion(host, plan, callbacks, cancel, present_cfgfile=kept).run()


def preview(
    host: Host, request: RevertRequest, callbacks: Callbacks, cancel: Cancel | None = None
) -> Plan:
    """Plan a revert without doing it. Changes nothing.

    :raises UsageError, Refused, Risky, Interrupted: as :func:`revert`.
    """
    cancel = cancel or Cancel()
    with _planned(host, request, callbacks, cancel) as plan:
        if request.keep_current:
            from pyxlsnap.revert.keep_current import plan_present

            plan_present(host, plan, callbacks, cancel).close()
        return plan.summary()


def read_cfgfile(request: RevertRequest) -> RevertRequest:
    """Read the request's cfgfile into its ``config``. Needs no Xen.

    :raises ConfigError: the cfgfile is wrong.
    """
    if request.config is not None:
        return request
    return replace(request, config=cfgfile.read(Path(request.cfgfile)))


@contextmanager
def _planned(
    host: Host,
    request: RevertRequest,
    callbacks: Callbacks,
    cancel: Cancel,
    *,
    clean: bool = False,
) -> Iterator[RevertPlan]:
    """Make a plan, and hold the locks of the domains concerned while the plan is used.

    :param clean: first remove what a revert has made ready that was killed before the destroy.
    """
    request = read_cfgfile(request)
    half_way: RevertEntry | None = None
    with ExitStack() as locks:
        try:
            for uuid in _uuids(host, request, callbacks):
                lock = DomainLock(uuid, domain=request.domain, wait_s=request.wait_s)
                locks.callback(lock.release)
                callbacks.share_lock(uuid, lock.fd)
                entry = Journal(uuid).unfinished_revert(request.cfgfile)  # this revert finishes it
                if entry and _is_half_way(host, request, entry):
                    half_way = entry
                elif entry and clean:
                    _take_back(entry)
            callbacks.on_progress(Progress("checking"))
            tell = Reports(callbacks)
            if half_way:  # the killed process may have left a qemu-img that still works
                wait_for_qemu_img(half_way.devices, tell, cancel.check)
            made = make_plan(host, request, cancel, half_way=half_way, waiting=tell)
            with closing(made) as plan:
                yield plan
        except Cancelled:
            what = f"reverting {request.domain} was interrupted"
            raise Interrupted(what, step="plan") from None


def _take_back(entry: RevertEntry) -> None:
    """:raises Refused: something is left."""
    if not entry.destroy_begun and (left := take_back(entry)):
        raise Refused("; ".join(left))


def _is_half_way(host: Host, request: RevertRequest, entry: RevertEntry) -> bool:
    """Whether the journal has the requested revert, and the domain does not run any more."""
    if not entry.destroy_begun or Path(entry.cfgfile) != Path(request.cfgfile):
        return False
    try:
        guest = host.find(request.domain)
        return guest.uuid in (entry.uuid, entry.replaced_uuid) and not guest.info().lives
    except DomainNotFound:
        return True


def _uuids(host: Host, request: RevertRequest, callbacks: Callbacks) -> list[str]:
    """The uuids of the saved domain and of the domain that exists now."""
    uuids = {saved_uuid(request)}
    # Without a domain, it is off, or the name is wrong: the plan finds out.
    if guest := host.find_if_there(request.domain):
        uuids.add(guest.uuid)
        if guest.device_model_pid() is not None:  # the restored domain will have one, too
            callbacks.will_ask_qemu()
    return sorted(uuids)
