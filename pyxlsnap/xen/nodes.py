"""What xenstore has of a domain, where libxl does not report it."""

import re

from pyxlsnap.xen.context import Context

_NUMBER = re.compile(r"[0-9]{1,9}")
#: names beside the kinds of devices: below is the event channel by which libxl suspends the guest
_NO_DEVICES = ("suspend",)


def number(text: str) -> int | None:
    """A number in xenstore, also where the guest writes it; ``None`` for any other text.

    (int() also reads "²", "+4" and " 4", and raises an error for very many digits.)
    """
    return int(text) if _NUMBER.fullmatch(text) else None


def devices(domid: int) -> tuple[str, str]:
    """The two nodes below which is all that frontend_states and disk_targets read."""
    return _frontends(domid), _libxls(domid)


def _frontends(domid: int) -> str:
    return f"/local/domain/{domid}/device"


def _libxls(domid: int) -> str:
    return f"/libxl/{domid}/device"


def frontend_states(context: Context, domid: int) -> dict[str, int]:
    """See :meth:`pyxlsnap.xen.domain.Domain.frontend_states`."""
    read = context.xenstore_read
    base = _frontends(domid)
    kinds = [kind for kind in context.xenstore_list(base) if kind not in _NO_DEVICES]
    devices = [f"{k}/{d}" for k in kinds for d in context.xenstore_list(f"{base}/{k}")]
    found = [(device, read(f"{base}/{device}/state")) for device in devices]
    return {
        device: number(state or "") or 0
        for device, state in found
        # (Only a node with one of them is a device.)
        if state is not None or read(f"{base}/{device}/backend") is not None
    }


def disk_targets(context: Context, domid: int) -> tuple[str, ...]:
    """See :meth:`pyxlsnap.xen.domain.Domain.disk_targets`."""
    base = _libxls(domid)
    disks = [
        f"{base}/{kind}/{device}"
        for kind in ("vbd", "virtio_disk")
        for device in context.xenstore_list(f"{base}/{kind}")
    ]
    return tuple(filter(None, (_target(context, disk) for disk in disks)))


def nics(context: Context, domid: int) -> tuple[tuple[str, str], ...]:
    """See :meth:`pyxlsnap.xen.domain.Domain.nics`."""
    base = f"{_libxls(domid)}/vif"
    read = context.xenstore_read
    devices = [f"{base}/{device}" for device in context.xenstore_list(base)]
    return tuple((read(f"{d}/mac") or "", read(f"{d}/bridge") or "") for d in devices)


def _target(context: Context, disk: str) -> str:
    params = context.xenstore_read(f"{disk}/params") or ""
    # libxl writes the format before the path ("qcow2:/path") for QEMU, and for nothing else.
    for_qemu = context.xenstore_read(f"{disk}/type") == "qdisk"
    return params.partition(":")[2] if for_qemu else params
