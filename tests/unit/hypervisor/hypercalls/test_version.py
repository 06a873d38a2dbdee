"""XENVER_*: the answers recorded from real Xen 4.17 (version.*), both layouts, later releases.

Cannot see whether the free texts (compiler, capabilities) are those of any one real build.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hvmlite.abi import version as abi
from hvmlite.abi import xen
from hvmlite.abi.layout import Abi

VERSION = xen.Hypercall.xen_version
UNMAPPED = 0x800
NO_RAM = 0xD000_0000
NULL = {0: 0x40011, 1: -14, 2: -14, 3: -14, 4: -14, 5: -14, 6: -14, 7: 4096, 8: -14, 9: -14, 10: -1,
        11: -38, 12: -38, 13: -38, 14: -38, 15: -38, 18: -38}  # fmt: skip


@pytest.mark.parametrize("layout", Abi)
def test_pointers_that_lead_nowhere(setup: Callable[..., Any], layout: Abi) -> None:
    guest = setup(abi=layout)
    assert {op: guest.call(VERSION, op, 0) for op in NULL} == NULL
    bad = NULL | {7: -22}
    for pointer in (UNMAPPED, NO_RAM):
        assert {op: guest.call(VERSION, op, pointer) for op in bad} == bad


@pytest.mark.parametrize("layout", Abi)
def test_what_is_written(setup: Callable[..., Any], layout: Abi) -> None:
    guest = setup(abi=layout)
    guest.domain.handle = bytes(range(16))

    def ask(op: int, kind: Any) -> Any:
        at = guest.place(b"\xff" * (kind.sizeof(layout) + 1))
        assert guest.call(VERSION, op, at) == 0
        end = guest.domain.memory.read(at + kind.sizeof(layout), 1)
        assert end == b"\xff"
        return guest.get(at, kind)

    assert ask(1, abi.xen_extraversion_t).text.rstrip(b"\0") == b".7"
    assert ask(2, abi.xen_compile_info).compiler.startswith(b"gcc ")
    assert b"hvm-3.0-x86_64 " in ask(3, abi.xen_capabilities_info_t).text
    assert ask(4, abi.xen_changeset_info_t).text.endswith(b"\0")
    start = {Abi.X86_64: 0xFFFF_8000_0000_0000, Abi.X86_32: 0xFFFF_FFFF}[layout]
    assert ask(5, abi.xen_platform_parameters).virt_start == start
    assert ask(8, xen.xen_uuid_t).a == bytes(range(16))


def test_command_line_is_denied_in_nine_bytes(setup: Callable[..., Any]) -> None:
    guest = setup()
    at = guest.place(b"x" * 16)
    assert guest.call(VERSION, 9, at) == 0
    assert guest.domain.memory.read(at, 10) == b"<denied>\0x"


def test_features(setup: Callable[..., Any]) -> None:
    for release, features in (((4, 17), 0x12305), ((4, 18), 0xD2305), ((4, 19), 0x1D2305)):
        guest = setup(release=release)
        at = guest.place(abi.xen_feature_info(0))
        assert guest.call(VERSION, 6, at) == 0
        assert guest.get(at, abi.xen_feature_info).submap == features
        for index in (1, 2, 3, 0xFFFF_FFFF):
            assert guest.call(VERSION, 6, guest.place(abi.xen_feature_info(index))) == -22


def test_strings_of_any_length_since_4_18(setup: Callable[..., Any]) -> None:
    guest = setup(release=(4, 18))
    assert guest.call(VERSION, 0) == 0x40012
    for op in (11, 12, 13):
        size = guest.call(VERSION, op, 0)
        assert size > 0
        assert guest.call(VERSION, op, UNMAPPED) == -14
        at = guest.place(abi.xen_varbuf(size - 1).pack() + b"\xff" * size)
        assert guest.call(VERSION, op, at) == -105
        at = guest.place(abi.xen_varbuf(size).pack() + b"\xff" * (size + 1))
        assert guest.call(VERSION, op, at) == size
        assert guest.domain.memory.read(at + 4, size + 1).find(b"\xff") == size
    assert guest.call(VERSION, 14, 0) == -1
    at = guest.place(abi.xen_platform_parameters(7))
    assert guest.call(VERSION, 5, at) == 0
    assert guest.get(at, abi.xen_platform_parameters).virt_start == 0
