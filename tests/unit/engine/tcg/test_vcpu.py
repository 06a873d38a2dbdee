"""Proves how a #VMEXIT becomes an exit, how an answer becomes guest state, and when a vCPU kicks,
flushes and asks for interrupts.

The stub is played by the test. Cannot see whether QEMU fills a VMCB as is assumed here.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hvmlite.engine import base as b
from hvmlite.engine.tcg import layout as L
from hvmlite.engine.tcg import stub_cpu
from hvmlite.engine.tcg.stub_cpu import SPIN_LIMIT
from hvmlite.engine.tcg.vcpu import TcgVcpu, msr_map
from hvmlite.errors import EngineError

from .fakes import Machine

M32, M64 = 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF
CODE16 = b.Segment(0, 0, 0xFFFF, 0x9B)
CODE32 = b.Segment(0, 0, M32, 0xC9B)
CODE64 = b.Segment(0, 0, M32, 0xA9B)
LMA = 1 << 10
same_machine = settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def mode64(vcpu: TcgVcpu) -> None:
    vcpu.set_segment("cs", CODE64)
    vcpu.set_raw("cr4", 1 << 5)
    vcpu.set_raw("cr0", 1)
    vcpu.set("efer", LMA | 1 << 8)


# --- what a fresh vCPU is --------------------------------------------------------------------


def test_intercepts(machine: Machine) -> None:
    vcpu = machine.vcpu
    assert machine.vmcb(vcpu, L.INTERCEPT_EXCEPTIONS, 4) == 1 << 6
    assert machine.vmcb(vcpu, L.INTERCEPT_1, 4) == sum(
        1 << bit for bit in (0, 1, 18, 22, 24, 27, 28, 31)
    )
    assert machine.vmcb(vcpu, L.INTERCEPT_2, 4) == 0x7F
    assert machine.vmcb(vcpu, L.ASID, 4) != 0
    assert machine.vmcb(vcpu, L.NESTED_CONTROL, 8) == 1
    assert machine.vmcb(vcpu, L.NESTED_CR3, 8) == machine.partition.nested.root_address
    assert machine.vmcb(vcpu, L.TSC_OFFSET, 8) == 0
    assert machine.vmcb(vcpu, L.INT_CONTROL, 4) == 1 << 24


def test_each_vcpu_has_its_own_area(machines: Callable[..., Machine]) -> None:
    machine = machines(3)
    addresses = set()
    for vcpu in machine.partition.vcpus:
        assert machine.field(vcpu, L.INDEX, 4) == vcpu.index
        addresses.add(machine.field(vcpu, L.VMCB_ADDRESS, 8))
        addresses.add(machine.field(vcpu, L.HSAVE_ADDRESS, 8))
        addresses.add(machine.field(vcpu, L.CPUID_ADDRESS, 8))
    assert len(addresses) == 9
    assert all(address % 0x1000 == 0 for address in addresses)


def test_stubs_do_not_sleep_before_they_can_be_woken(machine: Machine) -> None:
    assert machine.field(machine.vcpu, L.SPIN, 4) == M32
    machine.vcpu.allow_sleep()
    assert machine.field(machine.vcpu, L.SPIN, 4) == SPIN_LIMIT


PASSED = {
    0x174: 3, 0x175: 3, 0x176: 3, 0x277: 3, 0xDA0: 3,
    0xC0000081: 3, 0xC0000082: 3, 0xC0000083: 3, 0xC0000084: 3,
    0xC0000100: 3, 0xC0000101: 3, 0xC0000102: 3, 0xC0000103: 3,
}  # fmt: skip


def test_msr_map() -> None:
    table = msr_map()
    assert len(table) == 0x2000
    for base, first in ((0, 0), (0x800, 0xC0000000), (0x1000, 0xC0010000)):
        for i in range(0x2000):
            exits = table[base + i // 4] >> 2 * (i % 4) & 3
            assert exits == 3 & ~PASSED.get(first + i, 0), hex(first + i)
    assert table[0x1800:] == b"\xff" * 0x800


def test_msr_map_without_eoi() -> None:
    with_eoi, without = msr_map(), msr_map(eoi=False)
    differ = [i for i in range(len(without)) if without[i] != with_eoi[i]]
    assert differ == [0x80B // 4]
    # Reading it still exits.
    assert without[0x80B // 4] ^ with_eoi[0x80B // 4] == 2 << 2 * (0x80B % 4)


# --- state -----------------------------------------------------------------------------------


def test_load_and_read_back(machine: Machine) -> None:
    state = b.CpuState(
        general={name: 0x1111 * i for i, name in enumerate(b.GENERAL_REGISTERS)},
        segments={
            name: b.Segment(8 * i, i << 32, 0x1000 + i, 0x0AB ^ i)
            for i, name in enumerate(b.SEGMENT_REGISTERS)
        },
        rip=0x1234, rflags=0x202, cr0=0x8000_0011, cr3=0x5000, cr4=0x20, efer=0xD01,
        dr6=0xFFFF0FF0, dr7=0x400, pat=0x0102030405060706,
    )  # fmt: skip
    machine.vcpu.set("cr2", 99)
    machine.vcpu.inject_exception(13, 5)
    machine.vcpu.load(state)
    for name, value in state.general.items():
        assert machine.vcpu.get(name) == value
    for name, segment in state.segments.items():
        assert machine.vcpu.segment(name) == segment
    for name in ("rip", "rflags", "cr0", "cr3", "cr4", "efer", "dr6", "dr7"):
        assert machine.vcpu.get(name) == getattr(state, name), name
    assert machine.vcpu.get("cr2") == 0
    assert machine.vmcb(machine.vcpu, L.GUEST_PAT, 8) == state.pat
    assert machine.vmcb(machine.vcpu, L.EVENT_INJECT, 8) == 0
    assert machine.field(machine.vcpu, L.FLAGS, 4) & L.FLAG_LOAD
    # VMRUN refuses a guest without EFER.SVME, which the guest does not see.
    assert machine.vmcb(machine.vcpu, L.CONTROL["efer"], 8) == state.efer | 1 << 12


def test_load_after_a_run_leaves_nothing_behind(machine: Machine) -> None:
    vcpu = machine.vcpu
    for name in b.GENERAL_REGISTERS:
        vcpu.set(name, 7)
    vcpu.request_interrupt(0x20)
    machine.vmcb(vcpu, L.EXIT_INT_INFO, 8, 1 << 31 | 0x30)
    machine.vmcb(vcpu, L.INT_STATE, 8, 1)
    machine.vmcb(vcpu, L.CPL, 1, 3)
    for offset in range(0x600, 0x640, 8):
        machine.vmcb(vcpu, offset, 8, 0x55)
    vcpu.load(b.CpuState(rip=0xFFF0))
    assert all(vcpu.get(name) == 0 for name in b.GENERAL_REGISTERS)
    assert vcpu.cpl == 0
    assert not any(machine.vmcb(vcpu, offset, 8) for offset in range(0x600, 0x640, 8))
    assert (machine.vmcb(vcpu, L.EXIT_INT_INFO, 8), machine.vmcb(vcpu, L.INT_STATE, 8)) == (0, 0)
    machine.guest = lambda vcpu: machine.exit(vcpu, L.EXIT_HLT)
    vcpu.start()
    assert not machine.vmcb(vcpu, L.INT_CONTROL, 4) & L.V_IRQ


@pytest.mark.parametrize(
    ("efer", "cs", "mode"),
    [
        (0, CODE16, 16),
        (0, CODE32, 32),
        (LMA, CODE32, 32),
        (LMA, CODE16, 16),
        (LMA, CODE64, 64),
        (0, CODE64, 16),  # the L bit means nothing outside of long mode
    ],
)
def test_mode(machine: Machine, efer: int, cs: b.Segment, mode: int) -> None:
    machine.vcpu.set_segment("cs", cs)
    machine.vcpu.set_raw("efer", efer)
    assert machine.vcpu.mode == mode


@pytest.mark.parametrize("name", ["fs", "gs", "ldtr", "tr"])
def test_segments_that_stay_in_the_cpu_are_fetched_once_per_run(
    machine: Machine, name: str
) -> None:
    vcpu = machine.vcpu
    machine.run(L.EXIT_HLT)
    machine.commands.clear()
    vcpu.segment("cs")
    assert machine.commands == []
    vcpu.segment(name)
    vcpu.segment(name)
    vcpu.segment("fs")
    assert machine.commands == [L.CMD_VMSAVE]
    machine.field(vcpu, L.FLAGS, 4, 0)
    vcpu.set_segment(name, b.Segment(1, 2, 3, 4))
    assert machine.field(vcpu, L.FLAGS, 4) & L.FLAG_LOAD
    assert vcpu.segment(name) == b.Segment(1, 2, 3, 4)


def test_changing_such_a_segment_keeps_the_others(machine: Machine) -> None:
    """VMLOAD takes all of them from the VMCB: they have to be saved there first."""
    machine.run(L.EXIT_HLT)
    machine.commands.clear()
    machine.vcpu.set_segment("fs", b.Segment(1, 2, 3, 4))
    assert machine.commands == [L.CMD_VMSAVE]


# --- exits -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "kind", "length"),
    [
        (L.EXIT_VMMCALL, b.Hypercall, 3),
        (L.EXIT_HLT, b.Halt, 1),
        (L.EXIT_INTR, b.Kicked, 0),
        (L.EXIT_NMI, b.Kicked, 0),
        (L.EXIT_SHUTDOWN, b.Shutdown, 0),
        (L.EXIT_CPUID, b.Cpuid, 0),
        (L.EXIT_MSR, b.Msr, 0),
    ],
)
def test_kinds(machine: Machine, code: int, kind: type[b.Exit], length: int) -> None:
    machine.vmcb(machine.vcpu, L.INT_STATE, 8, 1)
    assert type(machine.run(code)) is kind
    assert machine.vcpu.get("rip") == 0x1000 + length
    # Past an instruction there is no interrupt shadow.
    assert machine.vmcb(machine.vcpu, L.INT_STATE, 4) == (0 if length else 1)


@given(st.integers(0, M64))
@same_machine
def test_an_unknown_exit_is_a_failure_with_its_code(machine: Machine, code: int) -> None:
    if code in machine.vcpu._decoders:
        return
    exit_ = machine.run(code)
    assert isinstance(exit_, b.Failure)
    assert exit_.reason == f"unexpected #VMEXIT code {code:#x}"


def test_an_invalid_state_is_a_failure(machine: Machine) -> None:
    exit_ = machine.run(L.EXIT_INVALID)
    assert isinstance(exit_, b.Failure)
    assert "VMEXIT_INVALID" in exit_.reason


@pytest.mark.parametrize("code", [0x80, 0x82, 0x83, 0x84, 0x85, 0x86])
def test_instructions_of_svm_are_undefined(machine: Machine, code: int) -> None:
    assert machine.run(code) is None
    assert machine.vmcb(machine.vcpu, L.EVENT_INJECT, 8) == 1 << 31 | 3 << 8 | 6
    assert machine.vcpu.get("rip") == 0x1000


def test_invd_is_skipped(machine: Machine) -> None:
    assert machine.run(L.EXIT_INVD) is None
    assert machine.vcpu.get("rip") == 0x1002


def test_vmcall_is_a_hypercall_as_well(machine: Machine) -> None:
    machine.place(0x1000, b"\x0f\x01\xc1")
    assert isinstance(machine.run(L.EXIT_EXCEPTION + 6), b.Hypercall)
    assert machine.vcpu.get("rip") == 0x1003
    assert machine.vmcb(machine.vcpu, L.EVENT_INJECT, 8) == 0


@pytest.mark.parametrize("code", [b"\x0f\x0b", b"\x0f\x01\xc2", b"\x0f\x01\xd9", b""])
def test_other_undefined_instructions_stay_undefined(machine: Machine, code: bytes) -> None:
    if code:
        machine.place(0x1000, code)
    assert machine.run(L.EXIT_EXCEPTION + 6) is None
    assert machine.vmcb(machine.vcpu, L.EVENT_INJECT, 8) == 1 << 31 | 3 << 8 | 6
    assert machine.vcpu.get("rip") == 0x1000


def test_vmcall_across_a_page(machine: Machine) -> None:
    machine.vcpu.set("rip", 0x1FFE)
    machine.place(0x1FFE, b"\x0f\x01\xc1")
    assert isinstance(machine.run(L.EXIT_EXCEPTION + 6), b.Hypercall)
    assert machine.vcpu.get("rip") == 0x2001


def test_code_is_fetched_by_the_code_segment(machine: Machine) -> None:
    vcpu = machine.vcpu
    vcpu.set_segment("cs", b.Segment(0xF000, 0xF0000, 0xFFFF, 0x9B))
    vcpu.set("rip", 0xFFF0)
    machine.place(0xFFFF0, b"\x0f\x01\xc1")
    assert vcpu.fetch(3) == b"\x0f\x01\xc1"
    # And wraps at 4 GiB.
    vcpu.set_segment("cs", b.Segment(0, 0xFFFF_F000, M32, 0xC9B))
    vcpu.set("rip", 0x2000)
    machine.place(0x1000, b"\x90" * 16)
    assert vcpu.fetch(2) == b"\x90\x90"
    mode64(vcpu)
    vcpu.set("rip", 0x1001)
    assert vcpu.fetch(3) == b"\x90\x90\x90"


@pytest.mark.parametrize("wide", [True, False])
def test_registers_of_a_hypercall(machine: Machine, wide: bool) -> None:
    vcpu = machine.vcpu
    if wide:
        mode64(vcpu)
    values = {
        name: 0x0102_0304_0000_0000 * (i + 1) & M64 | i
        for i, name in enumerate(b.GENERAL_REGISTERS)
    }
    for name, value in values.items():
        vcpu.set(name, value)
    machine.vmcb(vcpu, L.CPL, 1, 2)
    mode, cpl, number, args = vcpu.hypercall_registers()
    assert (mode, cpl) == (64 if wide else 32, 2) == (vcpu.mode, vcpu.cpl)
    if wide:
        assert number == values["rax"]
        assert args == tuple(values[name] for name in ("rdi", "rsi", "rdx", "r10", "r8"))
    else:
        assert number == values["rax"] & M32
        assert args == tuple(values[name] & M32 for name in ("rbx", "rcx", "rdx", "rsi", "rdi"))
    vcpu.set_rax(M64)
    assert vcpu.get("rax") == M64


def test_cpuid(machine: Machine) -> None:
    vcpu = machine.vcpu
    vcpu.set("rax", 0xABCD_0000_4000_0003)
    vcpu.set("rcx", 0xABCD_0000_0000_0002)
    exit_ = machine.run(L.EXIT_CPUID)
    assert isinstance(exit_, b.Cpuid)
    assert (exit_.leaf, exit_.subleaf) == (0x4000_0003, 2)
    vcpu.complete_cpuid(1, 2, 3, M32)
    assert [vcpu.get(name) for name in ("rax", "rbx", "rcx", "rdx")] == [1, 2, 3, M32]
    assert vcpu.get("rip") == 0x1002


def test_msrs(machine: Machine) -> None:
    vcpu = machine.vcpu
    vcpu.set("rcx", 0xFFFF_0000_C000_0080)
    vcpu.set("rax", 0x1_0000_0D01)
    vcpu.set("rdx", 0x2_8000_0002)
    exit_ = machine.run(L.EXIT_MSR, 1)
    assert isinstance(exit_, b.Msr)
    assert (exit_.index, exit_.write, exit_.value) == (0xC000_0080, True, 0x8000_0002_0000_0D01)
    vcpu.complete_wrmsr()
    assert vcpu.get("rip") == 0x1002
    exit_ = machine.run(L.EXIT_MSR, 0)
    assert isinstance(exit_, b.Msr)
    assert not exit_.write
    vcpu.complete_rdmsr(0x1234_5678_9ABC_DEF0)
    assert (vcpu.get("rax"), vcpu.get("rdx")) == (0x9ABC_DEF0, 0x1234_5678)
    assert vcpu.get("rip") == 0x1004


@pytest.mark.parametrize(
    ("size", "before", "value", "after"),
    [
        (1, 0x1122_3344_5566_7788, 0xFFFF_FFFF, 0x1122_3344_5566_77FF),
        (2, 0x1122_3344_5566_7788, 0xABCD_1234, 0x1122_3344_5566_1234),
        (4, 0x1122_3344_5566_7788, 0xABCD_1234, 0xABCD_1234),
    ],
)
def test_in(machine: Machine, size: int, before: int, value: int, after: int) -> None:
    vcpu = machine.vcpu
    vcpu.set("rax", before)
    exit_ = machine.run(L.EXIT_IO, 0x3F8 << 16 | size << 4 | 1, 0x1001)
    assert isinstance(exit_, b.PortIo)
    assert (exit_.port, exit_.size, exit_.write, exit_.string) == (0x3F8, size, False, False)
    vcpu.complete_in(value)
    assert vcpu.get("rax") == after
    assert vcpu.get("rip") == 0x1001


@pytest.mark.parametrize(("size", "value"), [(1, 0x88), (2, 0x7788), (4, 0x5566_7788)])
def test_out(machine: Machine, size: int, value: int) -> None:
    vcpu = machine.vcpu
    vcpu.set("rax", 0x1122_3344_5566_7788)
    machine.vmcb(vcpu, L.INT_STATE, 8, 1)
    exit_ = machine.run(L.EXIT_IO, 0xFFFF << 16 | size << 4, 0x1002)
    assert isinstance(exit_, b.PortIo)
    assert (exit_.port, exit_.size, exit_.write, exit_.value) == (0xFFFF, size, True, value)
    vcpu.complete_out()
    assert vcpu.get("rip") == 0x1002
    assert machine.vmcb(vcpu, L.INT_STATE, 4) == 0


def test_a_nested_fault_is_mmio(machine: Machine) -> None:
    for info, write in ((4, False), (6, True), (7, True)):
        exit_ = machine.run(L.EXIT_NPF, 1 << 32 | info, 0xFEE0_0020)
        assert isinstance(exit_, b.Mmio)
        assert (exit_.gpa, exit_.write, exit_.fetch) == (0xFEE0_0020, write, False)


def test_a_fetch_of_what_may_be_executed_is_the_engines_own_affair(machine: Machine) -> None:
    machine.place(0x5000, b"\x90")
    assert machine.run(L.EXIT_NPF, 1 << 32 | 0x15, 0x5000) is None
    machine.place(0x7000, b"\x90", b.Access.RW)
    for gpa in (0x7000, 0xD000_0000):
        exit_ = machine.run(L.EXIT_NPF, 1 << 32 | 0x15, gpa)
        assert isinstance(exit_, b.Mmio)
        assert exit_.fetch


def test_an_interrupted_delivery_is_repeated(machine: Machine) -> None:
    vcpu = machine.vcpu
    info = 1 << 31 | 1 << 11 | 3 << 8 | 14 | 2 << 32
    machine.vmcb(vcpu, L.EXIT_INT_INFO, 8, info)
    machine.run(L.EXIT_NPF, 1 << 32 | 6, 0x9000)
    assert machine.vmcb(vcpu, L.EVENT_INJECT, 8) == info
    machine.vmcb(vcpu, L.EXIT_INT_INFO, 8, 0)
    machine.vmcb(vcpu, L.EVENT_INJECT, 8, 0)
    machine.run(L.EXIT_HLT)
    assert machine.vmcb(vcpu, L.EVENT_INJECT, 8) == 0


# --- events ----------------------------------------------------------------------------------


def test_injected_events(machine: Machine) -> None:
    vcpu = machine.vcpu
    vcpu.inject_exception(6)
    assert machine.vmcb(vcpu, L.EVENT_INJECT, 8) == 1 << 31 | 3 << 8 | 6
    vcpu.inject_exception(14, 7)
    assert machine.vmcb(vcpu, L.EVENT_INJECT, 8) == 7 << 32 | 1 << 31 | 1 << 11 | 3 << 8 | 14
    vcpu.inject_exception(13, 0)
    assert machine.vmcb(vcpu, L.EVENT_INJECT, 8) == 1 << 31 | 1 << 11 | 3 << 8 | 13
    vcpu.inject_nmi()
    assert machine.vmcb(vcpu, L.EVENT_INJECT, 8) == 1 << 31 | 2 << 8 | 2


_REQUESTED = 1 << 24 | 1 << 20 | 0xF << 16 | 1 << 8
"""V_IRQ of the highest priority, whatever the guest's TPR says, and INTR masked by us alone."""


