"""Walking libxl streams: what Xen writes is taken, what is damaged is refused and nothing else."""

import io
import struct
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyxlsnap.errors import BadMemoryFile
from pyxlsnap.memory import Container, StreamSummary, walk
from tests.unit.support import streams
from tests.unit.support.drawn_streams import Built, valid_streams


def walk_bytes(data: bytes) -> StreamSummary:
    return walk(io.BytesIO(data), "x.save")


def refused(data: bytes) -> str:
    with pytest.raises(BadMemoryFile) as caught:
        walk_bytes(data)
    assert caught.value.path == "x.save"
    message = str(caught.value)
    assert message.startswith("x.save: ")
    assert "\n" not in message
    return message


def survives(data: bytes) -> None:
    """Taken or refused, and never anything else."""
    try:
        walk_bytes(data)
    except BadMemoryFile:
        pass


def without(records: list[bytes], kind: int) -> list[bytes]:
    return [r for r in records if r[:4] != struct.pack("<I", kind)]


@given(valid_streams())
@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
def test_valid_streams_walk_with_the_right_counts(built: Built) -> None:
    assert walk_bytes(built.data) == StreamSummary(
        container=Container(built.container),
        xen_major=built.xen[0],
        xen_minor=built.xen[1],
        libxc_version=built.version,
        pages=built.pages,
        guest_pages=built.guest_pages,
        has_emulator=built.has_emulator,
        end_offset=len(built.data),
    )


def test_starts_at_the_current_position() -> None:
    f = io.BytesIO(b"0123456" + streams.hvm_stream())
    f.seek(7)
    assert walk(f, "x").end_offset == 7 + len(streams.hvm_stream()) == f.tell()


def test_progress_ends_at_the_length_of_the_stream() -> None:
    seen: list[int] = []
    data = streams.pv_stream()
    walk(io.BytesIO(data), "x", on_bytes=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == len(data)


def test_an_exception_of_the_callback_ends_the_walk() -> None:
    def stop(_: int) -> None:
        raise KeyError("stop")

    with pytest.raises(KeyError):
        walk(io.BytesIO(streams.pv_stream()), "x", on_bytes=stop)


@pytest.mark.parametrize("data", [streams.pv_stream((0, 0xF)), streams.hvm_stream((0, 0xF))])
def test_truncation_at_every_byte_is_refused(data: bytes) -> None:
    for end in range(len(data)):
        with pytest.raises(BadMemoryFile):
            walk_bytes(data[:end])


@pytest.mark.parametrize("tail", [b"\0", b"\0" * 4096, streams.LIBXL_END, b"x"])
def test_what_follows_the_end_is_refused(tail: bytes) -> None:
    assert "follow the END" in refused(streams.hvm_stream() + tail)


@pytest.mark.parametrize("data", [streams.pv_stream((0, 0xF)), streams.hvm_stream((0, 0xF))])
def test_any_type_and_any_length_of_any_record_survives(data: bytes) -> None:
    numbers = [
        *range(0x16),
        0x7FFFFFFF,
        0x80000000,
        0x80000001,
        0xFFFFFFFF,
        0xFFFFFFF9,
        4096,
        1 << 27,
    ]
    numbers += [8 + 8 * 3 + 4096, (1 << 27) + 1]
    for at in streams.record_offsets(data):
        for field in (at, at + 4):
            for number in numbers:
                survives(data[:field] + struct.pack("<I", number) + data[field + 4 :])


@pytest.mark.parametrize("data", [streams.pv_stream((0, 0xF)), streams.hvm_stream((0, 0xF))])
def test_any_flipped_bit_of_a_header_survives(data: bytes) -> None:
    heads = {at + i for at in streams.record_offsets(data) for i in range(32)} | set(range(64))
    for at in sorted(heads):
        if at < len(data):
            for bit in range(8):
                survives(data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :])


@given(st.data())
@settings(max_examples=300)
def test_random_damage_survives(data: st.DataObject) -> None:
    stream = bytearray(data.draw(st.sampled_from([streams.pv_stream(), streams.hvm_stream()])))
    for _ in range(data.draw(st.integers(1, 8))):
        stream[data.draw(st.integers(0, len(stream) - 1))] = data.draw(st.integers(0, 255))
    survives(bytes(stream))


@given(st.binary(max_size=300), st.integers(0, 3))
@settings(max_examples=500)
def test_random_bytes_survive(noise: bytes, kind: int) -> None:
    head = streams.LIBXL_HEADER
    image = head + streams.LIBXC_CONTEXT + streams.image_header() + streams.domain_header(kind)
    for start in (b"", head, head + streams.LIBXC_CONTEXT, image):
        survives(start + noise)


