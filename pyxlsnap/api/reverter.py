"""Reverting a domain to the same snapshot again and again."""

from pyxlsnap.api import StrPath, absolute
from pyxlsnap.cancel import Cancel
from pyxlsnap.hooks import Hooks
from pyxlsnap.request import RevertRequest
from pyxlsnap.results import OnProgress, Reverted
from pyxlsnap.worker.repeated import Repeated


class Reverter(Repeated):
    """Reverts one domain to one snapshot, as often as it is told to, with less work each time.

    A context manager. While it is open, one more process is there, which has loaded all that a
    revert needs, and has read the memory file to its end. Each :meth:`revert` runs in a worker
    process that is a copy of that process. The revert itself is one like any other: it takes the
    domain's lock, looks again at all that may have changed (a memory file that was changed is read
    again), and a revert that was killed is recovered from in the same way. Between two reverts
    nothing is locked or opened for the domain: other operations may come between.

    Several threads may use one object; of two reverts at a time one raises :class:`Busy`.

    A new release of the package, or of a disk strategy, is used from the next object on.

    The arguments are those of :func:`revert_snapshot`.

    :raises UsageError: a value is of the wrong type.
    """

    def __init__(
        self,
        domain: str,
        cfgfile: StrPath,
        *,
        running: bool = False,
        force: bool = False,
        monitor: bool = True,
    ) -> None:
        self._request = RevertRequest(
            domain=domain,
            cfgfile=absolute(cfgfile),
            running=running,
            force=force,
            monitor=monitor,
        )
        super().__init__(self._request)

    def revert(
        self,
        *,
        hooks: Hooks | None = None,
        on_progress: OnProgress | None = None,
        cancel: Cancel | None = None,
    ) -> Reverted:
        """Revert the domain to the snapshot: see :func:`revert_snapshot`.

        :raises ClosedError: the object was closed.
        :raises PyxlsnapError: as with :func:`revert_snapshot`. The object can still be used.
        """
        return self._run(
            self._request, Reverted, on_progress=on_progress, cancel=cancel, hooks=hooks
        )
