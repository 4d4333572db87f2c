"""In dom0: make a memory file say that a much newer QEMU saved the guest.

usage: other_qemu.py FILE. The version stands in the JSON of pyxlsnap, in the first part of the
file; its length stays the same.
"""

import mmap
import re
import sys

VERSION = re.compile(rb'"qemu": "\d')


def main() -> None:
    with open(sys.argv[1], "r+b") as file, mmap.mmap(file.fileno(), 1 << 20) as head:
        (found,) = VERSION.finditer(head)
        head[found.end() - 1 : found.end()] = b"9"


if __name__ == "__main__":
    main()
