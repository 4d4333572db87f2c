"""One domain: its state, its configuration, and the verbs of libxl on it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from pyxlsnap.errors import DomainNotFound, GuestTimeout, Refused, XenError
from pyxlsnap.linux.waiting import until
from pyxlsnap.model import DomainConfig, DomainInfo
from pyxlsnap.results import OnProgress
from pyxlsnap.xen import nodes
from pyxlsnap.xen.context import Context
from pyxlsnap.xen.ffi import C, c_string, domain_info, ffi, struct, take_string
from pyxlsnap.xen.xenstore import NodeWatch

#: a guest may suspend after its suspend has failed: seconds to watch it once no request stands
SETTLE_S = 4.0
#: seconds to watch it at the most while the request stands in xenstore
REQUEST_S = 90.0
_POLL_S = 0.02
_REQUEST = "/local/domain/{}/control/shutdown"


class Domain:
    """A domain that was looked up once, with its domid and uuid of that time.

    Xen reuses domids, so :meth:`check_same` compares the uuid before anything is changed. Returned
    by :meth:`Toolstack.find`; usable until its :class:`Toolstack` is closed. Its calls raise the
    errors of the :class:`Toolstack`, too. For a domain that no longer exists they raise
    :class:`DomainNotFound`, or :class:`XenError` if libxl does not report the reason.
    """

    def __init__(self, context: Context, domid: int, uuid: str, name: str) -> None:
        self._context = context
        #: its number
        self.domid = domid
        #: its uuid, in lower case
        self.uuid = uuid
        #: its name when it was looked up, "" if it was listed: see :meth:`present_name`
        self.name = name

    def __str__(self) -> str:
        return f"{self.name or self.uuid} (domid {self.domid})"

    def info(self) -> DomainInfo:
        """The domain's state now (``libxl_domain_info``).

        :raises DomainNotFound: the domain no longer exists.
        :raises XenError: libxl could not read it.
        """
        with self._context.calling() as ctx, struct("libxl_dominfo") as info:
            rc = C.libxl_domain_info(ctx, info, self.domid)
            if rc == 0:
                return domain_info(info)
            # From Xen 4.18 on, libxl may return ERROR_FAIL for a domain that no longer exists.
            if self.domid not in [d.domid for d in self._context.domains()]:
                rc = C.ERROR_DOMAIN_NOTFOUND
            self._check(rc, "libxl_domain_info")
        raise AssertionError("check() raises for every rc but 0")

    def check_same(self, *, dying: bool = False) -> DomainInfo:
        """Make sure that the domid is still this domain; return its state.

        :param dying: accept a domain that is being destroyed; by default it counts as gone.
        :raises DomainNotFound: the domain no longer exists, or its domid is another domain's now.
        """
        info = self.info()
        if info.uuid != self.uuid or (info.dying and not dying):
            raise DomainNotFound(f"domain {self} no longer exists", domain=self.uuid)
        return info

    def present_name(self) -> str:
        """Its name now, while :attr:`name` is from the look-up; "" if it no longer exists."""
        return self._context.name_of(self.domid)

    def present_info(self) -> DomainInfo | None:
        """The domain that has its uuid now: another if it was started anew; ``None`` if it is off.

        :raises XenError: libxl could not list the domains.
        """
        there = [d for d in self._context.domains() if d.uuid == self.uuid and not d.dying]
        return there[0] if there else None

    def config(self) -> DomainConfig:
        """Its configuration as of now (``libxl_retrieve_domain_configuration``).

        Do not call it while the domain is suspended: libxl asks the guest's QEMU.

        :raises XenError: libxl could not retrieve it.
        :raises Refused: libxl's answer is not a configuration.
        """
        with self._context.calling() as ctx, struct("libxl_domain_config") as config:
            rc = C.libxl_retrieve_domain_configuration(ctx, self.domid, config, ffi.NULL)
            self._check(rc, "libxl_retrieve_domain_configuration")
            config.c_info.domid = 0  # as `xl save` does: a restore must be free to choose another
            json = take_string(C.libxl_domain_config_to_json(ctx, config))
        try:
            return DomainConfig.parse(json)
        except ValueError as e:
            what = f"libxl's configuration of {self} cannot be read: {e}: see `xl list -l`"
            raise Refused(what) from e

    def suspend(self, fd: int, *, live: bool, on_progress: OnProgress | None = None) -> None:
        """Write memory and device state to ``fd`` and leave the domain suspended.

        ``libxl_domain_suspend``. With ``live`` the domain runs while its memory is written and is
        suspended at the end. **After any error it may be suspended, or suspend later**: see
        :meth:`ensure_running`.

        :param on_progress: called on another thread: with phase "memory" and the bytes of each
            iteration, and with "domain now suspended" at that moment.
        :raises Aborted: :meth:`abort` was called.
        :raises GuestTimeout: the guest did not answer the suspend request.
        :raises XenError: libxl could not.
        """
        with self._context.calling(on_progress) as ctx:
            flags = C.LIBXL_SUSPEND_LIVE if live else 0
            rc = C.libxl_domain_suspend(ctx, self.domid, fd, flags, ffi.NULL)
            self._check(rc, "libxl_domain_suspend")

    def resume(self, *, paused: bool = False) -> None:
        """Resume a suspended domain where it stopped (``libxl_domain_resume``, suspend_cancel).

        With ``paused`` the domain is paused first, and so does not run. On a domain that is not
        suspended the call fails and does no harm.

        :raises XenError: libxl could not; the domain is still suspended.
        """
        if paused and not self.info().paused:
            self.pause()
        with self._context.calling() as ctx:
            self._check(C.libxl_domain_resume(ctx, self.domid, 1, ffi.NULL), "libxl_domain_resume")

    def ensure_running(
        self, *, settle_s: float = SETTLE_S, request_s: float = REQUEST_S, paused: bool = False
    ) -> bool:
        """Resume the domain if it is or becomes suspended; true if a resume was necessary.

        A suspend that timed out, was aborted or was killed may leave its request in xenstore. The
        guest then suspends later. So this watches for up to ``request_s`` seconds while the request
        stands, and for ``settle_s`` seconds more after the request was removed: the guest removes
        it when it begins to suspend.

        :param paused: the owner had paused the domain: withdraw the request, and pause the domain
            again at once; only if it has just taken the request, after up to ``settle_s`` seconds.
        :raises XenError: the domain is suspended and cannot be resumed.
        :raises GuestTimeout: it runs, and the request still stands: it may suspend at any time.
            (Not with ``paused``.)
        :raises DomainNotFound: the domain no longer exists.
        """
        if paused:
            if suspended := self.pause_again(settle_s=settle_s):
                self.resume(paused=True)
            return suspended
        start = quiet_since = time.monotonic()
        while True:
            info = self.check_same()
            if info.suspended:
                self.resume()
                return True
            if info.shutdown:
                return False  # by itself: it takes no request any more
            now, requested = time.monotonic(), self.suspend_requested()
            if requested:
                quiet_since = now
            if requested and now - start >= request_s:
                raise GuestTimeout(
                    f"{self} has not answered a suspend request for {request_s:g} s and may still "
                    f"suspend: check it later with `xl list`",
                    domain=str(self),
                )
            if not requested and now - quiet_since >= settle_s:
                return False
            time.sleep(_POLL_S)

    def pause_again(self, *, settle_s: float = SETTLE_S) -> bool:
        """Withdraw the suspend request of a domain that its owner had paused, and pause it again.

        A paused guest answers no request. One that has just taken its request is let suspend, for
        up to ``settle_s`` seconds. One that has shut down by itself is left alone.

        :returns: whether the domain is suspended; it is then left so.
        :raises XenError: it could not be paused.
        :raises DomainNotFound: the domain no longer exists.
        """
        self.check_same()
        if not (self.withdraw_suspend() or self.check_same().paused):
            until(lambda: self.check_same().shutdown, within_s=settle_s, poll_s=_POLL_S)
        info = self.check_same()
        if not (info.shutdown or info.paused):
            self.pause()
            info = self.check_same()
        return info.suspended

    def withdraw_suspend(self) -> bool:
        """Withdraw the suspend request in xenstore, as libxl does when its time is over.

        :returns: whether it stood; the guest never suspends then. If not, there was no request, or
            the guest has taken it and suspends soon.
        :raises XenError: xenstore cannot be reached or written to.
        """
        return self._context.xenstore_empty(_REQUEST.format(self.domid), "suspend")

    def pause(self) -> None:
        """``libxl_domain_pause``. Pauses are counted.

        :raises XenError: libxl could not; the domain is unchanged.
        """
        with self._context.calling() as ctx:
            self._check(C.libxl_domain_pause(ctx, self.domid, ffi.NULL), "libxl_domain_pause")

    def unpause(self) -> None:
        """``libxl_domain_unpause``: undoes one pause.

        :raises XenError: libxl could not; the domain is still paused.
        """
        with self._context.calling() as ctx:
            self._check(C.libxl_domain_unpause(ctx, self.domid, ffi.NULL), "libxl_domain_unpause")

    def lower_memory_target(self, by_kb: int) -> None:
        """Lower its memory target by this many KiB (``libxl_set_memory_target``), as xl does.

        The domain keeps its memory until its balloon driver gives some back. It gets no more.

        :raises XenError: libxl could not; the target is unchanged.
        """
        with self._context.calling() as ctx:
            rc = C.libxl_set_memory_target(ctx, self.domid, -by_kb, 1, 1)
            self._check(rc, "libxl_set_memory_target")

    def destroy(self) -> None:
        """``libxl_domain_destroy``. Its QEMU may outlive the call: see :meth:`device_model_pid`.

        :raises XenError: libxl could not; the domain may be half destroyed. Try again.
        """
        with self._context.calling() as ctx:
            self._check(C.libxl_domain_destroy(ctx, self.domid, ffi.NULL), "libxl_domain_destroy")

    def core_dump(self, path: str) -> None:
        """Write its memory to a file for a debugger (``libxl_domain_core_dump``).

        :raises XenError: libxl could not; the part of the file it has written remains.
        """
        with self._context.calling() as ctx:
            rc = C.libxl_domain_core_dump(ctx, self.domid, c_string(path), ffi.NULL)
            self._check(rc, "libxl_domain_core_dump")

    def preserve(self, config: DomainConfig, suffix: str) -> None:
        """Rename a domain that has shut down, and give it a new uuid (``libxl_domain_preserve``).

        A new domain can then use its name and uuid.

        :param suffix: appended to its name.
        :raises XenError: libxl could not.
        """
        from uuid import uuid4  # only here: this takes long to load

        with self._context.calling() as ctx, self._context.parsed(config) as parsed:
            new = ffi.new("libxl_uuid *", [uuid4().bytes])
            info = ffi.addressof(parsed, "c_info")
            rc = C.libxl_domain_preserve(ctx, self.domid, info, c_string(suffix), new[0])
            self._check(rc, "libxl_domain_preserve")

    def soft_reset(self, config: DomainConfig) -> None:
        """Continue a guest that has reset itself (kexec), paused (``libxl_domain_soft_reset``).

        :raises XenError: libxl could not; the domain does not run.
        """
        with self._context.calling() as ctx, self._context.parsed(config) as parsed:
            rc = C.libxl_domain_soft_reset(ctx, parsed, self.domid, ffi.NULL, ffi.NULL)
            self._check(rc, "libxl_domain_soft_reset")

    def wait_gone(self, *, timeout_s: float) -> None:
        """Wait until the domain no longer exists.

        :raises XenError: it still exists after ``timeout_s`` seconds.
        """
        if not until(self._is_gone, within_s=timeout_s, poll_s=_POLL_S):
            what = f"domain {self} still exists {timeout_s:g} s after it was destroyed"
            raise XenError(f"{what} (see `xl list`)", domain=str(self))

    def _is_gone(self) -> bool:
        try:
            return self.info().uuid != self.uuid
        except DomainNotFound:
            return True

    def abort(self) -> bool:
        """Abort the call under way, from another thread (as :meth:`Toolstack.abort`)."""
        return self._context.abort()

    @contextmanager
    def on_its_own(self) -> Iterator["Domain"]:
        """The same domain with a context of its own, usable while a call of this one runs."""
        with self._context.sibling(operation="watch", domain=self.name) as context:
            yield Domain(context, self.domid, self.uuid, self.name)

    def watching_devices(self) -> NodeWatch:
        """Notice changes of :meth:`frontend_states` and :meth:`disk_targets`, in a ``with``.

        :meta private:
        """
        return self._context.xenstore_watch(*nodes.devices(self.domid))

    # Read from xenstore, because libxl does not report it

    def device_model_pid(self) -> int | None:
        """The pid of its QEMU, which serves its qcow2 disks; ``None`` if it has no QEMU."""
        pid = self._context.xenstore_read(f"/local/domain/{self.domid}/image/device-model-pid")
        return nodes.number(pid or "")

    def is_stub_domain(self) -> bool:
        """Whether it runs the device model of another domain (the node "target" names that)."""
        return self._context.xenstore_read(f"/local/domain/{self.domid}/target") is not None

    def suspend_requested(self) -> bool:
        """Whether a suspend request stands that the guest has not answered."""
        return self._context.xenstore_read(_REQUEST.format(self.domid)) == "suspend"

    def takes_requests(self) -> bool:
        """Whether the guest has said that it takes suspend requests (Linux 4.11 and later do).

        A restored guest does not say so again.
        """
        path = f"/local/domain/{self.domid}/control/feature-suspend"
        return self._context.xenstore_read(path) == "1"

    def frontend_states(self) -> dict[str, int]:
        """The xenbus state of each paravirtual device, "vbd/51712" -> 4 for connected.

        0 for a device whose state is missing, or is no number: the guest writes it.
        """
        return nodes.frontend_states(self._context, self.domid)

    def disk_targets(self) -> tuple[str, ...]:
        """The host paths of its disks. Also for a suspended domain: nothing is asked of its QEMU.

        (libxl_device_disk_list returns only what follows the first colon of a path.)
        """
        return nodes.disk_targets(self._context, self.domid)

    def nics(self) -> tuple[tuple[str, str], ...]:
        """The MAC and the bridge of each network device, as libxl has set it up.

        :meta private:
        """
        return nodes.nics(self._context, self.domid)

    def _check(self, rc: int, operation: str) -> None:
        self._context.check(rc, operation, domain=str(self))
