"""Finding a domain by its name, and dom0's memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pyxlsnap import paths
from pyxlsnap.errors import ClosedError, DomainNotFound, XenError
from pyxlsnap.model import DomainConfig, DomainInfo
from pyxlsnap.results import OnProgress
from pyxlsnap.xen import toolstack
from pyxlsnap.xen.compiled import libxl_was_replaced
from pyxlsnap.xen.context import Context
from pyxlsnap.xen.ffi import C, ffi, struct, text
from pyxlsnap.xen.toolstack import Toolstack
from tests.unit.support.guest import config_of
from tests.unit.support.values import OTHER_UUID, UUID


class Names(Toolstack):
    """Domains that have names, and no Xen. It is its own context, which knows the names."""

    _context: Any

    def __init__(self, *names: str) -> None:
        self._context = self
        self._names = names

    def domains(self) -> list[DomainInfo]:
        return [DomainInfo(n, UUID, False, False, "", False, 0) for n in range(len(self._names))]

    def name_of(self, domid: int) -> str:
        return self._names[domid]

    def domid_of(self, name: str) -> int | None:
        return self._names.index(name) if name in self._names else None


@pytest.mark.parametrize(
    ("domain", "nearest"),
    [("wbe1", ("web1",)), ("web", ("web1", "web-22")), ("Domain", ()), ("xyz", ()), ("77", ())],
)
def test_a_domain_that_is_not_there_has_the_names_like_it(
    domain: str, nearest: tuple[str, ...]
) -> None:
    host = Names("Domain-0", "web-22", "", "web1", "database")
    assert host.find("web1").domid == 3
    with pytest.raises(DomainNotFound) as caught:
        host.find(domain)
    assert (caught.value.domain, caught.value.nearest) == (domain, nearest)
    hint = ": did you mean " + " or ".join(map(repr, nearest)) + "?" if nearest else ""
    assert str(caught.value) == f"there is no domain {domain!r} (see `xl list`){hint}"


class NoContext(Context):
    """A context without libxl."""

    def __init__(self) -> None: ...

    def check_usable(self) -> None: ...

    @contextmanager
    def calling(self, on_progress: OnProgress | None = None) -> Iterator[None]:
        yield


class Unbound(Toolstack):
    """A Toolstack without a Xen."""

    def __init__(self) -> None:
        self._context = NoContext()


class TestDom0:
    def test_the_target_is_lowered_and_not_enforced(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[tuple[object, ...]] = []

        def target(_: object, *arguments: object) -> int:
            asked.append(arguments)
            return 0

        monkeypatch.setattr(toolstack, "C", SimpleNamespace(libxl_set_memory_target=target))
        Unbound().shrink_dom0(100)
        assert asked == [(0, -100, 1, 0)]

    @pytest.mark.parametrize(("rc", "reached"), [(0, True), (-3, False)])
    def test_dom0_itself_is_waited_for(
        self, monkeypatch: pytest.MonkeyPatch, rc: int, reached: bool
    ) -> None:
        asked: list[tuple[object, ...]] = []

        def wait(_: object, *arguments: object) -> int:
            asked.append(arguments)
            return rc

        monkeypatch.setattr(toolstack, "C", SimpleNamespace(libxl_wait_for_memory_target=wait))
        assert Unbound().wait_for_dom0(stalled_s=10) is reached
        assert asked == [(0, 10)]

    def test_both_are_bound(self) -> None:
        assert callable(C.libxl_set_memory_target)
        assert callable(C.libxl_wait_for_memory_target)


@pytest.mark.parametrize(
    ("content", "setting"),
    [
        ('autoballoon="on"', "on"),
        ('autoballoon="off"', "off"),
        ('autoballoon="1"', "1"),
        ('autoballoon="0"', "0"),
        ('autoballoon="auto"', "auto"),
        ('autoballoon=""', "auto"),
        ("# nothing", "auto"),
        ("syntax error", "auto"),
        (None, "auto"),
    ],
)
def test_autoballoon_is_as_in_xl_conf(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, setting: str
) -> None:
    monkeypatch.setattr(paths, "XL_CONF", tmp_path / "xl.conf")
    if content is not None:
        paths.XL_CONF.write_text(content + "\n")
    assert Unbound().autoballoon() == setting


@pytest.mark.parametrize(
    ("pool", "cpus"), [("", {0, 1}), ("fast", {1, 8, 11}), ("slow", None), ("gone", None)]
)
def test_a_cpu_pool_is_looked_up_as_libxl_does(
    monkeypatch: pytest.MonkeyPatch, pool: str, cpus: set[int] | None
) -> None:
    maps = {0: ffi.new("uint8_t[]", [0b11, 0]), 3: ffi.new("uint8_t[]", [0b10, 0b1001])}

    def look_up(_: object, name: Any, found: Any, __: object) -> int:
        number = {"fast": 3, "gone": 5}.get(text(name), 0)
        found[0] = number or found[0]
        return 0 if number else -5

    def tell(_: object, info: Any, number: int) -> int:
        if number not in maps:  # it ended meanwhile
            return -3
        info.cpumap.map, info.cpumap.size = maps[number], 2
        return 0

    functions = SimpleNamespace(
        libxl_cpupool_qualifier_to_cpupoolid=look_up,
        libxl_cpupoolid_is_valid=lambda _, number: int(number in (0, 3, 5)),
        libxl_cpupool_info=tell,
    )

    @contextmanager
    def info(name: str) -> Iterator[Any]:
        yield ffi.new(f"{name} *")

    monkeypatch.setattr(toolstack, "C", functions)
    monkeypatch.setattr(toolstack, "struct", info)
    assert Unbound().pool_cpus(pool) == cpus
    monkeypatch.undo()
    with struct("libxl_cpupoolinfo") as empty:
        assert empty.cpumap.size == 0
    assert callable(C.libxl_cpupool_qualifier_to_cpupoolid)
    assert callable(C.libxl_cpupoolid_is_valid)
    assert callable(C.libxl_cpupool_info)


@pytest.mark.parametrize(
    ("elsewhere", "runs", "there"),
    [(None, True, True), (None, False, False), ("0", False, False), ("7", False, True)],
)
def test_a_console_daemon_runs_here_or_in_a_domain_of_its_own(
    monkeypatch: pytest.MonkeyPatch, elsewhere: str | None, runs: bool, there: bool
) -> None:
    monkeypatch.setattr(toolstack, "may_run", lambda name: runs)
    host = Unbound()
    monkeypatch.setattr(host, "xenstore_read", {"/tool/xenconsoled/domid": elsewhere}.get)
    assert host.has_console_daemon() is there


class Made(Context):
    """A context in which libxl makes domain 7, or fails."""

    def __init__(self, *there: DomainInfo) -> None:
        self.there = list(there)

    def check_usable(self) -> None: ...

    @contextmanager
    def calling(self, on_progress: OnProgress | None = None) -> Iterator[None]:
        yield

    @contextmanager
    def parsed(self, config: DomainConfig) -> Iterator[Any]:
        with struct("libxl_domain_config") as parsed:
            yield parsed

    def check(self, rc: int, operation: str, *, domain: str = "") -> None:
        if rc:
            raise XenError(f"{operation} failed", rc=rc, operation=operation, domain=domain)

    def domains(self) -> list[DomainInfo]:
        return self.there

    def name_of(self, domid: int) -> str:
        return "vm1"


class TestNewDomain:
    """What libxl leaves of a domain that it could not make is known by its domid alone."""

    @pytest.fixture(params=["restore", "create"])
    def make(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
        destroyed: list[int] = []

        def made(*there: DomainInfo, rc: int = -3, domid: int = 7, destroy: int = 0) -> list[int]:
            def libxl(_ctx: object, _config: object, found: Any, *_: object) -> int:
                found[0] = domid
                return rc

            def end(_ctx: object, which: int, _how: object) -> int:
                destroyed.append(which)
                return destroy

            functions = SimpleNamespace(
                libxl_domain_create_restore=libxl,
                libxl_domain_create_new=libxl,
                libxl_domain_destroy=end,
                pyxlsnap_renew_genid=lambda *_: 0,
            )
            monkeypatch.setattr(toolstack, "C", functions)
            host = Unbound()
            host._context = Made(*there)
            run = host.create if request.param == "create" else lambda c: host.restore(c, 0)
            assert run(config_of()).domid == domid
            return destroyed

        made.destroyed = destroyed  # type: ignore[attr-defined]
        return made

    def info(self, domid: int, *, uuid: str = UUID, has_run: bool = False) -> DomainInfo:
        return DomainInfo(domid, uuid, True, False, "", False, 0, has_run=has_run)

    def test_is_found(self, make: Any) -> None:
        assert make(self.info(7), rc=0) == []

    def test_that_is_left_is_removed(self, make: Any) -> None:
        with pytest.raises(XenError):
            make(self.info(3), self.info(7))
        assert make.destroyed == [7]

    @pytest.mark.parametrize("domid", [7, 0xFFFFFFFF])
    def test_another_with_its_uuid_is_left_alone(self, make: Any, domid: int) -> None:
        with pytest.raises(XenError):
            make(self.info(8), domid=domid)
        assert make.destroyed == []

    def test_another_with_its_domid_is_left_alone(self, make: Any) -> None:
        with pytest.raises(XenError):
            make(self.info(7, uuid=OTHER_UUID))
        with pytest.raises(XenError):
            make(self.info(7, has_run=True))
        assert make.destroyed == []

    def test_that_cannot_be_removed_is_named(self, make: Any) -> None:
        with pytest.raises(XenError, match=r"_(restore|new) failed; .*xl destroy 7"):
            make(self.info(7), destroy=-3)


def test_a_generation_id_is_made_before_the_restore(monkeypatch: pytest.MonkeyPatch) -> None:
    """For reverts and clones: the clone only says so."""
    given: list[tuple[str, Any]] = []

    def renews(_ctx: object, config: Any) -> int:
        given.append(("renew", config))
        return 0

    def restores(_ctx: object, config: Any, domid: Any, *_: object) -> int:
        given.append(("restore", config))
        domid[0] = 7
        return 0

    functions = SimpleNamespace(pyxlsnap_renew_genid=renews, libxl_domain_create_restore=restores)
    monkeypatch.setattr(toolstack, "C", functions)
    host = Unbound()
    host._context = Made(DomainInfo(7, UUID, True, False, "", False, 0))
    host.restore(config_of(), 0)
    assert [verb for verb, _ in given] == ["renew", "restore"]
    assert given[0][1] == given[1][1]


class TestPlaces:
    def test_are_those_compiled_into_libxl(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("LIBXL_SAVE_HELPER", raising=False)
        found = Unbound().places()
        assert (found.state, found.logs) == ("/var/lib/xen", "/var/log/xen")
        assert Path(found.save_helper).name == "libxl-save-helper"
        assert found.scripts == "/etc/xen/scripts"

    def test_of_the_environment_go_first(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LIBXL_SAVE_HELPER", "/own/helper")
        assert Unbound().places().save_helper == "/own/helper"

    def test_are_not_guessed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("LIBXL_SAVE_HELPER", raising=False)
        library = tmp_path / "libxenlight.so.4.17"
        library.write_bytes(b"\0/a/scripts\0/b/scripts\0/a/%s.log\0/%s.log.1\0/userdata-%s\0")
        (tmp_path / "self").mkdir()
        (tmp_path / "self/maps").write_text(f"7f00-7f01 r--p 00000000 08:01 12  {library}\n")
        monkeypatch.setattr(paths, "PROC", tmp_path)
        assert Unbound().places() == paths.Places(logs="/a")


class TestDeviceModel:
    def test_is_the_one_compiled_into_libxl(self) -> None:
        assert Path(Unbound().device_model()).name.endswith("qemu-system-i386")

    @pytest.mark.parametrize(
        ("content", "found"),
        [
            (b"x\0/usr/lib/xen/bin/qemu-system-i386\0y", "/usr/lib/xen/bin/qemu-system-i386"),
            (b"x\0qemu-system-none\0y", "qemu-system-none"),
            (b"x\0sh\0y", ""),
            (b"\0/a/qemu-system-i386\0-\0/b/qemu-system-i386\0", ""),
            (None, ""),
        ],
    )
    def test_is_not_guessed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, found: str
    ) -> None:
        library = tmp_path / "libxenlight.so.4.17"
        if content is not None:
            library.write_bytes(content)
        (tmp_path / "self").mkdir()
        (tmp_path / "self/maps").write_text(f"7f00-7f01 r--p 00000000 08:01 12  {library}\n")
        monkeypatch.setattr(paths, "PROC", tmp_path)
        assert Unbound().device_model() == found


def test_a_libxl_that_was_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library = tmp_path / "libxenlight.so.4.17"
    (tmp_path / "self").mkdir()
    library.write_bytes(b"\0/usr/lib/xen/bin/qemu-system-i386\0")  # that of the new one
    lines = f"7f00-7f01 r--p 00000000 08:01 12  {library} (deleted)\n"
    (tmp_path / "self/maps").write_text(lines)
    monkeypatch.setattr(paths, "PROC", tmp_path)
    assert libxl_was_replaced()
    assert Unbound().places().replaced
    assert Unbound().device_model() == "/usr/lib/xen/bin/qemu-system-i386"
    (tmp_path / "self/maps").write_text(lines.replace(" (deleted)", ""))
    assert not libxl_was_replaced()
    assert not Unbound().places().replaced


def test_a_closed_toolstack_does_not_read_xl_conf() -> None:
    class Closed(NoContext):
        def check_usable(self) -> None:
            raise ClosedError("this Toolstack is closed")

    toolstack = Unbound()
    toolstack._context = Closed()
    with pytest.raises(ClosedError):
        toolstack.autoballoon()
