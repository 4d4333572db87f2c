"""One domain: its state, its configuration, and the verbs of libxl on it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

from pyxlsnap.errors import DomainNotFound, GuestTimeout, Refused, XenError
from pyxlsnap.model import DomainConfig, DomainInfo
from pyxlsnap.results import OnProgress
from pyxlsnap.xen.ffi import C, c_string, domain_info, ffi, struct, taken, text

if TYPE_CHECKING:
    from pyxlsnap.xen.toolstack import Toolstack

#: xenbus states of a frontend: nobody there yet, and connected
XENBUS_INITIALISING, XENBUS_CONNECTED = 1, 4
#: a suspend that failed may come late: watch so long, and longer while its request stands
SETTLE_S, REQUEST_S = 4.0, 90.0
_POLL_S = 0.02


class Domain:
    """A domain that was resolved once; it keeps domid and uuid.

    A domid is used again sooner or later, so :meth:`check_same` compares the uuid before anything
    is changed. Got from :meth:`Toolstack.find`; lives as long as its :class:`Toolstack`, whose
    errors its calls raise, too. For a domain that has gone they raise :class:`DomainNotFound`, or
    :class:`XenError` where libxl does not say so.
    """

    def __init__(self, toolstack: "Toolstack", domid: int, uuid: str, name: str) -> None:
        self._toolstack = toolstack
        #: its number
        self.domid = domid
        #: its uuid, in lower case
        self.uuid = uuid
        #: its name when it was resolved: see :meth:`present_name`
        self.name = name

    def __str__(self) -> str:
        return f"{self.name or self.uuid} (domid {self.domid})"

    def info(self) -> DomainInfo:
        """The domain's state now (``libxl_domain_info``).

        :raises DomainNotFound: it is gone.
        :raises XenError: libxl could not tell.
        """
        with self._toolstack.calling() as ctx, struct("libxl_dominfo") as info:
            rc = C.libxl_domain_info(ctx, info, self.domid)
            if rc == 0:
                return domain_info(info)
            # From Xen 4.18 on, a domain that is gone may show as ERROR_FAIL.
            if self.domid not in [d.domid for d in self._toolstack.domains()]:
                rc = C.ERROR_DOMAIN_NOTFOUND
            self._check(rc, "libxl_domain_info")
        raise AssertionError("check() raises for every rc but 0")

    def check_same(self, *, dying: bool = False) -> DomainInfo:
        """Make sure that the domid is still this domain; return its state.

        :param dying: it may be half destroyed; else such a one is gone.
        :raises DomainNotFound: it is gone, or its domid belongs to another domain now.
        """
        info = self.info()
        if info.uuid != self.uuid or (info.dying and not dying):
            raise DomainNotFound(f"domain {self} is gone", domain=self.uuid)
        return info

    def present_name(self) -> str:
        """Its name now; :attr:`name` is that of when it was resolved. "" if it has gone."""
        return self._toolstack.name_of(self.domid)

    def config(self) -> DomainConfig:
        """Its configuration as of now (``libxl_retrieve_domain_configuration``).

        Not while it is suspended: libxl asks the guest's QEMU.

        :raises XenError: libxl could not tell.
        :raises Refused: what it says cannot be read.
        """
        with self._toolstack.calling() as ctx, struct("libxl_domain_config") as config:
            rc = C.libxl_retrieve_domain_configuration(ctx, self.domid, config, ffi.NULL)
            self._check(rc, "libxl_retrieve_domain_configuration")
            config.c_info.domid = 0  # as `xl save` does: a restore must not insist on it
            json = taken(C.libxl_domain_config_to_json(ctx, config))
        try:
            return DomainConfig.parse(json)
        except ValueError as e:
            raise Refused(
                f"libxl's configuration of {self} cannot be read: {e}: see `xl list -l`"
            ) from e

    def suspend(self, fd: int, *, live: bool, on_progress: OnProgress | None = None) -> None:
        """Write memory and device state to ``fd`` and leave the domain suspended.

        ``libxl_domain_suspend``. With ``live`` the domain runs while its memory is written and is
        suspended at the end. **After any error it may be suspended, or suspend later**: see
        :meth:`ensure_running`.

        :param on_progress: called on another thread: phase "memory" with pages, iteration after
            iteration; "domain now suspended" the moment it is.
        :raises Aborted: :meth:`abort` was called.
        :raises GuestTimeout: the guest has not answered the request.
        :raises XenError: libxl could not.
        """
        with self._toolstack.calling(on_progress) as ctx:
            flags = C.LIBXL_SUSPEND_LIVE if live else 0
            rc = C.libxl_domain_suspend(ctx, self.domid, fd, flags, ffi.NULL)
            self._check(rc, "libxl_domain_suspend")

    def resume(self, *, paused: bool = False) -> None:
        """Let a suspended domain go on as if nothing had been (``libxl_domain_resume``, cancel).

        With ``paused`` it is paused first, and so does not run. On a domain that is not suspended
        it fails and does no harm.

        :raises XenError: libxl could not; the domain is still suspended.
        """
        if paused and not self.info().paused:
            self.pause()
        with self._toolstack.calling() as ctx:
            self._check(C.libxl_domain_resume(ctx, self.domid, 1, ffi.NULL), "libxl_domain_resume")

    def ensure_running(
        self, *, settle_s: float = SETTLE_S, request_s: float = REQUEST_S, paused: bool = False
    ) -> bool:
        """Resume the domain if it is suspended, or suspends yet; true if it had to be done.

        With ``paused`` it is one that its owner had paused, and is paused again before the resume.

        A suspend that timed out, was aborted or killed may leave its request with the guest, which
        then suspends alone later. So watch for up to ``request_s`` seconds while the request stands
        in xenstore, and for ``settle_s`` seconds from then on: the guest takes it away when it
        begins to suspend.

        :raises XenError: it is suspended and cannot be resumed.
        :raises GuestTimeout: it runs, and the request still stands: it may suspend at any time.
        :raises DomainNotFound: it is gone.
        """
        start = quiet_since = time.monotonic()
        while True:
            info = self.check_same()
            if info.suspended:
                self.resume(paused=paused)
                return True
            now, requested = time.monotonic(), self.suspend_requested()
            if requested:
                quiet_since = now
            if requested and now - start >= request_s:
                raise GuestTimeout(
                    f"{self} has been asked to suspend and has not answered: it may yet do so",
                    rc=C.ERROR_GUEST_TIMEDOUT,
                    operation="libxl_domain_suspend",
                    domain=str(self),
                )
            if not requested and now - quiet_since >= settle_s:
                if paused and not info.paused:
                    self.pause()
                return False
            time.sleep(_POLL_S)

    def pause(self) -> None:
        """``libxl_domain_pause``. Pauses are counted.

        :raises XenError: libxl could not; the domain is as it was.
        """
        with self._toolstack.calling() as ctx:
            self._check(C.libxl_domain_pause(ctx, self.domid, ffi.NULL), "libxl_domain_pause")

    def unpause(self) -> None:
        """``libxl_domain_unpause``: takes back one pause.

        :raises XenError: libxl could not; it is still paused.
        """
        with self._toolstack.calling() as ctx:
            self._check(C.libxl_domain_unpause(ctx, self.domid, ffi.NULL), "libxl_domain_unpause")

    def destroy(self) -> None:
        """``libxl_domain_destroy``. Its QEMU may outlive the call: see :meth:`device_model_pid`.

        :raises XenError: libxl could not; the domain may be half destroyed. Try again.
        """
        with self._toolstack.calling() as ctx:
            rc = C.libxl_domain_destroy(ctx, self.domid, ffi.NULL)
            self._check(rc, "libxl_domain_destroy")

    def core_dump(self, path: str) -> None:
        """Write its memory to a file for a debugger (``libxl_domain_core_dump``).

        :raises XenError: libxl could not; what it has written of the file is left.
        """
        with self._toolstack.calling() as ctx:
            rc = C.libxl_domain_core_dump(ctx, self.domid, c_string(path), ffi.NULL)
            self._check(rc, "libxl_domain_core_dump")

    def preserve(self, config: DomainConfig, suffix: str) -> None:
        """Rename a domain that has shut down, and give it a uuid of its own.

        ``libxl_domain_preserve``: a new one can take its place.

        :param suffix: put after its name.
        :raises XenError: libxl could not.
        """
        with self._toolstack.calling() as ctx, self._toolstack.parsed(config) as parsed:
            new = ffi.new("libxl_uuid *", [uuid4().bytes])
            rc = C.libxl_domain_preserve(
                ctx, self.domid, ffi.addressof(parsed, "c_info"), c_string(suffix), new[0]
            )
            self._check(rc, "libxl_domain_preserve")

    def soft_reset(self, config: DomainConfig) -> None:
        """Let a guest that has reset itself (kexec) go on, paused (``libxl_domain_soft_reset``).

        :raises XenError: libxl could not; the domain does not run.
        """
        with self._toolstack.calling() as ctx, self._toolstack.parsed(config) as parsed:
            rc = C.libxl_domain_soft_reset(ctx, parsed, self.domid, ffi.NULL, ffi.NULL)
            self._check(rc, "libxl_domain_soft_reset")

    def wait_gone(self, *, timeout_s: float) -> None:
        """Wait until the domid is no more.

        :raises XenError: it is still there after ``timeout_s`` seconds.
        """
        end = time.monotonic() + timeout_s
        while True:
            try:
                if self.info().uuid != self.uuid:
                    return
            except DomainNotFound:
                return
            if time.monotonic() >= end:
                raise XenError(
                    f"domain {self} is still there {timeout_s:g} s after it was destroyed",
                    rc=C.ERROR_TIMEDOUT,
                    operation="libxl_domain_destroy",
                    domain=str(self),
                )
            time.sleep(_POLL_S)

    def disk_targets(self) -> tuple[str, ...]:
        """The host paths of its disks (``libxl_device_disk_list``)."""
        with self._toolstack.calling() as ctx:
            count = ffi.new("int *")
            found = C.libxl_device_disk_list(ctx, self.domid, count)
            if found == ffi.NULL:
                return ()
            try:
                targets = [text(found[i].pdev_path) for i in range(count[0])]
            finally:
                C.libxl_device_disk_list_free(found, count[0])
        return tuple(t for t in targets if t)

    def abort(self) -> bool:
        """Abort the call under way, from another thread (as :meth:`Toolstack.abort`)."""
        return self._toolstack.abort()

    @contextmanager
    def on_its_own(self) -> Iterator["Domain"]:
        """The same domain through a context of its own, while a call here is under way."""
        with type(self._toolstack)(operation="watch", domain=self.name) as toolstack:
            yield Domain(toolstack, self.domid, self.uuid, self.name)

    # What only xenstore tells

    def device_model_pid(self) -> int | None:
        """The pid of its QEMU, which serves its qcow2 disks; ``None`` if it has none."""
        pid = self._toolstack.xenstore_read(f"/local/domain/{self.domid}/image/device-model-pid")
        return int(pid) if pid and pid.isdigit() else None

    def is_stub_domain(self) -> bool:
        """Whether it is the device model of another domain, which it then names."""
        return self._toolstack.xenstore_read(f"/local/domain/{self.domid}/target") is not None

    def suspend_requested(self) -> bool:
        """Whether a suspend request waits for the guest's answer."""
        path = f"/local/domain/{self.domid}/control/shutdown"
        return self._toolstack.xenstore_read(path) == "suspend"

    def frontend_states(self) -> dict[str, int]:
        """The xenbus state of each disk and network frontend, "vbd/51712" -> 4 for connected."""
        base = f"/local/domain/{self.domid}/device"
        states = {}
        for kind in ("vbd", "vif"):
            for device in self._toolstack.xenstore_list(f"{base}/{kind}"):
                state = self._toolstack.xenstore_read(f"{base}/{kind}/{device}/state")
                if state and state.isdigit():
                    states[f"{kind}/{device}"] = int(state)
        return states

    def _check(self, rc: int, operation: str) -> None:
        self._toolstack.check(rc, operation, domain=str(self))
