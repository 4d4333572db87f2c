"""In dom0, on PYTHONPATH: a worker of pyxlsnap stops, or fails, at one point of its sequence.

FAULT_POINT names the point. When it is reached the process writes its pid to FAULT_DIR/reached, and
does what FAULT_DO says: "hold" until there is FAULT_DIR/go or the operation is cancelled, "pass",
"fail", or "time out". Only the first process that comes there does; whoever recovers passes.

The points come from the code as it runs: "before" the first step and "after" each one; "after" a
strategy has done its disks, and each run of qemu-img in a revert; "beside" when a strategy is about
to, on the thread of the disks while the memory is written. Besides, "at suspend" is when
libxl is about to be called, "in memory" when some of it has been written, "in suspend" when the
guest is suspended and libxl has not yet said so, and "after begin" when a revert is about to
destroy.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_POLL_S = 0.01


class Points:
    """Looks out for the one point."""

    def __init__(self) -> None:
        self._wanted, self._do = os.environ["FAULT_POINT"], os.environ["FAULT_DO"]
        self._directory = Path(os.environ["FAULT_DIR"])
        #: whether the operation that runs is cancelled
        self.cancelled: Callable[[], bool] = lambda: False

    def reached(self, point: str) -> None:
        if point != self._wanted or not self._first():
            return
        if self._do == "fail":
            raise RuntimeError("injected")
        if self._do == "time out":
            from pyxlsnap.errors import GuestTimeout

            raise GuestTimeout("injected", rc=-8, operation="libxl_domain_suspend")
        while self._do == "hold" and not self.cancelled():
            if (self._directory / "go").exists():
                return
            time.sleep(_POLL_S)

    def after(self, point: str, do: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            result = do(*args, **kwargs)
            self.reached(f"after {point}")
            return result

        return run

    def _first(self) -> bool:
        note = self._directory / f"{os.getpid()}"
        note.write_text(str(os.getpid()))
        try:
            os.link(note, self._directory / "reached")  # whole when it is there
        except FileExistsError:
            return False
        return True


def watch_beside(points: Points, strategy: Any) -> None:
    """Put the points into what a strategy does while the memory is written."""
    do = points.after(f"create of {strategy.kind}", strategy.create_beside)

    def beside() -> None:
        points.reached(f"beside {strategy.kind}")
        do()

    strategy.create_beside = beside


def watch(points: Points) -> None:
    """Put the points into the code."""
    from pyxlsnap.create.sequence import Creation
    from pyxlsnap.disks.qcow2 import inside
    from pyxlsnap.revert.sequence import Reversion
    from pyxlsnap.xen.domain import Domain

    images: Any = inside

    def watch_steps(sequence: Any, verb: str) -> None:
        steps = sequence.steps

        def watched(self: Any) -> list[tuple[str, Callable[[], None]]]:
            points.cancelled = self._cancel.is_set
            for strategy in self._plan.strategies:
                do = points.after(f"{verb} of {strategy.kind}", getattr(strategy, verb))
                setattr(strategy, verb, do)
                if verb == "create" and hasattr(strategy, "create_beside"):
                    watch_beside(points, strategy)
            (first, begin), *rest = steps(self)

            def beginning() -> None:
                points.reached(f"before {first}")
                begin()

            return [(n, points.after(n, do)) for n, do in [(first, beginning), *rest]]

        sequence.steps = watched

    def in_memory(self: Any, progress: Any) -> None:
        suspending(self, progress)
        if progress.phase == "memory" and progress.bytes_done:
            points.reached("in memory")

    def in_suspend(*args: Any, **kwargs: Any) -> None:
        points.reached("at suspend")
        suspend(*args, **kwargs)
        points.reached("in suspend")

    def qemu_img(disk: Any, *args: str, **words: Any) -> Any:
        result = run_qemu_img(disk, *args, **words)
        points.reached(f"after qemu-img {' '.join(args[:2])} of {disk.vdev}")
        return result

    watch_steps(Creation, "create")
    watch_steps(Reversion, "revert")
    suspending, suspend = Creation._suspending, Domain.suspend
    Creation._suspending = in_memory  # type: ignore[method-assign]
    Domain.suspend = in_suspend  # type: ignore[method-assign]
    Reversion._begin = points.after("begin", Reversion._begin)  # type: ignore[method-assign]
    run_qemu_img, images.qemu_img = images.qemu_img, qemu_img


class BeforeTheWorker:
    """Puts the points in place before a process loads what a worker does."""

    def find_spec(self, name: str, _path: object, _target: object = None) -> None:
        if name == "pyxlsnap.worker.server":
            sys.meta_path.remove(self)
            watch(Points())


if "FAULT_POINT" in os.environ:
    sys.meta_path.insert(0, BeforeTheWorker())
