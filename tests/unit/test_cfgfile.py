"""The config file: the specification's examples, what is refused, and round trips."""

import errno
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyxlsnap import cfgfile
from pyxlsnap.errors import ConfigError
from pyxlsnap.model import DiskRequest, SnapshotConfig
from pyxlsnap.xen import xlcfg


def parse(text: str) -> SnapshotConfig:
    return cfgfile.parse(text.encode(), file="vm.cfg")


def refused(data: str | bytes) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        cfgfile.parse(data if isinstance(data, bytes) else data.encode(), file="vm.cfg")
    error = caught.value
    assert error.file == "vm.cfg"
    assert str(error).startswith("vm.cfg: ")
    assert "\n" not in str(error)
    return error


def disk(spec: str) -> DiskRequest:
    disks = parse(f'disks = ["{spec}"]\n').disks
    assert disks is not None
    (found,) = disks
    return found


class TestSpecification:
    def test_external(self) -> None:
        text = """
            name=""
            description=""
            memory_path=""
            disks=['/tmp/hda_snapshot.qcow2,qcow2,hda',
                   '/tmp/hdb_snapshot.qcow2,qcow2,hdb',]
            """
        disks = (
            DiskRequest("hda", "/tmp/hda_snapshot.qcow2", "qcow2"),
            DiskRequest("hdb", "/tmp/hdb_snapshot.qcow2", "qcow2"),
        )
        assert parse(text) == SnapshotConfig(disks=disks)

    def test_internal(self) -> None:
        disks = (DiskRequest("hda"), DiskRequest("hdb"))
        assert parse("disks=[',,hda',',,hdb',]\n") == SnapshotConfig(disks=disks)

    def test_all_of_it(self) -> None:
        text = "name='n' ; description=\"a\\nb\"\nmemory_path='/m'\ndisks=[]"
        assert parse(text) == SnapshotConfig("n", "a\nb", "/m", ())

    @pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n", " ; ;\n"])
    def test_nothing(self, text: str) -> None:
        assert parse(text) == SnapshotConfig()


class TestMemory:
    """The comment of the RFC's example mentions the key: the memory is in the snapshot, or not."""

    @pytest.mark.parametrize("text", ["memory = 1\n", "memory='1';name=''", 'memory = ""\n'])
    def test_with_memory_is_what_we_do(self, text: str) -> None:
        assert parse(text) == SnapshotConfig()

    @pytest.mark.parametrize("text", ["memory = 0\n", "name = 'a'\nmemory = '0'\n"])
    def test_without_memory_is_refused_in_words_of_its_own(self, text: str) -> None:
        error = refused(text)
        assert error.item == "memory"
        assert "a snapshot of the disks alone is not supported" in str(error)
        assert "qemu-img snapshot" in str(error)

    @pytest.mark.parametrize("value", ["2", "-1", "00", "01", "0x1", "on", "1 ", "x" * 1000])
    def test_another_value(self, value: str) -> None:
        error = refused(f"memory = '{value}'\n")
        assert error.item == "memory"
        assert "must be 1" in str(error)
        assert len(str(error)) < 300

    def test_a_list(self) -> None:
        assert refused("memory = [ '1' ]\n").item == "memory"

    def test_is_not_written(self) -> None:
        assert "memory =" not in cfgfile.render(SnapshotConfig("n"))


class TestKeys:
    def test_unknown_with_a_near_miss(self) -> None:
        error = refused("memory_pth = 'x'\n")
        assert error.item == "memory_pth"
        assert "did you mean memory_path?" in str(error)

    def test_unknown_with_none(self) -> None:
        assert "name, description, memory, memory_path and disks" in str(refused("vcpus = 2\n"))

    @pytest.mark.parametrize(
        "text",
        [
            "name='a'\nname='a'\n",
            "name='a';name='b'",
            "name+='a'\nname='b'\n",
            "name='a' # '\nname='b'\n",
            "disks=[',,hda',\n# name\n]\ndisks=[]\n",
        ],
    )
    def test_repeated(self, text: str) -> None:
        assert "set twice" in str(refused(text))

    def test_added_to(self) -> None:
        text = "name='a'\ndisks=[',,hda']\nname+='b'\ndisks+=[',,hdb']\n"
        found = SnapshotConfig("ab", disks=(DiskRequest("hda"), DiskRequest("hdb")))
        assert parse(text) == found

    def test_names_within_strings_and_comments_are_no_keys(self) -> None:
        text = "description = 'foo = 1\\' bar += 2' # baz = 3\n# foo = \"\n"
        assert parse(text).description == "foo = 1' bar += 2"

    @pytest.mark.parametrize(
        ("text", "item", "says"),
        [
            ("disks = ',,hda'\n", "disks", "must be a list"),
            ("name = ['a']\n", "name", "must be a string"),
            ("disks = [[',,hda']]\n", "disks", "must be a string"),
            ("name = 12\n", "name", "digits"),
            ("name = '../x'\n", "name", "only letters"),
        ],
    )
    def test_values(self, text: str, item: str, says: str) -> None:
        error = refused(text)
        assert error.item == item
        assert says in str(error)


