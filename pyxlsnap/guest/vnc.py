"""The addresses at which the QEMU of a restored domain offers VNC and SPICE.

QEMU does not start if it cannot have the address. If it may look for a free VNC display
(``vncunused=1``), it goes on to the next display only while displays are taken
(``inet_listen_saddr`` in util/qemu-sockets.c), and not if the host has no such address.
"""

import os
from collections.abc import Iterator, Mapping
from typing import Any

from pyxlsnap.guest.findings import Finding, refused
from pyxlsnap.guest.protocols import Guest
from pyxlsnap.linux.tcp import NO_ADDRESS, TAKEN, is_ipv4, ports_of, try_port
from pyxlsnap.model import DomainConfig, GuestKind
from pyxlsnap.text import shortened

_FIRST_PORT = 5900
_LAST_PORT = 65535
_LOCAL = "127.0.0.1"  # libxl's default


def examine_vnc(config: DomainConfig, guest: Guest | None) -> Iterator[Finding]:
    """Find a fixed VNC display or SPICE port that another program has, or a lost address.

    :param guest: the domain that is destroyed before: its QEMU may have the display; ``None``:
        none.
    """
    yield from _vnc(config, guest)
    yield from _spice(config, guest)


def taken_by_another(guest: Guest | None, port: int) -> bool:
    """Whether it is not the QEMU of the domain that is destroyed that has a taken port."""
    if guest is None or (pid := guest.device_model_pid()) is None:
        return True
    ports = ports_of(pid)
    return ports is not None and port not in ports


def _vnc(config: DomainConfig, guest: Guest | None) -> Iterator[Finding]:
    settings = _display(config)
    if settings is None:
        return
    address, display = _address(settings)
    port = _FIRST_PORT + display
    if not (_FIRST_PORT <= port <= _LAST_PORT and is_ipv4(address)):
        return  # (QEMU takes any address that works of those of a name)
    error = try_port(address, port)
    fixed = settings.get("findunused") == "False"
    if error == NO_ADDRESS or (fixed and error == TAKEN and taken_by_another(guest, port)):
        yield refused(
            f"the domain's VNC display {shortened(address)}:{display} cannot be used "
            f"({os.strerror(error)}): free that port, or give this host that address"
        )


def _display(config: DomainConfig) -> Mapping[str, Any] | None:
    """The settings of VNC; ``None``: it is off. libxl tells QEMU of the first device only."""
    found: Any = config.section("b_info").get("type.hvm")
    if config.kind is not GuestKind.HVM:
        found = next(iter(config.devices("vfbs")), None)
    vnc = found.get("vnc") if isinstance(found, Mapping) else None
    return vnc if isinstance(vnc, Mapping) and vnc.get("enable") != "False" else None


def _address(settings: Mapping[str, Any]) -> tuple[str, int]:
    """The address and the display; -1 if the settings have none that can be read."""
    listen, display = str(settings.get("listen") or _LOCAL), settings.get("display", 0)
    if listen.count(":") == 1:
        listen, _, display = listen.partition(":")
    return listen, _number(display)


def _number(value: object) -> int:
    text = str(value)
    return int(text) if text.isascii() and text.isdigit() and len(text) < 6 else -1


def _spice(config: DomainConfig, guest: Guest | None) -> Iterator[Finding]:
    hvm = config.section("b_info").get("type.hvm")
    spice = hvm.get("spice") if isinstance(hvm, Mapping) else None
    if config.kind is not GuestKind.HVM or not isinstance(spice, Mapping):
        return
    if spice.get("enable") != "True":
        return
    address = str(spice.get("host") or "")
    if address and not is_ipv4(address):
        return
    for key in ("port", "tls_port"):
        port = _number(spice.get(key, 0))
        if not 0 < port <= _LAST_PORT:
            continue
        error = try_port(address, port)
        if error == NO_ADDRESS or (error == TAKEN and taken_by_another(guest, port)):
            yield refused(
                f"the domain's SPICE port {port}{f' at {address}' if address else ''} cannot be "
                f"used ({os.strerror(error)}): free that port, or give this host that address"
            )
