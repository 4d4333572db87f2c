"""Values that the tests' domains have; without imports, for child processes, too."""

UUID = "8a1f0c3e-0000-4000-8000-00000000c0de"
OTHER_UUID = "8a1f0c3e-0000-4000-8000-00000000beef"
GIB_KB = 1 << 20
#: the bridge of the tests' domains
BRIDGE = "xenbr0"
