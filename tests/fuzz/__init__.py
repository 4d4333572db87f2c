"""Fuzzing of what reads files that a stranger may have written.

:mod:`.targets` says what is read and what may come of it, :mod:`.inputs` what the fuzzer starts
from; ``python -m tests.fuzz`` runs one target (``make fuzz`` runs them all). ``corpus/`` has the
inputs that once failed: the unit tests read them again.
"""
