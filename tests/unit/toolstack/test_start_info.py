"""Proves the hvm_start_info block by reading it back as a guest does, by offsets of the header.

Cannot see whether it is loaded where it was built for.
"""

import struct
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvmlite.toolstack import layout
from hvmlite.toolstack.layout import E820Entry
from hvmlite.toolstack.start_info import (
    LINUX_MAX_CMDLINE,
    MAX_CMDLINE,
    CommandLineError,
    Module,
    build_start_info,
    start_info_size,
)

PADDR = 0x4A0_0000


@dataclass
class Parsed:
    """What a kernel reads, with every pointer followed within the block."""

    magic: int
    version: int
    flags: int
    modules: list[tuple[int, int, bytes | None]]
    cmdline: bytes | None
    rsdp: int
    memmap: list[tuple[int, int, int, int]]


def parse(block: bytes, paddr: int) -> Parsed:
    def at(address: int) -> int:
        assert paddr <= address < paddr + len(block)
        return address - paddr

    def text(address: int) -> bytes | None:
        return block[at(address) :].split(b"\0", 1)[0] if address else None

    (magic, version, flags, nr_modules, modlist, cmdline, rsdp, memmap, entries, reserved) = (
        struct.unpack_from("<4I4Q2I", block)
    )
    assert reserved == 0
    modules = []
    for i in range(nr_modules):
        module, size, module_cmdline, zero = struct.unpack_from("<4Q", block, at(modlist) + 32 * i)
        assert zero == 0
        modules.append((module, size, text(module_cmdline)))
    return Parsed(
        magic,
        version,
        flags,
        modules,
        text(cmdline),
        rsdp,
        [struct.unpack_from("<2Q2I", block, at(memmap) + 24 * i) for i in range(entries)],
    )


def test_block_of_the_recorded_domain() -> None:
    memmap = layout.e820(128 << 20)
    block = build_start_info(PADDR, "hello world", [], memmap, rsdp_paddr=layout.ACPI_RSDP)
    assert struct.unpack_from("<Q", block, 16) == (0,)  # modlist_paddr
    parsed = parse(block, PADDR)
    assert parsed.magic == 0x336EC578
    assert parsed.version == 1
    assert parsed.flags == 0
    assert parsed.modules == []
    assert parsed.cmdline == b"hello world"
    assert parsed.rsdp == 0xFC00_8000
    assert parsed.memmap == [
        (0x0, 0x800_0000, 1, 0),
        (0xFEFF_8000, 0x8000, 2, 0),
        (0xFC00_8000, 0x40, 3, 0),
        (0xFC00_0000, 0x1000, 3, 0),
        (0xFC00_1000, 0x7000, 3, 0),
    ]


def test_parts_lie_in_xens_order() -> None:
    block = build_start_info(
        PADDR, "a", [Module(0x500_0000, 10, "b")], [E820Entry(0, 4096, 1)], rsdp_paddr=1
    )
    modlist, cmdline, _rsdp, memmap = struct.unpack_from("<4Q", block, 16)
    assert cmdline == PADDR + 56
    assert modlist == cmdline + 8
    assert memmap == modlist + 32 + 8
    assert len(block) == memmap - PADDR + 24


def test_modules_have_their_own_command_lines() -> None:
    modules = [Module(0x500_0000, 4097, "root=/dev/ram0"), Module(0x600_0000, 1), Module(1, 2, "")]
    parsed = parse(build_start_info(PADDR, None, modules, []), PADDR)
    assert parsed.modules == [
        (0x500_0000, 4097, b"root=/dev/ram0"),
        (0x600_0000, 1, None),
        (1, 2, b""),
    ]


def test_what_is_absent_is_a_null_pointer() -> None:
    block = build_start_info(0, None, [], [])
    assert block == struct.pack("<2I", 0x336EC578, 1) + bytes(48)


def test_an_empty_command_line_is_an_empty_string() -> None:
    assert parse(build_start_info(PADDR, "", [], []), PADDR).cmdline == b""


def test_bytes_that_are_no_utf8_pass_through() -> None:
    name = b"init=/\xff\xc3\xa9".decode("utf-8", "surrogateescape")
    assert parse(build_start_info(PADDR, name, [], []), PADDR).cmdline == b"init=/\xff\xc3\xa9"


@pytest.mark.parametrize("limit", [LINUX_MAX_CMDLINE, MAX_CMDLINE])
def test_command_line_limit(limit: int) -> None:
    longest = "x" * limit
    assert parse(build_start_info(PADDR, longest, [], [], limit=limit), PADDR).cmdline == (
        longest.encode()
    )
    with pytest.raises(
        CommandLineError, match=f"^command line has {limit + 1} bytes, the limit is {limit}$"
    ):
        build_start_info(PADDR, longest + "x", [], [], limit=limit)


def test_limit_counts_bytes_not_characters() -> None:
    with pytest.raises(CommandLineError, match="command line has 6 bytes, the limit is 5"):
        build_start_info(PADDR, "\u00e9" * 3, [], [], limit=5)


def test_module_command_line_limit() -> None:
    modules = [Module(1, 1), Module(1, 1, "x" * 1024)]
    with pytest.raises(
        CommandLineError, match=r"^command line of module 1 has 1024 bytes, the limit is 1023"
    ):
        build_start_info(PADDR, None, modules, [])


def test_nul_is_refused() -> None:
    with pytest.raises(CommandLineError, match=r"^command line contains a NUL byte"):
        build_start_info(PADDR, "a\0b", [], [])
    with pytest.raises(CommandLineError, match=r"^command line of module 0 contains a NUL byte"):
        build_start_info(PADDR, None, [Module(1, 1, "\0")], [])


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(CommandLineError, match=r"^command line is not text: surrogates"):
        build_start_info(PADDR, "\ud800", [], [])


@pytest.mark.parametrize("paddr", [4, (1 << 32) - 8])
def test_a_place_that_cannot_be(paddr: int) -> None:
    with pytest.raises(ValueError, match="no start info of 56 bytes at"):
        build_start_info(paddr, None, [], [])


u64s = st.integers(0, (1 << 64) - 1)
texts = st.none() | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=200)


@given(
    cmdline=texts,
    modules=st.lists(st.builds(Module, u64s, u64s, texts), max_size=4),
    memmap=st.lists(st.builds(E820Entry, u64s, u64s, st.integers(1, 7)), max_size=8),
    rsdp=u64s,
)
@settings(max_examples=100)
def test_any_block_reads_back(
    cmdline: str | None, modules: list[Module], memmap: list[E820Entry], rsdp: int
) -> None:
    block = build_start_info(PADDR, cmdline, modules, memmap, rsdp_paddr=rsdp)
    parsed = parse(block, PADDR)
    assert parsed.cmdline == (None if cmdline is None else cmdline.encode())
    assert parsed.modules == [
        (module.paddr, module.size, None if module.cmdline is None else module.cmdline.encode())
        for module in modules
    ]
    assert parsed.memmap == [(*entry, 0) for entry in memmap]
    assert parsed.rsdp == rsdp
    size = start_info_size(cmdline, [module.cmdline for module in modules], len(memmap))
    assert size == len(block)
