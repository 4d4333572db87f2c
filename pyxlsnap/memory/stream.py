"""Walking a whole libxl stream, to know before a revert that it can be restored.

Two formats lie in each other. libxl's (docs/specs/libxl-migration-stream.pandoc in Xen's source)
has a header and records; its LIBXC_CONTEXT record is followed by an image in libxc's format
(docs/specs/libxc-migration-stream.pandoc), which has two headers and records of its own::

    libxl header | LIBXC_CONTEXT | image | EMULATOR_XENSTORE_DATA, EMULATOR_CONTEXT | END
                                   HVM only: the state of its QEMU

What Xen's readers refuse is refused (tools/libs/guest/xg_sr_restore*.c and
tools/libs/light/libxl_stream_read.c), and so is what they would only notice, or not even notice,
after the running domain is gone. The records of an image are checked in :mod:`.records`.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO, Final

from pyxlsnap.memory.reader import Source
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

_RECORD: Final = struct.Struct("<2I")
_CHECKPOINTS: Final = (Libxl.CHECKPOINT_END, Libxl.CHECKPOINT_STATE)
_EMULATOR: Final = (Libxl.EMULATOR_XENSTORE_DATA, Libxl.EMULATOR_CONTEXT)
_QEMU_TRADITIONAL: Final = 1
_QEMU_UPSTREAM: Final = 2
#: some KiB are usual; no number of the format, only a bound on what is read at once
_XENSTORE_LIMIT: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class StreamSummary:
    """What a stream says of the guest in it."""

    container: Container
    #: the Xen that saved it
    xen_major: int
    xen_minor: int
    #: the version of libxc's image format: 3, or 2 before Xen 4.14
    libxc_version: int
    #: pages of 4 KiB in the stream; a live save sends some of them more than once
    pages: int
    #: it has the state of a QEMU: an HVM guest, and neither PV nor PVH
    has_emulator: bool
    #: the offset of the byte behind the stream, which is the file's size
    end_offset: int


def walk(f: BinaryIO, path: str, *, on_bytes: Callable[[int], None] | None = None) -> StreamSummary:
    """Check a libxl stream from the current position to its end, which must be the file's end.

    The contents of pages are stepped over and not read, so a file of many GiB takes no time.
    Memory use does not depend on the file.

    :param f: the file, seekable, at the stream's first byte. Left behind the stream's END, or
        anywhere after an error.
    :param path: its name, for messages.
    :param on_bytes: called after each record with the bytes of the stream walked so far. What it
        raises ends the walk and comes through.
    :raises BadMemoryFile: the stream is truncated, damaged, checkpointed (Remus, COLO), in a
        format that this version does not know, or something follows it. The message has the
        record and its offset.
    """
    return _Walk(Source(f, path), on_bytes).run()


class _Walk:
    def __init__(self, source: Source, on_bytes: Callable[[int], None] | None) -> None:
        self._source = source
        self._start = source.offset
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
            has_emulator=Libxl.EMULATOR_CONTEXT in self._seen,
            end_offset=self._source.offset,
        )

    def _finish(self, end: Record) -> Image:
        end.expect(end.length == 0, "it has a body")
        if self._image is None:
            raise end.bad("the stream ends without LIBXC_CONTEXT")
        if self._source.left:
            raise self._source.bad(f"{self._source.left} bytes follow the END of the stream")
        self._progress()
        return self._image

    def _record(self, layer: type[Libxl] | type[Libxc]) -> Record:
        """Read the header of a record, and as much of its body as is needed to check it."""
        self._progress()
        source, offset = self._source, self._source.offset
        kind, length = _RECORD.unpack(source.read(_RECORD.size, "header of a record"))
        whole = _padded(length) <= source.left
        head = source.read(HEAD, "record") if whole and length >= HEAD else b""
        record = Record(source, offset, layer, kind, length, head)
        record.expect(whole, f"truncated: of {length} bytes {source.left} are there")
        return record

    def _skip_rest(self, record: Record) -> None:
        end = record.offset + _RECORD.size + _padded(record.length)
        self._source.skip(end - self._source.offset, "record")

    def _progress(self) -> None:
        if self._on_bytes is not None:
            self._on_bytes(self._source.offset - self._start)

    def _libxl_header(self) -> None:
        source, at = self._source, self._source.offset
        ident, version, options = _LIBXL_HEADER.unpack(
            source.read(_LIBXL_HEADER.size, "header of the libxl stream")
        )
        if ident != _LIBXL_IDENT:
            raise source.bad("there is no libxl stream here", offset=at)
        if version != _LIBXL_VERSION:
            raise source.bad(f"unknown version {version} of the libxl stream", offset=at)
        if options & _BIG_ENDIAN:
            raise source.bad("the libxl stream is big-endian", offset=at)
        if options & _LIBXL_CONVERTED:
            raise source.bad("the libxl stream was converted from the legacy format", offset=at)

    def _libxl_record(self, record: Record) -> None:
        if record.type in _CHECKPOINTS:
            raise record.bad("a checkpointed stream (Remus, COLO) holds no snapshot")
        record.expect(record.type not in self._seen, "it is there twice")
        self._seen.add(record.type)
        if record.type == Libxl.LIBXC_CONTEXT:
            record.expect(record.length == 0, "it has a body")
            self._walk_image()
        elif record.type in _EMULATOR:
            self._emulator(record)
        else:  # libxl passes over no record that it does not know, not even an optional one
            raise record.bad("unknown")

    def _emulator(self, record: Record) -> None:
        """Check the record with QEMU's state, or that with what stands in xenstore for it."""
        if self._image is None:
            raise record.bad("no LIBXC_CONTEXT before it")
        record.expect(self._image.container is Container.HVM, "in the stream of a pv guest")
        emulator, _ = record.pair()
        record.expect(record.length > HEAD, "it is empty")
        known = (_QEMU_TRADITIONAL, _QEMU_UPSTREAM)
        record.expect(emulator in known, f"unknown emulator {emulator}")
        if record.type == Libxl.EMULATOR_XENSTORE_DATA:
            record.expect(record.length <= _XENSTORE_LIMIT, f"{record.length} bytes are too many")
            pairs = self._source.read(record.length - HEAD, "xenstore data")
            record.expect(_are_pairs(pairs), "damaged: no pairs of keys and values")
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
        source, at = self._source, self._source.offset
        marker, ident, version, options = _IMAGE_HEADER.unpack(
            source.read(_IMAGE_HEADER.size, "header of the libxc image")
        )
        if marker != _IMAGE_MARKER or ident != _IMAGE_IDENT:
            raise source.bad("no libxc image here, or one in the legacy format", offset=at)
        if version not in _IMAGE_VERSIONS:
            raise source.bad(f"unknown version {version} of the libxc image", offset=at)
        if options & _BIG_ENDIAN:
            raise source.bad("the libxc image is big-endian", offset=at)
        return int(version)

    def _domain_header(self) -> Container:
        source, at = self._source, self._source.offset
        kind, page_shift, major, minor = _DOMAIN_HEADER.unpack(
            source.read(_DOMAIN_HEADER.size, "domain header of the libxc image")
        )
        if kind not in _CONTAINERS:
            raise source.bad(f"unknown type {kind} of guest", offset=at)
        if page_shift != _PAGE_SHIFT:
            raise source.bad(f"pages of 2^{page_shift} bytes instead of 4096", offset=at)
        if major == 0:
            raise source.bad("the libxc image was converted from the legacy format", offset=at)
        self._xen = (major, minor)
        return _CONTAINERS[kind]


def _are_pairs(data: bytes) -> bool:
    """Whether libxl would take these: key NUL value NUL ..., the keys relative paths."""
    *texts, rest = data.split(b"\0")
    keys = texts[::2]
    return not rest and len(texts) % 2 == 0 and all(k and not k.startswith(b"/") for k in keys)


def _padded(length: int) -> int:
    return length + -length % 8
