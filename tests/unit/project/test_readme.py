"""The README's code blocks; its commands are run by tests/lab/test_readme.py."""

import re
import shutil
import subprocess

import pytest

from docs.commands import commands
from pyxlsnap import cfgfile
from pyxlsnap.cli.parser import build_parser
from tests.readme import README, blocks, shell_lines, texts

#: what the lab runs, and what is tried here
COMMANDS, OTHERS = {"sh", "console"}, {"cfg"}
#: which of the lab's tests types the commands below a heading
TYPED = {"Packages": "test_packages.py", "From source": "test_readme.py"}


def make_commands() -> list[str]:
    """Those in blocks and in running text."""
    shown = r"(?:^ {4}|`)(make(?: [A-Z]+=\S+)* [a-z]+(?: [A-Z]+=\w+)*)"
    pages = (README, README.with_name("CONTRIBUTING.md"))
    found = [m for page in pages for m in re.findall(shown, page.read_text(), re.MULTILINE)]
    return sorted({*found, *(line for line in shell_lines() if line.startswith("make "))})


def test_there_is_a_test_for_each_block() -> None:
    found = blocks(README.read_text())
    assert {block.language for block in found} == COMMANDS | OTHERS
    assert {block.heading for block in found if block.language == "sh"} == TYPED.keys()
    for heading, name in TYPED.items():
        lab_test = README.parent / "tests" / "lab" / name
        assert f'shell_lines("{heading}")' in lab_test.read_text()


def test_it_is_read_to_the_end() -> None:
    assert len(README.read_text().splitlines()) <= 200


def test_a_block_has_its_heading() -> None:
    text = "# One\n```sh\n# no heading\n```\n```sh\na\n```\n## Two\nx\n```cfg\nb\n```\n"
    found = [(block.heading, block.text) for block in blocks(text)]
    assert found == [("One", "# no heading\n"), ("One", "a\n"), ("Two", "b\n")]


def links() -> list[str]:
    return re.findall(r"\]\((?!https?:)([^)]+)\)", README.read_text())


@pytest.mark.parametrize("link", links())
def test_a_link_leads_somewhere(link: str) -> None:
    path, _, anchor = link.partition("#")
    text = (README.parent / path).read_text()
    headings = re.findall(r"^(.+)\n[=~-]+$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
    assert not anchor or anchor in anchors


def test_it_has_every_command_and_no_other_option() -> None:
    text, parser = README.read_text(), build_parser()
    named = re.findall(r"^\| `(snapshot-\w+) ", text, re.MULTILINE)
    assert named == list(commands(parser))
    parsers = [parser, *commands(parser).values()]
    known = {s for p in parsers for action in p._actions for s in action.option_strings}
    assert set(re.findall(r"`(--[a-z-]+)", text)) <= known


def test_a_block_that_is_only_indented_is_not_passed_over() -> None:
    with pytest.raises(ValueError, match="its language: rm -rf"):
        blocks("# Title\n\n```sh\ntrue\n```\n\n    rm -rf /\n")


@pytest.mark.parametrize("command", make_commands())
@pytest.mark.skipif(not shutil.which("make"), reason="there is no make")
def test_what_is_to_be_made_is_a_target(command: str) -> None:
    run = subprocess.run(
        [*command.split(), "-n"], cwd=README.parent, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr


def test_the_cfgfile_can_be_read() -> None:
    (text,) = texts("cfg")
    config = cfgfile.parse(text.encode(), file="web1.cfg")
    assert config.name == "before-upgrade"
    assert [disk.vdev for disk in config.disks or ()] == ["xvda", "xvdb"]
