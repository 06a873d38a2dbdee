"""Proves that timers run in order, once, at their time, and that any number of cancellations takes
bounded memory. Against a plain list of deadlines. Cannot see how late a busy host runs them.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvmlite.hypervisor.clock import NEVER, Clock, OwnedTimers, Timer, TimerQueue


@pytest.fixture
def queue() -> TimerQueue:
    return TimerQueue(Clock())


def test_the_clock_goes_with_the_hosts() -> None:
    clock = Clock()
    first = clock.now()
    # A guest that starts at once is not near time zero.
    assert 1_000_000_000 <= first < 2_000_000_000
    begin = time.monotonic_ns()
    while time.monotonic_ns() - begin < 2_000_000:
        pass
    assert 2_000_000 <= clock.now() - first < 10_000_000_000
    assert abs(clock.wall() - time.time_ns()) < 10_000_000_000


def test_nothing_to_do(queue: TimerQueue) -> None:
    assert queue.next == NEVER
    assert not queue.run(1 << 61)


def test_due_timers_run_in_order(queue: TimerQueue) -> None:
    seen: list[int] = []
    for deadline in (30, 10, 20, 10):
        queue.at(deadline, lambda deadline=deadline: seen.append(deadline))
    assert queue.next == 10
    assert not queue.run(9)
    assert queue.run(20)
    assert seen == [10, 10, 20]
    assert queue.next == 30
    assert queue.run(100)
    assert seen == [10, 10, 20, 30]
    assert queue.next == NEVER


def test_the_same_deadline_in_the_order_of_asking(queue: TimerQueue) -> None:
    seen: list[int] = []
    for i in range(20):
        queue.at(5, lambda i=i: seen.append(i))
    queue.run(5)
    assert seen == list(range(20))


def test_a_past_deadline_runs_at_once(queue: TimerQueue) -> None:
    seen: list[int] = []
    queue.at(-5, lambda: seen.append(1))
    assert queue.run(0)
    assert seen == [1]


def test_cancelled_timers_do_not_run(queue: TimerQueue) -> None:
    seen: list[int] = []
    timers = [queue.at(i, lambda i=i: seen.append(i)) for i in range(5)]
    timers[0].cancel()
    assert queue.next == 1
    timers[3].cancel()
    timers[3].cancel()
    queue.run(10)
    assert seen == [1, 2, 4]
    timers[4].cancel()
    assert queue.next == NEVER


def test_cancelling_oneself_and_others_while_running(queue: TimerQueue) -> None:
    seen: list[str] = []
    timers: list[Timer] = []

    def first() -> None:
        seen.append("first")
        for timer in timers:
            timer.cancel()

    timers.append(queue.at(1, first))
    timers.append(queue.at(1, lambda: seen.append("second")))
    timers.append(queue.at(2, lambda: seen.append("third")))
    queue.at(2, lambda: seen.append("fourth"))
    assert queue.run(5)
    assert seen == ["first", "fourth"]
    assert queue.next == NEVER


def test_arming_while_running(queue: TimerQueue) -> None:
    seen: list[int] = []

    def again(deadline: int) -> Callable[[], None]:
        def call() -> None:
            seen.append(deadline)
            if deadline < 5:
                queue.at(deadline + 1, again(deadline + 1))

        return call

    queue.at(1, again(1))
    assert queue.run(3)
    assert seen == [1, 2, 3]
    assert queue.next == 4


def test_running_while_running(queue: TimerQueue) -> None:
    """A callback that waits for something may run the queue itself."""
    seen: list[str] = []
    queue.at(1, lambda: (seen.append("outer"), queue.run(5), seen.append("end"))[0])
    queue.at(2, lambda: seen.append("inner"))
    queue.at(9, lambda: seen.append("later"))
    queue.run(3)
    assert seen == ["outer", "inner", "end"]
    assert queue.next == 9


def test_a_callback_that_raises_loses_no_other(queue: TimerQueue) -> None:
    seen: list[int] = []

    def fail() -> None:
        raise RuntimeError("out of order")

    queue.at(1, fail)
    queue.at(2, lambda: seen.append(2))
    with pytest.raises(RuntimeError):
        queue.run(5)
    # The loop looks at `next`: it must not wait for what is due.
    assert queue.next <= 2
    queue.run(5)
    assert seen == [2]
    assert queue.next == NEVER


@pytest.mark.parametrize("order", ["rising", "falling", "same"])
def test_a_storm_of_cancellations_stays_small(queue: TimerQueue, order: str) -> None:
    """A guest re-arms its timer a million times and it never fires."""
    keep = queue.at(1 << 40, lambda: None)
    most = 0
    timer: Timer | None = None
    for i in range(50_000):
        if timer is not None:
            timer.cancel()
        deadline = {"rising": 1000 + i, "falling": 100_000 - i, "same": 77}[order]
        timer = queue.at(deadline, lambda: None)
        most = max(most, len(queue._heap))
    assert most < 300
    assert timer is not None
    timer.cancel()
    assert queue.next == keep.deadline


def test_a_storm_from_within_a_callback(queue: TimerQueue) -> None:
    fired: list[int] = []

    def storm() -> None:
        for i in range(1000):
            queue.at(50 + i % 7, lambda: fired.append(-1)).cancel()
        queue.at(40, lambda: fired.append(40))

    queue.at(1, storm)
    queue.at(60, lambda: fired.append(60))
    queue.run(45)
    assert fired == [40]
    assert len(queue._heap) < 300
    queue.run(100)
    assert fired == [40, 60]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("arm"), st.integers(0, 100)),
        st.tuples(st.just("cancel"), st.integers(0, 200)),
        st.tuples(st.just("run"), st.integers(0, 30)),
    ),
    max_size=200,
)


@given(STEPS)
@settings(max_examples=100, deadline=None)
def test_against_a_list(steps: list[tuple[str, int]]) -> None:
    queue = TimerQueue(Clock())
    fired: list[int] = []
    timers: list[Timer] = []
    armed: dict[int, int] = {}
    now = 0
    for kind, value in steps:
        if kind == "arm":
            number = len(timers)
            armed[number] = now + value - 10
            timers.append(queue.at(now + value - 10, lambda n=number: fired.append(n)))
        elif kind == "cancel" and timers:
            timers[value % len(timers)].cancel()
            armed.pop(value % len(timers), None)
        elif kind == "run":
            now += value
            due = sorted((deadline, n) for n, deadline in armed.items() if deadline <= now)
            fired.clear()
            assert queue.run(now) is bool(due)
            assert fired == [n for _, n in due]
            for _, n in due:
                del armed[n]
        assert queue.next == min(armed.values(), default=NEVER)


# --- timers of one owner ---------------------------------------------------------------------


def test_nothing_outlives_its_owner(queue: TimerQueue) -> None:
    seen: list[str] = []
    first, second = OwnedTimers(queue), OwnedTimers(queue)
    first.at(5, lambda: seen.append("first"))
    second.at(6, lambda: seen.append("second"))
    queue.at(7, lambda: seen.append("nobody's"))
    first.close()
    first.close()
    late = first.at(1, lambda: seen.append("late"))
    late.cancel()
    assert queue.next == 6
    queue.run(10)
    assert seen == ["second", "nobody's"]
    assert first.now() <= queue.clock.now()
