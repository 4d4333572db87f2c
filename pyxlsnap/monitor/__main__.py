"""The process that watches one domain, like xl's: ``python -m pyxlsnap.monitor UUID``.

The process continues after its parent has ended. It writes to
``/var/log/xen/pyxlsnap-<name>.log``, and ends when the domain no longer exists, or at SIGTERM.
"""

import os
import sys

from pyxlsnap.monitor.launch import READY
from pyxlsnap.monitor.process import watch


def main() -> int:
    """Start the watch in a child in the background; exit with 0 when the watch has begun."""
    (uuid,) = sys.argv[1:]
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            said = pipe.read()
        if said == READY:
            os.write(1, READY)  # the parent may not get the status
            return 0
        os.write(2, said + b"\n")
        return 1
    os.close(reader)
    return watch(uuid, writer)


if __name__ == "__main__":
    sys.exit(main())
