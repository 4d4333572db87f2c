"""The functions that are fuzzed, with their inputs and their allowed results.

Any other exception is a finding, and so is the use of more memory than :data:`MEMORY`.
"""

import os
import random
import resource
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Final

import pytest

from pyxlsnap import cfgfile
from pyxlsnap.errors import BadMemoryFile, ConfigError, PyxlsnapError
from pyxlsnap.memory import walk
from pyxlsnap.model import SnapshotConfig
from tests.fuzz import inputs, stream_inputs
from tests.unit.support.operations import plan_revert
from tests.unit.support.restores import Restored, restored
from tests.unit.support.world import make_world
from tests.unit.support.written import fed, restored_file, writing

#: bytes of address space that the process may allocate for one input
MEMORY: Final = 64 << 20

#: reads one input; an exception is a finding
Read = Callable[[bytes], None]


@contextmanager
def cfgfiles() -> Iterator[Read]:
    """A config file is refused or read. The result can be written, and is equal when read again."""

    def read(data: bytes) -> None:
        try:
            found = cfgfile.parse(data, file="x")
        except ConfigError as e:
            _check_one_line(e)
            return
        again = cfgfile.parse(cfgfile.render(found).encode(), file="again")
        assert again == found, f"{found} was written, {again} was read"

    yield read


@contextmanager
def memory_files() -> Iterator[Read]:
    """A memory file is refused, or the revert to it is planned, on a fake host."""
    with (
        tempfile.TemporaryDirectory() as directory,
        pytest.MonkeyPatch.context() as patch,
        open(os.memfd_create("memory file"), "wb", buffering=0) as file,
    ):
        world = make_world(Path(directory, "world"), patch)
        world.guest(world.image("xvda"))
        world.storage.snapshots |= {("xvda", "before"): "", ("xvdb", "before"): ""}
        wanted = SnapshotConfig("before", memory_path=f"/proc/self/fd/{file.fileno()}")

        def read(data: bytes) -> None:
            inputs.write(file.fileno(), data)
            world.events.clear()
            try:
                plan = plan_revert(world.host, "vm1", wanted, Path("x.cfg"), force=True)
            except BadMemoryFile as e:
                _check_one_line(e)
            except PyxlsnapError:
                pass
            else:
                plan.summary()

        yield read


@contextmanager
def written() -> Iterator[Read]:
    """The stream writer refuses a stream, or writes a file that restores to the same memory.

    It writes each stream that a revert would take.
    """

    def read(data: bytes) -> None:
        stream = stream_inputs.decoded(data)
        with writing() as (writer, file):
            try:
                complete = fed(writer, stream, [len(data) % 97 + 1, 5000])
            except BadMemoryFile as e:
                _check_one_line(e)
                complete = False
            if _is_whole(stream):
                assert complete, "the stream was not written"
                _check_same(restored_file(file), restored(stream))
            writer.punch()

    yield read


def _is_whole(stream: bytes) -> bool:
    """Whether a revert takes the stream."""
    try:
        return walk(BytesIO(stream), "x").guest_pages > 0
    except BadMemoryFile:
        return False


def _check_same(found: Restored, wanted: Restored) -> None:
    assert found.memory == wanted.memory, "the memory is another"
    assert found.absent == wanted.absent, "the pages that are not there are others"
    assert found.others == wanted.others, "the other records are others"


@dataclass(frozen=True)
class Target:
    """A function to fuzz, and what the fuzzer must know about its format."""

    reading: Callable[[], AbstractContextManager[Read]]
    seeds: Callable[[], Sequence[bytes]]
    words: Sequence[bytes]
    #: repairs the parts of a changed input that no random change would repair, such as checksums
    repair: Callable[[bytes, random.Random], bytes] = lambda data, chance: data
    #: whether the stream writer is used, compiled with the sanitizers
    sanitized: bool = False


TARGETS: Final[Mapping[str, Target]] = {
    "cfgfile": Target(cfgfiles, inputs.cfgfiles, inputs.CFGFILE_WORDS),
    "memory": Target(
        memory_files, inputs.memory_files, inputs.MEMORY_WORDS, inputs.repaired_otherwise
    ),
    "stream": Target(written, stream_inputs.seeds, stream_inputs.WORDS, sanitized=True),
}


@contextmanager
def bounded() -> Iterator[None]:
    """Limit the memory to :data:`MEMORY` more bytes, for Python (MemoryError) and for C."""
    old, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (old, hard))


def _check_one_line(error: PyxlsnapError) -> None:
    assert "\n" not in str(error), f"a message of several lines: {str(error)!r}"
