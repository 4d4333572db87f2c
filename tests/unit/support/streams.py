"""Builds libxl streams record by record, valid ones and (by hand) broken ones."""

import struct
from collections.abc import Iterable, Sequence

PAGE = 4096
LIBXL_HEADER = b"LibxlFmt" + struct.pack(">2I", 2, 0)
LIBXL_END = struct.pack("<2I", 0, 0)
LIBXC_CONTEXT = struct.pack("<2I", 1, 0)
WITH_DATA = (0, 1, 2, 3, 4, 9, 0xA, 0xB, 0xC)
WITHOUT_DATA = (0xD, 0xE, 0xF)
#: types of pages that a restore does not give the guest
WITHOUT_MEMORY = (0xD, 0xF)


def record(kind: int, body: bytes = b"") -> bytes:
    return struct.pack("<2I", kind, len(body)) + body + bytes(-len(body) % 8)


def image_header(version: int = 3, *, ident: bytes = b"XENF", options: int = 0) -> bytes:
    return struct.pack(">Q4sIH6x", 0xFFFFFFFFFFFFFFFF, ident, version, options)


def domain_header(kind: int, *, page_shift: int = 12, xen: tuple[int, int] = (4, 17)) -> bytes:
    return struct.pack("<IH2x2I", kind, page_shift, *xen)


def page_data(types: Sequence[int], *, first: int = 0, fill: bytes = b"\xa5") -> bytes:
    """A PAGE_DATA record of pages of these types, with consecutive pfns."""
    return pages_at([(first + i, kind) for i, kind in enumerate(types)], fill=fill)


def pages_at(pfns: Sequence[tuple[int, int]], *, fill: bytes = b"\xa5") -> bytes:
    """A PAGE_DATA record of these pfns, each with its type."""
    pages = fill * PAGE * sum(kind in WITH_DATA for _, kind in pfns)
    return record(1, struct.pack("<2I", len(pfns), 0) + entries(pfns) + pages)


def entries(pfns: Iterable[tuple[int, int]]) -> bytes:
    """The entries of a PAGE_DATA record."""
    return b"".join(struct.pack("<Q", kind << 60 | pfn) for pfn, kind in pfns)


def vcpu(kind: int, size: int, vcpu_id: int = 0) -> bytes:
    return record(kind, struct.pack("<2I", vcpu_id, 0) + bytes(size))


PV_INFO_64 = record(2, bytes([8, 4, 0, 0, 0, 0, 0, 0]))
PV_INFO_32 = record(2, bytes([4, 3, 0, 0, 0, 0, 0, 0]))
STATIC_DATA_END = record(0x10)
CPUID_POLICY = record(0x11, bytes(24 * 3))
MSR_POLICY = record(0x12, bytes(16 * 2))
TSC_INFO = record(8, bytes(24))
SHARED_INFO = record(7, bytes(PAGE))
HVM_CONTEXT = record(9, b"ctx" * 11)
END = record(0)


def hvm_params(count: int) -> bytes:
    return record(0xA, struct.pack("<2I", count, 0) + bytes(16 * count))


def p2m_frames(start: int, end: int, *, width: int = 8) -> bytes:
    entries = PAGE // width
    frames = end // entries - start // entries + 1
    return record(3, struct.pack("<2I", start, end) + bytes(8 * frames))


def emulator(kind: int, body: bytes = b"QEMU state", *, emulator_id: int = 2) -> bytes:
    return record(kind, struct.pack("<2I", emulator_id, 0) + body)


def pv_records(
    pages: Iterable[bytes], *, width: int = 8, version: int = 3, vcpus: int = 1
) -> list[bytes]:
    """The records of a PV guest's image, in the order in which Xen writes them."""
    policy = [CPUID_POLICY, MSR_POLICY, STATIC_DATA_END] if version == 3 else []
    contexts: list[bytes] = []
    for n in range(vcpus):
        contexts += [vcpu(4, 5168 if width == 8 else 2800, n), vcpu(5, 128, n)]
        contexts += [vcpu(6, 16 + 576, n), vcpu(0xC, 16 * n, n)]
    info = PV_INFO_64 if width == 8 else PV_INFO_32
    frames = p2m_frames(0, 5000, width=width)
    return [info, *policy, frames, *pages, TSC_INFO, SHARED_INFO, *contexts, END]


def hvm_records(pages: Iterable[bytes], *, version: int = 3, params: int = 3) -> list[bytes]:
    """The records of an HVM or PVH guest's image, in the order in which Xen writes them."""
    policy = [CPUID_POLICY, MSR_POLICY, STATIC_DATA_END] if version == 3 else []
    return [*policy, *pages, TSC_INFO, HVM_CONTEXT, hvm_params(params), END]


def stream(
    kind: int,
    records: Iterable[bytes],
    *,
    version: int = 3,
    xen: tuple[int, int] = (4, 17),
    after: Iterable[bytes] = (),
) -> bytes:
    """A whole libxl stream round the records of an image."""
    image = image_header(version) + domain_header(kind, xen=xen) + b"".join(records)
    return LIBXL_HEADER + LIBXC_CONTEXT + image + b"".join(after) + LIBXL_END


def pv_stream(types: Sequence[int] = (0,)) -> bytes:
    return stream(1, pv_records([page_data(types)]))


def hvm_stream(types: Sequence[int] = (0,)) -> bytes:
    after = [emulator(2, b"key\0value\0"), emulator(3)]
    return stream(2, hvm_records([page_data(types)]), after=after)


def record_offsets(data: bytes) -> list[int]:
    """Offsets of the record headers of both layers, in a valid stream."""
    found, at, in_image = [], len(LIBXL_HEADER), False
    while at < len(data):
        kind, length = struct.unpack_from("<2I", data, at)
        found.append(at)
        at += 8 + length + -length % 8
        if kind == 1 and not in_image:
            at, in_image = at + 24 + 16, True
        elif kind == 0 and in_image:
            in_image = False
    return found
