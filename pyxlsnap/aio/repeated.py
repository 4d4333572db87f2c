"""What the objects that make many calls have in common, for ``async with``."""

from types import TracebackType
from typing import Self

from pyxlsnap.aio.call import Call
from pyxlsnap.worker import repeated


class Repeated:
    """Opens and closes an object of the blocking calls.

    :param operation, domain: for log records.
    """

    def __init__(self, operation: str, domain: str, blocking: repeated.Repeated) -> None:
        self._about = (operation, domain)
        self._blocking = blocking

    async def __aenter__(self) -> Self:
        await Call(*self._about).run(self._blocking.open)
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End the process, and wait for its end. Idempotent."""
        try:
            await Call(*self._about).run(self._blocking.close)
        finally:
            self._blocking.close()  # if the task was cancelled before
