"""Why a revert may not do what its user expects: reasons for which ``--force`` is needed."""

import os
from collections.abc import Collection
from pathlib import Path

from pyxlsnap.errors import Refused, XenError
from pyxlsnap.guest import checks
from pyxlsnap.guest.device_model import not_saved
from pyxlsnap.guest.protocols import Guest, Host
from pyxlsnap.guest.saved import changeable
from pyxlsnap.linux.stalled import exists_within
from pyxlsnap.model import DomainConfig


def find_risks(
    host: Host,
    config: DomainConfig,
    guest: Guest | None,
    in_snapshot: Collection[str],
    *,
    memory: Path,
    xen: tuple[int, int],
) -> list[str]:
    """The reasons why a revert cannot be shown to be safe.

    :param guest: the domain that is destroyed before; ``None``: none.
    :param in_snapshot: the vdevs of the disks that are put back.
    :param memory: the memory file.
    :param xen: the release of Xen that saved the memory.
    """
    reasons = changeable(memory)
    outside = [d.vdev for d in config.disks if not d.left_out and d.vdev not in in_snapshot]
    if outside:
        reasons.append(
            f"disks are not in the snapshot and may have changed since: {', '.join(outside)}"
        )
    if items := not_saved(config):
        reasons.append(
            f"the saved domain has {', '.join(items)}, and a restore may fail or not match it"
        )
    if xen != host.xen_version():
        made, now = ("{}.{}".format(*v) for v in (xen, host.xen_version()))
        reasons.append(f"the memory was saved on Xen {made}, and this host runs Xen {now}")
    if guest is None:
        return reasons
    if guest.uuid != config.uuid:
        reasons.append(f"{guest.name} has another uuid than the snapshot ({config.uuid})")
    if guest.info().suspended:
        return reasons  # a snapshot could not resume it: its QEMU is stopped and would not answer
    return reasons + _changes(config, guest) + checks.libvirt_reason(guest)


def _changes(config: DomainConfig, guest: Guest) -> list[str]:
    """A reason, if disks were added, removed or changed since the snapshot."""
    try:
        present = guest.config()
    except (XenError, Refused) as e:  # after a crash of its QEMU, for example: a revert helps
        return [f"the present configuration of {guest.name} cannot be read ({e})"]
    now, then = (
        {(d.vdev, _place(d.target)) for d in c.disks if not d.left_out} for c in (present, config)
    )
    changed = sorted({vdev for vdev, _ in now ^ then})
    return [f"disks were added, removed or changed since: {', '.join(changed)}"] if changed else []


def _place(target: str) -> str:
    """The real path of a disk; as it is if its server does not answer, or if it is not there."""
    return os.path.realpath(target) if exists_within(target) else target
