"""Decoding of the instructions that reach devices.

Proves operands, sizes, directions and refusals against the opcode maps of the Intel SDM, volume 2,
and that no bytes raise anything but DecodeError. What is then done: test_mmio_operation.py.
"""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvmlite.engine.mmio_decode import (
    STRING_KINDS,
    DecodeError,
    Kind,
    MmioAccess,
    Repeat,
    Segment,
    decode,
)
from hvmlite.errors import EngineError


def dec(code: str, bitness: int = 64) -> MmioAccess:
    return decode(bytes.fromhex(code), bitness, 0x1000)


# code, bitness, kind, size, read and write, register (number, size, high byte) or constant
REGISTER_FORMS = [
    ("8b07", 64, Kind.MOV, 4, "r", (0, 4, False)),
    ("488b07", 64, Kind.MOV, 8, "r", (0, 8, False)),
    ("668b07", 64, Kind.MOV, 2, "r", (0, 2, False)),
    ("8b07", 16, Kind.MOV, 2, "r", (0, 2, False)),
    ("668b07", 16, Kind.MOV, 4, "r", (0, 4, False)),
    ("8a27", 64, Kind.MOV, 1, "r", (0, 1, True)),
    ("408a27", 64, Kind.MOV, 1, "r", (4, 1, False)),
    ("8a3f", 32, Kind.MOV, 1, "r", (3, 1, True)),
    ("448b3f", 64, Kind.MOV, 4, "r", (15, 4, False)),
    ("890425b000e0fe", 64, Kind.MOV, 4, "w", (0, 4, False)),
    ("a3b000e0fe", 32, Kind.MOV, 4, "w", (0, 4, False)),
    ("a1b000e0fe", 32, Kind.MOV, 4, "r", (0, 4, False)),
    ("48a10011223344556677", 64, Kind.MOV, 8, "r", (0, 8, False)),
    ("c70701000000", 64, Kind.MOV, 4, "w", 1),
    ("48c707000000ff", 64, Kind.MOV, 8, "w", 0xFFFFFFFFFF000000),
    ("c607ff", 64, Kind.MOV, 1, "w", 0xFF),
    ("480fc307", 64, Kind.MOV, 8, "w", (0, 8, False)),
    ("0fb60f", 64, Kind.MOVZX, 1, "r", (1, 4, False)),
    ("0fb70f", 64, Kind.MOVZX, 2, "r", (1, 4, False)),
    ("66410fb607", 64, Kind.MOVZX, 1, "r", (0, 2, False)),
    ("480fbe0f", 64, Kind.MOVSX, 1, "r", (1, 8, False)),
    ("0fbf0f", 32, Kind.MOVSX, 2, "r", (1, 4, False)),
    ("48630f", 64, Kind.MOVSX, 4, "r", (1, 8, False)),
    ("8707", 64, Kind.XCHG, 4, "rw", (0, 4, False)),
    ("f00fc10f", 64, Kind.XADD, 4, "rw", (1, 4, False)),
    ("f0480fb10f", 64, Kind.CMPXCHG, 8, "rw", (1, 8, False)),
    ("090f", 64, Kind.OR, 4, "rw", (1, 4, False)),
    ("0b0f", 64, Kind.OR, 4, "r", (1, 4, False)),
    ("8327f0", 64, Kind.AND, 4, "rw", 0xFFFFFFF0),
    ("80 27 f0", 64, Kind.AND, 1, "rw", 0xF0),
    ("66832ff0", 64, Kind.SUB, 2, "rw", 0xFFF0),
    ("4881 0780000000", 64, Kind.ADD, 8, "rw", 0x80),
    ("393f", 64, Kind.CMP, 4, "r", (7, 4, False)),
    ("833f00", 64, Kind.CMP, 4, "r", 0),
    ("3b3f", 64, Kind.CMP, 4, "r", (7, 4, False)),
    ("8507", 64, Kind.TEST, 4, "r", (0, 4, False)),
    ("f70700100000", 64, Kind.TEST, 4, "r", 0x1000),
    ("f717", 64, Kind.NOT, 4, "rw", None),
    ("f71f", 64, Kind.NEG, 4, "rw", None),
    ("ff07", 64, Kind.INC, 4, "rw", None),
    ("48ff0f", 64, Kind.DEC, 8, "rw", None),
    ("0fa30f", 64, Kind.BT, 4, "r", (1, 4, False)),
    ("0fba2703", 64, Kind.BT, 4, "r", 3),
    ("f00fba2f1f", 64, Kind.BTS, 4, "rw", 31),
    ("0fb30f", 64, Kind.BTR, 4, "rw", (1, 4, False)),
    ("480fba3f05", 64, Kind.BTC, 8, "rw", 5),
]


@pytest.mark.parametrize(
    ("code", "bitness", "kind", "size", "access", "operand"),
    REGISTER_FORMS,
    ids=[f"{form[0]}-{form[1]}" for form in REGISTER_FORMS],
)
def test_register_and_constant_forms(
    code: str,
    bitness: int,
    kind: Kind,
    size: int,
    access: str,
    operand: tuple[int, int, bool] | int | None,
) -> None:
    found = dec(code + "90" * 4, bitness)
    assert (found.kind, found.size, found.bitness) == (kind, size, bitness)
    assert (found.read, found.write) == ("r" in access, "w" in access)
    assert found.length == len(bytes.fromhex(code))
    if isinstance(operand, tuple):
        assert (found.register, found.register_size, found.high_byte) == operand
        assert found.immediate is None
    else:
        assert (found.register, found.immediate) == (-1, operand)


