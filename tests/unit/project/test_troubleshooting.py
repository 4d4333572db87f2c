"""The page about troubleshooting names every exit status and every refusal."""

import ast
import re

import pytest

from pyxlsnap.cli.parser import build_parser
from tests.refusals import PAGE, VALUE, Refusal, first_words, refusals, template, terms

FOUND = list(refusals())
WORDS = {term: first_words(term) for term in terms()}
#: where the text of a refusal is made elsewhere: the first words of each such text
MADE_ELSEWHERE: dict[tuple[str, str], tuple[str, ...]] = {
    ("cfgfile.py", "str(e)"): ("snapshot name …", "line:…: config parsing error near …"),
    ("disks/changeable.py", "f'{disk.vdev}: {path} {why}'"): ("…: … …",),
    ("disks/failures.py", "f'{disk.vdev}: {text}'"): ("…: … …",),
    ("disks/qcow2/qemu.py", "'; '.join(wrong)"): ("…: the guest's QEMU does not have … open",),
    ("disks/served.py", "f'{disk.vdev}: {e.message}'"): ("…: … …",),
    ("disks/served.py", "f'{disk.vdev}: {_text(disk, *found)}'"): (
        "…: … is not the file that … has open for the guest",
    ),
    ("guest/frontends.py", "_not_steady(guest.name, watch)"): (
        "… is paused, and not all its devices are connected",
        "…: not all devices are connected or unused",
    ),
    ("linux/files.py", "str(e)"): ("cannot write in …",),
    ("linux/files.py", "f'{e.filename}: {e.strerror}' if e.filename else str(e)"): (
        "cannot write in …",
    ),
    ("request.py", "f'{request.operation}: {e}'"): (),  # a program passed a value of another type
    ("revert/disk_files.py", "f'{disk.vdev}: {path}{which} {found}'"): (
        "…: … is gone, and the guest's QEMU still has it",
    ),
    ("revert/operation.py", "'; '.join(left)"): (
        "what the revert to … had prepared may be left",
        "what the revert had prepared for … could not be removed",
    ),
    ("xen/context.py", "why"): ("this pyxlsnap is built for Xen …, and Xen … runs",),
    ("xen/xlcfg.py", "_complaint(report, rc)"): ("line:…: config parsing error near …",),
}


def begins(text: str) -> list[str]:
    """The terms that a text begins with."""
    return [term for term, words in WORDS.items() if text.startswith(words)]


@pytest.mark.parametrize("refusal", FOUND, ids=lambda r: f"{r.module}:{r.line}")
def test_a_refusal_is_on_the_page(refusal: Refusal) -> None:
    if refusal.text is None:
        assert (refusal.module, refusal.source) in MADE_ELSEWHERE, (
            "name its texts in MADE_ELSEWHERE, and on the page"
        )
    else:
        assert begins(refusal.text), f"docs/troubleshooting.rst has no entry for: {refusal.text}"


def test_what_is_made_elsewhere_is_on_the_page() -> None:
    assert {(r.module, r.source) for r in FOUND if r.text is None} == MADE_ELSEWHERE.keys()
    for texts in MADE_ELSEWHERE.values():
        assert set(texts) <= set(WORDS.values())


def test_the_page_has_nothing_else() -> None:
    texts = [r.text for r in FOUND if r.text]
    known = [*texts, *(text for made in MADE_ELSEWHERE.values() for text in made)]
    assert [t for t, words in WORDS.items() if not any(k.startswith(words) for k in known)] == []
    assert len(set(WORDS.values())) == len(WORDS)


def test_the_page_has_every_exit_status() -> None:
    statuses = re.findall(r"^  (\d+(?:, \d+)*)  ", build_parser().epilog or "", re.MULTILINE)
    assert re.findall(r"^\*\*([\d, ]+)\*\*$", PAGE.read_text(), re.MULTILINE) == statuses


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("f'{a}{b}: no'", f"{VALUE}: no"),
        ("'no ' + f'b {c}'", f"no b {VALUE}"),
        ("f'is {a}' + ('x' if a else '')", f"is {VALUE}"),
        ("str(e)", None),
        ("f'{a}: {b}'", None),
    ],
)
def test_the_text_of_an_expression(source: str, expected: str | None) -> None:
    node = ast.parse(source, mode="eval").body
    assert template(node) == expected
