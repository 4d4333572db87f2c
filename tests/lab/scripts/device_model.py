"""In dom0: print the path of the QEMU that libxl starts."""

from pyxlsnap import Toolstack

if __name__ == "__main__":
    with Toolstack() as host:
        print(host.device_model())
