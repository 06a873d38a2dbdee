"""An engine whose vCPUs do what a test says, and remember what was asked of them."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from typing import Any

from hvmlite.engine import base as b
from hvmlite.engine.memory import MachineMemory
from hvmlite.errors import EngineError
from hvmlite.hypervisor.clock import Clock
from hvmlite.hypervisor.cpuid import CpuidPolicy
from hvmlite.hypervisor.domain import Domain, Limits
from hvmlite.hypervisor.host import Host
from hvmlite.hypervisor.release import RELEASES
from hvmlite.hypervisor.vcpu import Vcpu

from .conftest import FakePartition, FakeVcpu

MIB = 1 << 20
IF = 1 << 9
START = 1_000_000_000_000
PENDING = 0
"""Offset of evtchn_upcall_pending in vcpu_info."""

Registers = tuple[int, int, int, int]


class ScriptedVcpu(FakeVcpu):
    """Runs until `exits` has something; `log` has what was done to it."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.exits: deque[b.Exit | None] = deque()
        self.log: list[tuple[Any, ...]] = []
        self.runs = 0
        self.requested = -1
        self.taken = False
        self.watches = True
        self.cpuid: dict[tuple[int, int], Registers] = {}
        self.constant: dict[int, Any] = {}
        self.mmio: Callable[..., None] = lambda read, write: None
        self.level = 0
        self.on_exit: Callable[[], None] = lambda: None
        self.on_start: Callable[[], None] = lambda: None
        self.on_kick: Callable[[], None] = lambda: self.exit(b.Kicked())

    def exit(self, exit_: b.Exit | None) -> None:
        """Ends the run."""
        self.exits.append(exit_)
        self.on_exit()

    def done(self, name: str) -> list[tuple[Any, ...]]:
        """What calls of that name were made with."""
        return [entry[1:] for entry in self.log if entry[0] == name]

    def start(self) -> None:
        assert not self.exits, "started with an exit that nobody looked at"
        self.runs += 1
        self.on_start()

    def exited(self) -> bool:
        return bool(self.exits)

    def take_exit(self) -> b.Exit | None:
        return self.exits.popleft()

    def kick(self) -> None:
        self.log.append(("kick",))
        if not self.exits:
            self.on_kick()

    def request_interrupt(self, vector: int, lasting: bool = False) -> None:
        self.requested = vector
        self.log.append(("request", vector))

    def pass_eoi(self, wanted: bool) -> None:
        self.log.append(("pass_eoi", wanted))

    def watch_window(self) -> bool:
        if self.watches:
            self.log.append(("watch",))
        return self.watches

    def request_window(self) -> None:
        self.log.append(("window",))

    def interrupt_taken(self) -> bool:
        return self.taken

    def inject_exception(self, vector: int, error_code: int | None = None) -> None:
        self.log.append(("exception", vector, error_code))

    def inject_nmi(self) -> None:
        self.log.append(("nmi",))

    def complete_cpuid(self, eax: int, ebx: int, ecx: int, edx: int) -> None:
        self.log.append(("cpuid", eax, ebx, ecx, edx))

    def complete_rdmsr(self, value: int) -> None:
        self.log.append(("rdmsr", value))

    def complete_wrmsr(self) -> None:
        self.log.append(("wrmsr",))

    def complete_in(self, value: int) -> None:
        self.log.append(("in", value))

    def complete_out(self) -> None:
        self.log.append(("out",))

    def emulate_mmio(
        self, read: Callable[[int, int], int], write: Callable[[int, int, int], None]
    ) -> None:
        self.mmio(read, write)

    def load(self, state: b.CpuState) -> None:
        self.log.append(("load", state))

    def segment(self, name: str) -> b.Segment:
        return b.Segment(b.SEGMENT_REGISTERS.index(name), 0x1000, 0xFFFF, 0x93)

    def fetch(self, size: int) -> bytes:
        return b"\x0f\x0b".ljust(size, b"\x90")

    def hardware_cpuid(self, leaf: int, subleaf: int) -> Registers:
        self.log.append(("hardware_cpuid", leaf, subleaf))
        return self.cpuid.get((leaf, subleaf), self.cpuid.get((leaf, -1), (0, 0, 0, 0)))

    def set_constant_cpuid(self, leaves: Any) -> None:
        self.constant = dict(leaves)

    @property
    def cpl(self) -> int:
        return self.level

    def hypercall_registers(self) -> tuple[int, int, int, tuple[int, int, int, int, int]]:
        mode, _, number, args = super().hypercall_registers()
        return mode, self.level, number, args


