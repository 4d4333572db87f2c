"""Faults of the emulated processor, which are neither ours nor a guest's."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from .dom0 import CommandFailed, Dom0

_LOGS = "/var/log/xen/guest-*.log"
#: bits of the flags that are 0 on every processor
_RESERVED = 0xFFC08028


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
    return below_entry_stack is not None or any(int(found, 16) & _RESERVED for found in flags)


@contextmanager
def blaming_the_processor(dom0: Dom0) -> Iterator[None]:
    """Put around a test: if it fails after a guest was harmed so, the failure is that.

    Such a guest has not only fallen silent: it may have crashed, and a command told so.

    :raises EmulationFault: from the failure of the test.
    """
    try:
        yield
    except EmulationFault:
        raise
    except (Exception, pytest.fail.Exception) as e:
        if blames_the_processor(said := _registers(dom0)):
            raise EmulationFault(f"{e}\n{said}") from e
        raise


def _registers(dom0: Dom0) -> str:
    """What the kernels of the guests have said of their registers, in their logs."""
    try:
        return dom0.run(f"grep -hiE '(eflags|cr2):' {_LOGS}", check=False).out
    except (CommandFailed, OSError):
        return ""
