"""The time line of README: what happens to a guest during a snapshot and a revert, as SVG.

    python -m docs.timeline                            # docs/timeline.svg from docs/timeline.json
    python -m docs.timeline CREATE.json REVERT.json    # from the documents of two commands

The two documents are what ``pyxlsnap --json snapshot-create --live`` and ``snapshot-revert`` print.
``make bench`` writes docs/timeline.json from the medians of its run.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import Any, Final, Self

HERE = Path(__file__).resolve().parent
TIMES, PICTURE = HERE / "timeline.json", HERE / "timeline.svg"

#: pixels: of the whole picture, and of the bar whose command takes longest
_WIDTH, _BAR_WIDTH, _LEFT, _BAR_HEIGHT, _ROW = 860, 520, 150, 26, 96
#: how much of the guest's life is shown before and after the command, pixels
_AROUND: Final = 70
_GREEN, _RED, _TEXT = "#009e73", "#d55e00", "#57606a"
#: for each command: what the guest does before, while it is stopped, and afterwards
_WORDS: Final = {
    "create": ("runs; its memory is written", "suspended for {}: disk snapshots", "runs on"),
    "revert": (
        "runs; all is checked",
        "stopped for {}: destroyed, disks put back, memory restored",
        "runs, from the snapshot on",
    ),
}
_NAMES: Final = {"create": "snapshot-create --live", "revert": "snapshot-revert"}


@dataclass(frozen=True, slots=True)
class Span:
    """The seconds of one command: while the guest runs, is stopped, and runs again."""

    before: float
    stopped: float
    after: float

    @property
    def whole(self) -> float:
        return self.before + self.stopped + self.after

    @classmethod
    def of_result(cls, result: Mapping[str, Any]) -> Self:
        """The span of a result of ``--json``.

        :raises KeyError: the result has no seconds: a recovery finished the operation.
        """
        seconds: Mapping[str, float] = result["seconds"]
        last = "resume" if "resume" in seconds else "unpause"
        names = list(seconds)
        after = sum(seconds[name] for name in names[names.index(last) + 1 :]) if names else 0.0
        stopped = result["seconds_suspended"] if last == "resume" else result["seconds_off"]
        return cls(max(sum(seconds.values()) - stopped - after, 0.0), stopped, after)


@dataclass(frozen=True, slots=True)
class Times:
    """What the picture is drawn from."""

    #: what was measured
    guest: str
    #: where the seconds are from
    source: str
    create: Span
    revert: Span

    @classmethod
    def read(cls, path: Path = TIMES) -> Self:
        """The times of a file that :meth:`publish` wrote."""
        found = json.loads(path.read_text())
        spans = {key: Span(**found[key]) for key in _NAMES}
        return cls(guest=found["guest"], source=found["source"], **spans)

    def publish(self, path: Path = TIMES, picture: Path = PICTURE) -> None:
        """Keep the times, with milliseconds, and draw what was kept."""
        values = asdict(self)
        for key in _NAMES:
            values[key] = {name: round(value, 3) for name, value in values[key].items()}
        path.write_text(json.dumps(values, indent=1) + "\n")
        picture.write_text(draw(self.read(path)))


def draw(times: Times) -> str:
    """The picture as SVG: a bar for each command, all with the same scale."""
    spans = {"create": times.create, "revert": times.revert}
    scale = _BAR_WIDTH / max(span.whole for span in spans.values())
    height = _ROW * len(spans) + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'font-family="sans-serif" font-size="13" fill="{_TEXT}">',
        f"<title>{escape('What happens to a guest: ' + times.guest)}</title>",
        f"<desc>{escape(times.source)}</desc>",
    ]
    for row, (command, span) in enumerate(spans.items()):
        parts += _row(command, span, 30 + row * _ROW, scale)
    parts += [_words(_LEFT, height - 8, f"Seconds of {times.guest}.", size=11), "</svg>"]
    return "\n".join(parts) + "\n"


def _row(command: str, span: Span, top: int, scale: float) -> Iterator[str]:
    running, stopped, after = _WORDS[command]
    begin = _LEFT + _AROUND + span.before * scale
    width = max(span.stopped * scale, 2.0)
    end = begin + width + span.after * scale + _AROUND
    yield _words(0, top + 18, _NAMES[command])
    yield _box(_LEFT, top, begin - _LEFT, _GREEN)
    yield _box(begin, top, width, _RED)
    yield _box(begin + width, top, end - begin - width, _GREEN)
    took = f" ({span.before:.1f} s)" if span.before >= 0.05 else ""
    yield _words(_LEFT, top - 6, running + took)
    yield _words(end, top - 6, after, anchor="end")
    digits = 1 if span.stopped >= 1 else 2
    middle = begin + width / 2
    yield f'<path d="M{middle:.1f} {top + _BAR_HEIGHT}v10" stroke="{_RED}"/>'
    said = stopped.format(f"{span.stopped:.{digits}f} s")
    yield _words(middle, top + _BAR_HEIGHT + 24, said, anchor="middle")


def _box(x: float, y: int, width: float, colour: str) -> str:
    return f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_BAR_HEIGHT}" fill="{colour}"/>'


def _words(x: float, y: int, text: str, *, anchor: str = "start", size: int = 13) -> str:
    where = f'x="{x:.1f}" y="{y}" text-anchor="{anchor}" font-size="{size}"'
    return f"<text {where}>{escape(text)}</text>"


def main() -> None:
    """Draw the picture, from two documents if they are named."""
    if len(sys.argv) == 3:
        create, revert = (json.loads(Path(word).read_text())["result"] for word in sys.argv[1:])
        Times(
            guest=f"the guest {create['domain']}",
            source="one snapshot-create --live and one snapshot-revert",
            create=Span.of_result(create),
            revert=Span.of_result(revert),
        ).publish()
    else:
        PICTURE.write_text(draw(Times.read()))


if __name__ == "__main__":
    main()
