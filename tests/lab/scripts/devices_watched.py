"""In dom0: change nodes beside those of a guest's devices, and ask after each change for changes.

usage: devices_watched.py DOMAIN. Prints JSON: whether the first question, each question after a
change, and each one after that found a change.
"""

import json
import subprocess
import sys

from pyxlsnap import Toolstack

ROUNDS = 20


def main() -> None:
    with Toolstack() as toolstack:
        guest = toolstack.find(sys.argv[1])
        nodes = [f"/local/domain/{guest.domid}/device/test", f"/libxl/{guest.domid}/device/test"]
        changes = [["xenstore-write", node, str(n)] for n in range(ROUNDS) for node in nodes]
        changes += [["xenstore-rm", node] for node in nodes]
        found: dict[str, list[bool]] = {"changed": [], "again": []}
        with guest.watching_devices() as devices:
            found["first"] = [devices.changed()]
            try:
                for change in changes:
                    subprocess.run(change, check=True)
                    found["changed"].append(devices.changed())
                    found["again"].append(devices.changed())
            finally:
                for node in nodes:
                    subprocess.run(["xenstore-rm", node], stderr=subprocess.DEVNULL)
        print(json.dumps(found))


if __name__ == "__main__":
    main()
