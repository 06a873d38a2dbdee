"""VCPUOP_initialise: which contexts real Xen 4.17 takes, and the CPU state that comes of them.

Cannot see whether a CPU can be entered with a state that Xen lets through unchecked (CR0).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hvmlite.abi import hvm, xen
from hvmlite.abi.layout import Abi
from hvmlite.abi.vcpu import VCPUOP_initialise
from hvmlite.engine.base import Segment

VCPU_OP = xen.Hypercall.vcpu_op
FLAT = 0xFFFF_FFFF


def mode_32(**changes: Any) -> hvm.vcpu_hvm_context:
    values = {
        "eax": 1, "ebx": 4, "esp": 5, "edi": 8, "eip": 0x100000, "cr0": 0x11,
        "cs_limit": FLAT, "ds_limit": FLAT, "ss_limit": FLAT, "es_limit": FLAT, "tr_limit": 0x67,
        "cs_ar": 0xC9A, "ds_ar": 0xC92, "ss_ar": 0xC92, "es_ar": 0xC92, "tr_ar": 0x89,
    }  # fmt: skip
    return hvm.vcpu_hvm_context(0, 0, hvm.vcpu_hvm_x86_32(**(values | changes)).pack())


def mode_64(**changes: int) -> hvm.vcpu_hvm_context:
    values = {
        "rax": 1, "rdi": 8, "rip": 0xFFFF_8000_0000_1000, "rflags": 0,
        "cr0": 0x80000011, "cr3": 0x5000, "cr4": 0x20, "efer": 0x900,
    }  # fmt: skip
    return hvm.vcpu_hvm_context(1, 0, hvm.vcpu_hvm_x86_64(**(values | changes)).pack())


def initialise(guest: Any, context: hvm.vcpu_hvm_context) -> int:
    result: int = guest.call(VCPU_OP, VCPUOP_initialise, 1, guest.place(context))
    return result


def test_layout_is_the_same_for_all() -> None:
    for kind in (hvm.vcpu_hvm_context, hvm.vcpu_hvm_x86_32, hvm.vcpu_hvm_x86_64):
        assert kind.sizeof(Abi.X86_64) == kind.sizeof(Abi.X86_32)


@pytest.mark.parametrize("layout", Abi)
def test_protected_mode(setup: Callable[..., Any], layout: Abi) -> None:
    guest = setup(abi=layout)
    assert initialise(guest, mode_32(eflags=0xFFFF_FFFF)) == 0
    state = guest.loaded[1]
    assert (state.rip, state.cr0, state.efer) == (0x100000, 0x11, 0)
    assert state.rflags == 0x3F7FD7
    assert state.general["rax"] == 1
    assert state.general["rsp"] == 5
    # Accessed and busy, as a CPU that loaded them would have them.
    assert state.segments["cs"] == Segment(0, 0, FLAT, 0xC9B)
    assert state.segments["ds"] == Segment(0, 0, FLAT, 0xC93)
    assert state.segments["tr"] == Segment(0, 0, 0x67, 0x8B)
    assert not guest.vcpu(1).up
    assert initialise(guest, mode_32()) == -17


def test_long_mode(setup: Callable[..., Any]) -> None:
    guest = setup()
    assert initialise(guest, mode_64(efer=0x100)) == 0
    state = guest.loaded[1]
    assert (state.rip, state.cr3, state.cr4) == (0xFFFF_8000_0000_1000, 0x5000, 0x20)
    assert state.efer == 0x500
    assert state.segments["cs"] == Segment(0, 0, FLAT, 0xA9B)


@pytest.mark.parametrize(
    "changes",
    [
        {"ds_ar": 0, "es_ar": 0},
        {"cs_ar": 0x9E, "cs_limit": 0x100000},
        {"cs_ar": 0xCFA, "ss_ar": 0xCF2, "ds_ar": 0xCF2},
        {"ds_ar": 0xC9A},
        {"efer": 0x100, "cr0": 0x11},
        {"cr0": 0},
        {"tr_ar": 0x8B, "tr_base": 0x1234},
    ],
)
def test_unusual_but_taken(setup: Callable[..., Any], changes: dict[str, int]) -> None:
    assert initialise(setup(), mode_32(**changes)) == 0


@pytest.mark.parametrize(
    "context",
    [
        hvm.vcpu_hvm_context(),
        hvm.vcpu_hvm_context(2),
        hvm.vcpu_hvm_context(0, 1, mode_32().cpu_regs),
        mode_32(pad1=1),
        mode_32(pad2=(0, 0, 1)),
        *(mode_32(**{f"{name}_ar": 0}) for name in ("cs", "ss", "tr")),
        *(mode_32(**{f"{name}_ar": 0x1C93}) for name in ("cs", "ds", "ss", "es", "tr")),
        mode_32(cs_ar=0xC92),
        mode_32(cs_ar=0xC0A),
        mode_32(cs_ar=0xC1A),
        mode_32(ss_ar=0xC9A),
        mode_32(ss_ar=0xC90),
        mode_32(ds_ar=0xC98),
        mode_32(ds_ar=0x12),
        mode_32(tr_ar=0x93),
        mode_32(tr_ar=0x81),
        mode_32(tr_ar=0x09),
        mode_32(eip=0x1000, cs_ar=0x9A, cs_limit=0xFFF),
        mode_32(eip=0x2000, cs_limit=1),
        mode_32(ss_ar=0xCF2),
        mode_32(ds_ar=0xCF2),
        mode_32(es_ar=0xCB2),
        mode_32(efer=0x400),
        mode_32(efer=0x1000),
        mode_32(cr4=1 << 13),
        mode_32(cr4=1 << 31),
        mode_64(rip=0x8000_0000_0000),
        mode_64(rip=0xFFFF_0000_0000_0000),
        mode_64(cr0=0x11),
        mode_64(cr4=0),
        mode_64(efer=0),
        mode_64(efer=0x400),
        mode_64(cr4=1 << 32 | 0x20),
    ],
)
def test_refused(setup: Callable[..., Any], context: hvm.vcpu_hvm_context) -> None:
    guest = setup()
    assert initialise(guest, context) == -22
    assert not guest.vcpu(1).initialised
    assert not guest.loaded


def test_only_what_cpuid_offers(setup: Callable[..., Any]) -> None:
    guest = setup()
    guest.features.missing = {(7, 1, 7), (0x80000001, 3, 20), (1, 3, 7)}
    assert initialise(guest, mode_32(cr4=1 << 20)) == -22
    assert initialise(guest, mode_32(efer=0x800)) == -22
    # Either of two features allows CR4.MCE.
    assert initialise(guest, mode_32(cr4=0x40)) == 0


def test_pointers(setup: Callable[..., Any]) -> None:
    guest = setup()
    assert guest.call(VCPU_OP, VCPUOP_initialise, 1, 0) == -14
    assert guest.call(VCPU_OP, VCPUOP_initialise, 0, guest.place(mode_32())) == -17


def test_after_init_a_vcpu_can_be_set_up_anew(setup: Callable[..., Any]) -> None:
    guest = setup()
    assert initialise(guest, mode_32()) == 0
    guest.vcpu(1).park()
    assert guest.call(VCPU_OP, 1, 1) == -22
    assert initialise(guest, mode_32()) == 0
