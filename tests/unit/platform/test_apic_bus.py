"""Interrupt messages between local APICs, in both modes, against the architecture.

Proves who gets an IPI, and what is told to whom. Cannot see what a vCPU then does with it.
"""

from __future__ import annotations

import pytest

from hvmlite.hypervisor.clock import Clock, TimerQueue
from hvmlite.platform import apicdef
from hvmlite.platform.apicdef import (
    APIC_BASE_EXTD,
    APIC_DEST_ALLBUT,
    APIC_DEST_ALLINC,
    APIC_DEST_MASK,
    APIC_DEST_SELF,
    APIC_DFR,
    APIC_DM_INIT,
    APIC_DM_LOWEST,
    APIC_DM_NMI,
    APIC_DM_STARTUP,
    APIC_ICR,
    APIC_ICR2,
    APIC_ID,
    APIC_INT_ASSERT,
    APIC_INT_LEVELTRIG,
    APIC_LDR,
    APIC_SELF_IPI,
    APIC_SPIV,
    APIC_TASKPRI,
    MSR_X2APIC_FIRST,
)
from hvmlite.platform.lapic import ApicBus, LocalApic

TSC_KHZ = 2_000_000


class Machine:
    """Some local APICs, and a record of what they told their vCPUs."""

    def __init__(self, vcpus: int = 2, x2apic: bool = False) -> None:
        self.log: list[tuple[object, ...]] = []
        timers = TimerQueue(Clock())
        self.bus = ApicBus(
            on_interrupt=lambda vcpu: self.log.append(("interrupt", vcpu)),
            on_nmi=lambda vcpu: self.log.append(("nmi", vcpu)),
            on_init=lambda vcpu: self.log.append(("init", vcpu)),
            on_sipi=lambda vcpu, vector: self.log.append(("sipi", vcpu, vector)),
            on_eoi=lambda vector: self.log.append(("eoi", vector)),
            on_software_enable=lambda vcpu: self.log.append(("enable", vcpu)),
        )
        self.apics = [LocalApic(n, self.bus, timers, TSC_KHZ, x2apic) for n in range(vcpus)]
        for apic in self.apics:
            write(apic, APIC_SPIV, 0x1FF)
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


def hit(machine: Machine, vector: int = 0x61) -> list[int]:
    return [a.vcpu_id for a in machine.apics if a.irr >> vector & 1]


@pytest.mark.parametrize("x2apic", [False, True])
@pytest.mark.parametrize(
    ("low", "destination", "targets"),
    [
        (0x61, 2, [1]),
        (0x61, 0, [0]),
        (0x61, 1, []),
        (0x61, 8, []),
        (0x61, None, [0, 1, 2, 3]),
        (0x61 | APIC_DEST_SELF, 2, [2]),
        (0x61 | APIC_DEST_ALLINC, 0, [0, 1, 2, 3]),
        (0x61 | APIC_DEST_ALLBUT, 0, [0, 1, 3]),
        (0x61 | APIC_DEST_ALLBUT | APIC_INT_ASSERT, 0, [0, 1, 3]),
    ],
)
def test_fixed_ipi(x2apic: bool, low: int, destination: int | None, targets: list[int]) -> None:
    machine = Machine(4, x2apic)
    if destination is None:
        destination = 0xFFFFFFFF if x2apic else 0xFF
    ipi(machine.apics[2], low, destination)
    assert hit(machine) == targets
    assert machine.taken() == [("interrupt", n) for n in targets]


@pytest.mark.parametrize(
    ("dfr", "ldrs", "destination", "targets"),
    [
        (0xFFFFFFFF, (1, 2, 4), 0x05, [0, 2]),
        (0xFFFFFFFF, (1, 2, 4), 0xFF, [0, 1, 2]),
        (0xFFFFFFFF, (1, 2, 4), 0x08, []),
        (0x0FFFFFFF, (0x11, 0x12, 0x21), 0x13, [0, 1]),
        (0x0FFFFFFF, (0x11, 0x12, 0x21), 0x21, [2]),
        (0x0FFFFFFF, (0x11, 0x12, 0x21), 0x3F, []),
        (0x5FFFFFFF, (1, 2, 4), 0xFF, []),
    ],
)
def test_logical_ipi_xapic(
    dfr: int, ldrs: tuple[int, ...], destination: int, targets: list[int]
) -> None:
    machine = Machine(3)
    for apic, ldr in zip(machine.apics, ldrs, strict=True):
        write(apic, APIC_DFR, dfr)
        write(apic, APIC_LDR, ldr << 24)
    ipi(machine.apics[0], 0x61 | APIC_DEST_MASK, destination)
    assert hit(machine) == targets


