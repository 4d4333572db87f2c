"""Paths that are compiled into libxl: no function of libxl returns them."""

import os
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from pyxlsnap import paths

# (The kernel marks a file that has lost its name: an upgrade has put another one in its place.)
_LIBRARY = re.compile(r"(/\S*/libxenlight\.so\S*)( \(deleted\))?$", re.MULTILINE)
_PATH = rb"(/[\x21-\x7e]+)"
# Each path, with a piece of its text: to look for that piece is faster.
_DEVICE_MODEL = (rb"qemu-system-", rb"((?:/[\x21-\x7e]+/)?(?:[a-z0-9]+-)*qemu-system-[a-z0-9_]+)")
_STATE = (rb"/userdata-%s", _PATH + rb"/userdata-%s\.%u\.%s\.%s")
_LOGS = (rb"/%s.log", _PATH + rb"/%s\.log")
_SAVE_HELPER = (rb"/libxl-save-helper", rb"(/[\x21-\x7e]+/libxl-save-helper)")
_SCRIPTS = (rb"/scripts", rb"(/[\x21-\x7e]+/scripts)")


def compiled_device_model() -> str:
    """The path of the QEMU that libxl starts; "" if not found."""
    path = _compiled(_loaded()[0])[0]
    if not path or path.startswith("/"):
        return path
    from shutil import which  # only here: this takes long to load

    return which(path) or path


def compiled_places() -> paths.Places:
    """Where libxl writes, and what else it starts."""
    library, replaced = _loaded()
    places = _compiled(library)[1]._replace(replaced=replaced)
    own = os.environ.get("LIBXL_SAVE_HELPER")  # (libxl takes that first)
    return places._replace(save_helper=own) if own else places


def libxl_was_replaced() -> bool:
    """Whether another libxl, or none, is in the place of the one that this process has loaded."""
    return _loaded()[1]


def _loaded() -> tuple[str, bool]:
    """The path of the libxl that this process has loaded, and whether it was replaced."""
    try:
        found = _LIBRARY.search((paths.PROC / "self/maps").read_text())
    except OSError:
        found = None
    return (found[1], found[2] is not None) if found else ("", False)


@cache
def _compiled(library: str) -> tuple[str, paths.Places]:
    try:
        data = Path(library).read_bytes() if library else b""
    except OSError:
        data = b""
    places = paths.Places(
        state=_only(data, *_STATE),
        logs=_only(data, *_LOGS),
        save_helper=_only(data, *_SAVE_HELPER),
        scripts=_only(data, *_SCRIPTS),
    )
    return _only(data, *_DEVICE_MODEL), places


def _only(data: bytes, piece: bytes, pattern: bytes) -> str:
    """The only text that a pattern matches; "" if there is none, or several."""
    whole = re.compile(pattern)
    found = {match[1] for text in _texts(data, piece) if (match := whole.fullmatch(text))}
    return found.pop().decode() if len(found) == 1 else ""


def _texts(data: bytes, piece: bytes) -> Iterator[bytes]:
    """The texts between two NUL bytes that have a piece in them."""
    at = data.find(piece)
    while at >= 0:
        end = data.find(b"\0", at)
        yield data[data.rfind(b"\0", 0, at) + 1 : end]
        at = data.find(piece, max(at + 1, end))
