"""Undoing a snapshot disk by disk: a failure of one disk does not stop the others."""

import logging
from collections.abc import Callable, Iterable, Sequence

from pyxlsnap.errors import DiskError, PyxlsnapError

log = logging.getLogger(__name__)

#: undoes one disk, and returns what was undone, a line each
Undo = Callable[[], Sequence[str]]


class LeftOver(DiskError):
    """Something is left that does no harm, and that only a person can delete, at another time.

    A recovery could do no more.
    """

    def __init__(self, message: str, *, vdev: str, finish: str) -> None:
        super().__init__(message, vdev=vdev)
        #: the command that deletes it
        self.finish = finish


def undo_each(undos: Iterable[Undo]) -> list[str]:
    """Call each of them, and return what was undone, a line each. Not to be nested.

    If some fail, what the others undid is logged: the error has no place for it.

    :raises PyxlsnapError: some failed, in whatever way; all were called. The message has the text
        of each failure, and names each disk once. A single failure is raised as it is, if it is a
        :class:`PyxlsnapError`. Several are one :class:`DiskError`, with the vdevs of all disks
        concerned, if each of them is one, and one :class:`LeftOver` if each of them is one.
    """
    undone: list[str] = []
    failures: list[PyxlsnapError] = []
    for undo in undos:
        try:
            undone += undo()
        except PyxlsnapError as e:
            failures.append(e)
        except Exception as e:  # a bug, or a program that cannot be started: the next disk's turn
            log.exception("an undo failed")
            failures.append(PyxlsnapError(f"{type(e).__name__}: {e}"))
    if failures:
        for line in undone:
            log.info("%s", line)
        raise _joined(failures)
    return undone


def _joined(failures: Sequence[PyxlsnapError]) -> PyxlsnapError:
    if len(failures) == 1:
        return failures[0]
    texts = _by_disk(e for e in failures if isinstance(e, DiskError))
    others = [str(e) for e in failures if not isinstance(e, DiskError)]
    message = "; ".join([*(f"{vdev}: {text}" for vdev, text in texts.items()), *others])
    if others:
        return PyxlsnapError(message)
    first = next(iter(texts))
    error = _same_kind(message.removeprefix(f"{first}: "), first, failures)  # prefixes it again
    error.vdev = ", ".join(texts)
    return error


def _same_kind(text: str, vdev: str, failures: Sequence[PyxlsnapError]) -> DiskError:
    left = [e.finish for e in failures if isinstance(e, LeftOver)]
    if len(left) == len(failures):
        return LeftOver(text, vdev=vdev, finish="; ".join(left))
    return DiskError(text, vdev=vdev)


def _by_disk(failures: Iterable[DiskError]) -> dict[str, str]:
    """The texts of each disk's failures, without its vdev."""
    found: dict[str, list[str]] = {}
    for failure in failures:
        text = failure.message.removeprefix(f"{failure.vdev}: ")
        found.setdefault(failure.vdev, []).append(text)
    return {vdev: "; ".join(texts) for vdev, texts in found.items()}
