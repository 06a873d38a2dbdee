"""Where the headers of an Ethernet frame end: as much of IP, TCP and UDP as offloads need.

Facts: IEEE 802.1Q; RFC 791, RFC 8200, RFC 9293, RFC 768.
"""

from __future__ import annotations

from typing import NamedTuple

from hvmlite.backends.net.frame import ETH_HLEN

TCP = 6
UDP = 17
LONGEST = 256
"""How much of a frame is looked at: what lies behind is no header that matters."""

_VLAN = (0x8100, 0x88A8)
_IPV4 = 0x0800
_IPV6 = 0x86DD
_HOP_BY_HOP, _ROUTING, _FRAGMENT, _DESTINATION = 0, 43, 44, 60
_CHECKSUM_AT = {TCP: 16, UDP: 6}
_LEAST = {TCP: 20, UDP: 8}


class Headers(NamedTuple):
    """Offsets (bytes) of the network header and of TCP or UDP; `end`: where the data begins."""

    version: int
    network: int
    transport: int
    protocol: int
    end: int

    @property
    def checksum(self) -> int:
        """Where the checksum of TCP or UDP is."""
        return self.transport + _CHECKSUM_AT[self.protocol]


def parse(head: bytes) -> Headers | None:
    """Finds the headers in the first bytes of a frame (`LONGEST` will do).

    None for a frame that is not TCP or UDP, or a fragment.
    """
    at = ETH_HLEN
    kind = int.from_bytes(head[12:14], "big")
    for _ in range(2):
        if kind in _VLAN:
            kind = int.from_bytes(head[at + 2 : at + 4], "big")
            at += 4
    if kind == _IPV4:
        found = _ipv4(head, at)
    elif kind == _IPV6:
        found = _ipv6(head, at)
    else:
        return None
    if found is None:
        return None
    transport, protocol = found
    if protocol not in _LEAST or transport + _LEAST[protocol] > len(head):
        return None
    end = transport + (head[transport + 12] >> 4) * 4 if protocol == TCP else transport + 8
    if end < transport + _LEAST[protocol] or end > len(head):
        return None
    return Headers(4 if kind == _IPV4 else 6, at, transport, protocol, end)


def flow(head: bytes) -> bytes:
    """What is the same for all frames of a flow: addresses and ports, as far as there are any."""
    headers = parse(head)
    if headers is not None:
        first = headers.network + (12 if headers.version == 4 else 8)
        last = first + (8 if headers.version == 4 else 32)
        return head[first:last] + head[headers.transport : headers.transport + 4]
    return head[:ETH_HLEN]


def _ipv4(head: bytes, at: int) -> tuple[int, int] | None:
    if len(head) < at + 20 or head[at] >> 4 != 4:
        return None
    size = (head[at] & 0xF) * 4
    fragment = int.from_bytes(head[at + 6 : at + 8], "big") & 0x3FFF
    if size < 20 or fragment:
        return None
    return at + size, head[at + 9]


def _ipv6(head: bytes, at: int) -> tuple[int, int] | None:
    if len(head) < at + 40 or head[at] >> 4 != 6:
        return None
    following = head[at + 6]
    at += 40
    while following in (_HOP_BY_HOP, _ROUTING, _DESTINATION):
        if len(head) < at + 8:
            return None
        following, at = head[at], at + (head[at + 1] + 1) * 8
    return None if following == _FRAGMENT else (at, following)
