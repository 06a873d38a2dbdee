"""One engine process with its vCPUs and nested map: the embedded engine's `Partition`.

Owns the private area of the process in machine memory (see layout.py) and frees it at the end.
"""

from __future__ import annotations

import contextlib
import struct
import time
from pathlib import Path

from hvmlite.engine import base as b
from hvmlite.engine.memory import PAGE_SHIFT, PAGE_SIZE, MachineMemory
from hvmlite.engine.paging import PageFault
from hvmlite.engine.tcg import layout as L
from hvmlite.engine.tcg.dma import DmaDevice
from hvmlite.engine.tcg.nested import NestedTables
from hvmlite.engine.tcg.process import QemuProcess
from hvmlite.engine.tcg.stub import symbols
from hvmlite.engine.tcg.stub_cpu import StubCpu
from hvmlite.engine.tcg.vcpu import TcgVcpu, msr_map
from hvmlite.errors import EngineError

CPU_MODEL = "max,la57=off"
_START_TIMEOUT = 30.0
_FLUSH_TIMEOUT = 10.0
_PHYSICAL_GIB = 512
_X2APIC = 1 << 21
"""Of CPUID leaf 1, in ecx."""

# Ports that do not exit: a kernel polls the interval timer and scans PCI configuration space some
# 130,000 times.  They reach QEMU's empty bus, which answers all ones as Xen does for a domU (but
# for an access across a natural boundary, where it answers zeros).
OPEN_PORTS = (*range(0x40, 0x44), 0x61, *range(0xCF8, 0xD00))


def _code(name: str) -> bytes:
    return (Path(__file__).parent / "stub" / name).read_bytes()


