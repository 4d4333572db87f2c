"""In dom0: abort the suspend of a paused guest while its request stands, and withdraw the request.

usage: request_withdrawn.py DOMAIN. Prints JSON: whether the request stood, what ensure_running
returned and how long it took, and whether the request stands afterwards.
"""

import json
import sys
import threading
import time

from pyxlsnap import Toolstack
from pyxlsnap.errors import XenError


def main() -> None:
    with Toolstack() as toolstack, open("/dev/null", "wb") as nowhere:
        guest = toolstack.find(sys.argv[1])

        def suspend() -> None:
            try:
                guest.suspend(nowhere.fileno(), live=False)
            except XenError:
                pass  # it is aborted

        suspending = threading.Thread(target=suspend)
        suspending.start()
        with guest.on_its_own() as watched:
            end = time.monotonic() + 60
            while not (stood := watched.suspend_requested()) and time.monotonic() < end:
                time.sleep(0.05)
        guest.abort()
        suspending.join()
        begun = time.monotonic()
        resumed = guest.ensure_running(paused=True)
        found = {
            "stood": stood,
            "resumed": resumed,
            "seconds": time.monotonic() - begun,
            "stands": guest.suspend_requested(),
        }
        print(json.dumps(found))


if __name__ == "__main__":
    main()
