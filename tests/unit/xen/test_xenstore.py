"""xenstore where there is none."""

import pytest

from pyxlsnap.errors import XenError
from pyxlsnap.xen.xenstore import DomainWatch, Xenstore
from tests.unit.support.resources import Resources
from tests.unit.support.waiting import on_xen


@on_xen
def test_no_xenstore_is_an_error_of_no_libxl_call_and_leaves_nothing() -> None:
    before = Resources()
    for connect in (lambda: Xenstore().read("domid"), DomainWatch):
        with pytest.raises(XenError, match="cannot connect to xenstore: ") as caught:
            connect()
        assert (caught.value.rc, caught.value.operation) == (None, "xs_open")
    before.assert_unchanged()
