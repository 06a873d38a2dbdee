"""Proves that the committed stub and ROM are what their sources assemble to, and that the numbers
in those sources are the ones of layout.py.

Each check is also shown a changed source, which it must notice. Needs gcc, ld and objcopy; cannot
see whether the code is right, only that it is the code one reads.
"""

from __future__ import annotations

import re
import shutil
import struct
from pathlib import Path

import pytest

from hvmlite.engine.tcg import layout as L
from hvmlite.engine.tcg.stub import build, symbols

TOOLS = ("gcc", "ld", "objcopy", "nm")
NAMES = tuple(build.SOURCES)
needs_tools = pytest.mark.skipif(
    not all(map(shutil.which, TOOLS)), reason=f"needs {', '.join(TOOLS)}"
)


def committed(name: str) -> bytes:
    return (build.HERE / f"{name}.bin").read_bytes()


def committed_symbols(name: str) -> dict[str, int]:
    return {
        symbol: getattr(symbols, f"{name.upper()}_{symbol.upper()}")
        for symbol in build.WANTED[name]
    }


def changed(name: str, tmp_path: Path, old: str, new: str) -> tuple[bytes, dict[str, int]]:
    """Assembles a source in which `old` became `new`."""
    text = build.SOURCES[name].read_text()
    assert text.count(old) >= 1
    copy = tmp_path / f"{name}.S"
    copy.write_text(text.replace(old, new))
    return build.assemble(copy)


@needs_tools
@pytest.mark.parametrize("name", NAMES)
def test_binary_is_what_its_source_assembles_to(name: str) -> None:
    code, found = build.assemble(build.SOURCES[name])
    assert code == committed(name), "run engine/tcg/stub/build.py and commit what it writes"
    assert {symbol: found[symbol] for symbol in build.WANTED[name]} == committed_symbols(name)


@needs_tools
def test_symbol_module_is_what_the_build_writes() -> None:
    table = {name: build.assemble(source)[1] for name, source in build.SOURCES.items()}
    assert build.symbol_module(table) == (build.HERE / "symbols.py").read_text()


@needs_tools
@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("stub", "#define MB_STATE        0x00", "#define MB_STATE        0x10"),
        ("stub", "        clgi\n", "        clgi\n        nop\n"),
        ("rom", "$0x1900,%eax", "$0x0900,%eax"),
    ],
)
def test_a_changed_source_is_noticed(name: str, old: str, new: str, tmp_path: Path) -> None:
    assert changed(name, tmp_path, old, new)[0] != committed(name)


@needs_tools
def test_a_moved_symbol_is_noticed(tmp_path: Path) -> None:
    _, found = changed("stub", tmp_path, "\n_start:", "\n        .fill 16, 1, 0x90\n_start:")
    assert found["kick"] == symbols.STUB_KICK + 16
    _, found = changed("rom", tmp_path, "\ngdtptr:", "\n        .quad 0, 0\ngdtptr:")
    assert found["trampoline"] != symbols.ROM_TRAMPOLINE


@needs_tools
def test_writing_everything_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "HERE", tmp_path)
    build.main()
    for name in NAMES:
        assert (tmp_path / f"{name}.bin").read_bytes() == committed(name)
    assert (tmp_path / "symbols.py").read_text() == (
        build.SOURCES["stub"].parent / "symbols.py"
    ).read_text()


# --- numbers that are written down on both sides ---------------------------------------------


def defines(source: str) -> dict[str, int]:
    """The plain numbers that a source #defines."""
    found = re.findall(r"^#define\s+(\w+)\s+(0x[0-9a-fA-F]+|\d+)\b", source, re.MULTILINE)
    return {name: int(value, 0) for name, value in found}


