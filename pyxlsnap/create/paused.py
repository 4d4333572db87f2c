"""Suspending a guest that its owner has paused: it must run for a moment to answer the request.

The moment is as short as can be (xen-lab.md, E3): the request stands in xenstore before the guest
is let go, so it is the first thing that it sees.
"""

import threading
import time

from pyxlsnap.errors import PyxlsnapError, XenError
from pyxlsnap.guest.protocols import Guest
from pyxlsnap.text import quote

# A guest without PV drivers is asked for nothing: Xen suspends it, mostly even while it is paused.
_NO_REQUEST_S = 5.0
_POLL_S = 0.005


class Unpauser:
    """Around a suspend of a paused guest: unpauses it once the suspend request stands.

    On leaving, :attr:`seconds` is how long the guest was let go.

    :raises XenError: on leaving: it has been paused more than once, and was not let go.
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
                    self._let_go(guest)
        except PyxlsnapError as e:
            self._fail(e)

    def _wait_for_request(self, guest: Guest) -> bool:
        begun = time.monotonic()
        while not self._over.wait(_POLL_S):
            if guest.suspend_requested():
                return True
            # (Live, nobody knows how long the memory takes that is saved before.)
            if not self._live and time.monotonic() - begun > _NO_REQUEST_S:
                return not guest.info().shutdown
        return False

    def _let_go(self, guest: Guest) -> None:
        begun = time.monotonic()
        guest.unpause()
        if guest.info().paused:
            guest.pause()
            name = guest.name
            self._fail(
                XenError(
                    f"{name} is paused more than once: run `xl unpause {quote(name)}` as often as "
                    f"it was paused but for one time",
                    rc=-3,
                    operation="libxl_domain_unpause",
                    domain=name,
                )
            )
            return
        while not guest.info().shutdown and not self._over.wait(_POLL_S):
            pass
        self.seconds = time.monotonic() - begun

    def _fail(self, error: PyxlsnapError) -> None:
        self._error = error
        while not self._over.wait(_POLL_S) and not self._guest.abort():
            pass
