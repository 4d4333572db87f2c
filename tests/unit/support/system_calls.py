"""System calls that fail, or at which the process dies."""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

SYSTEM_CALLS = (
    *("open", "link", "rename", "unlink", "fsync", "ftruncate", "lseek", "fchown", "fchmod"),
    *("listxattr", "getxattr", "setxattr", "copy_file_range", "pread", "pwrite", "preadv"),
)


class Killed(BaseException):
    """The process is no more."""


class Fault:
    """From the Nth system call on every one fails, or only that one."""

    def __init__(self, patch: pytest.MonkeyPatch, failure: Callable[[], BaseException]) -> None:
        self._failure = failure
        self._left: int | None = None
        self.struck = False
        for module, name in [*((os, n) for n in SYSTEM_CALLS), (fcntl, "ioctl")]:
            patch.setattr(module, name, self._failing(getattr(module, name)))

    @contextmanager
    def at(self, number: int) -> Iterator[None]:
        """While the body runs."""
        self._left, self.struck = number, False
        try:
            yield
        finally:
            self._left = None

    def _failing(self, call: Callable[..., object]) -> Callable[..., object]:
        def maybe(*arguments: object, **options: object) -> object:
            if self._left is not None:
                self._left -= 1
                dead = self.struck and self._failure is Killed
                if self._left == 0 or dead:
                    self.struck = True
                    raise self._failure()
            return call(*arguments, **options)

        return maybe


def full_disk() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def unsupported(number: int) -> Callable[..., object]:
    """A system call that this system does not have, or not here."""

    def raising(*_: object, **__: object) -> object:
        raise OSError(number, os.strerror(number))

    return raising
