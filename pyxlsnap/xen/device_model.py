"""The path of the QEMU that libxl starts: it is compiled into libxl, and no function returns it."""

import re
from pathlib import Path

from pyxlsnap import paths

_LIBRARY = re.compile(r"(/\S*/libxenlight\.so\S*)$", re.MULTILINE)
_QEMU = re.compile(rb"\0((?:/[\x21-\x7e]+/)?(?:[a-z0-9]+-)*qemu-system-[a-z0-9_]+)\0")


def compiled_device_model() -> str:
    """The path, from the text in the library that this process has loaded; "" if not found."""
    try:
        library = _LIBRARY.search((paths.PROC / "self/maps").read_text())
        found: set[bytes] = set(_QEMU.findall(Path(library[1]).read_bytes() if library else b""))
    except OSError:
        return ""
    if len(found) != 1:
        return ""
    path = found.pop().decode()
    if path.startswith("/"):
        return path
    from shutil import which  # only here: this takes long to load

    return which(path) or path
