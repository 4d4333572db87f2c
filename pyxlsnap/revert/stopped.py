"""Processes that must end with a domain, and do not if they are stopped (SIGSTOP, a debugger)."""

from pyxlsnap.errors import Refused
from pyxlsnap.guest.protocols import Guest
from pyxlsnap.linux.processes import process_text
from pyxlsnap.linux.stopped import is_stopped
from pyxlsnap.monitor.xl import xl_process


def refuse_stopped(guest: Guest | None, name: str) -> None:
    """Refuse a revert whose destroy would wait in vain for a process that is stopped.

    :param guest: the domain that will be destroyed; ``None``: it is off.
    :param name: its name.
    :raises Refused: the guest's QEMU, or the process with which xl watches the guest, is stopped.
    """
    xl = xl_process(name, guest.domid if guest else None)
    # (One that was only told the name may watch another domain: ending_xl warns.)
    ending = [xl.pid] if xl and xl.has_log else []
    if guest and (device_model := guest.device_model_pid()):
        ending.append(device_model)
    for pid in ending:
        if is_stopped(pid):
            raise Refused(
                f"{process_text(pid)} of {name} is stopped, and would not end with the domain: "
                f"continue it (`kill -CONT {pid}`), or end the debugger that holds it"
            )
