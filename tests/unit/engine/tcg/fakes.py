"""A TcgPartition whose QEMU is played by the test: a stub that carries out commands in Python.

Every command wakes the sleeping stub, which runs at once in the test's own thread.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from hvmlite.engine import base as b
from hvmlite.engine.memory import PAGE_SIZE, MachineMemory
from hvmlite.engine.tcg import layout as L
from hvmlite.engine.tcg.partition import TcgPartition
from hvmlite.engine.tcg.vcpu import TcgVcpu
from hvmlite.errors import EngineError


class FakeProcess:
    """What QemuProcess is to a partition."""

    path = "/fake/qemu"

    def __init__(self, _memory: MachineMemory, rom: bytes, cpus: int, cpu_model: str) -> None:
        self.rom = rom
        self.cpus = cpus
        self.cpu_model = cpu_model
        self.doorbell, self.bell = socket.socketpair()
        self.doorbell.setblocking(False)
        self.channel, _ = socket.socketpair()
        self.dead = ""
        self.closed = False

    def check_alive(self) -> None:
        if self.dead:
            raise EngineError(self.dead)

    def close(self) -> None:
        self.closed = True
        for each in (self.doorbell, self.bell, self.channel):
            each.close()


class FakeDma:
    """What DmaDevice is to a partition; an interrupt wakes the stub."""

    def __init__(
        self,
        memory: MachineMemory,
        area: int,
        _channel: socket.socket,
        _check_alive: Callable[[], None],
    ) -> None:
        self._memory = memory
        self._area = area
        self.writes: list[tuple[int, bytes]] = []
        self.interrupts: list[tuple[int, int]] = []
        self.was_set_up = False
        self.stub: Callable[[int], None] = lambda _cpu: None

    def set_up(self, read32: Callable[[int], int], write32: Callable[[int, int], None]) -> None:
        self.was_set_up = True

    def write(self, target: int, data: bytes | bytearray | memoryview) -> None:
        self.writes.append((target, bytes(data)))
        start = L.frame_of(target & ~0xFFF) * PAGE_SIZE + (target & 0xFFF)
        self._memory.u8[start : start + len(data)] = data

    def interrupt(self, cpu: int, vector: int) -> None:
        self.interrupts.append((cpu, vector))
        self.stub(cpu)

    def close(self) -> None: ...


class Machine:
    """A partition with its stub: `guest(vcpu)` is called for each run and plays the guest.

    It says with `exit` why the run ended, else the vCPU goes on running.
    """

    def __init__(self, partition: TcgPartition) -> None:
        self.partition = partition
        self.guest: Callable[[TcgVcpu], None] = lambda _vcpu: None
        self.cpuid: dict[tuple[int, int], tuple[int, int, int, int]] = {}
        self.tsc = 1000
        self.tsc_aux = 0
        self.commands: list[int] = []
        self.devices: dict[int, int] = {}
        self.dma.stub = self._stub
        for vcpu in partition.vcpus:
            self.field(vcpu, L.ASLEEP, 4, 1)
            self.field(vcpu, L.STATE, 4, 0)
        self._next_frame = 0x300

    @property
    def dma(self) -> FakeDma:
        dma = self.partition._dma
        assert isinstance(dma, FakeDma)
        return dma

    @property
    def process(self) -> FakeProcess:
        process = self.partition._process
        assert isinstance(process, FakeProcess)
        return process

    @property
    def vcpu(self) -> TcgVcpu:
        return self.partition.vcpus[0]

    def field(self, vcpu: TcgVcpu, offset: int, size: int, value: int | None = None) -> int:
        """A field of a vCPU's mailbox."""
        return self._word(vcpu, L.CPU_MAILBOX + offset, size, value)

    def vmcb(self, vcpu: TcgVcpu, offset: int, size: int, value: int | None = None) -> int:
        """A field of a vCPU's VMCB."""
        return self._word(vcpu, L.CPU_VMCB + offset, size, value)

    def _word(self, vcpu: TcgVcpu, offset: int, size: int, value: int | None) -> int:
        at = self.partition.area + L.CPU_AREAS + vcpu.index * L.CPU_STRIDE + offset
        u8 = self.partition.memory.u8
        if value is not None:
            u8[at : at + size] = value.to_bytes(size, "little")
        return int.from_bytes(u8[at : at + size], "little")

    def exit(self, vcpu: TcgVcpu, code: int, info1: int = 0, info2: int = 0) -> None:
        """Ends a run with a #VMEXIT."""
        self.vmcb(vcpu, L.EXIT_CODE, 8, code)
        self.vmcb(vcpu, L.EXIT_INFO_1, 8, info1)
        self.vmcb(vcpu, L.EXIT_INFO_2, 8, info2)
        self.field(vcpu, L.STATE, 4, 0)
        self.field(vcpu, L.ASLEEP, 4, 1)

    def _stub(self, cpu: int) -> None:
        vcpu = self.partition.vcpus[cpu]
        self.field(vcpu, L.KICKED, 4, 0)
        command = self.field(vcpu, L.STATE, 4)
        first = L.ARGUMENTS
        if command:
            self.commands.append(command)
        if command == L.CMD_RUN:
            self.field(vcpu, L.ASLEEP, 4, 0)
            self.guest(vcpu)
            return
        if command == L.CMD_CPUID:
            leaf = self.field(vcpu, first, 8), self.field(vcpu, first + 8, 8)
            for i, value in enumerate(self.cpuid.get(leaf, (0, 0, 0, 0))):
                self.field(vcpu, first + 8 * i, 8, value)
        elif command == L.CMD_RDTSC:
            self.field(vcpu, first, 8, self.tsc)
            self.field(vcpu, first + 8, 8, self.tsc_aux)
        elif command == L.CMD_READ32:
            self.field(vcpu, first + 8, 8, self.devices[self.field(vcpu, first, 8)])
        elif command == L.CMD_WRITE32:
            self.devices[self.field(vcpu, first, 8)] = self.field(vcpu, first + 8, 8)
        self.field(vcpu, L.STATE, 4, 0)

    def run(self, code: int, info1: int = 0, info2: int = 0) -> b.Exit | None:
        """Runs vCPU 0 to an exit of the given kind and decodes it."""
        self.guest = lambda vcpu: self.exit(vcpu, code, info1, info2)
        self.vcpu.start()
        assert self.vcpu.exited()
        return self.vcpu.take_exit()

    def place(self, gpa: int, data: bytes, access: b.Access = b.Access.RWX) -> int:
        """Maps the pages that a piece of guest memory needs, and fills it; returns the frame."""
        first = self._next_frame
        count = ((gpa & 0xFFF) + len(data) + 0xFFF) >> 12
        self._next_frame += count
        self.partition.map(gpa >> 12, first, count, access)
        start = first * PAGE_SIZE + (gpa & 0xFFF)
        self.partition.memory.u8[start : start + len(data)] = data
        return first

    def peek(self, gpa: int, size: int) -> bytes:
        """Guest memory as the guest sees it."""
        return self.partition.read_linear(self.vcpu, gpa, size)

    def rings(self) -> int:
        """Rings the doorbell."""
        return os.write(self.process.bell.fileno(), b"\0")