class TestLibxlLayer:
    def test_other_identifier(self) -> None:
        assert "no libxl stream" in refused(b"x" + streams.pv_stream()[1:])

    @pytest.mark.parametrize(
        ("version", "options", "says"),
        [(1, 0, "version 1"), (3, 0, "version 3"), (2, 1, "big-endian"), (2, 2, "legacy")],
    )
    def test_headers_that_xl_does_not_write(self, version: int, options: int, says: str) -> None:
        header = b"LibxlFmt" + struct.pack(">2I", version, options)
        assert says in refused(header + streams.pv_stream()[16:])

    def test_a_stream_with_no_guest(self) -> None:
        assert "without LIBXC_CONTEXT" in refused(streams.LIBXL_HEADER + streams.LIBXL_END)

    def test_an_end_with_a_body(self) -> None:
        end = streams.record(0, b"12345678")
        assert "END: the record must have no body" in refused(streams.pv_stream()[:-8] + end)

    @pytest.mark.parametrize("kind", [6, 0x7FFFFFFF, 0x80000006])
    def test_an_unknown_record_even_an_optional_one(self, kind: int) -> None:
        data = streams.hvm_stream()[:-8] + streams.record(kind) + streams.LIBXL_END
        assert f"libxl type 0x{kind:x}" in refused(data)

    @pytest.mark.parametrize("kind", [4, 5])
    def test_checkpoints(self, kind: int) -> None:
        data = streams.hvm_stream()[:-8] + streams.record(kind) + streams.LIBXL_END
        assert "checkpointed" in refused(data)

    def test_emulator_state_of_a_pv_guest(self) -> None:
        data = streams.pv_stream()[:-8] + streams.emulator(3) + streams.LIBXL_END
        assert "pv guest" in refused(data)

    def test_emulator_state_before_the_image(self) -> None:
        data = streams.LIBXL_HEADER + streams.emulator(3) + streams.hvm_stream()[16:]
        assert "no LIBXC_CONTEXT before this record" in refused(data)

    @pytest.mark.parametrize(
        "record",
        [
            streams.emulator(3, b""),
            streams.record(3, b"1234"),
            streams.emulator(3, emulator_id=0),
            streams.emulator(3, emulator_id=3),
            streams.emulator(3) * 2,
            streams.emulator(2, b"key\0value"),
            streams.emulator(2, b"key\0"),
            streams.emulator(2, b"\0value\0"),
            streams.emulator(2, b"/key\0value\0"),
            streams.emulator(2, b"k\0v\0" * (1 << 18)),
            streams.LIBXC_CONTEXT,
        ],
    )
    def test_bad_records_after_the_image(self, record: bytes) -> None:
        data = streams.stream(2, streams.hvm_records([streams.page_data([0])]), after=[record])
        refused(data)


