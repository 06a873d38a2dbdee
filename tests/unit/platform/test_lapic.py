"""The local APIC against the architecture and against what real Xen 4.17 answered a PVH domU.

Proves registers, faults, modes and priorities. Cannot see whether an engine delivers what
`pending_vector` says.
"""

from __future__ import annotations

import pytest

from hvmlite.hypervisor.clock import NEVER, Clock, TimerQueue
from hvmlite.hypervisor.fault import GeneralProtection
from hvmlite.platform.apicdef import (
    APIC_BASE_BSP,
    APIC_BASE_ENABLE,
    APIC_BASE_EXTD,
    APIC_DEFAULT_PHYS_BASE,
    APIC_DFR,
    APIC_DM_LOWEST,
    APIC_DM_NMI,
    APIC_EOI,
    APIC_ESR,
    APIC_ICR,
    APIC_ICR2,
    APIC_ID,
    APIC_IRR,
    APIC_ISR,
    APIC_LDR,
    APIC_LVR,
    APIC_LVT0,
    APIC_LVT1,
    APIC_LVT_MASKED,
    APIC_LVTERR,
    APIC_LVTPC,
    APIC_LVTT,
    APIC_PROCPRI,
    APIC_SELF_IPI,
    APIC_SPIV,
    APIC_TASKPRI,
    APIC_TDCR,
    APIC_TMCCT,
    APIC_TMICT,
    APIC_TMR,
    MSR_APIC_BASE,
    MSR_TSC_DEADLINE,
    MSR_X2APIC_FIRST,
)
from hvmlite.platform.lapic import ApicBus, LocalApic

TSC_KHZ = 2_000_000
BASE = APIC_DEFAULT_PHYS_BASE | APIC_BASE_ENABLE
SPIV_ON = 0x1FF


class Machine:
    """Some local APICs, and a record of what they told their vCPUs."""

    def __init__(self, vcpus: int = 2, x2apic: bool = False, enable: bool = True) -> None:
        self.log: list[tuple[object, ...]] = []
        self.timers = TimerQueue(Clock())
        self.bus = ApicBus(
            on_interrupt=lambda vcpu: self.log.append(("interrupt", vcpu)),
            on_nmi=lambda vcpu: self.log.append(("nmi", vcpu)),
            on_init=lambda vcpu: self.log.append(("init", vcpu)),
            on_sipi=lambda vcpu, vector: self.log.append(("sipi", vcpu, vector)),
            on_eoi=lambda vector: self.log.append(("eoi", vector)),
            on_software_enable=lambda vcpu: self.log.append(("enable", vcpu)),
        )
        self.apics = [LocalApic(n, self.bus, self.timers, TSC_KHZ, x2apic) for n in range(vcpus)]
        for apic in self.apics if enable else ():
            write(apic, APIC_SPIV, SPIV_ON)
        self.log.clear()

    def taken(self) -> list[tuple[object, ...]]:
        log, self.log = self.log, []
        return log


def x2(offset: int) -> int:
    return MSR_X2APIC_FIRST + (offset >> 4)


def write(apic: LocalApic, offset: int, value: int) -> None:
    if apic.in_x2apic_mode:
        apic.msr_write(x2(offset), value)
    else:
        apic.mmio_write(offset, value)


def read(apic: LocalApic, offset: int) -> int:
    return apic.msr_read(x2(offset)) if apic.in_x2apic_mode else apic.mmio_read(offset)


def ipi(apic: LocalApic, low: int, destination: int = 0) -> None:
    if apic.in_x2apic_mode:
        apic.msr_write(x2(APIC_ICR), destination << 32 | low)
    else:
        apic.mmio_write(APIC_ICR2, destination << 24)
        apic.mmio_write(APIC_ICR, low)


@pytest.fixture(params=[False, True], ids=["xapic", "x2apic"])
def machine(request: pytest.FixtureRequest) -> Machine:
    return Machine(x2apic=request.param)


@pytest.fixture
def x2apic() -> LocalApic:
    return Machine(x2apic=True).apics[0]


# ---- registers -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (APIC_LVR, 0x00050014),
        (APIC_DFR, 0xFFFFFFFF),
        (0x320, 0x00010000),
        (0x340, 0x00010000),
        (0x360, 0x00010000),
        (APIC_TMICT, 0),
        (APIC_SPIV, 0xFF),
        (APIC_LDR, 0),
        (0x0, 0),
        (APIC_EOI, 0),
        (0x3F0, 0),
        (0xFFC, 0),
    ],
)
def test_xapic_reset_values(offset: int, value: int) -> None:
    assert Machine(enable=False).apics[0].mmio_read(offset) == value


