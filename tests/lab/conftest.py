"""Fixtures of the lab tests: everything here runs on a real Xen, inside QEMU."""

import re
import shutil
import sys
from collections.abc import Generator, Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.lab.harness import cache, image, patience
from tests.lab.harness.emulation import blaming_the_processor
from tests.lab.harness.lab import Lab
from tests.lab.harness.patience import patient
from tests.lab.harness.snapshots import forget

TOOLS = ["qemu-system-x86_64", "qemu-img", "mmdebstrap", "mke2fs", "zstd", "setpriv"]
PACKAGES = "qemu-system-x86 qemu-utils mmdebstrap e2fsprogs zstd"

failed = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "lab: runs on a real Xen inside QEMU")
    config.addinivalue_line("markers", "long: begins before the others, or one machine ends alone")
    config.addinivalue_line("markers", "smoke: `make test` runs it on every Xen that the lab has")
    config.addinivalue_line(
        "markers",
        "once: `make test` runs it on the first Xen of the lab; on others it is a soak test",
    )
    try:
        image.wanted()
        patience.factor()
    except SystemExit as e:
        raise pytest.UsageError(str(e)) from None


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    other = image.wanted().xen != next(iter(image.RELEASES))
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.lab)
            if patience.factor() > 1:
                wait_longer(item)
        if other and item.get_closest_marker("once"):
            item.add_marker(pytest.mark.soak)
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def wait_longer(item: pytest.Item) -> None:
    """Give a test the time that ``PATIENCE`` asks for."""
    if (marker := item.get_closest_marker("timeout")) is not None:
        seconds = float(marker.args[0])
    else:
        seconds = float(item.config.getini("timeout"))
    item.add_marker(pytest.mark.timeout(patient(seconds)), append=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    lab = getattr(item, "funcargs", {}).get("lab")
    with blaming_the_processor(lab.dom0) if lab else nullcontext():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "setup":
        item.stash[failed] = False  # if it is run once more
    if report.failed:
        item.stash[failed] = True
    return report


@pytest.fixture(scope="session")
def _lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        pytest.fail(f"the lab needs {', '.join(missing)}: apt-get install {PACKAGES}")
    capture = request.config.pluginmanager.getplugin("capturemanager")

    def write(line: str) -> None:
        # Seen as it happens, whatever pytest captures: what takes minutes must show why.
        with capture.global_and_fixture_disabled():
            print(f"lab {line}", file=sys.stderr, flush=True)

    with Lab(cache.progress(write)) as lab:
        yield lab


@pytest.fixture
def lab(_lab: Lab, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """The lab, its machine whole: after a test that failed or left disorder, a fresh one."""
    if not _lab.intact():
        _lab.reset()
    yield _lab
    if request.node.stash.get(failed, False):
        name = re.sub(r"[^\w.-]+", "-", request.node.name)
        if (run := getattr(request.node, "execution_count", 1)) > 1:  # (Makefile: AGAIN)
            name += f"-{run}"
        _lab.collect_logs(request.config.rootpath / ".lab-logs" / name)
        _lab.reset()
    else:
        _lab.rest()


@pytest.fixture
def tidy(lab: Lab, request: pytest.FixtureRequest) -> Iterator[None]:
    """Snapshots that the test made are removed again (after a failure the machine is)."""
    yield
    if not request.node.stash.get(failed, False):
        for guest in lab.awake():
            forget(guest)


@pytest.fixture
def spent_lab(lab: Lab) -> Lab:
    """A machine that no other test will use."""
    lab.spend()
    return lab


@pytest.fixture
def fresh_lab(lab: Lab) -> Lab:
    """A machine that no other test has touched."""
    lab.reset()
    return lab
