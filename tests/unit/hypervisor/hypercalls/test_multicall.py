"""HYPERVISOR_multicall: results beside their calls, both layouts, faults half-way, slices.

Cannot see interrupts that a guest takes between two slices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hvmlite.abi import memory, sched, xen
from hvmlite.abi.layout import Abi
from hvmlite.hypervisor.hypercalls import memory_extents
from hvmlite.hypervisor.hypercalls.multicall import SLICE

MULTICALL = xen.Hypercall.multicall
VERSION = xen.Hypercall.xen_version
RAM_END = 1024 * 4096


def entries(guest: Any, *calls: tuple[int, ...]) -> int:
    packed = b"".join(
        xen.multicall_entry(call[0], 0x5A5A, call[1:]).pack(guest.guest.abi) for call in calls
    )
    at: int = guest.place(packed)
    return at


def results(guest: Any, at: int, count: int) -> list[int]:
    layout = guest.guest.abi
    size = xen.multicall_entry.sizeof(layout)
    data = guest.domain.memory.read(at, size * count)
    out = []
    for i in range(count):
        entry = xen.multicall_entry.unpack(data, layout, i * size)
        bits = 8 * layout.word
        out.append(entry.result - (1 << bits) if entry.result >> (bits - 1) else entry.result)
    return out


@pytest.mark.parametrize("layout", Abi)
def test_mixed(setup: Callable[..., Any], layout: Abi) -> None:
    guest = setup(abi=layout)
    at = entries(guest, (VERSION, 0), (63,), (xen.Hypercall.sched_op, 0), (VERSION, 1, 0))
    assert guest.call(MULTICALL, at, 4) == 0
    assert results(guest, at, 4) == [0x40011, -38, 0, -14]


def test_nothing_to_do_and_nothing_there(setup: Callable[..., Any]) -> None:
    guest = setup()
    assert guest.call(MULTICALL, 0, 0) == 0
    assert guest.call(MULTICALL, 0, 1) == -14
    at = entries(guest, (VERSION, 0))
    assert guest.call(MULTICALL, at, 1 << 32) == 0
    assert results(guest, at, 1) == [0x5A5A]


def test_runs_until_the_list_leaves_memory(setup: Callable[..., Any]) -> None:
    guest = setup()
    at = RAM_END - 2 * 64
    guest.domain.memory.write(at, xen.multicall_entry(VERSION, 0, (0,)).pack() * 2)
    assert guest.call(MULTICALL, at, 0xFFFF_FFFF) == -14
    assert results(guest, at, 2) == [0x40011, 0x40011]


def test_no_multicall_in_a_multicall(setup: Callable[..., Any]) -> None:
    guest = setup()
    inner = entries(guest, (VERSION, 0))
    at = entries(guest, (MULTICALL, inner, 1), (VERSION, 0))
    assert guest.call(MULTICALL, at, 2) == 0
    assert results(guest, at, 2) == [-22, 0x40011]
    assert results(guest, inner, 1) == [0x5A5A]


@pytest.mark.parametrize("layout", Abi)
def test_long_lists_go_in_slices(setup: Callable[..., Any], layout: Abi) -> None:
    guest = setup(abi=layout)
    count = 3 * SLICE + 1
    at = entries(guest, *(((VERSION, 0),) * count))
    assert guest.call(MULTICALL, at, count) == 0
    assert guest.guest.slices == 4
    assert results(guest, at, count) == [0x40011] * count


@pytest.mark.parametrize("layout", Abi)
def test_a_long_call_goes_on_by_its_entry(setup: Callable[..., Any], layout: Abi) -> None:
    guest = setup(abi=layout)
    domain, count = guest.domain, 2 * memory_extents.SLICE + 100
    domain.max_pages += count
    start = domain.total_pages
    arg = memory.xen_memory_reservation(0, count, 0, 0, xen.DOMID_SELF)
    at = entries(
        guest,
        (VERSION, 0),
        (xen.Hypercall.memory_op, memory.XENMEM_increase_reservation, guest.place(arg)),
        (VERSION, 0),
    )
    assert guest.call(MULTICALL, at, 3) == 0
    assert guest.guest.slices == 3
    assert results(guest, at, 3) == [0x40011, count, 0x40011]
    assert domain.total_pages == start + count
    size = xen.multicall_entry.sizeof(layout)
    entry = guest.get(at + size, xen.multicall_entry)
    # Xen, too, leaves there where it went on last.
    assert entry.op == xen.Hypercall.memory_op
    assert entry.args[0] == 2 * memory_extents.SLICE << memory_extents.MEMOP_EXTENT_SHIFT


def test_the_rest_waits_with_the_vcpu(setup: Callable[..., Any]) -> None:
    guest = setup()
    vcpu = guest.vcpu()
    at = entries(guest, (xen.Hypercall.sched_op, sched.SCHEDOP_block), (VERSION, 0))
    vcpu.running = False
    engine = vcpu.engine
    for name, value in (("rax", MULTICALL), ("rdi", at), ("rsi", 2), ("rip", 0x1003)):
        engine.set(name, value)
    engine.width = 64
    from hvmlite.engine.base import Hypercall
    from hvmlite.hypervisor.exits import hypercall

    hypercall(vcpu, Hypercall())
    assert vcpu.blocked
    assert results(guest, at, 2) == [0, 0x5A5A]
    # It is issued again by itself: the number is back in rax, and so are the rest's arguments.
    size = xen.multicall_entry.sizeof()
    assert [engine.get(name) for name in ("rip", "rax", "rdi", "rsi")] == [
        0x1000, MULTICALL, at + size, 1,
    ]  # fmt: skip
