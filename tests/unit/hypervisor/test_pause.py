"""What a pause does to time: none is lost, every timer that came due is there when the vCPU is.

The engine is scripted and the clock the test's own.  Cannot see what a guest makes of it;
tests/system/test_pause.py does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from hvmlite.abi.sched import SHUTDOWN_watchdog
from hvmlite.abi.vcpu import (
    RUNSTATE_blocked,
    RUNSTATE_offline,
    RUNSTATE_runnable,
    RUNSTATE_running,
)
from hvmlite.abi.xen import VIRQ_TIMER, vcpu_time_info
from hvmlite.engine import base as b
from hvmlite.hypervisor.timekeeping import TIME_OFFSET
from hvmlite.hypervisor.vcpu import Vcpu

from .fakes import IF, START, Rig

MS = 1_000_000
SECOND = 1000 * MS


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig(2)
    made.start(0)
    for vcpu in made.domain.vcpus:
        made.domain.evtchn.bind_virq(VIRQ_TIMER, vcpu.id)
    made.domain.callback_vector = 0xF3
    made.engine().set("rflags", IF)
    yield made
    made.close()


def pause(rig: Rig, ns: int) -> None:
    rig.domain.pause()
    rig.settle()
    rig.pass_time(ns)
    assert not any(vcpu.running for vcpu in rig.domain.vcpus)


def ticks(rig: Rig) -> list[tuple[int, int]]:
    """VIRQs from now on, which still reach the guest."""
    virqs: list[tuple[int, int]] = []
    channels: Any = rig.domain.evtchn
    send = channels.send_virq

    def note(vcpu: Vcpu, virq: int) -> None:
        virqs.append((rig.clock.time - START, virq))
        send(vcpu, virq)

    channels.send_virq = note
    return virqs


def test_one_shot_timer_of_a_busy_vcpu(rig: Rig) -> None:
    vcpu, virqs = rig.domain.vcpus[0], ticks(rig)
    vcpu.set_singleshot(START + 100 * MS)
    pause(rig, SECOND)
    assert virqs == [(100 * MS, VIRQ_TIMER)]
    assert vcpu.singleshot is None
    rig.engine().log.clear()
    rig.domain.unpause()
    assert vcpu.running
    assert rig.engine().done("request") == [(0xF3,)]
    rig.pass_time(SECOND)
    assert len(virqs) == 1


def test_one_shot_timer_of_an_idle_vcpu(rig: Rig) -> None:
    vcpu = rig.domain.vcpus[0]
    vcpu.set_singleshot(START + 100 * MS)
    rig.serve(b.Halt())
    assert vcpu.blocked
    pause(rig, SECOND)
    assert not vcpu.blocked
    rig.engine().log.clear()
    rig.domain.unpause()
    assert vcpu.running
    assert rig.engine().done("request") == [(0xF3,)]


def test_a_timer_that_is_not_due_yet(rig: Rig) -> None:
    vcpu, virqs = rig.domain.vcpus[0], ticks(rig)
    vcpu.set_singleshot(START + 2 * SECOND)
    rig.serve(b.Halt())
    pause(rig, SECOND)
    rig.domain.unpause()
    assert vcpu.blocked
    assert not vcpu.running
    rig.pass_time(SECOND)
    assert virqs == [(2 * SECOND, VIRQ_TIMER)]
    assert vcpu.running


def test_poll(rig: Rig) -> None:
    vcpu = rig.domain.vcpus[0]
    vcpu.running = False
    vcpu.poll((), START + 100 * MS)
    pause(rig, SECOND)
    assert not vcpu.polling
    rig.domain.unpause()
    assert vcpu.running


def test_periodic_timer_ticks_once_for_a_pause(rig: Rig) -> None:
    vcpu, virqs = rig.domain.vcpus[0], ticks(rig)
    vcpu.set_periodic(10 * MS)
    rig.pass_time(25 * MS)
    before = len(virqs)
    pause(rig, SECOND)
    assert len(virqs) == before
    rig.domain.unpause()
    assert virqs[before:] == [(1025 * MS, VIRQ_TIMER)]
    rig.pass_time(30 * MS)
    assert [at for at, _ in virqs[before + 1 :]] == [1035 * MS, 1045 * MS, 1055 * MS]


def test_watchdog_fires(rig: Rig) -> None:
    rig.domain.watchdogs.start(1)
    pause(rig, 2 * SECOND)
    assert rig.domain.shutdown_code == SHUTDOWN_watchdog


def test_a_pause_is_time_offline(rig: Rig) -> None:
    busy = rig.domain.vcpus[0]
    rig.pass_time(3 * MS)
    pause(rig, SECOND)
    assert busy.runstate.state == RUNSTATE_offline
    rig.domain.unpause()
    state, _, times = busy.runstate.snapshot(rig.clock.time)
    assert state == RUNSTATE_running
    assert times[RUNSTATE_running] == 3 * MS
    assert times[RUNSTATE_offline] == SECOND
    assert times[RUNSTATE_runnable] == times[RUNSTATE_blocked] == 0


def test_a_blocked_vcpu_is_so_until_it_is_woken(rig: Rig) -> None:
    idle = rig.domain.vcpus[0]
    rig.serve(b.Halt())
    pause(rig, 5 * MS)
    assert idle.runstate.state == RUNSTATE_blocked
    rig.domain.evtchn.send_virq(idle, VIRQ_TIMER)
    assert idle.runstate.state == RUNSTATE_offline
    rig.pass_time(7 * MS)
    rig.domain.unpause()
    times = idle.runstate.snapshot(rig.clock.time)[2]
    assert times[RUNSTATE_blocked] == 5 * MS
    assert times[RUNSTATE_offline] == 7 * MS


def test_a_vcpu_that_comes_up_meanwhile(rig: Rig) -> None:
    other = rig.domain.vcpus[1]
    pause(rig, MS)
    rig.start(1)
    assert other.runstate.state == RUNSTATE_offline
    rig.domain.unpause()
    assert other.running


def test_system_time_goes_on() -> None:
    """The record is renewed before the vCPU runs on; it goes with the clock, not with the guest."""
    rig = Rig(stopped_clock=False)
    try:
        vcpu = rig.start()
        at = vcpu.info_offset + TIME_OFFSET[rig.domain.abi]

        def record() -> vcpu_time_info:
            return vcpu_time_info.unpack(vcpu.info_page.read(at, vcpu_time_info.sizeof()))

        first = record()
        rig.domain.pause()
        rig.settle()
        assert record() == first
        rig.domain.time_stale = True
        rig.domain.unpause()
        second = record()
        assert second.version == first.version + 2
        assert first.system_time < second.system_time <= rig.domain.clock.now()
        assert second.tsc_timestamp > first.tsc_timestamp
    finally:
        rig.close()
