"""Proves when a vCPU runs, waits, wakes and is kicked, what interrupts it, when its timers fire.

The engine is scripted and the clock stands still. Event channels, the local APIC and the hypercalls
that lead here have tests of their own; how the loop serves exits is in test_host.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvmlite.abi.sched import SHUTDOWN_crash, SHUTDOWN_poweroff, SHUTDOWN_reboot
from hvmlite.abi.vcpu import (
    RUNSTATE_blocked,
    RUNSTATE_offline,
    RUNSTATE_running,
)
from hvmlite.abi.xen import VIRQ_TIMER
from hvmlite.engine import base as b
from hvmlite.hypervisor.eoi import WATCHED_EVERY, WATCHED_FIRST
from hvmlite.hypervisor.vcpu import Vcpu

from .fakes import IF, START, Rig

CALLBACK = 0xF3
MS = 1_000_000


@pytest.fixture
def rigs() -> Iterator[Callable[..., Rig]]:
    made: list[Rig] = []

    def make(vcpus: int = 1, *, slack: int = 0, callback: int = CALLBACK) -> Rig:
        rig = Rig(vcpus, slack=slack)
        rig.domain.callback_vector = callback
        made.append(rig)
        return rig

    yield make
    for rig in made:
        rig.close()


@pytest.fixture
def rig(rigs: Callable[..., Rig]) -> Rig:
    return rigs()


class FakeLapic:
    """A local APIC with the vectors that a test puts in."""

    def __init__(self) -> None:
        self.enabled = True
        self.quiet = True
        self.vectors: list[int] = []
        self.acknowledged: list[int] = []
        self.ended: list[bool] = []
        self.offered = -1

    def pending_vector(self) -> int:
        return max(self.vectors, default=-1)

    def offer(self, vector: int) -> bool:
        assert vector in self.vectors
        self.offered = vector
        return self.quiet

    def settle(self, *, taken: bool, ended: bool) -> None:
        if taken:
            self.acknowledged.append(self.offered)
            self.ended.append(ended)
            self.vectors.remove(self.offered)
        self.offered = -1

    def set_irq(self, vector: int) -> None:
        self.vectors.append(vector)


def states(vcpu: Vcpu) -> tuple[bool, bool, bool, int]:
    return vcpu.up, vcpu.blocked, vcpu.running, vcpu.runstate.state


RUNNING = (True, False, True, RUNSTATE_running)
BLOCKED = (True, True, False, RUNSTATE_blocked)


def running(rig: Rig, *, interrupts: bool = True, index: int = 0) -> Vcpu:
    rig.engine(index).set("rflags", IF if interrupts else 0)
    return rig.start(index)


def blocked(rig: Rig, index: int = 0) -> Vcpu:
    vcpu = running(rig, index=index)
    rig.serve(b.Halt(), index)
    assert states(vcpu) == BLOCKED
    return vcpu


# --- running and waiting ---------------------------------------------------------------------


def test_nothing_runs_before_it_is_brought_up(rig: Rig) -> None:
    vcpu = rig.domain.vcpus[0]
    vcpu.resume()
    vcpu.notify()
    assert states(vcpu) == (False, False, False, RUNSTATE_offline)
    assert rig.engine().runs == 0


def test_bring_up(rig: Rig) -> None:
    vcpu = rig.start()
    assert states(vcpu) == RUNNING
    assert rig.engine().runs == 1
    vcpu.bring_up()
    vcpu.resume()
    assert rig.engine().runs == 1


def test_an_exit_of_the_engines_own_goes_on(rig: Rig) -> None:
    rig.start()
    rig.serve(None)
    rig.serve(b.Kicked())
    assert rig.engine().runs == 3


def test_halt_waits_for_an_event(rig: Rig) -> None:
    vcpu = blocked(rig)
    vcpu.unblock()
    assert states(vcpu) == RUNNING
    assert rig.engine().runs == 2
    vcpu.unblock()
    assert rig.engine().runs == 2


def test_halt_with_an_event_pending_does_not_wait(rig: Rig) -> None:
    vcpu = running(rig)
    rig.set_pending()
    rig.serve(b.Halt())
    assert states(vcpu) == RUNNING
    assert rig.engine().requested == CALLBACK


def test_halt_with_interrupts_off_takes_the_vcpu_down(rig: Rig) -> None:
    vcpu = running(rig, interrupts=False)
    rig.set_pending()
    rig.serve(b.Halt())
    assert states(vcpu) == (False, False, False, RUNSTATE_offline)
    assert rig.domain.shutdown_code == SHUTDOWN_poweroff


def test_halt_with_interrupts_off_waits_for_an_nmi(rig: Rig) -> None:
    vcpu = running(rig, interrupts=False)
    vcpu.nmi_pending = True
    rig.serve(b.Halt())
    assert states(vcpu) == RUNNING
    assert rig.engine().log.count(("nmi",)) == 1
    assert not vcpu.nmi_pending


def test_block_without_interrupts_waits_whatever_is_pending(rig: Rig) -> None:
    """SCHEDOP_block of a guest that forgot to enable interrupts."""
    vcpu = running(rig, interrupts=False)
    rig.set_pending()
    vcpu.running = False
    vcpu.block()
    assert vcpu.blocked


def test_notify(rig: Rig) -> None:
    vcpu = running(rig)
    vcpu.notify()
    assert rig.engine().log == [("kick",)]
    rig.settle()
    assert states(vcpu) == RUNNING
    rig.serve(b.Halt())
    rig.engine().log.clear()
    vcpu.notify()
    assert states(vcpu) == RUNNING
    assert ("kick",) not in rig.engine().log


def test_an_event_for_a_blocked_vcpu_is_delivered(rig: Rig) -> None:
    vcpu = blocked(rig)
    rig.set_pending()
    vcpu.event_pending()
    assert states(vcpu) == RUNNING
    assert rig.engine().requested == CALLBACK


def test_raise_nmi(rig: Rig) -> None:
    vcpu = blocked(rig)
    vcpu.raise_nmi()
    assert states(vcpu) == RUNNING
    vcpu.raise_nmi()
    rig.settle()
    assert rig.engine().log.count(("nmi",)) == 2


# --- what interrupts it ----------------------------------------------------------------------


def test_the_upcall_stays_asked_for_while_it_is_pending(rig: Rig) -> None:
    running(rig)
    rig.set_pending()
    for _ in range(3):
        rig.engine().requested = -1
        rig.serve(None)
        assert rig.engine().requested == CALLBACK
    rig.set_pending(pending=0)
    rig.engine().requested = -1
    rig.serve(None)
    assert rig.engine().requested == -1


def test_without_a_callback_there_is_no_upcall(rigs: Callable[..., Rig]) -> None:
    rig = rigs(callback=-1)
    running(rig)
    rig.set_pending()
    rig.serve(None)
    assert rig.engine().requested == -1


def test_a_vector_of_the_vcpus_own_goes_through_its_apic(rig: Rig) -> None:
    rig.domain.callback_vector = -1
    vcpu = running(rig)
    vcpu.lapic = lapic = FakeLapic()
    vcpu.set_upcall_vector(0x50)
    # Set on a vCPU that is up, it is asserted at once.
    assert lapic.vectors == [0x50]
    lapic.vectors.clear()
    vcpu.event_pending()
    assert lapic.vectors == [0x50]
    rig.settle()
    assert rig.engine().requested == 0x50


def test_enabling_the_apic_late_asserts_what_waits(rig: Rig) -> None:
    vcpu = running(rig)
    vcpu.lapic = lapic = FakeLapic()
    vcpu.apic_enabled()
    vcpu.upcall_vector = 0x50
    vcpu.apic_enabled()
    assert lapic.vectors == []
    lapic.enabled = False
    rig.set_pending()
    vcpu.event_pending()
    assert lapic.vectors == []
    vcpu.apic_enabled()
    assert lapic.vectors == [0x50]


def test_without_an_apic_the_vector_is_latched_until_taken(rig: Rig) -> None:
    rig.domain.callback_vector = -1
    vcpu = running(rig)
    vcpu.set_upcall_vector(0x50)
    rig.settle()
    assert rig.engine().requested == -1
    vcpu.event_pending()
    rig.settle()
    assert rig.engine().requested == 0x50
    rig.engine().requested = -1
    rig.serve(None)
    assert rig.engine().requested == 0x50
    rig.engine().taken = True
    rig.engine().requested = -1
    rig.serve(None)
    assert rig.engine().requested == -1


@pytest.mark.parametrize("taken", [True, False])
def test_an_apics_vector_is_acknowledged_when_taken(rig: Rig, taken: bool) -> None:
    vcpu = running(rig)
    vcpu.lapic = lapic = FakeLapic()
    lapic.vectors = [0x31, 0xEC]
    rig.serve(None)
    assert rig.engine().requested == 0xEC
    rig.engine().taken = taken
    rig.serve(None)
    assert lapic.acknowledged == ([0xEC] if taken else [])
    assert rig.engine().requested == (0x31 if taken else 0xEC)


def test_the_upcall_goes_before_the_apic(rig: Rig) -> None:
    vcpu = running(rig)
    vcpu.lapic = lapic = FakeLapic()
    lapic.vectors = [0xFF]
    rig.set_pending()
    rig.engine().taken = True
    rig.serve(None)
    assert rig.engine().requested == CALLBACK
    # What was taken was the upcall: the APIC is not told.
    rig.set_pending(pending=0)
    rig.serve(None)
    assert lapic.acknowledged == []
    assert rig.engine().requested == 0xFF


# --- EOIs that nobody sees -------------------------------------------------------------------


def upcalls(rig: Rig, lapic: FakeLapic, count: int, *, opens: bool = False) -> list[bool]:
    """Has that many taken, each with its EOI; returns which of these went unseen."""
    vcpu, engine = rig.domain.vcpus[0], rig.engine()
    engine.taken = True
    lapic.ended.clear()
    for _ in range(count):
        lapic.vectors = [0x50]
        engine.log.clear()
        rig.serve(None)
        passes = engine.done("pass_eoi")[-1] == (True,) if engine.done("pass_eoi") else False
        if engine.done("watch"):
            assert not passes
            if opens:
                rig.serve(b.Window())
        rig.serve(None)
        if not passes:
            vcpu.eoi_habit.written()
    return list(lapic.ended)


@pytest.fixture
def lapic(rig: Rig) -> FakeLapic:
    rig.domain.callback_vector = -1
    vcpu = running(rig)
    vcpu.lapic = lapic = FakeLapic()
    vcpu.upcall_vector = 0x50
    rig.engine().eoi_passes = True
    return lapic


def test_eois_go_unseen_once_the_guest_is_known(rig: Rig, lapic: FakeLapic) -> None:
    assert not any(upcalls(rig, lapic, WATCHED_FIRST))
    unseen = upcalls(rig, lapic, 4 * WATCHED_EVERY)
    assert unseen.count(False) == 4


def test_one_eoi_with_interrupts_enabled_is_enough(rig: Rig, lapic: FakeLapic) -> None:
    upcalls(rig, lapic, WATCHED_FIRST)
    assert any(upcalls(rig, lapic, WATCHED_EVERY))
    upcalls(rig, lapic, WATCHED_EVERY, opens=True)
    assert not any(upcalls(rig, lapic, 2 * WATCHED_EVERY))
    # A kernel that starts anew has a chance again.
    rig.domain.vcpus[0].park()
    rig.domain.vcpus[0].up = True
    assert not any(upcalls(rig, lapic, WATCHED_FIRST))
    assert any(upcalls(rig, lapic, WATCHED_EVERY))


def test_what_could_not_be_watched_proves_nothing(rig: Rig, lapic: FakeLapic) -> None:
    rig.engine().watches = False
    assert not any(upcalls(rig, lapic, 4 * WATCHED_FIRST))


@pytest.mark.parametrize("why", ["not quiet", "another vector", "engine"])
def test_other_eois_are_seen(rig: Rig, lapic: FakeLapic, why: str) -> None:
    upcalls(rig, lapic, WATCHED_FIRST)
    lapic.quiet = why != "not quiet"
    if why == "another vector":
        rig.domain.vcpus[0].upcall_vector = 0x51
    rig.engine().eoi_passes = why != "engine"
    assert not any(upcalls(rig, lapic, WATCHED_EVERY))


# --- polling ---------------------------------------------------------------------------------


def polling(rig: Rig, ports: tuple[int, ...], deadline: int = 0) -> Vcpu:
    vcpu = running(rig)
    vcpu.running = False
    vcpu.poll(ports, deadline)
    assert states(vcpu) == BLOCKED
    assert vcpu in rig.domain.evtchn.polling
    return vcpu


@pytest.mark.parametrize(
    ("ports", "port", "ends"),
    [((5,), 5, True), ((5,), 6, False), ((5, 6), 6, True), ((5, 6), 7, True), ((), 9, True)],
)
def test_poll_ends_with_a_port(rig: Rig, ports: tuple[int, ...], port: int, ends: bool) -> None:
    vcpu = polling(rig, ports)
    vcpu.wake_poll(port)
    assert vcpu.running is ends
    assert (vcpu in rig.domain.evtchn.polling) is not ends
    assert vcpu.polling is not ends


def test_poll_ends_with_its_deadline(rig: Rig) -> None:
    vcpu = polling(rig, (5,), START + MS)
    rig.pass_time(MS - 1)
    assert not vcpu.running
    rig.pass_time(1)
    assert states(vcpu) == RUNNING
    assert vcpu.poll_ports == ()


def test_the_deadline_of_a_poll_that_ended_is_void(rig: Rig) -> None:
    vcpu = polling(rig, (5,), START + MS)
    vcpu.wake_poll(5)
    rig.serve(b.Halt())
    rig.pass_time(2 * MS)
    assert states(vcpu) == BLOCKED


# --- up and down -----------------------------------------------------------------------------


def test_the_last_to_go_down_powers_off(rigs: Callable[..., Rig]) -> None:
    rig = rigs(3)
    rig.start(0, 1)
    rig.domain.vcpus[0].take_down()
    rig.settle()
    assert rig.domain.shutdown_code == -1
    rig.domain.vcpus[0].take_down()
    rig.domain.vcpus[1].take_down()
    assert rig.domain.shutdown_code == SHUTDOWN_poweroff


def test_taking_down_a_running_vcpu_kicks_it_out(rigs: Callable[..., Rig]) -> None:
    rig = rigs(2)
    rig.start()
    vcpu = rig.domain.vcpus[1]
    vcpu.take_down()
    assert ("kick",) in rig.engine(1).log
    rig.settle()
    assert states(vcpu) == (False, False, False, RUNSTATE_offline)
    vcpu.bring_up()
    assert states(vcpu) == RUNNING


def test_one_that_is_down_stays_down_whatever_comes(rigs: Callable[..., Rig]) -> None:
    rig = rigs(2)
    rig.start()
    vcpu = blocked(rig, 1)
    vcpu.take_down()
    vcpu.unblock()
    assert states(vcpu) == (False, False, False, RUNSTATE_offline)
    vcpu.raise_nmi()
    vcpu.event_pending()
    assert not vcpu.running


def test_up_again_it_waits_on(rigs: Callable[..., Rig]) -> None:
    rig = rigs(2)
    rig.start()
    vcpu = blocked(rig, 1)
    vcpu.take_down()
    vcpu.bring_up()
    assert states(vcpu)[:3] == BLOCKED[:3]
    vcpu.unblock()
    assert states(vcpu) == RUNNING


def test_parked_is_not_powered_off(rig: Rig) -> None:
    vcpu = polling(rig, (1,), START + MS)
    vcpu.nmi_pending = True
    vcpu.park()
    assert states(vcpu) == (False, False, False, RUNSTATE_offline)
    assert rig.domain.shutdown_code == -1
    assert vcpu not in rig.domain.evtchn.polling
    assert not vcpu.nmi_pending
    assert not vcpu.initialised
    rig.pass_time(2 * MS)
    assert not vcpu.running


# --- pausing and shutting down the domain ----------------------------------------------------


def test_pauses_are_counted(rigs: Callable[..., Rig]) -> None:
    rig = rigs(2)
    rig.start()
    rig.domain.pause()
    rig.domain.pause()
    rig.settle()
    assert not any(vcpu.running for vcpu in rig.domain.vcpus)
    rig.domain.unpause()
    assert not any(vcpu.running for vcpu in rig.domain.vcpus)
    rig.domain.unpause()
    assert all(vcpu.running for vcpu in rig.domain.vcpus)


def test_an_event_during_a_pause_is_not_lost(rig: Rig) -> None:
    vcpu = blocked(rig)
    rig.domain.pause()
    rig.set_pending()
    vcpu.event_pending()
    assert not vcpu.running
    rig.domain.unpause()
    assert states(vcpu) == RUNNING
    assert rig.engine().requested == CALLBACK


def test_a_blocked_vcpu_stays_so_over_a_pause(rig: Rig) -> None:
    vcpu = blocked(rig)
    rig.domain.pause()
    rig.domain.unpause()
    assert states(vcpu) == BLOCKED


def test_shutdown_stops_for_good_and_is_told_once(rigs: Callable[..., Rig]) -> None:
    rig = rigs(2)
    rig.start()
    told: list[int] = []
    rig.domain.hooks.shutdown = lambda domain: told.append(domain.shutdown_code)
    rig.domain.vcpus[0].set_singleshot(START + MS)
    rig.domain.shutdown(SHUTDOWN_reboot)
    assert told == [], "the toolstack is told by the loop, not from within an exit"
    rig.domain.shutdown(SHUTDOWN_poweroff)
    rig.domain.crash("too late")
    rig.settle()
    assert told == [SHUTDOWN_reboot]
    rig.domain.unpause()
    rig.pass_time(10 * MS)
    for vcpu in rig.domain.vcpus:
        vcpu.raise_nmi()
        assert not vcpu.running


def test_a_crash_keeps_its_first_reason(rig: Rig) -> None:
    vcpu = rig.start()
    rig.domain.crash("first", vcpu)
    rig.domain.crash("second")
    info = rig.domain.crash_info
    assert info is not None
    assert (info.reason, info.vcpu) == ("first", 0)
    assert rig.domain.shutdown_code == SHUTDOWN_crash


def test_a_domain_that_is_gone_is_not_told_of(rig: Rig) -> None:
    told: list[int] = []
    rig.domain.hooks.shutdown = lambda domain: told.append(1)
    rig.start()
    rig.domain.shutdown(SHUTDOWN_reboot)
    rig.domain.destroy()
    rig.domain.destroy()
    rig.settle()
    assert told == []
    assert rig.host.machine.free_frames == rig.free


# --- timers ----------------------------------------------------------------------------------


def test_singleshot(rig: Rig) -> None:
    virqs = rig.record_virqs()
    vcpu = running(rig)
    vcpu.set_singleshot(START + 5 * MS)
    rig.pass_time(5 * MS - 1)
    assert virqs == []
    rig.pass_time(1)
    assert virqs == [(0, VIRQ_TIMER)]
    rig.pass_time(100 * MS)
    assert len(virqs) == 1


@pytest.mark.parametrize("deadline", [0, START - 1, START])
def test_a_past_deadline_fires_at_once(rig: Rig, deadline: int) -> None:
    virqs = rig.record_virqs()
    running(rig).set_singleshot(deadline)
    assert virqs == [(0, VIRQ_TIMER)]
    rig.pass_time(MS)
    assert len(virqs) == 1


def test_setting_it_again_replaces_it(rig: Rig) -> None:
    virqs = rig.record_virqs()
    vcpu = running(rig)
    vcpu.set_singleshot(START + 2 * MS)
    vcpu.set_singleshot(START + 5 * MS)
    rig.pass_time(4 * MS)
    assert virqs == []
    vcpu.stop_singleshot()
    vcpu.stop_singleshot()
    rig.pass_time(10 * MS)
    assert virqs == []


def test_ticks_of_a_busy_guest_are_taken_together(rigs: Callable[..., Rig]) -> None:
    rig = rigs(slack=10 * MS)
    virqs = rig.record_virqs()
    vcpu = running(rig)
    vcpu.set_singleshot(START + MS)
    rig.pass_time(MS)
    assert len(virqs) == 1
    # The next comes ten milliseconds after that one, not four.
    vcpu.set_singleshot(START + 5 * MS)
    rig.pass_time(9 * MS)
    assert len(virqs) == 1
    rig.pass_time(1 * MS)
    assert len(virqs) == 2
    # And one that is later anyway is on time.
    vcpu.set_singleshot(START + 50 * MS)
    rig.pass_time(39 * MS - 1)
    assert len(virqs) == 2
    rig.pass_time(1)
    assert len(virqs) == 3


def test_an_idle_guest_gets_its_tick_on_time(rigs: Callable[..., Rig]) -> None:
    rig = rigs(slack=10 * MS)
    virqs = rig.record_virqs()
    vcpu = running(rig)
    vcpu.set_singleshot(START + MS)
    rig.pass_time(MS)
    vcpu.set_singleshot(START + 5 * MS)
    rig.serve(b.Halt())
    rig.pass_time(4 * MS - 1)
    assert len(virqs) == 1
    rig.pass_time(1)
    assert len(virqs) == 2


def test_an_overdue_tick_comes_when_the_guest_goes_idle(rigs: Callable[..., Rig]) -> None:
    rig = rigs(slack=10 * MS)
    virqs = rig.record_virqs()
    vcpu = running(rig)
    vcpu.set_singleshot(START + MS)
    rig.pass_time(MS)
    vcpu.set_singleshot(START + 3 * MS)
    rig.pass_time(5 * MS)
    assert len(virqs) == 1
    rig.serve(b.Halt())
    rig.host.timers.run(rig.clock.time)
    assert len(virqs) == 2


def test_periodic(rig: Rig) -> None:
    virqs = rig.record_virqs()
    vcpu = running(rig)
    vcpu.set_periodic(10 * MS)
    virqs.clear()
    rig.pass_time(100 * MS)
    assert len(virqs) == 10
    vcpu.stop_periodic()
    rig.pass_time(100 * MS)
    assert len(virqs) == 10


def test_periodic_ticks_stop_with_the_vcpu_and_one_is_made_up(rig: Rig) -> None:
    virqs = rig.record_virqs()
    vcpu = running(rig)
    vcpu.set_periodic(10 * MS)
    virqs.clear()
    rig.serve(b.Halt())
    rig.pass_time(95 * MS)
    assert virqs == []
    vcpu.unblock()
    assert len(virqs) == 1
    rig.pass_time(20 * MS)
    assert len(virqs) == 3


def test_stop_timers(rig: Rig) -> None:
    virqs = rig.record_virqs()
    vcpu = polling(rig, (1,), START + MS)
    vcpu.set_singleshot(START + MS)
    vcpu.set_periodic(MS)
    virqs.clear()
    vcpu.stop_timers()
    rig.pass_time(10 * MS)
    assert virqs == []
    assert vcpu.blocked


@pytest.mark.parametrize("count", [20_000])
def test_a_timer_storm_takes_bounded_memory(rig: Rig, count: int) -> None:
    rig.record_virqs()
    vcpu = running(rig)
    for i in range(count):
        vcpu.set_singleshot(START + 1000 + i)
    assert len(rig.host.timers._heap) < 300


# --- the guest's clock -----------------------------------------------------------------------


def test_time_is_written_before_the_guest_runs(rig: Rig) -> None:
    vcpu = rig.start()
    page, at = vcpu.info_page, vcpu.info_offset + 32
    version = page.u32[at // 4]
    assert version and not version & 1
    assert page.u64[(at + 16) // 8] == rig.domain.calibration.system_time
    rig.serve(None)
    assert page.u32[at // 4] == version
    rig.domain.time_stale = True
    rig.serve(None)
    assert page.u32[at // 4] == version + 2


def test_time_that_moved_is_written_anew(rig: Rig) -> None:
    vcpu = rig.start()
    vcpu.time_moved()
    assert ("kick",) in rig.engine().log
    version = vcpu.info_page.u32[(vcpu.info_offset + 32) // 4]
    rig.settle()
    assert vcpu.info_page.u32[(vcpu.info_offset + 32) // 4] == version + 2


# --- any sequence ----------------------------------------------------------------------------

ACTIONS: dict[str, Callable[[Rig, Vcpu], None]] = {
    "event": lambda rig, vcpu: (rig.set_pending(vcpu.id), vcpu.event_pending())[1],
    "nmi": lambda _rig, vcpu: vcpu.raise_nmi(),
    "unblock": lambda _rig, vcpu: vcpu.unblock(),
    "wake": lambda _rig, vcpu: vcpu.wake_poll(3) if vcpu.polling else None,
    "up": lambda _rig, vcpu: vcpu.bring_up() if vcpu.initialised else None,
    "down": lambda _rig, vcpu: vcpu.take_down(),
    "pause": lambda rig, _vcpu: rig.domain.pause(),
    "unpause": lambda rig, _vcpu: rig.domain.unpause() if rig.domain.pause_count else None,
    "timer": lambda rig, vcpu: vcpu.set_singleshot(rig.clock.time + MS),
    "periodic": lambda _rig, vcpu: vcpu.set_periodic(MS),
    "time": lambda rig, _vcpu: rig.pass_time(3 * MS),
    "settle": lambda rig, _vcpu: rig.settle(),
    "halt": lambda rig, vcpu: rig.serve(b.Halt(), vcpu.id) and None if vcpu.running else None,
    "exit": lambda rig, vcpu: rig.serve(None, vcpu.id) and None if vcpu.running else None,
}


def poll_while_running(rig: Rig, vcpu: Vcpu) -> None:
    if vcpu.running:
        rig.engine(vcpu.id).exits.clear()
        vcpu.running = False
        vcpu.poll((3,), rig.clock.time + 2 * MS)
        if vcpu.runnable and not vcpu.running:
            # What the host's loop does after a hypercall that did not have to wait.
            vcpu.enter()


ACTIONS["poll"] = poll_while_running


@given(st.lists(st.tuples(st.sampled_from(sorted(ACTIONS)), st.integers(0, 2)), max_size=40))
@settings(max_examples=80, deadline=None)
def test_whatever_happens_the_states_agree(actions: list[tuple[str, int]]) -> None:
    rig = Rig(3)
    rig.domain.callback_vector = CALLBACK
    for i in range(3):
        rig.engine(i).set("rflags", IF)
    rig.start()
    for name, index in actions:
        vcpu = rig.domain.vcpus[index]
        ACTIONS[name](rig, vcpu)
        for each in rig.domain.vcpus:
            assert not (each.running and each.blocked)
            assert each.polling is (each in rig.domain.evtchn.polling)
            assert not each.polling or each.blocked
            if each.runnable:
                assert each.running, "nothing speaks against running"
            if each.blocked:
                assert not each.nmi_pending or not each.up or rig.domain.stopped
            assert sum(each.runstate.snapshot(rig.clock.time)[2]) == rig.clock.time - START
    rig.close()
    assert not any(vcpu.running for vcpu in rig.domain.vcpus)
    assert rig.host.machine.free_frames == rig.free
