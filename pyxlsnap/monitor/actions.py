"""Perform the configured action when a guest reboots, powers off or crashes.

When a guest shuts down, Xen only stops the domain. The toolstack must do the rest: ``xl`` has a
process for each domain that performs the configured action (``on_reboot`` and the others in
xl.cfg(5)). This module performs the same actions. Unlike xl, it ignores that a guest ejects a
CD-ROM.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pyxlsnap import paths
from pyxlsnap.cancel import Cancel
from pyxlsnap.errors import Busy, DomainNotFound, NeedsAttention, PyxlsnapError, Refused, XenError
from pyxlsnap.guest.destroy import destroy
from pyxlsnap.guest.dom0_memory import room_for
from pyxlsnap.guest.protocols import Guest, Host
from pyxlsnap.linux.locks import MONITOR, DomainLock
from pyxlsnap.model import DomainConfig, DomainInfo
from pyxlsnap.monitor.xl import xl_monitor
from pyxlsnap.results import DomainEvent, OnEvent

log = logging.getLogger(__name__)

_LOCK_POLL_S = 0.05
#: seconds in which a guest that begins to run needs the processor more than the monitor does; the
#: guest of a sandbox does not live longer
_SETTLING_S = 50.0
#: attempts to create a domain, and the seconds between two attempts
_ATTEMPTS = 3
_AGAIN_S = 2.0


def monitor(
    host: Host,
    domain: str,
    *,
    on_ready: Callable[[], None] = lambda: None,
    on_event: OnEvent = lambda _: None,
    cancel: Cancel | None = None,
    turn: Callable[[int], bool] = lambda _: True,
) -> None:
    """Watch a domain in this process, and perform the configured action when it shuts down.

    Return when another process has destroyed the domain, or when the domain has shut down and its
    configured action does not start it again. A suspend is ignored.

    :param on_ready: called once, when the watch has begun: from then on no shutdown is missed.
    :param on_event: called after the action for a shutdown was performed.
    :param turn: called with the domid when the watch begins, and after each restart; if it returns
        false, another process watches this domain, and the watch ends.
    :raises DomainNotFound: there is no such domain when the watch begins.
    :raises Cancelled: ``cancel`` was set. An action that has begun is completed first; otherwise
        the domain is unchanged.
    :raises NeedsAttention: the domain shut down, and its configured action failed.
    """
    guest = host.find(domain)
    ShutdownWatch(host, guest, on_event=on_event, cancel=cancel, turn=turn).run(on_ready)


class ShutdownWatch:
    """The watch over one domain, which continues after its reboots."""

    def __init__(
        self,
        host: Host,
        guest: Guest,
        *,
        on_event: OnEvent = lambda _: None,
        cancel: Cancel | None = None,
        turn: Callable[[int], bool] = lambda _: True,
    ) -> None:
        self._host = host
        self._guest = guest
        self._turn = turn
        self._on_event = on_event
        self._cancel = cancel or Cancel()
        self._config: DomainConfig | None = None
        self._settled = time.monotonic() + _SETTLING_S

    def run(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """See :func:`monitor`."""
        with self._host.watching() as watch, self._cancel.armed(watch.wake):
            ours = self._take_turn()
            on_ready()
            while ours and self._look():
                watch.wait()  # for a minute at most
                self._cancel.check()

    def _take_turn(self) -> bool:
        if not self._turn(self._guest.domid):
            log.info("another process watches %s", self._guest)
            return False
        return True

    def _look(self) -> bool:
        """Act if the domain has shut down; false if there is no domain to watch any more."""
        try:
            info = self._guest.check_same()
            if not _has_shut_down(info):
                if not info.suspended:
                    self._remember_config()
                return True
            log.info("%s has shut down", self._guest)
            with self._locked():
                # The holder of the lock may have resumed or replaced the domain.
                info = self._guest.check_same()
                return not _has_shut_down(info) or self._act(info.shutdown_reason)
        except DomainNotFound:
            log.info("%s has been destroyed", self._guest)
            return False

    def _remember_config(self) -> None:
        """Keep the configuration for the case that it cannot be read when the domain shuts down.

        To read it takes long, so not while the guest begins to run.
        """
        if self._config is None and time.monotonic() >= self._settled:
            try:
                self._config = self._guest.config()
            except (XenError, Refused) as e:  # for example suspended: try again later
                log.debug("%s: %s", self._guest, e)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keep others from suspending, destroying or restoring the domain meanwhile.

        A create leaves this to the monitor, but for the time in which the guest may be suspended.
        """
        begun = time.monotonic()
        while True:
            try:
                lock = DomainLock(self._guest.uuid, domain=self._guest.name, part=MONITOR)
                break
            except Busy:
                self._cancel.check()
                self._notice_end()  # a revert holds the lock until its domain is watched
                time.sleep(_LOCK_POLL_S)
        log.info("%s: waited %.2f s for others", self._guest, time.monotonic() - begun)
        try:
            yield
        finally:
            lock.release()

    def _notice_end(self) -> None:
        """:raises DomainNotFound: the domain is gone."""
        try:
            self._guest.check_same()
        except XenError as e:  # the next look tells
            log.debug("%s: %s", self._guest, e)

    def _act(self, reason: str) -> bool:
        """Perform the configured action; false if there is no domain to watch any more."""
        if xl_monitor(self._guest.name, self._guest.domid):
            log.info("xl watches %s, too: leaving the shutdown to xl", self._guest)
            return False
        old, action = self._guest, "?"
        try:
            config = self._present_config()
            action = config.action_on(reason)
            log.info("%s shut down (%s): performing the action %s", old, reason, action)
            goes_on = self._perform(action, config)
        except PyxlsnapError as e:
            raise NeedsAttention(
                f"{old} shut down ({reason}); the configured action ({action}) failed: {e}",
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
        return goes_on and self._take_turn()

    def _present_config(self) -> DomainConfig:
        """The current configuration, with the devices added or removed since the creation."""
        try:
            self._config = self._guest.config()
            return self._config
        except (XenError, Refused) as e:
            if self._config is None:
                raise
            log.warning("%s; using the configuration that was read before the shutdown", e)
            return self._config.with_name(self._guest.name)

    def _perform(self, action: str, config: DomainConfig) -> bool:
        """Perform an ``action_on_shutdown`` of libxl; return whether a domain runs afterwards."""
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
        """Create the domain again, with retries: right after the destroy this may fail.

        xl waits two seconds first for the same reason.
        """
        for attempt in range(_ATTEMPTS):
            try:
                with room_for(self._host, config):
                    return self._host.create(config)
            except XenError as e:
                if attempt == _ATTEMPTS - 1:
                    raise
                log.warning("%s; trying again", e)
                time.sleep(_AGAIN_S)
        raise AssertionError("unreachable: the last attempt raises")

    def _dump_core(self) -> None:
        """Dump the core as xl does, but under a new name, so that no older dump is replaced."""
        path = paths.DUMPS / f"{self._guest.name}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
        try:
            self._guest.core_dump(str(path))
            log.info("%s: core dumped to %s", self._guest, path)
        except XenError as e:  # the action continues without the dump
            log.error("%s: the core could not be dumped: %s", self._guest, e)


def _has_shut_down(info: DomainInfo) -> bool:
    return info.shutdown and not info.suspended
