"""Whatever somebody does between a create and a revert, on a real Xen: tests/rehearsal.

A revert that is refused has not cost the guest a tick; never does one end with 4.
"""

from collections.abc import Iterator

import pytest

from tests.lab.harness.lab import Lab
from tests.lab.harness.machine import Machine
from tests.lab.harness.rehearsal import Stage
from tests.rehearsal import CONDITIONS
from tests.rehearsal.condition import Condition

HERE = [c for c in CONDITIONS if not c.off_xen_only]
CELLS = [pytest.param(c, id=str(c), marks=[] if c.lab else [pytest.mark.soak]) for c in HERE]


class _Stages:
    """The stage of the machine at hand."""

    def __init__(self) -> None:
        self._made: Stage | None = None
        self._on: Machine | None = None

    def get(self, lab: Lab) -> Stage:
        if self._made is None or self._on is not lab.machine:
            self._made, self._on = Stage(lab), lab.machine
        lab.guest("pvh"), lab.guest("pv")
        return self._made


@pytest.fixture(scope="module")
def stages(_lab: Lab) -> Iterator[_Stages]:
    yield _Stages()
    _lab.spend()  # its guests have other disks now


@pytest.mark.long
@pytest.mark.parametrize("condition", CELLS)
def test_condition(
    lab: Lab, stages: _Stages, condition: Condition, request: pytest.FixtureRequest
) -> None:
    stage = stages.get(lab)
    guest, names = stage.guest, stage.names
    guest.wait_tick(stage.taken.after.n + 2)
    mark = guest.mark()
    stage.begin()
    stage.do(condition.do, names)
    before = stage.photo()
    done = stage.revert(condition, names)
    assert done.rc == condition.status, done
    assert condition.says.format(**names) in done.err
    if condition.status:
        assert stage.photo() == before
        if before[0] and not condition.harms:
            guest.assert_healthy()
    if condition.status == 5:
        assert stage.revert(condition, names, "--force").rc == 0
    stage.do(condition.undo, names)
    # What only moved away and back leaves a guest that goes on. `make soak` reverts all again.
    soak = request.node.get_closest_marker("soak") is not None
    needs_revert = condition.undone or condition.harms or soak
    if condition.status == 3 and before[0] and not needs_revert:
        guest.assert_healthy()
        return
    if condition.status == 3 and not condition.final:
        again = stage.revert(condition, names, *condition.undone)
        assert again.rc == 0, again
    stage.check_back(mark)
