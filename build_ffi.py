"""Build the two cffi extensions, and the whole package (the build backend).

``pyxlsnap.xen._ffi`` binds libxl: ``include/*.h`` declares what is bound, ``include/bridge.h`` is C
that goes along with it. ``pyxlsnap.memory._stream`` is the stream writer: C of our own
(``include/stream*.h``), which needs no Xen.

Run as a script it compiles the extensions in place, for work in the source tree; with the word
``stream`` only the stream writer, also where there are no headers of Xen.

A backend of our own, thin as it is, because setuptools takes ``cffi_modules`` only as an argument
of ``setup()``, and there is no other reason for a ``setup.py``.
"""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cffi
import setuptools
from setuptools import build_meta

HERE = Path(__file__).resolve().parent
# In order: later ones use the types of earlier ones.
DECLARATIONS = ["types", "context", "host", "domain", "disk", "xlutil", "xs", "pyxlsnap"]
LIBRARIES = ["xenlight", "xlutil", "xentoollog", "xenstore"]
STREAM = [
    "stream",
    "stream_map",
    "stream_places",
    "stream_finish",
    "stream_parser",
    "stream_writer",
]
EXTENSIONS = ["build_ffi.py:make_ffibuilder", "build_ffi.py:make_stream_builder"]
# The newest API that all of Xen 4.14 to 4.22 offer; it gives every long call its ao_how form.
API_VERSION = "0x041400"

SOURCE = """
#define _GNU_SOURCE 1
#define LIBXL_API_VERSION {api_version}
{bridge}
static const int PYXLSNAP_XEN_MAJOR = {major};
static const int PYXLSNAP_XEN_MINOR = {minor};
"""

STREAM_SOURCE = """
#define _GNU_SOURCE 1
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
"""


def pkg_config(*arguments: str) -> list[str]:
    """Ask pkg-config about the Xen libraries, or stop with the one line that helps."""
    try:
        run = subprocess.run(
            ["pkg-config", *arguments, *LIBRARIES], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        sys.exit(
            "pyxlsnap: the Xen headers are missing: "
            "apt-get install libxen-dev pkg-config gcc python3-dev"
        )
    return run.stdout.split()


def make_ffibuilder() -> cffi.FFI:
    """Put declarations and source together."""
    major, minor = pkg_config("--modversion")[0].split(".")[:2]
    builder = cffi.FFI()
    for name in DECLARATIONS:
        builder.cdef((HERE / "include" / f"{name}.h").read_text())
    builder.set_source(
        "pyxlsnap.xen._ffi",
        SOURCE.format(
            api_version=API_VERSION,
            bridge=(HERE / "include" / "bridge.h").read_text(),
            major=major,
            minor=minor,
        ),
        include_dirs=[f[2:] for f in pkg_config("--cflags-only-I")],
        library_dirs=[f[2:] for f in pkg_config("--libs-only-L")],
        libraries=[f[2:] for f in pkg_config("--libs-only-l")],
        depends=headers("[!s]*"),
    )
    return builder


def make_stream_builder(options: Sequence[str] = (), more: str = "") -> cffi.FFI:
    """The same for the stream writer.

    The fuzzer compiles it with options of its own, and with more source.
    """
    builder = cffi.FFI()
    sources = [(HERE / "include" / f"{name}.h").read_text() for name in STREAM]
    builder.cdef(sources[0])
    builder.set_source(
        "pyxlsnap.memory._stream",
        STREAM_SOURCE + "".join(sources) + more,
        extra_compile_args=list(options),
        extra_link_args=list(options),
        depends=headers("stream*"),
    )
    return builder


def headers(*patterns: str) -> list[str]:
    """The files that an extension is compiled from."""
    found = {path for pattern in patterns for path in (HERE / "include").glob(f"{pattern}.h")}
    return sorted(str(path.relative_to(HERE)) for path in found)


def setup(*, extensions: list[str]) -> None:
    """What pyproject.toml cannot say."""
    # There the old setuptools (66, of Debian 12) and the new want the license written differently.
    # From 77 on it is the License-Expression of PEP 639.
    new = int(setuptools.__version__.split(".")[0]) >= 77
    license_field: dict[str, Any] = {"license_expression" if new else "license": "LGPL-2.1-only"}
    setuptools.setup(
        cffi_modules=extensions,
        options={"bdist_wheel": {"py_limited_api": "cp311"}},
        **license_field,
    )


class _Backend(build_meta._BuildMetaBackend):
    """setuptools' own backend, with the cffi module put in."""

    def run_setup(self, setup_script: str = "setup.py") -> None:
        # An sdist needs no headers: only what compiles asks for the extension.
        compiles = not {"sdist", "egg_info", "dist_info"} & set(sys.argv[1:])
        setup(extensions=EXTENSIONS if compiles else [])


_backend = _Backend()
build_wheel = _backend.build_wheel
build_sdist = _backend.build_sdist
build_editable = _backend.build_editable
prepare_metadata_for_build_wheel = _backend.prepare_metadata_for_build_wheel
prepare_metadata_for_build_editable = _backend.prepare_metadata_for_build_editable
get_requires_for_build_wheel = _backend.get_requires_for_build_wheel
get_requires_for_build_sdist = _backend.get_requires_for_build_sdist
get_requires_for_build_editable = _backend.get_requires_for_build_editable


if __name__ == "__main__":
    os.chdir(HERE)
    extensions = EXTENSIONS[1:] if sys.argv[1:] == ["stream"] else EXTENSIONS
    sys.argv[1:] = ["--quiet", "build_ext", "--inplace"]
    setup(extensions=extensions)
