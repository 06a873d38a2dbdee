"""Offsets into stub.bin and rom.bin, in bytes; written by build.py."""

STUB_KICK = 0x390
STUB_FAULT = 0x3B0
ROM_RESET = 0x46
ROM_TRAMPOLINE = 0x60
ROM_TRAMPOLINE_END = 0x7E
