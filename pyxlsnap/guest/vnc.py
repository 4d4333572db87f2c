"""The address at which the QEMU of a restored domain offers VNC: QEMU does not start if it cannot.

Only a display that the configuration fixes (``vncunused=0``) matters: QEMU looks for a free one.
"""

import errno
import os
import socket
from collections.abc import Iterator, Mapping
from typing import Any

from pyxlsnap.guest.findings import Finding, refused
from pyxlsnap.guest.protocols import Guest
from pyxlsnap.model import DomainConfig, GuestKind
from pyxlsnap.text import shortened

_FIRST_PORT = 5900
_LAST_DISPLAY = 65535 - _FIRST_PORT
_LOCAL = "127.0.0.1"  # libxl's default
# QEMU would fail with these, too.
_CERTAIN = (errno.EADDRINUSE, errno.EADDRNOTAVAIL)


def examine_vnc(config: DomainConfig, guest: Guest | None) -> Iterator[Finding]:
    """Find a fixed VNC display that another program has, or whose address is not this host's.

    :param guest: the domain that is destroyed before: its QEMU may have the display; ``None``:
        none.
    """
    own = guest is not None and guest.device_model_pid() is not None
    for settings in _displays(config):
        address, display = _address(settings)
        if not 0 <= display <= _LAST_DISPLAY or ":" in address:
            continue  # (an IPv6 address, or nothing that QEMU takes)
        error = _try(address, _FIRST_PORT + display)
        if error in _CERTAIN and not (own and error == errno.EADDRINUSE):
            yield refused(
                f"the domain's VNC display {shortened(address)}:{display} cannot be used "
                f"({os.strerror(error)}): free that port, or give this host that address"
            )


def _displays(config: DomainConfig) -> Iterator[Mapping[str, Any]]:
    """The VNC settings with a display of their own."""
    hvm = config.section("b_info").get("type.hvm")
    found = [hvm] if config.kind is GuestKind.HVM else config.devices("vfbs")
    for device in found:
        vnc = device.get("vnc") if isinstance(device, Mapping) else None
        if not isinstance(vnc, Mapping) or vnc.get("enable") == "False":
            continue
        if vnc.get("findunused") == "False":
            yield vnc


def _address(settings: Mapping[str, Any]) -> tuple[str, int]:
    """The address and the display; -1 if the settings have none that can be read."""
    listen, display = str(settings.get("listen") or _LOCAL), settings.get("display", 0)
    if listen.count(":") == 1:
        listen, _, display = listen.partition(":")
    text = str(display)
    return listen, int(text) if text.isascii() and text.isdigit() and len(text) < 6 else -1


def _try(address: str, port: int) -> int:
    """Listen there for a moment, as QEMU would; the error number, 0 if it works."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((address, port))
            tried.listen()
        except UnicodeError:
            return errno.EINVAL
        except OSError as e:  # also a name that nobody resolves: QEMU says more than we could
            return e.errno or errno.EINVAL
    return 0
