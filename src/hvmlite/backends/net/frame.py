"""An Ethernet frame between a guest's rings and an endpoint, and what is left to do on it.

Facts: io/netif.h for what a guest may leave undone.
"""

from __future__ import annotations

from typing import Any

from hvmlite.abi.ring import XEN_PAGE_SHIFT

PAGE_SIZE = 1 << XEN_PAGE_SHIFT
Buffer = bytes | bytearray | memoryview

ETH_HLEN = 14
ETH_ZLEN = 60
LONGEST = 0xFFFF
"""Bytes of the longest frame on either ring (XEN_NETIF_MAX_TX_SIZE)."""


class Frame:
    """One frame: `size` bytes in `parts`, which are the caller's and change once he is called back.

    `csum_blank`: the TCP or UDP checksum is that of the pseudo header only.  `validated`: somebody
    trusted has checked it.  `gso_type` and `gso_size` (XEN_NETIF_GSO_TYPE_*, bytes): it is to be
    cut into TCP segments of so much data each; 0 if not.  `hash`: (type, algorithm, value) of the
    flow, if the sender said one.
    """

    __slots__ = ("csum_blank", "gso_size", "gso_type", "hash", "parts", "size", "validated")

    def __init__(
        self,
        parts: list[Any],
        size: int,
        *,
        csum_blank: bool = False,
        validated: bool = False,
        gso_type: int = 0,
        gso_size: int = 0,
    ) -> None:
        self.parts: list[Buffer] = parts
        self.size = size
        self.csum_blank = csum_blank
        self.validated = validated
        self.gso_type = gso_type
        self.gso_size = gso_size
        self.hash: tuple[int, int, bytes] | None = None

    def head(self, size: int) -> bytes:
        """A copy of the first bytes, fewer if the frame is shorter."""
        parts = self.parts
        if len(parts[0]) >= size or len(parts) == 1:
            return bytes(parts[0][:size])
        found = b""
        for part in parts:
            found += bytes(part[: size - len(found)])
            if len(found) == size:
                break
        return found

    def data(self) -> bytes:
        """A copy of all of it."""
        return b"".join(self.parts)

    def copy(self) -> Frame:
        """One that keeps its bytes."""
        made = Frame(
            [self.data()],
            self.size,
            csum_blank=self.csum_blank,
            validated=self.validated,
            gso_type=self.gso_type,
            gso_size=self.gso_size,
        )
        made.hash = self.hash
        return made
