"""What the instruction behind an MMIO access does to its memory operand.

The CPU has made all checks by the time the access leaves it; here the bytes are only understood,
by the library iced-x86 (loaded at first use). MmioOperation (mmio_operation.py) carries it out.
"""

import enum
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, Final

from hvmlite.engine.disasm import MAX_INSTRUCTION, instruction_text
from hvmlite.errors import EngineError
from hvmlite.records import record

if TYPE_CHECKING:
    from iced_x86 import Instruction


class DecodeError(EngineError):
    """The bytes are no instruction that can be carried out on a device; str() names it."""


class Kind(enum.Enum):
    """What is done; the mnemonic, without its size."""

    MOV = enum.auto()
    MOVZX = enum.auto()
    MOVSX = enum.auto()
    XCHG = enum.auto()
    XADD = enum.auto()
    CMPXCHG = enum.auto()
    ADD = enum.auto()
    OR = enum.auto()
    ADC = enum.auto()
    SBB = enum.auto()
    AND = enum.auto()
    SUB = enum.auto()
    XOR = enum.auto()
    CMP = enum.auto()
    TEST = enum.auto()
    NOT = enum.auto()
    NEG = enum.auto()
    INC = enum.auto()
    DEC = enum.auto()
    BT = enum.auto()
    BTS = enum.auto()
    BTR = enum.auto()
    BTC = enum.auto()
    MOVS = enum.auto()
    STOS = enum.auto()
    LODS = enum.auto()
    CMPS = enum.auto()
    SCAS = enum.auto()


STRING_KINDS: Final = frozenset((Kind.MOVS, Kind.STOS, Kind.LODS, Kind.CMPS, Kind.SCAS))
_NEVER_WRITES: Final = frozenset((Kind.CMP, Kind.TEST, Kind.BT, Kind.LODS, Kind.CMPS, Kind.SCAS))


class Repeat(enum.Enum):
    """The repeat prefix of a string instruction, by its effect."""

    NONE = enum.auto()
    REP = enum.auto()
    REPE = enum.auto()
    REPNE = enum.auto()


class Segment(enum.IntEnum):
    """Segment registers in their encoding."""

    ES = 0
    CS = 1
    SS = 2
    DS = 3
    FS = 4
    GS = 5


@record(frozen=True)
class MmioAccess:
    """One decoded instruction. Sizes and lengths are in bytes."""

    kind: Kind
    size: int
    """Of the memory operand: 1, 2, 4 or 8 (an item, for a string instruction)."""
    read: bool
    """It reads memory; of MOVS, which has two memory operands, both flags are set."""
    write: bool
    length: int
    bitness: int
    memory_first: bool = True
    """Memory is the first operand, which is the destination if there is one."""
    register: int = -1
    """The other operand: a general register by its encoding (0 is rax), or -1."""
    register_size: int = 0
    high_byte: bool = False
    """The register is AH, CH, DH or BH (and `register` is 0-3)."""
    immediate: int | None = None
    """The other operand, extended to `size`."""
    repeat: Repeat = Repeat.NONE
    address_size: int = 0
    """String instructions: bytes of rcx, rsi and rdi that count."""
    segment: Segment | None = None
    """String instructions: segment of rsi; None: one without a base (64-bit mode)."""


def decode(code: bytes, bitness: int, rip: int = 0) -> MmioAccess:
    """Decode the instruction at the start of `code`; `bitness` is 16, 32 or 64.

    `rip` only serves the message of DecodeError, which is raised for everything that is not a
    Kind with a memory operand and a general register or a constant.
    """
    access = _decode(code[:MAX_INSTRUCTION], bitness)
    if access is None:
        text = instruction_text(code[:MAX_INSTRUCTION], rip, bitness)
        raise DecodeError(f"instruction at {rip:#x} cannot access a device: {text}")
    return access


