# make demo    a live snapshot of a real guest on a real Xen, taken and reverted
# make test    every test: lint, types, layers, documentation, unit tests, then the lab
# make check   lint, types and layers only
# make format  the format, and what lint can mend by itself
# make smoke   a few of the lab's tests; make test runs them on each Xen that it does not test whole
# make soak    the tests that take too long for that, and the README's table of what they saw;
#              before them (not with XEN=…) make newest, and make smoke on Debian unstable
# make bench   how long snapshots and reverts take, beside xl and a C program on libxl, ROUNDS (5)
#              times; the tables and pictures of README and docs/how-fast.rst
# make docs    the documentation, into build/docs/html; what is generated, into docs/share; the README's
#              time line
# make dist    the sdist and the wheel, in dist/, checked
# make deb     make dist, then the Debian packages, in dist/SUITE/, for each of SUITES (bookworm trixie):
#              built twice in a clean Debian, compared, checked by lintian, tried
# make release everything: make check, html and unit; make lab and make soak on each Xen; make fuzz;
#              make deb; then what is left to a person
# make fuzz    the readers of config and memory files and the stream writer (with ASan and UBSan),
#              SECONDS each (600), with libFuzzer
#
# make newest  the unit tests with the Python and the QEMU of Debian unstable
#
# XEN=4.20     after any of these: the lab runs that Xen, not 4.17; XEN=unstable: Debian unstable
#
# make clean   what was built in the tree (the lab's image stays: make prune)

PYTHON ?= $(firstword $(wildcard /usr/bin/python3) python3)
VENV := .venv
# The lab's: those of Debian 12, 13 and unstable.
XENS := 4.17 4.20 unstable
XEN ?= 4.17
# What make test runs a few tests on; unstable is left to make soak, the usual one.
SMOKED := $(filter-out $(XEN) unstable,$(XENS))
SOAKED_TOO := $(if $(filter $(XEN),$(firstword $(XENS))),newest smoke-unstable)
# The Debian releases that packages are made for.
SUITES ?= bookworm trixie
export XEN
# The tests start many interpreters: each would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE
ifeq ($(filter $(XEN),$(XENS)),)
$(error XEN=$(XEN): the lab has $(XENS))
endif
# Unit tests at a time: many of them wait.
JOBS ?= 4
# Machines of the lab at a time: each takes a core and 2 GiB.
LABS ?= 2
# How much longer than usual the lab waits, on a machine that has other work.
PATIENCE ?= 1
export PATIENCE
# How long each reader is fuzzed.
SECONDS ?= 600
# A fault of the emulated processor (tests/lab/harness/emulation.py) is none of ours.
AGAIN := --reruns 1 --only-rerun EmulationFault
# How often each is measured by make bench.
ROUNDS ?= 5
PY := $(VENV)/bin/python
SOURCES := pyxlsnap build_ffi.py contrib docs release tests examples

.PHONY: demo test check check-and-html format docs html unit lab smoke soak bench dist deb release fuzz newest clean prune

test: check-and-html unit lab $(SMOKED:%=smoke-%)

# Both at a time: each needs one core.
check-and-html: $(VENV)/built
	$(MAKE) --no-print-directory --output-sync=target -j2 check html

check: $(VENV)/built
	$(PY) -m ruff format --check $(SOURCES)
	$(PY) -m ruff check $(SOURCES)
	$(PY) -m mypy
	$(VENV)/bin/lint-imports

format: $(VENV)/ready
	$(PY) -m ruff format $(SOURCES)
	$(PY) -m ruff check --fix $(SOURCES)

docs: html
	$(PY) -m docs.generate
	$(PY) -m docs.timeline

html: $(VENV)/built
	$(PY) -m sphinx -q -E -W --keep-going -b html docs build/docs/html

unit: $(VENV)/built
	$(PY) -m pytest tests/unit -m "not soak" -n $(JOBS) --dist worksteal

# One machine does all tests of a file: else each would prepare the guest that they share. The files
# with tests marked "long" come first (xdist would begin with those that have many tests).
lab: $(VENV)/built
	$(PY) -m tests.lab state
	$(PY) -m pytest tests/lab $(AGAIN) -m "not soak" -n $(LABS) --dist loadfile --no-loadscope-reorder \
		--durations=8

smoke: smoke-$(XEN)

smoke-%: $(VENV)/built
	XEN=$* $(PY) -m tests.lab state
	XEN=$* $(PY) -m pytest tests/lab $(AGAIN) -m smoke -n $(LABS) --dist worksteal --durations=0

soak: $(VENV)/built $(SOAKED_TOO)
	$(PY) -m pytest tests/unit -m soak -n $(JOBS)
	$(PY) -m tests.lab state
	$(PY) -m pytest tests/lab $(AGAIN) -m soak -n $(LABS) --dist worksteal --durations=0
	$(PY) -m tests.lab.harness.support

newest: $(VENV)/built
	JOBS=$(JOBS) $(PY) -m tests.newest

# Nothing else should run on the machine meanwhile.
bench: $(VENV)/bench-ready $(VENV)/built
	$(PY) -m tests.lab state
	$(PY) -m tests.bench --rounds $(ROUNDS) --labs $(LABS)

dist: $(VENV)/built
	$(PY) -m release dist

deb: dist
	$(PY) -m release deb $(SUITES)

# One after the other. (make test would run the tests of the first Xen, and a few of the others.)
release:
	$(MAKE) check
	$(MAKE) html
	$(MAKE) unit
	for xen in $(XENS); do $(MAKE) lab XEN=$$xen && $(MAKE) soak XEN=$$xen || exit; done
	$(MAKE) fuzz
	$(MAKE) deb
	$(PY) -m release rest

# Two at a time; if one of them finds something the others go on.
fuzz: $(VENV)/built
	$(MAKE) --no-print-directory -k -j2 fuzz-cfgfile fuzz-memory fuzz-stream

fuzz-%: $(VENV)/built
	$(PY) -m tests.fuzz $* -max_total_time=$(SECONDS)

demo: $(VENV)/built
	$(PY) -m tests.lab.harness.demo

# Debian's packages and Python's, each only if something is missing.
$(VENV)/ready: tests/setup.sh tests/requirements.txt
	sh tests/setup.sh $(PYTHON) $(VENV)
	touch $@

$(VENV)/bench-ready: $(VENV)/ready tests/bench/requirements.txt
	sh tests/setup.sh $(PYTHON) $(VENV) rsync borgbackup
	@echo "installing what draws the picture"
	$(PY) -m pip install -q --disable-pip-version-check -r tests/bench/requirements.txt
	touch $@

# The extensions, compiled in place against the installed libxen-dev.
$(VENV)/built: $(VENV)/ready build_ffi.py $(wildcard include/*.h)
	@echo "compiling the extensions"
	$(PY) build_ffi.py
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info pyxlsnap/*/_*.so .lab-logs

prune: $(VENV)/ready
	$(PY) -m tests.lab prune
