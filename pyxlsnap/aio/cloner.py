"""Making clones of one snapshot, again and again, as coroutine functions."""

from collections.abc import Sequence
from functools import partial

from pyxlsnap.aio.call import Call
from pyxlsnap.aio.hooks import AsyncHooks, in_loop
from pyxlsnap.aio.repeated import Repeated
from pyxlsnap.api import StrPath, cloner, clones
from pyxlsnap.cancel import Cancel
from pyxlsnap.model import DiskRequest
from pyxlsnap.results import Cloned, OnProgress


class Cloner(Repeated):
    """See :class:`pyxlsnap.Cloner`: the same, for ``async with``."""

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
        self._edit = edit
        self._cloner = cloner.Cloner(
            cfgfile,
            name,
            disks=disks,
            bridge=bridge,
            running=running,
            paused=paused,
            force=force,
            monitor=monitor,
        )
        super().__init__("clone", name, self._cloner)

    async def clone(
        self,
        name: str | None = None,
        *,
        hooks: AsyncHooks | None = None,
        on_progress: OnProgress | None = None,
        cancel: Cancel | None = None,
    ) -> Cloned:
        """See :meth:`pyxlsnap.Cloner.clone`."""
        operation, domain = self._about
        call = Call(operation, domain if name is None else name, cancel)
        return await call.run(
            partial(
                self._cloner.clone_with,
                name,
                call.in_loop(self._edit),
                hooks=in_loop(call, hooks),
                on_progress=call.in_loop(on_progress),
                cancel=call.cancel,
            )
        )