@pytest.mark.parametrize(
    ("msr", "value"),
    [
        (0x80D, 0x1),
        (0x80E, None),
        (0x80F, 0x1FF),
        (0x82F, 0),
        (0x830, 0),
        (0x832, 0x10000),
        (0x838, 0),
        (0x839, 0),
        (0x8FF, None),
        (0x80B, None),
        (0x831, None),
        (0x83F, None),
        (0x7FF, None),
        (0x900, None),
        (0x803, 0x50014),
    ],
)
def test_x2apic_reads_as_on_xen(x2apic: LocalApic, msr: int, value: int | None) -> None:
    if value is None:
        with pytest.raises(GeneralProtection):
            x2apic.msr_read(msr)
    else:
        assert x2apic.msr_read(msr) == value


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (APIC_EOI, 1),
        (APIC_ESR, 1),
        (APIC_TASKPRI, 0x100),
        (APIC_SPIV, 0x400),
        (APIC_SPIV, 0x1000),
        (APIC_ICR, 1 << 12),
        (APIC_ICR, 1 << 20),
        (APIC_SELF_IPI, 0x100),
        (APIC_LVTT, 0x100),
        (APIC_LVTERR, 0x700),
        (APIC_LVTPC, 1 << 17),
        (APIC_LVT0, 1 << 17),
        (APIC_TDCR, 4),
        (APIC_ID, 0),
        (APIC_LVR, 0),
        (APIC_LDR, 0),
        (APIC_PROCPRI, 0),
        (APIC_TMCCT, 0),
        (APIC_ICR2, 0),
        (APIC_IRR, 0),
    ],
)
def test_x2apic_write_faults(x2apic: LocalApic, offset: int, value: int) -> None:
    before = x2apic.save()
    with pytest.raises(GeneralProtection):
        x2apic.msr_write(x2(offset), value)
    assert x2apic.save() == before


def test_x2apic_msrs_fault_in_xapic_mode() -> None:
    apic = Machine().apics[0]
    for access in (lambda: apic.msr_read(0x802), lambda: apic.msr_write(0x80B, 0)):
        with pytest.raises(GeneralProtection):
            access()


def test_xapic_page_is_absent_in_x2apic_mode_and_when_disabled(x2apic: LocalApic) -> None:
    x2apic.mmio_write(APIC_TASKPRI, 0x50)
    assert (x2apic.mmio_read(APIC_LVR), x2apic.mmio_read(APIC_LVR, 1)) == (0xFFFFFFFF, 0xFF)
    assert x2apic.msr_read(x2(APIC_TASKPRI)) == 0
    x2apic.apic_base = APIC_DEFAULT_PHYS_BASE
    assert x2apic.mmio_read(APIC_LVR) == 0xFFFFFFFF


@pytest.mark.parametrize(
    ("offset", "size", "value"),
    [
        (APIC_LVR, 1, 0x14),
        (APIC_LVR + 2, 1, 0x05),
        (APIC_LVR + 2, 2, 0x0005),
        (APIC_LVR + 1, 2, 0x0500),
        (APIC_LVR + 3, 2, 0),
        (APIC_LVR + 1, 4, 0),
        (APIC_LVR + 4, 4, 0),
        (APIC_LVR, 8, 0),
    ],
)
def test_narrow_and_odd_reads(offset: int, size: int, value: int) -> None:
    assert Machine().apics[0].mmio_read(offset, size) == value


def test_narrow_and_odd_writes() -> None:
    apic = Machine().apics[0]
    apic.mmio_write(APIC_LDR + 3, 0x12, 1)
    assert apic.mmio_read(APIC_LDR) == 0x12000000
    apic.mmio_write(APIC_LVTERR, 0xFFFF1234, 2)
    assert apic.mmio_read(APIC_LVTERR) == 0x10034
    for offset, size in ((APIC_LDR + 1, 4), (APIC_LDR, 8), (APIC_LDR + 8, 4)):
        apic.mmio_write(offset, 0xFFFFFFFFFFFFFFFF, size)
    assert apic.mmio_read(APIC_LDR) == 0x12000000


@pytest.mark.parametrize(
    ("offset", "readable"),
    [
        (APIC_LVTT, 0x700FF),
        (APIC_LVTPC, 0x107FF),
        (APIC_LVT0, 0x1A7FF),
        (APIC_LVTERR, 0x100FF),
        (APIC_LDR, 0xFF000000),
        (APIC_DFR, 0xFFFFFFFF),
        (APIC_SPIV, 0x3FF),
        (APIC_TDCR, 0xB),
        (APIC_TASKPRI, 0xFF),
        (APIC_ICR2, 0xFF000000),
        (APIC_ID, 0xFF000000),
        (APIC_LVR, 0x50014),
        (APIC_TMR, 0),
    ],
)
def test_xapic_writes_keep_defined_bits(offset: int, readable: int) -> None:
    apic = Machine().apics[0]
    apic.mmio_write(offset, 0xFFFFFFFF)
    assert apic.mmio_read(offset) == readable


