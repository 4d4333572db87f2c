"""xenstore where there is none, and one of a single node."""

import errno
from collections.abc import Iterator

import pytest

from pyxlsnap.errors import XenError
from pyxlsnap.xen import xenstore
from pyxlsnap.xen.ffi import CData, ffi, text
from pyxlsnap.xen.xenstore import DomainWatch, NodeWatch, Xenstore, empty_node
from tests.unit.support.resources import Resources
from tests.unit.support.waiting import on_xen


@on_xen
def test_no_xenstore_is_an_error_of_no_libxl_call_and_leaves_nothing() -> None:
    before = Resources()
    for connect in (lambda: Xenstore().read("domid"), DomainWatch, lambda: NodeWatch(["/a"])):
        with pytest.raises(XenError, match="cannot connect to xenstore: ") as caught:
            connect()
        assert (caught.value.rc, caught.value.operation) == (None, "xs_open")
    before.assert_unchanged()


class Store:
    """xenstored with one node, in the place of libxenstore's functions."""

    def __init__(self, value: bytes | None, *, rivals: int = 0, fails: str = "") -> None:
        self.value, self.written = value, value
        #: how often another writer comes first; what it leaves is its answer
        self.rivals = rivals
        self.fails = fails
        self.open = 0

    def xs_open(self, flags: int) -> object:
        assert flags == 0  # a read-only connection cannot write
        self.open += 1
        return ffi.cast("void *", 1)

    def xs_close(self, xs: object) -> None:
        self.open -= 1

    def xs_transaction_start(self, xs: object) -> int:
        return 0 if self.fails == "xs_transaction_start" else 7

    def xs_read(self, xs: object, t: int, path: bytes, length: object) -> object:
        assert t == 7
        if self.value is None:
            return ffi.NULL
        self.given = ffi.new("char[]", self.value)
        return self.given

    def xs_write(self, xs: object, t: int, path: bytes, data: bytes, length: int) -> bool:
        assert t == 7
        self.written = bytes(data)[:length]
        return self.fails != "xs_write"

    def xs_transaction_end(self, xs: object, t: int, abort: bool) -> bool:
        if abort or self.fails == "xs_transaction_end":
            ffi.errno = errno.EIO
            return abort
        if self.rivals:
            self.rivals -= 1
            self.value = b""
            ffi.errno = errno.EAGAIN
            return False
        self.value = self.written
        return True


@pytest.fixture
def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    found = Store(b"suspend")
    monkeypatch.setattr(xenstore, "C", found)
    monkeypatch.setattr(xenstore, "take_string", text)
    yield found
    assert found.open == 0


class TestEmpty:
    """A node is emptied if it has a value."""

    def test_one_that_has_it_is_emptied(self, store: Store) -> None:
        assert empty_node("/control/shutdown", "suspend")
        assert store.value == b""

    @pytest.mark.parametrize("value", [None, b"", b"poweroff"])
    def test_another_value_stays(self, store: Store, value: bytes | None) -> None:
        store.value = value
        assert not empty_node("/control/shutdown", "suspend")
        assert store.value == value

    def test_a_guest_that_answers_at_that_moment_comes_first(self, store: Store) -> None:
        store.rivals = 1
        assert not empty_node("/control/shutdown", "suspend")

    @pytest.mark.parametrize("call", ["xs_transaction_start", "xs_write", "xs_transaction_end"])
    def test_a_failure_is_named(self, store: Store, call: str) -> None:
        store.fails = call
        with pytest.raises(XenError, match="cannot write to xenstore") as caught:
            empty_node("/control/shutdown", "suspend")
        assert caught.value.operation == call


class Watched:
    """xenstored with watches, in the place of libxenstore's functions.

    A report is there only when one is waited for; an answer comes at once.
    """

    def __init__(self) -> None:
        self.watched: list[str] = []
        #: the tokens of reports that are on their way, and of those that are there
        self.coming: list[str] = []
        self.there: list[str] = []
        #: the functions that fail
        self.fails: set[str] = set()
        self.open = 0

    def changes(self, *, arrived: bool = False) -> None:
        (self.there if arrived else self.coming).append("")

    def xs_open(self, flags: int) -> object:
        self.open += 1
        return ffi.cast("void *", 1)

    def xs_close(self, xs: object) -> None:
        self.open -= 1

    def xs_watch(self, xs: object, path: CData, token: CData) -> bool:
        self.watched.append(text(path))
        self.coming.append(text(token))
        ffi.errno = errno.EPIPE
        return "xs_watch" not in self.fails

    def xs_read_watch(self, xs: object, count: object) -> object:
        self.there, self.coming = self.there + self.coming, []
        if "xs_read_watch" in self.fails:
            ffi.errno = errno.EPIPE
            return ffi.NULL
        assert self.there, "it would wait for ever"
        self.token = ffi.new("char[]", self.there.pop(0).encode())
        self.report = ffi.new("char *[]", [ffi.NULL, self.token])
        return self.report

    def xs_check_watch(self, xs: object) -> object:
        if self.there:
            self.there.pop(0)
            return ffi.cast("void *", 1)
        ffi.errno = errno.EPIPE if "xs_check_watch" in self.fails else errno.EAGAIN
        return ffi.NULL

    def free(self, pointer: object) -> None: ...


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    found = Watched()
    monkeypatch.setattr(xenstore, "C", found)
    yield found
    assert found.open == 0


class TestNodes:
    """Changes of nodes are noticed."""

    def test_each_path_is_watched_and_the_first_reports_are_no_changes(
        self, watched: Watched
    ) -> None:
        with NodeWatch(["/a", "/b"]) as nodes:
            assert watched.watched[:2] == ["/a", "/b"]
            assert not nodes.changed()
            assert not nodes.reported()
        nodes.close()

    def test_a_report_that_is_on_its_way_is_waited_for_and_told_once(
        self, watched: Watched
    ) -> None:
        with NodeWatch(["/a"]) as nodes:
            watched.changes(arrived=True)
            watched.changes()
            assert (nodes.changed(), nodes.changed()) == (True, False)

    def test_only_reports_that_are_there_can_be_told_without_a_question(
        self, watched: Watched
    ) -> None:
        with NodeWatch(["/a"]) as nodes:
            watched.changes()
            assert not nodes.reported()
            watched.changes(arrived=True)
            watched.changes(arrived=True)
            assert (nodes.reported(), nodes.reported()) == (True, False)

    @pytest.mark.parametrize("call", ["xs_watch", "xs_read_watch"])
    def test_a_failure_is_named_and_leaves_no_connection(self, watched: Watched, call: str) -> None:
        watched.fails.add(call)
        with pytest.raises(XenError, match="Broken pipe") as caught:
            NodeWatch(["/a"])
        assert caught.value.operation == call

    def test_ctrl_c_leaves_no_connection(
        self, watched: Watched, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(watched, "xs_read_watch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            NodeWatch(["/a"])

    @pytest.mark.parametrize("call", ["xs_watch", "xs_read_watch"])
    def test_a_connection_that_is_lost_later_is_no_absence_of_changes(
        self, watched: Watched, call: str
    ) -> None:
        with NodeWatch(["/a"]) as nodes:
            watched.fails.add(call)
            with pytest.raises(XenError, match="xenstore"):
                nodes.changed()

    def test_nor_is_it_if_nothing_is_asked(self, watched: Watched) -> None:
        with NodeWatch(["/a"]) as nodes:
            watched.fails.add("xs_check_watch")
            with pytest.raises(XenError, match="the connection to xenstore is lost"):
                nodes.reported()


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt
