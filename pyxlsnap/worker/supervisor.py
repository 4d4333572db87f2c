"""Two processes for one operation: a child that does the work, and a supervisor above the child.

The supervisor has loaded everything before, so that a suspended guest does not wait for a program
to start. The supervisor is the parent, so that no zombie is left, whichever of them dies; and it
opens libxl only when it has to recover, so that what kills the child does not kill the supervisor.
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


class SupervisorLink:
    """The worker's link to its supervisor."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def share_lock(self, uuid: str, fd: int) -> None:
        """Let the supervisor hold a domain's lock, too, so that the lock never falls in between."""
        self._send({"lock": uuid}, fd)

    def answered(self) -> None:
        """The operation is over, and the caller knows how: nothing is left to be done."""
        self._send({"answered": True})

    def _send(self, message: dict[str, object], fd: int | None = None) -> None:
        try:
            self._channel.send(message, fd)
        except OSError:
            pass  # the supervisor was killed: the caller recovers


@dataclass(frozen=True, slots=True)
class Death:
    """The process that did the work died before it had answered."""

    #: what ended the process, to be put after its name
    how: str
    #: the domains whose locks the process had; nobody holds them now
    uuids: tuple[str, ...]


def supervise(work: Callable[[SupervisorLink], None]) -> Death | None:
    """Have ``work`` done in a child; returns, in this process, when the child has ended.

    To be called before this process has a thread, or a context of libxl.
    """
    ours, theirs = socket.socketpair()
    if not (pid := os.fork()):
        ours.close()
        close_in_children(theirs.fileno())
        work(SupervisorLink(Channel(theirs)))
        sys.exit()
    theirs.close()
    signal.signal(signal.SIGTERM, lambda *_: os.kill(pid, signal.SIGTERM))  # the child rolls back
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
            os.kill(pid, signal.SIGKILL)  # it hangs while it closes libxl
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    for fd in channel.fds:
        unlock(fd)
    return None if answered else Death(how_ended(status), tuple(locks))


def _next(channel: Channel, process: Process) -> dict[str, str] | None:
    """The child's next message; ``None`` when the child has ended and all messages have come.

    The end of the channel would not tell: children that libxl forks have copies of it.
    """
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    poll.register(process, select.POLLIN)
    if channel.pending or channel.fileno() in dict(poll.poll()):
        return channel.receive()
    return None