@pytest.mark.parametrize("taken", [True, False])
def test_a_requested_interrupt(machine: Machine, taken: bool) -> None:
    vcpu = machine.vcpu
    seen = []

    def guest(vcpu: TcgVcpu) -> None:
        control = machine.vmcb(vcpu, L.INT_CONTROL, 4)
        window = machine.vmcb(vcpu, L.INTERCEPT_1, 4) & L.INTERCEPT_VINTR
        seen.append((control, machine.vmcb(vcpu, L.INT_VECTOR, 4), bool(window)))
        if taken:
            machine.vmcb(vcpu, L.INT_CONTROL, 4, control & ~L.V_IRQ)
        machine.exit(vcpu, L.EXIT_HLT)

    machine.guest = guest
    vcpu.set("rflags", 1 << 9 | 2)
    vcpu.request_interrupt(0xF3)
    assert not vcpu.interrupt_taken()
    vcpu.start()
    vcpu.take_exit()
    assert vcpu.interrupt_taken() is taken
    assert seen == [(_REQUESTED, 0xF3, False)]
    vcpu.start()
    vcpu.take_exit()
    assert seen[1][0] == 1 << 24
    # Of the last run only, for which none was requested.
    assert not vcpu.interrupt_taken()


def test_an_interrupt_that_cannot_be_taken_yet(machine: Machine) -> None:
    """The run ends when it can be, and nothing was delivered by then."""
    vcpu = machine.vcpu
    vcpu.set("rflags", 2)

    def guest(vcpu: TcgVcpu) -> None:
        assert machine.vmcb(vcpu, L.INTERCEPT_1, 4) & L.INTERCEPT_VINTR
        assert machine.vmcb(vcpu, L.INT_CONTROL, 4) == _REQUESTED
        machine.exit(vcpu, L.EXIT_VINTR)

    machine.guest = guest
    vcpu.request_interrupt(0xF3)
    vcpu.start()
    assert vcpu.take_exit() is None
    assert not vcpu.interrupt_taken()


