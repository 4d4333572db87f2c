"""Whether a destroy that failed has changed anything of the domain."""

from pyxlsnap.errors import PyxlsnapError
from pyxlsnap.guest.protocols import Guest
from pyxlsnap.linux.processes import Process

# libxl has told QEMU to end, and does not wait for it.
_ENDING_S = 1.0


class BeforeDestroy:
    """A domain just before its destroy. To be closed.

    libxl pauses the domain first, then ends its QEMU, its devices, and at last the domain. Of a
    domain that is paused already the first does not show.

    :param dying: the domain may be half destroyed.
    :raises DomainNotFound: the domain no longer exists.
    """

    def __init__(self, guest: Guest, *, dying: bool) -> None:
        self._guest = guest
        self._flags = _flags(guest, dying=dying)
        self._disks = guest.disk_targets()
        self._qemu = Process(guest.device_model_pid())
        self._had_qemu = not self._qemu.ended(within_s=0)

    def is_unchanged(self) -> bool:
        """Whether the domain still is as it was, as far as can be seen."""
        try:
            same = _flags(self._guest) == self._flags
            return same and self._guest.disk_targets() == self._disks and not self._qemu_ended()
        except PyxlsnapError:
            return False

    def _qemu_ended(self) -> bool:
        return self._had_qemu and self._qemu.ended(within_s=_ENDING_S)

    def close(self) -> None:
        """Idempotent."""
        self._qemu.close()


def _flags(guest: Guest, *, dying: bool = False) -> tuple[bool, bool]:
    info = guest.check_same(dying=dying)
    return (info.paused, info.shutdown)
