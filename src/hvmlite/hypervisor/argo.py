"""Argo: messages that the hypervisor copies into rings in the memory of other domains.

A ring's owner is its only reader, we are its only writer; both indexes lie in guest memory and are
believed only as far as a bad one hurts the ring's owner alone.  Structs and copying belong to
hypercalls/argo_op.py.  Facts: public/argo.h, docs/designs/argo.pandoc, what Xen's common/argo.c
answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from hvmlite.abi.argo import (
    XEN_ARGO_DOMID_ANY,
    XEN_ARGO_MAX_RING_SIZE,
    XEN_ARGO_MSG_SLOT_SIZE,
    xen_argo_addr_t,
    xen_argo_iov_t,
    xen_argo_ring_message_header,
    xen_argo_ring_t,
)
from hvmlite.abi.errno import (
    XEN_EAGAIN,
    XEN_EBUSY,
    XEN_ECONNREFUSED,
    XEN_EEXIST,
    XEN_EINVAL,
    XEN_EMSGSIZE,
    XEN_ENOENT,
    XEN_ENOSPC,
)
from hvmlite.abi.xen import VIRQ_ARGO
from hvmlite.engine.memory import PAGE_SHIFT, PAGE_SIZE
from hvmlite.hypervisor.call import XenError
from hvmlite.hypervisor.memory import GuestAccessError, Page
from hvmlite.hypervisor.physmap import P2mType

if TYPE_CHECKING:
    from hvmlite.hypervisor.domain import Domain

MAX_RINGS_PER_DOMAIN = 128
MAX_PENDING_PER_RING = 32
"""Domains that may wait for space in one ring."""
RING_OFFSET = xen_argo_ring_t.sizeof()
"""Bytes from the start of a ring's first page to its first message."""
HEADER_SIZE = xen_argo_ring_message_header.sizeof()
MAX_MESSAGE_SIZE = XEN_ARGO_MAX_RING_SIZE - HEADER_SIZE - XEN_ARGO_MSG_SLOT_SIZE
"""Bytes that the largest ring could take at once."""
SMALLEST_RING = HEADER_SIZE + 2 * XEN_ARGO_MSG_SLOT_SIZE
"""A header, a slot of payload, and the slot that stays free so that full differs from empty."""

_RX_PTR = xen_argo_ring_t.offsetof("rx_ptr") // 4
_TX_PTR = xen_argo_ring_t.offsetof("tx_ptr") // 4
# What Xen may write: RAM, and what it shares with the domain writable.
_RING_TYPES = (P2mType.RAM_RW, P2mType.XENHEAP)

Reader = Callable[[int, int], bytes]
"""Copies (address, size) from the sender; raises GuestAccessError."""


