"""A virtual CPU as the hypervisor sees it: whether it may run, what interrupts it, its timers.

It decides nothing about devices: a local APIC is attached by the toolstack or absent.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol

from hvmlite.abi.layout import Abi
from hvmlite.abi.vcpu import (
    RUNSTATE_blocked,
    RUNSTATE_offline,
    RUNSTATE_runnable,
    RUNSTATE_running,
)
from hvmlite.abi.xen import VIRQ_TIMER, vcpu_info
from hvmlite.hypervisor.areas import Areas
from hvmlite.hypervisor.call import Call
from hvmlite.hypervisor.eoi import EoiHabit
from hvmlite.hypervisor.timekeeping import TIME_OFFSET, Runstate, write_time

if TYPE_CHECKING:
    from hvmlite.engine.base import EngineVcpu
    from hvmlite.hypervisor.clock import Timer
    from hvmlite.hypervisor.domain import Domain
    from hvmlite.hypervisor.memory import Page

_IF = 1 << 9
_PENDING = vcpu_info.offsetof("evtchn_upcall_pending")
RECENT_CALLS = 8
NOTHING = -1
"""What is offered to a guest that needs no settling after its run."""
_LATCHED = -2
"""What is offered in place of the local APIC's vector: an upcall without an APIC."""


class InterruptController(Protocol):
    """What a local APIC is to its vCPU."""

    @property
    def enabled(self) -> bool:
        """Whether it takes requests for interrupts at all."""

    def pending_vector(self) -> int:
        """The vector that the CPU should take now, -1 for none."""

    def offer(self, vector: int) -> bool:
        """The CPU runs and may take the pending vector at any moment, until `settle`.

        Returns whether nothing would come of that interrupt's EOI: it can go unseen.
        """

    def settle(self, *, taken: bool, ended: bool) -> None:
        """The CPU has stopped and has `taken` the vector or not.

        `ended`: its EOI goes unseen, so it counts as written.
        """

    def set_irq(self, vector: int) -> None:
        """Requests an edge-triggered interrupt."""


