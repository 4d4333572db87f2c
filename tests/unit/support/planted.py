"""The fuzzer with a fault planted in a reader: ``python -m`` this module FAULT, then as it is."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NoReturn

# Before anything of the package is imported: the fuzzer instruments what it imports.
from tests.fuzz import __main__ as fuzzer
from tests.fuzz.targets import MEMORY, TARGETS, Read


def raises() -> NoReturn:
    raise KeyError("planted")


def aborts() -> None:
    os.abort()


def takes_memory() -> None:
    bytes(2 * MEMORY)


def takes_for_ever() -> NoReturn:
    while True:
        pass


FAULTS: tuple[Callable[[], None], ...] = (raises, aborts, takes_memory, takes_for_ever)


def main(name: str) -> int:
    (fault,) = [fault for fault in FAULTS if fault.__name__ == name]

    @contextmanager
    def reading() -> Iterator[Read]:
        def read(data: bytes) -> None:
            # No input that the fuzzer starts from has two brackets in a row.
            if b"[[" in data:
                fault()

        yield read

    target = replace(TARGETS["cfgfile"], reading=reading)
    vars(fuzzer)["TARGETS"] = {"cfgfile": target}
    return fuzzer.main()


if __name__ == "__main__":
    sys.exit(main(sys.argv.pop(1)))
