"""Faults of the emulated processor, which are neither ours nor a guest's."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from .dom0 import CommandFailed, Dom0

_LOGS = "/var/log/xen/guest-*.log"
#: bits of the flags that are 0 on every processor; and the one that is 1
_ALWAYS_0, _ALWAYS_1 = 0xFFC08028, 0x2


class EmulationFault(TimeoutError):
    """A guest was harmed because its emulated processor did what no processor does.

    The test is run once more (Makefile). Seen on Xen 4.20 alone: an HVM guest, once after a plain
    ``xl restore``, and a PVH guest whose flags had reserved bits (and the bit that lets the kernel
    write zeros backwards); a PVH guest beside its clone, whose kernel took one fault inside the
    other until the 4 KiB stack of its entry code was full.
    """


def blames_the_processor(text: str) -> bool:
    """Whether a kernel's message or a look at a processor shows what no kernel's code does.

    Reserved bits in the flags; or a push below the entry stack of the first processor, which lies
    at one address in a Linux without KASLR: the entry code uses a small part of it.
    """
    flags = re.findall(r"\bE?flags: ([0-9a-f]{8})\b", text, re.IGNORECASE)
    below_entry_stack = re.search(r"\bcr2: fffffe0000001[0-9a-f]{3}\b", text, re.IGNORECASE)
    return below_entry_stack is not None or any(_is_impossible(int(found, 16)) for found in flags)


def _is_impossible(flags: int) -> bool:
    return flags & (_ALWAYS_0 | _ALWAYS_1) != _ALWAYS_1


@contextmanager
def blaming_the_processor(dom0: Dom0) -> Iterator[None]:
    """Put around a test: if it fails after a guest was harmed so, the failure is that.

    Such a guest has not only fallen silent: it may have crashed, and a command told so.

    :raises EmulationFault: from the failure of the test.
    """
    try:
        yield
    except (Exception, pytest.fail.Exception) as e:
        if blames_the_processor(said := _flags_said(dom0)):
            raise EmulationFault(f"{e}\n{said}") from e
        raise


def _flags_said(dom0: Dom0) -> str:
    """The lines about flags in the guests' logs."""
    try:
        return dom0.run(f"grep -hi eflags: {_LOGS}", check=False).out
    except (CommandFailed, OSError):
        return ""
