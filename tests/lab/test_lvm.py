"""The LVM strategies against the real LVM, without a guest: what test_mixed.py has no time for."""

import pytest

from tests.lab.harness.lab import Lab
from tests.lab.harness.snapshots import run_script


@pytest.mark.soak
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", ["thin", "thick", "space"])
def test_lvm(lab: Lab, part: str) -> None:
    done = run_script(lab.dom0, "lvm_check.py", part, timeout=1500)
    print(done.out)
    assert done.rc == 0, done
