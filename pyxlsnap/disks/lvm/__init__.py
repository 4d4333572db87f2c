"""LVM volumes: ``thin.py`` and ``thick.py`` are the strategies, on ``base.py``.

``commands.py`` runs LVM's commands, ``names.py`` knows the names of volumes.
"""
