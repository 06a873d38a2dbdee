"""Time: one clock that tests, a replay or a snapshot can own, and the timers that hang on it."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable

NEVER = 1 << 62


class Clock:
    """Nanoseconds since the host started (Xen's system time), and the wall clock.

    Goes with CLOCK_MONOTONIC.  `now` is a plain attribute so that a loop can call it cheaply.
    """

    def __init__(self) -> None:
        self._origin = time.monotonic_ns()
        # Xen's own system time is never near zero when a guest starts; guests rely on it.
        self._origin -= 1_000_000_000

    def now(self) -> int:
        """System time in nanoseconds."""
        return time.monotonic_ns() - self._origin

    def wall(self) -> int:
        """Nanoseconds since 1970 (UTC)."""
        return time.time_ns()


class Timer:
    """One pending call; `cancel` it any time."""

    __slots__ = ("_queue", "callback", "deadline", "owner")

    def __init__(
        self,
        queue: TimerQueue,
        deadline: int,
        callback: Callable[[], None] | None,
        owner: object = None,
    ) -> None:
        self._queue = queue
        self.deadline = deadline
        self.callback = callback
        self.owner = owner

    def cancel(self) -> None:
        """Drops the call; safe to repeat."""
        if self.callback is not None:
            self.callback = None
            self._queue.cancelled(self)


class TimerQueue:
    """Calls back when the clock reaches a deadline.

    `next` is the earliest deadline (NEVER if there is none): the host loop compares it with the
    clock on every turn.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.now = clock.now
        self.next = NEVER
        self._heap: list[tuple[int, int, Timer]] = []
        self._count = 0
        self._dead = 0

    def at(self, deadline: int, callback: Callable[[], None], owner: object = None) -> Timer:
        """Has `callback()` called once the clock reaches `deadline` (ns, system time)."""
        timer = Timer(self, deadline, callback, owner)
        self._count += 1
        heapq.heappush(self._heap, (deadline, self._count, timer))
        self.next = self._heap[0][0]
        return timer

    def cancel_all(self, owner: object) -> None:
        """Cancels every timer of an owner."""
        for _, _, timer in list(self._heap):
            if timer.owner is owner:
                timer.cancel()

    def cancelled(self, timer: Timer) -> None:
        """A timer of this queue was cancelled."""
        heap = self._heap
        self._dead += 1
        if self._dead > 64 and self._dead > len(heap) // 2:
            # Guests re-arm their timers far more often than these fire.
            self._heap = heap = [item for item in heap if item[2].callback is not None]
            heapq.heapify(heap)
            self._dead = 0
        self._find_next()

    def _find_next(self) -> None:
        heap = self._heap
        while heap and heap[0][2].callback is None:
            heapq.heappop(heap)
            self._dead = max(0, self._dead - 1)
        self.next = heap[0][0] if heap else NEVER

    def run(self, now: int) -> bool:
        """Calls all that is due; returns whether there was any."""
        ran = False
        heap = self._heap
        while heap and heap[0][0] <= now:
            timer = heapq.heappop(heap)[2]
            callback = timer.callback
            if callback is None:
                self._dead = max(0, self._dead - 1)
                continue
            timer.callback = None
            ran = True
            try:
                callback()
            except Exception as error:
                if not isinstance(timer.owner, OwnedTimers):
                    raise
                timer.owner.failed(error)
            heap = self._heap
        self._find_next()
        return ran


class OwnedTimers:
    """The timers of one owner, a domain: none of them can outlive it, whoever asked for it."""

    def __init__(
        self, queue: TimerQueue, on_error: Callable[[Exception], None] | None = None
    ) -> None:
        """`on_error(error)` hears of what a callback raised; without it the queue's `run` does."""
        self._queue = queue
        self._on_error = on_error
        self.now = queue.now
        self._closed = False

    def failed(self, error: Exception) -> None:
        """A callback of these timers raised."""
        if self._on_error is None:
            raise error
        self._on_error(error)

    def at(self, deadline: int, callback: Callable[[], None]) -> Timer:
        """See `TimerQueue.at`; after `close` nothing is ever called."""
        if self._closed:
            return Timer(self._queue, deadline, None)
        return self._queue.at(deadline, callback, self)

    def close(self) -> None:
        """Cancels what is left; safe to call twice."""
        self._closed = True
        self._queue.cancel_all(self)
