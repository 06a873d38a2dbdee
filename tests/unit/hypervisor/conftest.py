"""Real domains on an engine without a CPU: what a guest would do, a test does by hand.

Tests take the `guests` fixture and call it for a Guest; hypercalls go through the real dispatcher.
Linear addresses are guest-physical ones, but the first page is absent, as for a null pointer.
"""

from __future__ import annotations

import abc
import contextlib
import os
import struct
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import pytest

from hvmlite.abi.layout import Abi, Struct
from hvmlite.engine import base as b
from hvmlite.engine.memory import MachineMemory
from hvmlite.engine.paging import PageFault
from hvmlite.hypervisor.domain import Domain, Limits
from hvmlite.hypervisor.exits import hypercall
from hvmlite.hypervisor.host import Host
from hvmlite.hypervisor.release import RELEASES

S = TypeVar("S", bound=Struct)

PAGE = 4096
RAM_FRAMES = 1024
HEAP = 0x100000
"""Where a guest keeps what it hands to hypercalls."""
UNMAPPED = 0xD000_0000
ONES = 0xFFFF_FFFF
MASKS = {64: (1 << 64) - 1, 32: (1 << 32) - 1}
ORDER = {64: ("rdi", "rsi", "rdx", "r10", "r8"), 32: ("rbx", "rcx", "rdx", "rsi", "rdi")}


def does_nothing_else(cls: type) -> type:
    """Lets a fake leave out what no test of this folder needs."""
    for name in cls.__abstractmethods__:
        setattr(cls, name, lambda *_args, **_kwargs: None)
    return abc.update_abstractmethods(cls)


