"""Proves what the engine does for the guest: string port I/O, and instructions on devices, with
faults on the way.

INS and OUTS are compared with a model of them item by item. Cannot see whether QEMU says of a
string instruction what is assumed here; the engine's tests do.
"""

from __future__ import annotations

import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hvmlite.engine import base as b
from hvmlite.engine.tcg import layout as L
from hvmlite.errors import EngineError

from .fakes import Machine

IN, STRING, REP = 1, 1 << 2, 1 << 3
PREFIXES = {
    "es": b"\x26",
    "cs": b"\x2e",
    "ss": b"\x36",
    "ds": b"\x3e",
    "fs": b"\x64",
    "gs": b"\x65",
}
ADDRESS_SIZE = b"\x67"
DF = 1 << 10
PF_EVENT = 1 << 31 | 1 << 11 | 3 << 8 | 14
DATA = 0x20_0000
NEXT_RIP = 0x1002


def io(port: int, size: int, flags: int) -> int:
    return port << 16 | size << 4 | flags


def set_mode(machine: Machine, bits: int) -> None:
    access = {16: 0x09B, 32: 0xC9B, 64: 0xA9B}[bits]
    machine.vcpu.set_segment("cs", b.Segment(0, 0, 0xFFFF_FFFF, access))
    machine.vcpu.set_raw("efer", 1 << 10 if bits == 64 else 0)
    assert machine.vcpu.mode == bits


def start_string(machine: Machine, size: int, flags: int, prefix: bytes = b"") -> b.PortIo | None:
    """INS or OUTS at 0x1000, with what QEMU says of it: neither address size nor segment."""
    if machine.partition.frame_at(0x1000) < 0:
        machine.place(0x1000, bytes(16))
    code = prefix + (b"\xf3" if flags & REP else b"") + (b"\x6c" if flags & IN else b"\x6e")
    start = machine.partition.frame_at(0x1000) << 12
    machine.partition.memory.u8[start : start + 16] = code.ljust(16, b"\x65")
    exit_ = machine.run(L.EXIT_IO, io(0xE9, size, flags | STRING), NEXT_RIP)
    assert exit_ is None or isinstance(exit_, b.PortIo)
    return exit_


# --- OUTS ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 4])
def test_outs_moves_one_item(machine: Machine, size: int) -> None:
    vcpu = machine.vcpu
    machine.place(DATA, b"abcdefgh")
    vcpu.set("rsi", DATA + 1)
    vcpu.set("rcx", 5)
    exit_ = start_string(machine, size, 0)
    assert exit_ is not None
    assert (exit_.write, exit_.string, exit_.port, exit_.size) == (True, True, 0xE9, size)
    assert exit_.data == b"bcdefgh"[:size]
    vcpu.complete_out()
    assert vcpu.get("rsi") == DATA + 1 + size
    assert vcpu.get("rcx") == 5
    assert vcpu.get("rip") == NEXT_RIP


def test_rep_outs_in_one_go(machine: Machine) -> None:
    vcpu = machine.vcpu
    machine.place(DATA, b"Hello, world")
    vcpu.set("rsi", DATA)
    vcpu.set("rcx", 12)
    exit_ = start_string(machine, 1, REP)
    assert exit_ is not None
    assert exit_.data == b"Hello, world"
    vcpu.complete_out()
    assert (vcpu.get("rsi"), vcpu.get("rcx"), vcpu.get("rip")) == (DATA + 12, 0, NEXT_RIP)


def test_a_long_rep_takes_several_exits(machine: Machine) -> None:
    vcpu = machine.vcpu
    data = bytes(range(256)) * 12
    machine.place(DATA, data)
    vcpu.set("rsi", DATA)
    vcpu.set("rcx", len(data))
    seen = b""
    for _ in range(3):
        assert vcpu.get("rip") == 0x1000
        exit_ = start_string(machine, 1, REP)
        assert exit_ is not None
        assert len(exit_.data) == 1024
        seen += exit_.data
        vcpu.complete_out()
    assert seen == data
    assert vcpu.get("rip") == NEXT_RIP


