"""Many calls of one operation, in workers that are copies of a process that is kept ready."""

from typing import TypeVar

from pyxlsnap.cancel import Cancel
from pyxlsnap.errors import Refused
from pyxlsnap.hooks import Hooks
from pyxlsnap.request import Callbacks, Repeatable, Request, check_request
from pyxlsnap.results import OnProgress
from pyxlsnap.worker.call import run_in
from pyxlsnap.worker.warm_client import WarmWorkers

_T = TypeVar("_T")


class Repeated:
    """The calls that one object makes, and the process for them. To be closed.

    :param request: what the process is made ready for.
    :param owner: the name of the object's class, for errors.
    :raises UsageError: a value of the request is of the wrong type.
    """

    def __init__(self, request: Repeatable, owner: str) -> None:
        check_request(request)
        self._operations = f"{request.operation}s"
        self._workers = WarmWorkers(request, owner)

    def open(self) -> None:
        """Start the process now, and not with the first call. Does not wait until it is ready.

        :raises Refused: the process cannot be started.
        :raises ClosedError: :meth:`close` was called.
        """
        try:
            self._workers.warm_up()
        except OSError as e:
            raise Refused(
                f"the process for {self._operations} cannot be started: {e.strerror}"
            ) from e

    def run(
        self,
        request: Request,
        returns: type[_T],
        *,
        on_progress: OnProgress | None = None,
        cancel: Cancel | None = None,
        hooks: Hooks | None = None,
    ) -> _T:
        """As :func:`pyxlsnap.worker.call.run`, in a copy of the process.

        :raises ClosedError: :meth:`close` was called.
        """
        callbacks = Callbacks(on_progress=on_progress) if on_progress else Callbacks()
        start = self._workers.start
        return run_in(start, request, returns, callbacks, cancel=cancel, hooks=hooks)

    def close(self) -> None:
        """End the process, and wait for its end. Idempotent. A call that is under way goes on."""
        self._workers.close()
