"""What Argo tests share: a guest with rings, which sends, receives and asks by hypercall."""

from __future__ import annotations

from typing import Any

from hvmlite.abi import argo as abi
from hvmlite.abi import xen
from hvmlite.hypervisor.argo import Argo, ring_pages

RING = 0x200
"""Guest frame of the first ring; each has room for its pages."""
STRIDE = 16
ANY = abi.XEN_ARGO_DOMID_ANY
INDEXES = abi.xen_argo_ring_t.sizeof()
HEADER = abi.xen_argo_ring_message_header.sizeof()


class ArgoGuest:
    """A guest that may use Argo."""

    def __init__(self, guest: Any, *, permissive: bool = True) -> None:
        self.guest = guest
        self.domid: int = guest.domain.domid
        guest.domain.argo = Argo(guest.domain, permissive=permissive)
        self.port = guest.domain.evtchn.bind_virq(xen.VIRQ_ARGO, 0)

    def call(self, op: int, *args: int) -> int:
        result: int = self.guest.hypercall(xen.Hypercall.argo_op, op, *args)
        return result

    def place(self, value: Any) -> int:
        address: int = self.guest.place(value.pack(self.guest.abi))
        return address

    def signalled(self) -> bool:
        """Whether VIRQ_ARGO came since the last look."""
        channels = self.guest.domain.evtchn
        came: bool = channels.is_pending(self.port)
        channels.close(self.port)
        self.port = channels.bind_virq(xen.VIRQ_ARGO, 0)
        return came

    # -- rings

    def register(
        self, aport: int, length: int, partner: int = ANY, *, slot: int = 0, flags: int = 0
    ) -> int:
        gfns = [RING + STRIDE * slot + i for i in range(ring_pages(length))]
        return self.register_pages(aport, length, partner, gfns, flags)

    def register_pages(
        self, aport: int, length: int, partner: int, gfns: list[int], flags: int = 0
    ) -> int:
        arg = self.place(abi.xen_argo_register_ring_t(aport, partner, 0, length))
        listed = self.guest.place(b"".join(gfn.to_bytes(8, "little") for gfn in gfns))
        return self.call(abi.XEN_ARGO_OP_register_ring, arg, listed, len(gfns), flags)

    def unregister(self, aport: int, partner: int = ANY) -> int:
        arg = self.place(abi.xen_argo_unregister_ring_t(aport, partner))
        return self.call(abi.XEN_ARGO_OP_unregister_ring, arg, 0, 0, 0)

    def indexes(self, slot: int = 0) -> tuple[int, int]:
        """rx_ptr and tx_ptr."""
        base = RING + STRIDE * slot << 12
        return self.guest.read32(base), self.guest.read32(base + 4)

    def set_rx(self, value: int, slot: int = 0) -> None:
        assert self.guest.write32(RING + STRIDE * slot << 12, value)

    def set_tx(self, value: int, slot: int = 0) -> None:
        assert self.guest.write32((RING + STRIDE * slot << 12) + 4, value)

    def receive(self, length: int, slot: int = 0) -> tuple[int, int, int, bytes] | None:
        """Takes a message out: (sender's domid, its port, type, payload)."""
        rx, tx = self.indexes(slot)
        if rx == tx:
            return None
        base = (RING + STRIDE * slot << 12) + INDEXES
        ring: bytes = self.guest.domain.memory.read(base, length)
        twice = ring + ring
        header = abi.xen_argo_ring_message_header.unpack(twice, offset=rx)
        payload = twice[rx + HEADER : rx + header.len]
        self.set_rx((rx + (header.len + 15 & ~15)) % length, slot)
        return header.source.domain_id, header.source.aport, header.message_type, payload

    # -- sending and asking

    def send(
        self, target: int, aport: int, *pieces: bytes, source: int = ANY, kind: int = 7
    ) -> int:
        addresses = abi.xen_argo_send_addr_t(
            abi.xen_argo_addr_t(99, source), abi.xen_argo_addr_t(aport, target)
        )
        iovs = [abi.xen_argo_iov_t(self.guest.place(piece), len(piece)) for piece in pieces]
        return self.send_iovs(addresses, iovs, kind)

    def send_iovs(
        self, addresses: abi.xen_argo_send_addr_t, iovs: list[abi.xen_argo_iov_t], kind: int = 7
    ) -> int:
        listed = self.guest.place(b"".join(iov.pack(self.guest.abi) for iov in iovs) or b"\0")
        return self.call(abi.XEN_ARGO_OP_sendv, self.place(addresses), listed, len(iovs), kind)

    def notify(self, *asked: tuple[int, int, int]) -> tuple[int, list[tuple[int, int]]]:
        """Asks about (domid, port, space); returns the result and each (flags, largest message)."""
        kind = abi.xen_argo_ring_data_ent_t
        entries = [
            kind(abi.xen_argo_addr_t(aport, domid), 0xFFFF, 0, space, 0xFFFFFFFF)
            for domid, aport, space in asked
        ]
        head = abi.xen_argo_ring_data_t(len(entries))
        at = self.guest.place(head.pack() + b"".join(entry.pack() for entry in entries))
        result = self.call(abi.XEN_ARGO_OP_notify, at, 0, 0, 0)
        at += head.sizeof()
        got = [self.guest.get(at + i * kind.sizeof(), kind) for i in range(len(entries))]
        return result, [(entry.flags, entry.max_message_size) for entry in got]
