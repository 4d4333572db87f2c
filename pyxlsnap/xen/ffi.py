"""The edge: the only module that imports the compiled extension.

``C`` is the C library: a capital letter, so that a diff shows each call into C. Only :func:`check`
turns return codes into exceptions. C strings become ``str`` here. Every libxl struct lives inside
a ``with`` that disposes of it. cdata stays within this folder.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from pyxlsnap.errors import Aborted, DomainNotFound, GuestTimeout, XenError
from pyxlsnap.model import DomainInfo
from pyxlsnap.text import bytes_of, text_of

try:
    from pyxlsnap.xen._ffi import ffi, lib
except ImportError as e:
    raise ImportError(f"{e}: install the pyxlsnap that is built for this release of Xen") from e

__all__ = [
    "XEN_RELEASE",
    "C",
    "CData",
    "c_string",
    "check",
    "domain_info",
    "ffi",
    "struct",
    "take_string",
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
    return text_of(found)


def take_string(pointer: CData) -> str:
    """A C string that the caller owns, as ``str``; its memory is freed."""
    try:
        return text(pointer)
    finally:
        C.free(pointer)


def c_string(value: str) -> CData:
    """A ``str`` as a C string, whose memory lives as long as the result is referenced."""
    return ffi.new("char[]", bytes_of(value))


def check(rc: int, operation: str, *, domain: str = "", log: Sequence[str] = ()) -> None:
    """Raise the exception for a libxl return code; return if it is 0.

    :param log: libxl's log lines of this call; the last one ends the message.
    :raises DomainNotFound: ERROR_DOMAIN_NOTFOUND
    :raises Aborted: ERROR_ABORTED
    :raises GuestTimeout: ERROR_GUEST_TIMEDOUT; libxl also returns it when its helper failed early
    :raises XenError: any other code
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
    """A libxl_uuid as text with hyphens."""
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
        cpu_seconds=info.cpu_time / 1e9,
    )
