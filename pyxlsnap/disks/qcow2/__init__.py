"""qcow2 files: ``strategy.py`` is the strategy, for internal and external snapshots together.

``internal.py``: snapshots inside the image. ``external.py``: snapshots in a file of their own, with
``chain.py`` (the files of one disk) and ``checks.py``. ``qemu.py`` has the guest's QEMU and
qemu-img, ``qmp.py`` the connection to QEMU.
"""
