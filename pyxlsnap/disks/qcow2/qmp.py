"""QMP to the guest's QEMU: qemu.qmp with blocking calls, each with a time limit."""

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from qemu.qmp import ConnectError, ExecuteError, Message, QMPClient, QMPError
from qemu.qmp.models import ErrorResponse, Greeting
from qemu.qmp.qmp_client import NegotiationError

from pyxlsnap import paths
from pyxlsnap.errors import QmpError

T = TypeVar("T")

GREETING_S = 10.0
COMMAND_S = 30.0
#: the time limit of a command of which it is known how long it takes: so many times as long, more
_PATIENCE = 4


def socket_path(domid: int) -> Path:
    """The QMP socket that libxl itself never uses: a QMP socket serves one client at a time."""
    return paths.QEMU_SOCKETS / f"qmp-libxenstat-{domid}"


class _Client(QMPClient):
    """A client for a socket that others use, too.

    QEMU may first send a new client what is not for it: before the greeting an event of that
    moment, and after the greeting the answer to a command whose client has left.

    Messages are put into words only if somebody reads them: that takes long.
    """

    async def _get_greeting(self) -> Greeting:
        while "QMP" not in (message := await self._recv()):
            pass
        return Greeting(message)

    async def _negotiate(self) -> None:
        offered = self._greeting.QMP.capabilities if self._greeting else ()
        enable = [capability for capability in offered if capability == "oob"]
        request = self.make_execute_msg("qmp_capabilities", {"enable": enable} if enable else {})
        request["id"] = f"pyxlsnap {os.urandom(8).hex()}"
        await self._send(request)
        while (answer := await self._recv()).get("id") != request["id"]:
            pass
        # "CommandNotFound": a client that has left did this, after we were greeted.
        if "error" in answer and (error := ErrorResponse(answer).error).class_ != "CommandNotFound":
            raise NegotiationError("Negotiation failed", QMPError(error.desc))

    def _cb_outbound(self, msg: Message) -> Message:
        return super()._cb_outbound(msg) if self._is_read() else msg

    def _cb_inbound(self, msg: Message) -> Message:
        return super()._cb_inbound(msg) if self._is_read() else msg

    def _is_read(self) -> bool:
        return self.logger.isEnabledFor(logging.DEBUG)


class QmpConnection:
    """A connection to one QEMU, to be closed after use.

    :raises QmpError: no answer; another client may be connected to the socket.
    """

    def __init__(self, path: Path, *, timeout_s: float = GREETING_S) -> None:
        self._path = path
        self._client = _Client("pyxlsnap")
        self._loop = asyncio.new_event_loop()
        try:
            self._run(self._client.connect(str(path)), "connect", timeout_s)
        except BaseException:
            self._loop.close()
            raise

    def execute(
        self,
        command: str,
        arguments: dict[str, object] | None = None,
        *,
        timeout_s: float = COMMAND_S,
        expected_s: float = 0.0,
    ) -> Any:
        """Run one command and return its answer.

        :param expected_s: how long the command is expected to work; its time limit is
            ``timeout_s`` and four times that.
        :raises QmpError: QEMU refused it, or did not answer within that time (then the outcome is
            unknown).
        """
        limit_s = timeout_s + _PATIENCE * expected_s
        return self._run(self._client.execute(command, arguments), command, limit_s)

    def ask(
        self,
        command: str,
        arguments: dict[str, object],
        *,
        every_s: float,
        waiting: Callable[[], None],
    ) -> Any:
        """Run one command, and wait for its answer however long that takes.

        QEMU does one command at a time: when it answers, it has done, or undone, all that it was
        told before.

        :param waiting: called every ``every_s`` seconds; an exception from it ends the wait.
        :raises QmpError: QEMU refused it, or closed the connection.
        """
        task = self._loop.create_task(self._client.execute(command, arguments))
        try:
            with self._errors(command):
                while not self._loop.run_until_complete(asyncio.wait({task}, timeout=every_s))[0]:
                    waiting()
                return task.result()
        finally:
            task.cancel()
            self._loop.run_until_complete(asyncio.wait({task}))

    def version(self) -> tuple[int, int]:
        """QEMU's major and minor version."""
        qemu = self.execute("query-version")["qemu"]
        return (qemu["major"], qemu["minor"])

    def close(self) -> None:
        """Disconnect. Idempotent; raises nothing but an interrupt, and disconnects even then.

        Called while an operation's error is being raised, which must not be replaced by another.
        """
        if self._loop.is_closed():
            return
        try:
            # QMPClient raises what ended its reader: an EOFError if QEMU has died.
            self._run(self._client.disconnect(), "disconnect", GREETING_S)
        except (Exception, asyncio.CancelledError):
            pass  # it is disconnected all the same
        finally:
            self._loop.close()

    def _run(self, coroutine: Coroutine[Any, Any, T], command: str, timeout_s: float) -> T:
        try:
            with self._errors(command):
                return self._loop.run_until_complete(asyncio.wait_for(coroutine, timeout_s))
        except TimeoutError as e:
            raise QmpError(
                f"QEMU did not answer {command} on {self._path} within {timeout_s:g} s",
                command=command,
            ) from e

    @contextmanager
    def _errors(self, command: str) -> Iterator[None]:
        """Turn the errors of qemu.qmp and of the socket into a :class:`QmpError`."""
        try:
            yield
        except TimeoutError:  # an OSError, too
            raise
        except ExecuteError as e:
            raise QmpError(f"QEMU refused {command}: {e}", command=command, refused=True) from e
        except EOFError as e:
            raise QmpError(
                f"QMP socket {self._path}: QEMU closed the connection (it may have died)",
                command=command,
            ) from e
        except (QMPError, OSError) as e:
            raise QmpError(f"QMP socket {self._path}: {e}", command=command) from e


def nobody_listens(error: QmpError) -> bool:
    """Whether a connection failed because no process serves the socket: QEMU has ended."""
    cause = error.__cause__
    reason = cause.exc if isinstance(cause, ConnectError) else cause
    return isinstance(reason, ConnectionRefusedError | FileNotFoundError)
