"""In a process that watches a domain: a scenario in the place of the watch."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pyxlsnap.monitor.actions
import pyxlsnap.xen.toolstack
from pyxlsnap import paths
from pyxlsnap.cancel import Cancel
from pyxlsnap.errors import DomainNotFound, NeedsAttention
from tests.unit.support.values import UUID


@dataclass(frozen=True, slots=True)
class Watch:
    """The arguments of a watch."""

    on_ready: Callable[[], None]
    cancel: Cancel


def watch(watch: Watch) -> None:
    """Until somebody stops it."""
    watch.on_ready()
    while not watch.cancel.is_set():
        time.sleep(0.01)
    watch.cancel.check()


def nothing_to_watch(watch: Watch) -> None:
    watch.on_ready()


def goes_wrong_later(watch: Watch) -> None:
    watch.on_ready()
    raise NeedsAttention("vm1 is down", step="restart")


def writes_from_c(watch: Watch) -> None:
    watch.on_ready()
    os.write(2, b"from C\n")


def has_a_bug(_: Watch) -> NoReturn:
    raise RuntimeError("a bug")


def aborts(_: Watch) -> None:
    os.kill(os.getpid(), signal.SIGABRT)


SCENARIOS = (watch, nothing_to_watch, goes_wrong_later, writes_from_c, has_a_bug, aborts)


class _Found:
    name = "vm/1"


class _Host:
    def find(self, domain: str) -> _Found:
        if domain != UUID:
            raise DomainNotFound(f"there is no domain {domain}", domain=domain)
        return _Found()


def install(here: str) -> None:
    """Put the scenario whose name is in a file in the place of the watch."""
    directory = Path(here)
    name = (directory / "scenario").read_text()
    (scenario,) = [do for do in SCENARIOS if do.__name__ == name]

    def monitor(
        _: _Host,
        domain: str,
        *,
        on_ready: Callable[[], None],
        cancel: Cancel,
        turn: Callable[[int], bool],
    ) -> None:
        if not turn(int((directory / "domid").read_text())):
            on_ready()
            return
        (directory / "pid").write_text(str(os.getpid()))
        scenario(Watch(on_ready, cancel))

    @contextmanager
    def toolstack(**_: object) -> Iterator[_Host]:
        yield _Host()

    for module, name, value in (
        (pyxlsnap.monitor.actions, "monitor", monitor),
        (pyxlsnap.xen.toolstack, "Toolstack", toolstack),
        (paths, "XEN_LOGS", directory),
        (paths, "LOCKS", directory),
    ):
        setattr(module, name, value)
