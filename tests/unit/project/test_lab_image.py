"""The lab's Debian comes from this machine's own mirror, whatever release the machine has."""

from collections.abc import Sequence
from datetime import date
from types import SimpleNamespace

import pytest

from release.chroot import Chroot
from tests.lab.harness import image

MIRROR, SECURITY = "mirror:/debian/", "mirror:/security/"
UNSET = "$(SIGNED_BY)"  # apt leaves it as it is
HOST = [
    (MIRROR, "bookworm", "main", "Debian", "deb", "/keys/ours.gpg"),
    (MIRROR, "bookworm", "contrib", "Debian", "deb", "/keys/ours.gpg"),
    (MIRROR, "bookworm", "main", "Debian", "deb-src", "/keys/ours.gpg"),
    (MIRROR, "bookworm-backports", "main", "Debian", "deb", "/keys/ours.gpg"),
    (SECURITY, "bookworm-security", "main", "Debian", "deb", UNSET),
    ("mirror:/other/", "nodistro", "main", "Other", "deb", UNSET),
]
BOOKWORM = [
    "deb [signed-by=/keys/ours.gpg] mirror:/debian/ bookworm main",
    f"deb [signed-by={image.KEYRING}] mirror:/security/ bookworm-security main",
]


def sources(
    monkeypatch: pytest.MonkeyPatch, suite: str, apt: Sequence[tuple[str, ...]]
) -> list[str]:
    said = "".join("\t".join(index) + "\n" for index in apt)
    monkeypatch.setattr(image, "_output", lambda argv: said)
    return image.sources(suite)


def test_the_machines_own_release(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sources(monkeypatch, "bookworm", HOST) == BOOKWORM


def test_another_release_from_the_same_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    other = [line.replace("bookworm", "trixie") for line in BOOKWORM]
    assert sources(monkeypatch, "trixie", HOST) == other


def test_a_mirror_that_is_named_for_the_release_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    own = ("mirror:/trixie/", "trixie", "main", "Debian", "deb", UNSET)
    found = sources(monkeypatch, "trixie", [*HOST, own])
    assert found == [f"deb [signed-by={image.KEYRING}] mirror:/trixie/ trixie main"]


def test_no_mirror_of_debian(monkeypatch: pytest.MonkeyPatch) -> None:
    for apt in (HOST[-1:], HOST[-2:]):
        with pytest.raises(RuntimeError, match="no mirror of Debian"):
            sources(monkeypatch, "bookworm", apt)


def test_the_xen_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XEN", raising=False)
    assert image.wanted().xen == "4.17"
    monkeypatch.setenv("XEN", "4.20")
    assert image.wanted().suite == "trixie"
    monkeypatch.setenv("XEN", "5.0")
    with pytest.raises(SystemExit, match=r"^XEN=5\.0: the lab has 4\.17 and 4\.20 and unstable$"):
        image.wanted()
    monkeypatch.setenv("XEN", "unstable")
    assert image.wanted().suite == "sid"
    assert {"xen-hypervisor-4.20-amd64", "xen-utils-4.20"} <= set(image.wanted().packages)


def test_unstable_has_neither_updates_nor_security(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [BOOKWORM[0].replace("bookworm", "sid")]
    assert sources(monkeypatch, "sid", HOST) == whole
    own = ("mirror:/sid/", "sid", "main", "Debian", "deb", UNSET)
    found = sources(monkeypatch, "sid", [*HOST, own])
    assert found == [f"deb [signed-by={image.KEYRING}] mirror:/sid/ sid main"]


@pytest.mark.parametrize("release", image.RELEASES.values(), ids=str)
def test_what_is_built_of_unstable_is_good_for_a_month(
    monkeypatch: pytest.MonkeyPatch, release: image.Release
) -> None:
    chroot = Chroot(release.suite, ())

    def keys(today: date) -> list[str]:
        monkeypatch.setattr(image, "date", SimpleNamespace(today=lambda: today))
        return [image.key(release), chroot.key]

    first, later, next_month = map(keys, (date(2026, 11, 1), date(2026, 11, 30), date(2026, 12, 1)))
    assert first == later
    changed = [one != other for one, other in zip(first, next_month, strict=True)]
    assert changed == [release.name == "unstable"] * 2


def test_each_release_has_an_image_of_its_own() -> None:
    assert len({image.key(release) for release in image.RELEASES.values()}) == len(image.RELEASES)


def test_an_image_does_not_depend_on_where_the_project_is(monkeypatch: pytest.MonkeyPatch) -> None:
    releases = list(image.RELEASES.values())
    before = [image.key(release) for release in releases]
    monkeypatch.setattr(image, "FILES", image.FILES.parent / "." / ".." / "harness" / "files")
    assert [image.key(release) for release in releases] == before
