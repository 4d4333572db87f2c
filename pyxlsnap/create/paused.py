"""Suspending a paused guest: it is unpaused just long enough to answer the suspend request.

The guest is unpaused once the suspend request stands in xenstore, so that it handles the request
before anything else (xen-lab.md, E3).
"""

import threading
import time

from pyxlsnap.errors import PyxlsnapError, XenError
from pyxlsnap.guest.protocols import Guest
from pyxlsnap.text import quote

# A guest without PV drivers gets no request: Xen suspends it, usually even while it is paused.
_NO_REQUEST_S = 5.0
_POLL_S = 0.005


class Unpauser:
    """Put around the suspend of a paused guest: unpauses it once the suspend request stands.

    On leaving, :attr:`seconds` says how long the guest was unpaused.

    :raises XenError: on leaving: the guest was paused more than once, and was not unpaused.
    """

    def __init__(self, guest: Guest, *, live: bool) -> None:
        self._guest = guest
        self._live = live
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="pyxlsnap-unpause", daemon=True)
        self._error: PyxlsnapError | None = None
        self.seconds = 0.0

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
                    self._unpause(guest)
        except PyxlsnapError as e:
            self._fail(e)

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
        while not guest.info().shutdown and not self._over.wait(_POLL_S):
            pass
        self.seconds = time.monotonic() - begun

    def _fail(self, error: PyxlsnapError) -> None:
        self._error = error
        while not self._over.wait(_POLL_S) and not self._guest.abort():
            pass


def _paused_again(name: str) -> XenError:
    return XenError(
        f"{name} is paused more than once: run `xl unpause {quote(name)}` until only one pause is "
        f"left",
        domain=name,
    )
