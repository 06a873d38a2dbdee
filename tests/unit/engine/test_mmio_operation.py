"""Carrying out instructions on a device, against tables and against the CPU that runs this test.

Proves results, flags, register halves, repeat counts and page limits. On x86-64 the same bytes
also run natively on plain memory and must leave the same state. Cannot see page tables, faults of
a real guest, or a device.
"""

from __future__ import annotations

import ctypes
import itertools
import mmap
import platform
import struct
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvmlite.engine.mmio_decode import Kind, Segment, decode
from hvmlite.engine.mmio_operation import MmioOperation

RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)
CF, PF, AF, ZF, SF, DF, OF = (1 << n for n in (0, 2, 4, 6, 7, 10, 11))
ARITHMETIC = CF | PF | AF | ZF | SF | OF
ONES = (1 << 64) - 1
GPA = 0xFEE00100


class PageFaultError(Exception):
    pass


@dataclass
class Cpu:
    regs: dict[int, int] = field(default_factory=dict)
    rflags: int = 2
    memory: dict[int, int] = field(default_factory=dict)
    missing: range = range(0)
    bases: dict[Segment, int] = field(default_factory=dict)

    def read_reg(self, index: int) -> int:
        return self.regs.get(index, 0)

    def write_reg(self, index: int, value: int) -> None:
        assert 0 <= value <= ONES
        self.regs[index] = value

    def segment_base(self, segment: Segment) -> int:
        return self.bases.get(segment, 0)

    def _check(self, address: int, size: int) -> None:
        assert size <= 8 or address >> 12 == (address + size - 1) >> 12
        if any(address <= bad < address + size for bad in self.missing):
            raise PageFaultError

    def read_linear(self, address: int, size: int) -> bytes:
        self._check(address, size)
        return bytes(self.memory.get(address + n, 0) for n in range(size))

    def write_linear(self, address: int, data: bytes) -> None:
        self._check(address, len(data))
        self.memory.update(enumerate(data, address))


@dataclass
class Device:
    """Memory that keeps a record of how it was accessed; what is not there reads all ones."""

    memory: dict[int, int] = field(default_factory=dict)
    log: list[tuple[str, int, int]] = field(default_factory=list)

    def put(self, gpa: int, size: int, value: int) -> None:
        self.memory.update(enumerate(value.to_bytes(size, "little"), gpa))

    def get(self, gpa: int, size: int) -> int:
        return int.from_bytes(bytes(self.memory.get(gpa + n, 0xFF) for n in range(size)), "little")

    def read(self, gpa: int, size: int) -> int:
        self.log.append(("r", gpa, size))
        return self.get(gpa, size)

    def write(self, gpa: int, size: int, value: int) -> None:
        assert 0 <= value < 1 << 8 * size
        self.log.append(("w", gpa, size))
        self.put(gpa, size, value)


def run(
    code: str,
    cpu: Cpu,
    device: Device,
    gpa: int = GPA,
    is_write: bool = False,
    bitness: int = 64,
) -> int:
    access = decode(bytes.fromhex(code), bitness)
    return MmioOperation(cpu, device.read, device.write).run(access, gpa, is_write)


# ---- moves -----------------------------------------------------------------------------------

OLD = 0x1122334455667788


