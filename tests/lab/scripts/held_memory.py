"""In dom0: how much memory the guest in a memory file holds, in KiB.

usage: held_memory.py FILE
"""

import sys

from pyxlsnap.memory import read_header, walk

with open(sys.argv[1], "rb") as file:
    file.seek(read_header(file, sys.argv[1]).stream_offset)
    print(walk(file, sys.argv[1]).memory_kb)
