"""Scenes for a worker on the fake host of :mod:`tests.unit.support.hosted`."""

import os
import signal
import time

from pyxlsnap.errors import Aborted, DiskError, XenError
from tests.unit.support.processes import caller
from tests.unit.support.world import World


def plain(_: World) -> None:
    """Nothing happens."""


def disk_fails(world: World) -> None:
    world.fail("create xvdb", DiskError("the pool is full", vdev="xvdb"))


def last_step_fails(world: World) -> None:
    world.fail("finish xvda", DiskError("no, said the storage", vdev="xvda"))


def worker_is_killed(world: World) -> None:
    def kill(verb: str) -> None:
        if verb == "suspend":
            os.kill(os.getpid(), signal.SIGKILL)

    world.on_event = kill


def everybody_is_killed(world: World) -> None:
    def kill(verb: str) -> None:
        if verb == "suspend":
            for pid in (caller(), os.getppid(), os.getpid()):
                os.kill(pid, signal.SIGKILL)

    world.on_event = kill


def no_destroy(world: World) -> None:
    world.fail("destroy", XenError("libxl_domain_destroy of vm1 failed", rc=-3, operation="d"))


def no_resume(world: World) -> None:
    world.fail("resume", XenError("libxl_domain_resume of vm1 failed", rc=-3, operation="r"))


def no_restore(world: World) -> None:
    world.fail("restore", XenError("libxl_domain_create_restore failed", rc=-3, operation="c"))


def sigint(world: World) -> None:
    interrupt(world, signal.SIGINT)


def sigterm(world: World) -> None:
    interrupt(world, signal.SIGTERM)


def interrupt(world: World, number: signal.Signals) -> None:
    """The caller gets a signal while its domain is being suspended."""
    (guest,) = world.host.guests

    def suspending() -> None:
        os.kill(caller(), number)
        end = time.monotonic() + 60
        while not guest.aborts and time.monotonic() < end:
            time.sleep(0.01)
        raise Aborted("aborted", rc=-22, operation="libxl_domain_suspend")

    guest.while_suspending = suspending
