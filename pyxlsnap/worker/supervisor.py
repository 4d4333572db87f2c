"""Two processes for one operation: one that does it, and its keeper, which is there if that dies.

The keeper has loaded everything before, so that a guest that is suspended waits for no start of a
program. It is the parent, so that whoever dies leaves no zombie; and it has no libxl until it needs
it, so that what kills the other one does not kill it.
"""

import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass

from pyxlsnap.linux.locks import unlock
from pyxlsnap.linux.processes import Process, how_ended
from pyxlsnap.worker.channel import Channel
from pyxlsnap.xen.callbacks import close_in_children

_EXIT_S = 10.0


class Kept:
    """The keeper, as the process sees it that does the work."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def share_lock(self, uuid: str, fd: int) -> None:
        """Let it hold a domain's lock, too, so that nobody comes between."""
        self._send({"lock": uuid}, fd)

    def answered(self) -> None:
        """The operation is over, and the caller knows how: nothing is left to be done."""
        self._send({"answered": True})

    def _send(self, message: dict[str, object], fd: int | None = None) -> None:
        try:
            self._channel.send(message, fd)
        except OSError:
            pass  # it was killed: the caller is there, too


@dataclass(frozen=True, slots=True)
class Death:
    """The process that did the work has died before it had answered."""

    #: what ended it, to be put after its name
    how: str
    #: the domains whose locks it had; they have fallen
    uuids: tuple[str, ...]


def keep(work: Callable[[Kept], None]) -> Death | None:
    """Have ``work`` done in a child; returns, in this process, when that has ended.

    To be called before there is a thread, or a context of libxl.
    """
    ours, theirs = socket.socketpair()
    if not (pid := os.fork()):
        ours.close()
        close_in_children(theirs.fileno())
        work(Kept(Channel(theirs)))
        sys.exit()
    theirs.close()
    signal.signal(signal.SIGTERM, lambda *_: os.kill(pid, signal.SIGTERM))  # it rolls back
    channel = Channel(ours)
    try:
        return _watch(pid, channel)
    finally:
        channel.close()


def _watch(pid: int, channel: Channel) -> Death | None:
    locks: list[str] = []
    answered = False
    with Process(pid) as process:
        while not answered and (message := _next(channel, process)):
            answered = "answered" in message
            locks += [message["lock"]] if "lock" in message else []
        if answered and not process.ended(within_s=_EXIT_S):
            os.kill(pid, signal.SIGKILL)  # stuck in closing libxl
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    for fd in channel.fds:
        unlock(fd)
    return None if answered else Death(how_ended(status), tuple(locks))


def _next(channel: Channel, process: Process) -> dict[str, str] | None:
    """Its next message; ``None`` when it has ended and all of them have come.

    Not when the channel has: children that libxl forks have copies of it.
    """
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    poll.register(process, select.POLLIN)
    if channel.pending or channel.fileno() in dict(poll.poll()):
        return channel.receive()
    return None
