"""What others have chosen is shown in one line, and survives a shell."""

import os
import subprocess

from hypothesis import given, settings
from hypothesis import strategies as st

from pyxlsnap.errors import Refused
from pyxlsnap.text import command, mib, one_line, quote
from tests.unit.support.hostile import HOSTILE


@given(st.lists(HOSTILE, min_size=1, max_size=5))
@settings(max_examples=60)
def test_a_shell_gets_the_words_back(words: list[str]) -> None:
    script = "printf '%s\\0' " + command(words)
    run = subprocess.run(["bash", "-c", os.fsencode(script)], capture_output=True, check=True)
    assert [os.fsdecode(word) for word in run.stdout.split(b"\0")[:-1]] == words
    assert one_line(script) == script


def test_what_is_plain_stays_plain() -> None:
    assert quote("/srv/a.cfg") == "/srv/a.cfg"
    assert quote("it's") == "'it'\"'\"'s'"
    assert quote("a\nb\\") == "$'a\\012b\\\\'"


@given(st.text())
def test_every_message_is_one_printable_line(text: str) -> None:
    shown = one_line(text)
    assert len(shown.splitlines()) <= 1
    assert not set(shown) & set(map(chr, range(32)))
    shown.encode()  # strictly
    assert one_line(shown) == shown
    assert str(Refused(text)) == shown


def test_what_is_hidden_can_be_read() -> None:
    assert one_line("a\nb\x1b[31m\udcff\u202e\x9bé") == "a\\nb\\x1b[31m\\xff\\u202e\\x9bé"


def test_a_size_is_never_shown_too_small() -> None:
    sizes = (0, 1, 1 << 20, (1 << 20) + 1)
    assert [mib(size) for size in sizes] == ["0 MiB", "1 MiB", "1 MiB", "2 MiB"]
