"""Checks a whole libxl stream, so that a revert knows beforehand that Xen can restore the stream.

One format contains the other. libxl's stream (docs/specs/libxl-migration-stream.pandoc in Xen's
source) has a header and records. Its LIBXC_CONTEXT record is followed by an image in libxc's format
(docs/specs/libxc-migration-stream.pandoc), which has two headers and its own records::

    libxl header | LIBXC_CONTEXT | image | EMULATOR_XENSTORE_DATA, EMULATOR_CONTEXT | END
                                   HVM only: the state of its QEMU

:func:`walk` refuses every stream that Xen's readers refuse (tools/libs/guest/xg_sr_restore*.c and
tools/libs/light/libxl_stream_read.c). It also refuses faults that Xen's readers find too late, when
the running domain is already destroyed, or never. :mod:`.records` checks the records of an image.
"""

import struct
from collections.abc import Callable
from typing import BinaryIO, Final

from pyxlsnap.dataclass import dataclass
from pyxlsnap.memory.reader import Reader
from pyxlsnap.memory.records import HEAD, Container, Image, Libxc, Libxl, Record

_BIG_ENDIAN: Final = 1

_LIBXL_HEADER: Final = struct.Struct(">8s2I")
_LIBXL_IDENT: Final = b"LibxlFmt"
_LIBXL_VERSION: Final = 2
_LIBXL_CONVERTED: Final = 2

_IMAGE_HEADER: Final = struct.Struct(">Q4sIH6x")
_IMAGE_MARKER: Final = 0xFFFFFFFFFFFFFFFF
_IMAGE_IDENT: Final = b"XENF"
_IMAGE_VERSIONS: Final = (2, 3)

_DOMAIN_HEADER: Final = struct.Struct("<IH2x2I")
_CONTAINERS: Final = {1: Container.PV, 2: Container.HVM}
_PAGE_SHIFT: Final = 12
_PAGE_KB: Final = 4

_RECORD: Final = struct.Struct("<2I")
_CHECKPOINTS: Final = (Libxl.CHECKPOINT_END, Libxl.CHECKPOINT_STATE)
_EMULATOR: Final = (Libxl.EMULATOR_XENSTORE_DATA, Libxl.EMULATOR_CONTEXT)
_QEMU_TRADITIONAL: Final = 1
_QEMU_UPSTREAM: Final = 2
#: bytes; a few KiB are usual. The format has no limit: this one bounds the memory used.
_XENSTORE_LIMIT: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class StreamSummary:
    """Information about the guest in a stream."""

    #: how Xen runs the guest
    container: Container
    #: major version of the Xen that saved the guest
    xen_major: int
    #: minor version of the Xen that saved the guest
    xen_minor: int
    #: version of libxc's image format: 3, or 2 before Xen 4.14
    libxc_version: int
    #: number of pages (4 KiB each) in the stream; a live save writes some pages more than once
    pages: int
    #: number of different pages that a restore of the stream gives the guest; they need not have
    #: data in the stream
    guest_pages: int
    #: the stream has the state of a QEMU: the guest is HVM, not PV or PVH
    has_emulator: bool
    #: offset of the first byte after the stream in bytes: the size of the file
    end_offset: int

    @property
    def memory_kb(self) -> int:
        """Memory that the guest has after a restore of the stream, KiB."""
        return self.guest_pages * _PAGE_KB


def walk(f: BinaryIO, path: str, *, on_bytes: Callable[[int], None] | None = None) -> StreamSummary:
    """Check a libxl stream from the current position to the end of the file.

    The contents of pages are skipped and not read, so the check is fast even on a file of many GiB.
    The memory used is small: 0.2 MiB for 4 GiB of the guest's memory (see :class:`.pfns.PfnSet`).

    :param f: the file, seekable, at the first byte of the stream. Afterwards its position is the
        end of the file; after an error, any position.
    :param path: the file's name, for messages.
    :param on_bytes: called after each record with the number of bytes checked up to now. An
        exception of this callback ends the check and reaches the caller.
    :raises BadMemoryFile: the stream is truncated, damaged, checkpointed (Remus, COLO), in an
        unknown format, or not at the end of the file. The message names the record and its offset.
    """
    return _Walk(Reader(f, path), on_bytes).run()


