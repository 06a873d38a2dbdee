"""A few threads for what may block: files, subprocesses.

Each device has a share of its own, so that one whose disk hangs keeps no other waiting.  Results
come back to the host loop's thread, where all else happens.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

THREADS = 4
"""Threads that one device may keep busy."""

_Run = Callable[[], None]


class WorkerPool:
    """Threads that are started when there is work.  `call_soon` brings a call to the loop."""

    def __init__(self, call_soon: Callable[[_Run], None]) -> None:
        self.call_soon = call_soon
        self.lock = threading.Lock()
        """Held to look at a share; never while anything blocks."""
        self._queue: queue.SimpleQueue[tuple[Workers, _Run] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._idle = threading.Semaphore(0)

    def share(self) -> Workers:
        """A device's share, of THREADS threads."""
        return Workers(self)

    def begin(self, owner: Workers, run: _Run) -> None:
        """Has `run` called in a thread; the owner keeps to its share."""
        if not self._idle.acquire(blocking=False):
            thread = threading.Thread(target=self._serve, name="hvmlite-worker", daemon=True)
            try:
                thread.start()
            except RuntimeError:
                # No thread more to be had: those that are there come to it later.
                if not self._threads:
                    raise
            else:
                self._threads.append(thread)
        self._queue.put((owner, run))

    def _serve(self) -> None:
        while (given := self._queue.get()) is not None:
            owner, run = given
            del given
            following: _Run | None = run
            while following is not None:
                following()
                following = owner.next()
            del owner, run
            self._idle.release()

    def close(self) -> None:
        """Ends the threads after what they have been given, and waits for them."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()


class Workers:
    """One device's share of a pool; what is more waits for its own."""

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool
        self._busy = 0
        self._waiting: deque[_Run] = deque()

    def submit(
        self, function: Callable[[], T], done: Callable[[T | None, BaseException | None], None]
    ) -> None:
        """Has `function()` called in a thread, then `done(result, error)` in the loop."""
        pool = self._pool

        def run() -> None:
            result: T | None = None
            error: BaseException | None = None
            try:
                result = function()
            except BaseException as caught:
                error = caught
            pool.call_soon(lambda: done(result, error))

        with pool.lock:
            if self._busy >= THREADS:
                self._waiting.append(run)
                return
            self._busy += 1
        pool.begin(self, run)

    def next(self) -> _Run | None:
        """One of its threads is done: what it does next, if anything waits."""
        with self._pool.lock:
            if self._waiting:
                return self._waiting.popleft()
            self._busy -= 1
            return None
