"""Proves that a guest's clock parameters are right to the promised precision, do not drift, and are
written by the version protocol; and that run states add up.

The engine is a counter over a simulated clock, with delays and noise as a busy machine has them.
Cannot see how a real QEMU's TSC behaves; tests/system does.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvmlite.abi.layout import Abi
from hvmlite.abi.vcpu import (
    RUNSTATE_blocked,
    RUNSTATE_offline,
    RUNSTATE_runnable,
    RUNSTATE_running,
)
from hvmlite.abi.xen import vcpu_time_info
from hvmlite.hypervisor.clock import Clock
from hvmlite.hypervisor.memory import Page
from hvmlite.hypervisor.timekeeping import TIME_OFFSET, Runstate, TscCalibration, scale, write_time

SECOND = 1_000_000_000


class SimulatedClock(Clock):
    """Moves by `step` with every look at it."""

    def __init__(self, step: int = 50) -> None:
        super().__init__()
        self.time = 5 * SECOND
        self.step = step

    def now(self) -> int:
        self.time += self.step
        return self.time


class Counter:
    """An engine whose TSC counts at `hz`; a read takes `delay()` ns, before and after the look."""

    def __init__(self, clock: SimulatedClock, hz: int, delay: Callable[[], int]) -> None:
        self.clock = clock
        self.hz = hz
        self.delay = delay
        self.start = 123_456_789
        self.reads = 0

    def at(self, time: int) -> int:
        return self.start + time * self.hz // SECOND

    def read_tsc(self) -> int:
        self.reads += 1
        self.clock.time += self.delay()
        value = self.at(self.clock.time)
        self.clock.time += self.delay()
        return value


def calibrated(hz: int, delay: Callable[[], int]) -> tuple[TscCalibration, Any]:
    clock = SimulatedClock()
    counter: Any = Counter(clock, hz, delay)
    calibration = TscCalibration(clock)
    calibration.begin(counter)
    calibration.sync(counter)
    return calibration, counter


def guest_ns(calibration: TscCalibration, tsc: int) -> int:
    """What the guest computes, as in public/xen.h."""
    ticks = tsc - calibration.tsc
    shift = calibration.shift
    ticks = ticks << shift if shift >= 0 else ticks >> -shift
    return calibration.system_time + (ticks * calibration.mul >> 32)


# --- scale -----------------------------------------------------------------------------------


@given(st.integers(1, 1 << 45), st.integers(1, 1 << 50))
@settings(max_examples=300)
def test_scale_is_exact_to_31_bits(ns: int, ticks: int) -> None:
    mul, shift = scale(ns, ticks)
    assert 1 << 31 <= mul < 1 << 32
    shifted = ticks << shift if shift >= 0 else ticks / (1 << -shift)
    assert abs(shifted * mul / (1 << 32) - ns) <= ns / (1 << 30) + 1


@pytest.mark.parametrize(
    ("hz", "mul", "shift"),
    [
        (1_000_000_000, 1 << 31, 1),
        (2_000_000_000, 1 << 31, 0),
        (4_000_000_000, 1 << 31, -1),
        (500_000_000, 1 << 31, 2),
    ],
)
def test_scale_of_round_frequencies(hz: int, mul: int, shift: int) -> None:
    assert scale(SECOND, hz) == (mul, shift)


# --- calibration -----------------------------------------------------------------------------


@pytest.mark.parametrize("hz", [800_000_000, 1_000_000_000, 2_899_999_977, 5_300_000_000])
def test_a_quiet_machine(hz: int) -> None:
    calibration, counter = calibrated(hz, lambda: 200)
    assert abs(calibration.khz - hz / 1000) / (hz / 1000) < 1 / 2000
    assert counter.clock.time < 5 * SECOND + 20_000_000, "a guest waits for this"
    for later in (0, 1_000_000, SECOND):
        time = counter.clock.time + later
        error = guest_ns(calibration, counter.at(time)) - time
        assert abs(error) <= 500 + later / 2000


@given(st.integers(0, 1 << 32), st.sampled_from((1_000_000_000, 2_700_000_123)))
@settings(max_examples=30, deadline=None)
def test_a_noisy_machine(seed: int, hz: int) -> None:
    """Now and then a read takes milliseconds."""
    source = random.Random(seed)

    def delay() -> int:
        return source.choice((300, 700, 2_000, 5_000, 60_000, 3_000_000))

    calibration, counter = calibrated(hz, delay)
    assert abs(calibration.khz - hz / 1000) / (hz / 1000) < 1 / 500
    assert counter.clock.time < 5 * SECOND + 2 * SECOND
    # The more time has gone by, the better it gets.
    for _ in range(12):
        counter.clock.time = max(counter.clock.time, calibration.next_sync)
        calibration.sync(counter)
    time = counter.clock.time + SECOND
    assert abs(guest_ns(calibration, counter.at(time)) - time) < 3_000_000


def test_the_tightest_of_a_few_samples_counts() -> None:
    clock = SimulatedClock(step=0)
    delays = iter([9_000, 9_000, 100, 100, 8_000, 8_000, 7_000, 7_000])
    counter: Any = Counter(clock, 1_000_000_000, lambda: next(delays))
    calibration = TscCalibration(clock)
    calibration.begin(counter)
    assert counter.reads == 4
    # Read by the second, at which the clock stood 100 ns behind its look before it.
    assert calibration._first == (counter.start + 5 * SECOND + 18_100, 5 * SECOND + 18_100, 200)


def test_nothing_drifts() -> None:
    """Hours later the guest's clock is where ours is, though each measure is a little wrong."""
    calibration, counter = calibrated(2_345_678_901, lambda: 400)
    source = random.Random(1)
    counter.delay = lambda: source.choice((200, 900, 4000))
    worst = 0
    while counter.clock.time < 4000 * SECOND:
        due = calibration.next_sync
        worst = max(worst, abs(guest_ns(calibration, counter.at(due)) - due))
        counter.clock.time = max(counter.clock.time, due)
        calibration.sync(counter)
    assert worst < 100_000
    assert calibration.generation > 1000


