"""Undoing a snapshot disk by disk: a failure of one disk does not stop the others."""

import logging
from collections.abc import Callable, Iterable, Sequence

from pyxlsnap.errors import DiskError, PyxlsnapError

log = logging.getLogger(__name__)

#: undoes one disk, and returns what was undone, a line each
Undo = Callable[[], Sequence[str]]


def undo_each(undos: Iterable[Undo]) -> list[str]:
    """Call each of them, and return what was undone, a line each.

    If some fail, what the others undid is logged: an error cannot carry it.

    :raises PyxlsnapError: some failed, see :func:`joined`; all were called.
    """
    undone: list[str] = []
    failures: list[PyxlsnapError] = []
    for undo in undos:
        try:
            undone += undo()
        except PyxlsnapError as e:
            failures.append(e)
    if failures:
        for line in undone:
            log.info("%s", line)
        raise joined(failures)
    return undone


def joined(failures: Sequence[PyxlsnapError]) -> PyxlsnapError:
    """One error for all failures; a single failure is returned as it is.

    The message has the text of each, and names each disk once. The error is a :class:`DiskError`,
    with the vdevs of all disks concerned, if each failure is one.
    """
    if len(failures) == 1:
        return failures[0]
    disks = [e for e in failures if isinstance(e, DiskError)]
    texts = _by_disk(disks)
    if len(disks) < len(failures):
        others = [str(e) for e in failures if not isinstance(e, DiskError)]
        return PyxlsnapError("; ".join([*(f"{v}: {t}" for v, t in texts.items()), *others]))
    (first, text), *rest = texts.items()
    error = DiskError("; ".join([text, *(f"{v}: {t}" for v, t in rest)]), vdev=first)
    error.vdev = ", ".join(texts)
    return error


def _by_disk(failures: Iterable[DiskError]) -> dict[str, str]:
    """The texts of each disk's failures, without its vdev."""
    found: dict[str, list[str]] = {}
    for failure in failures:
        text = failure.message.removeprefix(f"{failure.vdev}: ")
        found.setdefault(failure.vdev, []).append(text)
    return {vdev: "; ".join(texts) for vdev, texts in found.items()}
