"""Save and load of a local APIC, and a guest or a file that does its worst.

Proves that a loaded APIC goes on where the saved one was and that no access and no saved state
leads to one that cannot be. Cannot see the format in which a state is stored.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvmlite.errors import UserError
from hvmlite.hypervisor.clock import NEVER, Clock, TimerQueue
from hvmlite.hypervisor.fault import GeneralProtection
from hvmlite.platform import apicdef
from hvmlite.platform.apicdef import (
    APIC_BASE_ENABLE,
    APIC_BASE_EXTD,
    APIC_DEFAULT_PHYS_BASE,
    APIC_LVTERR,
    APIC_LVTT,
    APIC_SPIV,
    APIC_TASKPRI,
    APIC_TDCR,
    APIC_TMCCT,
    APIC_TMICT,
    MSR_APIC_BASE,
    MSR_TSC_DEADLINE,
    MSR_X2APIC_FIRST,
)
from hvmlite.platform.lapic import ApicBus, LapicState, LocalApic
from hvmlite.platform.lapic_timer import STOPPED

TSC_KHZ = 2_000_000
PERIODIC = 1 << 17
TSC_DEADLINE = 2 << 17
SPIV_ON = 0x1FF
X2APIC = APIC_BASE_ENABLE | APIC_BASE_EXTD


class FakeClock(Clock):
    """A clock that stands still until a test moves it."""

    def __init__(self) -> None:
        super().__init__()
        self.time = 1_000_000

    def now(self) -> int:
        return self.time


class Machine:
    """Some local APICs, and a record of what they told their vCPUs."""

    def __init__(self, vcpus: int = 2, x2apic: bool = False) -> None:
        def ignore(*_: int) -> None:
            pass

        self.log: list[int] = []
        self.clock = FakeClock()
        self.timers = TimerQueue(self.clock)
        self.bus = ApicBus(self.log.append, ignore, ignore, ignore)
        self.apics = [
            LocalApic(n, self.bus, self.timers, TSC_KHZ, x2apic, tsc_to_ns=lambda tsc: tsc // 2)
            for n in range(vcpus)
        ]
        for apic in self.apics:
            write(apic, APIC_SPIV, SPIV_ON)
        self.log.clear()

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


def test_save_and_load(machine: Machine) -> None:
    apic = machine.apics[1]
    for offset, value in (
        (APIC_TASKPRI, 0x20),
        (APIC_LVTT, 0x40 | PERIODIC),
        (APIC_TDCR, 3),
        (APIC_TMICT, 50_000),
        (APIC_LVTERR, 0xFE),
    ):
        write(apic, offset, value)
    apic.set_irq(0x31)
    apic.acknowledge(0x31)
    apic.set_irq(0x61, level=True)
    apic.set_irq(0x25)
    machine.advance(1_600_000)
    state = apic.save()
    other = Machine(x2apic=apic.in_x2apic_mode)
    other.clock.time = 77
    other.apics[1].load(state)
    assert other.apics[1].save() == state
    assert other.apics[1].pending_vector() == 0x61
    assert other.log == [1]
    assert read(other.apics[1], APIC_TMCCT) == read(apic, APIC_TMCCT) == 40_000
    assert other.armed() == 8_000_000 - 1_600_000


def test_save_and_load_deadline(machine: Machine) -> None:
    apic = machine.apics[0]
    write(apic, APIC_LVTT, 0x40 | TSC_DEADLINE)
    apic.msr_write(MSR_TSC_DEADLINE, 10**9)
    machine.apics[1].load(replace(apic.save(), apic_base=machine.apics[1].apic_base))
    assert machine.armed() == 10**9 // 2 - machine.clock.time


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"apic_base": APIC_DEFAULT_PHYS_BASE | APIC_BASE_EXTD}, "no such mode"),
        ({"regs": (0,)}, "expected 64 registers, got 1"),
    ],
)
def test_load_refuses(change: dict[str, Any], message: str) -> None:
    apic = Machine().apics[0]
    with pytest.raises(UserError, match=message):
        apic.load(replace(apic.save(), **change))


WORD = st.integers(0, 2**64 - 1)
STATES = st.builds(
    LapicState,
    apic_base=st.sampled_from([0, APIC_BASE_ENABLE, X2APIC, X2APIC | 0xABC | 1 << 60]),
    regs=st.lists(WORD, min_size=64, max_size=64).map(tuple),
    isr=st.integers(0, 2**256 - 1),
    tmr=st.integers(0, 2**256 - 1),
    irr=st.integers(0, 2**260),
    pending_esr=WORD,
    tsc_deadline=WORD,
    timer_elapsed_ns=st.integers(-5, 2**64),
)


@given(STATES)
@settings(max_examples=60, deadline=None)
def test_load_of_anything_is_a_state(state: LapicState) -> None:
    machine = Machine()
    apic = machine.apics[0]
    apic.load(state)
    assert apic.pending_vector() == -1 or apic.enabled
    assert (apic.irr | apic.isr | apic.tmr) >> 256 == 0
    machine.advance(10**6)
    saved = apic.save()
    assert all(reg < 2**32 for reg in saved.regs)
    assert saved.timer_elapsed_ns >= STOPPED
    apic.load(saved)
    assert apic.save() == saved


ACCESS = st.tuples(
    st.sampled_from(["mmio", "msr", "read", "irq", "ack", "advance"]),
    st.one_of(
        st.integers(0, 0xFFF),
        st.sampled_from([v for k, v in vars(apicdef).items() if k.startswith("APIC_TM")]),
        st.sampled_from([0x300, 0x320, 0x380, 0xF0, 0x80, 0xB0, 0x370]),
    ),
    st.one_of(WORD, st.integers(0, 0x4FF), st.sampled_from([1 << 17, 2 << 17, SPIV_ON])),
    st.sampled_from([1, 2, 4, 8]),
)


@given(st.lists(ACCESS, max_size=40), st.booleans())
@settings(max_examples=80, deadline=None)
def test_no_guest_access_breaks_it(accesses: list[tuple[str, int, int, int]], x2: bool) -> None:
    machine = Machine(3, x2)
    apic = machine.apics[0]
    for kind, where, value, size in accesses:
        try:
            if kind == "mmio":
                apic.mmio_write(where, value, size)
            elif kind == "read":
                assert 0 <= apic.mmio_read(where, size) < 1 << 8 * size
            elif kind == "msr":
                index = [MSR_APIC_BASE, MSR_TSC_DEADLINE][where & 1] if size == 1 else where >> 4
                apic.msr_write(index if size == 1 else MSR_X2APIC_FIRST + index, value)
                assert apic.msr_read(MSR_APIC_BASE) >= 0
            elif kind == "irq":
                apic.set_irq(value & 0xFF, bool(where & 1))
            elif kind == "ack" and apic.pending_vector() >= 0:
                apic.acknowledge(apic.pending_vector())
            elif kind == "advance":
                machine.advance(value & 0xFFFFF)
        except GeneralProtection:
            pass
        irr, pending = apic.irr, apic.pending_vector()
        expected = irr.bit_length() - 1 if irr and apic.enabled else -1
        assert pending == (expected if expected >> 4 > apic.ppr() >> 4 else -1)
