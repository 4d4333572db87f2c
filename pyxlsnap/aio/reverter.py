"""Many reverts to one snapshot, as coroutine functions."""

from functools import partial
from types import TracebackType
from typing import Self

from pyxlsnap import reverter
from pyxlsnap.aio.call import Call
from pyxlsnap.aio.hooks import AsyncHooks, in_loop
from pyxlsnap.api import StrPath
from pyxlsnap.cancel import Cancel
from pyxlsnap.results import OnProgress, Reverted


class Reverter:
    """See :class:`pyxlsnap.Reverter`: the same, for ``async with``."""

    def __init__(
        self,
        domain: str,
        cfgfile: StrPath,
        *,
        running: bool = False,
        force: bool = False,
        monitor: bool = True,
    ) -> None:
        self._domain = domain
        self._reverter = reverter.Reverter(
            domain, cfgfile, running=running, force=force, monitor=monitor
        )

    async def __aenter__(self) -> Self:
        await Call("revert", self._domain).run(self._reverter.open)
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def revert(
        self,
        *,
        hooks: AsyncHooks | None = None,
        on_progress: OnProgress | None = None,
        cancel: Cancel | None = None,
    ) -> Reverted:
        """See :meth:`pyxlsnap.Reverter.revert`."""
        call = Call("revert", self._domain, cancel)
        return await call.run(
            partial(
                self._reverter.revert,
                hooks=in_loop(call, hooks),
                on_progress=call.in_loop(on_progress),
                cancel=call.cancel,
            )
        )

    async def close(self) -> None:
        """See :meth:`pyxlsnap.Reverter.close`."""
        try:
            await Call("revert", self._domain).run(self._reverter.close)
        finally:
            self._reverter.close()  # if the task was cancelled before
