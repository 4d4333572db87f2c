"""Fuzzing of the functions that read config files and memory files, which may be hostile.

:mod:`.targets` has the functions and their allowed results, :mod:`.inputs` the first inputs of the
fuzzer. ``python -m tests.fuzz`` runs one target (``make fuzz`` runs all). ``corpus/`` has inputs
that failed in the past: the unit tests read them again.
"""