def round_up(size: int) -> int:
    """Bytes that a message of `size` takes: whole slots."""
    return -(-size // XEN_ARGO_MSG_SLOT_SIZE) * XEN_ARGO_MSG_SLOT_SIZE


def ring_pages(length: int) -> int:
    """Pages of a ring of `length` bytes, the indexes included."""
    return -(-(round_up(length) + RING_OFFSET) // PAGE_SIZE)


class Ring:
    """One registered ring: where a domain receives on a port."""

    __slots__ = ("_frames", "_header", "_owner", "length", "partner_id", "pending", "tx_ptr")

    def __init__(self, owner: Domain, partner_id: int, length: int) -> None:
        self._owner = owner
        self._frames: list[int] = []
        self._header: Page
        self.partner_id = partner_id
        """The one domain that may send, or XEN_ARGO_DOMID_ANY."""
        self.length = length
        """Bytes, a multiple of a slot, without the indexes."""
        self.tx_ptr = 0
        """Where the next message goes; the copy in the guest's page is for the guest."""
        self.pending: dict[int, int] = {}
        """Domains that wait for space (bytes of payload)."""

    # ---- memory ---------------------------------------------------------------------------------

    def hold(self, gfns: Iterable[int]) -> None:
        """Takes the pages that the ring lies in.

        Raises XenError(EINVAL) for one that is no RAM of the owner's, and what `gfns` raises;
        then it holds none.
        """
        lookup, frames = self._owner.physmap.lookup, self._owner.host.frames
        try:
            for gfn in gfns:
                entry = lookup(gfn)
                if entry is None or entry[1] not in _RING_TYPES:
                    raise XenError(XEN_EINVAL)
                frames.get(entry[0])
                self._frames.append(entry[0])
        except (XenError, GuestAccessError):
            self.release()
            raise
        self._header = Page(self._owner.host.machine, self._frames[0])
        self._start()

    def release(self) -> None:
        """Lets the pages go."""
        for frame in self._frames:
            self._owner.host.frames.put(frame)
        self._frames.clear()

    def _start(self) -> None:
        """Goes on where the page says that the last writer was, if that can be."""
        tx_ptr = self._header.u32[_TX_PTR]
        if tx_ptr < self.length and tx_ptr % XEN_ARGO_MSG_SLOT_SIZE == 0:
            self.tx_ptr = tx_ptr
        else:
            self._publish(self._rx_ptr())

    def _publish(self, tx_ptr: int) -> None:
        self.tx_ptr = tx_ptr
        self._header.exchange32(_TX_PTR, tx_ptr)

    def _rx_ptr(self) -> int:
        """Where the reader says that it is, made a place that can be."""
        rx_ptr = round_up(self._header.u32[_RX_PTR])
        return rx_ptr if rx_ptr < self.length else 0

    def _write(self, offset: int, data: bytes) -> None:
        """Stores bytes that lie within one page, `offset` bytes behind the first message."""
        at = offset + RING_OFFSET
        self._owner.partition.write(self._frames[at >> PAGE_SHIFT], at & PAGE_SIZE - 1, data)

    # ---- messages -------------------------------------------------------------------------------

    @property
    def max_message_size(self) -> int:
        """Bytes of payload that the empty ring takes."""
        return self.length - HEADER_SIZE - XEN_ARGO_MSG_SLOT_SIZE

    def _free(self) -> int:
        """Bytes between the indexes; all of them when they are equal."""
        return (self._rx_ptr() - self.tx_ptr) % self.length or self.length

    def payload_space(self) -> int:
        """Bytes of payload that the ring takes now."""
        return max(0, self._free() - HEADER_SIZE - XEN_ARGO_MSG_SLOT_SIZE)

    def insert(
        self,
        source: xen_argo_addr_t,
        message_type: int,
        iovs: Sequence[xen_argo_iov_t],
        size: int,
        read: Reader,
    ) -> None:
        """Puts a message of `size` bytes of payload in.

        Raises XenError (EMSGSIZE: never, EAGAIN: not now), and GuestAccessError for a bad piece;
        then the message is not there.
        """
        needed = HEADER_SIZE + round_up(size)
        if self.length <= needed:
            raise XenError(XEN_EMSGSIZE)
        if needed >= self._free():
            raise XenError(XEN_EAGAIN)
        header = xen_argo_ring_message_header(HEADER_SIZE + size, source, message_type)
        at = self.tx_ptr
        self._write(at, header.pack())
        at = (at + HEADER_SIZE) % self.length
        for iov in iovs:
            address, left = iov.iov_hnd, iov.iov_len
            while left:
                room = PAGE_SIZE - (at + RING_OFFSET & PAGE_SIZE - 1)
                step = min(left, room, self.length - at)
                self._write(at, read(address, step))
                address, left = address + step, left - step
                at = (at + step) % self.length
        # Whoever sees the index sees the message: the exchange is a full barrier.
        self._publish(round_up(at) % self.length)

    # ---- who waits ------------------------------------------------------------------------------

    def wait(self, domid: int, size: int) -> bool:
        """Notes that a domain waits for so much space; False if too many do."""
        known = self.pending.get(domid)
        if known is None and len(self.pending) >= MAX_PENDING_PER_RING:
            return False
        self.pending[domid] = max(known or 0, size)
        return True

    def satisfied(self) -> list[int]:
        """Takes out and returns the domains that waited for no more than there is now."""
        if not self.pending:
            return []
        space = self.payload_space()
        ready = [domid for domid, size in self.pending.items() if space and space >= size]
        for domid in ready:
            del self.pending[domid]
        return ready


class Argo:
    """The rings of one domain; a domain without an `Argo` takes no part.

    `permissive`: it may have rings that every domain may send to (Xen's mac-permissive).
    """

    def __init__(self, domain: Domain, *, permissive: bool) -> None:
        self._domain = domain
        self.permissive = permissive
        self._rings: dict[tuple[int, int], Ring] = {}
        self._count = 0

    def register(
        self, aport: int, partner_id: int, length: int, gfns: Iterable[int], *, fail_exist: bool
    ) -> None:
        """Registers a ring, or an existing one again on other pages (its index is kept).

        Raises XenError, and what `gfns` raises: then also an older ring of that name is gone.
        """
        if self._count >= MAX_RINGS_PER_DOMAIN:
            raise XenError(XEN_ENOSPC)
        key = aport, partner_id
        ring = self._rings.get(key)
        if ring is None:
            ring = self._rings[key] = Ring(self._domain, partner_id, length)
        elif fail_exist or ring.length != length:
            raise XenError(XEN_EEXIST)
        ring.release()
        try:
            ring.hold(gfns)
        except (XenError, GuestAccessError):
            del self._rings[key]
            raise
        # Xen counts a ring that is registered again once more, and never less.
        self._count += 1

    def unregister(self, aport: int, partner_id: int) -> None:
        """Ends a ring; raises XenError(ENOENT)."""
        self._remove((aport, partner_id))

    def _remove(self, key: tuple[int, int]) -> None:
        ring = self._rings.pop(key, None)
        if ring is None:
            raise XenError(XEN_ENOENT)
        ring.release()
        self._count -= 1

    def find(self, aport: int, sender: int) -> Ring | None:
        """The ring that a domain sends to by this port: one just for it, else one for all."""
        rings = self._rings
        return rings.get((aport, sender)) or rings.get((aport, XEN_ARGO_DOMID_ANY))

    def receive(
        self,
        source: xen_argo_addr_t,
        aport: int,
        message_type: int,
        iovs: Sequence[xen_argo_iov_t],
        read: Reader,
    ) -> int:
        """Takes a message in; returns the bytes of its payload.

        Raises XenError, and GuestAccessError for a piece that cannot be read.  After EAGAIN the
        sender is told when there is room.
        """
        ring = self.find(aport, source.domain_id)
        if ring is None:
            raise XenError(XEN_ECONNREFUSED)
        size = payload_size(iovs)
        try:
            ring.insert(source, message_type, iovs, size, read)
        except XenError as error:
            if error.errno == XEN_EAGAIN and not ring.wait(source.domain_id, size):
                raise XenError(XEN_EBUSY) from None
            raise
        self._domain.evtchn.send_guest_global_virq(VIRQ_ARGO)
        return size

    def tell_waiting(self) -> None:
        """The domain has read: tells those who waited for the space."""
        for ring in self._rings.values():
            for domid in ring.satisfied():
                waiting = self._domain.host.domain(domid)
                if waiting is not None:
                    waiting.evtchn.send_guest_global_virq(VIRQ_ARGO)

    # ---- ends -----------------------------------------------------------------------------------

    def forget(self, domid: int) -> None:
        """Another domain is gone: so are the rings that were for it alone, and its waiting."""
        for key in [key for key in self._rings if key[1] == domid]:
            self._remove(key)
        for ring in self._rings.values():
            ring.pending.pop(domid, None)

    def destroy(self) -> None:
        """Ends all rings of the domain, and those of others that were for it alone."""
        for ring in self._rings.values():
            ring.release()
        self._rings.clear()
        self._count = 0
        for domain in self._domain.host.domains.values():
            if domain.argo is not None:
                domain.argo.forget(self._domain.domid)


def payload_size(iovs: Sequence[xen_argo_iov_t]) -> int:
    """Bytes in all pieces; raises XenError for pieces that no ring takes."""
    size = 0
    for iov in iovs:
        if iov.pad or iov.iov_len > MAX_MESSAGE_SIZE:
            raise XenError(XEN_EINVAL)
        size += iov.iov_len
        if size > MAX_MESSAGE_SIZE:
            raise XenError(XEN_EMSGSIZE)
    return size
