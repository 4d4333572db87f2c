"""The high level: each call runs in a worker process of its own and returns when it has ended.

Nothing of the calling process is touched, whatever libxl does. If the caller dies, the worker
rolls back; if the worker dies, its keeper recovers, and if that dies too, the caller.
"""

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pyxlsnap import watched, wire
from pyxlsnap.caller import Worker
from pyxlsnap.cancel import Cancel, Cancelled
from pyxlsnap.errors import (
    Interrupted,
    NeedsAttention,
    OperationFailed,
    PyxlsnapError,
    Refused,
    UsageError,
    WorkerDied,
    from_wire,
)
from pyxlsnap.journal import RIVAL_S
from pyxlsnap.model import (
    Artefact,
    OnEvent,
    OnProgress,
    Plan,
    PlannedDisk,
    Recovered,
    Reverted,
    RunState,
    Snapshot,
    SnapshotConfig,
    check_uuid,
)

StrPath = str | os.PathLike[str]


def create_snapshot(
    domain: str,
    *,
    cfgfile: StrPath | None = None,
    name: str | None = None,
    config: SnapshotConfig | None = None,
    live: bool = False,
    max_downtime: float | None = None,
    monitor: bool = True,
    on_progress: OnProgress | None = None,
    cancel: Cancel | None = None,
) -> Snapshot:
    """Take a snapshot of a running or paused domain: its memory, and its disks at the same instant.

    :param domain: name, domid or uuid.
    :param cfgfile: the file to read the snapshot's name, memory file and disks from.
    :param name: the snapshot's name, if the cfgfile has none (the file wins, with a warning).
    :param config: all of it as a value, instead of cfgfile and name.
    :param live: let the domain run while its memory is written.
    :param max_downtime: seconds; refuse if the domain is expected to stand still for longer.
    :param monitor: before Xen 4.20 the process with which xl watches a domain leaves when it is
        suspended; if there was one, start ours in its place (:func:`start_monitor`).
    :param on_progress: called on the calling thread. What it raises cancels the operation and
        reaches the caller after the rollback; if it was too late for that, with a note.
    :param cancel: a token; when it is set, the operation is rolled back.
    :raises UsageError: name, file or option is wrong. Nothing was tried.
    :raises Refused: it cannot be done, and why. Nothing was tried.
    :raises OperationFailed: it failed and was undone: guest, disks and files are as before.
    :raises Interrupted: it was cancelled; the same.
    :raises NeedsAttention: it failed and something is left; the error says what, and the command
        that finishes it.
    """
    request = _create_request(domain, cfgfile, name, config, live, max_downtime)
    values = _run(request | {"monitor": monitor}, on_progress, cancel)
    artefacts = tuple(Artefact(**a) for a in values.pop("artefacts"))
    warnings = tuple(values.pop("warnings"))
    state = RunState(values.pop("state"))
    return Snapshot(**values, artefacts=artefacts, warnings=warnings, state=state)


def plan_create(
    domain: str,
    *,
    cfgfile: StrPath | None = None,
    name: str | None = None,
    config: SnapshotConfig | None = None,
    live: bool = False,
    max_downtime: float | None = None,
    cancel: Cancel | None = None,
) -> Plan:
    """What :func:`create_snapshot` would do, and for how long the domain would stand still.

    Its parameters are the same, and so are the errors that are raised before anything was tried.
    """
    request = _create_request(domain, cfgfile, name, config, live, max_downtime)
    return _plan(_run(request | {"dry_run": True}, None, cancel))


def _create_request(
    domain: str,
    cfgfile: StrPath | None,
    name: str | None,
    config: SnapshotConfig | None,
    live: bool,
    max_downtime: float | None,
) -> wire.Message:
    if config is not None and (cfgfile, name) != (None, None):
        raise UsageError("give either config, or cfgfile and name")
    if config is not None and config.memory_path:
        config = replace(config, memory_path=_absolute(config.memory_path))
    return {
        "operation": "create",
        "domain": domain,
        "cfgfile": _absolute(cfgfile) if cfgfile is not None else None,
        "config": asdict(config or SnapshotConfig(name=name)),
        "live": live,
        "max_downtime": max_downtime,
    }


