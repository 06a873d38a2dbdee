"""The local APIC's timer in its three modes, through the registers that a guest uses.

Proves counts, expiries and what changes them, under a clock that stands still until it is moved.
Cannot see real time, nor how late a host delivers.
"""

from __future__ import annotations

import pytest

from hvmlite.hypervisor.clock import NEVER, Clock, TimerQueue
from hvmlite.platform.apicdef import (
    APIC_ESR,
    APIC_LVT_MASKED,
    APIC_LVTT,
    APIC_SPIV,
    APIC_TDCR,
    APIC_TMCCT,
    APIC_TMICT,
    MSR_TSC_DEADLINE,
    MSR_X2APIC_FIRST,
)
from hvmlite.platform.lapic import ApicBus, LocalApic
from hvmlite.platform.lapic_timer import APIC_BUS_CYCLE_NS

TSC_KHZ = 2_000_000
PERIODIC = 1 << 17
TSC_DEADLINE = 2 << 17


class FakeClock(Clock):
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        super().__init__()
        self.time = 1_000_000

    def now(self) -> int:
        return self.time


class Machine:
    """Two local APICs on a clock that a test moves."""

    def __init__(self, vcpus: int = 2, x2apic: bool = False) -> None:
        self.clock = FakeClock()
        self.timers = TimerQueue(self.clock)

        def ignore(*_: int) -> None:
            pass

        self.bus = ApicBus(ignore, ignore, ignore, ignore)
        self.apics = [
            LocalApic(n, self.bus, self.timers, TSC_KHZ, x2apic, tsc_to_ns=lambda tsc: tsc // 2)
            for n in range(vcpus)
        ]
        for apic in self.apics:
            write(apic, APIC_SPIV, 0x1FF)

    def armed(self) -> int | None:
        """How far away the next deadline is, in nanoseconds."""
        return self.timers.next - self.clock.time if self.timers.next != NEVER else None

    def advance(self, ns: int) -> None:
        end = self.clock.time + ns
        while self.timers.next <= end:
            self.clock.time = max(self.clock.time, self.timers.next)
            self.timers.run(self.clock.time)
        self.clock.time = end


def x2(offset: int) -> int:
    return MSR_X2APIC_FIRST + (offset >> 4)


def write(apic: LocalApic, offset: int, value: int) -> None:
    if apic.in_x2apic_mode:
        apic.msr_write(x2(offset), value)
    else:
        apic.mmio_write(offset, value)


def read(apic: LocalApic, offset: int) -> int:
    return apic.msr_read(x2(offset)) if apic.in_x2apic_mode else apic.mmio_read(offset)


@pytest.fixture(params=[False, True], ids=["xapic", "x2apic"])
def machine(request: pytest.FixtureRequest) -> Machine:
    return Machine(x2apic=request.param)


def fired(machine: Machine, vector: int = 0x40) -> bool:
    apic = machine.apics[0]
    if apic.pending_vector() != vector:
        return False
    apic.acknowledge(vector)
    apic.eoi()
    return True


@pytest.mark.parametrize(
    ("config", "divisor"),
    [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (10, 128), (11, 1)],
)
def test_one_shot(machine: Machine, config: int, divisor: int) -> None:
    apic = machine.apics[0]
    tick = APIC_BUS_CYCLE_NS * divisor
    write(apic, APIC_LVTT, 0x40)
    write(apic, APIC_TDCR, config)
    write(apic, APIC_TMICT, 1000)
    assert (read(apic, APIC_TMICT), read(apic, APIC_TMCCT)) == (1000, 1000)
    machine.advance(400 * tick)
    assert read(apic, APIC_TMCCT) == 600
    machine.advance(600 * tick - 1)
    assert not fired(machine)
    machine.advance(1)
    assert fired(machine)
    assert (read(apic, APIC_TMICT), read(apic, APIC_TMCCT), machine.armed()) == (1000, 0, None)


def test_writing_zero_stops_and_writing_again_restarts(machine: Machine) -> None:
    apic = machine.apics[0]
    write(apic, APIC_LVTT, 0x40)
    write(apic, APIC_TMICT, 1000)
    machine.advance(10_000)
    write(apic, APIC_TMICT, 1000)
    machine.advance(19_999)
    assert not fired(machine)
    write(apic, APIC_TMICT, 0)
    machine.advance(10**9)
    assert (fired(machine), machine.armed()) == (False, None)


def test_periodic(machine: Machine) -> None:
    apic = machine.apics[0]
    write(apic, APIC_TDCR, 0xB)
    write(apic, APIC_LVTT, 0x40 | PERIODIC)
    write(apic, APIC_TMICT, 100_000)
    for _ in range(3):
        machine.advance(10**6)
        assert fired(machine)
        assert machine.armed() == 10**6
    machine.advance(250_000)
    assert read(apic, APIC_TMCCT) == 75_000
    machine.clock.time += 10**9
    machine.advance(0)
    assert fired(machine), "a host that was late delivers one interrupt, not a thousand"
    assert machine.armed() == 750_000


def test_masked_timer_counts_but_does_not_interrupt(machine: Machine) -> None:
    apic = machine.apics[0]
    write(apic, APIC_LVTT, APIC_LVT_MASKED | 0x40)
    write(apic, APIC_TMICT, 1000)
    machine.advance(10_000)
    assert read(apic, APIC_TMCCT) == 500
    machine.advance(10_000)
    write(apic, APIC_LVTT, 0x40)
    assert not fired(machine)


def test_fast_periodic_timer_is_slowed_in_phase(machine: Machine) -> None:
    apic = machine.apics[0]
    write(apic, APIC_TDCR, 0xB)
    write(apic, APIC_LVTT, 0x40 | PERIODIC)
    write(apic, APIC_TMICT, 300)
    assert machine.armed() == 102_000
    machine.advance(3100)
    assert read(apic, APIC_TMCCT) == 290
    write(apic, APIC_TMICT, 1)
    assert machine.armed() == 100_000


def test_divider_change_keeps_the_count(machine: Machine) -> None:
    apic = machine.apics[0]
    write(apic, APIC_LVTT, 0x40)
    write(apic, APIC_TMICT, 1000)
    machine.advance(5_000)
    write(apic, APIC_TDCR, 0xB)
    assert read(apic, APIC_TMCCT) == 750
    machine.advance(7_499)
    assert not fired(machine)
    machine.advance(1)
    assert fired(machine)


@pytest.mark.parametrize(("first", "second"), [(0, PERIODIC), (PERIODIC, 0)])
def test_mode_change_keeps_the_count(machine: Machine, first: int, second: int) -> None:
    apic = machine.apics[0]
    write(apic, APIC_LVTT, 0x40 | first)
    write(apic, APIC_TMICT, 10_000)
    machine.advance(250_000 if first else 50_000)
    assert fired(machine) == bool(first)
    write(apic, APIC_LVTT, 0x40 | second)
    assert read(apic, APIC_TMCCT) == 7_500
    machine.advance(150_000)
    assert fired(machine)
    assert (machine.armed() is not None) == bool(second)


def test_due_expiry_comes_before_a_write(machine: Machine) -> None:
    apic = machine.apics[0]
    write(apic, APIC_LVTT, 0x40)
    write(apic, APIC_TMICT, 1000)
    machine.clock.time += 30_000
    assert read(apic, APIC_TMCCT) == 0
    write(apic, APIC_LVTT, 0x41 | PERIODIC)
    assert fired(machine, 0x40)
    assert (read(apic, APIC_TMCCT), machine.armed()) == (0, None)


def test_tsc_deadline(machine: Machine) -> None:
    apic = machine.apics[0]
    apic.msr_write(MSR_TSC_DEADLINE, 10**9)
    assert (apic.msr_read(MSR_TSC_DEADLINE), machine.armed()) == (0, None), "not in that mode"
    write(apic, APIC_LVTT, 0x40 | TSC_DEADLINE)
    write(apic, APIC_TMICT, 1000)
    assert (read(apic, APIC_TMICT), read(apic, APIC_TMCCT), machine.armed()) == (0, 0, None)
    tsc = 2 * machine.clock.time
    apic.msr_write(MSR_TSC_DEADLINE, tsc + 2000)
    assert apic.msr_read(MSR_TSC_DEADLINE) == tsc + 2000
    assert machine.armed() == 1000
    machine.advance(1000)
    assert fired(machine)
    assert apic.msr_read(MSR_TSC_DEADLINE) == 0
    apic.msr_write(MSR_TSC_DEADLINE, tsc)
    assert fired(machine), "a deadline in the past expires at once"
    apic.msr_write(MSR_TSC_DEADLINE, 2**64 - 1)
    apic.msr_write(MSR_TSC_DEADLINE, 0)
    assert machine.armed() is None
    apic.msr_write(MSR_TSC_DEADLINE, tsc + 10**6)
    write(apic, APIC_LVTT, 0x40)
    assert (apic.msr_read(MSR_TSC_DEADLINE), machine.armed()) == (0, None)


def test_default_tsc_conversion() -> None:
    machine = Machine(0)
    apic = LocalApic(0, machine.bus, machine.timers, TSC_KHZ, x2apic=True)
    apic.msr_write(x2(APIC_LVTT), 0x40 | TSC_DEADLINE)
    apic.msr_write(MSR_TSC_DEADLINE, 4_000_000)
    assert machine.armed() == 1_000_000


def test_reserved_timer_mode_stops(machine: Machine) -> None:
    apic = machine.apics[0]
    write(apic, APIC_LVTT, 0x40)
    write(apic, APIC_TMICT, 1000)
    write(apic, APIC_LVTT, 0x40 | 3 << 17)
    assert (read(apic, APIC_TMICT), read(apic, APIC_TMCCT), machine.armed()) == (0, 0, None)


def test_timer_with_illegal_vector(machine: Machine) -> None:
    apic = machine.apics[0]
    write(apic, APIC_LVTT, 0x05)
    write(apic, APIC_TMICT, 10)
    machine.advance(1000)
    write(apic, APIC_ESR, 0)
    assert (read(apic, APIC_ESR), apic.irr) == (0x40, 0)


def test_init_stops_the_timer(machine: Machine) -> None:
    apic = machine.apics[0]
    write(apic, APIC_LVTT, 0x40 | PERIODIC)
    write(apic, APIC_TMICT, 10_000)
    apic.init()
    machine.advance(10**9)
    assert (machine.armed(), apic.irr) == (None, 0)
