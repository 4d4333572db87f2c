"""libxlutil: xl's configuration syntax, and its disk specifications."""

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from pyxlsnap.errors import ConfigError
from pyxlsnap.model import Disk
from pyxlsnap.text import bytes_of
from pyxlsnap.xen.ffi import C, CData, c_string, ffi, struct, text

_COMPLAINT_LIMIT = 200  # characters
# Bytes. The longest path has 4096; libxlutil's scanner writes beyond its memory at 16384.
_DISK_LIMIT = 8192


@contextmanager
def _config_reader(file: str) -> Iterator[tuple[CData, CData]]:
    """libxlutil's parser, and the report that receives its error messages."""
    report = C.pyxlsnap_report_new()
    if report == ffi.NULL:
        raise MemoryError
    try:
        # No file name here: ConfigError puts it before the message.
        config = C.xlu_cfg_init(C.pyxlsnap_report_file(report), c_string("line"))
        if config == ffi.NULL:
            raise MemoryError
        try:
            yield config, report
        finally:
            C.xlu_cfg_destroy(config)
    finally:
        C.pyxlsnap_report_free(report)


def _complaint(report: CData, rc: int) -> str:
    """libxlutil's first error message. More follow for each line, and they quote the file."""
    said = text(C.pyxlsnap_report_text(report)).split("\n")[0].removeprefix("line: ")
    return said[:_COMPLAINT_LIMIT] or f"libxlutil: {errno.errorcode.get(rc, str(rc))}"


def parse_cfg(
    data: bytes, *, file: str, strings: Sequence[str], lists: Sequence[str]
) -> dict[str, str | list[str]]:
    """Parse xl's configuration syntax with libxlutil; return the keys that are set.

    :param file: its name in errors.
    :param strings: keys whose value is a string.
    :param lists: keys whose value is a list of strings.
    :raises ConfigError: a syntax error, or a value of the wrong type.
    """
    if b"\0" in data:  # an assertion in libxlutil would abort this process
        raise ConfigError("contains a NUL character", file=file)
    found: dict[str, str | list[str]] = {}
    with _config_reader(file) as (config, report):
        rc = C.xlu_cfg_readdata(config, data, len(data))
        if rc:
            raise ConfigError(_complaint(report, rc), file=file)
        value = ffi.new("const char **")
        for key in strings:
            rc = C.xlu_cfg_get_string(config, c_string(key), value, 0)
            if rc == 0:
                found[key] = text(value[0])
            elif rc != errno.ESRCH:
                raise ConfigError("must be a string", file=file, item=key)
        for key in lists:
            items = _list(config, key, file)
            if items is not None:
                found[key] = items
    return found


def _list(config: CData, key: str, file: str) -> list[str] | None:
    items, count = ffi.new("XLU_ConfigList **"), ffi.new("int *")
    rc = C.xlu_cfg_get_list(config, c_string(key), items, count, 0)
    if rc == errno.ESRCH:
        return None
    if rc:
        raise ConfigError("must be a list", file=file, item=key)
    pointers = [C.xlu_cfg_get_listitem(items[0], i) for i in range(count[0])]
    if ffi.NULL in pointers:
        raise ConfigError("each item must be a string", file=file, item=key)
    return [text(p) for p in pointers]


def parse_disk(spec: str, *, file: str) -> Disk:
    """Parse one xl disk specification with ``xlu_disk_parse``.

    :raises ConfigError: libxlutil does not accept it, or it is longer than any valid one.
    """
    if len(bytes_of(spec)) > _DISK_LIMIT:
        raise ConfigError(f"a disk specification of more than {_DISK_LIMIT} bytes", file=file)
    with _config_reader(file) as (config, report), struct("libxl_device_disk") as disk:
        line = c_string(spec)
        rc = C.xlu_disk_parse(config, 1, ffi.new("const char *[]", [line]), disk)
        if rc:
            raise ConfigError(_complaint(report, rc), file=file, item=f"disk {spec!r}")
        return Disk(
            vdev=text(disk.vdev),
            target=text(disk.pdev_path),
            format=text(C.libxl_disk_format_to_string(disk.format)),
            backend=text(C.libxl_disk_backend_to_string(disk.backend)),
            readwrite=bool(disk.readwrite),
            cdrom=bool(disk.is_cdrom),
            script=text(disk.script),
            backend_domain=text(disk.backend_domname),
        )
