"""One libxl context: opened, called, aborted and closed by the rules of libxl.md, section 5."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from pyxlsnap import paths
from pyxlsnap.errors import ClosedError, ForkedError, XenUnavailable
from pyxlsnap.linux.there import exists
from pyxlsnap.model import DomainConfig, DomainInfo
from pyxlsnap.results import OnProgress
from pyxlsnap.xen.callbacks import Bridge
from pyxlsnap.xen.ffi import (
    XEN_RELEASE,
    C,
    CData,
    c_string,
    check,
    domain_info,
    ffi,
    struct,
    take_string,
)
from pyxlsnap.xen.xenstore import NodeWatch, Xenstore, empty_node

# The device nodes through which libxenctrl reaches Xen.
_DEVICES = ("dev/xen/privcmd", "proc/xen/privcmd")
# Files that exist in every domain. The kernel makes the directory /proc/xen.
_SIGNS = ("proc/xen", "sys/hypervisor/uuid")


class Context:
    """A ``libxl_ctx`` with its log messages, its child processes and a xenstore connection.

    A :class:`~pyxlsnap.xen.toolstack.Toolstack` and its :class:`~pyxlsnap.xen.domain.Domain`
    objects share one context. Calls are serialised: a second thread waits. :meth:`abort` does not
    wait. Every call raises :class:`ClosedError` after :meth:`close`, :class:`ForkedError` in a
    child made by ``os.fork()``, and :class:`XenUnavailable` where SIGCHLD is ignored.

    :param operation: added to every log record of this context, as is ``domain``.
    :raises XenUnavailable: not a Xen host, no rights, another release of Xen than this package was
        built for, or SIGCHLD is ignored in this process.
    """

    def __init__(self, *, operation: str = "", domain: str = "") -> None:
        self._ctx: CData = ffi.NULL
        self._xenstore = Xenstore()
        self._pid = os.getpid()
        self._lock = threading.RLock()
        _refuse_ignored_sigchld()
        if why := why_another_xen(XEN_RELEASE):
            raise XenUnavailable(why)
        self._bridge = Bridge(operation=operation, domain=domain)
        ctx = ffi.new("libxl_ctx **")
        if C.libxl_ctx_alloc(ctx, C.LIBXL_VERSION, 0, self._bridge.logger):
            said = "; ".join(self._bridge.said())
            self._bridge.close()
            why = why_no_xen() or (
                f"check that xenstored runs, and that pyxlsnap was built for this Xen ({said})"
            )
            raise XenUnavailable(f"cannot talk to Xen: {why}")
        self._ctx = ctx[0]
        self._bridge.attach(self._ctx)

    def sibling(self, *, operation: str, domain: str) -> Self:
        """Open another context, for a call while a long call of this context is under way."""
        return type(self)(operation=operation, domain=domain)

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
        """Whether :meth:`close` was called."""
        return bool(self._ctx == ffi.NULL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def check_usable(self) -> None:
        """Make sure that this process may use the context.

        :raises ForkedError: the context belongs to the parent process.
        :raises ClosedError: :meth:`close` was called.
        """
        if os.getpid() != self._pid:
            raise ForkedError("this Toolstack belongs to the parent process: open a new one here")
        if self.closed:
            raise ClosedError("this Toolstack is closed")

    @contextmanager
    def calling(self, on_progress: OnProgress | None = None) -> Iterator[CData]:
        """The ``libxl_ctx`` for one call. The call's log lines are collected for its error.

        :param on_progress: called on another thread when libxl reports progress.
        """
        with self._lock:
            self.check_usable()
            _refuse_ignored_sigchld()
            self._bridge.begin()
            self._bridge.on_progress = on_progress
            try:
                yield self._ctx
            finally:
                self._bridge.drain()
                self._bridge.on_progress = None

    def check(self, rc: int, operation: str, *, domain: str = "") -> None:
        """Turn a call's return code into an exception that carries the log lines of the call.

        :raises XenError: or a subclass, or :class:`DomainNotFound`: ``rc`` is not 0.
        """
        if rc == 0:
            return
        log = self._bridge.said()
        if self._bridge.disaster is not None:
            log = (*log, f"libxl is broken: {self._bridge.disaster}")
        check(rc, operation, domain=domain, log=log)

    def abort(self) -> bool:
        """Ask the long call under way to stop (``libxl_ao_abort``); false if there is none.

        To be called from another thread.
        """
        self.check_usable()
        return C.libxl_ao_abort(self._ctx, ffi.NULL) in (0, C.ERROR_ABORTED)

    @contextmanager
    def parsed(self, config: DomainConfig) -> Iterator[CData]:
        """A configuration as libxl's own struct.

        :raises XenError: libxl does not accept the configuration.
        """
        with struct("libxl_domain_config") as parsed:
            rc = C.libxl_domain_config_from_json(self._ctx, parsed, c_string(config.json))
            self.check(rc, "libxl_domain_config_from_json", domain=config.name)
            yield parsed

    def domains(self) -> list[DomainInfo]:
        """All domains, dom0 included (``libxl_list_domain``).

        :raises XenError: libxl could not list them.
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

    def name_of(self, domid: int) -> str:
        """A domain's name (``libxl_domid_to_name``); "" if there is no name or no such domain."""
        with self.calling() as ctx:
            return take_string(C.libxl_domid_to_name(ctx, domid))

    def domid_of(self, name: str) -> int | None:
        """The domid of a name (``libxl_name_to_domid``); ``None`` if no domain has the name."""
        with self.calling() as ctx:
            domid = ffi.new("uint32_t *")
            rc = C.libxl_name_to_domid(ctx, c_string(name), domid)
            return int(domid[0]) if rc == 0 else None

    def xenstore_read(self, path: str) -> str | None:
        """A xenstore node's value; ``None`` if there is no such node.

        :raises XenError: xenstore cannot be reached.
        """
        with self._lock:
            self.check_usable()
            return self._xenstore.read(path)

    def xenstore_empty(self, path: str, value: str) -> bool:
        """Make a xenstore node empty if it has this value; false if it has another or none.

        :raises XenError: xenstore cannot be reached or written to.
        """
        with self._lock:
            self.check_usable()
            return empty_node(path, value)

    def xenstore_list(self, path: str) -> list[str]:
        """The names below a xenstore node; empty if there is no such node.

        :raises XenError: xenstore cannot be reached.
        """
        with self._lock:
            self.check_usable()
            return self._xenstore.list(path)

    def xenstore_watch(self, *paths: str) -> NodeWatch:
        """Notice changes at these nodes and below, in a ``with``. It has its own connection.

        :raises XenError: xenstore cannot be watched.
        """
        self.check_usable()
        return NodeWatch(paths)