class TestSyntax:
    @pytest.mark.parametrize(
        "text",
        [
            "name",
            "name=",
            "name='a",
            "name='a\nb'",
            "# no newline",
            "Name='a'",
            'name="\\x41"',
            "]",
        ],
    )
    def test_errors_of_libxlutil(self, text: str) -> None:
        assert "line:1:" in str(refused(text)) or "line:2:" in str(refused(text))

    @pytest.mark.parametrize("data", [b"\0", b"name='a\0b'\n", b"#\0\n"])
    def test_nul(self, data: bytes) -> None:
        assert "NUL" in str(refused(data))

    def test_not_utf8(self) -> None:
        assert "not UTF-8 at offset 6" in str(refused(b"name='\xe9'\n"))

    def test_too_long(self) -> None:
        assert "longer than" in str(refused(b"\n" * (cfgfile.SIZE_LIMIT + 1)))
        assert cfgfile.parse(b"\n" * cfgfile.SIZE_LIMIT, file="x") == SnapshotConfig()

    @pytest.mark.parametrize(
        "part",
        [
            b"# ",
            b"e # ",
            b"\\'",
            b"a\\'",
            b"name+='x';",
            b"a%d+=1;",
            b"disks=[' ",
            b"',,a%d',",
            b"[",
            b"'",
        ],
    )
    def test_nothing_takes_long(self, part: bytes) -> None:
        """Seconds for what libxlutil's time grows with the square of, and no minutes."""
        parts = (part.replace(b"%d", b"%d" % i) for i in range(cfgfile.SIZE_LIMIT // 4))
        began = time.monotonic()
        refused(b"".join(parts)[: cfgfile.SIZE_LIMIT])
        assert time.monotonic() - began < 60

    @pytest.mark.parametrize("depth", [100, 3000, 100_000])
    def test_deep_nesting(self, depth: int) -> None:
        refused("name = " + "[" * depth + "]" * depth + "\n")
        refused("name = " + "[" * depth)


class TestDisks:
    @pytest.mark.parametrize(
        ("spec", "found"),
        [
            (",,xvda", DiskRequest("xvda")),
            (" , ,  xvda", DiskRequest("xvda")),
            (",,xvda,", DiskRequest("xvda")),
            ("/a,raw,xvda,", DiskRequest("xvda", "/a", "raw")),
            ("vdev=xvda,target=", DiskRequest("xvda")),
            ("format=,vdev=xvda,target=", DiskRequest("xvda")),
            ("/a b,raw,sda1", DiskRequest("sda1", "/a b", "raw")),
            ("/a, qcow2, xvda", DiskRequest("xvda", "/a", "qcow2")),
            ("/a,vhd,vdev=xvda", DiskRequest("xvda", "/a", "vhd")),
            ("vdev=xvda,/a,qcow2", DiskRequest("xvda", "/a", "qcow2")),
            ("vdev=xvda,format=qcow2,target=/a", DiskRequest("xvda", "/a", "qcow2")),
            ("format=raw,vdev=xvda,target=/a,b=c, d", DiskRequest("xvda", "/a,b=c, d", "raw")),
            ("format=raw,vdev=xvda,target=/a,,", DiskRequest("xvda", "/a,", "raw")),
            ("format=raw,vdev=xvda,target= x:y", DiskRequest("xvda", " x:y", "raw")),
        ],
    )
    def test_forms(self, spec: str, found: DiskRequest) -> None:
        assert disk(spec) == found

    @pytest.mark.parametrize(
        ("spec", "says"),
        [
            ("", "no device"),
            ("xvda", "no device"),
            ("/a,qcow2", "no device"),
            ("target=/a", "no device"),
            ("/a,qcow2,", "no device"),
            ("/a,,xvda", "path without a format"),
            ("vdev=xvda,target=/a", "path without a format"),
            (",qcow2,xvda", "format 'qcow2' without an external path"),
            (",raw,xvda", "format 'raw' without an external path"),
            ("/a,empty,xvda", "empty drive"),
            ("/a,vmdk,xvda", "vmdk"),
            ("/a,raw,hda:cdrom", "not a device"),
            ("/a,raw,/dev/xvda", "not a device"),
            ("/a,raw,xvda ", "not a device"),
            ("/a,raw,xvda,w", "'w': only path, format and device"),
            ("/a,raw,xvda,ro", "'ro': only"),
            ("/a,raw,xvda,,", "'': only"),
            ("/a,raw,xvda,cdrom", "'cdrom': only"),
            ("cdrom,/a,raw,xvda", "'cdrom': only"),
            ("discard,/a,raw,xvda", "'discard': only"),
            ("/a,raw,xvda,access=ro", "'access=ro': only"),
            ("backend=dom,/a,raw,xvda", "'backend=dom': only"),
            ("script=x,vdev=xvda,/a,raw", "'script=x': only"),
            ("backendtype=phy,/a,raw,xvda", "'backendtype=phy': only"),
            ("specification=virtio,/a,raw,xvda", "'specification=virtio': only"),
            ("/a,raw,xvda,vdev=xvdb", "vdev occurs twice"),
            ("/a,raw,xvda,target=/b", "target occurs twice"),
            ("phy:/a,raw,xvda", ""),
            ("phy:/a,raw,w", "not in the form"),
            ("raw:/a,raw,xvda", ""),
            ("abc:/a,raw,xvda", ""),
        ],
    )
    def test_refused(self, spec: str, says: str) -> None:
        error = refused(f'disks = ["{spec}"]\n')
        assert error.item == f"disk {spec!r}"
        assert says in str(error)

    @pytest.mark.parametrize("form", ["/{},raw,xvda", "format=raw,vdev=xvda,target=/{}"])
    def test_longer_than_a_path_can_be(self, form: str) -> None:
        """libxlutil would write beyond its memory."""
        assert disk(form.format("x" * 4095)).path == "/" + "x" * 4095
        assert len(str(refused(f"disks = ['{form.format('x' * 20_000)}']\n"))) < 1000

    @pytest.mark.parametrize(
        "spec", [",a\\nb,xvda", "/a\\n,,xvda", "/a,raw,x\\ny", "a,raw,b,c\\nd"]
    )
    def test_the_message_is_one_line(self, spec: str) -> None:
        refused(f'disks = ["{spec}"]\n')

    def test_the_same_disk_twice(self) -> None:
        assert "the device xvda occurs twice" in str(refused("disks = [',,xvda', '/a,raw,xvda']\n"))

    def test_a_very_long_one_is_not_repeated_in_full(self) -> None:
        assert len(str(refused(f"disks = ['{'x' * 100_000}']\n"))) < 1000


class TestRead:
    def test_a_file(self, tmp_path: Path) -> None:
        file = tmp_path / "vm.cfg"
        file.write_text("name = 'n'\n")
        assert cfgfile.read(file) == cfgfile.read(str(file)) == SnapshotConfig("n")
        link = tmp_path / "link"
        link.symlink_to(file)
        assert cfgfile.read(link) == SnapshotConfig("n")

    def test_what_is_no_regular_file(self, tmp_path: Path) -> None:
        fifo = tmp_path / "fifo"
        os.mkfifo(fifo)
        for path in (fifo, tmp_path, Path("/dev/null"), Path("/dev/zero")):
            with pytest.raises(ConfigError, match="not a regular file") as caught:
                cfgfile.read(path)
            assert caught.value.file == str(path)

    def test_what_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match="No such file"):
            cfgfile.read(tmp_path / "nope")
        with pytest.raises(ConfigError, match=r"null (byte|character)"):
            cfgfile.read("a\0b")

    def test_what_only_root_may_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def denied(_: Path) -> bytes:
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(cfgfile, "_content", denied)
        for uid, says in ((1000, "Permission denied: run it as root$"), (0, "Permission denied$")):
            monkeypatch.setattr(os, "geteuid", lambda uid=uid: uid)
            with pytest.raises(ConfigError, match=says):
                cfgfile.read(tmp_path / "a.cfg")

    def test_too_long(self, tmp_path: Path) -> None:
        file = tmp_path / "vm.cfg"
        file.touch()
        os.truncate(file, 1 << 40)
        with pytest.raises(ConfigError, match="longer than"):
            cfgfile.read(file)


# What a config file can say: any text but NUL and surrogates.
_TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
_AWKWARD = st.text(st.sampled_from("\"'\\\n\r\t,=:;#[] +x0é\x01\x7f\x85\u2028"), max_size=20)
_ANY = _TEXT | _AWKWARD
_NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_+.@:-]{0,60}", fullmatch=True)
_VDEVS = st.from_regex(r"(xvd|hd|sd)[a-z][0-9]?|d[0-9]p[0-9]", fullmatch=True)
_FORMATS = st.sampled_from(["raw", "qcow2", "vhd", "qed", "qcow"])
#: a newline can be in a path only if a comma, = and leading blanks are not
_PATHS = st.one_of(
    _ANY.map(lambda t: "/" + t.replace("\n", "")),
    _ANY.map(lambda t: "/" + re.sub("[,=]", "", t)),
    _ANY.map(lambda t: t.replace("\n", "")).filter(bool),
    st.from_regex(r"[a-z][a-z\n]*", fullmatch=True),
)
_REQUESTS = st.builds(DiskRequest, _VDEVS) | st.builds(DiskRequest, _VDEVS, _PATHS, _FORMATS)
_CONFIGS = st.builds(
    SnapshotConfig,
    name=st.none() | _NAMES.filter(lambda n: not n.startswith((".", "-"))),
    description=st.none() | _ANY.filter(bool),
    memory_path=st.none() | _ANY.filter(bool),
    disks=st.none() | st.lists(_REQUESTS, unique_by=lambda d: d.vdev, max_size=4).map(tuple),
)


