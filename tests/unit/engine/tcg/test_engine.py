"""Proves on a real QEMU what the other tests assume of it: exits, kicks, the doorbell, writes to
code, string I/O, constant CPUID leaves, frames on both sides of 4 GiB, and a clean end.

Tiny pieces of machine code in 32-bit or real mode; whole guests are in tests/guest.
"""

from __future__ import annotations

import os
import select
import signal
import struct
import time
from collections.abc import Callable, Iterator

import pytest

from hvmlite.engine import base as b
from hvmlite.engine.memory import PAGE_SIZE, MachineMemory
from hvmlite.engine.select import open_engine
from hvmlite.engine.tcg import dma as dma_module
from hvmlite.engine.tcg import partition as partition_module
from hvmlite.engine.tcg import selftest
from hvmlite.engine.tcg.engine import CheckedPartition, TcgEngine
from hvmlite.engine.tcg.partition import TcgPartition
from hvmlite.engine.tcg.selftest import code_reporting, flat_state, run
from hvmlite.engine.tcg.vcpu import TcgVcpu
from hvmlite.errors import EngineError

from .conftest import children

pytestmark = [pytest.mark.engine, pytest.mark.usefixtures("qemu"), pytest.mark.timeout(60)]

CODE = 0x1_0000
LOOP = b"\xeb\xfe"
VMMCALL = b"\x0f\x01\xd9"


@pytest.fixture
def partitions(memory: MachineMemory) -> Iterator[Callable[..., TcgPartition]]:
    made: list[TcgPartition] = []

    def make(vcpus: int = 1, pool: MachineMemory = memory) -> TcgPartition:
        partition = TcgPartition(pool, vcpus)
        made.append(partition)
        partition.wait_ready()
        return partition

    yield make
    for partition in made:
        partition.close()


@pytest.fixture
def partition(partitions: Callable[..., TcgPartition]) -> TcgPartition:
    return partitions()


@pytest.fixture
def frames(memory: MachineMemory, partitions: object) -> Iterator[Callable[[int], int]]:
    """Takes frames, and gives them back once no guest can use them."""
    taken: list[tuple[int, int]] = []

    def take(count: int = 1) -> int:
        frame = memory.allocate(count)
        taken.append((frame, count))
        return frame

    yield take
    for frame, count in taken:
        memory.release(frame, count)


Place = Callable[..., int]


@pytest.fixture
def place(frames: Callable[[int], int]) -> Place:
    """Puts code or data at a guest address, in pages of its own."""

    def put(partition: TcgPartition, gpa: int, data: bytes, access: b.Access = b.Access.RWX) -> int:
        count = ((gpa & 0xFFF) + len(data) + 0xFFF) >> 12
        frame = frames(count)
        partition.write(frame, gpa & 0xFFF, data)
        partition.map(gpa >> 12, frame, count, access)
        return frame

    return put


def wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.0005)


def exit_of(vcpu: TcgVcpu) -> b.Exit | None:
    wait_until(vcpu.exited)
    return vcpu.take_exit()


# --- start and end ---------------------------------------------------------------------------


def test_the_engine_is_there_by_name(memory: MachineMemory) -> None:
    for name in ("auto", "tcg"):
        engine = open_engine(name)
        assert isinstance(engine, TcgEngine)
        assert engine.name == "tcg"
        partition = engine.create(memory, 1)
        partition.wait_ready()
        partition.check_alive()
        partition.close()


def test_full_selftest_leaves_nothing(memory: MachineMemory) -> None:
    before = children()
    measures = selftest.full_selftest(2)
    assert set(measures) == {"start", "kick", "exit", "total"}
    assert all(0 < value < 30 for value in measures.values())
    assert children() == before


def test_close_while_every_vcpu_runs(memory: MachineMemory, place: Place) -> None:
    before = children()
    partition = TcgPartition(memory, 4)
    partition.wait_ready()
    place(partition, CODE, LOOP)
    for vcpu in partition.vcpus:
        vcpu.load(flat_state(CODE))
        vcpu.start()
    for vcpu in partition.vcpus:
        while exit_of_kick(vcpu) is None:
            vcpu.start()
        vcpu.start()
    partition.close()
    assert children() == before


def exit_of_kick(vcpu: TcgVcpu) -> b.Exit | None:
    vcpu.kick()
    return exit_of(vcpu)


