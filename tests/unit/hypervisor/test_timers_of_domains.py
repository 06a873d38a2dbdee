"""Proves that a domain's timers end with it, whoever asked for them, and that a vCPU has one
periodic timer however it was armed. The clock stands still. Cannot see timers that nobody put on
the queue.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hvmlite.abi.xen import VIRQ_TIMER
from hvmlite.engine import base as b
from hvmlite.hypervisor.clock import NEVER, Clock, OwnedTimers, TimerQueue
from hvmlite.hypervisor.vcpu import Vcpu

from .fakes import IF, START, Rig

MS = 1_000_000


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig(2)
    yield rig
    rig.close()


def pending(rig: Rig) -> int:
    return sum(1 for _, _, timer in rig.host.timers._heap if timer.callback is not None)


def test_owned_timers_run_like_others() -> None:
    queue = TimerQueue(Clock())
    owned = OwnedTimers(queue)
    seen: list[str] = []
    owned.at(20, lambda: seen.append("owned"))
    queue.at(10, lambda: seen.append("other"))
    owned.at(15, lambda: seen.append("cancelled")).cancel()
    queue.run(30)
    assert seen == ["other", "owned"]


@pytest.mark.parametrize("count", [1, 1000])
def test_close_cancels_what_is_left_of_one_owner(count: int) -> None:
    queue = TimerQueue(Clock())
    first, second = OwnedTimers(queue), OwnedTimers(queue)
    seen: list[int] = []
    for i in range(count):
        first.at(i, lambda: seen.append(1))
        second.at(i, lambda: seen.append(2))
    first.close()
    first.close()
    queue.run(count)
    assert seen == [2] * count
    assert queue.next == NEVER


def test_nothing_can_be_armed_after_close() -> None:
    queue = TimerQueue(Clock())
    owned = OwnedTimers(queue)
    owned.close()
    owned.at(1, lambda: pytest.fail("called")).cancel()
    assert not queue.run(10)
    assert not queue._heap


def test_a_timer_of_a_device_ends_with_the_domain(rig: Rig) -> None:
    domain = rig.domain

    def device() -> None:
        domain.timers.at(rig.clock.time + MS, device)

    device()
    domain.resync_time(domain.vcpus[0])
    assert pending(rig) == 2
    domain.destroy()
    assert pending(rig) == 0
    device()
    assert pending(rig) == 0


def periodic(rig: Rig, vcpu: Vcpu) -> int:
    work = vcpu._periodic_work
    return sum(1 for _, _, timer in rig.host.timers._heap if timer.callback == work)


def blocked_until_a_tick(rig: Rig, index: int) -> Vcpu:
    """A vCPU in HLT that VIRQ_TIMER wakes."""
    rig.engine(index).set("rflags", IF)
    vcpu = rig.start(index)
    rig.serve(b.Halt(), index)
    assert vcpu.blocked
    return vcpu


@pytest.fixture
def ticks(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    seen: list[int] = []

    def send_virq(vcpu: Vcpu, virq: int) -> None:
        assert virq == VIRQ_TIMER
        seen.append(vcpu.id)
        vcpu.unblock()

    monkeypatch.setattr(rig.domain.evtchn, "send_virq", send_virq)
    return seen


def test_arming_a_blocked_vcpu_leaves_one_timer(rig: Rig, ticks: list[int]) -> None:
    vcpu = blocked_until_a_tick(rig, 1)
    for _ in range(50):
        vcpu.set_periodic(10 * MS)
        rig.pass_time(10 * MS)
        rig.serve(b.Halt(), 1)
    vcpu.unblock()
    assert periodic(rig, vcpu) == 1
    ticks.clear()
    rig.pass_time(100 * MS)
    assert len(ticks) in (9, 10, 11)
    vcpu.stop_periodic()
    assert periodic(rig, vcpu) == 0


def test_the_first_tick_wakes_and_there_is_one_timer(rig: Rig, ticks: list[int]) -> None:
    vcpu = blocked_until_a_tick(rig, 1)
    vcpu.set_periodic(5 * MS)
    assert ticks == [1]
    assert vcpu.running
    assert periodic(rig, vcpu) == 1
    assert vcpu.periodic is not None
    assert vcpu.periodic.deadline == START + 5 * MS
