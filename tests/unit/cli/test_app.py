"""The command, as a user runs it: exit status, one line on stderr, nothing else on stdout."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

import pyxlsnap
from pyxlsnap import api
from pyxlsnap.api import clones
from pyxlsnap.cancel import Cancel
from pyxlsnap.cli import app
from pyxlsnap.errors import (
    Interrupted,
    NeedsAttention,
    PyxlsnapError,
    Refused,
    Risky,
    UsageError,
    XenError,
)
from pyxlsnap.model import DiskRequest, RunState
from pyxlsnap.results import OnProgress, PlannedDisk, Progress, Recovered, Snapshot
from tests.unit.support.results import CLONED, PLAN, REVERTED, SNAPSHOT
from tests.unit.support.scenarios import deaths, ordinary
from tests.unit.support.standin import StandIn
from tests.unit.support.values import UUID

ROOT = Path(pyxlsnap.__file__).parent.parent
COMMAND = [sys.executable, "-m", "pyxlsnap"]
on_xen = pytest.mark.skipif(Path("/proc/xen/privcmd").exists(), reason="there is a Xen here")


def run(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, cwd=cwd, env=environment
    )


def fails(code: int, *arguments: str, cwd: Path = ROOT) -> str:
    """The one line on stderr; nothing is on stdout."""
    found = run(*arguments, cwd=cwd)
    assert (found.returncode, found.stdout) == (code, "")
    assert found.stderr.startswith("pyxlsnap: ")
    assert found.stderr.count("\n") == 1
    assert "Traceback" not in found.stderr
    return found.stderr.removeprefix("pyxlsnap: ").rstrip("\n")


class TestUsage:
    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            ([], "required: command"),
            (["snapshot-list"], "invalid choice: 'snapshot-list'"),
            (["snapshot-create"], "required: domain"),
            (["snapshot-create", "vm1", "a", "b"], "unrecognized arguments: b"),
            (["snapshot-create", "vm1", "--force"], "unrecognized arguments: --force"),
            (["snapshot-revert", "vm1"], "required: cfgfile"),
            (["snapshot-create", "vm1", "--name"], "expected one argument"),
        ],
    )
    def test_wrong_arguments(
        self, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
    ) -> None:
        assert app.main(arguments) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert says in err
        assert "--help" in err

    def test_of_the_real_command(self) -> None:
        assert "invalid choice" in fails(2, "snapshot-list")
        assert "digits alone" in fails(2, "snapshot-create", "vm1", "--name=123")

    @pytest.mark.parametrize(
        ("name", "says"), [("123", "digits alone"), ("a/b", "only letters"), ("", "empty")]
    )
    def test_a_bad_name(self, capsys: pytest.CaptureFixture[str], name: str, says: str) -> None:
        assert app.main(["snapshot-create", "vm1", f"--name={name}"]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert says in err

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("nam = 'x'\n", "nam: unknown key; did you mean name?"),
            ("name = '1'\n", "name: snapshot name '1': qemu-img takes digits alone"),
            ("disks = 'x'\n", "disks: must be a list"),
            ("disks = ['nonsense']\n", "disk 'nonsense': "),
            ("name = \n", "syntax error"),
        ],
    )
    def test_a_bad_cfgfile_is_named_with_the_item(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, says: str
    ) -> None:
        cfg = tmp_path / "a.cfg"
        cfg.write_text(text)
        assert app.main(["snapshot-create", "vm1", str(cfg)]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert err.startswith(f"pyxlsnap: {cfg}: ")
        assert says in err

    def test_a_missing_cfgfile(self, tmp_path: Path) -> None:
        line = fails(2, "snapshot-revert", "vm1", "no.cfg", cwd=tmp_path)
        assert line == f"{tmp_path}/no.cfg: cannot be read: No such file or directory"


def test_help_lists_the_exit_codes() -> None:
    found = run("--help")
    assert found.returncode == 0
    assert found.stderr == ""
    for code in ("0", "1", "2", "3", "4", "5", "130, 143"):
        assert f"\n  {code}  " in found.stdout


@pytest.mark.parametrize(("words", "status"), [(["--help"], 0), (["snapshot-create"], 2)])
def test_help_and_a_wrong_command_line_load_little(words: list[str], status: int) -> None:
    """The classes of the library would take a third of the time."""
    script = (
        "import sys, pyxlsnap.__main__\n"
        "from pyxlsnap.cli.app import main\n"
        "try:\n"
        f"    status = main({words!r})\n"
        "except SystemExit as e:\n"
        "    status = e.code\n"
        "print(status or 0, 'pyxlsnap.dataclass' in sys.modules, 'pyxlsnap.api' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == f"{status} False False", done


def test_version() -> None:
    found = run("--version")
    assert (found.returncode, found.stdout) == (0, f"pyxlsnap {pyxlsnap.__version__}\n")


def test_an_option_is_spelled_out(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["snapshot-revert", "vm1", "a.cfg", "--forc"]) == 2
    assert "unrecognized arguments: --forc" in capsys.readouterr().err


@on_xen
class TestNoXen:
    @pytest.mark.parametrize("command", [("snapshot-create", "vm1"), ("snapshot-recover", UUID)])
    def test_is_refused(self, command: tuple[str, ...]) -> None:
        assert fails(3, *command).startswith("cannot talk to Xen: this machine does not run under")

    def test_as_json(self) -> None:
        found = run("--json", "snapshot-create", "vm1")
        document = json.loads(found.stdout)
        assert found.returncode == document["exit_code"] == 3
        assert document["pyxlsnap"] == app.JSON_VERSION
        assert document["command"] == "snapshot-create"
        assert document["error"]["class"] == "XenUnavailable"
        assert document["error"]["message"] in found.stderr
        assert "result" not in document

    def test_a_name_beside_the_cfgfiles_is_warned_of(self, tmp_path: Path) -> None:
        (tmp_path / "a.cfg").write_text("name = 'theirs'\n")
        found = run("snapshot-create", "vm1", "a.cfg", "--name=mine", cwd=tmp_path)
        assert found.returncode == 3
        assert "the cfgfile names the snapshot theirs: mine is ignored" in found.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_rolls_back(worker: StandIn, number: signal.Signals, code: int) -> None:
    worker.set(ordinary.signalled)
    (worker.here / "signal").write_text(str(int(number)))
    found = subprocess.run(
        [*COMMAND, "snapshot-create", "vm1"], capture_output=True, text=True, cwd=ROOT
    )
    assert (found.returncode, found.stdout) == (code, "")
    assert found.stderr.splitlines() == [
        "interrupted: ending as soon as it is safe",
        "pyxlsnap: the snapshot was interrupted",
    ]
    assert (worker.here / "rolled back").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_was_ignored_at_the_start_stays_ignored(
    worker: StandIn, number: signal.Signals
) -> None:
    """As under nohup, and in the background jobs of a shell that is not interactive."""
    worker.set(ordinary.taken_though_signalled)
    (worker.here / "signal").write_text(str(int(number)))
    ignoring = ["sh", "-c", f"trap '' {number.name[3:]}; exec \"$@\"", "sh"]
    found = subprocess.run(
        [*ignoring, *COMMAND, "snapshot-create", "vm1"], capture_output=True, text=True, cwd=ROOT
    )
    assert (found.returncode, found.stderr) == (0, "pyxlsnap: warning: careful\n")


def test_a_worker_that_dies_is_one_line(worker: StandIn) -> None:
    worker.set(deaths.aborted_in_c)
    found = run_with(worker, "snapshot-create", "vm1")
    assert (found.returncode, found.stdout) == (1, "")
    assert found.stderr == (
        "pyxlsnap: the worker process was killed by signal 6: a.c:1: Assertion `x` failed.; "
        "everything is as before\n"
    )


@pytest.mark.parametrize("options", [[], ["--json"]])
@pytest.mark.parametrize("stdout", ["full", "nobody"])
def test_a_result_that_nobody_gets_is_told(
    worker: StandIn, options: list[str], stdout: str
) -> None:
    worker.set(ordinary.taken)
    found = run_into(stdout, *options, "snapshot-create", "vm1")
    assert found.returncode == 4
    warning, said = found.stderr.splitlines()
    assert warning == "pyxlsnap: warning: careful"
    why = "No space left on device" if stdout == "full" else "Broken pipe"
    assert said.startswith(
        f"pyxlsnap: the result could not be written to stdout ({why}), but the operation is"
    )
    assert said.endswith("revert: pyxlsnap snapshot-revert vm1 /c")


@pytest.mark.parametrize("stdout", ["full", "nobody"])
def test_of_a_plan_nothing_is_lost(worker: StandIn, stdout: str) -> None:
    worker.set()
    found = run_into(stdout, "snapshot-create", "vm1", "--dry-run")
    assert found.returncode == 1
    assert found.stderr.endswith("; nothing was done\n")


def run_into(stdout: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it with a stdout that takes nothing."""
    reader, writer = os.pipe()
    os.close(reader)
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        return subprocess.run(
            [*COMMAND, *arguments],
            stdout=full if stdout == "full" else writer,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
    finally:
        os.close(full)
        os.close(writer)


@pytest.mark.parametrize("closed", [[1], [2], [0, 1, 2]])
def test_closed_streams_are_no_obstacle(worker: StandIn, closed: list[int]) -> None:
    worker.set(ordinary.done)
    closing = " ".join(f"{n}>&-" for n in closed)
    found = subprocess.run(
        ["sh", "-c", f'exec "$@" {closing}', "sh", *COMMAND, "snapshot-create", "vm1"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert (found.returncode, (worker.here / "done").exists()) == (0, True)
    assert found.stdout.startswith("took snapshot snap of vm1") == (1 not in closed)
    assert found.stderr == ("" if 2 in closed else "pyxlsnap: warning: careful\n")


def run_with(_: StandIn, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, cwd=ROOT)


# What is shown, with the API in the hands of the test


class Api:
    """Stands in for the functions of pyxlsnap.api and pyxlsnap.api.clones."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answer: object = SNAPSHOT
        self.calls: list[tuple[tuple[object, ...], dict[str, object]]] = []
        for name in (
            "create_snapshot",
            "revert_snapshot",
            "plan_create",
            "plan_revert",
            "recover",
        ):
            monkeypatch.setattr(api, name, self)
        for name in ("clone_snapshot", "plan_clone"):
            monkeypatch.setattr(clones, name, self)

    def __call__(self, *arguments: object, **options: object) -> object:
        self.calls.append((arguments, options))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Api:
    return Api(monkeypatch)


def test_a_snapshot_is_shown_with_what_deletes_it(
    fake: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.main(["snapshot-create", "vm1"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "took snapshot snap of vm1 (stopped, suspended for 0.25 s)",
        "  cfgfile: /c",
        "    delete: rm /c",
        "  left out: hdc (a CD-ROM drive)",
        "revert: pyxlsnap snapshot-revert vm1 /c",
    ]
    assert err == "pyxlsnap: warning: careful\n"


def test_of_a_paused_domain_it_is_said_how_long_it_ran(
    fake: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.answer = replace(SNAPSHOT, state=RunState.PAUSED, seconds_unpaused=0.0123)
    assert app.main(["snapshot-create", "vm1"]) == 0
    said = capsys.readouterr().out.splitlines()[1]
    assert said == "  vm1 is paused again; it ran for 12 ms to answer the suspend request"


def test_commands_are_quoted_and_a_result_keeps_its_lines(
    fake: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.answer = replace(
        SNAPSHOT, domain="a b", cfgfile="/it's\n\udcff", left_out={"xvda": "\x1b"}
    )
    assert app.main(["snapshot-create", "vm1"]) == 0
    out, _ = capsys.readouterr()
    assert out.splitlines()[-2:] == [
        "  left out: xvda (\\x1b)",
        "revert: pyxlsnap snapshot-revert 'a b' $'/it\\'s\\012\\377'",
    ]


def test_a_revert_is_shown(fake: Api, capsys: pytest.CaptureFixture[str]) -> None:
    fake.answer = REVERTED
    assert app.main(["snapshot-revert", "vm1", "/c"]) == 0
    out, err = capsys.readouterr()
    assert out == "vm1 is back at snap and paused (domid 8; disks: xvda)\n"
    assert err == "pyxlsnap: warning: careful\n"


@pytest.mark.parametrize("replaced", [False, True])
def test_a_clone_is_shown_with_what_deletes_it(
    fake: Api, capsys: pytest.CaptureFixture[str], replaced: bool
) -> None:
    fake.answer = replace(CLONED, replaced=replaced)
    assert app.main(["snapshot-clone", "/c", "vm1-a"]) == 0
    out, err = capsys.readouterr()
    again = ", in the place of an older one" if replaced else ""
    assert out.splitlines() == [
        f"vm1-a is cloned from snap and running (domid 9{again})",
        "  domain: vm1-a",
        "    delete: xl destroy vm1-a",
        "  its own: network device 0: MAC 00:16:3e:00:00:01",
    ]
    assert err == "pyxlsnap: warning: careful\n"


@pytest.mark.parametrize(("done", "shown"), [((), "nothing to recover\n"), (("a", "b"), "a\nb\n")])
def test_a_recovery_is_shown(
    fake: Api, capsys: pytest.CaptureFixture[str], done: tuple[str, ...], shown: str
) -> None:
    fake.answer = Recovered(done, rolled_back=True)
    assert app.main(["snapshot-recover", UUID]) == 0
    assert capsys.readouterr().out == shown


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["snapshot-create", "vm1"], SNAPSHOT),
        (["snapshot-revert", "vm1", "/c"], REVERTED),
        (["snapshot-clone", "/c", "vm1-a"], CLONED),
        (["snapshot-recover", UUID], Recovered(("a", "b"), rolled_back=True)),
    ],
)
def test_results_as_json(
    fake: Api, capsys: pytest.CaptureFixture[str], arguments: list[str], answer: object
) -> None:
    fake.answer = answer
    assert app.main(["--json", *arguments]) == 0
    plain = asdict(answer)  # type: ignore[call-overload]
    assert json.loads(capsys.readouterr().out) == json.loads(
        json.dumps(
            {
                "pyxlsnap": app.JSON_VERSION,
                "command": arguments[0],
                "exit_code": 0,
                "result": plain,
            }
        )
    )


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (XenError("x", rc=-3, operation="o"), 1),
        (UsageError("x"), 2),
        (Refused("x"), 3),
        (NeedsAttention("x", step="s"), 4),
        (Risky("x", reasons=("a", "b")), 5),
        (Interrupted("x", step="s"), 130),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_errors_and_their_status(
    fake: Api,
    capsys: pytest.CaptureFixture[str],
    error: PyxlsnapError,
    code: int,
    as_json: bool,
) -> None:
    fake.answer = error
    assert app.main(["--json"] * as_json + ["snapshot-create", "vm1"]) == code
    out, err = capsys.readouterr()
    assert err == "pyxlsnap: x\n"
    if not as_json:
        assert out == ""
        return
    document = json.loads(out)
    assert document["exit_code"] == code
    assert document["error"]["class"] == type(error).__name__
    assert document["error"].get("reasons", ["a", "b"]) == ["a", "b"]


def test_the_command_that_finishes_it_is_shown(
    fake: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    fake.answer = NeedsAttention("x", step="s", finish="do this")
    assert app.main(["snapshot-create", "vm1"]) == 4
    assert capsys.readouterr().err == "pyxlsnap: x\npyxlsnap: to finish: do this\n"


def test_a_usage_error_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert app.main(["--json", "snapshot-list"]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out)["error"]["class"] == "UsageError"
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["snapshot-create", "vm1", "a.cfg", "--name", "n", "--live"],
            {"cfgfile": "a.cfg", "name": "n", "live": True, "monitor": True},
        ),
        (["snapshot-create", "vm1", "--no-monitor"], {"monitor": False}),
        (["snapshot-revert", "vm1", "a.cfg", "--no-monitor"], {"monitor": False}),
        (["snapshot-revert", "vm1", "a.cfg", "--keep-current"], {"keep_current": True}),
        (["snapshot-create", "vm1"], {"cfgfile": None, "name": None, "live": False}),
        (["snapshot-revert", "vm1", "a.cfg"], {"running": False, "force": False}),
        (
            ["snapshot-revert", "--running", "vm1", "--force", "a.cfg"],
            {"running": True, "force": True, "monitor": True, "keep_current": False},
        ),
    ],
)
def test_options_reach_the_api(
    fake: Api, arguments: list[str], expected: dict[str, object]
) -> None:
    fake.answer = SNAPSHOT if arguments[0] == "snapshot-create" else REVERTED
    assert app.main(arguments) == 0
    ((given, options),) = fake.calls
    assert given[0] == "vm1"
    assert {k: options[k] for k in expected} == expected


def test_progress_is_not_shown_on_a_pipe(
    fake: Api, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def reports(domain: str, *, on_progress: OnProgress, **_: object) -> Snapshot:
        for n in range(3):
            on_progress(Progress("memory", n, 3, n))
        return SNAPSHOT

    monkeypatch.setattr(api, "create_snapshot", reports)
    assert app.main(["snapshot-create", "vm1"]) == 0
    assert capsys.readouterr().err == "pyxlsnap: warning: careful\n"


def test_a_dry_run_of_a_create(fake: Api, capsys: pytest.CaptureFixture[str]) -> None:
    fake.answer = PLAN
    arguments = ["snapshot-create", "vm1", "--live", "--dry-run", "--max-downtime", "1.5"]
    arguments += ["--max-rate", "20"]
    assert app.main(arguments) == 0
    ((_, options),) = fake.calls
    assert (options["live"], options["max_downtime"], options["max_rate"]) == (True, 1.5, 20)
    assert "monitor" not in options
    out, err = capsys.readouterr()
    assert out == (
        "would take snapshot snap of vm1 (live)\n"
        "  vm1 would be suspended for about 0.4 s\n"
        "  memory file: /m\n"
        "  cfgfile: /c\n"
        "  xvda: /a.qcow2 (qcow2)\n"
        "  xvdb: /b (raw, /s)\n"
        "  left out: hdc (a CD-ROM drive)\n"
    )
    assert err == "pyxlsnap: warning: careful\n"


def test_a_dry_run_of_a_revert(fake: Api, capsys: pytest.CaptureFixture[str]) -> None:
    fake.answer = replace(PLAN, operation="revert", live=False, seconds_suspended=None)
    assert app.main(["--json", "snapshot-revert", "vm1", "a.cfg", "--dry-run"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["result"]["operation"] == "revert"
    assert app.main(["snapshot-revert", "vm1", "a.cfg", "--dry-run"]) == 0
    assert "would revert vm1 to snap (afterwards running)\n" in capsys.readouterr().out


def test_a_dry_run_of_a_clone(fake: Api, capsys: pytest.CaptureFixture[str]) -> None:
    disks = (PlannedDisk("xvda", "/a.snap.vm1-a", "overlay", "/a.snap"),)
    fake.answer = replace(
        PLAN, operation="clone", domain="vm1-a", live=False, disks=disks, seconds_suspended=None
    )
    arguments = ["snapshot-clone", "a.cfg", "vm1-a", "--dry-run", "--bridge", "br1", "--paused"]
    arguments += ["--disk", "/a.own,qcow2,xvda", "--replace", "--force"]
    assert app.main(arguments) == 0
    ((given, options),) = fake.calls
    assert given == ("a.cfg", "vm1-a")
    assert isinstance(options.pop("cancel"), Cancel)
    asked = [DiskRequest("xvda", "/a.own", "qcow2")]
    assert options == {
        "disks": asked,
        "bridge": "br1",
        "running": False,
        "paused": True,
        "replace": True,
        "force": True,
    }
    out, err = capsys.readouterr()
    assert out == (
        "would make the clone vm1-a of snap (afterwards running)\n"
        "  memory file: /m\n"
        "  xvda: /a.snap.vm1-a (overlay, /a.snap)\n"
        "  left out: hdc (a CD-ROM drive)\n"
    )
    assert err == "pyxlsnap: warning: careful\n"
    assert app.main(["--json", *arguments]) == 0
    assert json.loads(capsys.readouterr().out)["result"]["operation"] == "clone"


def test_the_options_of_a_clone_reach_the_api(fake: Api) -> None:
    fake.answer = CLONED
    for words, given in (
        ([], {"running": False, "replace": False, "force": False, "monitor": True}),
        (["--running", "--replace"], {"running": True, "replace": True, "force": False}),
        (["--force", "--no-monitor"], {"replace": False, "force": True, "monitor": False}),
    ):
        fake.calls.clear()
        assert app.main(["snapshot-clone", "a.cfg", "vm1-a", *words]) == 0
        ((named, options),) = fake.calls
        assert named == ("a.cfg", "vm1-a")
        assert {key: options[key] for key in given} == given


@pytest.mark.parametrize("seconds", ["-1", "nan", "inf", "x", ""])
def test_what_is_no_downtime(seconds: str) -> None:
    assert f"--max-downtime: {seconds!r} is not a number of seconds" in fails(
        2, "snapshot-create", "vm1", f"--max-downtime={seconds}"
    )


@pytest.mark.parametrize("rate", ["-1", "0", "0.5", "nan", "inf", "x", ""])
def test_what_is_no_rate(rate: str) -> None:
    assert f"--max-rate: {rate!r} is not a number of MiB a second, at least 1" in fails(
        2, "snapshot-create", "vm1", f"--max-rate={rate}"
    )
