"""Proves what a partition prepares for its QEMU, which way a write takes, what a flush waits for,
and how it ends. QEMU is played by the test.
"""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hvmlite.engine import base as b
from hvmlite.engine.memory import PAGE_SIZE, MachineMemory
from hvmlite.engine.tcg import layout as L
from hvmlite.engine.tcg import partition as partition_module
from hvmlite.engine.tcg.partition import OPEN_PORTS, TcgPartition
from hvmlite.engine.tcg.stub import symbols
from hvmlite.errors import EngineError

from .fakes import FakeDma, FakeProcess, Machine

MIB = 1 << 20


def area(machine: Machine, offset: int, size: int) -> bytes:
    start = machine.partition.area + offset
    return bytes(machine.partition.memory.u8[start : start + size])


# --- what QEMU starts with -------------------------------------------------------------------


def test_the_area_is_low_and_aligned(machine: Machine) -> None:
    assert machine.partition.area % PAGE_SIZE == 0
    assert machine.partition.area + L.area_size(1) <= L.LOW_RAM_END


def test_no_room_below_3_gib(memory: MachineMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(L, "LOW_RAM_END", 2 * MIB)
    taken = memory.allocate(256, low=True)
    with pytest.raises(EngineError, match="below 3 GiB is left"):
        TcgPartition(memory, 1)
    memory.release(taken, 256)


def test_the_stubs_tables_map_everything_one_to_one(machine: Machine) -> None:
    assert struct.unpack("<Q", area(machine, L.PML4, 8))[0] == machine.partition.area + L.PDPT | 3
    entries = struct.unpack("<512Q", area(machine, L.PDPT, 4096))
    assert entries == tuple(i << 30 | 0x83 for i in range(512))


def test_interrupt_table(machine: Machine) -> None:
    limit, base = struct.unpack("<HQ", area(machine, L.IDT_POINTER, 10))
    assert (limit, base) == (4095, machine.partition.area + L.IDT)
    stub = machine.partition.area + L.STUB
    for vector in range(256):
        low, selector, ist, kind, middle, high, zero = struct.unpack(
            "<HHBBHII", area(machine, L.IDT + 16 * vector, 16)
        )
        target = low | middle << 16 | high << 32
        assert (selector, ist, kind, zero) == (8, 0, 0x8E, 0)
        assert target == stub + (symbols.STUB_FAULT if vector < 32 else symbols.STUB_KICK)


def test_port_map(machine: Machine) -> None:
    bits = area(machine, L.IO_MAP, L.IO_MAP_SIZE)
    opened = {port for port in range(0x10000) if not bits[port // 8] >> port % 8 & 1}
    assert opened == set(OPEN_PORTS)
    # Behind these our QEMU has something: the doorbell and fw_cfg.
    assert opened.isdisjoint({0xE9, *range(0x510, 0x51C)})
    # An access at port 0xffff may reach beyond the last port.
    assert bits[0x2000] & 7 == 7


def test_the_rom(machine: Machine) -> None:
    rom, start = machine.process.rom, machine.partition.area
    assert len(rom) == 0x10000
    assert struct.unpack_from("<5I", rom) == (
        start + L.PML4,
        start + L.CPU_AREAS + L.CPU_MAILBOX,
        L.CPU_STRIDE,
        start + L.IDT_POINTER,
        start + L.STUB,
    )
    # The reset vector: a near jump to `reset`, 16 bytes before the end.
    opcode, distance = struct.unpack_from("<Bh", rom, 0xFFF0)
    assert opcode == 0xE9
    assert (0xFFF3 + distance) & 0xFFFF == symbols.ROM_RESET
    trampoline = rom[symbols.ROM_TRAMPOLINE : symbols.ROM_TRAMPOLINE_END]
    u8 = machine.partition.memory.u8
    assert bytes(u8[L.TRAMPOLINE : L.TRAMPOLINE + len(trampoline)]) == trampoline


def test_two_partitions_share_a_memory(machines: Callable[..., Machine]) -> None:
    first, second = machines(1), machines(2)
    assert first.partition.area != second.partition.area
    first.place(0x5000, b"first")
    second.partition.map(0x5, first.partition.frame_at(0x5000) >> 0, 1, b.Access.RW)
    assert second.peek(0x5000, 5) == b"first"


def test_getting_ready(machines: Callable[..., Machine]) -> None:
    machine = machines(2)
    assert not machine.dma.was_set_up
    machine.partition.wait_ready()
    assert machine.dma.was_set_up
    commands = [L.CMD_CPUID, *[L.CMD_RDTSC] * 2]
    assert machine.commands == commands
    machine.partition.wait_ready()
    assert machine.commands == commands


@pytest.mark.parametrize("x2apic", [False, True])
def test_eois_pass_where_qemu_ignores_them(machines: Callable[..., Machine], x2apic: bool) -> None:
    machine = machines(2)
    machine.cpuid[1, 0] = (0, 0, 1 << 21 if x2apic else 0, 0)
    machine.partition.wait_ready()
    assert [vcpu.eoi_passes for vcpu in machine.partition.vcpus] == [not x2apic] * 2


# --- writes ----------------------------------------------------------------------------------


def test_data_is_stored_directly(machine: Machine) -> None:
    frame = machine.place(0x5000, bytes(16))
    machine.partition.write(frame, 3, b"data")
    assert machine.peek(0x5000, 8) == b"\0\0\0data\0"
    assert machine.dma.writes == []


@pytest.mark.parametrize("marked", [0, 1, 2])
def test_what_may_hold_code_goes_through_qemu(machine: Machine, marked: int) -> None:
    frame = machine.place(0x5000, bytes(3 * PAGE_SIZE))
    machine.partition.nested.executed[frame + marked] = 1
    data = bytes(range(256)) * 32
    machine.partition.write(frame, 0xFFF, data)
    assert machine.dma.writes == [((frame << 12) + 0xFFF, data)]
    assert machine.peek(0x5FFF, len(data)) == data
    # Beside it, nothing changes.
    machine.dma.writes.clear()
    machine.partition.write(frame + marked, 0, b"")
    assert machine.dma.writes == []


def test_no_vcpu_runs_while_code_is_written(machines: Callable[..., Machine]) -> None:
    """QEMU drops a translation that is finished, not one that is being made."""
    machine = machines(2)
    machine.partition.wait_ready()
    frame = machine.place(0x5000, bytes(PAGE_SIZE))
    data = machine.place(0x6000, bytes(PAGE_SIZE))
    machine.partition.nested.executed[frame] = 1
    running = machine.partition.vcpus[1]
    running.start()
    machine.partition.write(data, 0, b"data needs no stop")
    assert not running.exited()
    machine.dma.stub = lambda cpu: machine.exit(machine.partition.vcpus[cpu], L.EXIT_INTR)
    stopped: list[bool] = []
    real = machine.dma.write

    def write(target: int, data: bytes | bytearray | memoryview) -> None:
        stopped.append(running.exited())
        real(target, data)

    machine.dma.write = write  # type: ignore[method-assign]
    machine.partition.write(frame, 0, b"code")
    assert stopped == [True]
    # Whoever serves exits finds this one, and lets it go on.
    assert isinstance(running.take_exit(), b.Kicked)


def test_code_that_was_written_over_is_data_again(machines: Callable[..., Machine]) -> None:
    """A whole page at least: of a part, translations of the rest are left."""
    machine = machines(2)
    frame = machine.place(0x5000, bytes(4 * PAGE_SIZE))
    partition = machine.partition
    partition.wait_ready()
    assert partition.nested.make_executable(5)
    for vcpu in partition.vcpus:
        vcpu.flush_next = False
    partition.write(frame, 1, bytes(PAGE_SIZE - 1))
    assert partition.executed(frame)
    assert not any(vcpu.flush_next for vcpu in partition.vcpus)
    partition.write(frame, 0x800, bytes(2 * PAGE_SIZE))
    assert [partition.executed(frame + i) for i in range(4)] == [True, False, True, True]
    assert all(vcpu.flush_next for vcpu in partition.vcpus)
    machine.dma.writes.clear()
    partition.write(frame + 1, 0, bytes(PAGE_SIZE))
    assert machine.dma.writes == []
    # The guest executes it again.
    assert partition.nested.make_executable(6)
    partition.write(frame + 1, 5, b"code")
    assert machine.dma.writes == [((frame + 1 << 12) + 5, b"code")]


def test_what_was_replaced_of_a_page_is_told_to_qemu(machine: Machine) -> None:
    frame = machine.place(0x5000, bytes(range(256)))
    machine.partition.nested.executed[frame] = 1
    machine.partition.contents_replaced(frame, 16, 4)
    assert machine.dma.writes == [((frame << 12) + 16, bytes((16, 17, 18, 19)))]


def test_the_last_byte_of_a_page_is_not_the_next(machine: Machine) -> None:
    frame = machine.place(0x5000, bytes(3 * PAGE_SIZE))
    machine.partition.nested.executed[frame] = machine.partition.nested.executed[frame + 2] = 1
    machine.partition.write(frame + 1, 0, bytes(PAGE_SIZE))
    assert machine.dma.writes == []


def test_replaced_contents_of_code_are_told_to_qemu(machine: Machine) -> None:
    frame = machine.place(0x5000, b"new")
    assert not machine.partition.executed(frame)
    machine.partition.contents_replaced(frame)
    assert machine.dma.writes == []
    assert machine.partition.nested.make_executable(5)
    assert machine.partition.executed(frame)
    machine.partition.contents_replaced(frame)
    assert machine.dma.writes == [(frame << 12, b"new".ljust(PAGE_SIZE, b"\0"))]


def test_a_write_across_the_hole_below_4_gib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition_module, "QemuProcess", FakeProcess)
    monkeypatch.setattr(partition_module, "DmaDevice", FakeDma)
    memory = MachineMemory((3 << 30) + 16 * MIB)
    partition = TcgPartition(memory, 1)
    boundary = 3 << 18
    partition.map(0, boundary - 1, 2, b.Access.RWX, code=True)
    data = bytes(range(1, 201))
    partition.write(boundary - 1, 0xF9C, data)
    dma = partition._dma
    assert isinstance(dma, FakeDma)
    assert dma.writes == [(0xBFFF_FF9C, data[:100]), (0x1_0000_0000, data[100:])]
    assert bytes(memory.u8[(boundary << 12) - 100 : (boundary << 12) + 100]) == data
    partition.close()
    memory.close()


# --- on the guest's behalf -------------------------------------------------------------------


@given(st.integers(0, 3 * PAGE_SIZE), st.integers(0, 2 * PAGE_SIZE))
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_linear_reads_end_where_memory_ends(machine: Machine, start: int, size: int) -> None:
    contents = bytes(i * 31 & 0xFF for i in range(2 * PAGE_SIZE))
    if machine.partition.frame_at(0x5000) < 0:
        machine.place(0x5000, contents)
    found = machine.partition.read_linear(machine.vcpu, 0x5000 + start, size)
    assert found == contents[start : start + size]


def test_physical_words(machine: Machine) -> None:
    machine.place(0x5000, struct.pack("<2Q", 1, 0x1122_3344_5566_7788))
    assert machine.partition.read_physical64(0x5008) == 0x1122_3344_5566_7788
    assert machine.partition.read_physical64(0x6000) is None
    assert machine.partition.frame_at(0x6000) == -1


# --- flush, doorbell, end --------------------------------------------------------------------


def test_a_flush_waits_for_who_runs(machines: Callable[..., Machine]) -> None:
    machine = machines(3)
    running = machine.partition.vcpus[1]
    running.start()
    machine.dma.interrupts.clear()

    def stop_later(cpu: int) -> None:
        # What comes again while it takes its time changes nothing.
        machine.dma.stub = lambda _cpu: None
        assert cpu == 1
        threading.Timer(0.05, machine.exit, (machine.partition.vcpus[cpu], L.EXIT_INTR)).start()

    machine.dma.stub = stop_later
    begin = time.monotonic()
    machine.partition.flush()
    assert time.monotonic() - begin >= 0.04
    assert set(machine.dma.interrupts) == {(1, L.KICK_VECTOR)}
    assert all(vcpu.flush_next for vcpu in machine.partition.vcpus)


def test_a_flush_of_stopped_vcpus_is_for_their_next_run(machine: Machine) -> None:
    machine.run(L.EXIT_HLT)
    assert not machine.vcpu.flush_next
    machine.dma.interrupts.clear()
    machine.partition.flush()
    assert machine.vcpu.flush_next
    assert machine.dma.interrupts == []


def test_a_vcpu_that_does_not_stop(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition_module, "_FLUSH_TIMEOUT", 0.05)
    machine.vcpu.start()
    with pytest.raises(EngineError, match="vCPU 0 of QEMU does not stop"):
        machine.partition.flush()
    machine.process.dead = "QEMU ended with status 1: so it goes"
    with pytest.raises(EngineError, match="so it goes"):
        machine.partition.flush()


def test_the_doorbell(machine: Machine) -> None:
    partition = machine.partition
    assert partition.doorbell == machine.process.doorbell.fileno()
    partition.clear_doorbell()
    machine.rings()
    machine.rings()
    partition.clear_doorbell()
    with pytest.raises(BlockingIOError):
        machine.process.doorbell.recv(1)
    machine.process.bell.close()
    machine.process.dead = "QEMU ended by signal 6: abort"
    with pytest.raises(EngineError, match="abort"):
        partition.clear_doorbell()


def test_close(memory: MachineMemory, machines: Callable[..., Machine]) -> None:
    free = memory.free_frames
    machine = machines(2)
    machine.place(0x5000, b"x")
    machine.partition.close()
    assert machine.process.closed
    assert memory.free_frames == free
    machine.partition.close()


def test_the_area_is_zeroed_for_the_next(
    memory: MachineMemory, machines: Callable[..., Machine]
) -> None:
    machine = machines()
    machine.vcpu.set("rbx", 0x1234)
    start = machine.partition.area
    machine.partition.close()
    assert not any(memory.u8[start : start + L.area_size(1)])
