"""The exceptions of pyxlsnap, one class for each thing a caller may want to catch.

::

    PyxlsnapError
    ├── UsageError (ValueError)             bad argument or config file; nothing was tried
    │   └── ConfigError                     .file, .item
    ├── Refused                             cannot be done as asked; nothing was tried
    │   ├── XenUnavailable                  no Xen here, or no right to talk to it
    │   ├── DomainNotFound (LookupError)    .domain, .nearest
    │   ├── AlreadyExists                   .where
    │   ├── Busy                            .domain: another operation holds its lock
    │   └── BadMemoryFile                   .path
    ├── Risky                               .reasons: revert with force would do it
    ├── XenError                            .rc (may be None), .operation, .domain, .log
    │   ├── GuestTimeout (TimeoutError)
    │   └── Aborted
    ├── MonitorError                        .command, .refused: by the guest's QEMU
    ├── DiskError                           .vdev
    ├── ClosedError, ForkedError            a Toolstack used after close(), or after os.fork()
    ├── WorkerDied                          .stderr: the worker process ended without a result
    └── OperationFailed                     .step, .undone, .left: failed, everything is as before
        ├── Interrupted                     cancelled by the caller, everything is as before
        └── NeedsAttention                  .finish: something is left that needs a person

Every class has an ``exit_code``, the one the command line ends with (see README). Text is for
people; programs use the attributes. All of them survive the way from the worker process to the
caller: ``to_wire`` and ``from_wire`` turn them into plain values and back.
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import ClassVar

from pyxlsnap.text import one_line


class PyxlsnapError(Exception):
    """Base of all errors of this package. The message is one line, fit to be shown."""

    #: the status that the command line ends with
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str) -> None:
        #: the text for people
        self.message = one_line(message)
        super().__init__(self.message)

    def __str__(self) -> str:
        return self.message


class UsageError(PyxlsnapError, ValueError):
    """An argument makes no sense. Nothing was tried."""

    exit_code = 2


class ConfigError(UsageError):
    """A config file is wrong; :attr:`file` and :attr:`item` name the place."""

    def __init__(self, message: str, *, file: str, item: str = "") -> None:
        where = f"{file}: {item}: " if item else f"{file}: "
        super().__init__(where + message)
        #: the file's path
        self.file = file
        #: the key or disk within it, "" for the file as a whole
        self.item = item


class Refused(PyxlsnapError):
    """The request cannot be granted. Nothing was tried and nothing changed."""

    exit_code = 3


class XenUnavailable(Refused):
    """libxl cannot be used here: not a Xen host, not root, or a process it must not run in."""


class DomainNotFound(Refused, LookupError):
    """There is no such domain."""

    def __init__(self, message: str, *, domain: str, nearest: Sequence[str] = ()) -> None:
        super().__init__(message)
        #: the name, domid or uuid as it was given
        self.domain = domain
        #: names of domains that are like it, the most alike first
        self.nearest = tuple(nearest)

    @classmethod
    def among(cls, domain: str, names: Iterable[str]) -> "DomainNotFound":
        """None of the domains of these names is meant; the message has those that may be.

        :meta private:
        """
        nearest = get_close_matches(domain, names)
        hint = f": did you mean {' or '.join(map(repr, nearest))}?" if nearest else ""
        message = f"there is no domain {domain!r} (see `xl list`){hint}"
        return cls(message, domain=domain, nearest=nearest)


class AlreadyExists(Refused):
    """A name or file that the snapshot would take is taken. It was left as it is."""

    def __init__(self, message: str, *, where: str) -> None:
        super().__init__(message)
        #: the path, or the disk's vdev
        self.where = where


class Busy(Refused):
    """Another snapshot operation on the same domain is under way."""

    def __init__(self, message: str, *, domain: str) -> None:
        super().__init__(message)
        #: the domain's name or uuid
        self.domain = domain


class BadMemoryFile(Refused):
    """A memory file is truncated, damaged or not one at all."""

    def __init__(self, message: str, *, path: str) -> None:
        super().__init__(f"{path}: {message}")
        #: the file's path
        self.path = path


class Risky(PyxlsnapError):
    """A revert that cannot be shown to be safe; with ``force`` it is done. Nothing was tried."""

    exit_code = 5

    def __init__(self, message: str, *, reasons: Sequence[str]) -> None:
        super().__init__(message)
        #: why it is risky, a line each
        self.reasons = tuple(reasons)


class XenError(PyxlsnapError):
    """A libxl or xenstore call failed, or did not have the effect that it should have.

    :attr:`rc` alone is not enough (-8 has many causes), so :attr:`log` has the libxl log lines of
    the call.
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
        #: the domain concerned; "" if none
        self.domain = domain
        #: libxl's log lines during the call, oldest first
        self.log = tuple(log)


class GuestTimeout(XenError, TimeoutError):
    """The guest did not answer a suspend request in time.

    libxl also reports this when its own helper process failed early (:attr:`XenError.rc` is set).
    """


class Aborted(XenError):
    """The libxl operation was aborted on request."""


class MonitorError(PyxlsnapError):
    """A QMP command to the guest's QEMU failed or was not answered in time."""

    def __init__(self, message: str, *, command: str, refused: bool = False) -> None:
        super().__init__(message)
        #: the QMP command
        self.command = command
        #: QEMU said no, so nothing was done; otherwise nobody knows
        self.refused = refused


class DiskError(PyxlsnapError):
    """A disk could not be snapshotted or reverted."""

    def __init__(self, message: str, *, vdev: str) -> None:
        super().__init__(f"{vdev}: {message}")
        #: the guest's device
        self.vdev = vdev


class ClosedError(PyxlsnapError):
    """A Toolstack was used after ``close()``."""


class ForkedError(PyxlsnapError):
    """A Toolstack was used in a child made by ``os.fork()``; libxl does not survive that."""


class WorkerDied(PyxlsnapError):
    """The worker process ended without a result."""

    def __init__(self, message: str, *, stderr: str = "") -> None:
        super().__init__(message)
        #: the last lines it wrote to its standard error
        self.stderr = stderr


class OperationFailed(PyxlsnapError):
    """A create or revert failed after it had begun, and was undone: everything is as before."""

    def __init__(
        self, message: str, *, step: str, undone: Sequence[str] = (), left: Sequence[str] = ()
    ) -> None:
        super().__init__(message)
        #: the step that failed, for people
        self.step = step
        #: what was undone, a line each
        self.undone = tuple(undone)
        #: what is left, a line each
        self.left = tuple(left)


class Interrupted(OperationFailed):
    """The caller cancelled (or went away) and the operation was rolled back."""

    exit_code = 130


class NeedsAttention(OperationFailed):
    """The operation failed and something is left; :attr:`finish` is the command to run."""

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
        #: what to run to finish it; "" if a person has to find that out
        self.finish = finish