def test_the_nominal_frequency_stays() -> None:
    calibration, counter = calibrated(2_000_000_000, lambda: 3000)
    khz = calibration.khz
    for _ in range(5):
        counter.clock.time = calibration.next_sync
        counter.start += 1000
        calibration.sync(counter)
    assert calibration.khz == khz


def test_syncs_get_rarer() -> None:
    calibration, counter = calibrated(2_000_000_000, lambda: 100)
    gaps = []
    for _ in range(12):
        gaps.append(calibration.next_sync - calibration.system_time)
        counter.clock.time = calibration.next_sync
        calibration.sync(counter)
    assert gaps[0] == 20_000_000
    assert gaps == sorted(gaps)
    assert gaps[-1] == 2 * SECOND


def test_a_sync_without_a_beginning() -> None:
    clock = SimulatedClock()
    counter: Any = Counter(clock, 2_000_000_000, lambda: 100)
    calibration = TscCalibration(clock)
    calibration.sync(counter)
    assert abs(calibration.khz - 2_000_000) < 2_000_000 / 1000


def test_the_number_of_reads_is_bounded() -> None:
    """However busy the machine is: the wait for a good base line has an end."""
    calibration, counter = calibrated(1_000_000_000, lambda: 10_000_000)
    assert counter.reads <= 100
    assert calibration.mul


@given(st.integers(600_000_000, 6_000_000_000), st.integers(0, 10 * SECOND))
@settings(max_examples=60, deadline=None)
def test_there_and_back(hz: int, later: int) -> None:
    calibration, _ = calibrated(hz, lambda: 300)
    time = calibration.system_time + later
    tsc = calibration.tsc_at(time)
    assert abs(calibration.ns_at(tsc) - time) <= 4
    assert calibration.ns_at(tsc) == guest_ns(calibration, tsc)
    before = calibration.tsc - 1000
    assert calibration.system_time - 2000 < calibration.ns_at(before) < calibration.system_time


# --- the guest's record ----------------------------------------------------------------------


@pytest.mark.parametrize("abi", Abi)
def test_the_record_is_written_by_the_version_protocol(
    guests: Callable[..., Any], abi: Abi
) -> None:
    calibration, _ = calibrated(2_000_000_000, lambda: 300)
    machine = guests().host.machine
    frame = machine.allocate(1)
    page = Page(machine, frame)
    offset = 64 + TIME_OFFSET[abi]
    versions = []

    class Watched:
        """Notes the version before every store."""

        u32 = page.u32

        def exchange32(self, index: int, value: int) -> int:
            versions.append(value)
            return page.exchange32(index, value)

        def write(self, at: int, data: bytes) -> None:
            assert page.u32[offset // 4] & 1, "the version is odd while the record changes"
            assert at >= offset + 4, "only the protocol touches the version"
            page.write(at, data)

    watched: Any = Watched()
    for first, last in ((1, 2), (3, 4), (5, 6)):
        write_time(watched, offset, calibration)
        assert versions == [first, last]
        versions.clear()
    record = vcpu_time_info.unpack(page.read(offset, vcpu_time_info.sizeof()))
    assert record.version == 6
    assert (record.tsc_timestamp, record.system_time) == (calibration.tsc, calibration.system_time)
    assert (record.tsc_to_system_mul, record.tsc_shift) == (calibration.mul, calibration.shift)
    page.u32[offset // 4] = 0xFFFF_FFFE
    write_time(watched, offset, calibration)
    assert versions == [0xFFFF_FFFF, 0]
    machine.release(frame)


# --- run states ------------------------------------------------------------------------------


def test_run_states_add_up() -> None:
    runstate = Runstate(1000)
    assert runstate.snapshot(1500) == (RUNSTATE_offline, 1000, [0, 0, 0, 500])
    runstate.change(RUNSTATE_running, 2000)
    runstate.change(RUNSTATE_blocked, 2600)
    runstate.change(RUNSTATE_runnable, 3000)
    runstate.change(RUNSTATE_running, 3001)
    assert runstate.snapshot(3011) == (RUNSTATE_running, 3001, [610, 1, 400, 1000])
    # A look changes nothing.
    assert runstate.snapshot(3012)[2] == [611, 1, 400, 1000]


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1000)), max_size=30))
@settings(max_examples=50)
def test_no_time_is_lost(steps: list[tuple[int, int]]) -> None:
    runstate, now = Runstate(77), 77
    for state, passed in steps:
        now += passed
        runstate.change(state, now)
        assert sum(runstate.snapshot(now + 5)[2]) == now + 5 - 77
