"""``python -m pyxlsnap.worker`` is the worker process."""

from pyxlsnap.worker.server import main

if __name__ == "__main__":
    main()