class TestImage:
    @pytest.mark.parametrize(
        "header",
        [
            streams.image_header(1),
            streams.image_header(4),
            streams.image_header(options=1),
            streams.image_header(ident=b"FNEX"),
            bytes(24),
        ],
    )
    def test_image_headers(self, header: bytes) -> None:
        refused(streams.pv_stream().replace(streams.image_header(), header))

    @pytest.mark.parametrize(
        "header",
        [
            streams.domain_header(0),
            streams.domain_header(3),
            streams.domain_header(1, page_shift=14),
            streams.domain_header(1, xen=(0, 2)),
        ],
    )
    def test_domain_headers(self, header: bytes) -> None:
        refused(streams.pv_stream().replace(streams.domain_header(1), header))

    @pytest.mark.parametrize(("kind", "name"), [(2, "X86_PV_INFO"), (3, "X86_PV_P2M_FRAMES")])
    def test_pv_records_needed_by_others(self, kind: int, name: str) -> None:
        records = without(streams.pv_records([streams.page_data([0])]), kind)
        assert f"no {name} before this record" in refused(streams.stream(1, records))

    @pytest.mark.parametrize(("kind", "name"), [(4, "X86_PV_VCPU_BASIC"), (7, "SHARED_INFO")])
    def test_pv_records_that_must_be_there(self, kind: int, name: str) -> None:
        records = without(streams.pv_records([streams.page_data([0])]), kind)
        assert f"END: the image ends without {name}" in refused(streams.stream(1, records))

    @pytest.mark.parametrize(("kind", "name"), [(9, "HVM_CONTEXT"), (0xA, "HVM_PARAMS")])
    def test_hvm_records_that_must_be_there(self, kind: int, name: str) -> None:
        records = without(streams.hvm_records([streams.page_data([0])]), kind)
        assert f"END: the image ends without {name}" in refused(streams.stream(2, records))

    def test_hvm_records_in_the_stream_of_a_pv_guest_and_the_reverse(self) -> None:
        pages = [streams.page_data([0])]
        pv, hvm = streams.pv_records(pages), streams.hvm_records(pages)
        assert "HVM_CONTEXT" in refused(streams.stream(1, [*pv[:-1], streams.HVM_CONTEXT, pv[-1]]))
        assert "X86_PV_INFO" in refused(streams.stream(2, [streams.PV_INFO_64, *hvm]))

    def test_static_data_end_is_needed_in_version_3_only(self) -> None:
        records = without(streams.hvm_records([streams.page_data([0])]), 0x10)
        assert "STATIC_DATA_END" in refused(streams.stream(2, records))
        walk_bytes(streams.stream(2, records, version=2))

    @pytest.mark.parametrize("policy", [streams.CPUID_POLICY, streams.MSR_POLICY])
    def test_static_data_after_its_end(self, policy: bytes) -> None:
        records = streams.hvm_records([policy, streams.page_data([0])])
        assert "follows STATIC_DATA_END" in refused(streams.stream(2, records))

    @pytest.mark.parametrize(("kind", "size"), [(0x11, 0), (0x11, 16), (0x12, 0), (0x12, 24)])
    def test_static_data_of_the_wrong_size(self, kind: int, size: int) -> None:
        records = streams.hvm_records([streams.page_data([0])])
        refused(streams.stream(2, [streams.record(kind, bytes(size)), *records]))

    @pytest.mark.parametrize("kind", [5, 6, 0xC])
    def test_empty_records_of_old_releases_are_taken(self, kind: int) -> None:
        records = streams.pv_records([streams.page_data([0])])
        walk_bytes(streams.stream(1, [*records[:-1], streams.vcpu(kind, 0), records[-1]]))

    @pytest.mark.parametrize("kind", [0xB, 0xE, 0xF, 0x13, 0x7FFFFFFF])
    def test_records_that_no_snapshot_has(self, kind: int) -> None:
        records = streams.hvm_records([streams.record(kind), streams.page_data([0])])
        refused(streams.stream(2, records))

    def test_a_verified_save_is_taken(self) -> None:
        pages = [streams.page_data([0, 0]), streams.record(0xD), streams.page_data([0])]
        assert walk_bytes(streams.stream(2, streams.hvm_records(pages))).pages == 3

    @pytest.mark.parametrize(
        "bad",
        [
            streams.record(2, bytes([8, 3, 0, 0, 0, 0, 0, 0])),
            streams.record(2, bytes([8, 4, 0, 0])),
            streams.PV_INFO_64 * 2,
            streams.STATIC_DATA_END + streams.PV_INFO_64,
        ],
    )
    def test_pv_info(self, bad: bytes) -> None:
        refused(streams.pv_stream().replace(streams.PV_INFO_64, bad))

    @pytest.mark.parametrize(
        "bad",
        [
            streams.record(3, b"1234"),
            streams.record(3, struct.pack("<2I", 5, 4)),
            streams.record(3, struct.pack("<2I", 0, 5000) + bytes(8 * 11)),
            streams.p2m_frames(0, 5000, width=4),
        ],
    )
    def test_p2m_frames(self, bad: bytes) -> None:
        refused(streams.pv_stream().replace(streams.p2m_frames(0, 5000), bad))

    @pytest.mark.parametrize(
        "bad",
        [
            streams.vcpu(4, 5160),
            streams.vcpu(4, 2800),
            streams.vcpu(5, 129),
            streams.vcpu(6, 8),
            streams.vcpu(0xC, 24),
            streams.record(5, b"1234"),
            streams.record(7, bytes(4095)),
            streams.record(8, bytes(16)),
            streams.record(0x10, b"12345678"),
            streams.record(0xD, b"1"),
        ],
    )
    def test_bodies_of_the_wrong_size(self, bad: bytes) -> None:
        records = streams.pv_records([streams.page_data([0])])
        refused(streams.stream(1, [*records[:-1], bad, records[-1]]))

    @pytest.mark.parametrize(
        "bad",
        [streams.record(0xA, b"1234"), streams.record(0xA, struct.pack("<2I", 2, 0) + bytes(16))],
    )
    def test_hvm_params(self, bad: bytes) -> None:
        records = streams.hvm_records([streams.page_data([0]), bad])
        refused(streams.stream(2, records))


