"""Carries out a decoded instruction whose memory operand is a device.

It computes results, flags and register updates as the CPU would; what it does not know are page
tables and devices. Facts: Intel SDM volume 2; AMD APM volume 3.
"""

from collections.abc import Callable
from typing import Final, Protocol

from hvmlite.engine.mmio_decode import STRING_KINDS, Kind, MmioAccess, Repeat, Segment

_RAX: Final = 0
_RCX: Final = 1
_RSI: Final = 6
_RDI: Final = 7

_CF: Final = 1 << 0
_PF: Final = 1 << 2
_AF: Final = 1 << 4
_ZF: Final = 1 << 6
_SF: Final = 1 << 7
_DF: Final = 1 << 10
_OF: Final = 1 << 11
_ARITHMETIC: Final = _CF | _PF | _AF | _ZF | _SF | _OF

_PARITY: Final = tuple(0 if byte.bit_count() & 1 else _PF for byte in range(256))
_MASK: Final = {size: (1 << 8 * size) - 1 for size in (1, 2, 4, 8)}
_PAGE_SIZE: Final = 4096
_OFFSET: Final = _PAGE_SIZE - 1

ReadDevice = Callable[[int, int], int]
"""read(gpa, size): `size` is 1, 2, 4 or 8 bytes; the result is unsigned."""
WriteDevice = Callable[[int, int, int], None]
"""write(gpa, size, value)."""


class MmioCpu(Protocol):
    """The vCPU state that an instruction touches besides the device."""

    rflags: int

    def read_reg(self, index: int) -> int:
        """All 64 bits of a general register, by its encoding (0 is rax, 1 is rcx)."""

    def write_reg(self, index: int, value: int) -> None:
        """Set all 64 bits of a general register."""

    def segment_base(self, segment: Segment) -> int:
        """Base address of a segment."""

    def read_linear(self, address: int, size: int) -> bytes:
        """Read guest memory, never across a page but for one item of at most 8 bytes.

        May raise the engine's page fault. The memory of a string instruction may be a device too.
        """

    def write_linear(self, address: int, data: bytes) -> None:
        """Write guest memory, as read_linear reads it."""


