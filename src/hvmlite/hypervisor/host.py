"""The host: machine memory, the domains on it, and the one loop that serves all their exits.

One thread runs the loop and owns everything below it; other threads reach it through `call_soon`.
While a guest runs the loop spins for a moment, since the next exit is mostly near, then sleeps
until a doorbell, a timer or a file descriptor wakes it.  A guest that exits all the time keeps it
from sleeping, not from looking at file descriptors now and then.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from hvmlite.abi.xen import DOMID_FIRST_RESERVED
from hvmlite.engine.memory import MachineMemory
from hvmlite.errors import EngineError
from hvmlite.hypervisor.clock import NEVER, Clock, TimerQueue
from hvmlite.hypervisor.exits import HANDLERS
from hvmlite.hypervisor.frames import FrameTable
from hvmlite.hypervisor.vcpu import NOTHING

if TYPE_CHECKING:
    from hvmlite.engine.base import Engine
    from hvmlite.hypervisor.domain import Domain
    from hvmlite.hypervisor.vcpu import Vcpu

SPIN_NS = 30_000
"""How long the loop goes on without news before it sleeps: less than waking up costs, and longer
than a guest takes that makes one hypercall after the other."""
POLL_NS = 200_000
"""How long file descriptors wait at most while guests give the loop no rest."""
_FD_SETSIZE = 1024
_LONGEST_SLEEP_NS = 1_000_000_000
_MOST_BUGS = 10
"""Tracebacks that are printed; a guest could cause any number."""
_LAST_DOMID = DOMID_FIRST_RESERVED - 1


class Host:
    """A machine of its own: memory, clock, timers and any number of domains."""

    def __init__(
        self, engine: Engine, memory: int | MachineMemory, clock: Clock | None = None
    ) -> None:
        """`memory`: a size in bytes, or what there is already; it belongs to the host then."""
        self.engine = engine
        self.machine = MachineMemory(memory) if isinstance(memory, int) else memory
        self.clock = clock or Clock()
        self.timers = TimerQueue(self.clock)
        self.frames = FrameTable(self.machine)
        self.domains: dict[int, Domain] = {}
        self._next_domid = 1
        self._running: list[Vcpu] = []
        self._soon: deque[Callable[[], None]] = deque()
        self._readers: dict[int, Callable[[], None]] = {}
        self._writers: dict[int, Callable[[], None]] = {}
        self._epoll = select.epoll()
        self._epoll_fds = (self._epoll.fileno(),)
        # A process with that many files open cannot select: its sleep may be 1 ms too long then.
        self._selectable = self._epoll.fileno() < _FD_SETSIZE
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._epoll.register(self._wake_read, select.EPOLLIN)
        self._readers[self._wake_read] = self._drain_wake
        self._wake_lock = threading.RLock()
        """Held to wake the loop, never for an exit; a signal handler may come upon its own."""
        self._asleep = False
        self._stop = False
        self._closed = False
        self._bugs = 0
        self._awake_until = 0
        self._processors = len(os.sched_getaffinity(0))

    # ---- domains --------------------------------------------------------------------------------

    def domain(self, domid: int) -> Domain | None:
        """The domain with that number."""
        return self.domains.get(domid)

    def allocate_domid(self) -> int:
        """A domain number that is not in use."""
        while True:
            domid = self._next_domid
            self._next_domid = domid + 1 if domid < _LAST_DOMID else 1
            if domid not in self.domains:
                return domid

    @property
    def guests_run(self) -> bool:
        """Whether any guest's code may run at this moment."""
        return any(vcpu.running for vcpu in self._running)

    def enter(self, vcpu: Vcpu) -> None:
        """Lets a runnable vCPU run and serves its exits from now on."""
        if vcpu not in self._running:
            self._running.append(vcpu)
        vcpu.enter()

    def forget(self, domain: Domain) -> None:
        """Takes a domain's vCPUs off the loop."""
        self.halt(domain)
        self.domains.pop(domain.domid, None)

    def halt(self, domain: Domain) -> None:
        """Serves no more exits of a domain's vCPUs."""
        self._running = [vcpu for vcpu in self._running if vcpu.domain is not domain]
        self.remove_reader(domain.partition.doorbell)

    # ---- file descriptors and calls -------------------------------------------------------------

    def add_reader(self, fd: int, callback: Callable[[], None]) -> None:
        """Has `callback()` called whenever `fd` is readable."""
        self._add(self._readers, fd, callback)

    def remove_reader(self, fd: int) -> None:
        """Ends `add_reader`."""
        if self._readers.pop(fd, None) is not None:
            self._update(fd)

    def add_writer(self, fd: int, callback: Callable[[], None]) -> None:
        """Has `callback()` called whenever `fd` is writable."""
        self._add(self._writers, fd, callback)

    def remove_writer(self, fd: int) -> None:
        """Ends `add_writer`."""
        if self._writers.pop(fd, None) is not None:
            self._update(fd)

    def _add(
        self, callbacks: dict[int, Callable[[], None]], fd: int, callback: Callable[[], None]
    ) -> None:
        callbacks[fd] = callback
        try:
            self._update(fd)
        except OSError:
            # A later descriptor of that number is another matter.
            del callbacks[fd]
            raise

    def _update(self, fd: int) -> None:
        wanted = (select.EPOLLIN if fd in self._readers else 0) | (
            select.EPOLLOUT if fd in self._writers else 0
        )
        if not wanted:
            # One that was closed first is forgotten already.
            with contextlib.suppress(OSError):
                self._epoll.unregister(fd)
            return
        try:
            self._epoll.modify(fd, wanted)
        except FileNotFoundError:
            self._epoll.register(fd, wanted)

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Has `callback()` called by the loop; the one method for other threads."""
        self._soon.append(callback)
        if self._asleep:
            self._wake()

    def stay_awake(self, time: int) -> None:
        """A guest's next exit is expected within that time (ns): to sleep would take longer.

        Without effect if the guests themselves need the processors.
        """
        if len(self._running) < self._processors:
            self._awake_until = self.clock.now() + time

    def _wake(self) -> None:
        # Once closed, the number may be another file's.
        with self._wake_lock, contextlib.suppress(BlockingIOError):
            if not self._closed:
                os.write(self._wake_write, b"x")

    def _drain_wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 4096)

    # ---- the loop -------------------------------------------------------------------------------

    def stop(self) -> None:
        """Makes `run` return; may be called from any thread or a signal handler."""
        self._stop = True
        self._wake()

    def run(self) -> None:
        """Serves exits, timers and file descriptors until `stop`.

        An engine that dies takes its domain with it, not the loop; so does an exception that
        nobody expected in the handler of an exit.  One in any other callback ends that callback.
        """
        try:
            while not self._stop:
                try:
                    self._loop()
                except EngineError:
                    if not self._bury_dead_engines():
                        raise
        finally:
            self._stop = False

    def report_bug(self, error: BaseException) -> None:
        """Prints the traceback of what nobody expected, unless there were many already."""
        self._bugs += 1
        if self._bugs <= _MOST_BUGS:
            sys.excepthook(type(error), error, error.__traceback__)

    def _went_wrong(self, error: Exception) -> bool:
        """A callback raised; returns whether it was our bug, not the end of an engine."""
        if isinstance(error, EngineError) and self._bury_dead_engines():
            return False
        self.report_bug(error)
        return True

    def _bury_dead_engines(self) -> bool:
        """Crashes the domains whose engine is gone; returns whether there was one."""
        found = False
        for domain in list(self.domains.values()):
            try:
                domain.partition.check_alive()
            except EngineError as error:
                domain.engine_failed(str(error))
                found = True
        return found

    def _loop(self) -> None:
        timers, now, soon = self.timers, self.clock.now, self._soon
        quiet_since = now()
        poll_at = quiet_since + POLL_NS
        while not self._stop:
            news = False
            # The list only grows while we go through it, and is rebuilt when a vCPU leaves.
            running = self._running
            for vcpu in running:
                # An earlier one's exit may have stopped this one (INIT).
                if vcpu.running and vcpu.engine.spin():
                    news = True
                    if not self._serve(vcpu):
                        self._running = [v for v in self._running if v.running]
            if soon:
                news = True
                try:
                    # What these put there waits for the next turn, or nobody else would get one.
                    for _ in range(len(soon)):
                        soon.popleft()()
                except Exception as error:
                    self._went_wrong(error)
            moment = now()
            if timers.next <= moment:
                try:
                    news |= timers.run(moment)
                except Exception as error:
                    self._went_wrong(error)
            if news:
                quiet_since = moment
                if moment > poll_at:
                    # One vCPU's exits must not keep another's start or kick from being seen.
                    for vcpu in self._running:
                        vcpu.engine.nudge()
                    self._serve_files(self._epoll.poll(0))
                    poll_at = moment + POLL_NS
            elif not self._running or (
                moment - quiet_since > SPIN_NS and moment > self._awake_until
            ):
                self._sleep()
                quiet_since = now()
                poll_at = quiet_since + POLL_NS

    def _serve(self, vcpu: Vcpu) -> bool:
        """Handles an exit; returns whether the vCPU runs on."""
        vcpu.running = False
        vcpu.exits += 1
        exit_ = vcpu.engine.take_exit()
        if vcpu.offered != NOTHING:
            vcpu.after_run()
        if exit_ is not None:
            try:
                HANDLERS[exit_.__class__](vcpu, exit_)
            except EngineError as error:
                vcpu.domain.crash(str(error), vcpu)
            except Exception as error:
                vcpu.domain.fail(error, vcpu)
        if vcpu.up and not vcpu.blocked and not vcpu.running:
            if vcpu.domain.stopped:
                vcpu.sleep()
            else:
                vcpu.enter()
        return vcpu.running

    def _sleep(self) -> None:
        self._asleep = True
        partitions = {vcpu.domain.partition for vcpu in self._running}
        for partition in partitions:
            partition.want_doorbell(True)
        timeout = 0
        if not self._soon and not any(vcpu.engine.exited() for vcpu in self._running):
            wait = _LONGEST_SLEEP_NS
            if self.timers.next != NEVER:
                wait = min(wait, self.timers.next - self.clock.now())
            for vcpu in self._running:
                wait = min(wait, vcpu.engine.nudge())
            timeout = max(wait, 0)
        # epoll counts in milliseconds, which is a guest's whole tick; select in microseconds.
        if timeout:
            if self._selectable:
                select.select(self._epoll_fds, (), (), timeout / 1e9)
            else:
                self._epoll.poll(timeout / 1e9)
        events = self._epoll.poll(0)
        self._asleep = False
        for partition in partitions:
            partition.want_doorbell(False)
        self._serve_files(events)
        if not events:
            self._bury_dead_engines()

    def _serve_files(self, events: list[tuple[int, int]]) -> None:
        for fd, mask in events:
            try:
                if mask & ~select.EPOLLOUT and (reader := self._readers.get(fd)):
                    reader()
                if mask & ~select.EPOLLIN and (writer := self._writers.get(fd)):
                    writer()
            except Exception as error:
                if self._went_wrong(error):
                    # It would be called again at once, and for ever.
                    self.remove_reader(fd)
                    self.remove_writer(fd)

    def close(self) -> None:
        """Destroys all domains and frees the machine."""
        if self._closed:
            return
        with self._wake_lock:
            self._closed = True
        for domain in list(self.domains.values()):
            domain.destroy()
        self._epoll.close()
        os.close(self._wake_read)
        os.close(self._wake_write)
        self.engine.close()
        self.machine.close()