def revert_snapshot(
    domain: str,
    cfgfile: StrPath,
    *,
    running: bool = False,
    force: bool = False,
    keep_current: bool = False,
    monitor: bool = True,
    on_progress: OnProgress | None = None,
    cancel: Cancel | None = None,
) -> Reverted:
    """Bring a domain back to a snapshot. What it has done since is lost.

    :param domain: name, domid or uuid; it may be off.
    :param cfgfile: the file that :func:`create_snapshot` wrote.
    :param running: the domain runs afterwards, even if it was paused in the snapshot.
    :param force: do it even if it is risky.
    :param keep_current: take a snapshot of the domain as it is now first (named ``before-…``, its
        disks where those of this snapshot are); if that fails, nothing else is done.
    :param monitor: have the guest's own reboot, power-off or crash acted on afterwards, as by xl
        (:func:`start_monitor`). Leave it out if you do that (:func:`monitor_domain`, or your own).
    :param on_progress, cancel: as with :func:`create_snapshot`; once the domain is destroyed the
        revert goes on to its end.
    :raises UsageError, Refused: nothing was tried.
    :raises Risky: nothing was tried; ``force`` would do it.
    :raises OperationFailed, Interrupted: it ended before anything was changed.
    :raises NeedsAttention: it failed after the domain was destroyed; run it again to finish. (If
        only its worker is killed there, the revert is finished, and the result has a warning.)
    """
    request = _revert_request(domain, cfgfile, running, force, keep_current)
    return _reverted(_run(request | {"monitor": monitor}, on_progress, cancel))


def plan_revert(
    domain: str,
    cfgfile: StrPath,
    *,
    running: bool = False,
    force: bool = False,
    keep_current: bool = False,
    cancel: Cancel | None = None,
) -> Plan:
    """What :func:`revert_snapshot` would do.

    Its parameters are the same, and so are the errors that are raised before anything was tried.
    """
    request = _revert_request(domain, cfgfile, running, force, keep_current)
    return _plan(_run(request | {"dry_run": True}, None, cancel))


def _revert_request(
    domain: str, cfgfile: StrPath, running: bool, force: bool, keep_current: bool
) -> wire.Message:
    return {
        "operation": "revert",
        "domain": domain,
        "cfgfile": _absolute(cfgfile),
        "running": running,
        "force": force,
        "keep_current": keep_current,
    }


def _plan(values: dict[str, Any]) -> Plan:
    values["state"] = RunState(values["state"])
    values["disks"] = tuple(PlannedDisk(**d) for d in values["disks"])
    values["warnings"] = tuple(values["warnings"])
    return Plan(**values)


def recover(domain: str | None = None) -> Recovered:
    """Finish what an operation that was killed had begun on a domain, or on any.

    A create is rolled back; a revert that had begun to destroy the domain is brought to its end.
    To be called at the start of a daemon, and when the host has crashed. Where nothing was in
    flight it does nothing.

    :param domain: name, domid or uuid; it may be off. ``None``: every domain. Operations that are
        under way are left alone then.
    :raises DomainNotFound: there is neither such a domain nor an operation on one.
    :raises Busy: the domain's operation is still under way.
    :raises NeedsAttention: something is left that needs a person.
    """
    return _recover(domain)


def _recover(domain: str | None, *, wait_s: float = 0.0) -> Recovered:
    request: wire.Message = {"operation": "recover", "domain": domain, "monitor": True}
    return _recovered(_run(request | {"wait_s": wait_s}, None, None))


def start_monitor(uuid: str) -> None:
    """Start a process that acts on a domain's own reboot, power-off and crash, as xl has one.

    What it does is in the domain's configuration (``on_reboot`` and the others in xl.cfg(5)). It
    outlives the caller (not its systemd unit, unless that has ``KillMode=process``), ends when the
    domain has gone for good, and writes to ``/var/log/xen/pyxlsnap-<name>.log``.

    :param uuid: the domain's uuid.
    :raises UsageError: that is no uuid.
    :raises OperationFailed: it could not be started.
    """
    watched.start_monitor(check_uuid(uuid))


