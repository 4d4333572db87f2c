"""Making one clone of a snapshot anew, as coroutine functions."""

from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import Self

from pyxlsnap import cloner, clones
from pyxlsnap.aio.call import Call
from pyxlsnap.aio.hooks import AsyncHooks, in_loop
from pyxlsnap.api import StrPath
from pyxlsnap.cancel import Cancel
from pyxlsnap.model import DiskRequest
from pyxlsnap.results import Cloned, OnProgress


class Cloner:
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
        self._name = name
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

    async def __aenter__(self) -> Self:
        await Call("clone", self._name).run(self._cloner.open)
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def clone(
        self,
        *,
        hooks: AsyncHooks | None = None,
        on_progress: OnProgress | None = None,
        cancel: Cancel | None = None,
    ) -> Cloned:
        """See :meth:`pyxlsnap.Cloner.clone`."""
        call = Call("clone", self._name, cancel)
        return await call.run(
            partial(
                self._cloner.clone_with,
                call.in_loop(self._edit),
                hooks=in_loop(call, hooks),
                on_progress=call.in_loop(on_progress),
                cancel=call.cancel,
            )
        )

    async def close(self) -> None:
        """See :meth:`pyxlsnap.Cloner.close`."""
        try:
            await Call("clone", self._name).run(self._cloner.close)
        finally:
            self._cloner.close()  # if the task was cancelled before
