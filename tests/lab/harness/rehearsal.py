"""A guest of the lab with a disk of each kind, and a snapshot of it, for the list of conditions."""

from collections.abc import Mapping
from copy import copy
from typing import Any

from tests.rehearsal.condition import Condition, filled_in

from . import storage
from .dom0 import Completed
from .external import take as take_external
from .guests import Guest
from .lab import Lab
from .mixed import AROUND, attach, more, quicken_hotplug
from .reverts import Taken, check_back
from .snapshots import Before, create, pyxlsnap, revert

NAME = "snap"
_FROZEN = "/lab/frozen"


class Stage:
    """One guest, which has run on since its snapshot, and what was done to it."""

    def __init__(self, lab: Lab) -> None:
        self.guest = lab.guest("pvh")
        self._dom0 = lab.dom0
        quicken_hotplug(self._dom0)
        attach(self.guest, more(self.guest, external=True))
        for name in ("zeroth", "first"):  # both images stand on two others
            take_external(self.guest, name)
        self._fixed = self._names()
        self.taken = self._take()
        # QEMU knows the new overlays by names that are gone, until it is started again.
        self.guest.wait_tick(self.taken.after.n + 2)
        mark = self.guest.mark()
        revert(self.guest, self.taken.cfgfile)
        self.check_back(mark)

    def _names(self) -> dict[str, str]:
        guest = self.guest
        chains = {
            f"{word}_{part}": f"{_FROZEN}/{vdev}.{name}"
            for word, vdev in (("internal", "xvda"), ("external", "xvdb"))
            for part, name in (("base", "first"), ("bottom", "zeroth"))
        }
        return chains | {
            "internal": guest.disks["xvda"],
            "external": guest.disks["xvdb"],
            "frozen": f"{_FROZEN}/xvdb.{NAME}",
            "raw": storage.raw(guest.name),
            "raw_copy": f"{storage.BTRFS}/{NAME}.c",
            "block": storage.plain(guest.name),
            "block_copy": f"/lab/disk/{NAME}.f",
            "group": storage.GROUP,
            "thin": f"{guest.name}-thin",
            "thin_snapshot": f"{NAME}-d",
            "thick": f"{guest.name}-thick",
            "thick_snapshot": f"{NAME}-e",
            "name": NAME,
            "domain": guest.name,
            "uuid": guest.uuid,
            "other": "pv",
            "lock": f"/run/pyxlsnap/{guest.uuid}.lock",
            "logs": "/var/log/xen",
            "scripts": "/etc/xen/scripts",
            "helper": self._dom0.run("ls /usr/lib/xen-*/bin/libxl-save-helper").out.strip(),
        }

    def _take(self) -> Taken:
        names, group = self._fixed, f"/dev/{storage.GROUP}"
        disks = [
            ",,xvda",
            f"{names['frozen']},qcow2,xvdb",
            f"{names['raw_copy']},raw,xvdc",
            f"{group}/{names['thin_snapshot']},raw,xvdd",
            f"{group}/{names['thick_snapshot']},raw,xvde",
            f"{names['block_copy']},raw,xvdf",
        ]
        text = f"name={NAME!r}\ndisks=[{', '.join(map(repr, disks))}]\n"
        self._dom0.write("/tmp/snap/rehearsal.cfg", text)
        before = self.guest.assert_healthy()
        made: Mapping[str, Any] = create(self.guest, "/tmp/snap/rehearsal.cfg")
        after = self.guest.assert_healthy()
        self._fixed |= {"cfg": made["cfgfile"], "memory": made["memory_path"]}
        return Taken(made["cfgfile"], made["memory_path"], before, after)

    @property
    def names(self) -> dict[str, str]:
        """The names for a condition's commands, as they are now."""
        pid = "xenstore-read /local/domain/$(xl domid pvh)/image/device-model-pid"
        found = self._dom0.run(pid, check=False).out.strip()
        return self._fixed | {"pid": found, "spare": "/lab/disk/spare", "dir": "/lab/disk"}

    def begin(self) -> None:
        """Remove what the condition before has left to remember things by."""
        self._dom0.run("rm -rf /lab/disk/spare")

    def do(self, commands: tuple[str, ...], names: Mapping[str, str]) -> None:
        """Do the commands of a condition."""
        for command in commands:
            self._dom0.run(filled_in(command, names))

    def revert(self, condition: Condition, names: Mapping[str, str], *options: str) -> Completed:
        """Run the command as the condition has it."""
        domain = condition.domain.format(**names)
        words = ("snapshot-revert", domain, names["cfg"], *condition.options, *options)
        if not condition.before:
            return pyxlsnap(self._dom0, *words)
        before = filled_in(condition.before, names)
        return self._dom0.run(f"{before}; exec pyxlsnap {' '.join(words)}", check=False)

    def photo(self) -> tuple[Before | None, str]:
        """All that a refusal must leave as it is."""
        there = self._dom0.run(f"xl vm-list | grep {self.guest.uuid}", check=False).out.split()
        files = f"find {AROUND} {_FROZEN} -printf '%p %i %m\\n'"
        volumes = f"lvs -a --noheadings -o lv_name,lv_tags {storage.GROUP}"
        listing = self._dom0.run(f"{files}; {volumes}").out
        return Before.of(self._now_called(there[-1])) if there else None, listing

    def _now_called(self, name: str) -> Guest:
        guest = copy(self.guest)
        guest.name = name
        return guest

    def check_back(self, mark: int) -> None:
        """The guest and its disks have gone to the snapshot, and nothing is left."""
        check_back(self.guest, self.taken, mark)
        left = self._dom0.run(f"ls /var/lib/pyxlsnap; find {AROUND} -name '*.pre-revert'").out
        assert not left
