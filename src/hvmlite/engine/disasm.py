"""Guest instructions as text, in the AT&T syntax that kernel people read in an oops.

For crash reports and error messages only. The decoder (iced-x86) is loaded at first use, so that
starting a guest does not wait for it.
"""

from typing import Final

MAX_INSTRUCTION: Final = 15
"""Bytes that an x86 instruction has at most."""


def disassemble(code: bytes, rip: int, bitness: int, limit: int = 8) -> str:
    """List the instructions in `code`, one a line: address, bytes, text.

    `bitness` is 16, 32 or 64. The list ends with the code, after `limit` lines, or with the first
    bytes that are no whole instruction, shown as "(bad)".
    """
    from iced_x86 import Decoder, Formatter, FormatterSyntax  # noqa: PLC0415

    decoder = Decoder(bitness, code, ip=rip)
    formatter = Formatter(FormatterSyntax.GAS)
    formatter.uppercase_hex = False
    lines: list[str] = []
    while decoder.can_decode and len(lines) < limit:
        start = decoder.position
        instruction = decoder.decode()
        end = decoder.position
        if instruction.is_invalid:
            end = len(code)
        raw = code[start : min(end, start + MAX_INSTRUCTION)].hex(" ")
        address = rip + start & (1 << bitness) - 1
        lines.append(f"{address:0{bitness // 4}x}:  {raw}  {formatter.format(instruction)}")
        if instruction.is_invalid:
            break
    return "\n".join(lines)


def instruction_text(code: bytes, rip: int, bitness: int) -> str:
    """The first instruction in `code`, as text and bytes: "mov (%rdi),%eax [8b 07]"."""
    line = disassemble(code, rip, bitness, limit=1)
    if not line:
        return "(no bytes)"
    _, raw, text = line.split("  ", 2)
    return f"{text} [{raw}]"
