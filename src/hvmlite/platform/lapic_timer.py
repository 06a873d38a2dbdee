"""The local APIC's timer: one-shot, periodic and TSC-deadline mode.

It counts and says when it has expired; masking and the vector are the LVT's (lapic.py). Facts:
Intel SDM volume 3, "APIC Timer"; what a domU sees of it: Xen's arch/x86/hvm/vlapic.c and vpt.c.
"""

import enum
from collections.abc import Callable
from typing import Final, Protocol

from hvmlite.platform.apicdef import APIC_TDR_DIV_MASK

APIC_BUS_CYCLE_NS: Final = 10
"""One cycle of the bus clock that the divider starts from: 100 MHz, as on Xen 4.17."""

MIN_PERIOD_NS: Final = 100_000
"""Periodic interrupts come no faster, so that a guest cannot keep the host busy with them."""

STOPPED: Final = -1
"""For ApicTimer.elapsed_ns: not counting."""

_LATEST_NS: Final = (1 << 62) - 1


class TimerHandle(Protocol):
    """A timer that has not fired yet."""

    def cancel(self) -> None:
        """Forget the timer; nothing happens if it has fired."""


class TimerQueue(Protocol):
    """The hypervisor's clock, as far as a device needs it."""

    def now(self) -> int:
        """Nanoseconds of the guest's time base."""

    def at(self, deadline: int, callback: Callable[[], None], /) -> TimerHandle:
        """Call back once, when now() has reached the deadline (ns), never from within at()."""


class TimerMode(enum.IntEnum):
    """Bits 17-18 of the LVT timer register."""

    ONESHOT = 0
    PERIODIC = 1
    TSC_DEADLINE = 2
    RESERVED = 3


class ApicTimer:
    """One timer; `expired` is called at each expiry.

    `tsc_to_ns` turns a value of the guest's TSC into the queue's time, in nanoseconds.
    """

    __slots__ = (
        "_expired",
        "_handle",
        "_next_ns",
        "_start_ns",
        "_tick_ns",
        "_timers",
        "_tsc_to_ns",
        "divide_config",
        "initial_count",
        "mode",
        "tsc_deadline",
    )

    def __init__(
        self, timers: TimerQueue, tsc_to_ns: Callable[[int], int], expired: Callable[[], None]
    ) -> None:
        self._timers = timers
        self._tsc_to_ns = tsc_to_ns
        self._expired = expired
        self._handle: TimerHandle | None = None
        self._start_ns: int | None = None
        self._next_ns = 0
        self.reset()

    def reset(self) -> None:
        """Stop, and return to the state after INIT."""
        self._stop()
        self.mode = TimerMode.ONESHOT
        self.initial_count = 0
        self.tsc_deadline = 0
        self.divide_config = 0
        self._tick_ns = _tick_ns(0)

    def set_mode(self, mode: TimerMode) -> None:
        """Change the mode. A count goes on between one-shot and periodic, and stops otherwise."""
        if mode is self.mode:
            return
        self._catch_up()
        if TimerMode.TSC_DEADLINE in (self.mode, mode):
            self._stop()
            self.initial_count = 0
            self.tsc_deadline = 0
        elif mode is TimerMode.RESERVED:
            self._stop()
        elapsed = self.elapsed_ns()
        self.mode = mode
        if elapsed != STOPPED:
            self.resume(elapsed)

    def set_initial_count(self, count: int) -> None:
        """Start counting down from `count`; 0 stops. Ignored in TSC-deadline mode."""
        if self.mode > TimerMode.PERIODIC:
            return
        self._stop()
        self.initial_count = count
        if count:
            self.resume(0)

    def set_divide_config(self, config: int) -> None:
        """Change the divider; the count goes on from where it is."""
        self._catch_up()
        elapsed = self.elapsed_ns()
        old = self._tick_ns
        self.divide_config = config & APIC_TDR_DIV_MASK
        self._tick_ns = _tick_ns(self.divide_config)
        if elapsed != STOPPED and self._tick_ns != old:
            self.resume(elapsed * self._tick_ns // old)

    def set_tsc_deadline(self, tsc: int) -> None:
        """Arm for a value of the TSC; 0 disarms, a past value expires at once."""
        if self.mode is not TimerMode.TSC_DEADLINE:
            return
        self._stop()
        self.tsc_deadline = tsc
        if not tsc:
            return
        self._next_ns = min(self._tsc_to_ns(tsc), _LATEST_NS)
        if self._next_ns <= self._timers.now():
            self._fire()
        else:
            self._handle = self._timers.at(self._next_ns, self._fire)

    def read_initial_count(self) -> int:
        """The initial-count register: 0 in a mode that does not count."""
        return self.initial_count if self.mode <= TimerMode.PERIODIC else 0

    def read_current_count(self) -> int:
        """The current-count register: 0 when stopped or expired."""
        elapsed = self.elapsed_ns()
        if elapsed == STOPPED:
            return 0
        return max(self.initial_count - elapsed // self._tick_ns, 0)

    def elapsed_ns(self) -> int:
        """Nanoseconds counted since the last reload, or STOPPED: what a save records."""
        if self._start_ns is None:
            return STOPPED
        elapsed = self._timers.now() - self._start_ns
        if self.mode is TimerMode.PERIODIC:
            elapsed %= self.initial_count * self._tick_ns
        return elapsed

    def resume(self, elapsed_ns: int) -> None:
        """Count as if begun `elapsed_ns` nanoseconds ago; initial_count must not be 0."""
        if self._handle is not None:
            self._handle.cancel()
        self._start_ns = self._timers.now() - elapsed_ns
        self._arm()

    def _arm(self) -> None:
        start = self._start_ns
        if start is None:
            return
        period = self.initial_count * self._tick_ns
        if self.mode is TimerMode.PERIODIC:
            # Several periods at a time keep the phase that the current count shows.
            period *= -(-MIN_PERIOD_NS // period) if period < MIN_PERIOD_NS else 1
            missed = (self._timers.now() - start) // period
            self._next_ns = start + (missed + 1) * period
        else:
            self._next_ns = start + period
        self._handle = self._timers.at(self._next_ns, self._fire)

    def _fire(self) -> None:
        self._handle = None
        if self.mode is TimerMode.PERIODIC:
            self._arm()
        else:
            self._start_ns = None
            self.tsc_deadline = 0
        self._expired()

    def _catch_up(self) -> None:
        # A guest's write may run before the queue has got round to an expiry that is due.
        if self._handle is not None and self._next_ns <= self._timers.now():
            self._handle.cancel()
            self._fire()

    def _stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        self._start_ns = None


def _tick_ns(divide_config: int) -> int:
    # Bits 0, 1 and 3 encode 2, 4, ... 128, and all ones the divisor 1.
    shift = (divide_config & 3 | (divide_config & 8) >> 1) + 1
    return APIC_BUS_CYCLE_NS << (shift & 7)
