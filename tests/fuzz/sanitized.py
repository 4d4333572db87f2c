"""The stream writer for the fuzzer: compiled with AddressSanitizer and UndefinedBehaviorSanitizer.

They must be loaded before Python: :func:`restart` starts the process again with them. libFuzzer
learns which parts of the writer an input reaches from the counters in ``coverage.c``.
"""

import ctypes
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from typing import Any, Final, NoReturn

_HERE: Final = Path(__file__).resolve().parent
_PROJECT: Final = _HERE.parents[1]
_BUILT: Final = _PROJECT / ".fuzz" / "sanitized"
_MODULE: Final = "pyxlsnap.memory._stream"
#: the path of the sanitized module; set in the process that was started again
_LOADED: Final = "PYXLSNAP_SANITIZED"
_LIBRARIES: Final = ("libasan.so", "libubsan.so")
_OPTIONS: Final = (
    "-O1",
    "-g",
    "-fno-omit-frame-pointer",
    "-fsanitize=address,undefined",
    "-fno-sanitize-recover=all",
    "-fsanitize-coverage=trace-pc",
)
#: Python itself leaks. The quarantine (MiB) is small, because the memory is limited.
_ENVIRONMENT: Final[Mapping[str, str]] = {
    "ASAN_OPTIONS": "detect_leaks=0:quarantine_size_mb=4:allocator_may_return_null=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}
#: all that was given to libFuzzer, which uses it as long as the process runs
_given: list[object] = []


def restart() -> None:
    """Start this process again with the sanitizers, if it does not have them yet."""
    if _LOADED not in os.environ:
        _exec()


def _exec() -> NoReturn:
    found = [
        subprocess.run(
            ["gcc", f"-print-file-name={library}"], check=True, capture_output=True, text=True
        ).stdout.strip()
        for library in _LIBRARIES
    ]
    environment = {**_ENVIRONMENT, "LD_PRELOAD": ":".join(found), _LOADED: str(_built())}
    os.execve(sys.executable, sys.orig_argv, {**os.environ, **environment})


def load() -> None:
    """Use the sanitized module in this process, if it was started for that."""
    if path := os.environ.get(_LOADED):
        spec = importlib.util.spec_from_loader(_MODULE, ExtensionFileLoader(_MODULE, path))
        assert spec
        sys.modules[_MODULE] = importlib.util.module_from_spec(spec)


def count(libfuzzer: Path) -> None:
    """Give the counters of the sanitized module to libFuzzer.

    :param libfuzzer: the library that has libFuzzer.
    """
    if path := os.environ.get(_LOADED):
        built: Any = ctypes.CDLL(path)
        counters = (ctypes.c_ubyte * _size()).in_dll(built, "stream_counters")
        # libFuzzer wants a place in a program for each counter: any two words will do.
        places = (ctypes.c_size_t * (2 * len(counters)))(*range(1, 2 * len(counters) + 1))
        fuzzer: Any = ctypes.CDLL(str(libfuzzer))
        for init, array in (("8bit_counters", counters), ("pcs", places)):
            begin = ctypes.addressof(array)
            call = fuzzer[f"__sanitizer_cov_{init}_init"]
            call(ctypes.c_void_p(begin), ctypes.c_void_p(begin + ctypes.sizeof(array)))
        _given.extend((counters, places))


def _size() -> int:
    source = (_HERE / "coverage.c").read_text()
    return 1 << int(source.partition("STREAM_COUNTERS = 1 << ")[2].partition(" ")[0])


def _built() -> Path:
    """The sanitized module, compiled if its sources are new."""
    sources = [*sorted((_PROJECT / "include").glob("stream*.h")), _HERE / "coverage.c"]
    sources += [_PROJECT / "build_ffi.py", Path(__file__)]
    key = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    final = _BUILT / f"{key}.so"
    if not final.exists():
        _BUILT.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=_BUILT) as directory:
            _compile(Path(directory)).rename(final)
    return final


def _compile(directory: Path) -> Path:
    sys.path.insert(0, str(_PROJECT))
    import build_ffi  # it is no part of the package

    source = (_HERE / "coverage.c").read_text()
    builder = build_ffi.make_stream_builder(options=_OPTIONS, more=source)
    return Path(builder.compile(tmpdir=str(directory)))