class MmioOperation:
    """Runs accesses of one vCPU; may be kept and used for each of them."""

    __slots__ = ("_cpu", "_read", "_write")

    def __init__(self, cpu: MmioCpu, read: ReadDevice, write: WriteDevice) -> None:
        self._cpu = cpu
        self._read = read
        self._write = write

    def run(self, access: MmioAccess, gpa: int, is_write: bool) -> int:
        """Carry out an instruction; returns by how many bytes the instruction pointer moves on.

        `gpa` is the address that faulted, and `is_write` whether by a write: that tells which of
        the two operands of MOVS is the device. 0: a repeated instruction has done its part within
        the page of `gpa`, registers are up to date, and the guest executes it again for the rest.
        What read_linear and write_linear raise passes through, with the state as the CPU has it
        when it faults there.
        """
        kind = access.kind
        if kind is Kind.MOV:
            if access.memory_first:
                self._write(gpa, access.size, self._operand(access))
            else:
                self._set_register(access, self._read(gpa, access.size))
        elif kind in STRING_KINDS:
            return self._string(access, gpa, is_write)
        elif kind is Kind.MOVZX:
            self._set_register(access, self._read(gpa, access.size))
        elif kind is Kind.MOVSX:
            value = self._read(gpa, access.size)
            sign = 1 << 8 * access.size - 1
            self._set_register(access, (value ^ sign) - sign & _MASK[access.register_size])
        elif kind is Kind.XCHG:
            value = self._read(gpa, access.size)
            self._write(gpa, access.size, self._operand(access))
            self._set_register(access, value)
        elif kind is Kind.XADD:
            value = self._read(gpa, access.size)
            result, flags = _add(value, self._operand(access), 0, access.size)
            self._write(gpa, access.size, result)
            self._set_register(access, value)
            self._set_flags(flags)
        elif kind is Kind.CMPXCHG:
            self._compare_exchange(access, gpa)
        elif kind in _BIT:
            self._bit(access, gpa)
        elif kind in _UNARY:
            self._unary(access, gpa)
        else:
            self._binary(access, gpa)
        return access.length

    # ---- operands ----------------------------------------------------------------------------

    def _operand(self, access: MmioAccess) -> int:
        if access.immediate is not None:
            return access.immediate
        value = self._cpu.read_reg(access.register)
        if access.high_byte:
            value >>= 8
        return value & _MASK[access.register_size]

    def _set_register(self, access: MmioAccess, value: int) -> None:
        index, size = access.register, access.register_size
        if size < 4:
            shift = 8 if access.high_byte else 0
            old = self._cpu.read_reg(index)
            value = old & ~(_MASK[size] << shift) | value << shift
        # A 32-bit result clears the upper half.
        self._cpu.write_reg(index, value)

    def _set_flags(self, flags: int, which: int = _ARITHMETIC) -> None:
        self._cpu.rflags = self._cpu.rflags & ~which | flags

    # ---- read, compute, write ----------------------------------------------------------------

    def _binary(self, access: MmioAccess, gpa: int) -> None:
        memory = self._read(gpa, access.size)
        other = self._operand(access)
        first, second = (memory, other) if access.memory_first else (other, memory)
        carry = self._cpu.rflags & _CF
        result, flags = _BINARY[access.kind](first, second, carry, access.size)
        if access.kind is not Kind.CMP and access.kind is not Kind.TEST:
            if access.memory_first:
                self._write(gpa, access.size, result)
            else:
                self._set_register(access, result)
        self._set_flags(flags)

    def _unary(self, access: MmioAccess, gpa: int) -> None:
        kind, size = access.kind, access.size
        value = self._read(gpa, size)
        if kind is Kind.NOT:
            self._write(gpa, size, value ^ _MASK[size])
            return
        which = _ARITHMETIC
        if kind is Kind.NEG:
            result, flags = _sub(0, value, 0, size)
        else:
            result, flags = (_add if kind is Kind.INC else _sub)(value, 1, 0, size)
            which, flags = which & ~_CF, flags & ~_CF
        self._write(gpa, size, result)
        self._set_flags(flags, which)

    def _bit(self, access: MmioAccess, gpa: int) -> None:
        # A bit number beyond the operand has moved the address already.
        value = self._read(gpa, access.size)
        bit = 1 << (self._operand(access) & 8 * access.size - 1)
        if access.kind is Kind.BTS:
            self._write(gpa, access.size, value | bit)
        elif access.kind is Kind.BTR:
            self._write(gpa, access.size, value & ~bit)
        elif access.kind is Kind.BTC:
            self._write(gpa, access.size, value ^ bit)
        self._set_flags(_CF if value & bit else 0, _CF)

    def _compare_exchange(self, access: MmioAccess, gpa: int) -> None:
        size = access.size
        value = self._read(gpa, size)
        accumulator = self._cpu.read_reg(_RAX)
        _, flags = _sub(accumulator & _MASK[size], value, 0, size)
        if flags & _ZF:
            self._write(gpa, size, self._operand(access))
        else:
            self._set_index(_RAX, size, value)
        self._set_flags(flags)

    # ---- string instructions -----------------------------------------------------------------

    def _string(self, access: MmioAccess, gpa: int, is_write: bool) -> int:
        cpu = self._cpu
        repeat = access.repeat is not Repeat.NONE
        count = cpu.read_reg(_RCX) & _MASK[access.address_size] if repeat else 1
        step = -access.size if cpu.rflags & _DF else access.size
        # No more than the page of gpa holds: the next page may be no device.
        offset = gpa & _OFFSET
        room = offset // access.size + 1 if step < 0 else (_PAGE_SIZE - offset) // access.size
        limit = min(count, max(room, 1))
        done = 0
        ended = False
        while done < limit and not ended:
            items = self._string_items(access, gpa + done * step, step, limit - done, is_write)
            if access.kind in (Kind.CMPS, Kind.SCAS) and repeat:
                ended = bool(cpu.rflags & _ZF) is (access.repeat is Repeat.REPNE)
            if access.kind is not Kind.SCAS and access.kind is not Kind.STOS:
                self._step_index(access, _RSI, items * step)
            if access.kind is not Kind.LODS:
                self._step_index(access, _RDI, items * step)
            if repeat:
                self._step_index(access, _RCX, -items)
            done += items
        return access.length if done == count or ended else 0

    def _string_items(
        self, access: MmioAccess, gpa: int, step: int, limit: int, is_write: bool
    ) -> int:
        """Do one item or, of MOVS upwards, as many as the other operand's page has."""
        cpu, size = self._cpu, access.size
        match access.kind:
            case Kind.STOS:
                self._write(gpa, size, cpu.read_reg(_RAX) & _MASK[size])
            case Kind.LODS:
                self._set_index(_RAX, size, self._read(gpa, size))
            case Kind.SCAS:
                accumulator = cpu.read_reg(_RAX) & _MASK[size]
                self._set_flags(_sub(accumulator, self._read(gpa, size), 0, size)[1])
            case Kind.CMPS:
                source, destination = self._source(access), self._destination(access)
                device = self._read(gpa, size)
                if (source ^ gpa) & _OFFSET == 0:
                    first, second = device, _from_bytes(cpu.read_linear(destination, size))
                else:
                    first, second = _from_bytes(cpu.read_linear(source, size)), device
                self._set_flags(_sub(first, second, 0, size)[1])
            case _:
                address = self._source(access) if is_write else self._destination(access)
                items = 1
                if step > 0:
                    items = min(limit, max((_PAGE_SIZE - (address & _OFFSET)) // size, 1))
                self._move(gpa, address, size, items, is_write)
                return items
        return 1

    def _move(self, gpa: int, address: int, size: int, items: int, is_write: bool) -> None:
        steps = range(0, items * size, size)
        if is_write:
            data = self._cpu.read_linear(address, items * size)
            for offset in steps:
                self._write(gpa + offset, size, _from_bytes(data[offset : offset + size]))
        else:
            read = [self._read(gpa + offset, size).to_bytes(size, "little") for offset in steps]
            self._cpu.write_linear(address, b"".join(read))

    def _source(self, access: MmioAccess) -> int:
        base = 0 if access.segment is None else self._cpu.segment_base(access.segment)
        return self._linear(access, base, _RSI)

    def _destination(self, access: MmioAccess) -> int:
        base = 0 if access.bitness == 64 else self._cpu.segment_base(Segment.ES)
        return self._linear(access, base, _RDI)

    def _linear(self, access: MmioAccess, base: int, index: int) -> int:
        offset = self._cpu.read_reg(index) & _MASK[access.address_size]
        return base + offset & _MASK[8 if access.bitness == 64 else 4]

    def _step_index(self, access: MmioAccess, index: int, step: int) -> None:
        size = access.address_size
        self._set_index(index, size, self._cpu.read_reg(index) + step & _MASK[size])

    def _set_index(self, index: int, size: int, value: int) -> None:
        if size < 4:
            value |= self._cpu.read_reg(index) & ~_MASK[size]
        self._cpu.write_reg(index, value)


def _from_bytes(data: bytes) -> int:
    return int.from_bytes(data, "little")


# ---- results and flags: (first, second, carry, size) -> (result, flags) --------------------------


def _result_flags(result: int, size: int) -> int:
    flags = _PARITY[result & 0xFF]
    if not result:
        flags |= _ZF
    if result >> 8 * size - 1:
        flags |= _SF
    return flags


def _add(first: int, second: int, carry: int, size: int) -> tuple[int, int]:
    total = first + second + carry
    result = total & _MASK[size]
    flags = _result_flags(result, size) | (first ^ second ^ result) & _AF
    if total != result:
        flags |= _CF
    if (first ^ result) & (second ^ result) & 1 << 8 * size - 1:
        flags |= _OF
    return result, flags


def _sub(first: int, second: int, borrow: int, size: int) -> tuple[int, int]:
    total = first - second - borrow
    result = total & _MASK[size]
    flags = _result_flags(result, size) | (first ^ second ^ result) & _AF
    if total < 0:
        flags |= _CF
    if (first ^ second) & (first ^ result) & 1 << 8 * size - 1:
        flags |= _OF
    return result, flags


def _logic(result: int, size: int) -> tuple[int, int]:
    return result, _result_flags(result, size)


_BINARY: Final[dict[Kind, Callable[[int, int, int, int], tuple[int, int]]]] = {
    Kind.ADD: lambda first, second, _, size: _add(first, second, 0, size),
    Kind.ADC: _add,
    Kind.SUB: lambda first, second, _, size: _sub(first, second, 0, size),
    Kind.CMP: lambda first, second, _, size: _sub(first, second, 0, size),
    Kind.SBB: _sub,
    Kind.AND: lambda first, second, _, size: _logic(first & second, size),
    Kind.TEST: lambda first, second, _, size: _logic(first & second, size),
    Kind.OR: lambda first, second, _, size: _logic(first | second, size),
    Kind.XOR: lambda first, second, _, size: _logic(first ^ second, size),
}
_UNARY: Final = frozenset((Kind.NOT, Kind.NEG, Kind.INC, Kind.DEC))
_BIT: Final = frozenset((Kind.BT, Kind.BTS, Kind.BTR, Kind.BTC))