@pytest.mark.parametrize(
    ("vcpu", "ldr"), [(0, 1), (1, 4), (7, 1 << 14), (8, 0x10001), (9, 0x10004)]
)
def test_ids(vcpu: int, ldr: int) -> None:
    apic = Machine(10).apics[vcpu]
    assert apic.mmio_read(APIC_ID) == 2 * vcpu << 24
    apic.apic_base |= APIC_BASE_EXTD
    assert apic.msr_read(x2(APIC_ID)) == 2 * vcpu
    assert apic.msr_read(x2(APIC_LDR)) == ldr


# ---- APIC_BASE -------------------------------------------------------------------------------

DISABLED, XAPIC, INVALID, X2APIC = (
    0,
    APIC_BASE_ENABLE,
    APIC_BASE_EXTD,
    APIC_BASE_ENABLE | APIC_BASE_EXTD,
)


@pytest.mark.parametrize(
    ("path", "works"),
    [
        ([XAPIC], True),
        ([X2APIC], True),
        ([X2APIC, X2APIC], True),
        ([DISABLED], True),
        ([INVALID], False),
        ([X2APIC, XAPIC], False),
        ([X2APIC, INVALID], False),
        ([X2APIC, DISABLED], True),
        ([X2APIC, DISABLED, XAPIC], True),
        ([DISABLED, X2APIC], False),
        ([DISABLED, INVALID], False),
        ([DISABLED, DISABLED], True),
    ],
)
def test_mode_transitions(path: list[int], works: bool) -> None:
    apic = Machine().apics[1]
    for mode in path[:-1]:
        apic.msr_write(MSR_APIC_BASE, APIC_DEFAULT_PHYS_BASE | mode)
    before = apic.apic_base
    if works:
        apic.msr_write(MSR_APIC_BASE, APIC_DEFAULT_PHYS_BASE | path[-1])
        assert apic.msr_read(MSR_APIC_BASE) == APIC_DEFAULT_PHYS_BASE | path[-1]
    else:
        with pytest.raises(GeneralProtection):
            apic.msr_write(MSR_APIC_BASE, APIC_DEFAULT_PHYS_BASE | path[-1])
        assert apic.apic_base == before


@pytest.mark.parametrize("value", [BASE | 1, BASE | 1 << 9, BASE | 1 << 52, BASE + 0x1000])
def test_apic_base_reserved_bits_and_moving(value: int) -> None:
    apic = Machine().apics[0]
    with pytest.raises(GeneralProtection):
        apic.apic_base = value
    assert apic.apic_base == BASE | APIC_BASE_BSP


def test_x2apic_needs_cpuid() -> None:
    machine = Machine()
    apic = LocalApic(2, machine.bus, machine.timers, TSC_KHZ, x2apic_available=False)
    with pytest.raises(GeneralProtection):
        apic.apic_base = BASE | APIC_BASE_EXTD


def test_start_in_x2apic_mode() -> None:
    assert [a.apic_base for a in Machine(x2apic=True).apics] == [0xFEE00D00, 0xFEE00C00]
    assert [a.apic_base for a in Machine().apics] == [0xFEE00900, 0xFEE00800]


def test_disabling_resets() -> None:
    machine = Machine()
    apic = machine.apics[0]
    write(apic, APIC_LVTT, 0x40)
    write(apic, APIC_TMICT, 1000)
    apic.set_irq(0x50)
    apic.apic_base = APIC_DEFAULT_PHYS_BASE
    assert (apic.pending_vector(), machine.timers.next) == (-1, NEVER)
    apic.msr_write(MSR_TSC_DEADLINE, 1)
    apic.apic_base = BASE
    assert (read(apic, APIC_SPIV), read(apic, APIC_IRR + 0x20), apic.apic_base) == (0xFF, 0, BASE)


# ---- interrupts ------------------------------------------------------------------------------


