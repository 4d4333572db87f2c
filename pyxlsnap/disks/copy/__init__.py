"""Disks whose snapshot is a copy in a file: ``raw_file.py`` and ``block_device.py``.

Both are strategies on ``snapshot_file.py`` (the copy's file); ``content.py`` does the copying.
"""