@pytest.mark.parametrize(
    ("code", "value", "register", "result"),
    [
        ("8b07", 0x80000001, RAX, 0x80000001),
        ("488b07", 0xF000000080000001, RAX, 0xF000000080000001),
        ("668b07", 0x8001, RAX, 0x1122334455668001),
        ("8a07", 0x81, RAX, 0x1122334455667781),
        ("8a27", 0x81, RAX, 0x1122334455668188),
        ("8a3f", 0x81, RBX, 0x1122334455668188),
        ("408a3f", 0x81, RDI, 0x1122334455667781),
        ("448a3f", 0x81, 15, 0x1122334455667781),
        ("0fb607", 0x81, RAX, 0x81),
        ("660fb607", 0x81, RAX, 0x1122334455660081),
        ("480fb707", 0x8001, RAX, 0x8001),
        ("0fbe07", 0x81, RAX, 0xFFFFFF81),
        ("660fbe07", 0x81, RAX, 0x112233445566FF81),
        ("480fbe07", 0x81, RAX, 0xFFFFFFFFFFFFFF81),
        ("480fbf07", 0x7FFF, RAX, 0x7FFF),
        ("486307", 0x80000000, RAX, 0xFFFFFFFF80000000),
        ("a1b000e0fe00000000", 0x12345678, RAX, 0x12345678),
    ],
)
def test_loads(code: str, value: int, register: int, result: int) -> None:
    cpu, device = Cpu(dict.fromkeys(range(16), OLD)), Device()
    access = decode(bytes.fromhex(code), 64)
    device.put(GPA, access.size, value)
    assert run(code, cpu, device) == len(code) // 2
    assert cpu.regs == dict.fromkeys(range(16), OLD) | {register: result}
    assert device.log == [("r", GPA, access.size)]
    assert cpu.rflags == 2


@pytest.mark.parametrize(
    ("code", "size", "value"),
    [
        ("8907", 4, 0x55667788),
        ("488907", 8, OLD),
        ("668907", 2, 0x7788),
        ("8807", 1, 0x88),
        ("8827", 1, 0x77),
        ("c707ffffffff", 4, 0xFFFFFFFF),
        ("48c707feffffff", 8, 0xFFFFFFFFFFFFFFFE),
        ("66c7073412", 2, 0x1234),
        ("0fc307", 4, 0x55667788),
    ],
)
def test_stores(code: str, size: int, value: int) -> None:
    cpu, device = Cpu(dict.fromkeys(range(16), OLD)), Device()
    assert run(code, cpu, device, is_write=True) == len(code) // 2
    assert cpu.regs == dict.fromkeys(range(16), OLD)
    assert (device.log, device.get(GPA, size)) == ([("w", GPA, size)], value)


@pytest.mark.parametrize("code", ["8b07", "668b07", "488b07", "0fb607", "ad", "480fbe07"])
def test_a_hole_reads_all_ones(code: str) -> None:
    cpu = Cpu()
    run(code, cpu, Device())
    size = decode(bytes.fromhex(code), 64).register_size or 4
    assert cpu.regs[RAX] == (0xFF if code == "0fb607" else (1 << 8 * size) - 1)


def test_exchange_with_itself_and_failed_compare_exchange() -> None:
    cpu, device = Cpu({RAX: OLD, RCX: 5}), Device()
    device.put(GPA, 4, 0xAABBCCDD)
    assert run("8707", cpu, device, is_write=True) == 2
    assert (cpu.regs[RAX], device.get(GPA, 4)) == (0xAABBCCDD, 0x55667788)
    device.log.clear()
    assert run("f00fb10f", cpu, device, is_write=True) == 4
    assert (cpu.regs[RAX], cpu.rflags & ZF) == (0x55667788, 0)
    assert device.log == [("r", GPA, 4)]
    assert run("f00fb10f", cpu, device, is_write=True) == 4
    assert (device.get(GPA, 4), cpu.rflags & ZF) == (5, ZF)


# ---- string instructions ---------------------------------------------------------------------


def test_rep_movs_from_a_hole() -> None:
    cpu = Cpu({RCX: 0x40, RSI: GPA, RDI: 0x7FF0})
    assert run("f3a4", cpu, Device()) == 2
    assert (cpu.regs[RCX], cpu.regs[RSI], cpu.regs[RDI]) == (0, GPA + 0x40, 0x8030)
    assert cpu.memory == dict.fromkeys(range(0x7FF0, 0x8030), 0xFF)


