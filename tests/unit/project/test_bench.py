"""The benches that need no Xen: that they run, and what they say."""

import json
import subprocess
import sys
from pathlib import Path


def test_the_writer_is_measured_beside_dd(tmp_path: Path) -> None:
    words = ["--gib", "0.0625", "--rounds", "1", "--directory", str(tmp_path), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.writer", *words],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert len(found) == 4
    for result in found.values():
        dd, writer = (
            {key: value["median"] for key, value in result[who].items()} for who in ("dd", "writer")
        )
        assert 64 < writer["file_mib"] < 67
        assert 64 < dd["file_mib"] < 64 * 1.3 + 2
        assert dd["disk_mib"] > 63
        assert writer["memory_mib"] < 64
        assert writer["gib_per_second"] > 0
    assert found["a third is zero, 30 % come again"]["writer"]["disk_mib"]["median"] < 48
    assert not list(tmp_path.iterdir())