def test_an_interrupt_that_lasts_needs_no_exit(machine: Machine) -> None:
    vcpu = machine.vcpu
    vcpu.set("rflags", 2)

    def guest(vcpu: TcgVcpu) -> None:
        assert not machine.vmcb(vcpu, L.INTERCEPT_1, 4) & L.INTERCEPT_VINTR
        control = machine.vmcb(vcpu, L.INT_CONTROL, 4)
        assert control == _REQUESTED
        machine.vmcb(vcpu, L.INT_CONTROL, 4, control & ~L.V_IRQ)
        machine.exit(vcpu, L.EXIT_HLT)

    machine.guest = guest
    vcpu.request_interrupt(0xF3, lasting=True)
    vcpu.start()
    vcpu.take_exit()
    assert vcpu.interrupt_taken()


def test_eois_pass_or_do_not(machine: Machine) -> None:
    vcpu, area = machine.vcpu, machine.partition.area
    for able, wanted, address in (
        (False, True, L.MSR_MAP), (True, True, L.EOI_MSR_MAP), (True, True, L.EOI_MSR_MAP),
        (True, False, L.MSR_MAP),
    ):  # fmt: skip
        vcpu.eoi_passes = able
        vcpu.pass_eoi(wanted)
        assert machine.vmcb(vcpu, L.MSR_MAP_ADDRESS, 8) == area + address


