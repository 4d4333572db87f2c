"""Many reverts to one snapshot, as coroutine functions."""

from functools import partial

from pyxlsnap.aio.call import Call
from pyxlsnap.aio.hooks import AsyncHooks, in_loop
from pyxlsnap.aio.repeated import Repeated
from pyxlsnap.api import StrPath, reverter
from pyxlsnap.cancel import Cancel
from pyxlsnap.results import OnProgress, Reverted


class Reverter(Repeated):
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
        self._reverter = reverter.Reverter(
            domain, cfgfile, running=running, force=force, monitor=monitor
        )
        super().__init__("revert", domain, self._reverter)

    async def revert(
        self,
        *,
        hooks: AsyncHooks | None = None,
        on_progress: OnProgress | None = None,
        cancel: Cancel | None = None,
    ) -> Reverted:
        """See :meth:`pyxlsnap.Reverter.revert`."""
        call = Call(*self._about, cancel)
        return await call.run(
            partial(
                self._reverter.revert,
                hooks=in_loop(call, hooks),
                on_progress=call.in_loop(on_progress),
                cancel=call.cancel,
            )
        )