class TestRender:
    @given(_CONFIGS)
    @settings(max_examples=500)
    def test_what_is_written_is_read(self, config: SnapshotConfig) -> None:
        text = cfgfile.render(config)
        assert cfgfile.parse(text.encode(), file="x") == config
        assert text.startswith("# Written by pyxlsnap")
        assert text.endswith("\n")

    @given(st.text(), st.text(), st.text(), st.text(), st.text(), st.text())
    @settings(max_examples=500)
    def test_any_text_is_written_rightly_or_refused(
        self, name: str, description: str, memory: str, vdev: str, path: str, form: str
    ) -> None:
        config = SnapshotConfig(name, description, memory, (DiskRequest(vdev, path, form),))
        try:
            text = cfgfile.render(config)
        except ConfigError:
            return
        found = cfgfile.parse(text.encode(), file="x")
        assert found.disks == config.disks
        assert (found.name or "", found.description or "") == (name, description)
        assert (found.memory_path or "") == memory

    def test_empty_strings_are_left_out(self) -> None:
        text = cfgfile.render(SnapshotConfig("", "", "", None))
        assert [line for line in text.splitlines() if line and line[0] != "#"] == []

    def test_the_form_of_the_text(self) -> None:
        disks = (
            DiskRequest("xvda"),
            DiskRequest("xvdb", "/srv/b.qcow2", "qcow2"),
            DiskRequest("xvdc", "/srv/a, b,", "raw"),
        )
        text = cfgfile.render(SnapshotConfig("n", 'two\n"lines" \\', "/m", disks))
        assert text.split("\n\n", 1)[1] == (
            'name = "n"\n'
            'description = "two\\n\\"lines\\" \\\\"\n'
            'memory_path = "/m"\n'
            "disks = [\n"
            '    ",,xvda",\n'
            '    "/srv/b.qcow2,qcow2,xvdb",\n'
            '    "format=raw,vdev=xvdc,target=/srv/a, b,,",\n'
            "]\n"
        )

    @pytest.mark.parametrize(
        "config",
        [
            SnapshotConfig(description="a\0b"),
            SnapshotConfig(description="\ud800"),
            SnapshotConfig(memory_path="/\udcff"),
            SnapshotConfig(description="x" * cfgfile.SIZE_LIMIT),
            SnapshotConfig(name="no/name"),
            SnapshotConfig(disks=(DiskRequest("xvda", "/a\n,b", "raw"),)),
            SnapshotConfig(disks=(DiskRequest("xvda", "/" + "x" * 20_000, "raw"),)),
            SnapshotConfig(disks=(DiskRequest("xvda", "/a", ""),)),
            SnapshotConfig(disks=(DiskRequest("xvda", "", "raw"),)),
            SnapshotConfig(disks=(DiskRequest("xvda,target=/x", "/a", "raw"),)),
            SnapshotConfig(disks=(DiskRequest("xvda", "/a", "raw,vdev=xvdb"),)),
            SnapshotConfig(disks=(DiskRequest("xvda"), DiskRequest("xvda"))),
        ],
    )
    def test_what_cannot_be_written(self, config: SnapshotConfig) -> None:
        with pytest.raises(ConfigError, match="<new config file>"):
            cfgfile.render(config)