@pytest.mark.parametrize("gpa", [0xFEE00FF0, 0xFEE00FF1])
def test_rep_movs_stops_at_the_page(gpa: int) -> None:
    cpu, device = Cpu({RCX: 10, RSI: gpa, RDI: 0x5000}), Device()
    items = (0x1000 - (gpa & 0xFFF)) // 4
    assert run("f3a5", cpu, device, gpa=gpa) == 0
    assert (cpu.regs[RCX], cpu.regs[RSI]) == (10 - items, gpa + 4 * items)
    assert device.log == [("r", gpa + 4 * n, 4) for n in range(items)]
    # The guest executes it again; the rest is in the next page.
    assert run("f3a5", cpu, device, gpa=cpu.regs[RSI]) == (2 if gpa & 1 == 0 else 0)


def test_rep_movs_to_a_device() -> None:
    cpu, device = Cpu({RCX: 4, RSI: 0x2FF8, RDI: 0x9000}), Device()
    cpu.memory = dict(enumerate(range(0x40), 0x2FF8))
    assert run("f348a5", cpu, device, is_write=True) == 3
    assert device.log == [("w", GPA + 8 * n, 8) for n in range(4)]
    assert [device.memory[GPA + n] for n in range(32)] == list(range(32))


def test_movs_down() -> None:
    cpu, device = Cpu({RCX: 5, RSI: 0x100C, RDI: 0x900C}, rflags=2 | DF), Device()
    device.memory = dict(enumerate(range(0x100), 0xFEE00000))
    assert run("f3a5", cpu, device, gpa=0xFEE0000C) == 0
    assert (cpu.regs[RCX], cpu.regs[RSI], cpu.regs[RDI]) == (1, 0xFFC, 0x8FFC)
    assert bytes(cpu.memory[0x9000 + n] for n in range(16)) == bytes(range(16))


def test_an_item_across_pages_is_done_alone() -> None:
    cpu, device = Cpu({RCX: 3, RDI: 0xFFE}), Device()
    assert run("f3ab", cpu, device, gpa=0xFEE00FFE, is_write=True) == 0
    assert (device.log, cpu.regs[RCX]) == ([("w", 0xFEE00FFE, 4)], 2)
    assert run("ab", cpu, device, gpa=0xFEE00FFE, is_write=True) == 1


@pytest.mark.parametrize(
    ("bitness", "code", "before", "after"),
    [
        (64, "67f3ab", {RCX: 5 << 32 | 2, RDI: 7 << 32 | 0x100}, {RCX: 0, RDI: 0x108}),
        (64, "f3ab", {RCX: 2, RDI: 7 << 32 | 0x100}, {RCX: 0, RDI: 7 << 32 | 0x108}),
        (32, "67f3ab", {RCX: 0x50002, RDI: 0x7FFFC}, {RCX: 0x50000, RDI: 0x70004}),
        (16, "f3ab", {RCX: 0x50002, RDI: 0x7FFFE}, {RCX: 0x50000, RDI: 0x70002}),
    ],
)
def test_address_size(
    bitness: int, code: str, before: dict[int, int], after: dict[int, int]
) -> None:
    cpu, device = Cpu(before), Device()
    assert run(code, cpu, device, is_write=True, bitness=bitness) == len(code) // 2
    assert cpu.regs == after
    assert len(device.log) == 2


@pytest.mark.parametrize(
    ("bitness", "code", "is_write", "address"),
    [
        (32, "a4", True, 0x10000 + 0x30),
        (32, "64a4", True, 0x20000 + 0x30),
        (32, "a4", False, 0x40000 + 0x50),
        (64, "a4", True, 0x30),
        (64, "64a4", True, 0x20000 + 0x30),
        (64, "a4", False, 0x50),
    ],
)
def test_segments(bitness: int, code: str, is_write: bool, address: int) -> None:
    cpu = Cpu({RSI: 0x30, RDI: 0x50})
    cpu.bases = {Segment.DS: 0x10000, Segment.FS: 0x20000, Segment.ES: 0x40000}
    cpu.memory = {address: 0x5A}
    device = Device()
    run(code, cpu, device, is_write=is_write, bitness=bitness)
    assert device.memory == ({GPA: 0x5A} if is_write else {})
    assert cpu.memory == {address: 0x5A if is_write else 0xFF}


