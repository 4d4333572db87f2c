"""The edge: the only module that imports the compiled extension.

``C`` is the C library: a capital letter, so that a crossing shows in a diff. Return codes become
exceptions in :func:`check` and nowhere else; C strings become ``str`` here; every libxl struct
lives inside a ``with`` that disposes of it. cdata goes to bridge.py, xenstore.py,
toolstack.py and domain.py, and never further.
"""

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pyxlsnap.errors import Aborted, ConfigError, DomainNotFound, GuestTimeout, XenError
from pyxlsnap.model import Disk, DomainInfo

try:
    from pyxlsnap._ffi import ffi, lib
except ImportError as e:
    raise ImportError(f"{e}: pyxlsnap is built for one release of Xen: install it again") from e

__all__ = [
    "XEN_RELEASE",
    "C",
    "CData",
    "c_string",
    "check",
    "domain_info",
    "ffi",
    "parse_cfg",
    "parse_disk",
    "struct",
    "taken",
    "text",
]

C = lib
_COMPLAINT = 200
#: bytes; the longest path has 4096, and libxlutil's scanner writes beyond its memory at 16384
_DISK_LIMIT = 8192
CData = Any  # an opaque cffi object

#: the Xen release the extension was compiled against
XEN_RELEASE = (C.PYXLSNAP_XEN_MAJOR, C.PYXLSNAP_XEN_MINOR)


def text(pointer: CData) -> str:
    """A C string as ``str``; NULL is the empty string."""
    found = ffi.string(pointer) if pointer != ffi.NULL else b""
    assert isinstance(found, bytes)  # str only for wchar_t
    return found.decode("utf-8", "surrogateescape")


def taken(pointer: CData) -> str:
    """A malloc'ed C string as ``str``; the memory is freed."""
    try:
        return text(pointer)
    finally:
        C.free(pointer)


def c_string(value: str) -> CData:
    """``str`` as a C string that lives as long as the result is referenced."""
    return ffi.new("char[]", value.encode("utf-8", "surrogateescape"))


def check(rc: int, operation: str, *, domain: str = "", log: Sequence[str] = ()) -> None:
    """Raise the exception for a libxl return code; return if it is 0.

    :param log: the libxl log lines of this very call; the last error among them makes the message.
    :raises DomainNotFound: ERROR_DOMAIN_NOTFOUND
    :raises Aborted: ERROR_ABORTED
    :raises GuestTimeout: ERROR_GUEST_TIMEDOUT, which libxl also gives when its helper failed early
    :raises XenError: everything else
    """
    if rc == 0:
        return
    said = next((line for line in reversed(log) if line), "")
    code = f"{text(C.libxl_error_to_string(rc)) or 'unknown error'} ({rc})"
    of = f" of {domain}" if domain else ""
    message = f"{operation}{of} failed: {code}" + (f": {said}" if said else "")
    if rc == C.ERROR_DOMAIN_NOTFOUND:
        raise DomainNotFound(f"there is no domain {domain} (see `xl list`)", domain=domain)
    cls = {C.ERROR_ABORTED: Aborted, C.ERROR_GUEST_TIMEDOUT: GuestTimeout}.get(rc, XenError)
    raise cls(message, rc=rc, operation=operation, domain=domain, log=log)


@contextmanager
def struct(name: str) -> Iterator[CData]:
    """A libxl struct between its ``_init`` and its ``_dispose``."""
    value = ffi.new(f"{name} *")
    getattr(C, f"{name}_init")(value)
    try:
        yield value
    finally:
        getattr(C, f"{name}_dispose")(value)


def uuid_text(uuid: CData) -> str:
    """A libxl_uuid in the usual form."""
    h = bytes(ffi.buffer(uuid.uuid)).hex()
    return "-".join((h[:8], h[8:12], h[12:16], h[16:20], h[20:]))