def test_interrupt_cycle(machine: Machine) -> None:
    apic = machine.apics[0]
    assert apic.pending_vector() == -1
    apic.set_irq(0x41)
    assert machine.taken() == [("interrupt", 0)]
    assert (apic.pending_vector(), read(apic, APIC_IRR + 0x20)) == (0x41, 2)
    apic.set_irq(0x41)
    assert machine.taken() == []
    assert apic.acknowledge(0x41) == 0x41
    assert (read(apic, APIC_IRR + 0x20), read(apic, APIC_ISR + 0x20)) == (0, 2)
    assert (apic.pending_vector(), read(apic, APIC_PROCPRI)) == (-1, 0x40)
    apic.set_irq(0x41)
    assert (apic.pending_vector(), machine.taken()) == (-1, [])
    write(apic, APIC_EOI, 0)
    assert (apic.pending_vector(), machine.taken()) == (0x41, [("interrupt", 0)])
    apic.acknowledge(0x41)
    write(apic, APIC_EOI, 0)
    write(apic, APIC_EOI, 0)
    assert (apic.irr, apic.isr, apic.pending_vector()) == (0, 0, -1)


def test_priority_classes(machine: Machine) -> None:
    apic = machine.apics[0]
    apic.set_irq(0x31)
    apic.acknowledge(apic.pending_vector())
    apic.set_irq(0x3F)
    assert apic.pending_vector() == -1, "same class does not preempt"
    apic.set_irq(0x40)
    assert apic.pending_vector() == 0x40
    apic.acknowledge(0x40)
    assert apic.isr == 1 << 0x40 | 1 << 0x31
    write(apic, APIC_EOI, 0)
    assert (apic.isr, apic.pending_vector()) == (1 << 0x31, -1)
    write(apic, APIC_EOI, 0)
    assert apic.pending_vector() == 0x3F


@pytest.mark.parametrize(
    ("tpr", "in_service", "ppr"),
    [(0, None, 0), (0x25, None, 0x25), (0x25, 0x31, 0x30), (0x35, 0x31, 0x35), (0x45, 0x31, 0x45)],
)
def test_processor_priority(machine: Machine, tpr: int, in_service: int | None, ppr: int) -> None:
    apic = machine.apics[0]
    if in_service:
        apic.set_irq(in_service)
        apic.acknowledge(in_service)
    write(apic, APIC_TASKPRI, tpr)
    assert read(apic, APIC_PROCPRI) == ppr


def test_task_priority_holds_back(machine: Machine) -> None:
    apic = machine.apics[0]
    write(apic, APIC_TASKPRI, 0x50)
    apic.set_irq(0x5F)
    assert (apic.pending_vector(), machine.taken()) == (-1, [])
    write(apic, APIC_TASKPRI, 0x4F)
    assert (apic.pending_vector(), machine.taken()) == (0x5F, [("interrupt", 0)])
    write(apic, APIC_TASKPRI, 0xF0)
    assert apic.pending_vector() == -1


def test_withdrawn_request_is_spurious(machine: Machine) -> None:
    apic = machine.apics[0]
    write(apic, APIC_SPIV, 0x1EF)
    assert apic.acknowledge(0x40) == 0xEF
    assert apic.isr == 0


def test_an_offered_vector_is_settled(machine: Machine) -> None:
    apic = machine.apics[0]
    apic.set_irq(0x41)
    apic.offer(0x41)
    apic.settle(taken=False, ended=False)
    assert (apic.pending_vector(), apic.isr) == (0x41, 0)
    apic.offer(0x41)
    apic.settle(taken=True, ended=False)
    assert (apic.pending_vector(), apic.isr) == (-1, 1 << 0x41)


def test_requested_again_while_it_may_have_been_taken(machine: Machine) -> None:
    """Nobody knows yet whether the first was: the CPU is stopped, then it is made up for."""
    apic = machine.apics[0]
    for taken in (False, True):
        apic.set_irq(0x41)
        apic.offer(0x41)
        machine.taken()
        apic.set_irq(0x41)
        apic.set_irq(0x41)
        assert machine.taken() == [("interrupt", 0)]
        apic.settle(taken=taken, ended=False)
        assert apic.irr == 1 << 0x41
    assert (apic.isr, apic.pending_vector()) == (1 << 0x41, -1)
    write(apic, APIC_EOI, 0)
    assert apic.pending_vector() == 0x41
    # Without an offer they merge, as ever.
    apic.acknowledge(0x41)
    write(apic, APIC_EOI, 0)
    assert apic.irr == 0


def test_an_eoi_that_goes_unseen(machine: Machine) -> None:
    apic = machine.apics[0]
    apic.apic_base |= APIC_BASE_EXTD
    apic.set_irq(0x41)
    assert apic.offer(0x41)
    apic.settle(taken=True, ended=True)
    assert (apic.isr, apic.irr, apic.pending_vector()) == (0, 0, -1)
    apic.set_irq(0x41)
    assert apic.offer(0x41)
    apic.set_irq(0x41)
    apic.settle(taken=True, ended=True)
    assert (apic.isr, apic.pending_vector()) == (0, 0x41)