_STRINGS = st.one_of(
    st.text(st.sampled_from("ab=+;#[],\n\\\"' "), max_size=12).map(cfgfile._quote),
    st.text(st.sampled_from('ab=+;#[],"x '), max_size=12).map(lambda t: f"'{t}'"),
    st.just("'it\\'s = x'"),
    st.sampled_from(["0", "12", "0x1f"]),
)
_GAPS = st.sampled_from(["", " ", "\t", "\n", "\n# a = 'b\n", "\n\n"])
_KEYS = st.from_regex(r"[a-z][._0-9a-z]{0,8}", fullmatch=True)
_ENDS = st.sampled_from([";", "\n", " \n", "; # c = 1\n", "\n# d += [\n", " # 'e=\n"])


@st.composite
def _lists(draw: st.DrawFn) -> str:
    items = draw(st.lists(_STRINGS, max_size=4))
    text = f"[{draw(_GAPS)}"
    for i, item in enumerate(items):
        comma = "," if i < len(items) - 1 else draw(st.sampled_from(["", ","]))
        text += item + draw(_GAPS) + comma + draw(_GAPS if comma else st.just(""))
    return text + "]"


@given(
    st.lists(
        st.tuples(_KEYS, st.sampled_from(["=", " = ", "+=", " += "]), _STRINGS | _lists(), _ENDS),
        unique_by=lambda setting: setting[0],
        max_size=5,
    )
)
@settings(max_examples=500, suppress_health_check=[HealthCheck.too_slow])
def test_the_scan_agrees_with_libxlutil(settings: list[tuple[str, str, str, str]]) -> None:
    data = "".join(map("".join, settings)).encode()
    found = list(cfgfile.scan(data))
    assert found == [(key, "+" in assign) for key, assign, _, _ in settings]
    strings = [key for key, _, value, _ in settings if not value.startswith("[")]
    lists = [key for key, _, value, _ in settings if value.startswith("[")]
    known = xlcfg.parse_cfg(data, file="x", strings=strings, lists=lists)
    assert list(known) == strings + lists