def test_a_watched_interrupt(machine: Machine) -> None:
    """It is delivered at once, then the run ends when another could be."""
    vcpu = machine.vcpu
    vcpu.set("rflags", 1 << 9 | 2)

    def guest(vcpu: TcgVcpu) -> None:
        assert machine.vmcb(vcpu, L.EVENT_INJECT, 8) == 1 << 31 | 4 << 8 | 0xF3
        assert machine.vmcb(vcpu, L.INTERCEPT_1, 4) & L.INTERCEPT_VINTR
        assert machine.vmcb(vcpu, L.INT_CONTROL, 4) == _REQUESTED
        machine.vmcb(vcpu, L.EVENT_INJECT, 8, 0)
        machine.exit(vcpu, L.EXIT_VINTR)

    machine.guest = guest
    vcpu.request_interrupt(0xF3, lasting=True)
    assert vcpu.watch_window()
    vcpu.start()
    assert isinstance(vcpu.take_exit(), b.Window)
    assert vcpu.interrupt_taken()
    assert machine.vmcb(vcpu, L.INT_CONTROL, 4) == 1 << 24
    # Of that run only.
    vcpu.request_interrupt(0xF3)
    vcpu.set("rflags", 2)
    machine.guest = lambda vcpu: machine.exit(vcpu, L.EXIT_VINTR)
    vcpu.start()
    assert vcpu.take_exit() is None


