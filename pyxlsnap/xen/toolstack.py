"""The host as libxl shows it: its memory, its domains, and how a domain is restored or created.

A :class:`Toolstack` is cheap (some 10 ms): use one for each thread and each long operation.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyxlsnap import paths
from pyxlsnap.errors import ConfigError, DomainNotFound, PyxlsnapError, XenError
from pyxlsnap.linux.daemons import may_run
from pyxlsnap.model import DomainConfig, DomainInfo
from pyxlsnap.xen.compiled import compiled_device_model, compiled_places
from pyxlsnap.xen.context import Context
from pyxlsnap.xen.domain import Domain
from pyxlsnap.xen.ffi import C, CData, c_string, ffi, struct, text
from pyxlsnap.xen.xenstore import DomainWatch
from pyxlsnap.xen.xlcfg import parse_cfg

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_STREAM_V2 = 2  # libxl's own default is 1, the legacy format
_NO_DOMID = 0xFFFFFFFF
_NO_POOL = 0xFFFFFFFF


class Toolstack:
    """One libxl context (``libxl_ctx_alloc``), for use as a context manager.

    Its calls are serialised: a second thread waits. :meth:`abort` does not wait. It changes no
    signal handler of the process and reaps no other child. In return, no code in the process may
    reap children it did not start (``waitpid(-1)``). A child made by ``os.fork()`` cannot use it.

    Beside the errors that it names, every call raises :class:`ClosedError` after :meth:`close`,
    :class:`ForkedError` in a child made by ``os.fork()``, and :class:`XenUnavailable` where
    SIGCHLD is ignored. The calls of its :class:`Domain` objects raise them, too. Nothing was tried
    then.

    :param operation: added to every log record of this context (logger ``pyxlsnap.libxl``), as is
        ``domain``.
    :raises XenUnavailable: not a Xen host, no rights, another release of Xen than this package was
        built for, or SIGCHLD is ignored in this process.
    """

    def __init__(self, *, operation: str = "", domain: str = "") -> None:
        self._context = Context(operation=operation, domain=domain)

    def close(self) -> None:
        """Free the context, its thread and its descriptors. Idempotent; a no-op after a fork."""
        self._context.close()

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._context.closed

    def __enter__(self) -> "Toolstack":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # The host

    def xen_version(self) -> tuple[int, int]:
        """Major and minor release of the running hypervisor (``libxl_get_version_info``)."""
        with self._context.calling() as ctx:
            info = C.libxl_get_version_info(ctx)
            return (info.xen_version_major, info.xen_version_minor)

    def xen_command_line(self) -> str:
        """The hypervisor's command line (``libxl_get_version_info``)."""
        with self._context.calling() as ctx:
            return text(C.libxl_get_version_info(ctx).commandline)

    def has_shadow_paging(self) -> bool:
        """Whether this Xen can log dirty pages of a PV guest (``libxl_physinfo.cap_shadow``).

        :raises XenError: libxl could not read it.
        """
        with self._context.calling() as ctx, struct("libxl_physinfo") as info:
            self._context.check(C.libxl_get_physinfo(ctx, info), "libxl_get_physinfo")
            return bool(info.cap_shadow)

    def free_memory_kb(self) -> int:
        """Memory that Xen can give to a new domain, KiB (``libxl_get_free_memory``).

        :raises XenError: libxl could not read it.
        """
        with self._context.calling() as ctx:
            free = ffi.new("uint64_t *")
            self._context.check(C.libxl_get_free_memory(ctx, free), "libxl_get_free_memory")
            return int(free[0])

    def needed_memory_kb(self, config: DomainConfig) -> int:
        """Memory that a domain of this configuration takes, KiB (``libxl_domain_need_memory``).

        :raises XenError: libxl could not compute it, or does not accept the configuration.
        """
        with self._context.calling() as ctx, self._context.parsed(config) as parsed:
            need = ffi.new("uint64_t *")
            rc = C.libxl_domain_need_memory(ctx, parsed, _NO_DOMID, need)
            self._context.check(rc, "libxl_domain_need_memory")
            return int(need[0])

    def autoballoon(self) -> str:
        """The setting ``autoballoon`` of xl.conf(5); "auto", its default, if it is not readable.

        :meta private:
        """
        return self._xl_conf("autoballoon") or "auto"

    def xl_lock(self) -> Path:
        """The file that xl locks while it starts a domain: ``lockfile`` of xl.conf(5).

        :meta private:
        """
        return Path(self._xl_conf("lockfile") or paths.XL_LOCK)

    def _xl_conf(self, key: str) -> str:
        """A setting of xl.conf(5); "" if it is not set, or the file is not readable."""
        self._context.check_usable()
        file = paths.XL_CONF
        try:
            found = parse_cfg(file.read_bytes(), file=str(file), strings=[key], lists=[])
        except (OSError, ConfigError):
            return ""
        return str(found.get(key, ""))

    def device_model(self) -> str:
        """The path of the QEMU that libxl starts; "" if it is not known.

        A domain may have another one (``device_model_override``).

        :meta private:
        """
        self._context.check_usable()
        return compiled_device_model()

    def places(self) -> paths.Places:
        """Where libxl writes, and what else it starts.

        :meta private:
        """
        self._context.check_usable()
        return compiled_places()

    def has_console_daemon(self) -> bool:
        """Whether a daemon may serve the consoles; false if certainly not.

        :meta private:
        """
        elsewhere = self.xenstore_read("/tool/xenconsoled/domid") or "0"
        return elsewhere != "0" or may_run("xenconsoled")

    def pool_cpus(self, pool: str) -> frozenset[int] | None:
        """The CPUs of a CPU pool (``libxl_cpupool_info``); ``None`` if there is no such pool.

        :param pool: its name or number; "": that of a domain that names none.
        """
        with self._context.calling() as ctx, struct("libxl_cpupoolinfo") as info:
            found = ffi.new("uint32_t *", _NO_POOL if pool else 0)
            if pool:
                C.libxl_cpupool_qualifier_to_cpupoolid(ctx, c_string(pool), found, ffi.NULL)
            if not C.libxl_cpupoolid_is_valid(ctx, found[0]):
                return None
            if C.libxl_cpupool_info(ctx, info, found[0]):
                return None
            bits = int.from_bytes(ffi.buffer(info.cpumap.map, info.cpumap.size), "little")
            return frozenset(cpu for cpu in range(bits.bit_length()) if bits >> cpu & 1)

    def shrink_dom0(self, by_kb: int) -> None:
        """Lower dom0's memory target by this many KiB (``libxl_set_memory_target``).

        A negative number raises it.

        Its memory follows gradually: see :meth:`wait_for_dom0`.

        :raises XenError: libxl could not, or would leave dom0 too little; the target is unchanged.
        """
        with self._context.calling() as ctx:
            rc = C.libxl_set_memory_target(ctx, 0, -by_kb, 1, 0)
            self._context.check(rc, "libxl_set_memory_target", domain="0")

    def wait_for_dom0(self, *, stalled_s: int) -> bool:
        """Wait until dom0 has come down to its memory target (``libxl_wait_for_memory_target``).

        There is no limit while dom0 keeps giving memory. False: dom0 has given none for
        ``stalled_s`` seconds, and its memory is still above the target.
        """
        with self._context.calling() as ctx:
            return bool(C.libxl_wait_for_memory_target(ctx, 0, stalled_s) == 0)

    # Domains

    def domains(self) -> list[DomainInfo]:
        """All domains, dom0 included (``libxl_list_domain``).

        :raises XenError: libxl could not list them.
        """
        return self._context.domains()

    def find(self, domain: str) -> Domain:
        """The domain of that name, domid or uuid; digits are a domid, as with xl.

        :raises DomainNotFound: there is no such domain; the error has similar names.
        :raises XenError: libxl could not look it up.
        """
        if found := self.find_if_there(domain):
            return found
        names = [guest.present_name() for guest in self.list_guests()]
        raise DomainNotFound.among(domain, names)

    def find_if_there(self, domain: str) -> Domain | None:
        """The same; ``None`` if there is no such domain."""
        if domain.isascii() and domain.isdigit():  # "²" is a digit for Python, but not a number
            number = domain.lstrip("0") or "0"
            found = [d for d in self.domains() if str(d.domid) == number]
        elif _UUID.fullmatch(domain):
            found = [d for d in self.domains() if d.uuid == domain.lower()]
        else:
            domid = self._context.domid_of(domain)
            found = [d for d in self.domains() if d.domid == domid]
        if not found:
            return None
        domid, uuid = found[0].domid, found[0].uuid
        return Domain(self._context, domid, uuid, self.name_of(domid))

    def list_guests(self) -> list[Domain]:
        """All domains but dom0. Their names are "": :meth:`Domain.present_name` asks for one."""
        return [Domain(self._context, d.domid, d.uuid, "") for d in self.domains() if d.domid]

    def name_of(self, domid: int) -> str:
        """A domain's name (``libxl_domid_to_name``); "" if there is no name or no such domain."""
        return self._context.name_of(domid)

    def restore(self, config: DomainConfig, fd: int) -> Domain:
        """Make a domain from a configuration and the stream at the position of ``fd``.

        ``libxl_domain_create_restore``. The domain is left paused: unpause it. A domain with a VM
        generation ID gets a new one (``libxl_ms_vm_genid_generate``). On failure there is no new
        domain: if libxl leaves a half-made domain, it is destroyed here.

        :param config: as stored in the memory file; its domid is ignored. The domain may have its
            memory target and 1 MiB. For a stream with more, raise the target and lower it again
            afterwards (:meth:`Domain.lower_memory_target`), as a revert does.
        :param fd: a regular file or pipe; on failure its position in the stream is undefined.
        :raises Aborted: :meth:`abort` was called.
        :raises XenError: libxl could not: the configuration, the stream, the memory, or a name
            that is taken.
        """
        context = self._context
        with (
            context.calling() as ctx,
            context.parsed(config) as parsed,
            struct("libxl_domain_restore_params") as params,
        ):
            params.stream_version = _STREAM_V2
            rc = C.pyxlsnap_renew_genid(ctx, parsed)
            context.check(rc, "libxl_ms_vm_genid_generate", domain=config.name)
            # Xen chooses the domid: the saved one may be in use, or was used recently.
            parsed.c_info.domid = 0
            domid = ffi.new("uint32_t *", _NO_DOMID)
            rc = C.libxl_domain_create_restore(
                ctx, parsed, domid, fd, -1, params, ffi.NULL, ffi.NULL
            )
            with self._removing(domid, config):
                context.check(rc, "libxl_domain_create_restore", domain=config.name)
                return self.find(str(int(domid[0])))

    def create(self, config: DomainConfig) -> Domain:
        """Make a new domain that boots (``libxl_domain_create_new``). It is left paused.

        :raises XenError: libxl could not; there is no new domain.
        """
        with self._context.calling() as ctx, self._context.parsed(config) as parsed:
            domid = ffi.new("uint32_t *", _NO_DOMID)
            rc = C.libxl_domain_create_new(ctx, parsed, domid, ffi.NULL, ffi.NULL)
            with self._removing(domid, config):
                self._context.check(rc, "libxl_domain_create_new", domain=config.name)
                return self.find(str(int(domid[0])))

    @contextmanager
    def _removing(self, domid: CData, config: DomainConfig) -> Iterator[None]:
        """Remove the new domain if the body fails: libxl removes it itself only after some errors.

        Only the domid tells this domain from others: another program may have started a domain with
        the same uuid.
        """
        try:
            yield
        except PyxlsnapError as e:
            try:
                self._remove_new(int(domid[0]), config.uuid)
            except XenError as again:
                raise XenError(
                    f"{e}; the incomplete domain {int(domid[0])} could not be removed ({again}): "
                    f"destroy it (xl destroy {int(domid[0])})",
                    domain=config.name,
                ) from e
            raise

    def _remove_new(self, domid: int, uuid: str) -> None:
        for found in self.domains():
            if (found.domid, found.uuid, found.has_run) == (domid, uuid.lower(), False):
                with self._context.calling() as ctx:
                    rc = C.libxl_domain_destroy(ctx, domid, ffi.NULL)
                    self._context.check(rc, "libxl_domain_destroy", domain=uuid)

    @contextmanager
    def watching(self) -> Iterator[DomainWatch]:
        """Watch for domains that shut down or end (xenstore's ``@releaseDomain``), in a ``with``.

        ``wait()`` of the result returns when one may have; ``wake()`` ends a wait from any thread.

        :raises XenError: xenstore cannot be watched.
        :meta private:
        """
        self._context.check_usable()
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
        return self._context.abort()

    # xenstore

    def xenstore_read(self, path: str) -> str | None:
        """A xenstore node's value; ``None`` if there is no such node.

        :raises XenError: xenstore cannot be reached.
        """
        return self._context.xenstore_read(path)

    def xenstore_list(self, path: str) -> list[str]:
        """The names below a xenstore node; empty if there is no such node.

        :raises XenError: xenstore cannot be reached.
        """
        return self._context.xenstore_list(path)
