"""xl's own process for a domain that is destroyed: it must end before the domain's disks change."""

from collections.abc import Iterator
from contextlib import contextmanager

from pyxlsnap.errors import XenError
from pyxlsnap.guest.protocols import Guest
from pyxlsnap.linux.processes import Process
from pyxlsnap.monitor.xl import Xl, xl_process
from pyxlsnap.text import command

_XL_S = 10.0


@contextmanager
def ending_xl(name: str, guest: Guest | None) -> Iterator[list[str]]:
    """Find xl's process for a domain, and wait for its end after the body has destroyed the domain.

    xl's process ends when it notices that the domain was destroyed. If it does not end, the guest
    has rebooted just now, and xl starts it again within two seconds.

    :param guest: the domain; ``None``: it is off already.
    :returns: a list, to which a warning is added if a process of xl goes on for another domain.
    :raises XenError: xl still watches the domain.
    """
    warnings: list[str] = []
    found = xl_process(name, guest.domid if guest else None)
    with Process(found.pid if found else None) as xl:
        yield warnings
        if found and not xl.ended(within_s=_XL_S):
            warnings.append(_told_another_name(found, name))


def _told_another_name(found: Xl, name: str) -> str:
    """:raises XenError: this process of xl watches the domain."""
    if not found.has_log:  # it watches another domain, and was told another file or name before
        return (
            f"xl's process {found.pid} ({command(list(found.words))}) goes on: it was told the "
            f"name {name}, and may have started another domain"
        )
    raise XenError(
        f"xl still watches {name} and may start it again: wait until xl's process for {name} "
        f"has ended, then run the command again",
        domain=name,
    )
