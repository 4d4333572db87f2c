"""The inputs of the fuzzer for the stream writer.

An input is a stream, or a short program that makes one: of the fuzzer's changes of a stream with
its lengths, few are streams. Four bytes of a program are a page, or the end of a record.
"""

import struct
from typing import Final

from tests.unit.support import streams
from tests.unit.support.written import Page, page_record, stream_of

_STEP: Final = struct.Struct("<BHB")
_KINDS: Final = (*streams.WITH_DATA, *streams.WITHOUT_DATA)
#: instead of a type: the end of the record, and a record that is not of pages
_END: Final = 0xF0
_OTHER: Final = 0xFF
#: pages in one stream: more would only take longer
_LIMIT: Final = 400
WORDS: Final = (
    *(b"LibxlFmt", b"XENF", b"\1\0\0\0", b"\x11\0\0\x80", b"\xff\xff\xff\xff", b"\0\0\0\x08"),
    *(bytes([kind << 4]) for kind in range(16)),
)


def decoded(data: bytes) -> bytes:
    """The stream of an input."""
    if data.startswith(b"LibxlFmt"):
        return data
    records: list[bytes] = []
    pages: list[Page] = []
    steps = data[1 : 1 + _STEP.size * _LIMIT]
    for kind, pfn, fill in _STEP.iter_unpack(steps[: len(steps) // _STEP.size * _STEP.size]):
        if kind < _END:
            pages.append((pfn, _KINDS[kind % len(_KINDS)], fill % 4))
            continue
        records += [page_record(pages)] if pages else []
        pages = []
        if kind == _OTHER:
            records.append(streams.record(0x80000000 | pfn, bytes(fill)))
    records += [page_record(pages)] if pages else []
    return stream_of(bool(data[:1] > b"\x7f"), records)


def seeds() -> list[bytes]:
    """Streams, and programs for both kinds of guests."""
    return [
        streams.pv_stream((0, 0xF, 1)),
        streams.hvm_stream((0, 0xD)),
        *(kind + _program() for kind in (b"\0", b"\xff")),
        b"\0" + _program() + _STEP.pack(_OTHER, 1, 5) + _program(),
    ]


def _program() -> bytes:
    """A first pass with a page of zeros, and pages that come again, change, and come late."""
    first = [(0, n, n % 3) for n in (0, 1, 2, 509, 510, 2047, 2048)]
    lost = [(len(_KINDS) - 1, 1, 0), (_END, 0, 0), (0, 1, 2), (_END, 0, 0)]
    late = [(0, 5, 1), (2, 5, 0), (0, 2, 0), (_END, 0, 0), (0, 6, 1)]
    return b"".join(_STEP.pack(*step) for step in (*first, (_END, 0, 0), *lost, *late))
