"""Running commands in the dom0, through its command agent (files/agent.py has the protocol)."""

import contextlib
import io
import json
import shlex
import signal
import socket
import struct
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from .patience import patient

GREETING = b"LAB1\n"
CONNECT_TIMEOUT = 30.0

Argv = str | list[str]


@dataclass(frozen=True, slots=True)
class Completed:
    """How a command ended; ``rc`` is negative for a signal, as in subprocess."""

    rc: int
    out: str
    err: str


class CommandFailed(Exception):
    """A command in the dom0 ended with a status other than 0."""

    def __init__(self, command: Argv, completed: Completed) -> None:
        self.command = command
        self.rc, self.out, self.err = completed.rc, completed.out, completed.err
        super().__init__(f"in dom0: {_text(command)}\nrc {self.rc}\n{_both(completed)}")


class CommandTimeout(CommandFailed, TimeoutError):
    """A command in the dom0 took too long and was killed; ``rc`` is that of SIGKILL."""


class Running:
    """A command that is running in the dom0. As a context manager it kills what still runs."""

    def __init__(self, connection: socket.socket, command: Argv) -> None:
        self.command = command
        self._connection = connection
        self._changed = threading.Condition()
        self._sending = threading.Lock()
        self._output = {b"O": bytearray(), b"E": bytearray()}
        self._rc: int | None = None
        self._ended = False
        self._pid: int | None = None
        self._line_at = 0
        threading.Thread(target=self._receive, name="dom0 command", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Its process id in the dom0, which is also that of its process group."""
        self._await(lambda: self._pid is not None or self._ended, CONNECT_TIMEOUT)
        if self._pid is None:
            raise CommandFailed(self.command, self._completed(127))
        return self._pid

    @property
    def running(self) -> bool:
        with self._changed:
            return not self._ended

    @property
    def out(self) -> str:
        """What it has written so far."""
        return self._text(b"O")

    @property
    def err(self) -> str:
        return self._text(b"E")

    @property
    def out_bytes(self) -> bytes:
        with self._changed:
            return bytes(self._output[b"O"])

    def send(self, data: bytes) -> None:
        """Give it input, in frames small enough for the agent to hold."""
        for at in range(0, len(data), 1 << 20):
            self._send(b"I", data[at : at + (1 << 20)])

    def end_input(self) -> None:
        self._send(b"I", b"")

    def kill(self, number: int = signal.SIGTERM, *, group: bool = False) -> None:
        """Send a signal to the command, or as a terminal would, to its whole process group."""
        self._send(b"K", bytes([number, group]))

    def readline(self, timeout: float = 60.0) -> str:
        """The next line of its output, '' at the end; a TimeoutError if none comes in time."""

        def found() -> bool:
            return self._ended or b"\n" in self._output[b"O"][self._line_at :]

        if not self._await(found, timeout):
            raise TimeoutError(f"no line within {timeout:.0f} s from {_text(self.command)}")
        with self._changed:
            output = self._output[b"O"]
            end = output.find(b"\n", self._line_at) + 1 or len(output)
            line, self._line_at = output[self._line_at : end], end
        return line.decode(errors="replace")

    def lines(self, timeout: float = 60.0) -> Iterator[str]:
        """Its lines as they come, until it ends."""
        while line := self.readline(timeout):
            yield line

    def wait(self, timeout: float = 120.0, *, check: bool = False) -> Completed:
        """Its end.

        :raises CommandTimeout: it did not come in time; the command has been killed.
        :raises CommandFailed: with ``check``, if the status is not 0.
        """
        if not self._await(lambda: self._ended, timeout):
            self.close()
            raise CommandTimeout(self.command, self._completed(-signal.SIGKILL))
        if self._rc is None:
            raise ConnectionError(
                f"dom0 hung up during {_text(self.command)}\n{self.out}{self.err}"
            )
        completed = self._completed(self._rc)
        if check and completed.rc:
            raise CommandFailed(self.command, completed)
        return completed

    def close(self) -> None:
        """Hang up: the agent then kills the command and its process group."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def _completed(self, rc: int) -> Completed:
        return Completed(rc, self.out, self.err)

    def _text(self, kind: bytes) -> str:
        with self._changed:
            return self._output[kind].decode(errors="replace")

    def _send(self, kind: bytes, data: bytes) -> None:
        # The command may just have ended; then there is nobody to tell.
        with self._sending, contextlib.suppress(OSError):
            self._connection.sendall(kind + struct.pack(">I", len(data)) + data)

    def _await(self, condition: Callable[[], bool], timeout: float) -> bool:
        with self._changed:
            return self._changed.wait_for(condition, patient(timeout))

    def _receive(self) -> None:
        incoming = self._connection.makefile("rb")
        with self._connection, incoming, contextlib.suppress(OSError):
            while len(head := incoming.read(5)) == 5:
                data = incoming.read(struct.unpack(">I", head[1:])[0])
                self._take(head[:1], data)
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _take(self, kind: bytes, data: bytes) -> None:
        with self._changed:
            if kind in self._output:
                self._output[kind] += data
            elif kind == b"P":
                (self._pid,) = struct.unpack(">I", data)
            elif kind == b"X":
                (self._rc,) = struct.unpack(">i", data)
            self._changed.notify_all()


class Dom0:
    """The dom0 of a running machine; each command has a connection of its own."""

    def __init__(self, port: int) -> None:
        self.port = port

    def run(
        self,
        command: Argv,
        *,
        check: bool = True,
        timeout: float = 120.0,
        input: str | bytes | None = None,  # noqa: A002 - as in subprocess.run
        env: Mapping[str, str] | None = None,
        cwd: str = "/root",
    ) -> Completed:
        """Run a command to its end; a string goes to bash.

        :raises CommandFailed: with ``check``, if the status is not 0.
        :raises CommandTimeout: it took too long and was killed.
        """
        running = self.start(command, env=env, cwd=cwd)
        running.send(input.encode() if isinstance(input, str) else input or b"")
        running.end_input()
        return running.wait(timeout, check=check)

    def start(
        self, command: Argv, *, env: Mapping[str, str] | None = None, cwd: str = "/root"
    ) -> Running:
        """Start a command and let it run. Its input stays open until ``end_input``."""
        argv = ["bash", "-c", command] if isinstance(command, str) else command
        connection = self._connect(patient(CONNECT_TIMEOUT))
        request = {"argv": argv, "cwd": cwd, "env": dict(env or {})}
        connection.sendall(json.dumps(request).encode() + b"\n")
        return Running(connection, command)

    def answers(self, timeout: float) -> bool:
        """Whether the agent is there within that time."""
        try:
            self._connect(timeout).close()
        except OSError:
            return False
        return True

    def read(self, path: str) -> bytes:
        """The contents of a file."""
        running = self.start(["cat", path])
        running.wait(check=True)
        return running.out_bytes

    def write(self, path: str, data: bytes | str, mode: int = 0o644) -> None:
        """Write a file, making its directory."""
        script = f'mkdir -p "$(dirname "$0")" && cat >"$0" && chmod {mode:o} "$0"'
        self.run(["sh", "-c", script, path], input=data)

    def push(self, source: Path, dest: str) -> None:
        """Copy a directory's contents into ``dest``."""
        script = 'mkdir -p "$0" && tar -C "$0" --no-same-owner -xf -'
        self.run(["sh", "-c", script, dest], input=packed(source))

    def _connect(self, timeout: float) -> socket.socket:
        # QEMU's network accepts a connection before anyone listens in the dom0, and may drop one
        # while it boots: only the greeting shows that the agent is there.
        deadline = time.monotonic() + timeout
        while True:
            left = max(deadline - time.monotonic(), 0.1)
            try:
                connection = socket.create_connection(("127.0.0.1", self.port), timeout=left)
                try:
                    connection.settimeout(min(left, 10.0))
                    if connection.recv(len(GREETING), socket.MSG_WAITALL) == GREETING:
                        connection.settimeout(None)
                        return connection
                    raise ConnectionResetError("dom0 hung up before its greeting")
                except BaseException:
                    connection.close()
                    raise
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)


def packed(source: Path) -> bytes:
    """A directory's contents as a tar archive."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add(source, arcname=".")
    return archive.getvalue()


def _text(command: Argv) -> str:
    return command if isinstance(command, str) else shlex.join(command)


def _both(completed: Completed) -> str:
    parts = {"out": completed.out, "err": completed.err}
    return "\n".join(f"--- {name}\n{text.rstrip()}" for name, text in parts.items() if text)
