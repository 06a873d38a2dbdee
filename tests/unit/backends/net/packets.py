"""TCP and UDP packets, and the checksum as RFC 1071 words it: a model to compare with."""

from __future__ import annotations

import struct

from .netfront import MAC, OTHER


def checksum(data: bytes) -> int:
    """Word by word, with the carries added back."""
    total = 0
    for i in range(0, len(data), 2):
        total += int.from_bytes(data[i : i + 2].ljust(2, b"\0"), "big")
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def pseudo(version: int, protocol: int, length: int) -> bytes:
    if version == 4:
        return bytes([10, 0, 0, 1, 10, 0, 0, 2, 0, protocol]) + length.to_bytes(2, "big")
    return bytes(range(32)) + struct.pack(">IHBB", length, 0, 0, protocol)


def ip(version: int, protocol: int, payload: bytes, vlan: bool = False) -> bytes:
    tag = b"\x81\x00\x00\x07" if vlan else b""
    if version == 4:
        head = struct.pack(
            ">BBHHHBBH", 0x45, 0, 20 + len(payload), 0x1234, 0x4000, 64, protocol, 0
        ) + bytes([10, 0, 0, 1, 10, 0, 0, 2])
        head = head[:10] + checksum(head).to_bytes(2, "big") + head[12:]
        return OTHER + MAC + tag + b"\x08\x00" + head + payload
    head = struct.pack(">IHBB", 6 << 28, len(payload), protocol, 64) + bytes(range(32))
    return OTHER + MAC + tag + b"\x86\xdd" + head + payload


def tcp(
    version: int, data: bytes, *, sequence: int = 1000, flags: int = 0x18, options: bytes = b"",
    filled: bool = False, vlan: bool = False,
) -> bytes:  # fmt: skip
    size = 20 + len(options)
    segment = struct.pack(">HHIIBBHHH", 1, 2, sequence, 7, size << 2, flags, 512, 0, 0) + options
    segment += data
    if filled:
        value = checksum(pseudo(version, 6, len(segment)) + segment)
        segment = segment[:16] + value.to_bytes(2, "big") + segment[18:]
    return ip(version, 6, segment, vlan)


def udp(version: int, data: bytes, *, filled: bool = False, vlan: bool = False) -> bytes:
    packet = struct.pack(">HHHH", 53, 54, 8 + len(data), 0) + data
    if filled:
        value = checksum(pseudo(version, 17, len(packet)) + packet) or 0xFFFF
        packet = packet[:6] + value.to_bytes(2, "big") + packet[8:]
    return ip(version, 17, packet, vlan)
