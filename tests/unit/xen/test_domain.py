"""How a domain is watched after its suspend, and waited for after its destruction."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Self

import pytest

from pyxlsnap.errors import DomainNotFound, GuestTimeout, XenError
from pyxlsnap.model import DomainInfo
from pyxlsnap.results import OnProgress
from pyxlsnap.xen import domain as domain_module
from pyxlsnap.xen.context import Context
from pyxlsnap.xen.domain import Domain
from pyxlsnap.xen.ffi import check
from tests.unit.support.values import UUID


class Clockless(Domain):
    """A domain whose states are a list, one for each look."""

    def __init__(self, *states: str, requested: tuple[bool, ...] = ()) -> None:
        self.domid, self.uuid, self.name = 7, UUID, "vm1"
        self.states, self.requested = list(states), list(requested)
        self.resumed = 0

    def info(self) -> DomainInfo:
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        if state == "gone":
            raise DomainNotFound("gone", domain="vm1")
        uuid = "another" if state == "another" else UUID
        shutdown = state in ("suspend", "poweroff", "reboot")
        return DomainInfo(7, uuid, False, shutdown, state, state == "dying", 1)

    def resume(self, *, paused: bool = False) -> None:
        self.resumed += 1

    def suspend_requested(self) -> bool:
        return self.requested.pop(0) if self.requested else False


class TestEnsureRunning:
    def test_a_suspended_domain_is_resumed_at_once(self) -> None:
        domain = Clockless("suspend")
        assert domain.ensure_running(settle_s=0, request_s=0)
        assert domain.resumed == 1

    def test_a_running_domain_is_left_alone(self) -> None:
        domain = Clockless("")
        assert not domain.ensure_running(settle_s=0, request_s=0)
        assert domain.resumed == 0

    def test_one_that_has_shut_down_by_itself_is_not_waited_for(self) -> None:
        domain = Clockless("", "poweroff", requested=(True,) * 1000)
        start = time.monotonic()
        assert not domain.ensure_running(settle_s=5, request_s=60)
        assert time.monotonic() - start < 2
        assert domain.resumed == 0

    def test_one_that_suspends_while_it_settles_is_resumed(self) -> None:
        domain = Clockless("", "", "suspend")
        assert domain.ensure_running(settle_s=5, request_s=0)

    def test_one_that_suspends_while_its_request_stands_is_resumed(self) -> None:
        domain = Clockless("", "", "suspend", requested=(True, True))
        assert domain.ensure_running(settle_s=0, request_s=5)

    def test_one_that_has_answered_and_suspends_a_little_later_is_resumed(self) -> None:
        """The answer takes the request away, and the guest has yet to stop what it does."""
        domain = Clockless(*[""] * 13, "suspend", requested=(True,) * 10)
        assert domain.ensure_running(settle_s=0.15, request_s=5)

    def test_a_request_that_stands_for_ever_is_not_waited_for_for_ever(self) -> None:
        domain = Clockless("", requested=(True,) * 1000)
        start = time.monotonic()
        with pytest.raises(GuestTimeout, match="may still suspend"):
            domain.ensure_running(settle_s=0, request_s=0.1)
        assert 0.1 <= time.monotonic() - start < 2

    @pytest.mark.parametrize("state", ["gone", "another", "dying"])
    def test_one_that_has_gone_is_not_resumed(self, state: str) -> None:
        domain = Clockless("", state)
        with pytest.raises(DomainNotFound):
            domain.ensure_running(settle_s=5, request_s=5)
        assert domain.resumed == 0


class Paused(Clockless):
    """One that its owner had paused, with what was done to it."""

    def __init__(self, *states: str, paused: bool, stands: bool = False) -> None:
        super().__init__(*states)
        self.is_paused, self.stands = paused, stands
        self.done: list[str] = []

    def info(self) -> DomainInfo:
        return replace(super().info(), paused=self.is_paused)

    def withdraw_suspend(self) -> bool:
        self.done.append("withdraw")
        return self.stands

    def pause(self) -> None:
        self.is_paused = True
        self.done.append("pause")

    def resume(self, *, paused: bool = False) -> None:
        assert paused
        self.done.append("resume")


class TestEnsurePaused:
    """What :meth:`Domain.ensure_running` does for a domain that its owner had paused."""

    def test_a_request_is_withdrawn_and_the_domain_paused_at_once(self) -> None:
        domain = Paused("", paused=False, stands=True)
        start = time.monotonic()
        assert not domain.ensure_running(paused=True)
        assert domain.done == ["withdraw", "pause"]
        assert time.monotonic() - start < 1

    def test_one_that_is_paused_needs_no_waiting(self) -> None:
        for stands in (True, False):
            domain = Paused("", paused=True, stands=stands)
            start = time.monotonic()
            assert not domain.ensure_running(paused=True)
            assert domain.done == ["withdraw"]
            assert time.monotonic() - start < 1

    def test_one_that_has_taken_the_request_is_waited_for(self) -> None:
        domain = Paused("", "", "", "suspend", paused=False)
        assert domain.ensure_running(settle_s=5, paused=True)
        assert domain.done == ["withdraw", "resume"]

    def test_one_that_does_not_suspend_is_paused_all_the_same(self) -> None:
        domain = Paused("", paused=False)
        start = time.monotonic()
        assert not domain.ensure_running(settle_s=0.1, paused=True)
        assert domain.done == ["withdraw", "pause"]
        assert time.monotonic() - start < 2

    def test_one_that_shuts_down_by_itself_is_not_paused(self) -> None:
        domain = Paused("", "", "reboot", paused=False)
        start = time.monotonic()
        assert not domain.ensure_running(settle_s=5, paused=True)
        assert domain.done == ["withdraw"]
        assert time.monotonic() - start < 2

    @pytest.mark.parametrize("paused", [True, False])
    def test_a_suspended_one_is_resumed(self, paused: bool) -> None:
        domain = Paused("suspend", paused=paused)
        assert domain.ensure_running(settle_s=0, request_s=0, paused=True)
        assert domain.done == ["withdraw", "resume"]

    def test_pausing_again_does_not_resume_a_suspended_one(self) -> None:
        domain = Paused("suspend", paused=False)
        assert domain.pause_again(settle_s=0)
        assert domain.done == ["withdraw"]

    def test_pausing_again_alone(self) -> None:
        domain = Paused("", paused=False, stands=True)
        assert not domain.pause_again()
        assert not domain.pause_again()
        assert domain.done == ["withdraw", "pause", "withdraw"]

    def test_another_domain_of_that_domid_is_left_alone(self) -> None:
        domain = Paused("another", paused=False)
        with pytest.raises(DomainNotFound):
            domain.ensure_running(paused=True)
        assert domain.done == []


class TestWaitGone:
    @pytest.mark.parametrize("end", ["gone", "another"])
    def test_returns_when_the_domain_has_gone(self, end: str) -> None:
        Clockless("dying", "dying", end).wait_gone(timeout_s=5)

    def test_is_limited(self) -> None:
        with pytest.raises(XenError, match=r"still exists 0\.1 s after") as caught:
            Clockless("dying").wait_gone(timeout_s=0.1)
        assert (caught.value.rc, caught.value.domain) == (None, "vm1 (domid 7)")


class Siblings(Context):
    """A context without libxl, whose siblings are counted."""

    def __init__(self) -> None:
        self.opened: list[tuple[str, str]] = []
        self.closings = 0

    def sibling(self, *, operation: str, domain: str) -> Self:
        self.opened.append((operation, domain))
        return self

    def close(self) -> None:
        self.closings += 1


class Store(Context):
    """A context without libxl, with a xenstore of these nodes."""

    def __init__(self, nodes: dict[str, str]) -> None:
        self._nodes = nodes

    def xenstore_read(self, path: str) -> str | None:
        return self._nodes.get(path)

    def xenstore_list(self, path: str) -> list[str]:
        below = [node.removeprefix(f"{path}/") for node in self._nodes if node.startswith(path)]
        return list(dict.fromkeys(node.partition("/")[0] for node in below))


class TestFrontends:
    def states(self, **values: str) -> dict[str, int]:
        nodes = {f"/local/domain/7/device/{k.replace('__', '/')}": v for k, v in values.items()}
        return Domain(Store(nodes), 7, UUID, "vm1").frontend_states()

    def test_a_domain_without_devices_has_none(self) -> None:
        assert self.states() == {}

    @pytest.mark.parametrize("kind", ["vbd", "vif", "vkbd", "vfb", "console", "9pfs", "vusb", "x"])
    def test_every_kind_of_device(self, kind: str) -> None:
        found = self.states(**{f"{kind}__3__state": "4", "vif__0__state": "1"})
        assert found == {f"{kind}/3": 4, "vif/0": 1}

    def test_what_is_no_device_is_left_out(self) -> None:
        """libxl makes this node for the event channel of the suspend request."""
        assert self.states(**{"suspend__event-channel": "5", "vif__0__state": "4"}) == {"vif/0": 4}

    @pytest.mark.parametrize("state", ["", "x", "²", "-1", "4 ", "٤", "9" * 5000])
    def test_a_state_that_the_guest_has_spoilt_is_unknown(self, state: str) -> None:
        assert self.states(vif__0__state=state) == {"vif/0": 0}

    def test_a_state_that_the_guest_has_removed_is_unknown(self) -> None:
        assert self.states(vif__0__backend="/local/domain/0/backend/vif/7/0") == {"vif/0": 0}


@pytest.mark.parametrize(
    ("said", "pid"), [("714", 714), ("²", None), ("", None), ("-1", None), ("9" * 5000, None)]
)
def test_the_pid_of_the_device_model(said: str, pid: int | None) -> None:
    node = "/local/domain/7/image/device-model-pid"
    assert Domain(Store({node: said}), 7, UUID, "vm1").device_model_pid() == pid
    assert Domain(Store({}), 7, UUID, "vm1").device_model_pid() is None


class TestDiskTargets:
    """The nodes are those that libxl writes (device_disk_add in libxl_disk.c)."""

    def targets(self, *disks: tuple[str, str], kind: str = "vbd") -> tuple[str, ...]:
        nodes: dict[str, str] = {}
        for number, (backend, params) in enumerate(disks):
            base = f"/libxl/7/device/{kind}/{51712 + 16 * number}"
            nodes |= {f"{base}/params": params, f"{base}/type": backend}
        return Domain(Store(nodes), 7, UUID, "vm1").disk_targets()

    def test_a_domain_without_disks_has_none(self) -> None:
        assert self.targets() == ()

    @pytest.mark.parametrize(
        "path",
        [
            "/dev/vg/lv",
            "/dev/disk/by-path/ip-10.0.0.1:3260-iscsi-iqn.2001-04.com.example:a-lun-0",
            "/srv/disk.raw:0",
            ":",
        ],
    )
    def test_a_path_with_a_colon_is_whole(self, path: str) -> None:
        assert self.targets(("phy", path)) == (path,)
        assert self.targets(("qdisk", f"qcow2:{path}")) == (path,)
        assert self.targets(("standalone", path), kind="virtio_disk") == (path,)

    def test_all_disks_but_empty_drives(self) -> None:
        found = self.targets(("qdisk", "qcow2:/a"), ("qdisk", "aio:"), ("phy", "/b"))
        assert found == ("/a", "/b")


def test_a_domain_on_its_own_has_another_context_for_as_long() -> None:
    context = Siblings()
    with Domain(context, 7, UUID, "vm1").on_its_own() as domain:
        assert (domain.domid, domain.uuid, domain.name) == (7, UUID, "vm1")
        assert (context.opened, context.closings) == ([("watch", "vm1")], 0)
    assert context.closings == 1


class NoLibxl(Context):
    """A context without libxl: an error has no log lines."""

    def __init__(self) -> None: ...

    @contextmanager
    def calling(self, on_progress: OnProgress | None = None) -> Iterator[None]:
        yield

    def check(self, rc: int, operation: str, *, domain: str = "") -> None:
        check(rc, operation, domain=domain, log=())


class TestMemoryTarget:
    def target(self, monkeypatch: pytest.MonkeyPatch, rc: int) -> list[tuple[object, ...]]:
        asked: list[tuple[object, ...]] = []

        def target(_: object, *arguments: object) -> int:
            asked.append(arguments)
            return rc

        monkeypatch.setattr(domain_module, "C", SimpleNamespace(libxl_set_memory_target=target))
        return asked

    def test_is_lowered_relatively_and_enforced(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked = self.target(monkeypatch, 0)
        Domain(NoLibxl(), 7, UUID, "vm1").lower_memory_target(4096)
        assert asked == [(7, -4096, 1, 1)]

    def test_a_refusal_is_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.target(monkeypatch, -6)
        with pytest.raises(XenError, match="libxl_set_memory_target") as caught:
            Domain(NoLibxl(), 7, UUID, "vm1").lower_memory_target(4096)
        assert caught.value.rc == -6
