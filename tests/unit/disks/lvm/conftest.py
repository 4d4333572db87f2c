"""An LVM in memory, with volumes of both kinds."""

from pathlib import Path

import pytest

from tests.unit.support.lvm import KINDS, FakeLvm, install, populate


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeLvm:
    found = FakeLvm(tmp_path)
    populate(found)
    install(found, monkeypatch)
    return found


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)