@pytest.mark.parametrize(
    ("destination", "targets"),
    [(0x1, [0]), (0x15, [0, 1, 2]), (0x10005, [8, 9]), (0x20001, []), (0xFFFF, list(range(8)))],
)
def test_logical_ipi_x2apic(destination: int, targets: list[int]) -> None:
    machine = Machine(10, x2apic=True)
    ipi(machine.apics[3], 0x61 | APIC_DEST_MASK, destination)
    assert hit(machine) == targets


def test_icr_reads_back(machine: Machine) -> None:
    apic = machine.apics[0]
    ipi(apic, 0x61 | APIC_INT_ASSERT, 0x12)
    if apic.in_x2apic_mode:
        assert apic.msr_read(x2(APIC_ICR)) == 0x12 << 32 | 0x4061
    else:
        apic.mmio_write(APIC_ICR, 0x1061)
        assert (apic.mmio_read(APIC_ICR), apic.mmio_read(APIC_ICR2)) == (0x61, 0x12 << 24)


def test_self_ipi_register(x2apic: LocalApic) -> None:
    x2apic.msr_write(x2(APIC_SELF_IPI), 0x88)
    assert x2apic.pending_vector() == 0x88


def test_mixed_modes_and_changed_id() -> None:
    machine = Machine(3)
    machine.apics[1].apic_base |= APIC_BASE_EXTD
    ipi(machine.apics[0], 0x61, 0xFF)
    assert hit(machine) == [0, 2], "0xff is no broadcast to an APIC in x2APIC mode"
    ipi(machine.apics[1], 0x62, 4)
    assert hit(machine, 0x62) == [2]
    machine.apics[2].mmio_write(APIC_ID, 0x99 << 24)
    ipi(machine.apics[1], 0x63, 4)
    ipi(machine.apics[1], 0x64, 0x99)
    assert (hit(machine, 0x63), hit(machine, 0x64)) == ([], [2])


def test_lowest_priority_takes_turns(machine: Machine) -> None:
    machine = Machine(3, machine.apics[0].in_x2apic_mode)
    write(machine.apics[1], APIC_TASKPRI, 0x20)
    order = []
    for vector in range(0x61, 0x65):
        ipi(machine.apics[0], vector | APIC_DM_LOWEST | APIC_DEST_ALLINC)
        order += hit(machine, vector)
    assert order == [0, 2, 0, 2]
    for apic in machine.apics:
        write(apic, APIC_SPIV, 0xFF)
    ipi(machine.apics[0], 0x70 | APIC_DM_LOWEST | APIC_DEST_ALLINC)
    assert hit(machine, 0x70) == []


def test_init_sipi_nmi(machine: Machine) -> None:
    bsp, ap = machine.apics
    write(ap, APIC_TASKPRI, 0x20)
    ap.set_irq(0x61)
    base, ldr = ap.apic_base, read(ap, APIC_LDR)
    machine.taken()
    ipi(bsp, APIC_DM_INIT | APIC_INT_LEVELTRIG | APIC_INT_ASSERT, 2)
    assert machine.taken() == [("init", 1)]
    assert (ap.irr, ap.pending_vector(), read(ap, APIC_TASKPRI)) == (0, -1, 0)
    assert (read(ap, APIC_SPIV), ap.apic_base, read(ap, APIC_LDR)) == (0xFF, base, ldr)
    ipi(bsp, APIC_DM_INIT | APIC_INT_LEVELTRIG, 2)
    assert machine.taken() == []
    ipi(bsp, APIC_DM_STARTUP | 0x9A, 2)
    ipi(bsp, APIC_DM_NMI | APIC_DEST_ALLBUT)
    ipi(bsp, APIC_DM_NMI | 0x05, 2)
    for ignored in (0x200, 0x300, 0x700):
        ipi(bsp, ignored, 2)
    assert machine.taken() == [("sipi", 1, 0x9A), ("nmi", 1), ("nmi", 1)]


def test_init_clears_ldr_in_xapic_mode_only() -> None:
    machine = Machine()
    write(machine.apics[1], APIC_LDR, 0x02000000)
    ipi(machine.apics[0], APIC_DM_INIT, 2)
    assert read(machine.apics[1], APIC_LDR) == 0


def test_messages_from_elsewhere(machine: Machine) -> None:
    machine.bus.send(2, False, apicdef.APIC_DM_FIXED, 0x61, level=True)
    machine.bus.send(0x99, False, apicdef.APIC_DM_FIXED, 0x62)
    machine.bus.send(0, False, APIC_DM_LOWEST, 0x63)
    machine.bus.send(0, False, APIC_DM_NMI, 0)
    assert (machine.apics[0].irr, machine.apics[1].irr) == (1 << 0x63, 1 << 0x61)
    assert machine.apics[1].tmr == 1 << 0x61
    assert ("nmi", 0) in machine.taken()
