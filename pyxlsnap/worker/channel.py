"""How caller and worker talk: JSON lines over a socketpair, and file descriptors beside them.

To the worker: one request, then perhaps ``{"cancel": true}``. Back: any number of ``progress``,
``log`` and ``lock`` messages (the last with a descriptor), then one ``result`` or ``error``, or
``died`` from the keeper, with what it has recovered. The end of the stream means that the other
side has gone.
"""

import array
import json
import os
import socket

from pyxlsnap.serialize import Message

_BLOCK = 65536
_INT = array.array("i").itemsize


class Channel:
    """One end of the socketpair. One thread sends and one receives at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._partial = b""
        self._lines: list[bytes] = []
        #: the descriptors that came
        self.fds: list[int] = []

    def fileno(self) -> int:
        """What becomes readable when messages come; those of :attr:`pending` have come."""
        return self._sock.fileno()

    @property
    def pending(self) -> bool:
        """Messages have come that :meth:`receive` has not returned."""
        return bool(self._lines)

    def send(self, message: Message, fd: int | None = None) -> None:
        """Send one message, with a descriptor if there is one.

        :raises OSError: the other side has gone.
        """
        # (The first newline ends what another process was killed in the middle of sending.)
        data = b"\n" + json.dumps(message).encode() + b"\n"
        if fd is not None:
            data = data[socket.send_fds(self._sock, [data], [fd]) :]
        self._sock.sendall(data)

    def receive(self) -> Message | None:
        """Wait for the next message; ``None`` when the other side has gone.

        Descriptors that come along are kept open until :meth:`close`.
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
                pass  # empty, or cut off where its sender was killed

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
        """Close the descriptors that came. Idempotent."""
        while self.fds:
            os.close(self.fds.pop())

    def close(self) -> None:
        """Close the socket, and the descriptors that came. Idempotent."""
        self._sock.close()
        self.close_fds()
