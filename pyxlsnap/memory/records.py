"""The record types of libxl's and libxc's formats, and the checks for the records of a libxc image.

The rules come from docs/specs/libxc-migration-stream.pandoc in Xen's source. Where the
specification gives no size, the size comes from the checks in
tools/libs/guest/xg_sr_restore_x86_pv.c and _hvm.c.
"""

import struct
from collections.abc import Callable, Mapping
from enum import IntEnum, StrEnum
from typing import Final

from pyxlsnap.dataclass import dataclass
from pyxlsnap.errors import BadMemoryFile
from pyxlsnap.memory.pfns import PfnSet
from pyxlsnap.memory.reader import Reader


class Container(StrEnum):
    """How Xen runs the guest. A PVH guest runs in an HVM container."""

    PV = "pv"
    HVM = "hvm"


class Libxl(IntEnum):
    """Record types of the libxl stream."""

    END = 0
    LIBXC_CONTEXT = 1
    EMULATOR_XENSTORE_DATA = 2
    EMULATOR_CONTEXT = 3
    CHECKPOINT_END = 4
    CHECKPOINT_STATE = 5


class Libxc(IntEnum):
    """Record types of the libxc image. 0x0B (TOOLSTACK) was never in a release of Xen."""

    END = 0x00
    PAGE_DATA = 0x01
    X86_PV_INFO = 0x02
    X86_PV_P2M_FRAMES = 0x03
    X86_PV_VCPU_BASIC = 0x04
    X86_PV_VCPU_EXTENDED = 0x05
    X86_PV_VCPU_XSAVE = 0x06
    SHARED_INFO = 0x07
    X86_TSC_INFO = 0x08
    HVM_CONTEXT = 0x09
    HVM_PARAMS = 0x0A
    X86_PV_VCPU_MSRS = 0x0C
    VERIFY = 0x0D
    CHECKPOINT = 0x0E
    CHECKPOINT_DIRTY_PFN_LIST = 0x0F
    STATIC_DATA_END = 0x10
    X86_CPUID_POLICY = 0x11
    X86_MSR_POLICY = 0x12


#: Bit 31 of a libxc record type: a reader that does not know the type may skip the record.
OPTIONAL: Final = 0x80000000
#: longest record in bytes (REC_LENGTH_MAX of libxc)
LENGTH_LIMIT: Final = 128 << 20

HEAD: Final = 8
_PAIR: Final = struct.Struct("<2I")
_PAGE: Final = 4096
_PFN: Final = 8
#: pfns read at a time, so that the memory used does not depend on the record
_PFNS_AT_ONCE: Final = 1 << 13

# Bits 63-60 of a pfn entry are the page's type, bits 59-52 must be 0. So the highest byte alone
# gives the type, and bytes.translate() can count the types at the speed of C.
_WITHOUT_DATA: Final = bytes(kind << 4 for kind in (0xD, 0xE, 0xF))  # BROKEN, XALLOC, XTAB
_WITH_DATA: Final = bytes(kind << 4 for kind in (0, 1, 2, 3, 4, 9, 0xA, 0xB, 0xC))
_KNOWN: Final = _WITH_DATA + _WITHOUT_DATA
_NO_HIGH_BITS: Final = bytes(range(16))

#: Sizes of Xen's structures, in bytes. vcpu_guest_context: by the guest's word size in bytes.
_VCPU_CONTEXT: Final = {4: 2800, 8: 5168}
_EXTENDED_LIMIT: Final = 128
_XSAVE_MINIMUM: Final = 16
_VCPU_MSR: Final = 16
_TSC_INFO: Final = 24
_HVM_PARAM: Final = 16
_CPUID_LEAF: Final = 24
_MSR_ENTRY: Final = 16
#: levels of page tables, by the guest's word size in bytes
_LEVELS: Final = {4: 3, 8: 4}


@dataclass(frozen=True, slots=True)
class Record:
    """The header of a record, and the first 8 bytes of its body (b"" if the body is shorter)."""

    reader: Reader
    offset: int
    layer: type[Libxl] | type[Libxc]
    type: int
    length: int
    head: bytes

    def pair(self) -> tuple[int, int]:
        """The two 32-bit numbers at the start of most bodies."""
        self.expect(self.length >= HEAD, f"{self.length} bytes are too few")
        first, second = _PAIR.unpack(self.head)
        return first, second

    def expect(self, condition: bool, complaint: str) -> None:
        """:raises BadMemoryFile: the condition is false."""
        if not condition:
            raise self.bad(complaint)

    def bad(self, complaint: str) -> BadMemoryFile:
        """Make (not raise) the error for this record."""
        try:
            name = self.layer(self.type).name
        except ValueError:
            name = f"{self.layer.__name__.lower()} type 0x{self.type:x}"
        return self.reader.bad(f"record {name}: {complaint}", offset=self.offset)


