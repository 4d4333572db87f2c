"""What is given to others: the sdist, the wheel and the Debian packages.

``python -m release`` builds and checks them, for ``make dist``, ``make deb`` and ``make release``.
"""
