"""Disk snapshots: a folder for each kind of storage, and what the kinds have in common.

- ``protocol.py``: what a disk strategy is; ``registry.py`` chooses one for each disk;
  ``plugins.py`` finds those of other packages.
- ``lvm/``, ``qcow2/``, ``copy/``: the strategies.
- ``in_use.py``, ``kept.py``, ``undo.py``, ``failures.py``: helpers of the strategies.
"""
