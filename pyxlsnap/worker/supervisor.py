"""Two processes for one operation: a child that does the work, and a supervisor above the child.

The supervisor has loaded all modules before the child works, so that a suspended guest does not
wait for a program to start. The supervisor is the parent, so that no zombie is left, whichever of
them dies. It opens libxl only to recover, so that a fault in libxl kills only the child.
"""

import logging
import os
import select
import signal
import socket
import sys
from collections.abc import Callable

from pyxlsnap.dataclass import dataclass
from pyxlsnap.errors import Refused
from pyxlsnap.linux.locks import unlock
from pyxlsnap.linux.processes import Process, how_ended, is_killed
from pyxlsnap.monitor import launch
from pyxlsnap.monitor.process import watch_in_a_copy
from pyxlsnap.worker import modules
from pyxlsnap.worker.channel import Channel
from pyxlsnap.xen.callbacks import close_in_children

log = logging.getLogger("pyxlsnap.worker")

_EXIT_S = 10.0
_LOOK_S = 2.0
_STUCK = "was killed, and is still there, because its storage does not answer"


class SupervisorLink:
    """The worker's link to its supervisor."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    def share_lock(self, uuid: str, fd: int) -> None:
        """Give the supervisor a domain's lock, too: it stays locked if the worker dies."""
        self._send({"lock": uuid}, fd)

    def start_monitor(self, uuid: str) -> None:
        """Have the supervisor start a watch of a domain; return when the watch has begun.

        :raises OperationFailed: the watch could not be started; no process watches the domain.
        """
        try:
            reader, writer = os.pipe2(os.O_CLOEXEC)
        except OSError as e:
            raise launch.not_started(uuid, str(e)) from e
        with os.fdopen(reader, "rb") as pipe:
            self._send({"watch": uuid}, writer)
            os.close(writer)
            if not launch.begins(uuid, pipe):  # the supervisor was killed
                launch.start_monitor(uuid)

    def prepare_monitor(self, uuid: str) -> launch.WaitingProcess:
        """Have the supervisor start a process that will watch a domain, when it is told to.

        :raises OSError: no connection to it could be made.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            self._send({"watch": uuid, "waits": True}, theirs.fileno())
        return launch.WaitingProcess(uuid, ours)

    def load_qmp(self) -> None:
        """Load what it takes to talk to a guest's QEMU, here and in the supervisor.

        Return when both have loaded it. A supervisor that cannot is as one that was killed.
        """
        try:
            reader, writer = os.pipe2(os.O_CLOEXEC)
        except OSError as e:
            raise Refused(f"no pipe to the supervisor: {e.strerror}") from e
        with os.fdopen(reader, "rb") as pipe:
            self._send({"load": "qmp"}, writer)
            os.close(writer)
            modules.load_qmp()  # side by side with the supervisor
            pipe.read()

    def answered(self) -> None:
        """Tell the supervisor that the caller has the result, so that no recovery is needed."""
        self._send({"answered": True})

    def _send(self, message: dict[str, object], fd: int | None = None) -> None:
        try:
            self._channel.send(message, fd)
        except OSError:
            pass  # the supervisor was killed: the caller recovers


@dataclass(frozen=True, slots=True)
class Death:
    """The worker died before it had answered."""

    #: how the worker ended, as the predicate of a sentence: "was killed by signal 9"
    how: str
    #: the domains that the worker had locked; their locks are released now
    uuids: tuple[str, ...]


def supervise(work: Callable[[SupervisorLink], None]) -> Death | None:
    """Do ``work`` in a child process, and wait for the end of the child.

    Call this before the process has a second thread or a libxl context: it forks.

    :returns: the child's death; ``None`` if the child had answered.
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
        return _wait_for(pid, channel)
    finally:
        channel.close()


def _wait_for(pid: int, channel: Channel) -> Death | None:
    locks: list[str] = []
    answered = False
    with Process(pid) as process:
        while not answered and (message := _next(channel, process, pid)):
            answered = "answered" in message
            locks += [message["lock"]] if "lock" in message else []
            if "load" in message:
                _load_qmp(channel.fds.pop())
            if "watch" in message:
                _start_watch(message["watch"], channel.fds.pop(), waits="waits" in message)
        if answered and not process.ended(within_s=_EXIT_S):
            os.kill(pid, signal.SIGKILL)  # it hangs while it closes libxl
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        how = _reap(process, pid)
    for fd in channel.fds:
        unlock(fd)
    return None if answered else Death(how, tuple(locks))


def _reap(process: Process, pid: int) -> str:
    """How the child has ended, or was killed: it may be kept by a thread in the kernel."""
    while not process.ended(within_s=_LOOK_S):
        if is_killed(pid):
            return _STUCK
    return how_ended(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def _load_qmp(writer: int) -> None:
    """Load what it takes to undo the child's work, and close a pipe then."""
    try:
        modules.load_qmp()
    except Exception:  # the child says so, too, and does nothing
        log.exception("the connection to QEMU could not be loaded")
    finally:
        os.close(writer)


def _start_watch(uuid: str, writer: int, *, waits: bool = False) -> None:
    try:
        watch_in_a_copy(uuid, writer, waits=waits)
    except OSError as e:
        os.write(writer, str(e).encode())
    finally:
        os.close(writer)


def _next(channel: Channel, process: Process, pid: int) -> dict[str, str] | None:
    """The child's next message; ``None`` when the child has ended and all messages have come.

    A child that was killed, and is kept by a thread in the kernel, counts as ended.

    The end of the channel would come too late: children that libxl forks have copies of it.
    """
    poll = select.poll()
    poll.register(channel, select.POLLIN)
    poll.register(process, select.POLLIN)
    found: dict[int, int] = {}
    while not (channel.pending or found):
        found = dict(poll.poll(_LOOK_S * 1000))
        if not found and is_killed(pid):
            return None
    return channel.receive() if channel.pending or channel.fileno() in found else None
