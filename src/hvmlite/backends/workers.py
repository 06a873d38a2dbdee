"""A few threads for what may block: files, subprocesses.

Results come back to the host loop's thread, where all else happens.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

THREADS = 4


class Workers:
    """Threads that are started when there is work.  `call_soon` brings a call to the loop."""

    def __init__(self, call_soon: Callable[[Callable[[], None]], None]) -> None:
        self._call_soon = call_soon
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._idle = threading.Semaphore(0)

    def submit(
        self, function: Callable[[], T], done: Callable[[T | None, BaseException | None], None]
    ) -> None:
        """Has `function()` called in a thread, then `done(result, error)` in the loop."""

        def run() -> None:
            result: T | None = None
            error: BaseException | None = None
            try:
                result = function()
            except BaseException as caught:
                error = caught
            self._call_soon(lambda: done(result, error))

        if not self._idle.acquire(blocking=False) and len(self._threads) < THREADS:
            thread = threading.Thread(target=self._serve, name="hvmlite-worker", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._queue.put(run)

    def _serve(self) -> None:
        while (job := self._queue.get()) is not None:
            job()
            del job
            self._idle.release()

    def close(self) -> None:
        """Ends the threads after what they have been given, and waits for them."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()
