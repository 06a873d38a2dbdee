"""Frames from a guest: the transmit ring of one queue.

What a frontend may get wrong, and what it costs it, follows Linux's xen-netback. Facts: io/netif.h.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from struct import Struct
from typing import TYPE_CHECKING

from hvmlite.abi import netif as n
from hvmlite.abi.layout import Abi
from hvmlite.backends.device import DeviceError
from hvmlite.backends.net.frame import ETH_HLEN, LONGEST, PAGE_SIZE, Frame
from hvmlite.backends.ring import BackRing

if TYPE_CHECKING:
    from hvmlite.hypervisor.event_channel import BackendPort
    from hvmlite.hypervisor.grant_table import Lease
    from hvmlite.hypervisor.memory import Window

ENTRY = max(n.netif_tx_request.sizeof(), n.netif_tx_response.sizeof())
_REQUEST = n.netif_tx_request.layout(Abi.X86_64).codec
_RESPONSE = n.netif_tx_response.layout(Abi.X86_64)
_FATAL_SLOTS = 20
"""Slots of one packet from which on a frontend is broken, not only greedy (Linux: 20)."""
_MORE, _EXTRA = n.NETTXF_more_data, n.NETTXF_extra_info
_OKAY, _ERROR, _NULL = n.NETIF_RSP_OKAY, n.NETIF_RSP_ERROR, n.NETIF_RSP_NULL
_GSO_TYPES = (n.XEN_NETIF_GSO_TYPE_TCPV4, n.XEN_NETIF_GSO_TYPE_TCPV6)


@lru_cache(maxsize=512)
def _responses(count: int) -> Struct:
    padding = ENTRY - _RESPONSE.size
    return Struct("<" + f"{_RESPONSE.format}{padding}x" * count)


class _Packet:
    """One packet on the ring: its slots, and what becomes of it."""

    __slots__ = ("answers", "first", "frame", "pieces", "size", "status")

    def __init__(self, first: int, size: int) -> None:
        self.first = first
        self.size = size
        self.frame: Frame | None = None
        self.pieces: list[tuple[int, int, int]] = []
        # Identifier of each slot in turn, -1 for one of extra information.
        self.answers: list[int] = []
        self.status = _OKAY


class TxQueue:
    """The transmit ring of one queue.

    `send(frames)` takes frames as `Endpoint.send` does.  `multicast(add, address)` changes what the
    guest listens to and returns whether it could.
    """

    def __init__(
        self,
        window: Window,
        lease: Lease,
        send: Callable[[Sequence[Frame]], int],
        multicast: Callable[[bool, bytes], bool],
    ) -> None:
        self._ring = BackRing(window, ENTRY)
        self._lease = lease
        self._send = send
        self._multicast = multicast
        self.port: BackendPort | None = None
        """Raised for responses; set before the first `serve`."""

    def serve(self) -> bool:
        """Sends what is on the ring, a ring full at most.

        Returns whether there is more to do at once; if not, an event comes, or there is no room
        where it goes.
        """
        ring = self._ring
        raw = ring.take_raw(ring.size)
        if raw:
            packets = self._parse(raw)
            blocked = self._carry_out(packets, len(raw) // ENTRY)
            if ring.push() and self.port is not None:
                self.port.notify()
            if blocked:
                return False
        return not ring.idle()

    # ---- what is asked --------------------------------------------------------------------------

    def _parse(self, raw: bytes) -> list[_Packet]:
        slots = list(_REQUEST.iter_unpack(raw))
        count = len(slots)
        packets = []
        at = 0
        while at < count:
            ref, offset, flags, identifier, size = slots[at]
            packet = _Packet(at, size)
            at += 1
            packet.answers.append(identifier)
            packets.append(packet)
            gso = None
            is_request = False
            if flags & _EXTRA:
                at, gso, is_request = self._extras(packet, raw, at, count)
                if is_request:
                    continue
            left, pieces = size, [(ref, offset, 0)]
            more = flags & _MORE
            while more:
                if at >= count:
                    raise DeviceError("a packet on its transmit ring has no end")
                ref, offset, more, identifier, part = slots[at]
                more &= _MORE
                at += 1
                packet.answers.append(identifier)
                if len(pieces) == _FATAL_SLOTS:
                    raise DeviceError(f"a packet of more than {_FATAL_SLOTS} slots")
                if part > left:
                    packet.status = _ERROR
                    part = 0
                elif offset + part > PAGE_SIZE:
                    raise DeviceError(f"a piece of {part} bytes at {offset} leaves its page")
                left -= part
                pieces.append((ref, offset, part))
            ref, offset, _ = pieces[0]
            pieces[0] = (ref, offset, left)
            if size < ETH_HLEN or len(pieces) > n.XEN_NETIF_NR_SLOTS_MIN:
                packet.status = _ERROR
            if packet.status == _ERROR:
                continue
            if offset + left > PAGE_SIZE:
                raise DeviceError(f"a piece of {left} bytes at {offset} leaves its page")
            packet.pieces = pieces
            packet.frame = frame = Frame(
                [],
                size,
                csum_blank=bool(flags & n.NETTXF_csum_blank),
                validated=bool(flags & n.NETTXF_data_validated),
            )
            if gso is not None:
                frame.gso_type, frame.gso_size = gso.type, gso.size
                frame.csum_blank = True
        return packets

    def _extras(
        self, packet: _Packet, raw: bytes, at: int, count: int
    ) -> tuple[int, n.netif_extra_gso | None, bool]:
        """Reads extra information; a packet may be nothing but a request about multicast."""
        gso = None
        is_request = False
        more = True
        while more:
            if at >= count:
                raise DeviceError("extra information is missing")
            extra = n.netif_extra_info.unpack(raw, offset=at * ENTRY)
            at += 1
            packet.answers.append(-1)
            more = bool(extra.flags & n.XEN_NETIF_EXTRA_FLAG_MORE)
            if extra.type == n.XEN_NETIF_EXTRA_TYPE_GSO:
                gso = n.netif_extra_gso.unpack(extra.u)
                if gso.type not in _GSO_TYPES:
                    raise DeviceError(f"a GSO type of {gso.type}")
                if not gso.size:
                    raise DeviceError("a GSO size of 0")
            elif extra.type in (n.XEN_NETIF_EXTRA_TYPE_MCAST_ADD, n.XEN_NETIF_EXTRA_TYPE_MCAST_DEL):
                is_request = True
                address = n.netif_extra_mcast.unpack(extra.u).addr
                add = extra.type == n.XEN_NETIF_EXTRA_TYPE_MCAST_ADD
                if not self._multicast(add, address):
                    packet.status = _ERROR
            elif extra.type != n.XEN_NETIF_EXTRA_TYPE_HASH:
                raise DeviceError(f"extra information of type {extra.type}")
        return at, gso, is_request

    # ---- and done -------------------------------------------------------------------------------

    def _carry_out(self, packets: list[_Packet], slots: int) -> bool:
        """Sends what can be sent and answers; returns whether the endpoint has no room."""
        lease = self._lease
        pieces = [piece for packet in packets for piece in packet.pieces]
        try:
            frames = self._frames(packets, lease.take(pieces)) if pieces else []
            taken = self._send(frames) if frames else 0
        finally:
            lease.release()
        answers: list[int] = []
        blocked = False
        for packet in packets:
            if packet.frame is not None:
                if not taken:
                    # It stays on the ring, and is looked at anew when there is room.
                    self._ring.put_back(slots - packet.first)
                    blocked = True
                    break
                taken -= 1
            status = packet.status
            for identifier in packet.answers:
                if identifier < 0:
                    answers += (0, _NULL)
                else:
                    answers += (identifier, status)
        if answers:
            count = len(answers) // 2
            self._ring.respond_raw(_responses(count).pack(*answers), count)
        return blocked

    def _frames(self, packets: list[_Packet], starts: list[int]) -> list[Frame]:
        memory = self._lease.memory
        frames = []
        at = 0
        for packet in packets:
            frame = packet.frame
            if frame is None:
                continue
            parts = frame.parts
            first = end = -1
            for _, _, size in packet.pieces:
                start = starts[at]
                at += 1
                if start < 0:
                    packet.status = _ERROR
                elif start == end:
                    # Pages that follow each other make one piece.
                    end += size
                else:
                    if end > first:
                        parts.append(memory[first:end])
                    first, end = start, start + size
            if packet.status == _ERROR:
                packet.frame = None
                continue
            if end > first:
                parts.append(memory[first:end])
            frames.append(frame)
        return frames


assert LONGEST == n.XEN_NETIF_MAX_TX_SIZE
