"""The connection of caller and worker: JSON lines and file descriptors over a socketpair.

The caller sends one request, and perhaps ``{"cancel": true}`` later. The worker sends any number of
``progress``, ``log`` and ``lock`` messages (``lock`` with a descriptor), then one ``result`` or
``error``; ``goes_on`` in it means that the operation continues without its caller. If the worker is
killed, its parent process sends ``died``, with what it has recovered.
The end of the stream means that the process on the other side has ended.
"""

import array
import json
import os
import socket
from contextlib import suppress

from pyxlsnap.serialize import Message

_BLOCK = 65536
_INT = array.array("i").itemsize


class Channel:
    """One end of the socketpair. One thread sends and one receives at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._partial = b""
        self._lines: list[bytes] = []
        #: the descriptors that were received
        self.fds: list[int] = []

    def fileno(self) -> int:
        """The descriptor to poll for new messages; check :attr:`pending` first."""
        return self._sock.fileno()

    @property
    def pending(self) -> bool:
        """Whether received messages wait for :meth:`receive`."""
        return bool(self._lines)

    def send(self, message: Message, fd: int | None = None) -> None:
        """Send one message, with a descriptor if ``fd`` is given.

        :raises OSError: the process on the other side has ended.
        """
        # The first newline ends the partial line of another process that was killed while sending.
        data = b"\n" + json.dumps(message).encode() + b"\n"
        if fd is not None:
            data = data[socket.send_fds(self._sock, [data], [fd]) :]
        self._sock.sendall(data)

    def receive(self) -> Message | None:
        """Wait for the next message; ``None`` if the process on the other side has ended.

        Received descriptors stay open until :meth:`close` or :meth:`close_fds`.
        """
        while True:
            while not self._lines:
                data = self._read()
                if not data:
                    return None
                *self._lines, self._partial = (self._partial + data).split(b"\n")
            try:
                message: Message = json.loads(self._lines.pop(0))
                return message
            except ValueError:
                pass  # an empty line, or a partial line of a sender that was killed

    def _read(self) -> bytes:
        try:
            data, ancillary, _, _ = self._sock.recvmsg(
                _BLOCK, socket.CMSG_SPACE(_INT), socket.MSG_CMSG_CLOEXEC
            )
        except ConnectionError:
            return b""
        for level, kind, payload in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                received = array.array("i")
                received.frombytes(payload[: len(payload) // _INT * _INT])
                self.fds.extend(received)
        return data

    def close_fds(self) -> None:
        """Close the received descriptors. Idempotent."""
        while self.fds:
            os.close(self.fds.pop())

    def end(self) -> None:
        """End the stream for the process on the other side, though copies of this one have it."""
        with suppress(OSError):  # that process has ended
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the socket and the received descriptors. Idempotent."""
        self._sock.close()
        self.close_fds()