class Image:
    """The state of the check of one libxc image: the records seen up to now."""

    def __init__(self, container: Container, version: int) -> None:
        self.container = container
        self.version = version
        #: number of pages with data in the image
        self.pages = 0
        #: the pages that a restore gives the guest
        self.guest_pfns = PfnSet()
        self._rules = {**_RULES, **_RULES_OF[container]}
        self._seen: set[int] = set()
        self._width = 0

    def check(self, record: Record) -> None:
        """Check the next record.

        :raises BadMemoryFile: the record breaks a rule, or Xen does not know its type.
        """
        limit = LENGTH_LIMIT
        record.expect(record.length <= limit, f"{record.length} bytes are more than {limit}")
        if record.type & OPTIONAL:
            return
        rule = self._rules.get(record.type)
        if rule is None:
            raise record.bad(f"this type is unknown in the stream of a {self.container} guest")
        rule(self, record)
        self._seen.add(record.type)

    def _after(self, record: Record, *types: Libxc) -> None:
        for kind in types:
            # Version 2 has no STATIC_DATA_END: Xen infers its place.
            if kind not in self._seen and (kind, self.version) != (Libxc.STATIC_DATA_END, 2):
                raise record.bad(f"there is no {kind.name} before this record")

    def _end(self, record: Record) -> None:
        _no_body(self, record)
        missing = [kind.name for kind in _REQUIRED[self.container] if kind not in self._seen]
        record.expect(not missing, f"the image ends without {', '.join(missing)}")

    def _page_data(self, record: Record) -> None:
        self._after(record, Libxc.STATIC_DATA_END)
        if self.container is Container.PV:
            self._after(record, Libxc.X86_PV_P2M_FRAMES)
        count, _ = record.pair()
        pages_at = HEAD + count * _PFN
        record.expect(count > 0, "the record has no pfn")
        record.expect(
            pages_at <= record.length, f"{record.length} bytes are too few for {count} pfns"
        )
        with_data = 0
        for first in range(0, count, _PFNS_AT_ONCE):
            pfns = record.reader.read(_PFN * min(count - first, _PFNS_AT_ONCE), "pfns")
            with_data += _count_with_data(record, pfns)
            self.guest_pfns.add(pfns)
        expected = pages_at + with_data * _PAGE
        record.expect(record.length == expected, f"{record.length} bytes instead of {expected}")
        self.pages += with_data

    def _static_data_end(self, record: Record) -> None:
        _no_body(self, record)
        record.expect(record.type not in self._seen, "the record occurs twice")
        if self.container is Container.PV:
            self._after(record, Libxc.X86_PV_INFO)

    def _static(self, record: Record, unit: int) -> None:
        # Xen would accept the record and never apply it.
        record.expect(Libxc.STATIC_DATA_END not in self._seen, "the record follows STATIC_DATA_END")
        record.expect(record.length > 0, "the record is empty")
        record.expect(
            record.length % unit == 0, f"{record.length} bytes are not a multiple of {unit}"
        )

    def _pv_info(self, record: Record) -> None:
        record.expect(record.type not in self._seen, "the record occurs twice")
        record.expect(record.length == HEAD, f"{record.length} bytes instead of {HEAD}")
        width, levels = record.head[0], record.head[1]
        combination = f"no guest has words of {width} bytes and {levels} levels of page tables"
        record.expect(_LEVELS.get(width) == levels, combination)
        self._width = width

    def _p2m_frames(self, record: Record) -> None:
        self._after(record, Libxc.X86_PV_INFO, Libxc.STATIC_DATA_END)
        start, end = record.pair()
        record.expect(start <= end, f"the first pfn {start} is greater than the last pfn {end}")
        entries = _PAGE // self._width
        _length(record, HEAD + _PFN * (end // entries - start // entries + 1))

    def _vcpu(self, record: Record) -> int:
        """Check the rules common to all vcpu records; return the size of the content in bytes."""
        self._after(record, Libxc.X86_PV_INFO, Libxc.X86_PV_P2M_FRAMES, Libxc.PAGE_DATA)
        record.pair()
        return record.length - HEAD

    def _vcpu_basic(self, record: Record) -> None:
        self._vcpu(record)
        _length(record, HEAD + _VCPU_CONTEXT[self._width])

    def _vcpu_extended(self, record: Record) -> None:
        size = self._vcpu(record)
        record.expect(size <= _EXTENDED_LIMIT, f"{size} bytes are more than {_EXTENDED_LIMIT}")

    def _vcpu_xsave(self, record: Record) -> None:
        size = self._vcpu(record)
        # Xen 4.6 to 4.8 wrote empty records (see the errata in the specification).
        record.expect(size == 0 or size >= _XSAVE_MINIMUM, f"{size} bytes are too few")

    def _vcpu_msrs(self, record: Record) -> None:
        size = self._vcpu(record)
        record.expect(size % _VCPU_MSR == 0, f"{size} bytes are not a multiple of {_VCPU_MSR}")

    def _shared_info(self, record: Record) -> None:
        self._after(record, Libxc.X86_PV_INFO)
        _length(record, _PAGE)

    def _hvm_params(self, record: Record) -> None:
        # Xen clears the pages that these parameters name: their PAGE_DATA must come first.
        self._after(record, Libxc.PAGE_DATA)
        count, _ = record.pair()
        _length(record, HEAD + _HVM_PARAM * count)


def _count_with_data(record: Record, pfns: bytes) -> int:
    types = pfns[7::8]
    if types.translate(None, _KNOWN) or pfns[6::8].translate(None, _NO_HIGH_BITS):
        raise record.bad(f"pfn entry of unknown type: 0x{_first_unknown(pfns):016x}")
    return len(types.translate(None, _WITHOUT_DATA))


def _first_unknown(pfns: bytes) -> int:
    entries = (entry for (entry,) in struct.iter_unpack("<Q", pfns))
    return next(int(e) for e in entries if (e >> 56) not in _KNOWN or (e >> 52) & 0xF)


def _length(record: Record, expected: int) -> None:
    record.expect(record.length == expected, f"{record.length} bytes instead of {expected}")


def _no_body(_image: Image, record: Record) -> None:
    record.expect(record.length == 0, "the record must have no body")


def _checkpoint(_image: Image, record: Record) -> None:
    raise record.bad("a checkpointed stream (Remus, COLO) cannot be used as a snapshot")


_Rule = Callable[[Image, Record], None]

_RULES: Final[Mapping[int, _Rule]] = {
    Libxc.END: Image._end,
    Libxc.PAGE_DATA: Image._page_data,
    Libxc.X86_TSC_INFO: lambda _, record: _length(record, _TSC_INFO),
    Libxc.VERIFY: _no_body,
    Libxc.CHECKPOINT: _checkpoint,
    Libxc.CHECKPOINT_DIRTY_PFN_LIST: _checkpoint,
    Libxc.STATIC_DATA_END: Image._static_data_end,
    Libxc.X86_CPUID_POLICY: lambda image, record: image._static(record, _CPUID_LEAF),
    Libxc.X86_MSR_POLICY: lambda image, record: image._static(record, _MSR_ENTRY),
}

_RULES_OF: Final[Mapping[Container, Mapping[int, _Rule]]] = {
    Container.PV: {
        Libxc.X86_PV_INFO: Image._pv_info,
        Libxc.X86_PV_P2M_FRAMES: Image._p2m_frames,
        Libxc.X86_PV_VCPU_BASIC: Image._vcpu_basic,
        Libxc.X86_PV_VCPU_EXTENDED: Image._vcpu_extended,
        Libxc.X86_PV_VCPU_XSAVE: Image._vcpu_xsave,
        Libxc.X86_PV_VCPU_MSRS: Image._vcpu_msrs,
        Libxc.SHARED_INFO: Image._shared_info,
    },
    Container.HVM: {
        Libxc.HVM_CONTEXT: lambda _, record: record.expect(
            record.length > 0, "the record is empty"
        ),
        Libxc.HVM_PARAMS: Image._hvm_params,
    },
}

#: Without these records the restored guest cannot run; Xen's restore may not report this.
_REQUIRED: Final[Mapping[Container, tuple[Libxc, ...]]] = {
    Container.PV: (
        Libxc.X86_PV_INFO,
        Libxc.X86_PV_P2M_FRAMES,
        Libxc.PAGE_DATA,
        Libxc.SHARED_INFO,
        Libxc.X86_PV_VCPU_BASIC,
    ),
    Container.HVM: (Libxc.PAGE_DATA, Libxc.HVM_CONTEXT, Libxc.HVM_PARAMS),
}