def test_an_endless_count_is_bounded(machine: Machine) -> None:
    vcpu = machine.vcpu
    machine.place(DATA, bytes(8192))
    vcpu.set("rsi", DATA)
    vcpu.set("rcx", (1 << 64) - 1)
    set_mode(machine, 64)
    exit_ = start_string(machine, 4, REP)
    assert exit_ is not None
    assert len(exit_.data) == 1024
    vcpu.complete_out()
    assert vcpu.get("rcx") == (1 << 64) - 257


@pytest.mark.parametrize(
    ("bits", "prefix", "index", "after"),
    [
        (16, b"", 0xAAAA_BBBB_CCCC_FFFF, 0xAAAA_BBBB_CCCC_0000),
        (16, ADDRESS_SIZE, 0xAAAA_BBBB_FFFF_FFFF, 0),
        (32, b"", 0xAAAA_BBBB_FFFF_FFFF, 0),
        (32, ADDRESS_SIZE, 0xAAAA_BBBB_CCCC_FFFF, 0xAAAA_BBBB_CCCC_0000),
        (64, b"", 0x0000_7FFF_FFFF_FFFF, 0x0000_8000_0000_0000),
        (64, ADDRESS_SIZE, 0xAAAA_BBBB_FFFF_FFFF, 0),
        (64, b"\x48", 0x0000_7FFF_FFFF_FFFF, 0x0000_8000_0000_0000),
        (32, b"\x66\x3e", 0xAAAA_BBBB_FFFF_FFFF, 0),
    ],
)
def test_index_registers_wrap_at_the_address_size(
    machine: Machine, bits: int, prefix: bytes, index: int, after: int
) -> None:
    vcpu = machine.vcpu
    set_mode(machine, bits)
    vcpu.translate = lambda address, **_: address & 0xFFFF  # type: ignore[method-assign]
    machine.place(0xFFFF, b"x")
    vcpu.set("rsi", index)
    exit_ = start_string(machine, 1, 0, prefix)
    assert exit_ is not None
    assert exit_.data == b"x"
    vcpu.complete_out()
    assert vcpu.get("rsi") == after


@pytest.mark.parametrize("name", PREFIXES)
def test_outs_heeds_the_segment(machine: Machine, name: str) -> None:
    vcpu = machine.vcpu
    machine.place(DATA + 0x10, b"z")
    vcpu.set("rsi", 0x10)
    if name == "cs":
        vcpu.set("rip", 0x1000 - DATA & 0xFFFF_FFFF)
    access = 0xC9B if name == "cs" else 0xC93
    vcpu.set_segment(name, b.Segment(0, DATA, 0xFFFF_FFFF, access))
    exit_ = start_string(machine, 1, 0, PREFIXES[name])
    assert exit_ is not None
    assert exit_.data == b"z"


@pytest.mark.parametrize("name", PREFIXES)
@pytest.mark.parametrize("size_prefix", [b"", ADDRESS_SIZE])
def test_in_64_bit_mode_only_fs_and_gs_have_a_base(
    machine: Machine, name: str, size_prefix: bytes
) -> None:
    vcpu = machine.vcpu
    set_mode(machine, 64)
    for each in ("ds", "es", "ss", "fs", "gs"):
        vcpu.set_segment(each, b.Segment(0, 0x1000, 0xFFFF_FFFF, 0xC93))
    machine.place(DATA, b"0")
    machine.place(DATA + 0x1000, b"B")
    vcpu.set("rsi", DATA)
    exit_ = start_string(machine, 1, 0, size_prefix + PREFIXES[name])
    assert exit_ is not None
    assert exit_.data == (b"B" if name in ("fs", "gs") else b"0")


def test_backwards_goes_item_by_item(machine: Machine) -> None:
    vcpu = machine.vcpu
    machine.place(DATA, b"abcd")
    vcpu.set("rflags", DF)
    vcpu.set("rsi", DATA + 2)
    vcpu.set("rcx", 2)
    seen = b""
    for _ in range(2):
        exit_ = start_string(machine, 2, REP)
        assert exit_ is not None
        seen += exit_.data
        vcpu.complete_out()
    assert seen == b"cdab"
    assert (vcpu.get("rsi"), vcpu.get("rcx"), vcpu.get("rip")) == (DATA - 2, 0, NEXT_RIP)


