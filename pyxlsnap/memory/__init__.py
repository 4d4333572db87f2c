"""Memory files: a header as ``xl save`` writes it, and libxl's stream of the guest's memory.

:mod:`.savefile` writes and reads the header; :mod:`.stream` walks the stream behind it, by the
rules in :mod:`.records`; :mod:`.source` is how both read a file that may be damaged.
"""

from pyxlsnap.memory.header import Header, read_header, write_header
from pyxlsnap.memory.records import Container
from pyxlsnap.memory.stream import StreamSummary, walk

__all__ = ["Container", "Header", "StreamSummary", "read_header", "walk", "write_header"]
