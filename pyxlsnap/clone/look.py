"""What a clone needs of the host: looked at by the plan, and again just before the restore."""

from collections.abc import Mapping
from dataclasses import field

from pyxlsnap.clone.line_files import own_lines
from pyxlsnap.clone.lines import refuse_taken_lines
from pyxlsnap.clone.macs import other_nics, same_macs
from pyxlsnap.clone.shared import refuse_still_shared
from pyxlsnap.dataclass import dataclass
from pyxlsnap.guest import checks
from pyxlsnap.guest.findings import Findings
from pyxlsnap.guest.host_needs import examine_host
from pyxlsnap.guest.protocols import Guest, Host
from pyxlsnap.guest.snapshot import Saved
from pyxlsnap.model import DiskRequest, DomainConfig
from pyxlsnap.results import CloneDisk


@dataclass(frozen=True, slots=True)
class Look:
    """The surroundings of one clone."""

    host: Host = field(repr=False)
    saved: Saved = field(repr=False)
    #: the clone's configuration
    config: DomainConfig = field(repr=False)
    #: the clone that is destroyed before; ``None``: none, or it is off
    guest: Guest | None = field(repr=False)
    #: the end of the names of the clone's disks, where the user has named none
    label: str
    #: where the user wants the disks, by vdev
    asked: Mapping[str, DiskRequest]
    children: tuple[CloneDisk, ...]

    def again(self, line_files: Mapping[str, str]) -> Findings:
        """Look at everything.

        :param line_files: those of the clone: :attr:`pyxlsnap.clone.line_files.LineFiles.marks`.
        :raises Refused: the clone cannot be made.
        """
        config, made = self.config, {child.vdev for child in self.children}
        checks.refuse_name_or_uuid_in_use(self.host, config, self.guest)
        refuse_still_shared(self.saved.config, config, made)
        refuse_taken_lines(config, own_lines(config, line_files, self.guest))
        checks.refuse_shared(self.host, self.guest, [d for d in config.disks if not d.left_out])
        found = examine_host(
            self.host,
            config,
            self.guest,
            besides=made,
            qemu=self.saved.qemu,
            like=None if self.guest else self.host.find_if_there(self.saved.config.uuid),
        )
        macs = same_macs(config, other_nics(self.host, config.uuid))
        return Findings((*found.risks, *macs), found.warnings)
