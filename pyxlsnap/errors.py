"""The exceptions of pyxlsnap: one class for each case that a caller may want to handle.

::

    PyxlsnapError
    ├── UsageError (ValueError)             bad argument or config file; nothing was done
    │   └── ConfigError                     .file, .item
    ├── Refused                             the request is not possible; nothing was done
    │   ├── XenUnavailable                  not a Xen host, or no permission to use Xen
    │   ├── DomainNotFound (LookupError)    .domain, .nearest
    │   ├── AlreadyExists                   .where
    │   ├── Busy                            .domain: another operation holds the lock
    │   └── BadMemoryFile                   .path
    ├── Risky                               .reasons: a revert needs force; nothing was done
    ├── XenError                            .rc (may be None), .operation, .domain, .log
    │   ├── GuestTimeout (TimeoutError)
    │   └── Aborted
    ├── QmpError                            .command, .refused: by the guest's QEMU
    ├── DiskError                           .vdev
    ├── ClosedError, ForkedError            a Toolstack used after close(), or after os.fork()
    ├── WorkerDied                          .stderr: the worker process ended without a result
    └── OperationFailed                     .step, .undone, .left: failed, everything is as before
        ├── Interrupted                     cancelled by the caller, everything is as before
        ├── GuestEnded                      .reason: the guest rebooted or powered off meanwhile
        └── NeedsAttention                  .finish: a person must finish the operation

Every class has an ``exit_code``, the exit status of the command line (see pyxlsnap(1)). The message
is for people; programs use the attributes. An error in the worker process is raised in the caller
with the same class and attributes.
"""

from collections.abc import Iterable, Sequence
from typing import ClassVar

from pyxlsnap.text import one_line


class PyxlsnapError(Exception):
    """Base class of all errors of this package. The message is one line that can be shown."""

    #: exit status of the command line
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str) -> None:
        #: the text for people
        self.message = one_line(message)
        super().__init__(self.message)

    def __str__(self) -> str:
        return self.message


class UsageError(PyxlsnapError, ValueError):
    """An argument is wrong. Nothing was done."""

    exit_code = 2


class ConfigError(UsageError):
    """A config file is wrong: :attr:`file` and :attr:`item` say where. Nothing was done."""

    def __init__(self, message: str, *, file: str, item: str = "") -> None:
        where = f"{file}: {item}: " if item else f"{file}: "
        super().__init__(where + message)
        #: the file's path
        self.file = file
        #: the key or disk in the file; "" for the whole file
        self.item = item


class Refused(PyxlsnapError):
    """The request is not possible. Nothing was changed."""

    exit_code = 3


class XenUnavailable(Refused):
    """libxl cannot be used: not a Xen host, not root, or a process in which libxl must not run."""


class DomainNotFound(Refused, LookupError):
    """There is no such domain."""

    def __init__(self, message: str, *, domain: str, nearest: Sequence[str] = ()) -> None:
        super().__init__(message)
        #: the name, domid or uuid that was given
        self.domain = domain
        #: similar names of domains, the most similar first
        self.nearest = tuple(nearest)

    @classmethod
    def among(cls, domain: str, names: Iterable[str]) -> "DomainNotFound":
        """Make the error for a domain that is not among these names; it suggests similar names.

        :meta private:
        """
        from difflib import get_close_matches  # only here: few commands need it

        nearest = get_close_matches(domain, names)
        hint = f": did you mean {' or '.join(map(repr, nearest))}?" if nearest else ""
        message = f"there is no domain {domain!r} (see `xl list`){hint}"
        return cls(message, domain=domain, nearest=nearest)


class AlreadyExists(Refused):
    """The snapshot needs a name or file that already exists. Nothing was changed."""

    def __init__(self, message: str, *, where: str) -> None:
        super().__init__(message)
        #: the existing path, or the disk's vdev
        self.where = where


class Busy(Refused):
    """Another snapshot operation on the same domain is running. Nothing was changed."""

    def __init__(self, message: str, *, domain: str) -> None:
        super().__init__(message)
        #: the domain's name or uuid
        self.domain = domain


class BadMemoryFile(Refused):
    """A memory file is truncated or damaged, or the file is not a memory file."""

    def __init__(self, message: str, *, path: str) -> None:
        super().__init__(f"{path}: {message}")
        #: the file's path
        self.path = path


