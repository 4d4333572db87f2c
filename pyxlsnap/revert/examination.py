"""What a revert needs of the host and of all disks of the domain, also of those that stay.

The plan looks at it, and the last look before the destroy does so again.
"""

from collections.abc import Callable, Sequence
from dataclasses import field

from pyxlsnap.dataclass import dataclass
from pyxlsnap.disks.answering import refuse_unanswering
from pyxlsnap.disks.read_only import refuse_written
from pyxlsnap.disks.rivals import refuse_rivals
from pyxlsnap.guest import checks
from pyxlsnap.guest.device_model import servers
from pyxlsnap.guest.findings import Findings
from pyxlsnap.guest.host_needs import examine_host
from pyxlsnap.guest.lines import examine_lines
from pyxlsnap.guest.protocols import Guest, Host
from pyxlsnap.model import Disk, DiskRequest, DomainConfig
from pyxlsnap.revert.disk_files import cut_off, refuse_lost, refuse_unopenable, replaced
from pyxlsnap.revert.stopped import refuse_stopped


@dataclass(frozen=True, slots=True)
class Examination:
    """The surroundings of one revert."""

    host: Host = field(repr=False)
    config: DomainConfig = field(repr=False)
    #: the domain to be destroyed; ``None`` if the domain is off
    guest: Guest | None = field(repr=False)
    #: the disks that are put back, each with its disk snapshot
    chosen: Sequence[tuple[Disk, DiskRequest]]
    #: the version of the QEMU that saved the domain; "" if it is not known
    qemu: str
    #: called again and again with what is waited for; an exception from it ends the wait
    waiting: Callable[[str], None] = field(repr=False)

    def look(self) -> Findings:
        """Look at everything.

        :raises Refused: the revert cannot be done.
        """
        config, guest, disks = self.config, self.guest, [disk for disk, _ in self.chosen]
        checks.refuse_name_or_uuid_in_use(self.host, config, guest)
        refuse_stopped(guest, config.name)
        checks.refuse_silent(config.disks, [request for _, request in self.chosen])
        refuse_unanswering(config.disks)
        checks.refuse_shared(self.host, guest, [d for d in config.disks if not d.left_out])
        refuse_rivals(config.disks, disks, servers(guest), self.waiting)
        refuse_written(config.disks, guest.domid if guest else None)
        vdevs = {disk.vdev for disk in disks}
        stay = [disk for disk in config.disks if disk.vdev not in vdevs]
        refuse_lost(guest, self.chosen, stay)
        refuse_unopenable(stay)
        found = examine_host(self.host, config, guest, besides=vdevs, qemu=self.qemu)
        lines = Findings.of(config.name, examine_lines(config, guest))
        risks = (*replaced(guest, self.chosen, stay), *cut_off(self.chosen, stay))
        return Findings((*found.risks, *lines.risks, *risks), found.warnings)