def test_linear_addresses_wrap() -> None:
    cpu = Cpu({RSI: 0xFFFFFFF0}, bases={Segment.DS: 0x20})
    cpu.memory = {0x10: 0x77}
    device = Device()
    run("a4", cpu, device, is_write=True, bitness=32)
    assert device.memory == {GPA: 0x77}


def test_a_zero_count_does_nothing() -> None:
    cpu, device = Cpu({RCX: 0, RDI: 0x10}), Device()
    assert run("f3aa", cpu, device, is_write=True) == 2
    assert (cpu.regs, device.log) == ({RCX: 0, RDI: 0x10}, [])


def test_a_fault_in_memory_keeps_what_is_done() -> None:
    cpu, device = Cpu({RCX: 32, RSI: GPA, RDI: 0x7FF8}, missing=range(0x8000, 0x9000)), Device()
    with pytest.raises(PageFaultError):
        run("f3a4", cpu, device)
    assert (cpu.regs[RCX], cpu.regs[RSI], cpu.regs[RDI]) == (24, GPA + 8, 0x8000)
    cpu = Cpu({RSI: 0x8000, RDI: GPA}, missing=range(0x8000, 0x9000))
    with pytest.raises(PageFaultError):
        run("a4", cpu, device, is_write=True)
    assert cpu.regs == {RSI: 0x8000, RDI: GPA}
    assert ("w", GPA, 1) not in device.log


