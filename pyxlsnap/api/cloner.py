"""Making clones of one snapshot, again and again."""

import dataclasses
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pyxlsnap.api import StrPath, clones
from pyxlsnap.cancel import Cancel
from pyxlsnap.clone.names import check_clone_name
from pyxlsnap.errors import Busy, UsageError
from pyxlsnap.hooks import Hooks
from pyxlsnap.model import DiskRequest
from pyxlsnap.request import CloneRequest, check_request
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
    one name at a time, one raises :class:`Busy`. Clones with an emulated network device keep its
    MAC address: for those, make an object for each bridge.

    A new release of the package, or of a disk strategy, is used from the next object on.

    The arguments are those of :func:`clone_snapshot`, for each of the clones. ``edit`` is called
    for each, on the thread of the call.

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
        check_clone_name(name)
        #: the names of the clones that are made now
        self._making: set[str] = set()
        self._lock = threading.Lock()

    def clone(
        self,
        name: str | None = None,
        *,
        hooks: Hooks | None = None,
        on_progress: OnProgress | None = None,
        cancel: Cancel | None = None,
    ) -> Cloned:
        """Make the clone; if it is there, destroy it first: see :func:`clone_snapshot`.

        :param name: the name of the clone. ``None``: that of the object. With a path in ``disks``
            there can be no other one.
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
        request = self._named(name)
        with self._alone(request.domain):
            request = clones.edited(request, edit, self._run, cancel)
            return self._run(request, Cloned, on_progress=on_progress, cancel=cancel, hooks=hooks)

    def _named(self, name: str | None) -> CloneRequest:
        if name is None or name == self._request.domain:
            return self._request
        request = dataclasses.replace(self._request, domain=name)
        check_request(request)
        check_clone_name(name)
        if paths := [disk.path for disk in request.disks if disk.path]:
            raise UsageError(
                f"{name}: the disks of this Cloner are for {self._request.domain} ({paths[0]}): "
                f"make another Cloner"
            )
        return request

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """Make one clone of a name at a time: what is found for ``edit`` must still hold then."""
        with self._lock:
            if name in self._making:
                raise Busy(f"{name}: this Cloner is making it: wait for that", domain=name)
            self._making.add(name)
        try:
            yield
        finally:
            with self._lock:
                self._making.discard(name)

    def close(self) -> None:
        """End the process, and wait for its end. Idempotent. The clones stay.

        A clone that is being made in another thread is made to its end; with ``edit``, one whose
        configuration is being changed is not begun, and its call raises :class:`ClosedError`.
        """
        super().close()