def monitor_domain(
    domain: str, *, on_event: OnEvent | None = None, cancel: Cancel | None = None
) -> None:
    """The same for as long as this call lasts: it returns when the domain has gone for good.

    :param domain: name, domid or uuid.
    :param on_event: called on the calling thread when something has been acted on. What it raises
        ends the watch and reaches the caller.
    :param cancel: a token; when it is set, the watch ends.
    :raises DomainNotFound: there is no such domain.
    :raises Interrupted: it was cancelled. The domain is as it was.
    :raises NeedsAttention: the domain has shut down, and what it is configured for could not be
        done; or the watch itself has died.
    """
    _run({"operation": "monitor", "domain": domain}, None, cancel, on_event)


def _absolute(path: StrPath) -> str:
    return str(Path(path).absolute())  # the worker starts in /


def _run(
    request: wire.Message,
    on_progress: OnProgress | None,
    cancel: Cancel | None,
    on_event: OnEvent | None = None,
) -> Any:
    try:
        worker = Worker(request, on_progress or (lambda _: None), on_event or (lambda _: None))
    except OSError as e:
        raise Refused(f"the worker process cannot be started: {e.strerror}") from e
    try:
        with (cancel or Cancel()).armed(worker.cancel):
            return worker.result()
    except Cancelled:
        raise Interrupted("cancelled before it began", step="start") from None
    except WorkerDied as died:
        worker.let_go_of_locks()  # the recovery takes them
        if request["operation"] == "recover":
            raise _not_recovered(died, request["domain"]) from died
        if request["operation"] == "monitor":
            raise _not_watched(died, request["domain"]) from died
        return _after(died, worker)
    finally:
        worker.close()


def _after(died: WorkerDied, worker: Worker) -> wire.Message:
    """The worker is dead. Its keeper has done what it would have done; else that is done now.

    Returns the result of a revert that was finished so.
    """
    try:
        found = _recovery(worker)
    except NeedsAttention as e:
        raise NeedsAttention(
            f"{died}; {e}", step=e.step, undone=e.undone, left=e.left, finish=e.finish
        ) from died
    except PyxlsnapError as e:
        raise NeedsAttention(
            f"{died}; recovering failed: {e}",
            step="recover",
            left=[str(e)],
            finish="; ".join(f"pyxlsnap snapshot-recover {uuid}" for uuid in worker.locked),
        ) from died
    for reverted in (r.reverted for r in found if r.reverted):
        warning = f"{died}; the revert was finished without it"
        return asdict(replace(reverted, warnings=(*reverted.warnings, warning)))
    if stands := [line for r in found if not r.rolled_back for line in r.lines]:  # its work is done
        what = f"{died}; {'; '.join(stands)}"
        raise NeedsAttention(what, step="worker", left=stands) from died
    done = [line for r in found for line in r.lines]
    if worker.begun and found and not done:
        what = f"{died}; it had ended what it did, or undone it, and did not come to say so"
        raise NeedsAttention(what, step="worker", left=["see what is there"]) from died
    what = f"{died}; everything is as before"
    raise OperationFailed(what, step="worker", undone=done) from died


def _recovery(worker: Worker) -> list[Recovered]:
    if worker.recovery is None:
        return [_recover(uuid, wait_s=RIVAL_S) for uuid in worker.locked]
    if "error" in worker.recovery:
        raise from_wire(worker.recovery["error"])
    return [_recovered(values) for values in worker.recovery["recovered"]]


def _reverted(values: dict[str, Any]) -> Reverted:
    values["state"] = RunState(values["state"])
    values["disks"], values["warnings"] = tuple(values["disks"]), tuple(values["warnings"])
    return Reverted(**values)


def _recovered(values: dict[str, Any]) -> Recovered:
    reverted = values["reverted"] and _reverted(values["reverted"])
    return Recovered(tuple(values["lines"]), values["rolled_back"], reverted)


def _not_recovered(died: WorkerDied, domain: str | None) -> NeedsAttention:
    """A recovery's worker is dead: another one would end likewise."""
    return NeedsAttention(
        f"recovering {domain or 'the domains'} failed: {died}",
        step="recover",
        left=[f"what the journal of {domain or 'each'} says"],
        finish=f"pyxlsnap snapshot-recover {domain or ''}".rstrip(),
    )


def _not_watched(died: WorkerDied, domain: str) -> NeedsAttention:
    left = f"nobody watches {domain}"
    return NeedsAttention(f"{died}; {left} now", step="monitor", left=[left])