@pytest.mark.parametrize(
    ("code", "done", "count"),
    [("f2ae", True, 0x100 - 4), ("f3ae", True, 0x100 - 1), ("ae", True, 0x100)],
)
def test_scas(code: str, done: bool, count: int) -> None:
    cpu, device = Cpu({RAX: 3, RCX: 0x100, RDI: GPA}), Device()
    device.memory = dict(enumerate(range(16), GPA))
    assert (run(code, cpu, device) == len(code) // 2) is done
    assert cpu.regs[RCX] == count
    assert bool(cpu.rflags & ZF) is (code == "f2ae")


@pytest.mark.parametrize("device_is_source", [True, False])
def test_cmps_finds_which_side_is_the_device(device_is_source: bool) -> None:
    ram = 0x7000
    cpu, device = Cpu(), Device()
    cpu.regs = {RCX: 8, RSI: GPA, RDI: ram} if device_is_source else {RCX: 8, RSI: ram, RDI: GPA}
    device.memory = dict(enumerate(b"abcdefgh", GPA))
    cpu.memory = dict(enumerate(b"abcdxfgh", ram))
    assert run("f3a6", cpu, device) == 2
    assert cpu.regs[RCX] == 3
    assert bool(cpu.rflags & CF) is device_is_source, "e is below x"


def test_work_is_bounded() -> None:
    cpu, device = Cpu({RCX: ONES, RSI: 0x1000}), Device()
    assert run("f3a4", cpu, device, gpa=0xFEE00000, is_write=True) == 0
    assert len(device.log) == 4096
    assert cpu.regs[RCX] == ONES - 4096


# ---- the CPU itself as the judge -------------------------------------------------------------

NATIVE_REGS = (RAX, RCX, RDX, RBX, RSI, RDI)


class Native:
    """Runs one instruction on this CPU, on memory that stands for the device."""

    # r8 holds the context: push rbx; push rdi; mov r8, rdi; load rax, rcx, rdx, rbx, rsi, flags,
    # rdi; the instruction; flags, r9 = rdi, r8 = context; store; return.
    ENTER = bytes.fromhex(
        "53 57 4989f8 498b00 498b4808 498b5010 498b5818 498b7020 41ff7030 9d 498b7828"
    )
    LEAVE = bytes.fromhex(
        "9c 415a fc 4989f9 5f 488907 48894f08 48895710 48895f18 48897720 4c894f28 4c895730 5b c3"
    )

    def __init__(self) -> None:
        self.code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self.data = mmap.mmap(-1, 8192)
        self.context = ctypes.create_string_buffer(7 * 8)
        self.base = ctypes.addressof(ctypes.c_char.from_buffer(self.data))
        entry = ctypes.addressof(ctypes.c_char.from_buffer(self.code))
        self.call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(entry)

    def run(self, code: bytes, regs: dict[int, int], flags: int) -> tuple[dict[int, int], int]:
        whole = self.ENTER + code + self.LEAVE
        self.code[: len(whole)] = whole
        struct.pack_into("<7Q", self.context, 0, *(regs[n] for n in NATIVE_REGS), flags)
        self.call(ctypes.addressof(self.context))
        *after, flags = struct.unpack_from("<7Q", self.context)
        return dict(zip(NATIVE_REGS, after, strict=True)), flags


def forms() -> list[bytes]:
    """Every kind that is not a string, in every size, on the memory at (%rdi)."""
    opcodes: list[tuple[bytes, int, bytes]] = []
    for group in range(8):  # ADD, OR, ADC, SBB, AND, SUB, XOR, CMP
        for number in (8 * group, 8 * group + 2):
            opcodes += [(bytes([number]), modrm, b"") for modrm in (0x0F, 0x27)]
            opcodes += [(bytes([number + 1]), 0x0F, b"")]
        opcodes += [(b"\x80", 8 * group | 7, b"\x91"), (b"\x83", 8 * group | 7, b"\xf2")]
    for text in ("84", "86", "88", "8a", "0fc0", "0fb0"):  # TEST, XCHG, MOV, XADD, CMPXCHG
        byte = bytes.fromhex(text)
        opcodes += [(byte, 0x0F, b""), (byte, 0x2F, b"")]
        opcodes += [(byte[:-1] + bytes([byte[-1] + 1]), 0x0F, b"")]
    for text, extension in (("f6", 2), ("f6", 3), ("fe", 0), ("fe", 1)):  # NOT, NEG, INC, DEC
        byte = bytes.fromhex(text)
        opcodes += [(byte, 8 * extension | 7, b""), (bytes([byte[0] + 1]), 8 * extension | 7, b"")]
    for text in ("0fb6", "0fb7", "0fbe", "0fbf", "0fc3", "63"):
        opcodes.append((bytes.fromhex(text), 0x0F, b""))
    for extension in range(4, 8):  # BT, BTS, BTR, BTC
        opcodes.append((b"\x0f\xba", 8 * extension | 7, b"\x9d"))
    opcodes += [(b"\xf6", 0x07, b"\x91"), (b"\xc6", 0x07, b"\x91")]
    found = []
    for (opcode, modrm, tail), prefix in itertools.product(opcodes, (b"", b"\x66", b"\x48")):
        if (opcode, prefix) in ((b"\x63", b""), (b"\x63", b"\x66"), (b"\x0f\xc3", b"\x66")):
            continue
        if prefix == b"\x48" and modrm in (0x27, 0x2F):
            continue  # With REX these are spl and bpl, no longer ah and ch.
        found.append(prefix + opcode + bytes([modrm]) + tail)
    return found


FORMS = forms()
UNDEFINED_AF = {Kind.AND, Kind.OR, Kind.XOR, Kind.TEST}
UNDEFINED_BUT_CF = {Kind.BT, Kind.BTS, Kind.BTR, Kind.BTC}
EDGES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
VALUE = st.one_of(
    st.integers(0, ONES),
    st.sampled_from([*EDGES, 1 << 63, (1 << 63) - 1, ONES]),
    st.sampled_from(EDGES).map(lambda n: n * 0x0101_0101_0101_0101 & ONES),
)
native_only = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="needs an x86-64 CPU to compare with"
)


