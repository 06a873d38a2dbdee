"""Proves what each Xen release shows, and that any other is one clear line."""

from __future__ import annotations

import pytest

from hvmlite.errors import UserError
from hvmlite.hypervisor.release import DEFAULT, RELEASES, find_release


def test_the_default_is_the_recorded_one() -> None:
    release = RELEASES[DEFAULT]
    assert release.pair == (4, 17)
    # xenver.version, xenver.features of the recorded domain
    assert (release.version, release.features) == (0x40011, 0x12305)
    assert release.extra == ".7"


@pytest.mark.parametrize(
    ("text", "features"),
    [
        ("4.17", 0x12305),
        ("4.18", 0xD2305),
        ("4.19", 0x1D2305),
        ("4.20", 0x1D2305),
        ("4.21", 0x1D2305),
    ],
)
def test_releases_by_name(text: str, features: int) -> None:
    release = find_release(text)
    assert f"{release.major}.{release.minor}" == text
    assert release.version == release.major << 16 | release.minor
    assert release.features == features
    # Real Xen never shows these to a PVH domU.
    assert not release.features & (1 << 1 | 1 << 3 | 1 << 10)


@pytest.mark.parametrize(
    "text", ["", "4", "4.", ".17", "4.16", "4.22", "5.17", "4.17.7", "4.x", " 4.17", "-4.17", "4.²"]
)
def test_others_are_refused(text: str) -> None:
    with pytest.raises(UserError) as caught:
        find_release(text)
    assert str(caught.value) == f"xen_version {text!r} is not one of 4.17, 4.18, 4.19, 4.20, 4.21"
