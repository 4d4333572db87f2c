"""The lab can be told to wait longer."""

import pytest

from tests.lab.harness import patience


def test_nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(patience.NAME, raising=False)
    assert patience.patient(20) == 20
    monkeypatch.setenv(patience.NAME, "")
    assert patience.patient(20) == 20


def test_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(patience.NAME, "2.5")
    assert patience.patient(20) == 50


@pytest.mark.parametrize("text", ["0.5", "-1", "soon", "nan", "inf"])
def test_no_such_patience(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(patience.NAME, text)
    with pytest.raises(SystemExit, match=f"^PATIENCE={text}: a number from 1"):
        patience.patient(20)