@pytest.fixture(scope="module")
def native() -> Native:
    try:
        return Native()
    except PermissionError:
        pytest.skip("this host lets no program make code")


@native_only
@given(
    data=st.data(), memory=VALUE, values=st.tuples(VALUE, VALUE, VALUE, VALUE), carry=st.booleans()
)
@settings(max_examples=40, deadline=None)
def test_like_this_cpu(
    native: Native, data: st.DataObject, memory: int, values: tuple[int, ...], carry: bool
) -> None:
    if data.draw(st.booleans()):
        values = (memory, *values[1:])  # so that CMPXCHG succeeds at times
    flags = 0x202 | (CF if carry else 0)
    for code in FORMS:
        native.data[:8] = memory.to_bytes(8, "little")
        regs = dict(zip((RAX, RCX, RDX, RBX), values, strict=True))
        regs |= {RSI: 0x1234, RDI: native.base}
        cpu, device = Cpu(dict(regs), flags), Device()
        device.put(native.base, 8, memory)
        access = decode(code, 64)
        done = MmioOperation(cpu, device.read, device.write).run(access, native.base, access.write)
        expected, expected_flags = native.run(code, regs, flags)
        assert done == len(code)
        text = code.hex()
        assert cpu.regs == expected, text
        assert device.get(native.base, 8) == int.from_bytes(native.data[:8], "little"), text
        defined = ARITHMETIC
        if access.kind in UNDEFINED_AF:
            defined &= ~AF
        elif access.kind in UNDEFINED_BUT_CF:
            defined = CF | ZF
        assert (cpu.rflags ^ expected_flags) & defined == 0, text


# Opcodes of MOVS and CMPS, which have both sides, of LODS, and of STOS and SCAS.
STRINGS = [
    (prefix + opcode, source)
    for prefix in ("", "48", "66", "f3", "f2", "f348", "f366", "f248")
    for opcodes, sides in (
        (("a4", "a5", "a6", "a7"), (True, False)),
        (("ac", "ad"), (True,)),
        (("aa", "ab", "ae", "af"), (False,)),
    )
    for opcode, source in itertools.product(opcodes, sides)
]


@native_only
@pytest.mark.parametrize("down", [False, True])
@pytest.mark.parametrize(("text", "device_is_source"), STRINGS)
def test_strings_like_this_cpu(
    native: Native, text: str, device_is_source: bool, down: bool
) -> None:
    code = bytes.fromhex(text)
    pattern = bytes(n % 7 for n in range(2048))
    native.data[:4096] = pattern + b"\1\2\3\4" * 512
    native.data[4096:] = pattern + b"\1\2\3\4" * 512
    near, far = native.base + 1024, native.base + 4096 + 1031
    source, destination = (near, far) if device_is_source else (far, near)
    regs = {RAX: 0x0403020100060504, RCX: 21, RDX: 0, RBX: 0, RSI: source, RDI: destination}
    access = decode(code, 64)
    # The page of `near` is the device.
    cpu, device = Cpu(dict(regs), 0x202 | (DF if down else 0)), Device()
    page = native.base
    device.memory = dict(enumerate(native.data[:4096], page))
    cpu.memory = dict(enumerate(native.data[4096:], page + 4096))
    is_write = access.write and not device_is_source
    done = MmioOperation(cpu, device.read, device.write).run(access, near, is_write)
    expected, flags = native.run(code, regs, cpu.rflags & DF | 0x202)
    assert done == len(code)
    assert cpu.regs == expected
    assert bytes(device.memory[page + n] for n in range(4096)) == native.data[:4096]
    assert bytes(cpu.memory[page + 4096 + n] for n in range(4096)) == native.data[4096:]
    assert (cpu.rflags ^ flags) & (ARITHMETIC | DF) == 0
