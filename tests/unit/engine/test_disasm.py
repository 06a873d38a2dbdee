"""Guest code as text for crash reports.

Proves the form of the listing and that no bytes break it. Cannot see whether iced-x86 is right.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvmlite.engine.disasm import disassemble, instruction_text


def test_listing() -> None:
    code = bytes.fromhex("8b07 48c70000000080 0f0b e8f3ffffff")
    assert disassemble(code, 0xFFFFFFFF81000000, 64).splitlines() == [
        "ffffffff81000000:  8b 07  mov (%rdi),%eax",
        "ffffffff81000002:  48 c7 00 00 00 00 80  movq $0xffffffff80000000,(%rax)",
        "ffffffff81000009:  0f 0b  ud2",
        "ffffffff8100000b:  e8 f3 ff ff ff  call 0xffffffff81000003",
    ]


@pytest.mark.parametrize(
    ("code", "rip", "bitness", "text"),
    [
        ("", 0, 64, ""),
        ("90", 0x1000, 32, "00001000:  90  nop"),
        ("0f01c190", 0xFFF0, 16, "fff0:  0f 01 c1  vmcall\nfff3:  90  nop"),
        ("900f", 0xFFFFFFFF, 32, "ffffffff:  90  nop\n00000000:  0f  (bad)"),
        ("06" + "90" * 20, 0, 64, "0000000000000000:  06" + " 90" * 14 + "  (bad)"),
    ],
)
def test_edges(code: str, rip: int, bitness: int, text: str) -> None:
    assert disassemble(bytes.fromhex(code), rip, bitness) == text


def test_limit() -> None:
    assert len(disassemble(b"\x90" * 100, 0, 64).splitlines()) == 8
    assert len(disassemble(b"\x90" * 100, 0, 64, limit=3).splitlines()) == 3


def test_one_instruction() -> None:
    assert instruction_text(b"\x8b\x07\x90", 0, 64) == "mov (%rdi),%eax [8b 07]"
    assert instruction_text(b"\x0f", 0, 64) == "(bad) [0f]"
    assert instruction_text(b"", 0, 64) == "(no bytes)"


@given(st.binary(max_size=40), st.integers(0, 2**64 - 1), st.sampled_from([16, 32, 64]))
@settings(max_examples=200, deadline=None)
def test_any_bytes(code: bytes, rip: int, bitness: int) -> None:
    listing = disassemble(code, rip, bitness)
    assert len(listing.splitlines()) <= 8
    assert instruction_text(code, rip, bitness)


def test_the_decoder_is_loaded_late() -> None:
    script = (
        "import sys, hvmlite.engine.disasm, hvmlite.engine.mmio_operation\n"
        "raise SystemExit('iced_x86' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
