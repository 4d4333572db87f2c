"""The limits of this process (``ulimit``): an operation must not end half-way because of them."""

import resource

from pyxlsnap.errors import Refused

# The caller may be a shell, a batch job or a service with small limits. libxl's children, and the
# QEMU of a restored domain, have the limits of this process.
_UNLIMITED = {
    resource.RLIMIT_FSIZE: ("the size of files", "f"),
    resource.RLIMIT_CPU: ("processor time", "t"),
    resource.RLIMIT_AS: ("virtual memory", "v"),
    resource.RLIMIT_DATA: ("data in memory", "d"),
}
_OPEN_FILES, _LEAST_OPEN_FILES = 4096, 256  # for a QEMU with many disks; for us


def raise_limits() -> None:
    """Raise the limits of this process, as far as it may: root may raise all."""
    for limit in _UNLIMITED:
        _raise(limit, resource.RLIM_INFINITY)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _OPEN_FILES:
        _raise(resource.RLIMIT_NOFILE, max(hard, _OPEN_FILES))


def refuse_limits() -> None:
    """:raises Refused: this process still has a limit with which a revert may fail half-way."""
    for limit, (what, option) in _UNLIMITED.items():
        if resource.getrlimit(limit)[0] != resource.RLIM_INFINITY:
            raise _low(what, option, "unlimited")
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < _LEAST_OPEN_FILES:
        raise _low("open files", "n", str(_OPEN_FILES))


def _low(what: str, option: str, wanted: str) -> Refused:
    return Refused(
        f"this process has a limit for {what}, may not raise it, and could fail half-way: run the "
        f"command without the limit (ulimit -{option} {wanted})"
    )


def _raise(limit: int, wanted: int) -> None:
    _, hard = resource.getrlimit(limit)
    for value in (wanted, hard):  # only root may raise the hard limit
        try:
            resource.setrlimit(limit, (value, value))
        except (OSError, ValueError):
            continue
        return