@lru_cache(maxsize=512)
def _decode(code: bytes, bitness: int) -> MmioAccess | None:
    from iced_x86 import Decoder, OpKind  # noqa: PLC0415

    instruction = Decoder(bitness, code).decode()
    if instruction.is_invalid:
        return None
    if instruction.is_string_instruction:
        return _string(instruction, bitness)
    kind = _mnemonics().get(instruction.mnemonic)
    kinds = [instruction.op_kind(n) for n in range(instruction.op_count)]
    if kind is None or len(kinds) > 2 or kinds.count(OpKind.MEMORY) != 1:
        return None
    size = _memory_size(instruction)
    if size not in (1, 2, 4, 8):
        return None
    memory_first = kinds[0] == OpKind.MEMORY
    register, register_size, high_byte = -1, 0, False
    immediate = None
    if len(kinds) == 2:
        other = 1 if memory_first else 0
        if kinds[other] == OpKind.REGISTER:
            operand = _registers().get(instruction.op_register(other))
            if operand is None:
                return None
            register, register_size, high_byte = operand
        else:
            immediate = instruction.immediate(other) & (1 << 8 * size) - 1
    return MmioAccess(
        kind=kind,
        size=size,
        read=kind is not Kind.MOV or not memory_first,
        write=memory_first and kind not in _NEVER_WRITES,
        length=instruction.len,
        bitness=bitness,
        memory_first=memory_first,
        register=register,
        register_size=register_size,
        high_byte=high_byte,
        immediate=immediate,
    )


def _string(instruction: "Instruction", bitness: int) -> MmioAccess | None:
    kind = _string_mnemonics().get(instruction.mnemonic)
    if kind is None:
        return None
    operands = [instruction.op_kind(n) for n in range(instruction.op_count)]
    segment = _segments()[instruction.memory_segment]
    prefixed = instruction.has_rep_prefix or instruction.has_repne_prefix
    if not prefixed:
        repeat = Repeat.NONE
    elif kind not in (Kind.CMPS, Kind.SCAS):
        repeat = Repeat.REP
    else:
        repeat = Repeat.REPE if instruction.has_rep_prefix else Repeat.REPNE
    return MmioAccess(
        kind=kind,
        size=_memory_size(instruction),
        read=kind is not Kind.STOS,
        write=kind not in _NEVER_WRITES,
        length=instruction.len,
        bitness=bitness,
        repeat=repeat,
        address_size=next(size for op, size in _index_sizes().items() if op in operands),
        segment=None if bitness == 64 and segment < Segment.FS else segment,
    )


def _memory_size(instruction: "Instruction") -> int:
    from iced_x86 import MemorySizeExt  # noqa: PLC0415

    return MemorySizeExt.size(instruction.memory_size)


@cache
def _mnemonics() -> dict[int, Kind]:
    from iced_x86 import Mnemonic  # noqa: PLC0415

    found: dict[int, Kind] = {
        getattr(Mnemonic, kind.name): kind for kind in Kind if kind not in STRING_KINDS
    }
    # The size of both operands tells MOVSXD from MOVSX; MOVNTI differs in caching alone.
    return found | {Mnemonic.MOVSXD: Kind.MOVSX, Mnemonic.MOVNTI: Kind.MOV}


@cache
def _string_mnemonics() -> dict[int, Kind]:
    from iced_x86 import Mnemonic  # noqa: PLC0415

    return {
        getattr(Mnemonic, kind.name + suffix): kind for kind in STRING_KINDS for suffix in "BWDQ"
    }


@cache
def _registers() -> dict[int, tuple[int, int, bool]]:
    from iced_x86 import Register, RegisterExt  # noqa: PLC0415

    # The stubs call these an enum; they are plain ints in a module.
    constants: list[Any] = [getattr(Register, name) for name in dir(Register) if name.isupper()]
    return {
        register: (
            RegisterExt.number(RegisterExt.full_register(register)),
            RegisterExt.size(register),
            register in (Register.AH, Register.CH, Register.DH, Register.BH),
        )
        for register in constants
        if RegisterExt.is_gpr(register)
    }


@cache
def _segments() -> dict[int, Segment]:
    from iced_x86 import Register  # noqa: PLC0415

    return {getattr(Register, segment.name): segment for segment in Segment}


@cache
def _index_sizes() -> dict[int, int]:
    from iced_x86 import OpKind  # noqa: PLC0415

    return {
        OpKind.MEMORY_SEG_SI: 2,
        OpKind.MEMORY_SEG_ESI: 4,
        OpKind.MEMORY_SEG_RSI: 8,
        OpKind.MEMORY_ESDI: 2,
        OpKind.MEMORY_ESEDI: 4,
        OpKind.MEMORY_ESRDI: 8,
    }
