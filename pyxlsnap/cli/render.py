"""The results of operations as text for people."""

from collections.abc import Iterable, Iterator

from pyxlsnap.model import RunState
from pyxlsnap.results import Artefact, Cloned, Plan, Recovered, Reverted, Snapshot
from pyxlsnap.text import command, paused_again

Result = Snapshot | Reverted | Cloned | Plan | Recovered


def lines(result: Result) -> Iterator[str]:
    """The lines that the command line prints for a result."""
    if isinstance(result, Snapshot):
        return _snapshot(result)
    if isinstance(result, Plan):
        return _plan(result)
    if isinstance(result, Reverted):
        return _reverted(result)
    if isinstance(result, Cloned):
        return _cloned(result)
    return iter(result.lines or ("nothing to recover",))


def _snapshot(snapshot: Snapshot) -> Iterator[str]:
    how = "live" if snapshot.live else "stopped"
    yield (
        f"took snapshot {snapshot.name} of {snapshot.domain} ({how}, suspended for "
        f"{snapshot.seconds_suspended:.2f} s)"
    )
    if snapshot.state is RunState.PAUSED:
        yield f"  {paused_again(snapshot.domain, snapshot.seconds_unpaused)}"
    yield from _artefacts(snapshot.artefacts)
    for vdev, why in snapshot.left_out.items():
        yield f"  left out: {vdev} ({why})"
    yield f"revert: {_revert_command(snapshot.domain, snapshot.cfgfile)}"


def _artefacts(artefacts: Iterable[Artefact]) -> Iterator[str]:
    for artefact in artefacts:
        yield f"  {artefact.kind}: {artefact.where}"
        yield f"    delete: {artefact.delete}"


def _cloned(made: Cloned) -> Iterator[str]:
    again = ", in the place of an older one" if made.replaced else ""
    yield f"{made.domain} is cloned from {made.name} and {made.state} (domid {made.domid}{again})"
    yield from _artefacts(made.artefacts)
    for change in made.changes:
        yield f"  its own: {change}"


def _reverted(reverted: Reverted) -> Iterator[str]:
    yield (
        f"{reverted.domain} is back at {reverted.name} and {reverted.state} "
        f"(domid {reverted.domid}; disks: {', '.join(reverted.disks) or 'none'})"
    )
    if reverted.kept:
        yield f"  undo this revert: {_revert_command(reverted.uuid, reverted.kept)}"


def _revert_command(domain: str, cfgfile: str) -> str:
    return command(["pyxlsnap", "snapshot-revert", domain, cfgfile])


def _plan(plan: Plan) -> Iterator[str]:
    if plan.operation == "create":
        how = "live" if plan.live else "stopped"
        yield f"would take snapshot {plan.name} of {plan.domain} ({how})"
        yield f"  {plan.domain} would be suspended for about {plan.seconds_suspended:.1f} s"
        yield f"  memory file: {plan.memory_path}"
        yield f"  cfgfile: {plan.cfgfile}"
    else:
        what = (
            f"would revert {plan.domain} to {plan.name}"
            if plan.operation == "revert"
            else f"would make the clone {plan.domain} of {plan.name}"
        )
        yield f"{what} (afterwards {plan.state})"
        yield f"  memory file: {plan.memory_path}"
    for disk in plan.disks:
        where = f", {disk.path}" if disk.path else ""
        yield f"  {disk.vdev}: {disk.target} ({disk.how}{where})"
    for vdev, why in plan.left_out.items():
        yield f"  left out: {vdev} ({why})"