# --- INS -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 4])
def test_rep_ins_stores_every_item(machine: Machine, size: int) -> None:
    vcpu = machine.vcpu
    machine.place(DATA, b"........" * 4)
    vcpu.set("rdi", DATA + 1)
    vcpu.set("rcx", 3)
    exit_ = start_string(machine, size, IN | REP)
    assert exit_ is not None
    assert (exit_.write, exit_.data) == (False, b"")
    vcpu.complete_in(0xFFFF_FFFF)
    assert machine.peek(DATA, 16) == (b"." + b"\xff" * 3 * size).ljust(16, b".")
    assert (vcpu.get("rdi"), vcpu.get("rcx")) == (DATA + 1 + 3 * size, 0)
    assert vcpu.get("rip") == NEXT_RIP


def test_ins_goes_through_es(machine: Machine) -> None:
    vcpu = machine.vcpu
    vcpu.set_segment("es", b.Segment(0, DATA, 0xFFFF_FFFF, 0xC93))
    machine.place(DATA, b"....")
    vcpu.set("rdi", 1)
    start_string(machine, 1, IN, PREFIXES["fs"])
    vcpu.complete_in(0x41)
    assert machine.peek(DATA, 4) == b".A.."


def test_ins_into_code_goes_the_way_that_qemu_notices(machine: Machine) -> None:
    frame = machine.place(DATA, b"....")
    machine.partition.nested.executed[frame] = 1
    machine.vcpu.set("rdi", DATA)
    start_string(machine, 1, IN)
    machine.vcpu.complete_in(0x41)
    assert machine.dma.writes == [(frame << 12, b"A")]


def scattered(machine: Machine, data: bytes) -> tuple[int, int]:
    """Three pages at DATA, the middle one on a frame far from the others."""
    outer = machine.place(DATA, data)
    inner = machine.place(0x80_0000, data[4096:8192])
    machine.partition.map((DATA >> 12) + 1, inner, 1, b.Access.RWX)
    return outer, inner


def test_items_across_pages(machine: Machine) -> None:
    vcpu = machine.vcpu
    data = bytes(i * 7 + (i >> 8) & 0xFF for i in range(3 * 4096))
    scattered(machine, data)
    for start in (4095, 4094, 4093, 8191, 4096 - 512):
        vcpu.set("rsi", DATA + start)
        vcpu.set("rcx", 200)
        vcpu.set("rip", 0x1000)
        exit_ = start_string(machine, 4, REP)
        assert exit_ is not None
        assert exit_.data == data[start : start + 800]
        vcpu.complete_out()
    vcpu.set("rdi", DATA + 4093)
    vcpu.set("rcx", 250)
    vcpu.set("rip", 0x1000)
    start_string(machine, 4, IN | REP)
    vcpu.complete_in(0x1122_3344)
    assert machine.peek(DATA + 4092, 1002) == (
        data[4092:4093] + b"\x44\x33\x22\x11" * 250 + data[5093:5094]
    )


@given(st.data())
@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_against_items_one_by_one(machine: Machine, data: st.DataObject) -> None:
    vcpu = machine.vcpu
    if machine.partition.frame_at(DATA) < 0:
        machine.place(DATA, bytes(3 * 4096))
    start = machine.partition.frame_at(DATA) << 12
    memory = machine.partition.memory.u8[start : start + 3 * 4096]
    memory[:] = bytes(i * 7 & 0xFF for i in range(3 * 4096))
    model = bytearray(memory)
    size = data.draw(st.sampled_from((1, 2, 4)))
    write = data.draw(st.booleans())
    down = data.draw(st.booleans())
    count = data.draw(st.integers(1, 700))
    at = data.draw(st.integers(4096, 8192))
    index = "rsi" if write else "rdi"
    vcpu.set("rflags", DF if down else 0)
    vcpu.set(index, DATA + at)
    vcpu.set("rcx", count)
    vcpu.set("rip", 0x1000)
    value = data.draw(st.integers(0, 0xFFFF_FFFF))
    step = -size if down else size
    if write or down:
        count = min(count, 300)
        vcpu.set("rcx", count)
    expected = [bytes(model[at + i * step : at + i * step + size]) for i in range(count)]
    seen: list[bytes] = []
    while vcpu.get("rip") == 0x1000:
        exit_ = start_string(machine, size, (0 if write else IN) | REP)
        assert exit_ is not None
        if write:
            seen += [exit_.data[i : i + size] for i in range(0, len(exit_.data), size)]
            vcpu.complete_out()
        else:
            vcpu.complete_in(value)
    if write:
        assert seen == expected
    else:
        for i in range(count):
            item = value.to_bytes(4, "little")[:size]
            model[at + i * step : at + i * step + size] = item
    assert memory == model
    memory.release()
    assert vcpu.get("rcx") == 0
    assert vcpu.get(index) == DATA + at + count * step