@pytest.mark.parametrize(
    ("code", "bitness", "kind", "size", "repeat", "address_size", "segment"),
    [
        ("f3a4", 64, Kind.MOVS, 1, Repeat.REP, 8, None),
        ("f2a4", 64, Kind.MOVS, 1, Repeat.REP, 8, None),
        ("f348a5", 64, Kind.MOVS, 8, Repeat.REP, 8, None),
        ("67f3a5", 64, Kind.MOVS, 4, Repeat.REP, 4, None),
        ("64a4", 64, Kind.MOVS, 1, Repeat.NONE, 8, Segment.FS),
        ("2ea4", 64, Kind.MOVS, 1, Repeat.NONE, 8, None),
        ("f3a5", 32, Kind.MOVS, 4, Repeat.REP, 4, Segment.DS),
        ("f3a5", 16, Kind.MOVS, 2, Repeat.REP, 2, Segment.DS),
        ("2667a5", 16, Kind.MOVS, 2, Repeat.NONE, 4, Segment.ES),
        ("f3ab", 64, Kind.STOS, 4, Repeat.REP, 8, None),
        ("ad", 64, Kind.LODS, 4, Repeat.NONE, 8, None),
        ("f3ae", 64, Kind.SCAS, 1, Repeat.REPE, 8, None),
        ("f2af", 64, Kind.SCAS, 4, Repeat.REPNE, 8, None),
        ("f3a6", 64, Kind.CMPS, 1, Repeat.REPE, 8, None),
        ("f2a7", 32, Kind.CMPS, 4, Repeat.REPNE, 4, Segment.DS),
    ],
)
def test_string_forms(
    code: str,
    bitness: int,
    kind: Kind,
    size: int,
    repeat: Repeat,
    address_size: int,
    segment: Segment | None,
) -> None:
    found = dec(code, bitness)
    assert (found.kind, found.size, found.repeat) == (kind, size, repeat)
    assert (found.address_size, found.segment) == (address_size, segment)
    assert found.kind in STRING_KINDS
    assert found.length == len(code) // 2
    assert found.read is (kind is not Kind.STOS)
    assert found.write is (kind in (Kind.MOVS, Kind.STOS))


@pytest.mark.parametrize(
    ("code", "bitness", "text"),
    [
        ("0f1007", 64, "movups (%rdi),%xmm0 [0f 10 07]"),
        ("f20f1007", 64, "movsd (%rdi),%xmm0 [f2 0f 10 07]"),
        ("c5fe6f07", 64, "vmovdqu (%rdi),%ymm0 [c5 fe 6f 07]"),
        ("ff37", 64, "pushq (%rdi) [ff 37]"),
        ("8c1f", 64, "mov %ds,(%rdi) [8c 1f]"),
        ("0f20c0", 64, "mov %cr0,%rax [0f 20 c0]"),
        ("89c8", 64, "mov %ecx,%eax [89 c8]"),
        ("ff17", 64, "callq *(%rdi) [ff 17]"),
        ("c107 03", 64, "roll $3,(%rdi) [c1 07 03]"),
        ("6bc703", 64, "imul $3,%edi,%eax [6b c7 03]"),
        ("0fc70f", 64, "cmpxchg8b (%rdi) [0f c7 0f]"),
        ("6c", 64, "insb %dx,(%rdi) [6c]"),
        ("8d07", 64, "lea (%rdi),%eax [8d 07]"),
        ("0f", 64, "(bad) [0f]"),
        ("f08b07", 64, "(bad) [f0 8b 07]"),
        ("", 64, "(no bytes)"),
        ("48c7", 64, "(bad) [48 c7]"),
    ],
)
def test_refusals_name_the_instruction(code: str, bitness: int, text: str) -> None:
    message = f"instruction at 0x1000 cannot access a device: {text}"
    with pytest.raises(DecodeError, match="^" + re.escape(message) + "$"):
        dec(code, bitness)
    assert issubclass(DecodeError, EngineError)


def test_bytes_behind_the_longest_instruction_do_not_matter() -> None:
    code = b"\x66" * 13 + b"\x8b\x07"
    assert decode(code + b"\xff" * 10, 64).length == 15
    with pytest.raises(DecodeError):
        decode(b"\x66" + code, 64)
    assert decode(code + b"\xff", 64) is decode(code + b"\x00", 64)


@given(
    st.one_of(
        st.binary(max_size=20),
        st.tuples(
            st.sampled_from(["", "66", "67", "f3", "f2", "f0", "48", "4c", "64", "6648"]),
            st.binary(max_size=15),
        ).map(lambda parts: bytes.fromhex(parts[0]) + parts[1]),
    ),
    st.sampled_from([16, 32, 64]),
)
@settings(max_examples=600, deadline=None)
def test_any_bytes_decode_or_are_refused(code: bytes, bitness: int) -> None:
    try:
        access = decode(code, bitness)
    except DecodeError as error:
        assert "\n" not in str(error)
        return
    assert access.size in (1, 2, 4, 8)
    assert 1 <= access.length <= min(len(code), 15)
    assert access.read or access.write
    if access.kind in STRING_KINDS:
        assert access.address_size in (2, 4, 8)
    if access.register >= 0:
        assert access.register < 16
        assert access.register_size in (1, 2, 4, 8)
        assert access.register < 4 or not access.high_byte
    if access.immediate is not None:
        assert 0 <= access.immediate < 1 << 8 * access.size
