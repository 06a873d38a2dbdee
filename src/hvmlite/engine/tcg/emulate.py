"""Instructions that the engine carries out for the guest: accesses to devices, string port I/O.

Facts: AMD64 APM volume 2, section 15.10.2 (EXITINFO1 of port I/O); volume 3 (INS, OUTS).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hvmlite.engine.base import GENERAL_REGISTERS, PortIo
from hvmlite.engine.memory import PAGE_SHIFT, PAGE_SIZE
from hvmlite.engine.mmio_decode import Segment, decode
from hvmlite.engine.mmio_operation import MmioOperation
from hvmlite.engine.paging import PageFault

if TYPE_CHECKING:
    from hvmlite.engine.tcg.partition import TcgPartition
    from hvmlite.engine.tcg.vcpu import TcgVcpu

_PF = 14
_DF = 1 << 10
_LONGEST_INSTRUCTION = 15
_IO_REP = 1 << 3
_ADDRESS_SIZE_PREFIX = 0x67
_SEGMENT_PREFIXES = {
    0x26: Segment.ES, 0x2E: Segment.CS, 0x36: Segment.SS,
    0x3E: Segment.DS, 0x64: Segment.FS, 0x65: Segment.GS,
}  # fmt: skip
_OTHER_PREFIXES = (0x66, 0xF0, 0xF2, 0xF3, *range(0x40, 0x50))
_RDTSC = b"\x0f\x31"
_RDTSCP = b"\x0f\x01\xf9"
_STRING_LIMIT = 1024
"""Bytes of INS or OUTS that one exit carries; the guest goes on with the rest."""


class LinearMemory:
    """A stopped vCPU's view of its memory, as `MmioCpu` wants it; device pages go to the device."""

    def __init__(
        self,
        vcpu: TcgVcpu,
        partition: TcgPartition,
        read: Callable[[int, int], int],
        write: Callable[[int, int, int], None],
    ) -> None:
        self._vcpu = vcpu
        self._partition = partition
        self._read = read
        self._write = write

    @property
    def rflags(self) -> int:
        """The flags."""
        return self._vcpu.get("rflags")

    @rflags.setter
    def rflags(self, value: int) -> None:
        self._vcpu.set("rflags", value)

    def read_reg(self, index: int) -> int:
        """See MmioCpu."""
        return self._vcpu.get(GENERAL_REGISTERS[index])

    def write_reg(self, index: int, value: int) -> None:
        """See MmioCpu."""
        self._vcpu.set(GENERAL_REGISTERS[index], value)

    def segment_base(self, segment: Segment) -> int:
        """See MmioCpu."""
        return self._vcpu.segment(segment.name.lower()).base

    def read_linear(self, address: int, size: int) -> bytes:
        """See MmioCpu; raises PageFault."""
        out = b""
        while len(out) < size:
            gpa = self._vcpu.translate(address + len(out))
            step = min(size - len(out), PAGE_SIZE - (gpa & (PAGE_SIZE - 1)))
            frame = self._partition.frame_at(gpa)
            if frame < 0:
                out += self._read(gpa, step).to_bytes(step, "little")
            else:
                start = frame << PAGE_SHIFT | gpa & (PAGE_SIZE - 1)
                out += bytes(self._partition.memory.u8[start : start + step])
        return out

    def write_linear(self, address: int, data: bytes) -> None:
        """See MmioCpu; raises PageFault."""
        done = 0
        while done < len(data):
            gpa = self._vcpu.translate(address + done, write=True)
            step = min(len(data) - done, PAGE_SIZE - (gpa & (PAGE_SIZE - 1)))
            frame = self._partition.frame_at(gpa)
            part = data[done : done + step]
            if frame < 0:
                self._write(gpa, step, int.from_bytes(part, "little"))
            else:
                self._partition.write(frame, gpa & (PAGE_SIZE - 1), part)
            done += step


def inject_page_fault(vcpu: TcgVcpu, fault: PageFault) -> None:
    """Has the guest take the page fault that we met on its behalf."""
    vcpu.set("cr2", fault.address)
    vcpu.inject_exception(_PF, fault.error_code)


def emulate_mmio(
    vcpu: TcgVcpu,
    partition: TcgPartition,
    gpa: int,
    is_write: bool,
    read: Callable[[int, int], int],
    write: Callable[[int, int, int], None],
) -> None:
    """Carries out the instruction at rip, one operand of which is a device at `gpa`.

    Raises EngineError for an instruction that cannot be carried out.
    """
    access = decode(vcpu.fetch(_LONGEST_INSTRUCTION), vcpu.mode, vcpu.get("rip"))
    operation = MmioOperation(LinearMemory(vcpu, partition, read, write), read, write)
    try:
        vcpu.advance(operation.run(access, gpa, is_write))
    except PageFault as fault:
        inject_page_fault(vcpu, fault)


