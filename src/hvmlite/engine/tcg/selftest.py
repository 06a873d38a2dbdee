"""Short guests that show whether this QEMU does what the engine relies on.

`check_nested_paging` runs before every domain, because a QEMU that fails it would let the guest
execute the engine's own memory.  The others are for `hvmlite doctor`.
"""

from __future__ import annotations

import struct
import time

from hvmlite.engine import base as b
from hvmlite.engine.memory import MachineMemory
from hvmlite.engine.tcg import layout as L
from hvmlite.engine.tcg.nested import NestedTables
from hvmlite.engine.tcg.partition import TcgPartition
from hvmlite.engine.tcg.process import KNOWN_GOOD, qemu_version
from hvmlite.errors import EngineError

_GOOD, _BAD = 0x600D, 0x0BAD
_TIMEOUT = 5.0
_FLAT_CODE = b.Segment(0, 0, 0xFFFF_FFFF, 0xC9B)
_FLAT_DATA = b.Segment(0, 0, 0xFFFF_FFFF, 0xC93)
_TSS = b.Segment(0, 0, 0x67, 0x8B)
_TEST_GFN = L.TRAMPOLINE + 0x1000 >> 12
_TEST_GPA = _TEST_GFN << 12


def flat_state(rip: int) -> b.CpuState:
    """32-bit protected mode without paging, flat segments: the state a PVH guest starts in."""
    data = dict.fromkeys(("ds", "es", "ss", "fs", "gs"), _FLAT_DATA)
    return b.CpuState(rip=rip, cr0=0x11, segments={"cs": _FLAT_CODE, "tr": _TSS, **data})


def code_reporting(value: int) -> bytes:
    """mov $value,%eax; vmmcall; and again."""
    return b"\xb8" + struct.pack("<I", value) + b"\x0f\x01\xd9" + b"\xeb\xf6"


def run(vcpu: b.EngineVcpu, wait: float = _TIMEOUT) -> b.Exit | None:
    """Runs a vCPU to its next exit that is not the engine's own affair, nor a late kick.

    On a busy machine the kick of an earlier command can come twice (`EngineVcpu.nudge`).
    """
    deadline = time.monotonic() + wait
    while True:
        vcpu.start()
        while not vcpu.exited():
            if time.monotonic() > deadline:
                raise EngineError("a test guest does not come back from VMRUN")
        exit_ = vcpu.take_exit()
        if exit_ is not None and not isinstance(exit_, b.Kicked):
            return exit_


def check_nested_paging(partition: TcgPartition) -> None:
    """Runs a guest without paging of its own: it must see its memory, not the engine's.

    Works on nested tables of its own.  Raises EngineError that says what to install.
    """
    memory = partition.memory
    frame = memory.allocate(1)
    trap = memory.u8[_TEST_GPA : _TEST_GPA + 16]
    tables = NestedTables(memory)
    vcpu = partition.vcpus[0]
    try:
        trap[: len(code_reporting(_BAD))] = code_reporting(_BAD)
        partition.write(frame, 0, code_reporting(_GOOD))
        tables.map(_TEST_GFN, frame, 1, b.Access.RWX, execute=True)
        partition.nested.executed[frame] = 1
        vcpu.use_nested(tables.root_address)
        vcpu.load(flat_state(_TEST_GPA))
        exit_ = run(vcpu)
        value = vcpu.get("rax")
        if not isinstance(exit_, b.Hypercall) or value != _GOOD:
            what = "ignores nested paging" if value == _BAD else f"cannot run guests ({exit_})"
            version = qemu_version(partition.qemu_path)
            raise EngineError(f"QEMU {version} ({partition.qemu_path}) {what}: {KNOWN_GOOD}")
    finally:
        trap.release()
        vcpu.use_nested(partition.nested.root_address)
        tables.close()
        memory.release(frame)


def check_writes(partition: TcgPartition, rounds: int = 20) -> None:
    """Rewrites a page of code from outside and runs it, `rounds` times; raises EngineError."""
    memory = partition.memory
    frame = memory.allocate(1)
    vcpu = partition.vcpus[0]
    try:
        partition.map(_TEST_GFN, frame, 1, b.Access.RWX)
        for value in range(rounds):
            partition.write(frame, 0, code_reporting(value))
            vcpu.load(flat_state(_TEST_GPA))
            run(vcpu)
            if vcpu.get("rax") != value:
                raise EngineError("code written from outside runs in its old translation")
    finally:
        partition.unmap(_TEST_GFN, 1)
        partition.flush()
        memory.release(frame)


def check_kick(partition: TcgPartition) -> float:
    """Kicks a guest out of an endless loop; returns the seconds it took.  Raises EngineError."""
    memory = partition.memory
    frame = memory.allocate(1)
    vcpu = partition.vcpus[0]
    try:
        partition.write(frame, 0, b"\xeb\xfe")
        partition.map(_TEST_GFN, frame, 1, b.Access.RWX, code=True)
        vcpu.load(flat_state(_TEST_GPA))
        vcpu.start()
        time.sleep(0.002)
        begin = time.perf_counter()
        vcpu.kick()
        while not vcpu.exited():
            vcpu.nudge()
            if time.perf_counter() - begin > _TIMEOUT:
                raise EngineError("a running guest cannot be kicked")
        if not isinstance(vcpu.take_exit(), b.Kicked):
            raise EngineError("a kicked guest exits for another reason")
        return time.perf_counter() - begin
    finally:
        partition.unmap(_TEST_GFN, 1)
        memory.release(frame)


def measure_exit(partition: TcgPartition, count: int = 200) -> float:
    """Seconds that a bare VMRUN and #VMEXIT takes, as measured inside QEMU."""
    memory = partition.memory
    frame = memory.allocate(1)
    vcpu = partition.vcpus[0]
    try:
        partition.write(frame, 0, code_reporting(_GOOD))
        partition.map(_TEST_GFN, frame, 1, b.Access.RWX, code=True)
        vcpu.load(flat_state(_TEST_GPA))
        run(vcpu)
        begin, first = time.perf_counter(), vcpu.read_tsc()
        ticks = vcpu.measure_exits(count)
        elapsed, last = time.perf_counter() - begin, vcpu.read_tsc()
        return ticks * elapsed / max(last - first, 1) / count
    finally:
        partition.unmap(_TEST_GFN, 1)
        memory.release(frame)


def full_selftest(vcpus: int = 1) -> dict[str, float]:
    """Starts an engine of its own and runs every check; returns measures in seconds."""
    memory = MachineMemory(8 << 20)
    begin = time.perf_counter()
    partition = TcgPartition(memory, vcpus)
    try:
        partition.wait_ready()
        started = time.perf_counter() - begin
        check_nested_paging(partition)
        check_writes(partition)
        kick = check_kick(partition)
        exit_ = measure_exit(partition)
        return {
            "start": started,
            "kick": kick,
            "exit": exit_,
            "total": time.perf_counter() - begin,
        }
    finally:
        partition.close()
        memory.close()
