"""Going back to a snapshot, in this process: the locks, the plan, and the run of the sequence."""

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path

from pyxlsnap import cfgfile
from pyxlsnap.cancel import Cancel, Cancelled
from pyxlsnap.errors import DomainNotFound, Interrupted
from pyxlsnap.guest.protocols import Host
from pyxlsnap.journal import Journal, RevertEntry
from pyxlsnap.linux.locks import DomainLock
from pyxlsnap.request import Callbacks, RevertRequest
from pyxlsnap.results import Plan, Progress, Reverted
from pyxlsnap.revert.keep_current import plan_present, take_present
from pyxlsnap.revert.plan import RevertPlan, make_plan, saved_uuid
from pyxlsnap.revert.sequence import Reversion


def revert(
    host: Host, request: RevertRequest, callbacks: Callbacks, cancel: Cancel | None = None
) -> Reverted:
    """Bring a domain back to a snapshot, in this process (see :mod:`pyxlsnap.create.operation`).

    :raises UsageError, Refused, Risky: nothing was tried.
    :raises OperationFailed, Interrupted: it ended before the domain was destroyed: nothing changed.
    :raises NeedsAttention: it failed later. The domain is off; the error has the command that
        finishes the revert.
    """
    cancel = cancel or Cancel()
    with _planned(host, request, callbacks, cancel) as plan:
        kept = ""
        if request.keep_current:
            with closing(plan_present(host, plan, cancel)) as present:
                kept = take_present(present, plan, callbacks, cancel)
        return Reversion(host, plan, callbacks, cancel, present_cfgfile=kept).run()


def preview(
    host: Host, request: RevertRequest, callbacks: Callbacks, cancel: Cancel | None = None
) -> Plan:
    """What :func:`revert` would do; raises what :func:`revert` would raise, and changes nothing."""
    cancel = cancel or Cancel()
    with _planned(host, request, callbacks, cancel) as plan:
        if request.keep_current:
            plan_present(host, plan, cancel).close()
        return plan.summary()


def read_cfgfile(request: RevertRequest) -> RevertRequest:
    """The same request, with what its cfgfile says in its config. Needs no Xen.

    :raises ConfigError: the cfgfile is wrong.
    """
    if request.config is not None:
        return request
    return replace(request, config=cfgfile.read(Path(request.cfgfile)))


@contextmanager
def _planned(
    host: Host, request: RevertRequest, callbacks: Callbacks, cancel: Cancel
) -> Iterator[RevertPlan]:
    """A plan that can be run, under the locks of the domains concerned."""
    request = read_cfgfile(request)
    name = ""
    with ExitStack() as locks:
        try:
            for uuid in _uuids(host, request):
                lock = DomainLock(uuid, domain=request.domain, wait_s=request.wait_s)
                locks.callback(lock.release)
                callbacks.share_lock(uuid, lock.fd)
                entry = Journal(uuid).unfinished_revert()  # this revert finishes it
                if entry and _is_half_way(host, request, entry):
                    # What is risky was decided then, and its present name may be nowhere else.
                    request, name = replace(request, force=True), entry.domain
            callbacks.on_progress(Progress("checking"))
            with closing(make_plan(host, request, cancel, name=name)) as plan:
                yield plan
        except Cancelled:
            what = f"reverting {request.domain} was interrupted"
            raise Interrupted(what, step="plan") from None


def _is_half_way(host: Host, request: RevertRequest, entry: RevertEntry) -> bool:
    """Whether that revert of the same domain, to the same snapshot, has no way back."""
    if not entry.destroy_begun or entry.cfgfile != request.cfgfile:
        return False
    try:
        guest = host.find(request.domain)
        return guest.uuid in (entry.uuid, entry.replaced_uuid) and not guest.info().lives
    except DomainNotFound:
        return True


def _uuids(host: Host, request: RevertRequest) -> list[str]:
    """The domains concerned: the one in the memory file, and the one that is there now."""
    uuids = {saved_uuid(request)}
    try:
        uuids.add(host.find(request.domain).uuid)
    except DomainNotFound:
        pass  # it is off, or the name is wrong: the plan will tell
    return sorted(uuids)
