"""Proves how sizes are read, and that every value that cannot be is one clear line."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvmlite.errors import UserError
from hvmlite.toolstack.config import DomainConfig, parse_size

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512", 512 * MIB),
        ("512M", 512 * MIB),
        ("512m", 512 * MIB),
        ("512MB", 512 * MIB),
        ("512MiB", 512 * MIB),
        ("2G", 2 * GIB),
        ("2 GiB", 2 * GIB),
        (" 2g ", 2 * GIB),
        ("4096k", 4 * MIB),
        ("1T", TIB),
        ("0", 0),
        ("007", 7 * MIB),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    ["", " ", "M", "512X", "-1", "+5", "1.5G", "1e9", "0x100", "5 5", "512MM", "512Mi", "1_000",
     "512b", "512B", "512iB", "\u0665", "9" * 5000, "5M\n6", "1G" * 100],
)  # fmt: skip
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UserError, match="is no size: write 512M or 2G") as caught:
        parse_size(text)
    assert len(str(caught.value)) < 100
    assert "\n" not in str(caught.value)


@given(
    st.integers(0, 1 << 30), st.sampled_from(["k", "M", "g", "T"]), st.sampled_from(["", "b", "iB"])
)
def test_units(number: int, unit: str, suffix: str) -> None:
    factor = {"k": KIB, "M": MIB, "g": GIB, "T": TIB}[unit]
    assert parse_size(f"{number}{unit}{suffix}") == number * factor


@given(st.text(max_size=12))
def test_any_text_is_a_size_or_refused(text: str) -> None:
    try:
        assert parse_size(text) >= 0
    except UserError:
        return


def config(**options: object) -> DomainConfig:
    return DomainConfig(**{"kernel": Path("vmlinuz"), **options})  # type: ignore[arg-type]


def test_the_defaults_are_those_of_xl() -> None:
    made = config()
    made.check()
    assert (made.vcpus, made.memory) == (1, 512 * MIB)
    assert (made.on_poweroff, made.on_reboot, made.on_crash) == ("destroy", "restart", "destroy")
    assert made.max_event_channels == 1023
    assert (made.max_grant_frames, made.max_maptrack_frames) == (64, 1024)
    assert (made.lapic, made.acpi, made.xen_version) == (True, True, "4.17")


def test_the_name_is_by_default_the_kernels() -> None:
    assert config().title == "vmlinuz"
    assert config(kernel=Path("/boot/vmlinuz-6.1"), name="web").title == "web"
    assert config(kernel=Path("/boot/vmlinuz-6.1")).title == "vmlinuz-6.1"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vcpus": 0}, "vcpus=0 is not between 1 and 32"),
        ({"vcpus": -1}, "vcpus=-1 is not between 1 and 32"),
        ({"vcpus": 33}, "vcpus=33 is not between 1 and 32"),
        ({"vcpus": 4, "maxvcpus": 3}, "maxvcpus=3 is not between vcpus=4 and 32"),
        ({"maxvcpus": 33}, "maxvcpus=33 is not between vcpus=1 and 32"),
        ({"memory": 0}, "memory of 0 bytes is not between 1 MiB and 1 TiB"),
        ({"memory": MIB - 4096}, "memory of 1044480 bytes is not between 1 MiB and 1 TiB"),
        ({"memory": TIB + 4096}, "memory of 1099511631872 bytes is not between 1 MiB and 1 TiB"),
        ({"memory": 2 * MIB + 1}, "memory of 2097153 bytes is not a multiple of a page (4 KiB)"),
        ({"on_reboot": "preserve"}, "on_reboot='preserve' is not supported: destroy or restart"),
        ({"on_crash": ""}, "on_crash='' is not supported: destroy or restart"),
        ({"on_poweroff": "x"}, "on_poweroff='x' is not supported: destroy or restart"),
        ({"max_event_channels": -1}, "max_event_channels=-1 is not between 2 and 131071"),
        ({"max_event_channels": 131072}, "max_event_channels=131072 is not between 2 and 131071"),
        ({"max_grant_frames": 0}, "max_grant_frames=0 is not between 1 and 65536"),
        ({"max_maptrack_frames": -1}, "max_maptrack_frames=-1 is not between 0 and 65536"),
        ({"max_grant_version": 3}, "max_grant_version=3 is not between 1 and 2"),
    ],
)
def test_values_that_cannot_be(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        config(**options).check()
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "options",
    [
        {"vcpus": 32},
        {"memory": MIB},
        {"memory": TIB},
        {"max_event_channels": 131071},
        {"max_event_channels": 2},
        {"max_grant_frames": 1},
        {"max_maptrack_frames": 0},
        {"max_grant_version": 1},
        {"on_reboot": "destroy", "on_crash": "restart", "on_poweroff": "restart"},
    ],
)
def test_values_that_may_be(options: dict[str, object]) -> None:
    config(**options).check()
