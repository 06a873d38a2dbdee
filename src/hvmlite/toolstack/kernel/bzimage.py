"""Linux's bzImage: where its setup header says that the compressed ELF file lies.

Facts: Linux Documentation/arch/x86/boot.rst (payload_offset and payload_length, protocol 2.08).
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from hvmlite.toolstack.kernel.source import KernelError, Source

_SECTOR = 512
_DEFAULT_SETUP_SECTS = 4
_PROTOCOL_WITH_PAYLOAD = 0x0208

# setup_sects at 0x1f1, header at 0x202, version at 0x206, payload_offset and _length at 0x248
_SETUP_HEADER = struct.Struct("<497xB16x4sH64xII")
_MAGIC = b"HdrS"


class Payload(NamedTuple):
    """The compressed ELF file inside a bzImage: byte offset and length in the file."""

    offset: int
    length: int
    expected_size: int
    """Bytes after decompression: the last four bytes of the payload, in every format."""
    protocol: str
    """Boot protocol, as "2.15"."""


def is_bzimage(start: bytes | memoryview) -> bool:
    """Tell whether a file that begins with `start` has Linux's setup header."""
    return len(start) >= 0x206 and bytes(start[0x202:0x206]) == _MAGIC


def find_payload(source: Source) -> Payload:
    """Return where the payload of a bzImage lies; KernelError if it has none or a broken one."""
    if source.size < _SETUP_HEADER.size:
        raise KernelError("the bzImage's setup header is cut short")
    setup_sects, _, version, payload_offset, length = _SETUP_HEADER.unpack(
        source.read(0, _SETUP_HEADER.size)
    )
    protocol = f"{version >> 8}.{version & 0xFF:02}"
    if version < _PROTOCOL_WITH_PAYLOAD:
        raise KernelError(f"boot protocol {protocol} is too old: the payload came with 2.08")
    offset = ((setup_sects or _DEFAULT_SETUP_SECTS) + 1) * _SECTOR + payload_offset
    if offset + length > source.size:
        raise KernelError(
            f"the bzImage is cut short: its payload ends at byte {offset + length}, "
            f"the file at {source.size}"
        )
    if length <= 4:
        raise KernelError("the bzImage has no payload")
    expected_size = int.from_bytes(source.read(offset + length - 4, 4), "little")
    return Payload(offset, length, expected_size, protocol)
