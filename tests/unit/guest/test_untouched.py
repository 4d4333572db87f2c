"""Whether a destroy that failed has changed the domain; its QEMU is a real process."""

import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing

import pytest

from pyxlsnap.errors import DomainNotFound, XenError
from pyxlsnap.guest.untouched import BeforeDestroy
from tests.unit.support.guest import FakeGuest
from tests.unit.support.world import World


class Domain:
    """A domain that its owner has paused, with a QEMU."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.guest: FakeGuest = world.guest(world.image("xvda"))
        self.guest.paused = True
        self.qemu = subprocess.Popen(["/bin/sleep", "60"])
        self.guest.device_model = self.qemu.pid

    def loses_its_qemu(self) -> None:
        self.qemu.kill()

    def loses_its_disks(self) -> None:
        self.guest.attached = ("/another",)

    def is_unpaused(self) -> None:
        self.guest.paused = False

    def shuts_down(self) -> None:
        self.guest.shutdown_reason = "crash"

    def dies(self) -> None:
        self.guest.dying = True

    def is_gone(self) -> None:
        self.guest.exists = False

    def cannot_be_looked_at(self) -> None:
        self.world.fail("info", XenError("no", rc=-3, operation="libxl_domain_info"))


@pytest.fixture
def domain(world: World) -> Iterator[Domain]:
    found = Domain(world)
    yield found
    found.qemu.kill()
    found.qemu.wait()


def test_an_unchanged_one(domain: Domain) -> None:
    with closing(BeforeDestroy(domain.guest, dying=False)) as before:
        assert before.is_unchanged()


@pytest.mark.parametrize(
    "change",
    [
        Domain.loses_its_qemu,
        Domain.loses_its_disks,
        Domain.is_unpaused,
        Domain.shuts_down,
        Domain.dies,
        Domain.is_gone,
        Domain.cannot_be_looked_at,
    ],
)
def test_one_that_was_paused_and_has_changed(
    domain: Domain, change: Callable[[Domain], None]
) -> None:
    with closing(BeforeDestroy(domain.guest, dying=False)) as before:
        change(domain)
        assert not before.is_unchanged()


def test_one_whose_qemu_had_died_before(domain: Domain) -> None:
    domain.qemu.kill()
    domain.qemu.wait()
    with closing(BeforeDestroy(domain.guest, dying=False)) as before:
        assert before.is_unchanged()
    domain.guest.device_model = None
    with closing(BeforeDestroy(domain.guest, dying=False)) as before:
        assert before.is_unchanged()


def test_one_that_is_gone_already(domain: Domain) -> None:
    domain.guest.exists = False
    with pytest.raises(DomainNotFound):
        BeforeDestroy(domain.guest, dying=False)
