"""What a guest leaves undone on a frame, done in software: checksums, and cutting TCP segments.

Facts: RFC 1071 (checksum), RFC 791, RFC 8200, RFC 9293; Linux's
Documentation/networking/segmentation-offloads.rst.
"""

from __future__ import annotations

from dataclasses import dataclass

from hvmlite.abi.netif import XEN_NETIF_GSO_TYPE_TCPV4
from hvmlite.backends.net.frame import PAGE_SIZE, Frame
from hvmlite.backends.net.headers import LONGEST, TCP, UDP, Headers, parse

_FIN, _PSH, _CWR = 0x01, 0x08, 0x80
MOST_SEGMENTS = 256
"""Pieces that one packet is cut into: each costs time, which a guest must not have without end."""


@dataclass(frozen=True)
class Offloads:
    """What somebody takes unfinished: checksums and segments, by IP version, and, `sg`, frames
    beyond one page."""

    csum4: bool = False
    csum6: bool = False
    gso4: bool = False
    gso6: bool = False
    sg: bool = True

    def takes(self, frame: Frame) -> bool:
        """Whether a frame can stay as it is."""
        if frame.size > PAGE_SIZE and not self.sg:
            return False
        if frame.gso_size and not (
            self.gso4 if frame.gso_type == XEN_NETIF_GSO_TYPE_TCPV4 else self.gso6
        ):
            return False
        if not frame.csum_blank or (self.csum4 and self.csum6):
            return True
        if not (self.csum4 or self.csum6):
            return False
        headers = parse(frame.head(LONGEST))
        return headers is not None and (self.csum4 if headers.version == 4 else self.csum6)

    def fits(self, frame: Frame) -> bool:
        """Whether a frame can be made to fit: by segments of a size that fits, if need be."""
        if self.sg or frame.size <= PAGE_SIZE:
            return True
        return 0 < frame.gso_size <= PAGE_SIZE - LONGEST


def finish(frame: Frame, ready: Offloads) -> list[Frame]:
    """Does on a frame what `ready` does not take; nothing is left of one that cannot be finished.

    The frames' parts are copies where they had to change.
    """
    if ready.takes(frame):
        return [frame]
    headers = parse(frame.head(LONGEST))
    if headers is None:
        return []
    data = bytearray(frame.data())
    if frame.gso_size and not (
        ready.sg and (ready.gso4 if frame.gso_type == XEN_NETIF_GSO_TYPE_TCPV4 else ready.gso6)
    ):
        if headers.protocol != TCP or frame.size > frame.gso_size * MOST_SEGMENTS:
            return []
        cut = _segments(data, headers, frame.gso_size)
        return [Frame([each], len(each), validated=True) for each in cut]
    if frame.gso_size:
        return [frame]
    _fill_checksum(data, headers)
    return [Frame([data], frame.size, validated=True)]


def ones_sum(data: bytes | bytearray | memoryview) -> int:
    """The sum of RFC 1071 over 16-bit words, not inverted: 0 only if all of them are."""
    # Modulo 2^16 - 1, which is what adding carries back comes to: a big number does it at once.
    number = int.from_bytes(data, "big")
    if len(data) & 1:
        number <<= 8
    return number and (number % 0xFFFF or 0xFFFF)


def _fold(total: int) -> int:
    return total and (total % 0xFFFF or 0xFFFF)


def _pseudo(data: bytearray, headers: Headers, length: int) -> int:
    at = headers.network
    addresses = data[at + 12 : at + 20] if headers.version == 4 else data[at + 8 : at + 40]
    return ones_sum(addresses) + length + headers.protocol


def _fill_checksum(data: bytearray, headers: Headers) -> None:
    """Computes the checksum of TCP or UDP; the frame may be longer than its packet (padding)."""
    end = min(len(data), _packet_end(data, headers))
    at, start = headers.checksum, headers.transport
    data[at : at + 2] = b"\0\0"
    total = ones_sum(memoryview(data)[start:end]) + _pseudo(data, headers, end - start)
    value = ~_fold(total) & 0xFFFF
    if not value and headers.protocol == UDP:
        value = 0xFFFF
    data[at : at + 2] = value.to_bytes(2, "big")


def _packet_end(data: bytearray, headers: Headers) -> int:
    at = headers.network
    if headers.version == 4:
        end = at + int.from_bytes(data[at + 2 : at + 4], "big")
    else:
        end = at + 40 + int.from_bytes(data[at + 4 : at + 6], "big")
    return end if end >= headers.end else len(data)


def _segments(data: bytearray, headers: Headers, size: int) -> list[bytearray]:
    """Cuts a TCP packet into such with `size` bytes of data each, with all their headers right."""
    network, transport, begin = headers.network, headers.transport, headers.end
    end = min(len(data), _packet_end(data, headers))
    head = bytes(data[:begin])
    sequence = int.from_bytes(head[transport + 4 : transport + 8], "big")
    identification = int.from_bytes(head[network + 4 : network + 6], "big")
    segments = []
    for number, start in enumerate(range(begin, max(end, begin + 1), size)):
        stop = min(start + size, end)
        segment = bytearray(head)
        segment += memoryview(data)[start:stop]
        length = len(segment)
        if headers.version == 4:
            segment[network + 2 : network + 4] = (length - network).to_bytes(2, "big")
            counted = identification + number & 0xFFFF
            segment[network + 4 : network + 6] = counted.to_bytes(2, "big")
            segment[network + 10 : network + 12] = b"\0\0"
            total = ones_sum(segment[network:transport])
            segment[network + 10 : network + 12] = (~total & 0xFFFF).to_bytes(2, "big")
        else:
            segment[network + 4 : network + 6] = (length - network - 40).to_bytes(2, "big")
        at = sequence + start - begin & 0xFFFF_FFFF
        segment[transport + 4 : transport + 8] = at.to_bytes(4, "big")
        if stop < end:
            segment[transport + 13] &= ~(_FIN | _PSH) & 0xFF
        if number:
            segment[transport + 13] = segment[transport + 13] & ~_CWR
        _fill_checksum(segment, headers)
        segments.append(segment)
    return segments
