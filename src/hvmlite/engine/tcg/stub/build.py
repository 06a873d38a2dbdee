"""Assembles the stub and the ROM: run it after a change of stub.S or rom.S, then commit the result.

Writes ``stub.bin`` and ``rom.bin`` (raw code) and ``symbols.py`` (offsets of the symbols that
Python needs) beside this file.  Needs GNU as, ld and objcopy; the engine itself needs none of them.
"""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
SOURCES = {"stub": HERE / "stub.S", "rom": HERE / "rom.S"}
WANTED = {"stub": ("kick", "fault"), "rom": ("reset", "trampoline", "trampoline_end")}


def assemble(source: Path) -> tuple[bytes, dict[str, int]]:
    """Assembles one source at address 0 and returns its code and symbols (offsets in bytes)."""
    with tempfile.TemporaryDirectory() as scratch:
        obj, elf, raw = (str(Path(scratch, name)) for name in ("o", "elf", "bin"))
        subprocess.run(["gcc", "-m64", "-c", str(source), "-o", obj], check=True)
        subprocess.run(
            ["ld", "-m", "elf_x86_64", "-Ttext=0", "-e", "0", obj, "-o", elf], check=True
        )
        subprocess.run(["objcopy", "-O", "binary", "-j", ".text", elf, raw], check=True)
        listing = subprocess.run(["nm", elf], check=True, capture_output=True, text=True).stdout
        symbols = {name: int(value, 16) for value, _, name in map(str.split, listing.splitlines())}
        return Path(raw).read_bytes(), symbols


def symbol_module(table: dict[str, dict[str, int]]) -> str:
    """The text of symbols.py."""
    lines = ['"""Offsets into stub.bin and rom.bin, in bytes; written by build.py."""', ""]
    for name, symbols in table.items():
        lines += [
            f"{name.upper()}_{symbol.upper()} = 0x{symbols[symbol]:X}" for symbol in WANTED[name]
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Writes the binaries and the symbol module."""
    table = {}
    for name, source in SOURCES.items():
        code, table[name] = assemble(source)
        (HERE / f"{name}.bin").write_bytes(code)
        print(f"{name}.bin: {len(code)} bytes")
    (HERE / "symbols.py").write_text(symbol_module(table))


if __name__ == "__main__":
    main()
