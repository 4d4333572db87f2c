"""libxl in this process: a context, the domains it shows, and the restore of one.

A :class:`Toolstack` is cheap (some 10 ms): use one for each thread and each long operation.
"""

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyxlsnap.errors import Aborted, ClosedError, DomainNotFound, ForkedError, XenUnavailable
from pyxlsnap.model import DomainConfig, DomainInfo
from pyxlsnap.results import OnProgress
from pyxlsnap.xen.callbacks import Bridge
from pyxlsnap.xen.domain import Domain
from pyxlsnap.xen.ffi import C, CData, c_string, check, domain_info, ffi, struct, taken, text
from pyxlsnap.xen.xenstore import DomainWatch, Xenstore

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_STREAM_V2 = 2  # libxl's own default is 1, the legacy format
_NO_DOMID = 0xFFFFFFFF
# How libxenctrl gets at Xen, and what else there is under Xen: the kernel makes /proc/xen.
_DEVICES, _SIGNS = ("dev/xen/privcmd", "proc/xen/privcmd"), ("proc/xen", "sys/hypervisor/uuid")


class Toolstack:
    """One libxl context (``libxl_ctx_alloc``), for use as a context manager.

    Its calls are serialised: a second thread waits. :meth:`abort` does not wait. Nothing of the
    host process is touched: no signal handler, no other child; but nobody in it may reap children
    that are not his (``waitpid(-1)``). After ``os.fork()`` it is dead in the child.

    Beside the errors that it names, every call raises :class:`ClosedError` after :meth:`close`,
    :class:`ForkedError` in a child made by ``os.fork()``, and :class:`XenUnavailable` where
    SIGCHLD is ignored; so do those of its :class:`Domain` objects. Nothing was tried then.

    :param operation: goes with every log record of this context (logger ``pyxlsnap.libxl``), as
        does ``domain``.
    :raises XenUnavailable: not a Xen host, no rights, or SIGCHLD is ignored in this process.
    """

    def __init__(
        self,
        *,
        operation: str = "",
        domain: str = "",
    ) -> None:
        self._ctx: CData = ffi.NULL
        self._xenstore = Xenstore()
        self._pid = os.getpid()
        self._lock = threading.RLock()
        _refuse_ignored_sigchld()
        self._bridge = Bridge(operation=operation, domain=domain)
        ctx = ffi.new("libxl_ctx **")
        rc = C.libxl_ctx_alloc(ctx, C.LIBXL_VERSION, 0, self._bridge.logger)
        if rc:
            said = "; ".join(self._bridge.said())
            self._bridge.close()
            why = why_no_xen() or (
                f"does xenstored run, and is it the Xen that pyxlsnap was built for? ({said})"
            )
            raise XenUnavailable(f"cannot talk to Xen: {why}")
        self._ctx = ctx[0]
        self._bridge.attach(self._ctx)

    def close(self) -> None:
        """Free the context, its thread and its descriptors. Idempotent; a no-op after a fork."""
        if os.getpid() != self._pid:
            return
        with self._lock:
            if self._ctx != ffi.NULL:
                self._bridge.detach()
                C.libxl_ctx_free(self._ctx)
                self._ctx = ffi.NULL
            self._xenstore.close()
        self._bridge.close()

    @property
    def closed(self) -> bool:
        """:meth:`close` was called."""
        return bool(self._ctx == ffi.NULL)

    def __enter__(self) -> "Toolstack":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # The host

    def xen_version(self) -> tuple[int, int]:
        """Major and minor release of the running hypervisor (``libxl_get_version_info``)."""
        with self.calling() as ctx:
            info = C.libxl_get_version_info(ctx)
            return (info.xen_version_major, info.xen_version_minor)

    def xen_command_line(self) -> str:
        """The hypervisor's command line (``libxl_get_version_info``)."""
        with self.calling() as ctx:
            return text(C.libxl_get_version_info(ctx).commandline)

    def has_shadow_paging(self) -> bool:
        """Whether this Xen can log dirty pages of a PV guest (``libxl_physinfo.cap_shadow``).

        :raises XenError: libxl could not tell.
        """
        with self.calling() as ctx, struct("libxl_physinfo") as info:
            self.check(C.libxl_get_physinfo(ctx, info), "libxl_get_physinfo")
            return bool(info.cap_shadow)

    def free_memory_kb(self) -> int:
        """Memory that Xen can give to a new domain, KiB (``libxl_get_free_memory``).

        :raises XenError: libxl could not tell.
        """
        with self.calling() as ctx:
            free = ffi.new("uint64_t *")
            self.check(C.libxl_get_free_memory(ctx, free), "libxl_get_free_memory")
            return int(free[0])

    def needed_memory_kb(self, config: DomainConfig) -> int:
        """Memory that such a domain takes, KiB (``libxl_domain_need_memory``).

        :raises XenError: libxl could not tell, or does not take the configuration.
        """
        with self.calling() as ctx, self.parsed(config) as parsed:
            need = ffi.new("uint64_t *")
            rc = C.libxl_domain_need_memory(ctx, parsed, _NO_DOMID, need)
            self.check(rc, "libxl_domain_need_memory")
            return int(need[0])

    def shrink_dom0(self, by_kb: int) -> None:
        """Lower dom0's memory target by so many KiB (``libxl_set_memory_target``).

        Its memory follows by and by: see :meth:`wait_for_dom0`.

        :raises XenError: libxl could not, or will not leave dom0 so little; the target is as it
            was.
        """
        with self.calling() as ctx:
            rc = C.libxl_set_memory_target(ctx, 0, -by_kb, 1, 0)
            self.check(rc, "libxl_set_memory_target", domain="0")

    def wait_for_dom0(self, *, stalled_s: int) -> bool:
        """Wait for dom0 to come down to its memory target (``libxl_wait_for_memory_target``).

        However long it takes, as long as it gives some all the time. False: it has not given any
        for ``stalled_s`` seconds, and is not there yet.
        """
        with self.calling() as ctx:
            return bool(C.libxl_wait_for_memory_target(ctx, 0, stalled_s) == 0)

    # Domains

    def domains(self) -> list[DomainInfo]:
        """All domains, dom0 included (``libxl_list_domain``).

        :raises XenError: libxl could not tell.
        """
        with self.calling() as ctx:
            count = ffi.new("int *")
            found = C.libxl_list_domain(ctx, count)
            if found == ffi.NULL:
                self.check(C.ERROR_FAIL, "libxl_list_domain")
            try:
                return [domain_info(found[i]) for i in range(count[0])]
            finally:
                C.libxl_dominfo_list_free(found, count[0])

    def find(self, domain: str) -> Domain:
        """The domain of that name, domid or uuid; digits are a domid, as with xl.

        :raises DomainNotFound: there is none; it has the names that are like it.
        :raises XenError: libxl could not tell.
        """
        if domain.isascii() and domain.isdigit():  # "²" is a digit for Python, and no number
            number = domain.lstrip("0") or "0"
            found = [d for d in self.domains() if str(d.domid) == number]
        elif _UUID.fullmatch(domain):
            found = [d for d in self.domains() if d.uuid == domain.lower()]
        else:
            domid = self._domid_of(domain)
            found = [d for d in self.domains() if d.domid == domid]
        if not found:
            guests = [d.domid for d in self.domains() if d.domid]
            raise DomainNotFound.among(domain, filter(None, map(self.name_of, guests)))
        return Domain(self, found[0].domid, found[0].uuid, self.name_of(found[0].domid))

    def _domid_of(self, name: str) -> int | None:
        with self.calling() as ctx:
            domid = ffi.new("uint32_t *")
            rc = C.libxl_name_to_domid(ctx, c_string(name), domid)
            return int(domid[0]) if rc == 0 else None

    def name_of(self, domid: int) -> str:
        """A domain's name (``libxl_domid_to_name``); "" if it has none (any more)."""
        with self.calling() as ctx:
            return taken(C.libxl_domid_to_name(ctx, domid))

    def restore(self, config: DomainConfig, fd: int) -> Domain:
        """Make a domain from a configuration and the stream that ``fd`` stands at.

        ``libxl_domain_create_restore``. The domain is left paused: unpause it. A VM generation ID,
        if it has one, is a new one (``libxl_ms_vm_genid_generate``). On failure there
        is no new domain: what libxl leaves half-made after an abort is destroyed here.

        :param config: as the memory file has it; its domid is left out.
        :param fd: a regular file or pipe; on failure it stands somewhere in the stream.
        :raises Aborted: :meth:`abort` was called.
        :raises XenError: libxl could not: the configuration, the stream, the memory, or a name
            that is taken.
        """
        name = config.name
        with (
            self.calling() as ctx,
            self.parsed(config) as parsed,
            struct("libxl_domain_restore_params") as params,
        ):
            params.stream_version = _STREAM_V2
            rc = C.pyxlsnap_renew_genid(ctx, parsed)
            self.check(rc, "libxl_ms_vm_genid_generate", domain=name)
            parsed.c_info.domid = 0  # Xen chooses: the saved one may be in use, or used recently
            domid = ffi.new("uint32_t *", _NO_DOMID)
            rc = C.libxl_domain_create_restore(
                ctx, parsed, domid, fd, -1, params, ffi.NULL, ffi.NULL
            )
            try:
                self.check(rc, "libxl_domain_create_restore", domain=name)
            except Aborted:
                if domid[0] != _NO_DOMID:
                    C.libxl_domain_destroy(ctx, domid[0], ffi.NULL)
                raise
        return self.find(str(int(domid[0])))

    def create(self, config: DomainConfig) -> Domain:
        """Make a domain anew, as it boots (``libxl_domain_create_new``). It is left paused.

        :raises XenError: libxl could not; there is no new domain.
        """
        with self.calling() as ctx, self.parsed(config) as parsed:
            domid = ffi.new("uint32_t *", _NO_DOMID)
            rc = C.libxl_domain_create_new(ctx, parsed, domid, ffi.NULL, ffi.NULL)
            self.check(rc, "libxl_domain_create_new", domain=config.name)
        return self.find(str(int(domid[0])))

    @contextmanager
    def watching(self) -> Iterator[DomainWatch]:
        """Hear of domains that shut down or go (xenstore's ``@releaseDomain``), in a ``with``.

        ``wait()`` of what it gives returns when one may have; ``wake()`` ends that from any thread.

        :raises XenError: xenstore cannot be watched.
        :meta private:
        """
        self._usable()
        watch = DomainWatch()
        try:
            yield watch
        finally:
            watch.close()

    def abort(self) -> bool:
        """Ask the long call under way on this context to stop (``libxl_ao_abort``).

        Returns false when there was none. The call ends with :class:`Aborted`, or succeeds after
        all. To be called from another thread.
        """
        self._usable()
        return C.libxl_ao_abort(self._ctx, ffi.NULL) in (0, C.ERROR_ABORTED)

    # For domain.py

    @contextmanager
    def calling(self, on_progress: OnProgress | None = None) -> Iterator[CData]:
        """The ``libxl_ctx`` for one call; log lines are collected for its error.

        :param on_progress: called, on a thread of ours, with what libxl says of its progress.
        :meta private:
        """
        with self._lock:
            self._usable()
            _refuse_ignored_sigchld()
            self._bridge.begin()
            self._bridge.on_progress = on_progress
            try:
                yield self._ctx
            finally:
                self._bridge.drain()
                self._bridge.on_progress = None

    def check(self, rc: int, operation: str, *, domain: str = "") -> None:
        """Turn a call's return code into an exception that carries what libxl said.

        :raises XenError: or one of its kin: ``rc`` is not 0.
        :meta private:
        """
        if rc == 0:
            return
        log = self._bridge.said()
        if self._bridge.disaster:
            log = (*log, f"libxl is broken: {self._bridge.disaster}")
        check(rc, operation, domain=domain, log=log)

    @contextmanager
    def parsed(self, config: DomainConfig) -> Iterator[CData]:
        """A configuration as libxl's own struct.

        :raises XenError: libxl does not take it.
        :meta private:
        """
        with struct("libxl_domain_config") as parsed:
            rc = C.libxl_domain_config_from_json(self._ctx, parsed, c_string(config.json))
            self.check(rc, "libxl_domain_config_from_json", domain=config.name)
            yield parsed

    def xenstore_read(self, path: str) -> str | None:
        """A xenstore node's value; ``None`` when there is no such node.

        :raises XenError: xenstore cannot be reached.
        """
        with self._lock:
            self._usable()
            return self._xenstore.read(path)

    def xenstore_list(self, path: str) -> list[str]:
        """The names below a xenstore node; empty when there is no such node.

        :raises XenError: xenstore cannot be reached.
        """
        with self._lock:
            self._usable()
            return self._xenstore.list(path)

    def _usable(self) -> None:
        if os.getpid() != self._pid:
            raise ForkedError("this Toolstack belongs to the parent process: open one of your own")
        if self._ctx == ffi.NULL:
            raise ClosedError("this Toolstack is closed")


def why_no_xen(root: Path = Path("/")) -> str:
    """Why libxl cannot be used here, and the way out; "" if that cannot be told."""
    device = next((d for d in _DEVICES if (root / d).exists()), "")
    if not device and not any((root / sign).exists() for sign in _SIGNS):
        return "this machine does not run under Xen: run it in dom0 of one that does"
    capabilities = root / "proc/xen/capabilities"
    if capabilities.exists() and "control_d" not in capabilities.read_text():
        return "this is a guest of Xen: run it in dom0"
    if device and not os.access(root / device, os.R_OK | os.W_OK):
        return f"no right to use /{device}: run it as root"
    return ""


def _refuse_ignored_sigchld() -> None:
    if C.pyxlsnap_sigchld_is_ignored():
        raise XenUnavailable(
            "SIGCHLD is ignored in this process (SIG_IGN or SA_NOCLDWAIT), so libxl would lose its "
            "children: restore SIGCHLD to its default first"
        )
