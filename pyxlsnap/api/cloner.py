"""Making clones of one snapshot, again and again."""

import dataclasses
from collections.abc import Sequence

from pyxlsnap.api import StrPath, clones
from pyxlsnap.cancel import Cancel
from pyxlsnap.hooks import Hooks
from pyxlsnap.model import DiskRequest
from pyxlsnap.results import Cloned, OnProgress
from pyxlsnap.worker.repeated import Repeated


class Cloner(Repeated):
    """Makes a clone of a snapshot, or several, and makes them anew as often as it is told to.

    A context manager. As with :class:`Reverter`, one more process is there while it is open, and
    each :meth:`clone` runs in a worker process that is a copy of that process. The clone itself is
    one like any other: it takes the locks, looks again at all that may have changed (a memory file
    that was changed is read again), and a clone that was killed is recovered from in the same way.
    Between two clones nothing is locked or opened: other operations may come between.

    Several threads may use one object, each for a clone with a name of its own; of two calls for
    one name at a time, one raises :class:`Busy`.

    A new release of the package, or of a disk strategy, is used from the next object on.

    The arguments are those of :func:`clone_snapshot`, for each of the clones: ``edit`` is called
    for each. With a path in ``disks``, only one of them can be made.

    :raises UsageError: a value is of the wrong type, or wrong.
    """

    def __init__(
        self,
        cfgfile: StrPath,
        name: str,
        *,
        disks: Sequence[DiskRequest] = (),
        bridge: str | None = None,
        edit: clones.Edit | None = None,
        running: bool = False,
        paused: bool = False,
        force: bool = False,
        monitor: bool = True,
    ) -> None:
        request = clones.asked(cfgfile, name, disks, bridge, running=running, paused=paused)
        self._request = dataclasses.replace(request, force=force, replace=True, monitor=monitor)
        self._edit = edit
        super().__init__(self._request)

    def clone(
        self,
        name: str | None = None,
        *,
        hooks: Hooks | None = None,
        on_progress: OnProgress | None = None,
        cancel: Cancel | None = None,
    ) -> Cloned:
        """Make the clone; if it is there, destroy it first: see :func:`clone_snapshot`.

        :param name: the name of the clone. ``None``: that of the object.
        :raises ClosedError: the object was closed.
        :raises PyxlsnapError: as with :func:`clone_snapshot`. The object can still be used.
        """
        return self.clone_with(
            name, self._edit, hooks=hooks, on_progress=on_progress, cancel=cancel
        )

    def clone_with(
        self,
        name: str | None,
        edit: clones.Edit | None,
        *,
        hooks: Hooks | None = None,
        on_progress: OnProgress | None = None,
        cancel: Cancel | None = None,
    ) -> Cloned:
        """The same, with another ``edit``: :mod:`pyxlsnap.aio` calls that in its loop.

        :meta private:
        """
        request = self._request
        if name is not None:
            request = dataclasses.replace(request, domain=name)
        request = clones.edited(request, edit, self._run, cancel)
        return self._run(request, Cloned, on_progress=on_progress, cancel=cancel, hooks=hooks)

    def close(self) -> None:
        """End the process, and wait for its end. Idempotent. The clones stay.

        A clone that is being made in another thread is made to its end; with ``edit``, one whose
        configuration is being changed is not begun, and its call raises :class:`ClosedError`.
        """
        super().close()
