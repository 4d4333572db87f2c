"""``python -m pyxlsnap`` is the command line."""

import sys

from pyxlsnap.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
