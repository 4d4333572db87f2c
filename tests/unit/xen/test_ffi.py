"""Return codes, and the compiled module."""

import re

import pytest

from pyxlsnap.errors import Aborted, DomainNotFound, GuestTimeout, XenError
from pyxlsnap.xen.ffi import C, check, domain_info, struct
from tests.unit.support.resources import python


def test_a_libxl_of_another_release_is_told_with_the_way_out() -> None:
    run = python(
        "import sys\n"
        "sys.modules['pyxlsnap.xen._ffi'] = None\n"  # it cannot be loaded
        "import pyxlsnap.xen.toolstack\n"
    )
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].endswith(
        ": install the pyxlsnap that is built for this release of Xen"
    )


@pytest.mark.parametrize("rc", range(-1, -40, -1))
def test_every_return_code_becomes_one_exception(rc: int) -> None:
    kinds: dict[int, type[Exception]] = {
        C.ERROR_ABORTED: Aborted,
        C.ERROR_GUEST_TIMEDOUT: GuestTimeout,
        C.ERROR_DOMAIN_NOTFOUND: DomainNotFound,
    }
    kind = kinds.get(rc, XenError)
    with pytest.raises(kind) as caught:
        check(rc, "libxl_x", domain="vm1", log=("first", "last"))
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    if isinstance(caught.value, XenError):
        error = caught.value
        assert (error.rc, error.operation, error.domain) == (rc, "libxl_x", "vm1")
        assert error.log == ("first", "last")
        assert re.fullmatch(rf"libxl_x of vm1 failed: .+ \({rc}\): last", str(error))


def test_success_is_none() -> None:
    check(0, "libxl_x")


def test_without_a_log_the_code_has_to_do() -> None:
    with pytest.raises(XenError) as caught:
        check(C.ERROR_INVAL, "libxl_x")
    assert not str(caught.value).endswith(": ")


@pytest.mark.parametrize(
    ("ns", "has_run", "seconds"), [(0, False, 0.0), (1, True, 1e-9), (90_000_000_000, True, 90.0)]
)
def test_the_processor_time_of_a_domain(ns: int, has_run: bool, seconds: float) -> None:
    with struct("libxl_dominfo") as info:
        info.cpu_time = ns
        found = domain_info(info)
    assert found.has_run is has_run
    assert found.cpu_seconds == pytest.approx(seconds)
