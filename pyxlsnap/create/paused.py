"""Suspending a paused guest: it is unpaused just long enough to answer the suspend request.

The guest is unpaused once the suspend request stands in xenstore, so that it handles the request
before anything else (xen-lab.md, E3). If it does not answer within seconds, the request is
withdrawn, and the guest paused again.
"""

import threading
import time
from collections.abc import Callable

from pyxlsnap.errors import GuestTimeout, PyxlsnapError, XenError
from pyxlsnap.guest.protocols import Guest
from pyxlsnap.text import paused_again, quote

# A guest without PV drivers gets no request: Xen suspends it, usually even while it is paused.
_NO_REQUEST_S = 5.0
_ANSWER_S = 5.0
_POLL_S = 0.005


class Unpauser:
    """Put around the suspend of a paused guest: unpauses it once the suspend request stands.

    On leaving, :attr:`seconds` says how long the guest was unpaused. After a failure the guest is
    paused again, unless it has taken the request: then :meth:`Guest.ensure_running` knows what to
    do.

    :param note: called before the unpause; an ``OSError`` or :class:`PyxlsnapError` of it prevents
        that.
    :raises PyxlsnapError: on leaving: the guest was not unpaused, or did not answer.
    """

    def __init__(self, guest: Guest, *, live: bool, note: Callable[[], None]) -> None:
        self._guest = guest
        self._live = live
        self._note = note
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="pyxlsnap-unpause", daemon=True)
        self._error: PyxlsnapError | None = None
        self._began = 0.0
        self._ended = 0.0

    @property
    def seconds(self) -> float:
        """How long the guest was unpaused; until now, if it still is."""
        return (self._ended or time.monotonic()) - self._began if self._began else 0.0

    def how_long(self) -> str:
        """How long the guest ran, as a part of a message; "" if it did not run.

        To be called when the guest is paused again.
        """
        if not self._began:
            return ""
        self._ended = self._ended or time.monotonic()
        return f"; {paused_again(self._guest.name, self.seconds)}"

    def __enter__(self) -> "Unpauser":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._over.set()
        self._thread.join()
        if self._error and kind is not None and issubclass(kind, PyxlsnapError):
            raise self._error

    def _watch(self) -> None:
        try:
            with self._guest.on_its_own() as guest:
                if self._wait_for_request(guest):
                    self._note()
                    self._unpause(guest)
        except PyxlsnapError as e:
            self._fail(e)
        except OSError as e:
            self._fail(PyxlsnapError(f"the journal cannot be written: {e.strerror}"))

    def _wait_for_request(self, guest: Guest) -> bool:
        begun = time.monotonic()
        while not self._over.wait(_POLL_S):
            if guest.suspend_requested():
                return True
            # (In a live snapshot memory is saved before the request, for an unknown time.)
            if not self._live and time.monotonic() - begun > _NO_REQUEST_S:
                return not guest.info().shutdown
        return False

    def _unpause(self, guest: Guest) -> None:
        begun = time.monotonic()
        guest.unpause()
        if guest.info().paused:
            guest.pause()
            self._fail(_paused_again(guest.name))
            return
        self._began = begun
        if self._wait_for_answer(guest):
            self._ended = time.monotonic()
            return
        if guest.withdraw_suspend():
            guest.pause()
            self._ended = time.monotonic()
        if not self._over.is_set():
            self._fail(_no_answer(guest.name))

    def _wait_for_answer(self, guest: Guest) -> bool:
        while not guest.info().shutdown:
            if self._over.wait(_POLL_S) or time.monotonic() - self._began >= _ANSWER_S:
                return guest.info().shutdown
        return True

    def _fail(self, error: PyxlsnapError) -> None:
        self._error = error
        while not self._over.wait(_POLL_S) and not self._guest.abort():
            pass


def _no_answer(name: str) -> GuestTimeout:
    return GuestTimeout(
        f"{name} did not answer the suspend request within {_ANSWER_S:g} s: unpause the guest, and "
        f"see whether it works (xl console)",
        domain=name,
    )


def _paused_again(name: str) -> XenError:
    return XenError(
        f"{name} is paused more than once: run `xl unpause {quote(name)}` until only one pause is "
        f"left",
        domain=name,
    )