# --- faults and devices on the way -----------------------------------------------------------


def paged(machine: Machine) -> None:
    """32-bit paging with one table that maps DATA read-only at 4 MiB and nothing behind it."""
    machine.place(0x2000, struct.pack("<2I", 0x3000 | 7, 0x3000 | 7))
    machine.place(0x3000, struct.pack("<2I", DATA | 1, 0x1000 | 1))
    machine.place(DATA, b"0123456789abcdef" * 256)
    machine.vcpu.set_raw("cr3", 0x2000)
    machine.vcpu.set_raw("cr0", 0x8001_0001)


def test_a_page_fault_of_outs_is_the_guests(machine: Machine) -> None:
    paged(machine)
    vcpu = machine.vcpu
    vcpu.set("rsi", 0x40_2000)
    vcpu.set("rcx", 2)
    assert start_string(machine, 1, REP) is None
    assert vcpu.get("cr2") == 0x40_2000
    assert machine.vmcb(vcpu, L.EVENT_INJECT, 8) == PF_EVENT
    assert (vcpu.get("rip"), vcpu.get("rcx"), vcpu.get("rsi")) == (0x1000, 2, 0x40_2000)


def test_a_page_fault_of_ins_is_the_guests(machine: Machine) -> None:
    paged(machine)
    vcpu = machine.vcpu
    vcpu.set("rdi", 0x40_0010)
    vcpu.set("rcx", 4)
    assert start_string(machine, 1, IN | REP) is not None
    vcpu.complete_in(0xFF)
    assert vcpu.get("cr2") == 0x40_0010
    assert machine.vmcb(vcpu, L.EVENT_INJECT, 8) == PF_EVENT | 3 << 32
    assert (vcpu.get("rip"), vcpu.get("rcx"), vcpu.get("rdi")) == (0x1000, 4, 0x40_0010)


def test_string_io_on_a_hole(machine: Machine) -> None:
    """No memory there: reads as zeros, and writes vanish."""
    vcpu = machine.vcpu
    vcpu.set("rsi", 0xD000_0000)
    vcpu.set("rdi", 0xD000_0000)
    vcpu.set("rcx", 3)
    exit_ = start_string(machine, 2, REP)
    assert exit_ is not None
    assert exit_.data == bytes(6)
    vcpu.complete_out()
    vcpu.set("rcx", 3)
    start_string(machine, 2, IN | REP)
    vcpu.complete_in(0xFFFF)
    assert vcpu.get("rcx") == 0


class Device:
    """A device that counts what is done to it."""

    def __init__(self) -> None:
        self.reads: list[tuple[int, int]] = []
        self.writes: list[tuple[int, int, int]] = []

    def read(self, gpa: int, size: int) -> int:
        self.reads.append((gpa, size))
        return 0x8877_6655_4433_2211 & (1 << 8 * size) - 1

    def write(self, gpa: int, size: int, value: int) -> None:
        self.writes.append((gpa, size, value))


MMIO = 0xFEE0_0020


def access(machine: Machine, code: bytes, write: bool) -> Device:
    """Carries out an instruction at 0x1000 that touches MMIO."""
    machine.place(0x1000, code)
    exit_ = machine.run(L.EXIT_NPF, 1 << 32 | (6 if write else 4), MMIO)
    assert isinstance(exit_, b.Mmio)
    device = Device()
    machine.vcpu.emulate_mmio(device.read, device.write)
    return device