def test_a_watched_guest_goes_on(machine: Machine) -> None:
    vcpu = machine.vcpu

    def guest(vcpu: TcgVcpu) -> None:
        assert machine.vmcb(vcpu, L.EVENT_INJECT, 8) == 0
        assert machine.vmcb(vcpu, L.INTERCEPT_1, 4) & L.INTERCEPT_VINTR
        machine.exit(vcpu, L.EXIT_HLT)

    machine.guest = guest
    assert vcpu.watch_window()
    vcpu.start()
    assert isinstance(vcpu.take_exit(), b.Halt)
    assert not vcpu.interrupt_taken()


def test_an_exit_while_a_watched_interrupt_is_delivered(machine: Machine) -> None:
    vcpu = machine.vcpu
    vcpu.set("rflags", 1 << 9 | 2)
    info = 1 << 31 | 4 << 8 | 0xF3

    def guest(vcpu: TcgVcpu) -> None:
        machine.vmcb(vcpu, L.EVENT_INJECT, 8, 0)
        machine.vmcb(vcpu, L.EXIT_INT_INFO, 8, info)
        machine.exit(vcpu, L.EXIT_NPF, 1 << 32 | 6, 0x9000)

    machine.guest = guest
    vcpu.request_interrupt(0xF3)
    assert vcpu.watch_window()
    vcpu.start()
    assert isinstance(vcpu.take_exit(), b.Mmio)
    assert vcpu.interrupt_taken()
    assert machine.vmcb(vcpu, L.EVENT_INJECT, 8) == info