class TestPageData:
    def refused_record(self, body: bytes) -> str:
        records = streams.hvm_records([streams.page_data([0]), streams.record(1, body)])
        message = refused(streams.stream(2, records))
        assert "record PAGE_DATA" in message
        return message

    def test_no_pfns(self) -> None:
        assert "no pfn" in self.refused_record(struct.pack("<2I", 0, 0))

    def test_no_head(self) -> None:
        self.refused_record(b"")
        self.refused_record(b"1234")

    @pytest.mark.parametrize("kind", [5, 6, 7, 8])
    def test_reserved_types(self, kind: int) -> None:
        entry = kind << 60 | 5
        body = struct.pack("<2IQ", 1, 0, entry) + bytes(4096)
        assert f"0x{entry:016x}" in self.refused_record(body)

    @pytest.mark.parametrize("bit", range(52, 60))
    def test_reserved_bits(self, bit: int) -> None:
        self.refused_record(struct.pack("<2I2Q", 2, 0, 0, 1 << bit) + bytes(8192))

    def test_the_highest_pfn(self) -> None:
        body = struct.pack("<2IQ", 1, 0, (1 << 52) - 1) + bytes(4096)
        records = streams.hvm_records([streams.record(1, body)])
        assert walk_bytes(streams.stream(2, records)).pages == 1

    @pytest.mark.parametrize("size", [0, 4095, 4097, 4104, 8192])
    def test_wrong_amount_of_data(self, size: int) -> None:
        self.refused_record(struct.pack("<2IQ", 1, 0, 7) + bytes(size))

    def test_more_pfns_than_fit(self) -> None:
        self.refused_record(struct.pack("<2IQ", 0xFFFFFFFF, 0, 7))

    def test_a_record_of_very_many_pfns(self) -> None:
        types = [0xF] * 200_000 + [0]
        records = streams.hvm_records([streams.page_data(types)])
        assert walk_bytes(streams.stream(2, records)).pages == 1


def test_the_memory_of_the_guest_is_what_a_restore_takes() -> None:
    first = streams.page_data([0, 0, 0xF, 0xE, 0xD])  # 0xE is allocated, without data
    again = streams.pages_at([(1, 0), (2, 0), (0, 0xF)])  # as the live rounds write them
    summary = walk_bytes(streams.stream(2, streams.hvm_records([first, again])))
    assert summary.guest_pages == 4
    assert summary.memory_kb == 16


def test_pages_are_not_read(tmp_path: Path) -> None:
    """1 GiB in the batches that Xen writes, as a sparse file."""
    batch = streams.page_data([0] * 1024)[: 8 + 8 + 8 * 1024]
    file = tmp_path / "sparse"
    head, tail = streams.hvm_stream().split(streams.page_data([0]))
    with file.open("wb") as f:
        f.write(head)
        for _ in range(256):
            f.write(batch)
            f.seek(1024 * 4096, 1)
        f.write(tail)
    began = time.perf_counter()
    with file.open("rb") as f:
        assert walk(f, str(file)).pages == 256 * 1024
    assert time.perf_counter() - began < 1


@pytest.mark.parametrize(("length", "taken"), [(128 << 20, True), ((128 << 20) + 8, False)])
def test_the_longest_record(tmp_path: Path, length: int, taken: bool) -> None:
    file = tmp_path / "sparse"
    head, tail = streams.hvm_stream().split(streams.TSC_INFO)
    with file.open("w+b") as f:
        f.write(head + struct.pack("<2I", 0x80000000, length))
        f.seek(length, 1)
        f.write(tail)
        f.seek(0)
        if taken:
            walk(f, str(file))
            return
        with pytest.raises(BadMemoryFile, match="more than"):
            walk(f, str(file))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise OSError(5, "Input/output error")

    with pytest.raises(BadMemoryFile, match="Input/output error"):
        walk(Failing(streams.pv_stream()), "x")


def test_a_file_that_is_read_in_small_pieces() -> None:
    class Dribble(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(size or 0, 3))

    assert walk(Dribble(streams.pv_stream()), "x").pages == 1


def test_a_file_that_shrinks_meanwhile() -> None:
    f = io.BytesIO(streams.pv_stream())

    def cut(_: int) -> None:
        f.truncate(100)

    with pytest.raises(BadMemoryFile, match="truncated"):
        walk(f, "x", on_bytes=cut)
