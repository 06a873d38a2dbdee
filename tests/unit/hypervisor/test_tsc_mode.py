"""tsc_mode above the engine: who gives the TSC, what leaf 3 says of it, what clock the guest sees.

Proves that an emulated TSC and the guest's record of it are one clock without drift or steps back.
Cannot see whether an engine lets a read of the TSC exit; tests/system does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvmlite.engine import base as b
from hvmlite.hypervisor.control import Control
from hvmlite.hypervisor.cpuid import xen_leaf
from hvmlite.hypervisor.timekeeping import EmulatedTsc, TscCalibration, TscMode

from .fakes import Rig
from .test_timekeeping import SECOND, Counter, SimulatedClock, guest_ns

KHZ = 3_000_000
"""That of the fake engine."""


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig(2, stopped_clock=False)
    yield made
    made.close()


def set_mode(rig: Rig, mode: TscMode) -> list[str]:
    """Sets the mode; returns what was asked of the engine."""
    asked: list[str] = []
    partition: Any = rig.partition
    partition.intercept_tsc = lambda: asked.append("intercept_tsc")
    Control(rig.host).set_tsc_mode(rig.domain, mode)
    rig.domain.calibration.begin(rig.engine())
    rig.domain.resync_time(rig.domain.vcpus[0])
    return asked


def answers(rig: Rig, exit_: b.Exit) -> list[int]:
    """What the engine is told to put into the guest's registers."""
    rig.start(0)
    engine: Any = rig.engine()
    got: list[int] = []
    engine.complete_tsc = engine.complete_rdmsr = got.append
    rig.serve(exit_)
    return got


@pytest.mark.parametrize("mode", TscMode)
def test_leaf_3(rig: Rig, mode: TscMode) -> None:
    emulated = mode is TscMode.ALWAYS_EMULATE
    assert set_mode(rig, mode) == (["intercept_tsc"] if emulated else [])
    vcpu, calibration = rig.domain.vcpus[1], rig.domain.calibration
    assert xen_leaf(vcpu, 0x40000003, 0) == (6 | emulated, mode, calibration.khz, 1)
    scale = (0, 0, calibration.mul, calibration.shift & 0xFFFF_FFFF)
    assert xen_leaf(vcpu, 0x40000003, 1) == scale
    assert xen_leaf(vcpu, 0x40000003, 2) == (calibration.khz, 0, 0, 0)
    assert xen_leaf(vcpu, 0x40000003, 3) == (0, 0, 0, 0)
    assert abs(calibration.khz - KHZ) < KHZ // 100


@pytest.mark.parametrize("exit_", [b.Tsc(), b.Msr(0x10)], ids=["rdtsc", "rdmsr"])
def test_emulated(rig: Rig, exit_: b.Exit) -> None:
    set_mode(rig, TscMode.ALWAYS_EMULATE)
    calibration, now = rig.domain.calibration, rig.domain.clock.now
    before = calibration.tsc_at(now())
    (value,) = answers(rig, exit_)
    assert before < value < calibration.tsc_at(now())
    # It began with the domain.
    assert value < 60 * KHZ * 1000


def test_msr_of_the_cpu(rig: Rig) -> None:
    set_mode(rig, TscMode.DEFAULT)
    engine: Any = rig.engine()
    engine.read_tsc = lambda: 0x1234_5678_9ABC
    assert answers(rig, b.Msr(0x10))[-1] == 0x1234_5678_9ABC


def emulated(hz: int) -> tuple[EmulatedTsc, SimulatedClock, Any]:
    clock = SimulatedClock(step=1)
    counter: Any = Counter(clock, hz, lambda: 200)
    calibration = EmulatedTsc(clock)
    calibration.begin(counter)
    calibration.sync(counter)
    return calibration, clock, counter


@given(
    st.sampled_from((800_000_000, 1_000_000_000, 2_600_000_123, 5_300_000_000)),
    st.lists(st.one_of(st.integers(0, 100), st.integers(0, 100 * SECOND)), max_size=40),
)
@settings(max_examples=100, deadline=None)
def test_one_clock(hz: int, steps: list[int]) -> None:
    calibration, clock, counter = emulated(hz)
    reads = counter.reads
    last_ns = last_tsc = 0
    for i, step in enumerate(steps):
        clock.time += step
        tsc = calibration.read(counter)
        assert tsc >= last_tsc
        seen = guest_ns(calibration, tsc)
        # A tick may be longer than a nanosecond.
        assert clock.time - 3 <= seen <= clock.time + 1
        assert seen >= last_ns - 1
        last_ns, last_tsc = seen, tsc
        if i % 3 == 0:
            calibration.sync(counter)
    assert counter.reads == reads, "the CPU's own TSC is of no interest any more"


def test_the_rate_is_nominal_and_stays() -> None:
    calibration, clock, counter = emulated(2_600_000_123)
    parameters = calibration.mul, calibration.shift, calibration.khz
    first, start = calibration.read(counter), clock.time
    for _ in range(100):
        clock.time += 36 * SECOND
        calibration.sync(counter)
    assert (calibration.mul, calibration.shift, calibration.khz) == parameters
    ticks = (calibration.read(counter) - first) * 1_000_000 / (clock.time - start)
    assert abs(ticks - calibration.khz) < calibration.khz / 1e9 + 1e-3


def test_what_leaves_the_parameters_alone_by_default() -> None:
    assert not TscCalibration(SimulatedClock()).emulated
    assert EmulatedTsc(SimulatedClock()).emulated