def domain_info(info: CData) -> DomainInfo:
    """A libxl_dominfo as a value."""
    reason = text(C.libxl_shutdown_reason_to_string(info.shutdown_reason)) if info.shutdown else ""
    return DomainInfo(
        domid=info.domid,
        uuid=uuid_text(info.uuid),
        paused=info.paused,
        shutdown=info.shutdown,
        shutdown_reason=reason,
        dying=info.dying,
        memory_kb=info.current_memkb,
        has_run=info.cpu_time > 0,
    )


@contextmanager
def _config_reader(file: str) -> Iterator[tuple[CData, CData]]:
    """libxlutil's parser, and the report it complains to."""
    report = C.pyxlsnap_report_new()
    if report == ffi.NULL:
        raise MemoryError
    try:
        # The file's name is ours to say: ConfigError does.
        config = C.xlu_cfg_init(C.pyxlsnap_report_file(report), c_string("line"))
        if config == ffi.NULL:
            raise MemoryError
        try:
            yield config, report
        finally:
            C.xlu_cfg_destroy(config)
    finally:
        C.pyxlsnap_report_free(report)


def _complaint(report: CData, rc: int) -> str:
    """The first thing libxlutil said: it goes on for every line, and quotes what it read."""
    said = text(C.pyxlsnap_report_text(report)).split("\n")[0].removeprefix("line: ")
    return said[:_COMPLAINT] or f"libxlutil: {errno.errorcode.get(rc, str(rc))}"


def parse_cfg(
    data: bytes, *, file: str, strings: Sequence[str], lists: Sequence[str]
) -> dict[str, str | list[str]]:
    """Parse xl's configuration syntax with libxlutil and return those of the keys that are set.

    :param file: the name to use in errors.
    :raises ConfigError: a syntax error, or a value of the wrong type.
    """
    if b"\0" in data:  # an assertion of libxlutil would end this process
        raise ConfigError("contains a NUL character", file=file)
    found: dict[str, str | list[str]] = {}
    with _config_reader(file) as (config, report):
        rc = C.xlu_cfg_readdata(config, data, len(data))
        if rc:
            raise ConfigError(_complaint(report, rc), file=file)
        value = ffi.new("const char **")
        for key in strings:
            rc = C.xlu_cfg_get_string(config, c_string(key), value, 0)
            if rc == 0:
                found[key] = text(value[0])
            elif rc != errno.ESRCH:
                raise ConfigError("must be a string", file=file, item=key)
        for key in lists:
            items = _list(config, key, file)
            if items is not None:
                found[key] = items
    return found


def _list(config: CData, key: str, file: str) -> list[str] | None:
    items, count = ffi.new("XLU_ConfigList **"), ffi.new("int *")
    rc = C.xlu_cfg_get_list(config, c_string(key), items, count, 0)
    if rc == errno.ESRCH:
        return None
    if rc:
        raise ConfigError("must be a list", file=file, item=key)
    pointers = [C.xlu_cfg_get_listitem(items[0], i) for i in range(count[0])]
    if ffi.NULL in pointers:
        raise ConfigError("each item must be a string", file=file, item=key)
    return [text(p) for p in pointers]


def parse_disk(spec: str, *, file: str) -> Disk:
    """Parse one xl disk specification with ``xlu_disk_parse``.

    :raises ConfigError: libxlutil does not take it, or it is longer than any real one.
    """
    if len(spec.encode("utf-8", "surrogateescape")) > _DISK_LIMIT:
        raise ConfigError(f"a disk of more than {_DISK_LIMIT} bytes", file=file)
    with _config_reader(file) as (config, report), struct("libxl_device_disk") as disk:
        line = c_string(spec)
        rc = C.xlu_disk_parse(config, 1, ffi.new("const char *[]", [line]), disk)
        if rc:
            raise ConfigError(_complaint(report, rc), file=file, item=f"disk {spec!r}")
        return Disk(
            vdev=text(disk.vdev),
            target=text(disk.pdev_path),
            format=text(C.libxl_disk_format_to_string(disk.format)),
            backend=text(C.libxl_disk_backend_to_string(disk.backend)),
            readwrite=bool(disk.readwrite),
            cdrom=bool(disk.is_cdrom),
            script=text(disk.script),
            backend_domain=text(disk.backend_domname),
        )
