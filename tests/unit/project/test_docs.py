"""The documentation: nothing that is public goes without, and what is generated is as the code."""

import inspect
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from xml.etree import ElementTree

import pytest
from sphinx.pycode import ModuleAnalyzer

import pyxlsnap
from docs import generate, timeline
from docs.timeline import Span
from pyxlsnap import aio, cfgfile, paths
from pyxlsnap.cli.parser import build_parser
from pyxlsnap.create.sequence import Creation
from pyxlsnap.revert.sequence import Reversion
from tests.readme import README

SHARE = Path(generate.__file__).parent / "share"
PAGES = {page.name: page for page in SHARE.glob("man/*/*")}
#: the modules that docs/reference.rst is made of
PUBLIC = [getattr(module, name) for module in (pyxlsnap, aio) for name in module.__all__]
CLASSES = [value for value in PUBLIC if inspect.isclass(value)]
FUNCTIONS = [
    value for name in pyxlsnap.__all__ if inspect.isfunction(value := getattr(pyxlsnap, name))
]
_RAISES = re.compile(
    r"^\s+(raise |((self\._)?context\.|self\._?)?check\()|self\._check\(", re.MULTILINE
)


@pytest.mark.parametrize("name", [f.__name__ for f in FUNCTIONS])
def test_a_coroutine_function_names_the_function_that_explains_it(name: str) -> None:
    assert inspect.getdoc(getattr(aio, name)) == f"See :func:`pyxlsnap.{name}`."


def kin(cls: type) -> list[type]:
    """A class and those of its bases that are ours."""
    return [c for c in cls.__mro__ if c.__module__.startswith("pyxlsnap.")]


def commented(cls: type) -> set[str]:
    """The attributes that have a ``#:`` comment or are members of an enumeration that have one."""
    return {
        name
        for c in kin(cls)
        for owner, name in ModuleAnalyzer.for_module(c.__module__).find_attr_docs()
        if owner == c.__name__
    }


def attributes(cls: type) -> set[str]:
    """The public attributes that its objects are given."""
    if is_dataclass(cls):
        return set(cls.__dataclass_fields__)
    assigned = [
        line.partition(" = ")[0]
        for c in kin(cls)
        if "__init__" in vars(c)
        for line in inspect.getsource(vars(c)["__init__"]).splitlines()
        if " = " in line
    ]
    return {name for target in assigned for name in re.findall(r"^\s+self\.([a-z]\w*)", target)}


def methods(cls: type) -> Iterator[tuple[str, object]]:
    """Its public methods and properties, with the function that each is made of."""
    for name, value in inspect.getmembers_static(cls):
        if isinstance(value, property):
            yield name, value.fget
        elif isinstance(value, classmethod | staticmethod):
            yield name, value.__func__
        elif inspect.isfunction(value):
            yield name, value


def public(cls: type) -> Iterator[tuple[str, object]]:
    for name, function in methods(cls):
        module = getattr(function, "__module__", None) or ""
        if not name.startswith("_") and module.startswith("pyxlsnap."):
            yield f"{cls.__name__}.{name}", function


ALL = [(f.__name__, f) for f in FUNCTIONS] + [m for c in CLASSES for m in public(c)]


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: c.__name__)
def test_a_class_and_its_attributes_are_explained(cls: type) -> None:
    assert cls.__doc__
    assert not cls.__doc__.startswith(f"{cls.__name__}(")  # what dataclass() writes
    assert attributes(cls) - commented(cls) == set()


@pytest.mark.parametrize(("name", "function"), ALL, ids=[name for name, _ in ALL])
def test_a_function_is_explained_with_its_errors(name: str, function: object) -> None:
    doc = inspect.getdoc(function)
    assert doc
    _, _, body = inspect.getsource(function).rpartition('"""')  # type: ignore[arg-type]
    assert ":raises " in doc or ("." in name and not _RAISES.search(body))


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_every_parameter_is_explained(function: object) -> None:
    doc = inspect.getdoc(function) or ""
    if "Its parameters are the same" in doc:
        return
    parameters = inspect.signature(function).parameters  # type: ignore[arg-type]
    assert [p for p in parameters if f":param {p}: " not in doc] == []


# What is installed beside the package


