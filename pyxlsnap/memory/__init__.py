"""Memory files: a header in the format of ``xl save``, then libxl's stream of the guest's memory.

:mod:`.header` writes and reads the header. :mod:`.stream` checks the stream behind the header, with
the rules in :mod:`.records`, and :mod:`.pfns` counts the pages of the guest. The file is read
through :mod:`.reader`, because the file may be truncated or damaged.

libxl writes its stream into a pipe. :mod:`.receiver` reads the pipe, and :mod:`.writer` writes the
file, each page once and at its place.
"""

from pyxlsnap.memory.header import Header, read_header, write_header
from pyxlsnap.memory.records import Container
from pyxlsnap.memory.stream import StreamSummary, walk

__all__ = ["Container", "Header", "StreamSummary", "read_header", "walk", "write_header"]
