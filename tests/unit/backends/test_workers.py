"""Proves that what devices have done in threads is done, in order where a share is full, that one
device which hangs keeps no other waiting, and that threads are used again and end.

The loop is a queue. Cannot see how fast it is.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator

import pytest

from hvmlite.backends.workers import THREADS, WorkerPool


class Loop:
    def __init__(self) -> None:
        self.calls: queue.Queue[Callable[[], None]] = queue.Queue()
        self.pool = WorkerPool(self.calls.put)

    def run(self, count: int) -> None:
        for _ in range(count):
            self.calls.get(timeout=10)()


@pytest.fixture
def loop() -> Iterator[Loop]:
    before = threading.active_count()
    made = Loop()
    yield made
    made.pool.close()
    assert threading.active_count() == before


def test_results_and_errors(loop: Loop) -> None:
    share = loop.pool.share()
    seen: list[object] = []
    share.submit(lambda: 7, lambda result, error: seen.append((result, error)))
    loop.run(1)
    share.submit(lambda: 1 // 0, lambda result, error: seen.append(type(error)))
    loop.run(1)
    assert seen == [(7, None), ZeroDivisionError]


def test_one_that_hangs_keeps_no_other_waiting(loop: Loop) -> None:
    gate, seen = threading.Event(), list[object]()
    hung = [loop.pool.share() for _ in range(3)]
    for share in hung:
        for i in range(3 * THREADS):
            share.submit(lambda i=i: (gate.wait(10), i)[1], lambda i, _: seen.append(i))  # type: ignore[misc]
    other: list[object] = []
    loop.pool.share().submit(lambda: 1, lambda result, _: other.append(result))
    loop.run(1)
    assert other == [1]
    assert seen == []
    gate.set()
    loop.run(9 * THREADS)
    assert sorted(seen) == sorted([*range(3 * THREADS)] * 3)  # type: ignore[type-var]


def test_threads_are_used_again(loop: Loop) -> None:
    before = threading.active_count()
    for _ in range(200):
        loop.pool.share().submit(lambda: None, lambda *_: None)
        loop.run(1)
    # One may still be on its way from its last work when there is more.
    assert threading.active_count() - before <= 3


def test_what_waits_is_done_before_the_end() -> None:
    loop, done = Loop(), list[int]()
    share = loop.pool.share()
    for i in range(50):
        share.submit(lambda i=i: done.append(i), lambda *_: None)  # type: ignore[misc]
    loop.pool.close()
    assert sorted(done) == [*range(50)]
