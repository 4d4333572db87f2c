"""The process from which the workers of many reverts, or clones, are copied: it is warm.

A caller starts it as ``python -m pyxlsnap.worker.warm``, with a socket as its standard input. The
process loads all modules that the operation and its undo need, and reads the memory file once. If a
revert will talk to the guest's QEMU, the process loads the modules for that, too; for a clone it
makes the overlays of qcow2 files, in memory. It has one thread, beside those that wait for a file
whose server does not answer. It opens no libxl, locks nothing and changes nothing. Each of its
copies becomes a worker process like one that was started by exec (:mod:`pyxlsnap.worker.server`),
with a supervisor of its own. The process ends when its caller closes the socket, or ends; also when
it is asked for a worker after libxl or pyxlsnap was replaced (an upgrade of the host): the caller
then starts another one.

The caller sends one ``request`` first. For each worker it sends ``stderr`` and then ``connection``,
each with a descriptor. The answer is ``forked``, with a pidfd of the worker, or ``error``.
"""

import os
import select
import socket
import time
from importlib import import_module
from pathlib import Path

from pyxlsnap import version
from pyxlsnap.disks.qcow2.overlays import make_ahead
from pyxlsnap.errors import PyxlsnapError
from pyxlsnap.guest import checks
from pyxlsnap.guest.qemu_version import needs_qemu
from pyxlsnap.guest.read_once import keep
from pyxlsnap.guest.snapshot import Saved, choose_disks
from pyxlsnap.journal import unfinished
from pyxlsnap.linux.files import file_version
from pyxlsnap.linux.fork import name_process
from pyxlsnap.linux.processes import fresh_signals
from pyxlsnap.request import CloneRequest, Repeatable, RevertRequest, request_from_plain
from pyxlsnap.serialize import Message
from pyxlsnap.worker import modules
from pyxlsnap.worker.channel import Channel
from pyxlsnap.worker.server import with_cfgfile  # and the whole of it, for the copies
from pyxlsnap.worker.start import fork_worker
from pyxlsnap.xen.compiled import libxl_was_replaced

#: how long after the end of a copy files that were read are looked at again, if all was kept
_QUIET_S = 2.0


class _Wanted(Exception):
    """Ends what is read and made ahead: the caller has sent something, or has ended."""


class Warm:
    """The process: makes its copies, and waits for their end."""

    def __init__(self, channel: Channel, request: Repeatable) -> None:
        self._channel = channel
        self._request = request
        #: the pid of each copy, by its pidfd
        self._copies: dict[int, int] = {}
        self._release = _release()
        #: all that the copies need has been read and made; it may have changed since
        self._has_kept = False
        #: when to look whether it has changed, by the monotonic clock; ``None``: no copy has ended
        self._look_at: float | None = None

    def run(self) -> None:
        """Serve the caller until it ends."""
        self._keep_memory()
        while True:
            if not self._wait():
                self._keep_memory()  # the file may be another one by now
                continue
            message = self._channel.receive()
            if message is None:
                return
            if "connection" in message:
                if libxl_was_replaced() or _release() != self._release:
                    return
                self._copy()

    def _keep_memory(self) -> None:
        """Read the memory file, and load and make what it calls for, while nobody asks."""
        self._has_kept = False
        try:
            ready = with_cfgfile(self._request)
            assert isinstance(ready, Repeatable)
            assert ready.config
            saved = keep(ready.config, ready.cfgfile, self._check_idle)
            if saved and isinstance(ready, RevertRequest) and needs_qemu(saved.config):
                modules.load_qmp()
            is_made = True
            if saved and isinstance(ready, CloneRequest):
                is_made = self._make_overlays(ready, saved)
            self._has_kept = saved is not None and is_made
        except (_Wanted, PyxlsnapError, ImportError):
            pass  # the worker reads the files and loads the modules, and says what is wrong

    def _make_overlays(self, request: CloneRequest, saved: Saved) -> bool:
        """Make the overlays of the disks' frozen files; false: one cannot be made, or not yet."""
        assert request.config
        meta = saved.metadata
        chosen = choose_disks(request.config, request.cfgfile, meta, saved.config)
        checks.refuse_silent(saved.config.disks, [asked for _, asked in chosen])
        kinds = meta.kinds if meta else {}
        made = [
            make_ahead(disk, Path(asked.path), self._check_idle)
            for disk, asked in chosen
            if kinds.get(disk.vdev) == "qcow2" and not asked.internal
        ]
        return all(made)

    def _check_idle(self) -> None:
        if self._channel.pending or select.select([self._channel], [], [], 0)[0]:
            raise _Wanted

    def _wait(self) -> bool:
        """Wait for a message; false: there is none, and :meth:`_keep_memory` is to be called.

        If all was kept, that is some seconds after the first of the copies has ended that ended
        since the last look: its domain has just begun to run, and needs the processors.
        """
        while not self._channel.pending:
            quiet_s = None if self._look_at is None else max(0.0, self._look_at - time.monotonic())
            ready = select.select([self._channel.fileno(), *self._copies], [], [], quiet_s)[0]
            for pidfd in [fd for fd in self._copies if fd in ready]:
                os.waitpid(self._copies.pop(pidfd), 0)
                os.close(pidfd)
                if self._look_at is None:
                    self._look_at = time.monotonic() + (_QUIET_S if self._has_kept else 0.0)
            if self._channel.fileno() in ready:
                break
            if not ready:
                self._look_at = None
                return False
        return True

    def _copy(self) -> None:
        stderr, connection = self._channel.fds[-2:]
        try:
            if unfinished():  # else each copy would load it while another is at work
                modules.load_any_recovery()
        except ImportError:
            pass  # the copy says so
        try:
            pid = fork_worker(connection, stderr)
            pidfd = os.pidfd_open(pid)
        except OSError as e:
            self._answer({"error": e.errno})
        else:
            self._copies[pidfd] = pid
            self._answer({"forked": pid}, pidfd)
        finally:
            self._channel.close_fds()

    def _answer(self, message: Message, fd: int | None = None) -> None:
        try:
            self._channel.send(message, fd)
        except OSError:
            pass  # the caller has ended: the next message is the end


def _release() -> tuple[int, ...]:
    """What tells the files of this pyxlsnap from those that an upgrade has put in their place."""
    try:
        return file_version(Path(version.__file__))
    except OSError:
        return ()


def main() -> None:
    """Serve one caller. Its messages come over the socket that is the standard input."""
    fresh_signals()  # the caller may have changed them
    name_process("xlsnap-warm")
    sock = socket.socket(fileno=os.dup(0))
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    channel = Channel(sock)
    message = channel.receive()
    if message is None:
        return
    request = request_from_plain(message["request"])
    assert isinstance(request, Repeatable)
    modules.load(request)
    if isinstance(request, CloneRequest):
        import_module("uuid")  # each new clone needs one; a process for one clone loads it later
    Warm(channel, request).run()


if __name__ == "__main__":
    main()
