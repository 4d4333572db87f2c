"""The result of a create: the snapshot, all that it consists of, and how to delete each part."""

from pyxlsnap.create.plan import CreatePlan
from pyxlsnap.results import Artefact, Snapshot
from pyxlsnap.serialize import checked
from pyxlsnap.text import command


def snapshot_of(plan: CreatePlan, warnings: list[str]) -> Snapshot:
    """The snapshot that a plan has become, without the times that it took."""
    meta = plan.metadata
    files = [
        Artefact(kind, str(path), command(["rm", str(path)]))
        for kind, path in (("memory file", plan.memory_path), ("cfgfile", plan.cfgfile))
    ]
    disks, unsaid = _disk_artefacts(plan)
    return Snapshot(
        name=meta.name,
        domain=plan.guest.name,
        domid=plan.guest.domid,
        uuid=plan.guest.uuid,
        live=plan.live,
        memory_path=str(plan.memory_path),
        cfgfile=str(plan.cfgfile),
        artefacts=(*files, *disks),
        left_out=plan.left_out,
        warnings=(*plan.warnings, *warnings, *unsaid),
        state=meta.state,
        seconds_suspended=0.0,
    )


def _disk_artefacts(plan: CreatePlan) -> tuple[list[Artefact], list[str]]:
    """The disk snapshots made, and warnings of strategies that cannot name theirs."""
    found: list[Artefact] = []
    unsaid: list[str] = []
    for strategy in plan.strategies:
        try:
            found += [checked(Artefact, a) for a in strategy.artefacts(plan.guest.name)]
        except Exception as e:
            vdevs = ", ".join(strategy.vdevs)
            unsaid.append(f"{vdevs}: {strategy.kind} cannot name its disk snapshots: {e}")
    return found, unsaid