# Names of stub.S and what they are in layout.py.
STUB_NAMES = {
    "MB_STATE": L.STATE,
    "MB_BELL": L.BELL,
    "MB_ASLEEP": L.ASLEEP,
    "MB_KICKED": L.KICKED,
    "MB_READY": L.READY,
    "MB_FLAGS": L.FLAGS,
    "MB_INDEX": L.INDEX,
    "MB_SPIN": L.SPIN,
    "MB_A0": L.ARGUMENTS,
    "MB_A1": L.ARGUMENTS + 8,
    "MB_A2": L.ARGUMENTS + 16,
    "MB_A3": L.ARGUMENTS + 24,
    "MB_VMCB": L.VMCB_ADDRESS,
    "MB_HSAVE": L.HSAVE_ADDRESS,
    "MB_CPUID": L.CPUID_ADDRESS,
    "MB_CPUIDS": L.CPUID_COUNT,
    "MB_STOP": L.STOP,
    "MB_CR4": L.STUB_CR4,
    "VMCB_EXITCODE": L.EXIT_CODE,
    "VMCB_EXITINTINFO": L.EXIT_INT_INFO,
    "VMCB_CR4": L.CONTROL["cr4"],
    "VMCB_RIP": L.CONTROL["rip"],
    "VMCB_RAX": L.CONTROL["rax"],
    "ENTRY_SUBLEAVES": L.CPUID_SUBLEAVES,
    "ENTRY_OSXSAVE": L.CPUID_OSXSAVE,
    "LAPIC": L.MSI_BASE,
    **{f"MB_{name.upper()}": offset for name, offset in L.GENERAL.items()},
    **{
        name: value
        for name, value in vars(L).items()
        if name.startswith(("CMD_", "FLAG_")) or name in {"EXIT_INTR", "EXIT_CPUID", "CPUID_LEAVES"}
    },
}
# What the CPU defines, not we.
ARCHITECTURE = {
    "CR4_PAE": 1 << 5,
    "CR4_FLUSHING": 1 << 4 | 1 << 7 | 1 << 20 | 1 << 21,
    "CR4_OSXSAVE_BIT": 18,
    "CPUID_OSXSAVE_BIT": 27,
    "MSR_VM_HSAVE_PA": 0xC0010117,
}


def differences(source: str) -> dict[str, tuple[int | None, int | None]]:
    """Names that the source and layout.py do not agree on."""
    found, wanted = defines(source), STUB_NAMES | ARCHITECTURE
    return {
        name: (found.get(name), wanted.get(name))
        for name in found.keys() | wanted.keys()
        if found.get(name) != wanted.get(name)
    }


def test_offsets_of_the_stub_are_those_of_the_layout() -> None:
    assert differences(build.SOURCES["stub"].read_text()) == {}


@pytest.mark.parametrize("name", [*STUB_NAMES, *ARCHITECTURE])
def test_a_changed_offset_is_noticed(name: str) -> None:
    source = build.SOURCES["stub"].read_text()
    other = re.sub(rf"(?m)^(#define\s+{name})\s.*$", r"\1 0x7ff", source)
    assert set(differences(other)) == {name}
    without = re.sub(rf"(?m)^#define\s+{name}\s.*$", "", source)
    assert set(differences(without)) == {name}


def test_an_offset_that_only_the_stub_has_is_noticed() -> None:
    source = build.SOURCES["stub"].read_text()
    assert set(differences(source + "#define MB_NEW 0xd8\n")) == {"MB_NEW"}


def test_configuration_of_the_rom() -> None:
    source = build.SOURCES["rom"].read_text()
    offsets = [
        int(value, 16)
        for value in re.findall(r"^#define\s+CFG_\w+\s+ROM_BASE \+ (0x\w+)$", source, re.MULTILINE)
    ]
    assert offsets == [4 * i for i in range(5)]
    assert struct.calcsize(L.ROM_CONFIG) == 20
    assert defines(source)["ROM_BASE"] == (1 << 32) - L.ROM_SIZE
    # Room is left for it, and the fixed code starts behind.
    assert committed("rom")[:32] == bytes(32)


def test_the_start_up_message_names_the_trampoline() -> None:
    assert L.TRAMPOLINE % 0x1000 == 0
    vector = L.TRAMPOLINE >> 12
    assert f"$0xc46{vector:02x},0x300" in build.SOURCES["stub"].read_text()


def test_code_fits_into_its_place() -> None:
    assert len(committed("stub")) <= L.IO_MAP - L.STUB
    # The last 16 bytes of the ROM are the reset vector.
    assert len(committed("rom")) <= L.ROM_SIZE - 16
