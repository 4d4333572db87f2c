"""In dom0: make a memory file say that it was saved on Xen 4.11.

usage: other_xen.py FILE. The two numbers stand in the DOMAIN header of libxc's stream, which
follows its image header of 24 bytes.
"""

import mmap
import sys

IMAGE_HEADER = b"\xff" * 8 + b"XENF"
RELEASE_AT = 24 + 8


def main() -> None:
    with open(sys.argv[1], "r+b") as file, mmap.mmap(file.fileno(), 1 << 20) as head:
        at = head.find(IMAGE_HEADER) + RELEASE_AT
        assert at > RELEASE_AT
        assert int.from_bytes(head[at : at + 4], "little") == 4
        head[at + 4 : at + 8] = (11).to_bytes(4, "little")


if __name__ == "__main__":
    main()