class _Walk:
    def __init__(self, reader: Reader, on_bytes: Callable[[int], None] | None) -> None:
        self._reader = reader
        self._start = reader.offset
        self._on_bytes = on_bytes
        self._image: Image | None = None
        self._xen = (0, 0)
        self._seen: set[int] = set()

    def run(self) -> StreamSummary:
        self._libxl_header()
        while (record := self._record(Libxl)).type != Libxl.END:
            self._libxl_record(record)
        image = self._finish(record)
        return StreamSummary(
            container=image.container,
            xen_major=self._xen[0],
            xen_minor=self._xen[1],
            libxc_version=image.version,
            pages=image.pages,
            guest_pages=len(image.guest_pfns),
            has_emulator=Libxl.EMULATOR_CONTEXT in self._seen,
            end_offset=self._reader.offset,
        )

    def _finish(self, end: Record) -> Image:
        end.expect(end.length == 0, "the record must have no body")
        if self._image is None:
            raise end.bad("the stream ends without LIBXC_CONTEXT")
        if self._reader.left:
            raise self._reader.bad(f"{self._reader.left} bytes follow the END of the stream")
        self._progress()
        return self._image

    def _record(self, layer: type[Libxl] | type[Libxc]) -> Record:
        """Read the header of a record, and the first 8 bytes of its body."""
        self._progress()
        reader, offset = self._reader, self._reader.offset
        kind, length = _RECORD.unpack(reader.read(_RECORD.size, "header of a record"))
        whole = _padded(length) <= reader.left
        head = reader.read(HEAD, "record") if whole and length >= HEAD else b""
        record = Record(reader, offset, layer, kind, length, head)
        record.expect(whole, f"truncated: only {reader.left} of {length} bytes are in the file")
        return record

    def _skip_rest(self, record: Record) -> None:
        end = record.offset + _RECORD.size + _padded(record.length)
        self._reader.skip(end - self._reader.offset, "record")

    def _progress(self) -> None:
        if self._on_bytes is not None:
            self._on_bytes(self._reader.offset - self._start)

    def _libxl_header(self) -> None:
        reader, at = self._reader, self._reader.offset
        ident, version, options = _LIBXL_HEADER.unpack(
            reader.read(_LIBXL_HEADER.size, "header of the libxl stream")
        )
        if ident != _LIBXL_IDENT:
            raise reader.bad("no libxl stream at this place", offset=at)
        if version != _LIBXL_VERSION:
            raise reader.bad(f"unknown version {version} of the libxl stream", offset=at)
        if options & _BIG_ENDIAN:
            raise reader.bad("the libxl stream is big-endian", offset=at)
        if options & _LIBXL_CONVERTED:
            raise reader.bad("the libxl stream was converted from the legacy format", offset=at)

    def _libxl_record(self, record: Record) -> None:
        if record.type in _CHECKPOINTS:
            raise record.bad("a checkpointed stream (Remus, COLO) cannot be used as a snapshot")
        record.expect(record.type not in self._seen, "the record occurs twice")
        self._seen.add(record.type)
        if record.type == Libxl.LIBXC_CONTEXT:
            record.expect(record.length == 0, "the record must have no body")
            self._walk_image()
        elif record.type in _EMULATOR:
            self._emulator(record)
        else:  # libxl skips no unknown record, not even an optional one
            raise record.bad("this type is unknown")

    def _emulator(self, record: Record) -> None:
        """Check the record with QEMU's state, or the record with QEMU's part of xenstore."""
        if self._image is None:
            raise record.bad("there is no LIBXC_CONTEXT before this record")
        record.expect(
            self._image.container is Container.HVM,
            "the stream is of a pv guest, which has no QEMU state",
        )
        emulator, _ = record.pair()
        record.expect(record.length > HEAD, "the record is empty")
        known = (_QEMU_TRADITIONAL, _QEMU_UPSTREAM)
        record.expect(emulator in known, f"unknown emulator {emulator}")
        if record.type == Libxl.EMULATOR_XENSTORE_DATA:
            record.expect(record.length <= _XENSTORE_LIMIT, f"{record.length} bytes are too many")
            pairs = self._reader.read(record.length - HEAD, "xenstore data")
            record.expect(_are_pairs(pairs), "damaged: the content is not pairs of keys and values")
        self._skip_rest(record)

    def _walk_image(self) -> None:
        version = self._image_header()
        image = self._image = Image(self._domain_header(), version)
        while True:
            record = self._record(Libxc)
            image.check(record)
            self._skip_rest(record)
            if record.type == Libxc.END:
                return

    def _image_header(self) -> int:
        reader, at = self._reader, self._reader.offset
        marker, ident, version, options = _IMAGE_HEADER.unpack(
            reader.read(_IMAGE_HEADER.size, "header of the libxc image")
        )
        if marker != _IMAGE_MARKER or ident != _IMAGE_IDENT:
            raise reader.bad(
                "no libxc image at this place, or an image in the legacy format", offset=at
            )
        if version not in _IMAGE_VERSIONS:
            raise reader.bad(f"unknown version {version} of the libxc image", offset=at)
        if options & _BIG_ENDIAN:
            raise reader.bad("the libxc image is big-endian", offset=at)
        return int(version)

    def _domain_header(self) -> Container:
        reader, at = self._reader, self._reader.offset
        kind, page_shift, major, minor = _DOMAIN_HEADER.unpack(
            reader.read(_DOMAIN_HEADER.size, "domain header of the libxc image")
        )
        if kind not in _CONTAINERS:
            raise reader.bad(f"unknown guest type {kind}", offset=at)
        if page_shift != _PAGE_SHIFT:
            raise reader.bad(f"the page size is 2^{page_shift} bytes instead of 4096", offset=at)
        if major == 0:
            raise reader.bad("the libxc image was converted from the legacy format", offset=at)
        self._xen = (major, minor)
        return _CONTAINERS[kind]


def _are_pairs(data: bytes) -> bool:
    """Whether libxl accepts the data: key NUL value NUL ..., each key a relative path."""
    *texts, rest = data.split(b"\0")
    keys = texts[::2]
    return not rest and len(texts) % 2 == 0 and all(k and not k.startswith(b"/") for k in keys)


def _padded(length: int) -> int:
    return length + -length % 8
