"""Acting on a guest's own reboot, power-off and crash, as its configuration says.

Xen only stops a domain that shuts down; what follows is the toolstack's affair, and ``xl`` has a
process for each of its domains that does it (``on_reboot`` and the others in xl.cfg(5)). This does
the same, in the same words. A guest's ejecting of a CD-ROM is not followed.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pyxlsnap import paths
from pyxlsnap.cancel import Cancel
from pyxlsnap.errors import Busy, DomainNotFound, NeedsAttention, PyxlsnapError, Refused, XenError
from pyxlsnap.guest.destroy import destroy
from pyxlsnap.guest.dom0_memory import make_room
from pyxlsnap.guest.protocols import Guest, Host
from pyxlsnap.linux.locks import DomainLock
from pyxlsnap.model import DomainConfig, DomainInfo
from pyxlsnap.monitor.xl import xl_monitor
from pyxlsnap.results import DomainEvent, OnEvent

log = logging.getLogger(__name__)


_LOCK_POLL_S = 0.2
_ATTEMPTS = 3
_AGAIN_S = 2.0


def monitor(
    host: Host,
    domain: str,
    *,
    on_ready: Callable[[], None] = lambda: None,
    on_event: OnEvent = lambda _: None,
    cancel: Cancel | None = None,
) -> None:
    """Watch a domain, in this process, and act on what it does; return when it has gone for good.

    That is: somebody else has destroyed it, or what it is configured for has been done and it does
    not run any more. A suspend is none of that: whoever asked for it goes on.

    :param on_ready: called once, when nothing can be missed any more.
    :param on_event: called when a shutdown has been acted on.
    :raises DomainNotFound: there is no such domain to begin with.
    :raises Cancelled: ``cancel`` was set. The domain is left as it is; an action that had begun
        was brought to its end.
    :raises NeedsAttention: it has shut down, and what it is configured for could not be done.
    """
    Monitor(host, host.find(domain), on_event=on_event, cancel=cancel).run(on_ready)


class Monitor:
    """The watch over one domain, through its reboots."""

    def __init__(
        self,
        host: Host,
        guest: Guest,
        *,
        on_event: OnEvent = lambda _: None,
        cancel: Cancel | None = None,
    ) -> None:
        self._host = host
        self._guest = guest
        self._on_event = on_event
        self._cancel = cancel or Cancel()
        self._config: DomainConfig | None = None

    def run(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """See :func:`monitor`."""
        with self._host.watching() as watch, self._cancel.armed(watch.wake):
            on_ready()
            while self._look():
                watch.wait()
                self._cancel.check()

    def _look(self) -> bool:
        """See how the domain is, and act if it has shut down; false: there is none to watch."""
        try:
            if not _has_shut_down(self._guest.check_same()):
                self._remember_config()
                return True
            with self._locked():
                # Whoever had the lock may have gone on with it.
                info = self._guest.check_same()
                return not _has_shut_down(info) or self._act(info.shutdown_reason)
        except DomainNotFound:
            log.info("%s has been destroyed", self._guest)
            return False

    def _remember_config(self) -> None:
        """For the case that it cannot be read when it is needed; then it is a little old."""
        if self._config is None:
            try:
                self._config = self._guest.config()
            except (XenError, Refused) as e:  # suspended just now, say: the next look will do
                log.debug("%s: %s", self._guest, e)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """The domain is ours alone: no snapshot or revert is under way."""
        while True:
            try:
                lock = DomainLock(self._guest.uuid, domain=self._guest.name)
                break
            except Busy:
                self._cancel.check()
                time.sleep(_LOCK_POLL_S)
        try:
            yield
        finally:
            lock.release()

    def _act(self, reason: str) -> bool:
        """Do what the configuration says; false: there is no domain to watch any more."""
        if xl_monitor(self._guest.name):
            log.info("xl watches %s: leaving it to xl", self._guest)
            return False
        old, action = self._guest, "?"
        try:
            config = self._present_config()
            action = config.action_on(reason)
            log.info("%s has shut down (%s): %s", old, reason, action)
            goes_on = self._perform(action, config)
        except PyxlsnapError as e:
            raise NeedsAttention(
                f"{old} has shut down ({reason}) and was not brought further ({action}): {e}",
                step=action,
                left=[f"{old.name} does not run"],
            ) from e
        new = self._guest.domid if goes_on else None
        self._on_event(
            DomainEvent(
                domain=old.name, uuid=old.uuid, domid=old.domid, reason=reason, action=action,
                new_domid=new,
            )
        )  # fmt: skip
        return goes_on

    def _present_config(self) -> DomainConfig:
        """As of now, with the devices that have come and gone since it was started."""
        try:
            return self._guest.config()
        except (XenError, Refused) as e:
            if self._config is None:
                raise
            log.warning("%s; taking the configuration of when the watch began", e)
            return self._config.with_name(self._guest.name)

    def _perform(self, action: str, config: DomainConfig) -> bool:
        """One of libxl's ``action_on_shutdown``; whether a domain runs afterwards."""
        if action.startswith("coredump_"):
            self._dump_core()
            action = action.removeprefix("coredump_")
        if action == "preserve":
            return False
        if action == "soft_reset":
            self._guest.soft_reset(config)
            self._guest.unpause()
            return True
        if action == "restart_rename":
            self._guest.preserve(config, time.strftime("-%Y%m%dT%H%MZ", time.gmtime()))
        else:
            destroy(self._guest)
        if action not in ("restart", "restart_rename"):
            return False
        self._guest = self._created(config)
        self._guest.unpause()
        return True

    def _created(self, config: DomainConfig) -> Guest:
        """Make it anew. That fails sometimes, so xl waits two seconds first; we try again."""
        for attempt in range(_ATTEMPTS):
            try:
                make_room(self._host, config)
            except Refused as e:  # as xl without autoballooning: libxl shall say so
                log.warning("%s", e)
            try:
                return self._host.create(config)
            except XenError as e:
                if attempt == _ATTEMPTS - 1:
                    raise
                log.warning("%s; trying again", e)
                time.sleep(_AGAIN_S)
        raise AssertionError("the last attempt has raised")

    def _dump_core(self) -> None:
        """As xl does, but under a name of its own: an older dump may still be wanted."""
        path = paths.DUMPS / f"{self._guest.name}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
        try:
            self._guest.core_dump(str(path))
            log.info("%s: core dumped to %s", self._guest, path)
        except XenError as e:  # it shall come up again all the same
            log.error("%s: no core dump: %s", self._guest, e)


def _has_shut_down(info: DomainInfo) -> bool:
    return info.shutdown and not info.suspended