class TcgPartition(b.Partition):
    """A domain's CPUs on the embedded engine."""

    def __init__(self, memory: MachineMemory, vcpus: int) -> None:
        self.memory = memory
        self._failure = ""
        self._frames = -(-L.area_size(vcpus) // PAGE_SIZE)
        self._area_frame = memory.allocate(self._frames, low=True)
        self.area = self._area_frame << PAGE_SHIFT
        if self.area + L.area_size(vcpus) > L.LOW_RAM_END:
            memory.release(self._area_frame, self._frames)
            raise EngineError("no machine memory below 3 GiB is left for another engine process")
        with contextlib.ExitStack() as undo:
            undo.callback(memory.release, self._area_frame, self._frames)
            self.nested = NestedTables(memory)
            self.executed_frames = self.nested.executed
            undo.callback(self.nested.close)
            self._build_area()
            self.vcpus: list[TcgVcpu] = [TcgVcpu(self, i, self.area) for i in range(vcpus)]
            self._process = QemuProcess(memory, self._rom(), vcpus, CPU_MODEL)
            undo.pop_all()
        self.doorbell = self._process.doorbell.fileno()
        self._dma = DmaDevice(memory, self.area, self._process.channel, self._process.check_alive)
        self._closed = False
        self._ready = False

    # ---- start ----------------------------------------------------------------------------------

    def _build_area(self) -> None:
        u8, u64, area = self.memory.u8, self.memory.u64, self.area
        u64[(area + L.PML4) // 8] = (area + L.PDPT) | 3
        for i in range(_PHYSICAL_GIB):
            u64[(area + L.PDPT) // 8 + i] = i << 30 | 0x83
        stub = _code("stub.bin")
        u8[area + L.STUB : area + L.STUB + len(stub)] = stub
        fault, kick = (area + L.STUB + s for s in (symbols.STUB_FAULT, symbols.STUB_KICK))
        gates = [_gate(fault)] * 32 + [_gate(kick)] * 224
        u8[area + L.IDT : area + L.IDT + 4096] = b"".join(gates)
        struct.pack_into("<HQ", u8, area + L.IDT_POINTER, 4095, area + L.IDT)
        u8[area + L.IO_MAP : area + L.IO_MAP + L.IO_MAP_SIZE] = b"\xff" * L.IO_MAP_SIZE
        for port in OPEN_PORTS:
            u8[area + L.IO_MAP + port // 8] &= ~(1 << port % 8)
        u8[area + L.MSR_MAP : area + L.MSR_MAP + L.MSR_MAP_SIZE] = msr_map()
        u8[area + L.EOI_MSR_MAP : area + L.EOI_MSR_MAP + L.MSR_MAP_SIZE] = msr_map(eoi=False)
        rom = _code("rom.bin")
        trampoline = rom[symbols.ROM_TRAMPOLINE : symbols.ROM_TRAMPOLINE_END]
        u8[L.TRAMPOLINE : L.TRAMPOLINE + len(trampoline)] = trampoline

    def _rom(self) -> bytes:
        rom = bytearray(L.ROM_SIZE)
        code = _code("rom.bin")
        rom[: len(code)] = code
        struct.pack_into(
            L.ROM_CONFIG, rom, 0,
            self.area + L.PML4, self.area + L.CPU_AREAS + L.CPU_MAILBOX, L.CPU_STRIDE,
            self.area + L.IDT_POINTER, self.area + L.STUB,
        )  # fmt: skip
        # The reset vector: a near jump to `reset`.
        struct.pack_into("<BH", rom, 0xFFF0, 0xE9, (symbols.ROM_RESET - 0xFFF3) & 0xFFFF)
        return bytes(rom)

    @property
    def qemu_path(self) -> str:
        """The QEMU binary that runs."""
        return self._process.path

    def wait_ready(self) -> None:
        """See `Partition.wait_ready`."""
        if not self._ready:
            self._wait_for_stubs()
            first = self.vcpus[0]
            self._dma.set_up(first.read32, first.write32)
            # A QEMU whose CPU has an x2APIC of its own would have to have it in that mode.
            eoi_passes = not first.hardware_cpuid(1, 0)[2] & _X2APIC
            for vcpu in self.vcpus:
                vcpu.allow_sleep()
                vcpu.eoi_passes = eoi_passes
            # The stubs that were already waiting still count with the old limit.
            for vcpu in self.vcpus:
                vcpu.read_tsc()
            self._ready = True

    def _wait_for_stubs(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT
        for vcpu in self.vcpus:
            while not vcpu.exited():
                time.sleep(0.0002)
                self._process.check_alive()
                if time.monotonic() > deadline:
                    raise EngineError(
                        f"QEMU ({self._process.path}) does not start within {_START_TIMEOUT:.0f} s"
                    )

    # ---- b.Partition -------------------------------------------------------------------------

    def map(
        self, gfn: int, frame: int, count: int, access: b.Access, *, code: bool = False
    ) -> None:
        """See `Partition.map`."""
        self.nested.map(gfn, frame, count, access, execute=code)

    def unmap(self, gfn: int, count: int) -> None:
        """See `Partition.unmap`."""
        self.nested.unmap(gfn, count)

    def flush(self) -> None:
        """See `Partition.flush`."""
        for vcpu in self.vcpus:
            vcpu.flush_next = True
        self._stop_running()
        self.nested.flushed()

    def _stop_running(self) -> None:
        """Returns when no vCPU runs guest code; whoever serves the exits lets them go on."""
        running = [vcpu for vcpu in self.vcpus if not vcpu.exited()]
        for vcpu in running:
            vcpu.kick()
        deadline = time.monotonic() + _FLUSH_TIMEOUT
        for vcpu in running:
            while not vcpu.exited():
                self.check_alive()
                if time.monotonic() > deadline:
                    raise self.failed(f"vCPU {vcpu.index} of QEMU does not stop")
                vcpu.nudge()
                time.sleep(0.00005)

    def intercept_tsc(self) -> None:
        """See `Partition.intercept_tsc`."""
        for vcpu in self.vcpus:
            vcpu.intercept_tsc()

    def write(self, frame: int, offset: int, data: bytes | bytearray | memoryview) -> None:
        """See `Partition.write`."""
        start = (frame << PAGE_SHIFT) + offset
        size = len(data)
        if not size:
            return
        last = (start + size - 1) >> PAGE_SHIFT
        if any(self.nested.executed[start >> PAGE_SHIFT : last + 1]):
            # A vCPU that is translating this page just now would go on with what it has read: QEMU
            # drops finished translations only.
            if self._ready:
                self._stop_running()
            # What crosses the hole below 4 GiB is not in one piece for QEMU.
            low = max(0, min(size, L.LOW_RAM_END - start))
            for piece, at in ((data[:low], start), (data[low:], start + low)):
                if piece:
                    physical = L.physical(at >> PAGE_SHIFT) | at & (PAGE_SIZE - 1)
                    self._write_by_device(physical, piece)
            if self._ready:
                self._forget_code(-(-start // PAGE_SIZE), (start + size) >> PAGE_SHIFT)
        else:
            self.memory.u8[start : start + size] = data

    def _forget_code(self, first: int, end: int) -> None:
        """Frames that QEMU has just written whole, while no vCPU ran: nothing of what it had
        translated there is left, and they are data again until they are executed."""
        for frame in range(first, end):
            self.nested.forget_code(frame)
        if first < end:
            for vcpu in self.vcpus:
                vcpu.flush_next = True

    def _write_by_device(self, physical: int, data: bytes | bytearray | memoryview) -> None:
        try:
            self._dma.write(physical, data)
        except EngineError as error:
            raise self.failed(str(error)) from error

    def executed(self, frame: int) -> bool:
        """See `Partition.executed`."""
        return self.nested.executed[frame] != 0

    def contents_replaced(self, frame: int, offset: int = 0, size: int = PAGE_SIZE) -> None:
        """See `Partition.contents_replaced`."""
        if self.nested.executed[frame]:
            start = (frame << PAGE_SHIFT) + offset
            self.write(frame, offset, bytes(self.memory.u8[start : start + size]))

    def want_doorbell(self, wanted: bool) -> None:
        """See `Partition.want_doorbell`."""
        for vcpu in self.vcpus:
            vcpu.set_bell(wanted)

    def clear_doorbell(self) -> None:
        """See `Partition.clear_doorbell`."""
        with contextlib.suppress(BlockingIOError):
            if not self._process.doorbell.recv(4096):
                self.check_alive()

    def check_alive(self) -> None:
        """See `Partition.check_alive`."""
        self._process.check_alive()
        if self._failure:
            raise EngineError(self._failure)

    def failed(self, reason: str) -> EngineError:
        """The error to raise for an engine that cannot be used any more, though QEMU runs on."""
        self._failure = reason
        return EngineError(reason)

    def interrupt(self, vcpu: StubCpu) -> None:
        """Sends the kick interrupt to a vCPU's stub unless one is on its way."""
        if vcpu.mark_kicked():
            self.send_interrupt(vcpu)

    def send_interrupt(self, vcpu: StubCpu) -> None:
        """Sends the kick interrupt, also if one is on its way."""
        try:
            self._dma.interrupt(vcpu.index, L.KICK_VECTOR)
        except EngineError as error:
            raise self.failed(str(error)) from error

    def close(self) -> None:
        """See `Partition.close`."""
        if self._closed:
            return
        self._closed = True
        self._process.close()
        self._dma.close()
        self.nested.close()
        self.memory.release(self._area_frame, self._frames)

    # ---- on the guest's behalf ---------------------------------------------------------------

    def read_physical64(self, gpa: int) -> int | None:
        """The aligned 8 bytes at a guest-physical address; None where nothing is mapped."""
        entry = self.nested.entry(gpa >> PAGE_SHIFT)
        if not entry & 1:
            return None
        return self.memory.u64[(L.frame_of(entry) << PAGE_SHIFT | gpa & (PAGE_SIZE - 1)) >> 3]

    def read_linear(self, vcpu: TcgVcpu, address: int, size: int) -> bytes:
        """Up to `size` bytes at a linear address; fewer where the next page is absent."""
        out = b""
        while len(out) < size:
            at = address + len(out)
            try:
                gpa = vcpu.translate(at)
            except PageFault:
                break
            entry = self.nested.entry(gpa >> PAGE_SHIFT)
            if not entry & 1:
                break
            step = min(size - len(out), PAGE_SIZE - (gpa & (PAGE_SIZE - 1)))
            start = L.frame_of(entry) << PAGE_SHIFT | gpa & (PAGE_SIZE - 1)
            out += bytes(self.memory.u8[start : start + step])
        return out

    def frame_at(self, gpa: int) -> int:
        """The machine frame behind a guest-physical address, -1 if there is none."""
        entry = self.nested.entry(gpa >> PAGE_SHIFT)
        return L.frame_of(entry) if entry & 1 else -1


def _gate(address: int) -> bytes:
    """A 64-bit interrupt gate for code selector 8 (Intel SDM volume 3, figure 6-8)."""
    return struct.pack(
        "<HHBBHII", address & 0xFFFF, 8, 0, 0x8E, address >> 16 & 0xFFFF, address >> 32, 0
    )