def why_no_xen(root: Path = Path("/")) -> str | None:
    """Why libxl cannot be used on this machine, and what to do; ``None`` if no reason is found."""
    device = next((d for d in _DEVICES if exists(root / d)), None)
    if device is None and not any(exists(root / sign) for sign in _SIGNS):
        return "this machine does not run under Xen: run pyxlsnap in the dom0 of a Xen host"
    capabilities = root / "proc/xen/capabilities"
    if exists(capabilities) and "control_d" not in capabilities.read_text():
        return "this is a guest of Xen: run pyxlsnap in dom0"
    if device is not None and not os.access(root / device, os.R_OK | os.W_OK):
        return f"no permission to use /{device}: run pyxlsnap as root"
    return None


def why_another_xen(built: tuple[int, int], sys: Path | None = None) -> str | None:
    """Why this package is not that of the Xen that runs, and what to do; ``None`` if it is.

    Debian keeps the libxl of the release before when it upgrades Xen. That libxl loads, but its
    calls fail with errors that do not tell why.

    :param built: the release of Xen that the package was built for.
    :param sys: the kernel's /sys.
    """
    directory = (sys or paths.SYS) / "hypervisor/version"
    try:
        runs = tuple(int((directory / name).read_text()) for name in ("major", "minor"))
    except (OSError, ValueError):  # the kernel does not say it
        return None
    if runs == built:
        return None
    ours, theirs = ("{}.{}".format(*release) for release in (built, runs))
    return (
        f"this pyxlsnap is built for Xen {ours}, and Xen {theirs} runs: install the pyxlsnap that "
        f"is built for Xen {theirs}, or boot Xen {ours}"
    )


def _refuse_ignored_sigchld() -> None:
    if C.pyxlsnap_sigchld_is_ignored():
        raise XenUnavailable(
            "SIGCHLD is ignored in this process (SIG_IGN or SA_NOCLDWAIT), so libxl would lose its "
            "children: restore SIGCHLD to its default first"
        )