def test_a_watched_interrupt_of_a_run_that_did_not_begin(machine: Machine) -> None:
    """The stub was told to stop first: what was injected comes with the next run, whatever ends it."""
    vcpu = machine.vcpu
    vcpu.set("rflags", 1 << 9 | 2)
    info = 1 << 31 | 4 << 8 | 0xF3
    vcpu.request_interrupt(0xF3)
    assert vcpu.watch_window()
    assert isinstance(machine.run(L.EXIT_INTR), b.Kicked)
    assert vcpu.interrupt_taken()
    assert vcpu.watch_window()

    def guest(vcpu: TcgVcpu) -> None:
        assert machine.vmcb(vcpu, L.EVENT_INJECT, 8) == info
        machine.vmcb(vcpu, L.EVENT_INJECT, 8, 0)
        machine.vmcb(vcpu, L.EXIT_INT_INFO, 8, info)
        machine.exit(vcpu, L.EXIT_NPF, 1 << 32 | 6, 0x9000)

    machine.guest = guest
    vcpu.start()
    vcpu.take_exit()
    assert machine.vmcb(vcpu, L.EVENT_INJECT, 8) == info


def test_an_interrupted_int_of_the_guests_is_not_injected(machine: Machine) -> None:
    """It is executed again, as its instruction has not ended."""
    vcpu = machine.vcpu
    vcpu.set("rflags", 1 << 9 | 2)

    def guest(vcpu: TcgVcpu) -> None:
        machine.vmcb(vcpu, L.EVENT_INJECT, 8, 0)
        machine.vmcb(vcpu, L.EXIT_INT_INFO, 8, 1 << 31 | 4 << 8 | 0x80)
        machine.exit(vcpu, L.EXIT_NPF, 1 << 32 | 6, 0x9000)

    machine.guest = guest
    vcpu.request_interrupt(0xF3)
    assert vcpu.watch_window()
    vcpu.start()
    vcpu.take_exit()
    assert not machine.vmcb(vcpu, L.EVENT_INJECT, 8) & L.EVENT_VALID


@pytest.mark.parametrize("why", ["disabled", "shadow", "exception", "user"])
def test_what_cannot_be_watched(machine: Machine, why: str) -> None:
    vcpu = machine.vcpu
    vcpu.set("rflags", 2 if why == "disabled" else 1 << 9 | 2)
    if why == "shadow":
        machine.vmcb(vcpu, L.INT_STATE, 4, 1)
    if why == "exception":
        vcpu.inject_exception(6)
    machine.vmcb(vcpu, L.CPL, 1, 3 if why == "user" else 0)
    vcpu.request_interrupt(0xF3, lasting=True)
    assert not vcpu.watch_window()
    machine.run(L.EXIT_HLT)
    # User mode does not last for an interrupt; the others do, and it is tried again after them.
    waits = machine.vmcb(vcpu, L.INTERCEPT_1, 4) & L.INTERCEPT_VINTR
    assert bool(waits) is (why != "user")


def test_a_window_for_another_interrupt(machine: Machine) -> None:
    """The run ends soon, but not before it began."""
    vcpu = machine.vcpu
    vcpu.set("rflags", 1 << 9 | 2)
    machine.field(vcpu, L.ASLEEP, 4, 0)
    vcpu.request_interrupt(0xF3)
    vcpu.start()
    assert machine.dma.interrupts == []
    machine.dma.stub = lambda cpu: None
    vcpu.request_window()
    assert machine.dma.interrupts == [(0, L.KICK_VECTOR)]
    assert machine.field(vcpu, L.STOP, 4) == 0


def test_no_interrupt_is_asked_for(machine: Machine) -> None:
    machine.vcpu.request_interrupt(5)
    machine.vcpu.request_interrupt(-1)
    machine.run(L.EXIT_HLT)
    assert not machine.vcpu.interrupt_taken()


# --- running, kicking, flushing --------------------------------------------------------------


def test_a_running_vcpu_is_kicked_once(machine: Machine) -> None:
    vcpu = machine.vcpu
    vcpu.start()
    assert not vcpu.exited()
    machine.dma.stub = lambda _cpu: None
    machine.dma.interrupts.clear()
    vcpu.kick()
    vcpu.kick()
    assert machine.dma.interrupts == [(0, L.KICK_VECTOR)]
    # The stub clears the mark when it takes the interrupt.
    machine.field(vcpu, L.KICKED, 4, 0)
    vcpu.kick()
    assert len(machine.dma.interrupts) == 2


def test_a_stopped_vcpu_is_not_kicked(machine: Machine) -> None:
    machine.run(L.EXIT_HLT)
    machine.dma.interrupts.clear()
    machine.vcpu.kick()
    assert machine.dma.interrupts == []
    assert machine.field(machine.vcpu, L.KICKED, 4) == 0