def test_a_failure_while_getting_ready_leaves_nothing(
    memory: MachineMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object) -> None:
        raise EngineError("no such device")

    monkeypatch.setattr(dma_module.DmaDevice, "set_up", fail)
    before = children()
    partition = TcgEngine().create(memory, 2)
    with pytest.raises(EngineError, match="no such device"):
        partition.wait_ready()
    partition.close()
    assert children() == before


def test_a_qemu_that_was_killed(partition: TcgPartition, place: Place) -> None:
    place(partition, CODE, LOOP)
    vcpu = partition.vcpus[0]
    vcpu.load(flat_state(CODE))
    vcpu.start()
    poll = select.poll()
    poll.register(partition.doorbell, select.POLLIN)
    os.kill(partition._process.pid, signal.SIGKILL)
    assert poll.poll(5000), "the doorbell tells of the end"
    with pytest.raises(EngineError, match="QEMU ended by signal 9: it printed nothing"):
        wait_until(lambda: partition.clear_doorbell() is not None)
    for action in (partition.check_alive, vcpu.read_tsc, partition.flush):
        with pytest.raises(EngineError, match="ended by signal 9"):
            action()


def test_a_qemu_that_stands_still(
    partition: TcgPartition, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(partition_module, "_FLUSH_TIMEOUT", 0.1)
    monkeypatch.setattr(dma_module, "_TIMEOUT", 0.1)
    frame = place(partition, CODE, LOOP)
    vcpu = partition.vcpus[0]
    vcpu.load(flat_state(CODE))
    vcpu.start()
    wait_until(lambda: bool(partition.nested.executed[frame]) or take_and_go_on(vcpu))
    os.kill(partition._process.pid, signal.SIGSTOP)
    begin = time.monotonic()
    with pytest.raises(EngineError, match="does not stop"):
        partition.flush()
    with pytest.raises(EngineError, match="does not stop"):
        partition.write(frame, 8, b"x")
    assert time.monotonic() - begin < 5
    # It is given up for good, though the process lives.
    partition._process.check_alive()
    with pytest.raises(EngineError, match="does not stop"):
        partition.check_alive()


def take_and_go_on(vcpu: TcgVcpu) -> bool:
    if vcpu.exited():
        assert vcpu.take_exit() is None
        vcpu.start()
    return False


# --- the self-test ---------------------------------------------------------------------------


def test_a_qemu_that_ignores_nested_paging_is_refused(
    memory: MachineMemory, monkeypatch: pytest.MonkeyPatch, frames: Callable[[int], int]
) -> None:
    """The broken one lets a guest see the engine's memory: here the nested tables do that."""
    partition = TcgEngine().create(memory, 1)
    assert isinstance(partition, CheckedPartition)
    own, used = partition.nested.root_address, []

    def broken(vcpu: TcgVcpu, address: int) -> None:
        used.append(address)
        real(vcpu, own)

    real = TcgVcpu.use_nested
    monkeypatch.setattr(TcgVcpu, "use_nested", broken)
    partition.map(0, 0, 256, b.Access.RWX)
    free = memory.free_frames
    with pytest.raises(EngineError) as caught:
        partition.wait_ready()
    assert "ignores nested paging: 7.2, 10.0 and 11.1 are known to work" in str(caught.value)
    assert str(caught.value).startswith("QEMU ")
    assert len(used) == 2
    # It is refused every time, and nothing of the test is left.
    with pytest.raises(EngineError, match="ignores nested paging"):
        partition.wait_ready()
    assert memory.free_frames == free
    partition.close()


def test_the_selftest_is_done_once(memory: MachineMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    partition = TcgEngine().create(memory, 1)
    partition.wait_ready()
    monkeypatch.setattr(selftest, "run", None)
    partition.wait_ready()
    partition.close()


# --- running ---------------------------------------------------------------------------------


def test_four_vcpus_at_once(partitions: Callable[..., TcgPartition], place: Place) -> None:
    partition = partitions(4)
    for vcpu in partition.vcpus:
        # Each adds one to a word of all of them, 1,000 times, then reports.
        code = (
            b"\xb9" + struct.pack("<I", 1000)  # mov $1000,%ecx
            + b"\xf0\xff\x05" + struct.pack("<I", 0x2_0000)  # 1: lock incl
            + b"\xe2\xf7"  # loop 1b
            + code_reporting(0x100 + vcpu.index)
        )  # fmt: skip
        place(partition, CODE + 0x1000 * vcpu.index, code)
        vcpu.load(flat_state(CODE + 0x1000 * vcpu.index))
    counter = place(partition, 0x2_0000, bytes(4), b.Access.RW)
    for vcpu in partition.vcpus:
        vcpu.start()
    for vcpu in partition.vcpus:
        while not isinstance(exit_of(vcpu), b.Hypercall):
            vcpu.start()
        assert vcpu.get("rax") == 0x100 + vcpu.index
        assert vcpu.hypercall_registers()[:2] == (32, 0)
    assert partition.memory.u32[counter * PAGE_SIZE // 4] == 4000


def test_kicks_reach_the_vcpu_they_are_for(
    partitions: Callable[..., TcgPartition], place: Place
) -> None:
    partition = partitions(4)
    place(partition, CODE, LOOP)
    for vcpu in partition.vcpus:
        vcpu.load(flat_state(CODE))
        vcpu.start()
    for vcpu in partition.vcpus:
        # The first exit is the fetch of the loop.
        wait_until(lambda vcpu=vcpu: vcpu.exited() or partition.nested.executed.count(1) > 0)
        if vcpu.exited():
            assert vcpu.take_exit() is None
            vcpu.start()
    for vcpu in reversed(partition.vcpus):
        kind = exit_of_kick(vcpu)
        if kind is None:
            vcpu.start()
            kind = exit_of_kick(vcpu)
        assert isinstance(kind, b.Kicked)
        others = [each for each in partition.vcpus if each.index < vcpu.index]
        time.sleep(0.01)
        for each in others:
            assert not each.exited() or (each.take_exit() is None and each.start() is None)
    # A kick between two runs is no reason to lose the next exit.
    vcpu = partition.vcpus[0]
    vcpu.kick()
    vcpu.load(flat_state(CODE))
    vcpu.start()
    assert isinstance(exit_of_kick(vcpu), b.Kicked)


def test_the_doorbell_rings_when_it_is_wanted(partition: TcgPartition, place: Place) -> None:
    place(partition, CODE, code_reporting(1))
    vcpu = partition.vcpus[0]
    vcpu.load(flat_state(CODE))
    poll = select.poll()
    poll.register(partition.doorbell, select.POLLIN)
    assert isinstance(run(vcpu), b.Hypercall)
    assert not poll.poll(20)
    partition.want_doorbell(True)
    vcpu.start()
    assert poll.poll(5000)
    assert vcpu.exited()
    vcpu.take_exit()
    partition.clear_doorbell()
    assert not poll.poll(0)
    partition.want_doorbell(False)
    vcpu.start()
    wait_until(vcpu.exited)
    assert not poll.poll(20)


def test_a_flush_takes_a_mapping_from_who_runs(
    partitions: Callable[..., TcgPartition], place: Place
) -> None:
    partition = partitions(2)
    # 1: incl 0x20000; jmp 1b
    place(partition, CODE, b"\xff\x05" + struct.pack("<I", 0x2_0000) + b"\xeb\xf8")
    counter = place(partition, 0x2_0000, bytes(4), b.Access.RW) * PAGE_SIZE // 4
    u32 = partition.memory.u32
    vcpu = partition.vcpus[1]
    vcpu.load(flat_state(CODE))
    vcpu.start()
    wait_until(lambda: take_and_go_on(vcpu) or u32[counter] > 1000)
    partition.unmap(0x20, 1)
    partition.flush()
    assert vcpu.exited()
    seen = u32[counter]
    while (found := vcpu.take_exit()) is None or isinstance(found, b.Kicked):
        vcpu.start()
        wait_until(vcpu.exited)
    assert isinstance(found, b.Mmio)
    assert found.gpa == 0x2_0000
    assert u32[counter] == seen


def test_rewritten_code_runs_as_rewritten(partition: TcgPartition, place: Place) -> None:
    frame = place(partition, CODE, bytes(16))
    vcpu = partition.vcpus[0]
    for value in range(30):
        partition.write(frame, 0, code_reporting(value))
        vcpu.load(flat_state(CODE))
        assert isinstance(run(vcpu), b.Hypercall)
        assert vcpu.get("rax") == value


def test_frames_beyond_3_gib(place: Place) -> None:
    """QEMU has them above 4 GiB: code, data, and nested tables alike."""
    memory = MachineMemory(5 << 30)
    partition = TcgPartition(memory, 1)
    try:
        partition.wait_ready()
        boundary = 3 << 18
        frame = memory.allocate(2)
        assert frame > 4 << 18
        partition.write(frame, 0, b"\xa1" + struct.pack("<I", 0x2_0000) + VMMCALL)
        partition.map(CODE >> 12, frame, 1, b.Access.RWX)
        vcpu = partition.vcpus[0]
        for data in (boundary - 1, boundary, frame + 1):
            memory.u32[data * 1024] = data
            partition.map(0x20, data, 1, b.Access.RW)
            partition.flush()
            vcpu.load(flat_state(CODE))
            assert isinstance(run(vcpu), b.Hypercall)
            assert vcpu.get("rax") == data
        # And a write to code there goes to the right place.
        partition.write(frame, 0, code_reporting(77))
        vcpu.load(flat_state(CODE))
        assert isinstance(run(vcpu), b.Hypercall)
        assert vcpu.get("rax") == 77
    finally:
        partition.close()
        memory.close()


# --- what QEMU says of an exit ---------------------------------------------------------------


def test_what_is_not_mapped_is_mmio(partition: TcgPartition, place: Place) -> None:
    place(partition, CODE, b"\xa3" + struct.pack("<I", 0xFEE0_0020) + VMMCALL)
    vcpu = partition.vcpus[0]
    vcpu.load(flat_state(CODE))
    vcpu.set("rax", 0x55)
    exit_ = run(vcpu)
    assert isinstance(exit_, b.Mmio)
    assert (exit_.gpa, exit_.write, exit_.fetch) == (0xFEE0_0020, True, False)
    seen = []
    vcpu.emulate_mmio(lambda _a, _s: 0, lambda *write: seen.append(write))
    assert seen == [(0xFEE0_0020, 4, 0x55)]
    assert isinstance(run(vcpu), b.Hypercall)


def test_a_fetch_from_nowhere_is_mmio(partition: TcgPartition) -> None:
    partition.vcpus[0].load(flat_state(0x7654_3210))
    exit_ = run(partition.vcpus[0])
    assert isinstance(exit_, b.Mmio)
    assert exit_.fetch
    assert exit_.gpa & ~0xFFF == 0x7654_3000


def test_a_triple_fault_is_a_shutdown(partition: TcgPartition, place: Place) -> None:
    place(partition, CODE, b"\x0f\x0b")
    partition.vcpus[0].load(flat_state(CODE))
    assert isinstance(run(partition.vcpus[0]), b.Shutdown)


REAL_MODE = b.CpuState(
    cr0=0x10,
    segments={
        "cs": b.Segment(0x1000, 0x10000, 0xFFFF, 0x9B),
        **dict.fromkeys(("ds", "ss"), b.Segment(0x2000, 0x20000, 0xFFFF, 0x93)),
        "es": b.Segment(0x3000, 0x30000, 0xFFFF, 0x93),
        "tr": b.Segment(0, 0, 0x67, 0x8B),
    },
    general={"rsi": 1, "rdi": 2, "rcx": 3, "rdx": 0xE9},
)


@pytest.mark.parametrize(
    ("code", "data", "left"),
    [
        (b"\xf3\x6e", b"ata", 0),  # rep outsb: ds
        (b"\x6e", b"a", 3),  # outsb
        (b"\x26\xf3\x6e", b"XTR", 0),  # es: rep outsb
        (b"\x67\xf3\x6e", b"ata", 0),  # addr32
    ],
    ids=["rep outsb", "outsb", "es", "addr32"],
)
def test_outs_in_real_mode(
    partition: TcgPartition, place: Place, code: bytes, data: bytes, left: int
) -> None:
    place(partition, CODE, code + VMMCALL)
    place(partition, 0x2_0000, b"data segment")
    place(partition, 0x3_0000, b"EXTRA segment")
    vcpu = partition.vcpus[0]
    vcpu.load(REAL_MODE)
    exit_ = run(vcpu)
    assert isinstance(exit_, b.PortIo)
    assert (exit_.port, exit_.size, exit_.write, exit_.string) == (0xE9, 1, True, True)
    assert exit_.data == data
    vcpu.complete_out()
    assert isinstance(run(vcpu), b.Hypercall)
    assert (vcpu.get("rsi"), vcpu.get("rcx")) == (1 + len(data), left)


def test_ins_in_real_mode(partition: TcgPartition, place: Place) -> None:
    place(partition, CODE, b"\xf3\x6c" + VMMCALL)
    frame = place(partition, 0x3_0000, b"........")
    vcpu = partition.vcpus[0]
    vcpu.load(REAL_MODE)
    exit_ = run(vcpu)
    assert isinstance(exit_, b.PortIo)
    assert (exit_.write, exit_.string) == (False, True)
    vcpu.complete_in(0x41)
    assert bytes(partition.memory.u8[frame << 12 : (frame << 12) + 8]) == b"..AAA..."
    assert isinstance(run(vcpu), b.Hypercall)
    assert vcpu.get("rdi") == 5


@pytest.mark.parametrize("size", [1, 2, 4])
def test_outs_in_protected_mode(partition: TcgPartition, place: Place, size: int) -> None:
    code = {1: b"\xf3\x6e", 2: b"\x66\xf3\x6f", 4: b"\xf3\x6f"}[size]
    place(partition, CODE, code + VMMCALL)
    place(partition, 0x2_0000, b"0123456789abcdef")
    state = flat_state(CODE)
    state.general = {"rsi": 0x2_0001, "rcx": 3, "rdx": 0xE9}
    vcpu = partition.vcpus[0]
    vcpu.load(state)
    exit_ = run(vcpu)
    assert isinstance(exit_, b.PortIo)
    assert (exit_.size, exit_.data) == (size, b"123456789abc"[: 3 * size])
    vcpu.complete_out()
    assert isinstance(run(vcpu), b.Hypercall)
    assert (vcpu.get("rsi"), vcpu.get("rcx")) == (0x2_0001 + 3 * size, 0)


# --- constant CPUID leaves -------------------------------------------------------------------


def cpuid(vcpu: TcgVcpu, leaf: int, subleaf: int = 0, cr4: int = 0) -> tuple[int, ...] | None:
    """What the guest's CPUID answers without an exit; None if it exits."""
    state = flat_state(CODE)
    state.general = {"rax": leaf, "rcx": subleaf}
    state.cr4 = cr4
    vcpu.load(state)
    exit_ = run(vcpu)
    if isinstance(exit_, b.Cpuid):
        assert (exit_.leaf, exit_.subleaf) == (leaf, subleaf)
        assert vcpu.get("rip") == CODE
        return None
    assert isinstance(exit_, b.Hypercall)
    return tuple(vcpu.get(name) for name in ("rax", "rbx", "rcx", "rdx"))


def test_constant_cpuid_leaves(partitions: Callable[..., TcgPartition], place: Place) -> None:
    partition = partitions(2)
    place(partition, CODE, b"\x0f\xa2" + VMMCALL)
    for vcpu in partition.vcpus:
        n = vcpu.index
        vcpu.set_constant_cpuid({
            0: (0xD, 0x11, 0x22, 0xFFFF_FFFF),
            1: (1, 2, 3, 4 + n),
            4: [(1, 1, 1, n), None, (3, 3, 3, 3)],
            0x4000_0001: (4 << 16 | 17, 0, 0, 0),
            0x8000_001F: (5, 6, 7, 8),
        })  # fmt: skip
    for vcpu in partition.vcpus:
        n = vcpu.index
        assert cpuid(vcpu, 0, 99) == (0xD, 0x11, 0x22, 0xFFFF_FFFF)
        assert cpuid(vcpu, 1) == (1, 2, 3, 4 + n)
        assert cpuid(vcpu, 1, cr4=1 << 18) == (1, 2, 3 | 1 << 27, 4 + n)
        assert cpuid(vcpu, 4, 0) == (1, 1, 1, n)
        assert cpuid(vcpu, 4, 1) is None
        assert cpuid(vcpu, 4, 2) == (3, 3, 3, 3)
        assert cpuid(vcpu, 4, 3) is None
        assert cpuid(vcpu, 4, 0xFFFF_FFFF) is None
        assert cpuid(vcpu, 0x4000_0001) == (4 << 16 | 17, 0, 0, 0)
        assert cpuid(vcpu, 0x8000_001F) == (5, 6, 7, 8)
        for leaf in (2, 0x20, 0x4000_0000, 0x4000_0020, 0x8000_0020, 0x7FFF_FFFF, 0xC000_0000):
            assert cpuid(vcpu, leaf) is None