@given(st.binary(max_size=200))
@settings(max_examples=1000)
def test_arbitrary_bytes_survive(data: bytes) -> None:
    survives(data)


_TOKENS = ["name", "disks", "x", "=", "+=", "[", "]", ",", ";", "\n", "'", '"', "\\", "#", " "]
_VALUES = ["5", "é", "',,hda'", "'/a,raw,hda'", '"\\n"', '"\\x41"', '"\\101"', "cdrom"]
_PIECES = st.sampled_from([*_TOKENS, *_VALUES])


@given(st.lists(_PIECES, max_size=25).map("".join))
@settings(max_examples=1000)
def test_arbitrary_pieces_survive(text: str) -> None:
    survives(text.encode())


_DISK_TOKENS = [
    ",",
    "=",
    " ",
    "\t",
    "\\n",
    ":",
    "vdev=",
    "format=",
    "target=",
    "access=",
    "script=",
]
_DISK_VALUES = [
    "/a",
    "raw",
    "qcow2",
    "hda",
    "cdrom",
    "w",
    "discard",
    "empty",
    "grant_usage=1",
    "file:",
]
_DISK_PIECES = st.sampled_from([*_DISK_TOKENS, *_DISK_VALUES])


@given(st.lists(_DISK_PIECES, max_size=10).map("".join))
@settings(max_examples=1000)
def test_a_disk_is_read_as_libxlutil_reads_it_or_refused(spec: str) -> None:
    try:
        found = disk(spec)
    except ConfigError:
        return
    known = xlcfg.parse_disk(spec.replace("\\n", "\n"), file="x")
    assert (known.vdev, known.target) == (found.vdev, found.path)
    assert known.format == (found.format or "raw")
    assert known.readwrite
    assert (known.cdrom, known.script, known.backend_domain) == (False, "", "")


def survives(data: bytes) -> None:
    try:
        cfgfile.parse(data, file="x")
    except ConfigError:
        pass


def test_needs_no_xen() -> None:
    """Reading and writing config files opens nothing of Xen's, and is quiet."""
    code = "from pyxlsnap import cfgfile, model; cfgfile.render(model.SnapshotConfig('n'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")