@does_nothing_else
class FakeVcpu(b.EngineVcpu):
    """Registers and nothing that executes."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.registers = dict.fromkeys((*b.GENERAL_REGISTERS, *b.CONTROL_REGISTERS), 0)
        self.width = 64

    def get(self, name: str) -> int:
        return self.registers[name]

    def set(self, name: str, value: int) -> None:
        self.registers[name] = value

    def hypercall_registers(self) -> tuple[int, int, int, tuple[int, int, int, int, int]]:
        mask = MASKS[self.width]
        args: Any = tuple(self.registers[name] & mask for name in ORDER[self.width])
        return self.width, 0, self.registers["rax"] & mask, args

    def set_rax(self, value: int) -> None:
        self.registers["rax"] = value

    @property
    def mode(self) -> int:
        return self.width

    @property
    def cpl(self) -> int:
        return 0

    def translate(self, address: int, *, write: bool = False) -> int:
        if address < PAGE or address >= 1 << 47:
            raise PageFault(address, write=write, present=False)
        return address

    def read_tsc(self) -> int:
        return time.monotonic_ns() * 3

    def exited(self) -> bool:
        return True


@does_nothing_else
class FakePartition(b.Partition):
    """The nested map as a dictionary; a mapping that went stays in use until `flush`."""

    def __init__(self, memory: MachineMemory, vcpus: int) -> None:
        self.memory = memory
        self.vcpus = [FakeVcpu(i) for i in range(vcpus)]
        self.executed_frames = bytearray(memory.frames)
        self.doorbell = os.eventfd(0)
        self.nested: dict[int, tuple[int, b.Access]] = {}
        self.cached: set[int] = set()
        """Frames that a vCPU may still use through a mapping that went."""
        self.flushes = 0
        self.closed = False

    def map(
        self, gfn: int, frame: int, count: int, access: b.Access, *, code: bool = False
    ) -> None:
        for i in range(count):
            old = self.nested.get(gfn + i)
            if old is not None and old[0] != frame + i:
                self.cached.add(old[0])
            self.nested[gfn + i] = (frame + i, access)

    def unmap(self, gfn: int, count: int) -> None:
        for i in range(count):
            self.cached.add(self.nested.pop(gfn + i)[0])

    def flush(self) -> None:
        self.flushes += 1
        self.cached.clear()

    def write(self, frame: int, offset: int, data: bytes | bytearray | memoryview) -> None:
        assert not self.closed
        start = frame * PAGE + offset
        self.memory.u8[start : start + len(data)] = data

    def executed(self, frame: int) -> bool:
        return self.executed_frames[frame] != 0

    def contents_replaced(self, frame: int, offset: int = 0, size: int = PAGE) -> None:
        assert not any(self.memory.u8[frame * PAGE : frame * PAGE + PAGE])

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            os.close(self.doorbell)


class WatchedMemory(MachineMemory):
    """Complains when a frame is freed that some vCPU can still use."""

    partitions: list[FakePartition]

    def release(self, frame: int, count: int = 1) -> None:
        for partition in self.partitions:
            if not partition.closed:
                in_use = partition.cached | {used for used, _ in partition.nested.values()}
                assert in_use.isdisjoint(range(frame, frame + count))
        super().release(frame, count)


class FakeEngine(b.Engine):
    name = "fake"

    def create(self, memory: MachineMemory, vcpus: int) -> FakePartition:
        assert isinstance(memory, WatchedMemory)
        partition = FakePartition(memory, vcpus)
        memory.partitions.append(partition)
        return partition


class Guest:
    """A domain, and what its guest does."""

    def __init__(self, host: Host, *, vcpus: int = 2, abi: Abi = Abi.X86_64, **limits: int) -> None:
        self.domain = Domain(
            host,
            host.allocate_domid(),
            vcpus,
            release=RELEASES[4, 17],
            limits=Limits(**limits),
            cpuid=cast(Any, None),
            timer_slack=0,
        )
        self.host = host
        self.abi = abi
        self.domain.max_pages = RAM_FRAMES + 320
        self.domain.add_ram(0, RAM_FRAMES)
        self._next = HEAP
        self.slices = 0

    @property
    def partition(self) -> FakePartition:
        partition = self.domain.partition
        assert isinstance(partition, FakePartition)
        return partition

    # -- its memory

    def place(self, data: bytes) -> int:
        """Puts bytes at a fresh address."""
        address = self._next
        self._next += len(data) + 15 & ~15
        assert self._next < RAM_FRAMES * PAGE
        self.domain.memory.write(address, data)
        return address

    def words(self, *values: int) -> int:
        """Puts an array of xen_pfn_t somewhere."""
        code = "Q" if self.abi is Abi.X86_64 else "I"
        return self.place(struct.pack(f"<{len(values)}{code}", *values))

    def get(self, address: int, kind: type[S]) -> S:
        return kind.unpack(self.domain.memory.read(address, kind.sizeof(self.abi)), self.abi)

    def read32(self, gpa: int) -> int:
        """What a vCPU reads: all ones where nothing is mapped."""
        entry = self.partition.nested.get(gpa >> 12)
        if entry is None:
            return ONES
        return self.domain.host.machine.u32[(entry[0] * PAGE + gpa % PAGE) // 4]

    def write32(self, gpa: int, value: int) -> bool:
        """A vCPU's write; False where it may not."""
        entry = self.partition.nested.get(gpa >> 12)
        if entry is None or not entry[1] & b.Access.WRITE:
            return False
        self.domain.host.machine.u32[(entry[0] * PAGE + gpa % PAGE) // 4] = value
        return True

    # -- its hypercalls

    def hypercall(self, number: int, *args: int, vcpu: int = 0) -> int:
        """Issues one, and again as long as it is continued; the result is signed."""
        target = self.domain.vcpus[vcpu]
        engine = target.engine
        assert isinstance(engine, FakeVcpu)
        width = engine.width = 64 if self.abi is Abi.X86_64 else 32
        engine.set("rax", number)
        for name, value in zip(ORDER[width], args, strict=False):
            engine.set(name, value & MASKS[width])
        self.slices = 0
        engine.set("rip", 0x1000)
        while engine.get("rip") == 0x1000:
            engine.set("rip", 0x1003)
            hypercall(target, b.Hypercall())
            self.slices += 1
        result = engine.get("rax") & MASKS[width]
        return result - (1 << width) if result >> (width - 1) else result


@contextlib.contextmanager
def new_host() -> Iterator[Callable[..., Guest]]:
    """Makes guests on one host; checks at the end that nothing was leaked."""
    host = Host(FakeEngine(), 4 << 20)
    host.machine.close()
    host.machine = WatchedMemory(64 << 20)
    host.machine.partitions = []
    host.frames = type(host.frames)(host.machine)
    free = host.machine.free_frames
    try:
        yield lambda **options: Guest(host, **options)
        for domain in list(host.domains.values()):
            domain.destroy()
        assert host.machine.free_frames == free
    finally:
        host.close()


@pytest.fixture
def guests() -> Iterator[Callable[..., Guest]]:
    """Makes guests on one host."""
    with new_host() as make:
        yield make


@pytest.fixture(scope="session")
def hosts() -> Callable[[], contextlib.AbstractContextManager[Callable[..., Guest]]]:
    """Makes hosts, for tests that need a fresh one for every example."""
    return new_host