def test_what_is_kept_is_what_is_generated(tmp_path: Path) -> None:
    """If not: ``make docs``."""
    generate.main(tmp_path)
    new, kept = (
        {p.relative_to(top): p.read_text() for p in top.rglob("*") if p.is_file()}
        for top in (tmp_path, SHARE)
    )
    assert new == kept


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.skipif(not shutil.which("groff"), reason="there is no groff")
def test_a_man_page_is_formatted_without_warnings(page: str) -> None:
    run = subprocess.run(
        ["groff", "-man", "-ww", "-Tutf8", "-k", "-P-cbou", PAGES[page]],
        capture_output=True,
        text=True,
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert "SYNOPSIS" in run.stdout


def words(page: str) -> str:
    """The text of a page, its markup left out."""
    return re.sub(r"\\f.|\\", "", PAGES[page].read_text())


@pytest.mark.parametrize(
    "place",
    [paths.SNAPSHOTS, paths.JOURNALS, paths.LOCKS, paths.DUMPS, paths.XEN_LOGS],
    ids=str,
)
def test_the_man_page_names_the_files(place: Path) -> None:
    _, _, files = words("pyxlsnap.1").partition(".SH FILES")
    assert str(place) in files


@pytest.mark.parametrize("key", [*cfgfile.STRINGS, *cfgfile.LISTS])
def test_the_man_page_of_the_cfgfile_explains_the_keys(key: str) -> None:
    assert f"\n.TP\n{key}\n" in words("pyxlsnap.cfg.5")


def test_the_examples_of_a_cfgfile_can_be_read() -> None:
    source = (SHARE.parent / "pyxlsnap.cfg.5.rst").read_text()
    examples = re.findall(r"::\n\n((?:   .*\n)+)", source)
    read = [cfgfile.parse(e.encode(), file="x") for e in examples if " = " in e]
    assert [c.name for c in read] == ["before-upgrade", "nightly", None]
    disks = read[-1].disks or ()
    assert [(d.vdev, d.path) for d in disks] == [
        ("xvda", "/srv/snap/web1, root.qcow2"),
        ("xvdb", ""),
    ]


def test_the_page_about_the_design_has_the_steps_in_order() -> None:
    text = (SHARE.parent / "design.rst").read_text()
    for title, steps in (
        ("A create", Creation.__new__(Creation).steps()),
        ("A revert", Reversion.__new__(Reversion).steps()),
    ):
        section = re.split(r"\n.+\n-+\n", text.partition(f"\n{title}\n")[2])[0]
        told = re.findall(r"^(\d+)\. \*\*(.+?)\*\*", section, re.MULTILINE)
        assert told == [(str(n), name) for n, (name, _) in enumerate(steps, 1)]


@pytest.mark.parametrize("page", [README, SHARE.parent / "pyxlsnap.1.rst"], ids=lambda p: p.name)
def test_the_commands_that_are_shown_can_be_given(page: Path) -> None:
    command = r"^(?: |# |revert: ).*?\b(pyxlsnap (?:--?\w+ )*snapshot-[^|)\n[]*)(?:\|.*)?$"
    shown = re.findall(command, page.read_text(), re.MULTILINE)
    parser = build_parser()
    assert {parser.parse_args(shlex.split(c)[1:]).command for c in shown} >= {
        "snapshot-create",
        "snapshot-revert",
    }


def test_the_picture_is_what_the_times_make() -> None:
    """If not: ``make docs``."""
    assert timeline.PICTURE.read_text() == timeline.draw(timeline.Times.read())


def test_the_picture_is_xml_and_says_the_seconds() -> None:
    times = timeline.Times("<a guest>", "a & b", Span(5, 0.25, 1), Span(0, 61, 0.5))
    root = ElementTree.fromstring(timeline.draw(times))
    said = [e.text or "" for e in root.iter() if e.tag.endswith("text")]
    assert "suspended for 0.25 s: disk snapshots" in said
    assert any(text.startswith("stopped for 61.0 s") for text in said)
    boxes = [e for e in root.iter() if e.tag.endswith("rect")]
    width = float(root.attrib["viewBox"].split()[2])
    assert all(float(b.attrib["x"]) + float(b.attrib["width"]) <= width for b in boxes)


def test_the_seconds_of_a_result() -> None:
    seconds = {"journal": 1.0, "suspend": 4.0, "resume": 0.5, "watch": 0.25, "cfgfile": 0.25}
    create = {"seconds": seconds, "seconds_suspended": 0.5}
    assert Span.of_result(create) == Span(before=5.0, stopped=0.5, after=0.5)
    steps = {"journal": 1.0, "destroy": 2.0, "unpause": 1.0, "clean up": 0.5}
    revert = {"seconds": steps, "seconds_off": 2.5}
    assert Span.of_result(revert) == Span(before=1.5, stopped=2.5, after=0.5)


def test_the_times_are_read_as_they_were_published(tmp_path: Path) -> None:
    times = timeline.Times("a", "b", Span(1.5, 0.25, 1), Span(0, 61, 0.5))
    times.publish(tmp_path / "times.json", tmp_path / "times.svg")
    assert timeline.Times.read(tmp_path / "times.json") == times


def test_the_picture_that_is_published_is_that_of_the_kept_times(tmp_path: Path) -> None:
    """They have milliseconds; the measured times have more digits."""
    times = timeline.Times("a", "b", Span(8.1154449, 0.0444449, 1 / 3), Span(1 / 7, 61, 0.5))
    kept, picture = tmp_path / "times.json", tmp_path / "times.svg"
    times.publish(kept, picture)
    assert picture.read_text() == timeline.draw(timeline.Times.read(kept))