def test_one_that_just_exited_is_not_kicked(machine: Machine) -> None:
    machine.guest = lambda vcpu: machine.exit(vcpu, L.EXIT_HLT)
    machine.vcpu.start()
    machine.dma.interrupts.clear()
    machine.vcpu.kick()
    assert machine.dma.interrupts == []


def test_the_right_vcpu_is_kicked(machines: Callable[..., Machine]) -> None:
    machine = machines(4)
    machine.dma.interrupts.clear()
    machine.partition.vcpus[2].start()
    assert machine.dma.interrupts == [(2, L.KICK_VECTOR)]


def test_a_stub_that_is_awake_needs_no_interrupt(machine: Machine) -> None:
    machine.field(machine.vcpu, L.ASLEEP, 4, 0)
    machine.dma.interrupts.clear()
    machine.vcpu.start()
    assert machine.dma.interrupts == []
    assert machine.field(machine.vcpu, L.STATE, 4) == L.CMD_RUN


@pytest.mark.parametrize("sleeps", [True, False])
def test_a_stub_that_falls_asleep_over_a_start_is_woken(machine: Machine, sleeps: bool) -> None:
    """It looked for a command before ours came, and we for its sleep before it told.

    The caller then sleeps, or is kept awake by other vCPUs and nudges this one.
    """
    vcpu = machine.vcpu
    machine.field(vcpu, L.ASLEEP, 4, 0)
    machine.guest = lambda vcpu: machine.exit(vcpu, L.EXIT_HLT)
    vcpu.start_spinning()
    machine.field(vcpu, L.ASLEEP, 4, 1)
    assert not vcpu.spin()
    assert machine.dma.interrupts == []
    if sleeps:
        machine.partition.want_doorbell(True)
    else:
        vcpu.nudge()
    assert machine.dma.interrupts == [(0, L.KICK_VECTOR)]
    assert vcpu.spin()
    vcpu.nudge()
    # A stub that sleeps because it has nothing to do is left alone.
    machine.partition.want_doorbell(False)
    machine.partition.want_doorbell(True)
    assert machine.dma.interrupts == [(0, L.KICK_VECTOR)]