class ScriptedPartition(FakePartition):
    """Rings its doorbell when an exit comes while somebody waits for that."""

    vcpus: list[ScriptedVcpu]  # type: ignore[assignment]

    def __init__(self, memory: MachineMemory, vcpus: int) -> None:
        super().__init__(memory, vcpus)
        self.vcpus = [ScriptedVcpu(i) for i in range(vcpus)]
        self.wanted = False
        self.dead = ""
        self.slept = 0
        for vcpu in self.vcpus:
            vcpu.on_exit = self.ring

    def ring(self) -> None:
        if self.wanted and not self.closed:
            os.eventfd_write(self.doorbell, 1)

    def want_doorbell(self, wanted: bool) -> None:
        self.wanted = wanted
        self.slept += wanted

    def clear_doorbell(self) -> None:
        os.eventfd_read(self.doorbell)
        self.check_alive()

    def check_alive(self) -> None:
        if self.dead:
            raise EngineError(self.dead)


class ScriptedEngine(b.Engine):
    name = "scripted"

    def create(self, memory: MachineMemory, vcpus: int) -> ScriptedPartition:
        return ScriptedPartition(memory, vcpus)


class StoppedClock(Clock):
    """Stands still until a test moves it."""

    def __init__(self) -> None:
        super().__init__()
        self.time = START

    def now(self) -> int:
        return self.time


class Rig:
    """A host with a domain, and the ends of them that a test holds."""

    def __init__(
        self,
        vcpus: int = 1,
        *,
        ram: int = 64,
        slack: int = 0,
        release: tuple[int, int] = (4, 17),
        stopped_clock: bool = True,
    ) -> None:
        self.host = Host(ScriptedEngine(), 4 * MIB)
        self.free = self.host.machine.free_frames
        self.clock = StoppedClock()
        self.stopped_clock = stopped_clock
        self.domain = self.add_domain(vcpus, ram=ram, slack=slack, release=release)
        self.virqs: list[tuple[int, int]] = []
        if stopped_clock:
            self.domain.clock = self.clock
            for vcpu in self.domain.vcpus:
                vcpu.runstate.entered = self.clock.time

    def add_domain(
        self,
        vcpus: int = 1,
        *,
        ram: int = 64,
        slack: int = 0,
        release: tuple[int, int] = (4, 17),
    ) -> Domain:
        domain = Domain(
            self.host,
            self.host.allocate_domid(),
            vcpus,
            release=RELEASES[release],
            limits=Limits(),
            cpuid=CpuidPolicy(),
            timer_slack=slack,
        )
        domain.max_pages = ram + 64
        if ram:
            domain.add_ram(0, ram)
        return domain

    def close(self) -> None:
        self.host.close()

    def engine(self, index: int = 0, domain: Domain | None = None) -> ScriptedVcpu:
        engine = (domain or self.domain).vcpus[index].engine
        assert isinstance(engine, ScriptedVcpu)
        return engine

    @property
    def partition(self) -> ScriptedPartition:
        partition = self.domain.partition
        assert isinstance(partition, ScriptedPartition)
        return partition

    def start(self, *indexes: int) -> Vcpu:
        """Brings vCPUs up (all of them if none is named); returns the first."""
        for vcpu in self.domain.vcpus:
            if not indexes or vcpu.id in indexes:
                vcpu.initialised = True
                vcpu.bring_up()
        return self.domain.vcpus[indexes[0] if indexes else 0]

    def serve(self, exit_: b.Exit | None, index: int = 0) -> Vcpu:
        """Has a running vCPU exit, and the host serve it."""
        vcpu = self.domain.vcpus[index]
        assert vcpu.running
        engine = self.engine(index)
        engine.exits.clear()
        engine.exits.append(exit_)
        self.host._serve(vcpu)
        return vcpu

    def settle(self) -> None:
        """Serves the exits of kicks and the calls that were put off, without the loop."""
        while True:
            pending = [v for v in self.domain.vcpus if v.running and v.engine.exited()]
            for vcpu in pending:
                self.host._serve(vcpu)
            if not pending and not self.host._soon:
                return
            while self.host._soon:
                self.host._soon.popleft()()

    def pass_time(self, ns: int) -> None:
        """Moves the clock on, stopping at each timer that is due on the way."""
        end = self.clock.time + ns
        timers = self.host.timers
        while timers.next <= end:
            self.clock.time = max(self.clock.time, timers.next)
            timers.run(self.clock.time)
        self.clock.time = end

    def set_pending(self, index: int = 0, pending: int = 1) -> None:
        """Sets evtchn_upcall_pending without telling anybody."""
        vcpu = self.domain.vcpus[index]
        vcpu.info_page.u8[vcpu.info_offset + PENDING] = pending

    def record_virqs(self) -> list[tuple[int, int]]:
        """Has VIRQs noted as (vCPU, VIRQ) instead of sent."""
        evtchn: Any = self.domain.evtchn
        evtchn.send_virq = lambda vcpu, virq: self.virqs.append((vcpu.id, virq))
        return self.virqs