def test_a_device_is_read(machine: Machine) -> None:
    machine.vcpu.set("rdx", 0xFFFF_FFFF_FFFF_FFFF)
    machine.vmcb(machine.vcpu, L.INT_STATE, 8, 1)
    device = access(machine, b"\x8b\x15" + struct.pack("<I", MMIO), write=False)  # mov mem,%edx
    assert device.reads == [(MMIO, 4)]
    assert machine.vcpu.get("rdx") == 0x4433_2211
    assert machine.vcpu.get("rip") == 0x1006
    assert machine.vmcb(machine.vcpu, L.INT_STATE, 4) == 0


def test_a_device_is_written(machine: Machine) -> None:
    machine.vcpu.set("rax", 0x1234_5678)
    device = access(machine, b"\xa3" + struct.pack("<I", MMIO), write=True)  # mov %eax,mem
    assert device.writes == [(MMIO, 4, 0x1234_5678)]
    assert machine.vcpu.get("rip") == 0x1005


def test_a_string_goes_from_memory_to_a_device(machine: Machine) -> None:
    machine.place(DATA, b"\x11\x22\x33\x44")
    machine.vcpu.set("rsi", DATA)
    machine.vcpu.set("rdi", MMIO)
    device = access(machine, b"\xa5", write=True)  # movsl
    assert device.writes == [(MMIO, 4, 0x4433_2211)]
    assert machine.vcpu.get("rsi") == DATA + 4


def test_a_fault_on_the_other_operand_is_the_guests(machine: Machine) -> None:
    paged(machine)
    vcpu = machine.vcpu
    vcpu.set("rsi", 0x40_2004)
    vcpu.set("rdi", 0x40_3000)
    vcpu.set("rip", 0x40_1000)
    machine.place(0x1000, b"\xa5")
    machine.run(L.EXIT_NPF, 1 << 32 | 6, MMIO)
    device = Device()
    vcpu.emulate_mmio(device.read, device.write)
    assert device.writes == []
    assert vcpu.get("cr2") == 0x40_2004
    assert machine.vmcb(vcpu, L.EVENT_INJECT, 8) == PF_EVENT
    assert vcpu.get("rip") == 0x40_1000


@pytest.mark.parametrize("code", [b"\x0f\x0b", b"\x90", b"\xd9\x05\x20\x00\xe0\xfe"])
def test_what_cannot_be_carried_out_names_the_instruction(machine: Machine, code: bytes) -> None:
    with pytest.raises(EngineError, match="instruction at 0x1000 cannot access a device: "):
        access(machine, code, write=False)


def test_code_that_cannot_be_fetched_is_an_engine_error(machine: Machine) -> None:
    exit_ = machine.run(L.EXIT_NPF, 1 << 32 | 4, MMIO)
    assert isinstance(exit_, b.Mmio)
    with pytest.raises(EngineError):
        machine.vcpu.emulate_mmio(Device().read, Device().write)


@given(st.binary(max_size=15), st.booleans(), st.integers(0, 2))
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_code_is_carried_out_or_named(
    machine: Machine, code: bytes, write: bool, width: int
) -> None:
    vcpu = machine.vcpu
    if machine.partition.frame_at(0x1000) < 0:
        machine.place(0x1000, bytes(16))
    start = machine.partition.frame_at(0x1000) << 12
    machine.partition.memory.u8[start : start + 16] = code.ljust(16, b"\xcc")
    vcpu.set_segment("cs", b.Segment(0, 0, 0xFFFF_FFFF, (0x09B, 0xC9B, 0xA9B)[width]))
    vcpu.set_raw("efer", 1 << 10)
    vcpu.set("rip", 0x1000)
    for name in ("rsi", "rdi"):
        vcpu.set(name, MMIO)
    vcpu.set("rcx", 5)
    vcpu.translate = lambda address, **_: address & 0xFFFF_FFFF  # type: ignore[method-assign]
    machine.run(L.EXIT_NPF, 1 << 32 | (6 if write else 4), MMIO)
    device = Device()
    try:
        vcpu.emulate_mmio(device.read, device.write)
    except EngineError as error:
        assert "\n" not in str(error)
        return
    assert len(device.reads) + len(device.writes) <= 2 * 4096
    assert 0x1000 <= vcpu.get("rip") <= 0x100F
