"""How much a guest may send: bytes in each interval, and what was not used is lost.

Facts: xl-network-configuration(5), `rate`; as Linux's xen-netback takes its node `rate`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hvmlite.backends.net.endpoint import _nothing
from hvmlite.backends.net.frame import LONGEST, Frame
from hvmlite.hypervisor.clock import Timer, TimerQueue


class RateLimit:
    """A bucket that is filled up to `size` bytes each `interval` (nanoseconds)."""

    def __init__(self, timers: TimerQueue, size: int, interval: int) -> None:
        self._timers = timers
        # A frame that never fits would never go.
        self._burst = max(size, LONGEST)
        self._size = size
        self._interval = interval
        self._credit = self._burst
        self._renewed = timers.now()
        self._timer: Timer | None = None
        self.has_credit: Callable[[], None] = _nothing
        """Called when something may be sent again."""

    def _renew(self) -> None:
        intervals = (self._timers.now() - self._renewed) // self._interval
        if intervals > 0:
            self._renewed += intervals * self._interval
            self._credit = min(self._burst, self._credit + intervals * self._size)

    def allowed(self, frames: Sequence[Frame]) -> int:
        """How many of the first frames may be sent now; asks for a call if not all."""
        self._renew()
        credit = self._credit
        for count, frame in enumerate(frames):
            credit -= frame.size
            if credit < 0:
                self._wait(-credit)
                return count
        return len(frames)

    def spend(self, frames: Sequence[Frame]) -> None:
        """These were sent."""
        for frame in frames:
            self._credit -= frame.size

    def _wait(self, missing: int) -> None:
        if self._timer is None:
            intervals = -(-missing // self._size)
            self._timer = self._timers.at(self._renewed + intervals * self._interval, self._expired)

    def _expired(self) -> None:
        self._timer = None
        self.has_credit()

    def close(self) -> None:
        """Ends it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
