"""A result of each kind, as the command line shows it."""

from pyxlsnap.model import RunState
from pyxlsnap.results import Artefact, Cloned, CloneDisk, Plan, PlannedDisk, Reverted, Snapshot
from tests.unit.support.values import OTHER_UUID, UUID

SNAPSHOT = Snapshot(
    name="snap",
    domain="vm1",
    domid=7,
    uuid=UUID,
    live=False,
    memory_path="/m",
    cfgfile="/c",
    artefacts=(Artefact("cfgfile", "/c", "rm /c"),),
    left_out={"hdc": "a CD-ROM drive"},
    warnings=("careful",),
    state=RunState.RUNNING,
    seconds_suspended=0.25,
)
REVERTED = Reverted("snap", "vm1", 8, UUID, RunState.PAUSED, ("xvda",), ("careful",))
CLONED = Cloned(
    name="snap",
    domain="vm1-a",
    domid=9,
    uuid=OTHER_UUID,
    state=RunState.RUNNING,
    disks=(CloneDisk("xvda", "/a.snap.vm1-a", "qcow2", "overlay", "rm /a", "/a.snap"),),
    artefacts=(Artefact("domain", "vm1-a", "xl destroy vm1-a"),),
    changes=("network device 0: MAC 00:16:3e:00:00:01",),
    warnings=("careful",),
)
PLAN = Plan(
    operation="create",
    name="snap",
    domain="vm1",
    uuid=UUID,
    memory_path="/m",
    cfgfile="/c",
    live=True,
    state=RunState.RUNNING,
    disks=(PlannedDisk("xvda", "/a.qcow2", "qcow2", ""), PlannedDisk("xvdb", "/b", "raw", "/s")),
    left_out={"hdc": "a CD-ROM drive"},
    warnings=("careful",),
    seconds_suspended=0.41,
)
