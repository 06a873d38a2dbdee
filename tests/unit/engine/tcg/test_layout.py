"""Proves that nothing in the shared memory of an engine process overlaps, and the way from machine
frames to physical addresses and back around QEMU's hole below 4 GiB.

VMCB offsets are compared with a second copy of the tables of AMD64 APM volume 2, appendix B.
Cannot see whether QEMU agrees; the engine's tests do.
"""

from __future__ import annotations

import itertools
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hvmlite.engine.tcg import layout as L

PAGE = 0x1000


def disjoint(ranges: dict[str, tuple[int, int]]) -> None:
    placed = sorted((start, size, name) for name, (start, size) in ranges.items())
    for (start, size, name), (following, _, other) in itertools.pairwise(placed):
        assert start + size <= following, f"{name} overlaps {other}"


def test_the_private_area() -> None:
    ranges = {
        "PML4": (L.PML4, PAGE),
        "PDPT": (L.PDPT, PAGE),
        "IDT_POINTER": (L.IDT_POINTER, 10),
        "IDT": (L.IDT, PAGE),
        "STUB": (L.STUB, 0x4000),
        "IO_MAP": (L.IO_MAP, L.IO_MAP_SIZE),
        "MSR_MAP": (L.MSR_MAP, L.MSR_MAP_SIZE),
        "RING_DESC": (L.RING_DESC, 16 * L.RING_ENTRIES),
        "RING_AVAIL": (L.RING_AVAIL, 6 + 2 * L.RING_ENTRIES),
        "RING_USED": (L.RING_USED, 6 + 8 * L.RING_ENTRIES),
        "SCRATCH": (L.SCRATCH, 12),
        "CPU_AREAS": (L.CPU_AREAS, 4 * L.CPU_STRIDE),
    }
    disjoint(ranges)
    assert L.area_size(4) == max(start + size for start, size in ranges.values())
    for name, (start, _) in ranges.items():
        align = {"RING_AVAIL": 2, "RING_USED": 4, "IDT_POINTER": 8}.get(name, PAGE)
        assert start % align == 0, name


def test_the_area_of_a_cpu() -> None:
    disjoint({
        "stack": (L.CPU_STACK, PAGE),
        "mailbox": (L.CPU_MAILBOX, PAGE),
        "VMCB": (L.CPU_VMCB, PAGE),
        "host state": (L.CPU_HSAVE, PAGE),
        "CPUID": (L.CPU_CPUID, L.CPU_CPUID_SIZE),
        "next": (L.CPU_STRIDE, PAGE),
    })  # fmt: skip
    # The stack grows down from the mailbox.
    assert L.CPU_MAILBOX == L.CPU_STACK + PAGE


def test_the_mailbox() -> None:
    words = ("STATE", "BELL", "ASLEEP", "KICKED", "READY", "FLAGS", "INDEX", "SPIN", "CPUID_COUNT")
    quads = ("VMCB_ADDRESS", "HSAVE_ADDRESS", "CPUID_ADDRESS", "STUB_CR4")
    ranges = {name: (getattr(L, name), 4) for name in words}
    ranges |= {name: (getattr(L, name), 8) for name in quads}
    ranges |= {name: (offset, 8) for name, offset in L.GENERAL.items()}
    ranges["ARGUMENTS"] = (L.ARGUMENTS, 32)
    disjoint(ranges)
    assert all(start % size == 0 for start, size in ranges.values() if size != 32)


def test_constant_cpuid_leaves_fit() -> None:
    assert struct.calcsize(L.CPUID_ENTRY) == 32
    assert len(L.CPUID_GROUPS) * L.CPUID_LEAVES * 32 <= L.CPU_CPUID_SIZE
    assert L.CPUID_LEAVES <= 0x1000_0000


def test_vmcb_offsets() -> None:
    assert L.SEGMENTS == {
        "es": 0x400, "cs": 0x410, "ss": 0x420, "ds": 0x430, "fs": 0x440, "gs": 0x450,
        "gdtr": 0x460, "ldtr": 0x470, "idtr": 0x480, "tr": 0x490,
    }  # fmt: skip
    assert L.CONTROL == {
        "efer": 0x4D0, "cr4": 0x548, "cr3": 0x550, "cr0": 0x558, "dr7": 0x560, "dr6": 0x568,
        "rflags": 0x570, "rip": 0x578, "rsp": 0x5D8, "rax": 0x5F8, "cr2": 0x640,
    }  # fmt: skip
    assert (L.CPL, L.GUEST_PAT) == (0x4CB, 0x668)
    control = (
        L.INTERCEPT_CR, L.INTERCEPT_EXCEPTIONS, L.INTERCEPT_1, L.INTERCEPT_2, L.IO_MAP_ADDRESS,
        L.MSR_MAP_ADDRESS, L.TSC_OFFSET, L.ASID, L.TLB_CONTROL, L.INT_CONTROL, L.INT_VECTOR,
        L.INT_STATE, L.EXIT_CODE, L.EXIT_INFO_1, L.EXIT_INFO_2, L.EXIT_INT_INFO, L.NESTED_CONTROL,
        L.EVENT_INJECT, L.NESTED_CR3,
    )  # fmt: skip
    assert control == (
        0x00, 0x08, 0x0C, 0x10, 0x40, 0x48, 0x50, 0x58, 0x5C, 0x60, 0x64, 0x68,
        0x70, 0x78, 0x80, 0x88, 0x90, 0xA8, 0xB0,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("frame", "address"),
    [
        (0, 0),
        (0xBFFFF, 0xBFFFF000),
        (0xC0000, 0x1_0000_0000),
        (0xC0001, 0x1_0000_1000),
        (0x100000, 0x1_4000_0000),
    ],
)
def test_frames_above_3_gib_lie_above_4_gib(frame: int, address: int) -> None:
    assert L.physical(frame) == address
    assert L.frame_of(address) == frame


@given(st.integers(0, (1 << 40) - (1 << 20) - 1), st.integers(0, 0xFFF), st.booleans())
def test_an_entry_gives_its_frame_back(frame: int, flags: int, no_execute: bool) -> None:
    entry = L.physical(frame) | flags | no_execute << 63 | (0x7FF << 52 if no_execute else 0)
    assert L.frame_of(entry) == frame
    assert not L.LOW_RAM_END <= L.physical(frame) < L.HIGH_RAM_START
