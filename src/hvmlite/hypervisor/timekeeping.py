"""Guest time: the TSC calibration, vcpu_time_info, runstate and the wall clock.

The guest reads time as TSC ticks scaled by parameters that we keep true to the host's monotonic
clock: a fresh pair (TSC, clock) now and then, as Xen's own calibration does, so that nothing
drifts.  Facts: public/xen.h (vcpu_time_info, shared_info), public/vcpu.h (runstate).
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

from hvmlite.abi.layout import Abi
from hvmlite.abi.vcpu import RUNSTATE_offline
from hvmlite.abi.xen import vcpu_info, vcpu_time_info

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hvmlite.engine.base import EngineVcpu
    from hvmlite.hypervisor.clock import Clock
    from hvmlite.hypervisor.memory import Page


class TscMode(IntEnum):
    """XEN_CPUID_TSC_MODE_*: what decides whether the guest's TSC is the CPU's."""

    DEFAULT = 0
    ALWAYS_EMULATE = 1
    NEVER_EMULATE = 2


_SAMPLES = 3
_MOST_SAMPLES = 30
_TIGHT = 4_000
"""Nanoseconds within which a sample should be taken."""
_PRECISION = 2000
"""The first parameters are right to one part in this."""
_LONGEST_BASELINE = 15_000_000
_FIRST_RESYNC = 20_000_000
_LAST_RESYNC = 2_000_000_000

TIME_OFFSET = {abi: vcpu_info.offsetof("time", abi) for abi in Abi}
"""Byte offset of vcpu_time_info in vcpu_info."""
_VERSION = vcpu_time_info.offsetof("version") // 4


class TscCalibration:
    """What the guest's TSC shows against the clock.

    `khz` is the nominal frequency, fixed once the guest may have seen it; `mul` and `shift` follow
    the measurement: ns = ((ticks << shift) * mul) >> 32.
    """

    emulated = False

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._first: tuple[int, int, int] | None = None
        self.tsc = 0
        self.system_time = 0
        self.mul = 0
        self.shift = 0
        self.khz = 0
        self.generation = 0
        self.next_sync = 0
        self._interval = _FIRST_RESYNC

    def _sample(self, engine: EngineVcpu) -> tuple[int, int, int]:
        """A TSC value, the time at which it was read, and by how much (ns) that may be wrong.

        The tightest of a few tries; more of them while the machine is too busy for a tight one.
        """
        best: tuple[int, int, int] | None = None
        now = self._clock.now
        for attempt in range(_MOST_SAMPLES):
            before = now()
            tsc = engine.read_tsc()
            after = now()
            if best is None or after - before < best[2]:
                best = tsc, (before + after) >> 1, after - before
            if attempt >= _SAMPLES and best[2] <= _TIGHT:
                break
        assert best is not None
        return best

    def begin(self, engine: EngineVcpu) -> None:
        """Takes the first pair: as early as possible, the base line grows from here."""
        self._first = self._sample(engine)

    def sync(self, engine: EngineVcpu) -> None:
        """Takes a new pair and derives the parameters; the vCPU must be stopped."""
        if self._first is None:
            self.begin(engine)
        first = self._first
        assert first is not None
        tsc, now, error = self._sample(engine)
        # Rather start later than give the guest a clock that is visibly wrong.
        while now - first[1] < min((error + first[2]) // 2 * _PRECISION, _LONGEST_BASELINE):
            tsc, now, error = self._sample(engine)
        elapsed, ticks = now - first[1], tsc - first[0]
        self.mul, self.shift = scale(elapsed, ticks)
        if not self.khz:
            self.khz = round(ticks * 1_000_000 / elapsed)
        self._renew(tsc, now)

    def _renew(self, tsc: int, now: int) -> None:
        self.tsc, self.system_time = tsc, now
        self.generation += 1
        self.next_sync = now + self._interval
        self._interval = min(2 * self._interval, _LAST_RESYNC)

    def read(self, engine: EngineVcpu) -> int:
        """The TSC as the guest reads it now; the vCPU must be stopped."""
        return engine.read_tsc()

    def ns_at(self, tsc: int) -> int:
        """System time at a TSC value."""
        return self.system_time + self._scaled(tsc - self.tsc)

    def _scaled(self, ticks: int) -> int:
        ticks = ticks << self.shift if self.shift >= 0 else ticks >> -self.shift
        return ticks * self.mul >> 32

    def tsc_at(self, now: int) -> int:
        """The TSC value at a system time."""
        ticks = (now - self.system_time << 32) // self.mul
        return self.tsc + (ticks >> self.shift if self.shift >= 0 else ticks << -self.shift)

    def record(self, version: int) -> vcpu_time_info:
        """The guest's record of the present parameters."""
        return vcpu_time_info(
            version=version,
            tsc_timestamp=self.tsc,
            system_time=self.system_time,
            tsc_to_system_mul=self.mul,
            tsc_shift=self.shift,
        )


class EmulatedTsc(TscCalibration):
    """A TSC that is counted from the clock, at the CPU's rate and from 0 when the domain starts.

    Every read of it is an exit.
    """

    emulated = True

    def sync(self, engine: EngineVcpu) -> None:
        """See `TscCalibration.sync`; the CPU's own TSC is looked at once, for its rate."""
        if not self.khz:
            super().sync(engine)
            self.mul, self.shift = scale(1_000_000, self.khz)
            self.tsc = 0
            return
        now = self._clock.now()
        self._renew(self.tsc_at(now), now)

    def read(self, engine: EngineVcpu) -> int:
        """See `TscCalibration.read`."""
        return self.tsc_at(self._clock.now())


def scale(ns: int, ticks: int) -> tuple[int, int]:
    """(mul, shift) such that ((ticks << shift) * mul) >> 32 is `ns`, mul in [2^31, 2^32)."""
    shift = 0
    ratio = (ns << 32) // ticks
    while ratio >= 1 << 32:
        shift += 1
        ratio = (ns << 32) // (ticks << shift)
    while ratio < 1 << 31:
        shift -= 1
        ratio = (ns << 32 + -shift) // ticks
    return ratio, shift


def write_time(page: Page, offset: int, calibration: TscCalibration) -> None:
    """Updates the vcpu_time_info at `offset` by its protocol: odd version while it changes."""
    word = offset // 4
    version = page.u32[word + _VERSION]
    page.exchange32(word + _VERSION, (version | 1) & 0xFFFF_FFFF)
    record = calibration.record(0).pack()
    page.write(offset + 4, record[4:])
    page.exchange32(word + _VERSION, ((version | 1) + 1) & 0xFFFF_FFFF)


class Runstate:
    """How long a vCPU was in each of the four states (ns)."""

    __slots__ = ("entered", "state", "times")

    def __init__(self, now: int) -> None:
        self.state = RUNSTATE_offline
        self.entered = now
        self.times = [0, 0, 0, 0]

    def change(self, state: int, now: int) -> None:
        """Enters a state."""
        self.times[self.state] += now - self.entered
        self.state = state
        self.entered = now

    def snapshot(self, now: int) -> tuple[int, int, Sequence[int]]:
        """(state, time it was entered, times) with the present state's time up to now."""
        times = list(self.times)
        times[self.state] += now - self.entered
        return self.state, self.entered, times