def test_a_kick_that_qemu_lost_is_sent_again(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_000_000_000
    monkeypatch.setattr(time, "monotonic_ns", lambda: now)
    vcpu = machine.vcpu
    machine.field(vcpu, L.ASLEEP, 4, 0)
    machine.dma.stub = lambda cpu: None
    vcpu.start()
    assert vcpu.nudge() == b.NO_NUDGE
    vcpu.kick()
    kick = (0, L.KICK_VECTOR)
    assert machine.dma.interrupts == [kick]
    due = vcpu.nudge()
    assert machine.dma.interrupts == [kick]
    delays = []
    for _ in range(8):
        now += due
        delays.append(due := vcpu.nudge())
    assert machine.dma.interrupts == [kick] * 9
    # Less and less often: it may only be that QEMU is slow.
    assert delays == sorted(delays)
    assert delays[-1] == 100_000_000
    # The stub took it.
    machine.field(vcpu, L.KICKED, 4, 0)
    assert vcpu.nudge() == b.NO_NUDGE
    vcpu.kick()
    assert vcpu.nudge() == delays[0] // 2
    # One that came too late for the run is no reason to hurry.
    machine.exit(vcpu, L.EXIT_HLT)
    assert vcpu.nudge() == b.NO_NUDGE


def test_the_tlb_is_flushed_for_one_run(machine: Machine) -> None:
    vcpu = machine.vcpu
    seen = []

    def guest(vcpu: TcgVcpu) -> None:
        seen.append(machine.vmcb(vcpu, L.TLB_CONTROL, 4))
        machine.exit(vcpu, L.EXIT_HLT)

    machine.guest = guest
    for flush in (False, False, True, False):
        vcpu.flush_next |= flush
        vcpu.start()
        vcpu.take_exit()
    assert seen == [1, 0, 1, 0]
    vcpu.use_nested(0x123000)
    vcpu.start()
    vcpu.take_exit()
    assert seen[-1] == 1
    assert machine.vmcb(vcpu, L.NESTED_CR3, 8) == 0x123000


def test_the_bell(machine: Machine) -> None:
    machine.partition.want_doorbell(True)
    assert machine.field(machine.vcpu, L.BELL, 4) == 1
    machine.partition.want_doorbell(False)
    assert machine.field(machine.vcpu, L.BELL, 4) == 0


# --- commands --------------------------------------------------------------------------------


def test_commands(machine: Machine) -> None:
    vcpu = machine.vcpu
    machine.cpuid[0xD, 1] = (1, 2, 3, 0x8000_0000)
    machine.tsc = 0x1234_5678_9ABC
    assert vcpu.hardware_cpuid(0xD, 1) == (1, 2, 3, 0x8000_0000)
    assert vcpu.read_tsc() == 0x1234_5678_9ABC
    vcpu.write32(0xFEB0_0070, 0xFFFF_FFFF)
    assert machine.devices == {0xFEB0_0070: 0xFFFF_FFFF}
    assert vcpu.read32(0xFEB0_0070) == 0xFFFF_FFFF
    assert machine.commands == [L.CMD_CPUID, L.CMD_RDTSC, L.CMD_WRITE32, L.CMD_READ32]


def test_a_stub_that_does_not_answer(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stub_cpu, "_COMMAND_TIMEOUT", 0.05)
    machine.dma.stub = lambda _cpu: None
    with pytest.raises(EngineError, match="vCPU 0 of QEMU does not answer"):
        machine.vcpu.read_tsc()


def test_a_dead_process_while_a_command_runs(machine: Machine) -> None:
    machine.dma.stub = lambda _cpu: None
    machine.process.dead = "QEMU ended by signal 9: it printed nothing"
    with pytest.raises(EngineError, match="ended by signal 9"):
        machine.vcpu.read_tsc()


# --- constant CPUID leaves -------------------------------------------------------------------


def answer_of_the_stub(
    machine: Machine, leaf: int, subleaf: int, osxsave: bool = False
) -> tuple[int, ...] | None:
    """What stub.S answers from the table, by its comments; None for an exit."""
    for base, group in ((0, 0), (0x4000_0000, 1), (0x8000_0000, 2)):
        if base <= leaf < base + L.CPUID_LEAVES:
            index = group * L.CPUID_LEAVES + leaf - base
            break
    else:
        return None
    start = machine.field(machine.vcpu, L.CPUID_ADDRESS, 8)
    u8 = machine.partition.memory.u8
    kind, *answer = struct.unpack_from("<5I", u8, start + 32 * index)
    if kind == L.CPUID_SUBLEAVES:
        if subleaf >= answer[1]:
            return None
        at = answer[0] + 32 * subleaf
        assert at + 32 <= L.CPU_CPUID_SIZE
        kind, *answer = struct.unpack_from("<5I", u8, start + at)
    if kind == 0:
        return None
    if kind == L.CPUID_OSXSAVE and osxsave:
        answer[2] |= 1 << 27
    return tuple(answer)


def test_constant_leaves(machine: Machine) -> None:
    leaves: dict[int, b.CpuidAnswer | list[b.CpuidAnswer | None]] = {
        0: (0xD, 1, 2, 3),
        1: (5, 6, 7, 8),
        4: [(1, 1, 1, 1), None, (3, 3, 3, 3)],
        0x1F: (M32, M32, M32, M32),
        0x4000_0000: (0x4000_0005, 4, 5, 6),
        0x8000_0000: (0x8000_0008, 7, 8, 9),
        0x8000_001F: (1, 0, 0, 0),
    }
    machine.vcpu.set_constant_cpuid(leaves)
    assert answer_of_the_stub(machine, 0, 77) == (0xD, 1, 2, 3)
    assert answer_of_the_stub(machine, 1, 0) == (5, 6, 7, 8)
    assert answer_of_the_stub(machine, 1, 0, osxsave=True) == (5, 6, 7 | 1 << 27, 8)
    assert answer_of_the_stub(machine, 4, 0) == (1, 1, 1, 1)
    assert answer_of_the_stub(machine, 4, 1) is None
    assert answer_of_the_stub(machine, 4, 2) == (3, 3, 3, 3)
    assert answer_of_the_stub(machine, 4, 3) is None
    assert answer_of_the_stub(machine, 4, M32) is None
    assert answer_of_the_stub(machine, 0x1F, 0) == (M32,) * 4
    assert answer_of_the_stub(machine, 0x4000_0000, 0) == (0x4000_0005, 4, 5, 6)
    assert answer_of_the_stub(machine, 0x8000_001F, 0) == (1, 0, 0, 0)
    for leaf in (2, 0x4000_0001, 0x8000_0001):
        assert answer_of_the_stub(machine, leaf, 0) is None
    # What is given later replaces everything.
    machine.vcpu.set_constant_cpuid({2: (1, 2, 3, 4)})
    assert answer_of_the_stub(machine, 0, 0) is None
    assert answer_of_the_stub(machine, 2, 0) == (1, 2, 3, 4)


def test_leaves_that_the_table_has_no_room_for_exit(machine: Machine) -> None:
    many: list[b.CpuidAnswer | None] = [(i, 0, 0, 0) for i in range(64)]
    machine.vcpu.set_constant_cpuid(
        dict.fromkeys(range(4), many) | {0x20: (1, 1, 1, 1), 0x8000_0020: (1, 1, 1, 1)}
    )
    answered = [leaf for leaf in range(4) if answer_of_the_stub(machine, leaf, 63) is not None]
    assert answered == [0, 1]
    assert all(answer_of_the_stub(machine, leaf, 63) == (63, 0, 0, 0) for leaf in answered)


# --- translation -----------------------------------------------------------------------------


def test_translation_uses_the_vcpus_registers(machine: Machine) -> None:
    vcpu = machine.vcpu
    assert vcpu.translate(0x1_0000_1234) == 0x1234
    # 32-bit paging: a directory at 0x2000, a table at 0x3000.
    machine.place(0x2000, struct.pack("<I", 0x3000 | 7))
    machine.place(0x3000, struct.pack("<4I", 0, 0x9000 | 5, 0, 0))
    vcpu.set_raw("cr3", 0x2000)
    vcpu.set_raw("cr0", 0x8001_0001)
    assert vcpu.translate(0x1ABC) == 0x9ABC
    with pytest.raises(Exception, match="page fault at linear address 0x1abc"):
        vcpu.translate(0x1ABC, write=True)
    with pytest.raises(Exception, match="page fault at linear address 0x5000"):
        vcpu.translate(0x5000)