def test_eois_that_must_be_seen(machine: Machine) -> None:
    apic = machine.apics[0]
    apic.set_irq(0x41)
    assert apic.offer(0x41) is apic.in_x2apic_mode
    apic.apic_base |= APIC_BASE_EXTD
    assert apic.offer(0x41)
    apic.set_irq(0x31)
    assert not apic.offer(0x41), "another waits for it"
    apic.settle(taken=True, ended=False)
    apic.set_irq(0x51)
    assert not apic.offer(0x51), "another is in service"
    apic.init()
    apic.msr_write(MSR_X2APIC_FIRST + (APIC_SPIV >> 4), 0x1FF)
    apic.set_irq(0x41, level=True)
    assert not apic.offer(0x41), "level-triggered"


def test_init_forgets_an_offer(machine: Machine) -> None:
    apic = machine.apics[0]
    apic.set_irq(0x41)
    apic.offer(0x41)
    apic.init()
    apic.settle(taken=True, ended=False)
    assert (apic.isr, apic.irr) == (0, 0)


def test_all_register_words(machine: Machine) -> None:
    apic = machine.apics[0]
    for word in range(8):
        apic.set_irq(word * 32 + 17, level=bool(word & 1))
    assert [read(apic, APIC_IRR + 0x10 * w) for w in range(8)] == [1 << 17] * 8
    assert [read(apic, APIC_TMR + 0x10 * w) for w in range(8)] == [0, 1 << 17] * 4
    for word in range(8):
        apic.acknowledge(word * 32 + 17)
    assert [read(apic, APIC_ISR + 0x10 * w) for w in range(8)] == [1 << 17] * 8


def test_level_interrupts_announce_their_eoi(machine: Machine) -> None:
    apic = machine.apics[0]
    for level in (True, False):
        apic.set_irq(0x60, level)
        apic.acknowledge(0x60)
        machine.taken()
        write(apic, APIC_EOI, 0)
        assert machine.taken() == ([("eoi", 0x60)] if level else [])


def test_software_disable(machine: Machine) -> None:
    apic = machine.apics[0]
    write(apic, APIC_LVTT, 0x40)
    apic.set_irq(0x50)
    write(apic, APIC_SPIV, 0xFF)
    assert apic.pending_vector() == -1
    assert read(apic, APIC_LVTT) == APIC_LVT_MASKED | 0x40
    write(apic, APIC_LVTT, 0x41)
    assert read(apic, APIC_LVTT) == APIC_LVT_MASKED | 0x41
    ipi(machine.apics[1], 0x55)
    apic.set_irq(0x51)
    machine.taken()
    write(apic, APIC_SPIV, SPIV_ON)
    assert apic.irr == 1 << 0x50 | 1 << 0x51, "an IPI does not reach a disabled APIC"
    assert machine.taken() == [("interrupt", 0), ("enable", 0)]
    assert apic.pending_vector() == 0x51


def test_illegal_vectors_are_errors(machine: Machine) -> None:
    apic = machine.apics[0]
    write(apic, APIC_LVTERR, 0xFE)
    apic.set_irq(0xF)
    assert (read(apic, APIC_ESR), apic.pending_vector()) == (0, 0xFE)
    write(apic, APIC_ESR, 0)
    assert read(apic, APIC_ESR) == 0x40
    ipi(apic, 0x0F, 2)
    write(apic, APIC_ESR, 0)
    assert read(apic, APIC_ESR) == 0x20
    write(apic, APIC_ESR, 0)
    assert read(apic, APIC_ESR) == 0
    write(apic, APIC_LVTERR, 0x0E)
    ipi(apic, 0x0F | APIC_DM_LOWEST, 2)
    write(apic, APIC_ESR, 0)
    assert read(apic, APIC_ESR) == 0x60
    assert apic.irr == 1 << 0xFE


def test_local_interrupt_lines(machine: Machine) -> None:
    apic = machine.apics[1]
    apic.raise_lvt(APIC_LVT1)
    write(apic, APIC_LVT1, APIC_DM_NMI)
    write(apic, APIC_LVTPC, 0x77)
    write(apic, APIC_LVT0, 0x700)
    for lvt in (APIC_LVT0, APIC_LVT1, APIC_LVTPC):
        apic.raise_lvt(lvt)
    assert machine.taken() == [("nmi", 1), ("interrupt", 1)]
    assert apic.irr == 1 << 0x77
