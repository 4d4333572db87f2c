"""Many calls of one operation, in workers that are copies of a process that is kept ready."""

from functools import partial
from types import TracebackType
from typing import Self, TypeVar

from pyxlsnap.cancel import Cancel
from pyxlsnap.errors import Refused
from pyxlsnap.hooks import Hooks
from pyxlsnap.request import Callbacks, Repeatable, Request, check_request
from pyxlsnap.results import OnProgress
from pyxlsnap.worker.call import run_in
from pyxlsnap.worker.warm_client import WarmWorkers

_T = TypeVar("_T")


class Repeated:
    """The process of an object that makes many calls: a context manager, in which it is there.

    :param request: what the process is made ready for.
    :raises UsageError: a value of the request is of the wrong type.
    """

    def __init__(self, request: Repeatable) -> None:
        check_request(request)
        self._operations = f"{request.operation}s"
        self._workers = WarmWorkers(request, type(self).__name__)

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.close()

    def open(self) -> None:
        """Start the process now, and not with the first call. Does not wait until it is ready.

        :raises Refused: the process cannot be started.
        :raises ClosedError: the object was closed.
        """
        try:
            self._workers.warm_up()
        except OSError as e:
            raise Refused(
                f"the process for {self._operations} cannot be started: {e.strerror}"
            ) from e

    def _run(
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
        cancel = cancel or Cancel()
        start = partial(self._workers.start, cancel=cancel)
        return run_in(start, request, returns, callbacks, cancel=cancel, hooks=hooks)

    def close(self) -> None:
        """End the process, and wait for its end. Idempotent.

        A call that is under way in another thread goes on to its end; one that still waits for its
        worker may raise :class:`ClosedError`.
        """
        self._workers.close()