class Vcpu:
    """One virtual CPU of a domain.

    `up`: brought up and not taken down.  `blocked`: waits for an event.  `running`: the engine is
    running guest code.  All methods belong to the host loop's thread.
    """

    def __init__(self, domain: Domain, index: int, engine: EngineVcpu) -> None:
        self.domain = domain
        self.id = index
        self.engine = engine
        self.up = False
        self.initialised = False
        self.blocked = False
        self.running = False
        self.lapic: InterruptController | None = None
        self.upcall_vector = 0
        self._upcall_latched = False
        self.offered = NOTHING
        self.eoi_habit = EoiHabit()
        self._eoi_passes = False
        self.nmi_pending = False
        self.info_page: Page
        self.info_offset = 0
        self.info_registered = False
        self.areas = Areas(self)
        self.runstate = Runstate(domain.clock.now())
        self._time_generation = -1
        self.singleshot: Timer | None = None
        self._singleshot_due = 0
        self._last_tick = 0
        self.periodic: Timer | None = None
        self.period = 0
        self._last_period = 0
        self.polling = False
        self.poll_ports: tuple[int, ...] = ()
        self._poll_timer: Timer | None = None
        self.call = Call(self, Abi.X86_64, ())
        self.recent_calls: deque[tuple[int, tuple[int, ...], int]] = deque(maxlen=RECENT_CALLS)
        self.exits = 0

    # ---- vcpu_info ----------------------------------------------------------------------------

    def set_info(self, page: Page, offset: int) -> None:
        """Says where this vCPU's vcpu_info lies from now on."""
        self.info_page, self.info_offset = page, offset
        self._pending = offset + _PENDING
        self._time_generation = -1

    def update_time(self) -> None:
        """Brings the guest's clock records up to the present calibration."""
        calibration = self.domain.calibration
        self._time_generation = calibration.generation
        write_time(self.info_page, self.info_offset + TIME_OFFSET[self.domain.abi], calibration)
        if self.areas.time:
            self.areas.write_time()

    def time_moved(self) -> None:
        """The layout of vcpu_info changed: its time is written anew before the vCPU runs on."""
        self._time_generation = -1
        if self.running:
            self.engine.kick()

    # ---- may it run? ----------------------------------------------------------------------------

    @property
    def runnable(self) -> bool:
        """Whether the vCPU should be in the engine."""
        return self.up and not self.blocked and not self.domain.stopped

    def enter(self) -> None:
        """Lets the guest run; the vCPU must be runnable and not running."""
        domain = self.domain
        if domain.time_stale:
            domain.resync_time(self)
        if self._time_generation != domain.calibration.generation:
            self.update_time()
        engine = self.engine
        if self.nmi_pending:
            self.nmi_pending = False
            engine.inject_nmi()
        vector = self.pending_interrupt()
        habit = self.eoi_habit
        window = False
        if vector >= 0:
            lapic = self.lapic
            if lapic is None:
                engine.request_interrupt(vector)
            elif self.offered >= 0:
                # What a local APIC holds stays there until it is taken.
                engine.request_interrupt(vector, lasting=True)
                quiet = lapic.offer(vector) and vector == self.upcall_vector
                if engine.eoi_passes:
                    self._eoi_passes = passes = quiet and habit.may_pass()
                    engine.pass_eoi(passes)
                    if habit.watching:
                        habit.watching = engine.watch_window()
            else:
                engine.request_interrupt(vector)
                # No exit marks the end of an upcall: what is behind it would wait for chance.
                window = lapic.pending_vector() >= 0
        elif habit.watching:
            # The upcall's EOI is still to come.
            engine.watch_window()
        self.running = True
        # Whoever serves the exits spins for a moment, and wants a doorbell before it sleeps.
        engine.start_spinning()
        if window:
            engine.request_window()

    def pending_interrupt(self) -> int:
        """The vector to deliver now, -1 for none: the event upcall goes before the local APIC."""
        domain = self.domain
        if domain.callback_vector >= 0 and self.info_page.u8[self._pending]:
            self.offered = NOTHING
            return domain.callback_vector
        if self._upcall_latched:
            self.offered = _LATCHED
            return self.upcall_vector
        lapic = self.lapic
        if lapic is not None:
            self.offered = vector = lapic.pending_vector()
            return vector
        return -1

    def after_run(self) -> None:
        """Settles what the last run delivered; call after the engine's `take_exit`."""
        if self.offered >= 0:
            if self.lapic is not None:
                self.lapic.settle(taken=self.engine.interrupt_taken(), ended=self._eoi_passes)
            self.offered = NOTHING
        elif self.offered == _LATCHED:
            if self.engine.interrupt_taken():
                self._upcall_latched = False
            self.offered = NOTHING

    def resume(self) -> None:
        """Enters the guest if nothing speaks against it."""
        if self.up and not self.blocked and not self.running and not self.domain.stopped:
            self.runstate.change(RUNSTATE_running, self.domain.clock.now())
            if self.areas.runstate:
                self.areas.write_runstate()
            if self.period and self.periodic is None:
                self._periodic_work()
            self.domain.host.enter(self)

    # ---- blocking and waking --------------------------------------------------------------------

    def needs_delivery(self) -> bool:
        """Whether something is pending that the stopped vCPU can take now."""
        return self.nmi_pending or (
            self.engine.get("rflags") & _IF != 0 and self.pending_interrupt() >= 0
        )

    def block(self) -> None:
        """Waits for an event (HLT, SCHEDOP_block); returns at once if one is to be delivered."""
        if self.needs_delivery():
            return
        self.blocked = True
        self._deschedule(RUNSTATE_blocked)
        if self.singleshot is not None and self.singleshot.deadline > self._singleshot_due:
            # An idle guest gets its tick on time.
            self._arm_singleshot(self._singleshot_due)

    def poll(self, ports: tuple[int, ...], deadline: int) -> None:
        """Waits until one of the ports is pending or the deadline (ns, 0: none) has come."""
        if self.nmi_pending:
            return
        self.poll_ports = ports
        self.polling = True
        self.blocked = True
        self._deschedule(RUNSTATE_blocked)
        self.domain.evtchn.polling.add(self)
        if deadline:
            self._poll_timer = self.domain.timers.at(deadline, self.unblock)

    def unblock(self) -> None:
        """Ends a wait."""
        if not self.blocked:
            return
        self._end_wait()
        # One that was taken down while it waited stays so.
        self._become_runnable()
        self.resume()

    def _become_runnable(self) -> None:
        if not self.up or self.domain.stopped:
            state = RUNSTATE_offline
        else:
            # One that has not left the guest since it was taken down just goes on.
            state = RUNSTATE_running if self.running else RUNSTATE_runnable
        self.runstate.change(state, self.domain.clock.now())

    def sleep(self) -> None:
        """The vCPU, which wants to run, has stopped because its domain is paused or shut down."""
        self._deschedule(RUNSTATE_offline)

    def _end_wait(self) -> None:
        self.blocked = False
        if self.polling:
            self.polling = False
            self.poll_ports = ()
            self.domain.evtchn.polling.discard(self)
            if self._poll_timer is not None:
                self._poll_timer.cancel()
                self._poll_timer = None

    def _deschedule(self, state: int) -> None:
        """The stopped vCPU will not run on for now: settles what is kept up while it runs."""
        self.runstate.change(state, self.domain.clock.now())
        if self.areas.runstate:
            self.areas.write_runstate()
        if self.periodic is not None:
            # Periodic ticks do not wake a vCPU; one that is overdue comes when it runs again.
            self.periodic.cancel()
            self.periodic = None

    def wake_poll(self, port: int) -> None:
        """A port became pending (masked or not): ends a SCHEDOP_poll that waits for it.

        A poll of one port waits for that one, any other poll ends with whatever port it is.
        """
        if len(self.poll_ports) != 1 or port == self.poll_ports[0]:
            self.unblock()

    def event_pending(self) -> None:
        """evtchn_upcall_pending was just set: have the guest notice."""
        if self.upcall_vector:
            if self.lapic is None:
                self._upcall_latched = True
            elif self.lapic.enabled:
                # Otherwise `apic_enabled` makes up for it.
                self.lapic.set_irq(self.upcall_vector)
        self.notify()

    def set_upcall_vector(self, vector: int) -> None:
        """Has events come by a vector of this vCPU's own instead of the domain's callback."""
        self.upcall_vector = vector
        # Xen asserts it at once on a vCPU that is up, as far as there is an APIC to take it.
        if self.up and (self.lapic is not None or self.info_page.u8[self._pending]):
            self.event_pending()

    def apic_enabled(self) -> None:
        """The guest enabled its local APIC: an upcall that waits for its vector goes there now."""
        if self.upcall_vector and self.lapic is not None and self.info_page.u8[self._pending]:
            self.lapic.set_irq(self.upcall_vector)

    def notify(self) -> None:
        """Something to deliver has come up: kicks a running vCPU, wakes a waiting one."""
        if self.running:
            self.engine.kick()
        elif self.blocked:
            self.unblock()

    def raise_nmi(self) -> None:
        """Delivers an NMI."""
        self.nmi_pending = True
        self.notify()

    # ---- up and down ----------------------------------------------------------------------------

    def bring_up(self) -> None:
        """Starts an initialised vCPU, or lets one go on that was taken down."""
        if not self.up:
            self.up = True
            if not self.blocked:
                self._become_runnable()
                self.resume()

    def take_down(self) -> None:
        """Stops the vCPU; the last one to go down powers the domain off."""
        if not self.up:
            return
        self.up = False
        if self.running:
            self.runstate.change(RUNSTATE_offline, self.domain.clock.now())
            self.engine.kick()
        elif not self.blocked:
            self._deschedule(RUNSTATE_offline)
        self.domain.vcpu_went_down()

    def park(self) -> None:
        """Stops the vCPU as INIT does: it waits for a start-up message, which is not being down."""
        self.up = False
        self.initialised = False
        self.nmi_pending = False
        self.eoi_habit.forget()
        self._end_wait()
        self.runstate.change(RUNSTATE_offline, self.domain.clock.now())

    def release(self) -> None:
        """Lets go what it holds of the guest's memory, at the end."""
        self.areas.release()
        if self.info_registered:
            self.info_registered = False
            self.domain.host.frames.put(self.info_page.frame)

    # ---- timers ---------------------------------------------------------------------------------

    def set_singleshot(self, deadline: int) -> None:
        """Arms the one-shot timer: VIRQ_TIMER at `deadline` (ns of system time), or at once."""
        self._singleshot_due = deadline
        # While the guest is busy, ticks less than the slack apart are taken together.
        when = max(deadline, self._last_tick + self.domain.timer_slack)
        if when > self.domain.clock.now():
            self._arm_singleshot(when)
        else:
            self.stop_singleshot()
            self._singleshot_fired()

    def _arm_singleshot(self, when: int) -> None:
        if self.singleshot is not None:
            self.singleshot.cancel()
        self.singleshot = self.domain.timers.at(when, self._singleshot_fired)

    def stop_singleshot(self) -> None:
        """Disarms the one-shot timer."""
        if self.singleshot is not None:
            self.singleshot.cancel()
            self.singleshot = None

    def _singleshot_fired(self) -> None:
        self.singleshot = None
        self._last_tick = self.domain.clock.now()
        self.domain.evtchn.send_virq(self, VIRQ_TIMER)

    def set_periodic(self, period: int) -> None:
        """Arms the periodic timer (ns); the first tick is due a period after the last one ever."""
        self.stop_periodic()
        self.period = period
        self._periodic_work()

    def stop_periodic(self) -> None:
        """Disarms the periodic timer."""
        self.period = 0
        if self.periodic is not None:
            self.periodic.cancel()
            self.periodic = None

    def _periodic_work(self) -> None:
        now = self.domain.clock.now()
        if now >= self._last_period + self.period:
            self._last_period = now
            self.domain.evtchn.send_virq(self, VIRQ_TIMER)
        if self.period:
            due = self._last_period + self.period
            if self.periodic is not None:
                # The tick woke the vCPU, which has armed it anew by itself.
                self.periodic.cancel()
            self.periodic = self.domain.timers.at(due, self._periodic_work)

    def stop_timers(self) -> None:
        """Disarms everything that could wake this vCPU."""
        self.stop_singleshot()
        self.stop_periodic()
        if self._poll_timer is not None:
            self._poll_timer.cancel()
            self._poll_timer = None
