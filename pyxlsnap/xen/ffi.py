"""The edge: the only module that imports the compiled extension.

``C`` is the C library: a capital letter, so that a crossing shows in a diff. Return codes become
exceptions in :func:`check` and nowhere else; C strings become ``str`` here; every libxl struct
lives inside a ``with`` that disposes of it. cdata goes to bridge.py, xenstore.py,
toolstack.py and domain.py, and never further.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pyxlsnap.errors import Aborted, DomainNotFound, GuestTimeout, XenError
from pyxlsnap.model import DomainInfo

try:
    from pyxlsnap.xen._ffi import ffi, lib
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
    "struct",
    "taken",
    "text",
]

C = lib
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