class Risky(PyxlsnapError):
    """The revert may be unsafe and needs ``force``. Nothing was changed."""

    exit_code = 5

    def __init__(self, message: str, *, reasons: Sequence[str]) -> None:
        super().__init__(message)
        #: why the revert is risky, one line each
        self.reasons = tuple(reasons)


class XenError(PyxlsnapError):
    """A libxl or xenstore call failed, or did not have the effect that it should have.

    ``rc`` alone is misleading (-8 has many meanings), so :attr:`log` has the libxl log lines of
    this call.
    """

    def __init__(
        self,
        message: str,
        *,
        rc: int | None = None,
        operation: str = "",
        domain: str = "",
        log: Sequence[str] = (),
    ) -> None:
        super().__init__(message)
        #: libxl's return code (enum libxl_error, negative); ``None`` if no libxl call failed
        self.rc = rc
        #: the C function that failed; "" if none did
        self.operation = operation
        #: the domain; "" if the call is for no domain
        self.domain = domain
        #: libxl's log lines of the call, oldest first
        self.log = tuple(log)


class GuestTimeout(XenError, TimeoutError):
    """The guest did not answer a suspend request in time.

    libxl also reports this when its own helper process failed early (:attr:`XenError.rc` is set).
    """


class Aborted(XenError):
    """A libxl call was aborted on request."""


class QmpError(PyxlsnapError):
    """A QMP command to the guest's QEMU failed or was not answered in time."""

    def __init__(self, message: str, *, command: str, refused: bool = False) -> None:
        super().__init__(message)
        #: the QMP command
        self.command = command
        #: true: QEMU refused the command and did nothing; false: the outcome is unknown
        self.refused = refused


class DiskError(PyxlsnapError):
    """A disk could not be snapshotted or reverted."""

    def __init__(self, message: str, *, vdev: str) -> None:
        super().__init__(f"{vdev}: {message}")
        #: the guest's device, such as ``xvda``
        self.vdev = vdev


class ClosedError(PyxlsnapError):
    """A Toolstack was used after ``close()``."""


class ForkedError(PyxlsnapError):
    """A Toolstack was used in a child of ``os.fork()``, where libxl cannot work."""


class WorkerDied(PyxlsnapError):
    """The worker process ended without a result."""

    def __init__(self, message: str, *, stderr: str = "") -> None:
        super().__init__(message)
        #: the last lines of the standard error of the worker process
        self.stderr = stderr


class OperationFailed(PyxlsnapError):
    """An operation failed after it had begun. It was undone: everything is as before.

    Except that a paused domain may have run for some seconds: the message says for how long.
    """

    def __init__(
        self, message: str, *, step: str, undone: Sequence[str] = (), left: Sequence[str] = ()
    ) -> None:
        super().__init__(message)
        #: the name of the step that failed
        self.step = step
        #: what was undone, one line each
        self.undone = tuple(undone)
        #: what is left, one line each
        self.left = tuple(left)


class Interrupted(OperationFailed):
    """The caller cancelled the operation, or ended. The operation was rolled back."""

    exit_code = 130


class GuestEnded(OperationFailed):
    """The guest rebooted, powered off or crashed by itself before its snapshot was complete.

    There is no snapshot, and nothing is left of it. All else is as before, but for what the guest
    did, and what its configuration says for that: it may run again under another domid.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str,
        step: str,
        undone: Sequence[str] = (),
        left: Sequence[str] = (),
    ) -> None:
        super().__init__(message, step=step, undone=undone, left=left)
        #: why the domain shut down, as in :attr:`DomainInfo.shutdown_reason`; "" if it was
        #: destroyed before that could be seen
        self.reason = reason


class NeedsAttention(OperationFailed):
    """The operation failed and something is left: a person must run :attr:`finish`."""

    exit_code = 4

    def __init__(
        self,
        message: str,
        *,
        step: str,
        undone: Sequence[str] = (),
        left: Sequence[str] = (),
        finish: str = "",
    ) -> None:
        super().__init__(message, step=step, undone=undone, left=left)
        #: the command that finishes the operation; "" if a person must decide what to do
        self.finish = finish