class StringIo:
    """INS or OUTS in progress: how many items this exit carries, and where they are."""

    def __init__(self, vcpu: TcgVcpu, partition: TcgPartition, info: int, size: int) -> None:
        self._vcpu = vcpu
        self._info = info
        self._size = size
        self._width, self._segment = _string_operand(vcpu)
        self._memory = LinearMemory(vcpu, partition, lambda _a, _s: 0, lambda _a, _s, _v: None)
        mask = (1 << 8 * self._width) - 1
        self._mask = mask
        count = vcpu.get("rcx") & mask if info & _IO_REP else 1
        self._backwards = bool(vcpu.get("rflags") & _DF)
        self.items = min(count, 1 if self._backwards else _STRING_LIMIT // size)
        self.finished = self.items == count

    def fetch(self) -> bytes:
        """The bytes that OUTS writes; raises PageFault."""
        address = self._base(self._segment) + (self._vcpu.get("rsi") & self._mask)
        return self._memory.read_linear(address, self.items * self._size)

    def store(self, value: int) -> None:
        """Puts what INS reads, the same value for each item; raises PageFault."""
        address = self._base(Segment.ES) + (self._vcpu.get("rdi") & self._mask)
        item = (value & ((1 << 8 * self._size) - 1)).to_bytes(self._size, "little")
        self._memory.write_linear(address, item * self.items)

    def _base(self, segment: Segment) -> int:
        if self._vcpu.mode == 64 and segment not in (Segment.FS, Segment.GS):
            return 0
        return self._memory.segment_base(segment)

    def step(self, index: str) -> None:
        """Moves the index and count registers on."""
        self._add(index, (-1 if self._backwards else self.items) * self._size)
        if self._info & _IO_REP:
            self._add("rcx", -self.items)

    def _add(self, name: str, amount: int) -> None:
        old = self._vcpu.get(name)
        new = old + amount & self._mask
        # 32-bit results clear the upper half, 16-bit ones leave the rest alone.
        self._vcpu.set(name, new if self._width >= 4 else old & ~self._mask | new)


def _string_operand(vcpu: TcgVcpu) -> tuple[int, Segment]:
    """The width of the index register (bytes) and the segment of OUTS, by the code at rip.

    EXITINFO1 has them on real hardware; QEMU leaves them out.
    """
    mode = vcpu.mode
    width, segment = mode // 8, Segment.DS
    for byte in vcpu.fetch(_LONGEST_INSTRUCTION):
        if byte == _ADDRESS_SIZE_PREFIX:
            width = 2 if mode == 32 else 4
        elif byte in _SEGMENT_PREFIXES:
            segment = _SEGMENT_PREFIXES[byte]
        elif byte not in _OTHER_PREFIXES:
            break
    return width, segment


def begin_string(
    vcpu: TcgVcpu, partition: TcgPartition, exit_: PortIo, info: int
) -> StringIo | None:
    """Prepares a string port exit; None if the guest takes a page fault instead."""
    string = StringIo(vcpu, partition, info, exit_.size)
    exit_.data = b""
    if exit_.write:
        try:
            exit_.data = string.fetch()
        except PageFault as fault:
            inject_page_fault(vcpu, fault)
            return None
    return string


def tsc_instruction(vcpu: TcgVcpu) -> tuple[bool, int] | None:
    """(whether it is RDTSCP, its bytes) of the RDTSC or RDTSCP at the instruction pointer.

    None if neither is there.
    """
    code = vcpu.fetch(len(_RDTSCP))
    if code[: len(_RDTSC)] == _RDTSC:
        return False, len(_RDTSC)
    if code == _RDTSCP:
        return True, len(_RDTSCP)
    code = vcpu.fetch(_LONGEST_INSTRUCTION)
    start = 0
    while start < len(code) and (
        code[start] in _SEGMENT_PREFIXES
        or code[start] in _OTHER_PREFIXES
        or code[start] == _ADDRESS_SIZE_PREFIX
    ):
        start += 1
    for opcode, with_aux in ((_RDTSC, False), (_RDTSCP, True)):
        if code[start : start + len(opcode)] == opcode:
            return with_aux, start + len(opcode)
    return None
