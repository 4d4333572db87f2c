"""The stream writer: writes a memory file from libxl's stream, each page once and at its place.

``include/stream_writer.h`` does the work, in C and without Python's lock. The file that it writes
is one that ``xl save`` could have written: ``xl restore`` reads it. It differs from the stream:

* Each page is in the file once, its last copy, in the order of the pfns. So a live snapshot takes
  no more space than one of a suspended guest.
* Pages of zeros are holes: they take no space on the disk.
* The data of each page begins at a multiple of 4096. The first record of pages begins at a
  multiple of 1 MiB. So two snapshots of one guest are equal, in blocks of 4096 bytes, where its
  memory is. They are equal at the same offsets as long as the guest has the same pages: one page
  that a balloon has taken or given moves all pages behind it by one place.
* A record lists all pages of 8 MiB of an HVM or PVH guest's memory, as far as they have data. From
  Xen 4.21 on, a restore can then give the guest pages of 2 MiB.
"""

import os
from collections.abc import Callable
from typing import Any

from pyxlsnap.dataclass import dataclass
from pyxlsnap.errors import BadMemoryFile

try:
    from pyxlsnap.memory._stream import ffi
    from pyxlsnap.memory._stream import lib as C
except ImportError as e:
    raise ImportError(f"{e}: pyxlsnap is not installed completely: install it again") from e

#: writes the header of the file, and returns its size. The argument: the number of bytes that the
#: stream has before its first page, which follow the header
WriteHeader = Callable[[int], int]


@dataclass(frozen=True, slots=True)
class Written:
    """What the stream writer has written up to now."""

    #: bytes of the stream
    received: int
    #: bytes that the stream had before its first page
    before: int
    #: size of the file in bytes
    size: int
    #: pages (4 KiB each) that have a place in the file
    pages: int
    #: pages among them that are holes in the file
    holes: int
    #: pages that came again and were written over their own place
    repeated: int
    #: pages that are in records behind the others: they came late, or had no data at first
    behind: int
    #: records of pages that are in the file as they came
    copied: int
    #: why records were copied as they came: ``ENDED_BY_...`` of ``include/stream.h``
    ended_how: int
    #: type of the libxc record after which they were
    ended_by: int

    @property
    def warning(self) -> str | None:
        """Why the file is larger than it could be, in a sentence."""
        if not self.copied:
            return None
        why = {
            C.ENDED_BY_RECORD: f"a record of type 0x{self.ended_by:x} came between the pages",
            C.ENDED_BY_LIST: "one of them lists too many pages",
            C.ENDED_BY_BEHIND: "too many pages came late",
        }[self.ended_how]
        return (
            f"the memory file is larger than necessary: {self.copied} of its records are as libxl "
            f"wrote them, because {why}"
        )


class Truncated(BadMemoryFile):
    """The stream has ended before its END: libxl has failed, or was aborted."""


class StreamWriter:
    """Writes the stream of one guest into one file.

    :param fd: a new, empty file, open for writing. It stays open.
    :param write_header: called once, when the first page comes.
    :param path: the file's name, for messages.
    :param max_rate: bytes of the stream to take in a second until :meth:`lift_limit`, for a live
        save. 0: no limit.
    """

    def __init__(self, fd: int, write_header: WriteHeader, path: str, *, max_rate: int = 0) -> None:
        self._write_header = write_header
        self._path = path
        self._c = ffi.gc(C.writer_new(fd), C.writer_free)
        if self._c == ffi.NULL:
            raise MemoryError
        C.writer_limit(self._c, max_rate)

    def own_descriptors(self, pipe_fd: int, stop_fd: int) -> None:
        """Give the calling thread descriptors of its own: the file, and the two of :meth:`run`.

        To be called once, on the thread that calls :meth:`run` next. From then on the thread can
        use no other descriptor, and shares none with the rest of the process.

        :raises OSError: it cannot be done.
        """
        if error := C.writer_own_descriptors(self._c, pipe_fd, stop_fd):
            raise self._os_error(error)

    def run(self, pipe_fd: int, stop_fd: int) -> None:
        """Read the stream from a pipe to its END.

        After an error of :meth:`run` the pipe must still be read: see :meth:`discard`.

        :param pipe_fd: the pipe, non-blocking.
        :param stop_fd: an eventfd that becomes readable when no more comes through the pipe. (A
            child of libxl may hold the other end of the pipe for longer, so there may be no EOF.)
        :raises OSError: the file cannot be written.
        :raises Truncated: the stream has ended before its END.
        :raises BadMemoryFile: the stream is damaged, or in an unknown format.
        """
        while (found := C.writer_run(self._c, pipe_fd, stop_fd)) == C.WRITER_HEADER:
            self._begin()
        self._check(found)

    def discard(self, pipe_fd: int, stop_fd: int) -> None:
        """After an error of :meth:`run`: read the rest of the stream, and write nothing."""
        C.writer_abandon(self._c)
        C.writer_run(self._c, pipe_fd, stop_fd)

    def feed(self, data: bytes) -> bool:
        """Take the next bytes of the stream; return whether the stream is complete.

        :raises OSError, BadMemoryFile: as :meth:`run`. Call it no more then.
        """
        used = ffi.new("size_t *")
        rest = memoryview(data)
        while True:
            found = C.writer_feed(self._c, ffi.from_buffer(rest), len(rest), used)
            rest = rest[used[0] :]
            if found == C.WRITER_HEADER:
                self._begin()
            elif found == C.WRITER_MORE:
                return False
            else:
                self._check(found)
                return True

    def lift_limit(self) -> None:
        """Take the stream as fast as it comes from now on. Any thread may call this.

        A guest that is suspended waits for its last pages.
        """
        C.writer_limit(self._c, 0)

    def punch(self) -> None:
        """Make holes of pages that are needless in the file. To be called after the END.

        They were overwritten with zeros, or the guest has given them away since they were written.

        This can take long: the system first writes out what is there. It is left out where the
        filesystem has no holes: the file is right without.
        """
        C.writer_punch(self._c)

    @property
    def written(self) -> Written:
        """What was written up to now. Not to be called while :meth:`run` runs."""
        report = self._report()
        return Written(
            received=report.received,
            before=report.before,
            size=report.end,
            pages=report.pages,
            holes=report.holes,
            repeated=report.repeated,
            behind=report.behind,
            copied=report.copied,
            ended_how=report.ended_how,
            ended_by=report.ended_by,
        )

    def _begin(self) -> None:
        """Let the header be written, and what the stream had before its first page behind it."""
        try:
            if error := C.writer_begin(self._c, self._write_header(self._report().before)):
                raise self._os_error(error)
        except BaseException:
            C.writer_abandon(self._c)
            raise

    def _check(self, found: int) -> None:
        if found == C.WRITER_CUT:
            raise Truncated("the stream of libxl ends before its END", path=self._path)
        if found == C.WRITER_FAILED:
            report = self._report()
            if report.complaint == ffi.NULL:
                raise self._os_error(report.error)
            complaint = os.fsdecode(ffi.string(report.complaint))
            raise BadMemoryFile(f"the stream of libxl cannot be used: {complaint}", path=self._path)

    def _os_error(self, error: int) -> OSError:
        return OSError(error, os.strerror(error), self._path)

    def _report(self) -> Any:
        report = ffi.new("struct writer_report *")
        C.writer_tell(self._c, report)
        return report
