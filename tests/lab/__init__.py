"""A Xen host inside QEMU, and guests that can tell whether they were restored truly.

Needs no KVM and nothing that Debian does not package. The modules, bottom up: ``cache`` (what is
kept between runs), ``image`` (the dom0's disk), ``dom0`` (running commands there), ``machine``
(QEMU), ``guests``, ``state`` (a booted machine in a file), ``install`` (the package under test),
``lab`` (all of it together).
"""
