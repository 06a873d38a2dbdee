"""The cost of an exit without hvmlite's own work: VMRUN and #VMEXIT, and nothing between them.

Measured by the engine's stub inside the same QEMU, started as for a domain. Used by the other
benchmarks; knows the engine only.
"""

from __future__ import annotations

import struct
import time

from common import BenchmarkError
from hvmlite.engine import base as b
from hvmlite.engine.memory import MachineMemory
from hvmlite.engine.tcg.partition import TcgPartition
from hvmlite.engine.tcg.selftest import code_reporting, measure_exit, run

COUNT = 5000
MEMORY = 64 << 20
_GFN = 0x100
"""The guest's frames: page tables of three levels, then its code."""
_PRESENT, _WRITABLE, _LARGE = 1, 2, 0x80


def _long_mode(entry: int, tables: int) -> b.CpuState:
    """64-bit mode with paging and flat segments: the state of a kernel at work."""
    code = b.Segment(0x08, 0, 0xFFFF_FFFF, 0xA9B)
    data = dict.fromkeys(("ds", "es", "ss"), b.Segment(0x10, 0, 0xFFFF_FFFF, 0xC93))
    return b.CpuState(
        rip=entry,
        cr0=0x8001_0011,
        cr3=tables,
        cr4=0x20,
        efer=0x500,
        segments={"cs": code, "tr": b.Segment(0, 0, 0x67, 0x8B), **data},
    )


def _start(partition: TcgPartition) -> None:
    """Bring the vCPU to a VMMCALL that a 64-bit guest with paging makes in an endless loop."""
    memory, vcpu, base = partition.memory, partition.vcpus[0], _GFN << 12
    frame = memory.allocate(4)
    # The guest's page directory maps its first 2 MiB, which its code is in, as one large page.
    for i, entry in enumerate((base + 0x1000, base + 0x2000, _LARGE)):
        partition.write(frame + i, 0, struct.pack("<Q", entry | _PRESENT | _WRITABLE))
    partition.write(frame + 3, 0, code_reporting(0))
    partition.map(_GFN, frame, 4, b.Access.RWX, code=True)
    vcpu.load(_long_mode(base + 0x3000, base))
    exit_ = run(vcpu)
    if not isinstance(exit_, b.Hypercall) or vcpu.mode != 64:
        raise BenchmarkError(f"the bare 64-bit guest did not call but gave {exit_}")


def _measure(partition: TcgPartition, count: int) -> float:
    _start(partition)
    vcpu = partition.vcpus[0]
    begin, first = time.perf_counter(), vcpu.read_tsc()
    ticks = vcpu.measure_exits(count)
    elapsed, last = time.perf_counter() - begin, vcpu.read_tsc()
    return ticks * elapsed / (last - first) / count


def bare_exit(count: int = COUNT, *, long_mode: bool = True) -> float:
    """Return the seconds of a bare exit in a QEMU of its own.

    ``long_mode`` is a 64-bit guest with paging, else one as the engine's self-test has it: 32-bit
    code without paging, for which QEMU also has to change mode at each VMRUN and #VMEXIT.
    """
    memory = MachineMemory(MEMORY)
    try:
        partition = TcgPartition(memory, 1)
        try:
            partition.wait_ready()
            return _measure(partition, count) if long_mode else measure_exit(partition, count)
        finally:
            partition.close()
    finally:
        memory.close()
