"""Argo: what each operation answers, in Xen's order of checks, and how rings and waiting end.

The errnos are those of Xen's sources: no real Xen with argo=1 was at hand.  Every host is checked
for leaked frames.  Cannot see: a reader that changes its index between two of our own accesses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from hvmlite.abi import argo as abi
from hvmlite.abi import memory, xen
from hvmlite.abi.layout import Abi
from hvmlite.hypervisor.argo import MAX_PENDING_PER_RING, MAX_RINGS_PER_DOMAIN, ring_pages
from hvmlite.hypervisor.physmap import P2mType

from .argo_guest import ANY, HEADER, INDEXES, RING, ArgoGuest

LENGTH = 4096 - INDEXES
EPERM, ENOENT, ESRCH, EAGAIN, EACCES, EFAULT = -1, -2, -3, -11, -13, -14
EBUSY, EEXIST, EINVAL, ENOSPC, ENOSYS = -16, -17, -22, -28, -38
EMSGSIZE, EOPNOTSUPP, ECONNREFUSED = -90, -95, -111
EXISTS, SHARED, EMPTY = 1, 2, 4
SUFFICIENT, TOO_BIG, BUSY = 8, 16, 32
HIGH = 1 << 32

Make = Callable[..., ArgoGuest]


@pytest.fixture
def argo(guests: Callable[..., Any]) -> Make:
    def make(*, permissive: bool = True, **options: Any) -> ArgoGuest:
        return ArgoGuest(guests(**options), permissive=permissive)

    return make


@pytest.fixture(params=list(Abi), ids=["64", "32"])
def one(request: pytest.FixtureRequest, argo: Make) -> ArgoGuest:
    return argo(abi=request.param)


def test_off_it_does_not_exist(guests: Callable[..., Any]) -> None:
    guest = guests()
    for op in range(7):
        assert guest.hypercall(39, op, 0, 0, HIGH, HIGH) == ENOSYS


def test_operations_that_do_not_exist(one: ArgoGuest) -> None:
    for op in (0, 5, 6, 0xFFFF_FFFF):
        assert one.call(op, 0, 0, 0, 0) == EOPNOTSUPP


def test_numbers_beyond_32_bits(argo: Make) -> None:
    guest = argo()
    for op in range(7):
        assert guest.call(op, 0, 0, HIGH, 0) == EINVAL
        assert guest.call(op, 0, 0, 0, HIGH) == EINVAL


class TestRegister:
    def test_order_of_checks(self, one: ArgoGuest) -> None:
        op = abi.XEN_ARGO_OP_register_ring
        assert one.call(op, 0, 0, 4097, 0) == EINVAL
        assert one.call(op, 0, 0, 1, 2) == EINVAL
        assert one.call(op, 0, 0, 1, 0) == EFAULT
        good = one.place(abi.xen_argo_register_ring_t(1, ANY, 0, LENGTH))
        assert one.call(op, good, 0, 1, 0) == EFAULT
        assert one.call(op, good, 0, 2, 0) == EINVAL

    @pytest.mark.parametrize(
        ("length", "pages"),
        [(0, 1), (32, 1), (47, 1), (50, 1), (LENGTH + 16, 1), (LENGTH, 2), (1 << 24, 4096)],
    )
    def test_length(self, argo: Make, length: int, pages: int) -> None:
        assert argo().register_pages(1, length, ANY, [RING] * pages) == EINVAL

    def test_largest_and_smallest(self, argo: Make) -> None:
        guest = argo()
        assert guest.register(1, 48) == 0
        largest = (1 << 24) - INDEXES
        assert ring_pages(largest) == 4096
        # One page as often as it takes: Xen does not mind.
        assert guest.register_pages(2, largest, ANY, [RING + 1] * 4096) == 0

    def test_padding(self, argo: Make) -> None:
        guest = argo()
        arg = guest.place(abi.xen_argo_register_ring_t(1, ANY, 1, LENGTH))
        assert guest.call(abi.XEN_ARGO_OP_register_ring, arg, arg, 1, 0) == EINVAL

    def test_partner(self, argo: Make, guests: Callable[..., Any]) -> None:
        guest, other, off = argo(), argo(), guests()
        assert guest.register(1, LENGTH, other.domid) == 0
        assert guest.register(1, LENGTH, guest.domid, slot=1) == 0
        assert guest.register(1, LENGTH, 0, slot=2) == 0
        assert guest.register(1, LENGTH, 4444, slot=3) == ESRCH
        assert guest.register(1, LENGTH, xen.DOMID_SELF, slot=3) == ESRCH
        assert guest.register(1, LENGTH, off.domain.domid, slot=3) == ECONNREFUSED

    def test_wildcard_needs_permission(self, argo: Make) -> None:
        guest = argo(permissive=False)
        assert guest.register(1, LENGTH) == EPERM
        assert guest.register(1, LENGTH, guest.domid) == 0

    @pytest.mark.parametrize("gfn", [0xD0000, 1 << 40, (1 << 64) - 1])
    def test_bad_pages(self, argo: Make, gfn: int) -> None:
        guest = argo()
        frames = guest.guest.host.frames
        first = guest.guest.domain.physmap.lookup(RING)[0]
        assert guest.register_pages(1, 8192 - INDEXES, ANY, [RING, gfn]) == EINVAL
        assert frames.references(first) == 0
        assert guest.unregister(1) == ENOENT

    def test_page_list_that_ends_in_nowhere(self, argo: Make) -> None:
        guest = argo()
        length = 3 * 4096 - INDEXES
        arg = guest.place(abi.xen_argo_register_ring_t(1, ANY, 0, length))
        end = 1024 * 4096
        memory_ = guest.guest.domain.memory
        op = abi.XEN_ARGO_OP_register_ring
        memory_.write(end - 16, (RING).to_bytes(8, "little") * 2)
        assert guest.call(op, arg, end - 16, 3, 0) == EFAULT
        # A bad frame number is met first.
        memory_.write(end - 8, (0xD0000).to_bytes(8, "little"))
        assert guest.call(op, arg, end - 16, 3, 0) == EINVAL
        assert guest.unregister(1) == ENOENT

    def test_grant_mapping_is_no_ring(self, argo: Make) -> None:
        guest = argo()
        physmap, gfn = guest.guest.domain.physmap, RING + 1
        frame, _ = physmap.lookup(gfn)
        for kind in (P2mType.GRANT_RW, P2mType.GRANT_RO, P2mType.RAM_RO, P2mType.FOREIGN):
            physmap.set(gfn, frame, kind)
            assert guest.register_pages(1, LENGTH, ANY, [gfn]) == EINVAL
        physmap.set(gfn, frame, P2mType.RAM_RW)
        assert guest.register_pages(1, LENGTH, ANY, [gfn]) == 0

    def test_again(self, argo: Make) -> None:
        guest = argo()
        assert guest.register(1, LENGTH) == 0
        assert guest.register(1, LENGTH, flags=1) == EEXIST
        assert guest.register(1, LENGTH - 16) == EEXIST
        assert guest.send(guest.domid, 1, b"before") == 6
        assert guest.register(1, LENGTH, slot=1) == 0
        # The new pages say where it goes on; they were zero.
        assert guest.indexes(1) == (0, 0)
        assert guest.send(guest.domid, 1, b"after") == 5
        assert guest.receive(LENGTH, 1) == (guest.domid, 99, 7, b"after")
        assert guest.indexes(0) == (0, 32)

    def test_again_on_bad_pages_ends_it(self, argo: Make) -> None:
        guest = argo()
        assert guest.register(1, LENGTH) == 0
        assert guest.register_pages(1, LENGTH, ANY, [0xD0000]) == EINVAL
        assert guest.send(guest.domid, 1, b"x") == ECONNREFUSED
        assert guest.unregister(1) == ENOENT

    def test_index_of_the_page_is_kept_if_it_can_be(self, argo: Make) -> None:
        guest = argo()
        for tx, rx, expected in (
            (32, 16, 32),
            (LENGTH, 16, 16),
            (33, 17, 32),
            (0xFFFF_FFFF, 0xFFFF_FFF8, 0),
            (8, LENGTH - 1, 0),
        ):
            guest.set_rx(rx)
            guest.set_tx(tx)
            assert guest.register(1, LENGTH) == 0
            assert guest.indexes() == (rx, expected)
            assert guest.unregister(1) == 0

    def test_limit(self, argo: Make) -> None:
        guest = argo()
        for aport in range(MAX_RINGS_PER_DOMAIN):
            assert guest.register_pages(aport, LENGTH, ANY, [RING]) == 0
        assert guest.register_pages(1000, LENGTH, ANY, [RING]) == ENOSPC
        # Also for one that exists.
        assert guest.register_pages(0, LENGTH, ANY, [RING], 1) == ENOSPC
        assert guest.unregister(5) == 0
        assert guest.register_pages(1000, LENGTH, ANY, [RING]) == 0

    def test_registering_again_counts(self, argo: Make) -> None:
        guest = argo()
        for _ in range(MAX_RINGS_PER_DOMAIN):
            assert guest.register(1, LENGTH) == 0
        assert guest.register(1, LENGTH) == ENOSPC

    def test_pages_are_held(self, argo: Make) -> None:
        guest = argo()
        assert guest.register(1, LENGTH) == 0
        frame, _ = guest.guest.domain.physmap.lookup(RING)
        arg = memory.xen_memory_reservation(guest.guest.words(RING), 1, 0, 0, xen.DOMID_SELF)
        assert guest.guest.hypercall(12, memory.XENMEM_decrease_reservation, guest.place(arg)) == 1
        free = guest.guest.host.machine.free_frames
        # The message goes where nobody reads it, and into nobody else's page.
        assert guest.send(guest.domid, 1, b"lost") == 4
        assert guest.guest.host.machine.u32[frame * 1024 + 1] == 32
        assert guest.unregister(1) == 0
        assert guest.guest.host.machine.free_frames == free + 1


class TestUnregister:
    def test_order_of_checks(self, one: ArgoGuest) -> None:
        op = abi.XEN_ARGO_OP_unregister_ring
        arg = one.place(abi.xen_argo_unregister_ring_t(1, ANY))
        for extra in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
            assert one.call(op, arg, *extra) == EINVAL
        assert one.call(op, 0, 0, 0, 0) == EFAULT
        padded = one.place(abi.xen_argo_unregister_ring_t(1, ANY, 1))
        assert one.call(op, padded, 0, 0, 0) == EINVAL
        assert one.call(op, arg, 0, 0, 0) == ENOENT
        assert one.register(1, LENGTH) == 0
        assert one.unregister(1, one.domid) == ENOENT
        assert one.unregister(1) == 0
        assert one.unregister(1) == ENOENT


class TestSend:
    def test_order_of_checks(self, one: ArgoGuest, argo: Make) -> None:
        op, other = abi.XEN_ARGO_OP_sendv, argo()
        end = abi.xen_argo_addr_t
        assert one.call(op, 0, 0, 9, 0) == EFAULT
        good = one.place(abi.xen_argo_send_addr_t(end(9, ANY), end(1, other.domid)))
        assert one.call(op, good, 0, 9, 0) == EINVAL
        assert one.call(op, good, 0, 1, 0) == EFAULT
        assert one.call(op, good, 0, 0, 0) == ECONNREFUSED
        for source, target, answer in (
            (end(9, ANY, 1), end(1, other.domid), EINVAL),
            (end(9, ANY), end(1, other.domid, 1), EINVAL),
            (end(9, other.domid), end(1, 4444), EPERM),
            (end(9, xen.DOMID_SELF), end(1, one.domid), EPERM),
            (end(9, one.domid), end(1, 4444), ESRCH),
            (end(9, one.domid), end(1, xen.DOMID_SELF), ESRCH),
            (end(9, one.domid), end(1, 0), ECONNREFUSED),
            (end(9, ANY), end(1, one.domid), ECONNREFUSED),
        ):
            address = one.place(abi.xen_argo_send_addr_t(source, target))
            assert one.call(op, address, 0, 0, 0) == answer

    def test_to_a_domain_without_argo(self, argo: Make, guests: Callable[..., Any]) -> None:
        assert argo().send(guests().domain.domid, 1, b"x") == ECONNREFUSED

    def test_pieces_are_looked_at_when_there_is_a_ring(self, one: ArgoGuest) -> None:
        iov = abi.xen_argo_iov_t
        to = abi.xen_argo_send_addr_t(
            abi.xen_argo_addr_t(9, ANY), abi.xen_argo_addr_t(1, one.domid)
        )
        largest = (1 << 24) - HEADER - 16
        bad = [[iov(0, 1, 1)], [iov(0, largest + 1)], [iov(0, largest), iov(0, 1)]]
        assert [one.send_iovs(to, iovs) for iovs in bad] == [ECONNREFUSED] * 3
        assert one.register(1, LENGTH) == 0
        assert [one.send_iovs(to, iovs) for iovs in bad] == [EINVAL, EINVAL, EMSGSIZE]
        # No room is found before a bad pointer is.
        assert one.send_iovs(to, [iov(0, LENGTH)]) == EMSGSIZE
        assert one.send_iovs(to, [iov(0, 1)]) == EFAULT
        # A piece of nothing may lie nowhere.
        assert one.send_iovs(to, [iov(0, 0)]) == 0
        assert one.receive(LENGTH) == (one.domid, 9, 7, b"")

    def test_a_message(self, one: ArgoGuest, argo: Make) -> None:
        other = argo()
        assert other.register(5, LENGTH, one.domid) == 0
        assert one.send(other.domid, 5, b"hello ", b"", b"world", kind=0xFFFF_FFFF) == 11
        assert other.signalled()
        assert not one.signalled()
        assert other.receive(LENGTH) == (one.domid, 99, 0xFFFF_FFFF, b"hello world")
        assert other.receive(LENGTH) is None
        assert other.send(other.domid, 5, b"not for me") == ECONNREFUSED

    def test_nothing_is_a_message(self, one: ArgoGuest) -> None:
        assert one.register(5, LENGTH) == 0
        assert one.send(one.domid, 5) == 0
        assert one.signalled()
        assert one.receive(LENGTH) == (one.domid, 99, 7, b"")

    def test_one_ring_for_all_and_one_for_one(self, argo: Make) -> None:
        to, one, two = argo(), argo(), argo()
        assert to.register(5, LENGTH, slot=0) == 0
        assert to.register(5, LENGTH, one.domid, slot=1) == 0
        assert one.send(to.domid, 5, b"one") == 3
        assert two.send(to.domid, 5, b"two") == 3
        assert to.receive(LENGTH, 1) == (one.domid, 99, 7, b"one")
        assert to.receive(LENGTH, 0) == (two.domid, 99, 7, b"two")
        assert to.unregister(5, one.domid) == 0
        assert one.send(to.domid, 5, b"again") == 5
        assert to.receive(LENGTH, 0) == (one.domid, 99, 7, b"again")

    def test_across_pages_and_the_end(self, argo: Make) -> None:
        guest, length = argo(), 3 * 4096 - INDEXES
        assert guest.register(5, length) == 0
        for size in (4096, 5000, 4097, 7, 0, 6000):
            data = bytes(i * 7 & 0xFF for i in range(size))
            assert guest.send(guest.domid, 5, data[:100], data[100:]) == size
            assert guest.receive(length) == (guest.domid, 99, 7, data)

    def test_a_bad_piece_leaves_no_message(self, argo: Make) -> None:
        guest = argo()
        assert guest.register(5, LENGTH) == 0
        to = abi.xen_argo_send_addr_t(
            abi.xen_argo_addr_t(9, ANY), abi.xen_argo_addr_t(5, guest.domid)
        )
        good = abi.xen_argo_iov_t(guest.guest.place(b"good"), 4)
        for bad in (0, 0xD000_0000, 1024 * 4096 - 8, 1 << 47):
            assert guest.send_iovs(to, [good, abi.xen_argo_iov_t(bad, 64)]) == EFAULT
            assert guest.indexes() == (0, 0)
        assert not guest.signalled()
        assert guest.send(guest.domid, 5, b"good") == 4
        assert guest.receive(LENGTH) == (guest.domid, 99, 7, b"good")

    def test_full(self, argo: Make) -> None:
        guest, other = argo(), argo()
        assert other.register(5, 64) == 0
        assert guest.send(other.domid, 5, bytes(49)) == EMSGSIZE
        assert guest.send(other.domid, 5, bytes(48)) == EMSGSIZE
        assert guest.send(other.domid, 5, bytes(33)) == EMSGSIZE
        assert guest.send(other.domid, 5, bytes(32)) == 32
        assert guest.send(other.domid, 5, b"") == EAGAIN
        # One slot always stays free.
        assert other.receive(64) is not None
        assert guest.send(other.domid, 5, bytes(16)) == 16
        assert guest.send(other.domid, 5, b"") == 0
        assert guest.send(other.domid, 5, b"") == EAGAIN


class TestHostileIndexes:
    @pytest.mark.parametrize("rx", [0, 1, 15, 16, 63, 64, 65, 0x7FFF_FFFF, 1 << 31, 0xFFFF_FFFF])
    def test_rx_ptr(self, argo: Make, rx: int) -> None:
        guest = argo()
        assert guest.register(5, 64) == 0
        guest.set_rx(rx)
        taken = (rx + 15 & ~15) if rx <= 48 else 0
        free = taken or 64
        answer = 0 if free > 16 else EAGAIN
        assert guest.send(guest.domid, 5, b"") == answer
        assert guest.indexes() == (rx, 16 if not answer else 0)

    def test_tx_ptr_is_not_believed(self, argo: Make) -> None:
        guest = argo()
        assert guest.register(5, LENGTH) == 0
        for wild in (1, LENGTH, 0x7FFF_FFF0, 0xFFFF_FFFF):
            guest.set_tx(wild)
            before = guest.indexes()[0]
            assert guest.send(guest.domid, 5, b"data") == 4
            assert guest.indexes() == (before, before + 32)
            assert guest.receive(LENGTH) == (guest.domid, 99, 7, b"data")

    def test_ring_over_its_own_indexes(self, argo: Make) -> None:
        """All pages of the ring are one: messages overwrite the indexes, and only those."""
        guest = argo()
        length = 4 * 4096 - INDEXES
        assert guest.register_pages(5, length, ANY, [RING] * 4) == 0
        for size in (4000, 3000, 5000, 16, 8000):
            assert guest.send(guest.domid, 5, b"\xff" * size) in (size, EAGAIN)
        assert guest.guest.read32((RING + 1) << 12) == 0

    def test_ring_in_shared_info(self, argo: Make) -> None:
        guest = argo()
        domain, gfn = guest.guest.domain, 0x5000
        domain.physmap.set(gfn, domain.shared_info.frame, P2mType.XENHEAP)
        assert guest.register_pages(5, LENGTH, ANY, [gfn]) == 0
        assert guest.send(guest.domid, 5, b"mine anyway") == 11


class TestNotify:
    def test_order_of_checks(self, one: ArgoGuest) -> None:
        op = abi.XEN_ARGO_OP_notify
        for extra in ((1, 0, 0), (0, 1, 0), (0, 0, 1)):
            assert one.call(op, 0, *extra) == EINVAL
        assert one.call(op, 0, 0, 0, 0) == 0
        assert one.call(op, 0x100, 0, 0, 0) == EFAULT
        for count, answer in ((0, 0), (256, EFAULT), (257, EACCES)):
            head = abi.xen_argo_ring_data_t(count).pack()
            end = 1024 * 4096
            one.guest.domain.memory.write(end - 8, head)
            assert one.call(op, end - 8, 0, 0, 0) == answer

    def test_flags(self, one: ArgoGuest, argo: Make, guests: Callable[..., Any]) -> None:
        other, off = argo(), guests()
        largest = LENGTH - HEADER - 16
        assert other.register(1, LENGTH, one.domid, slot=0) == 0
        assert other.register(2, LENGTH, slot=1) == 0
        me = other.domid
        asked = [
            (me, 1, 0), (me, 1, largest), (me, 1, largest + 1), (me, 2, 0), (me, 3, 0),
            (off.domain.domid, 1, 0), (4444, 1, 0), (0, 1, 0),
        ]  # fmt: skip
        nothing = (0, 0xFFFF_FFFF)
        assert one.notify(*asked) == (
            0,
            [
                (EXISTS | EMPTY | SUFFICIENT, largest),
                (EXISTS | EMPTY | SUFFICIENT, largest),
                (EXISTS | EMPTY | TOO_BIG, largest),
                (EXISTS | EMPTY | SUFFICIENT | SHARED, largest),
                *[nothing] * 4,
            ],
        )
        assert one.send(me, 1, bytes(100)) == 100
        left = largest - 112 - HEADER
        assert one.notify((me, 1, left), (me, 1, left + 1)) == (
            0,
            [(EXISTS | SUFFICIENT, largest), (EXISTS, largest)],
        )

    def test_a_bad_entry_ends_it(self, argo: Make) -> None:
        guest = argo()
        assert guest.register(1, LENGTH) == 0
        kind = abi.xen_argo_ring_data_ent_t
        end = 1024 * 4096
        data = abi.xen_argo_ring_data_t(3).pack()
        data += kind(abi.xen_argo_addr_t(1, guest.domid)).pack() * 2
        guest.guest.domain.memory.write(end - len(data), data)
        assert guest.call(abi.XEN_ARGO_OP_notify, end - len(data), 0, 0, 0) == EFAULT
        last = guest.guest.get(end - kind.sizeof(), kind)
        assert last.flags == EXISTS | SHARED | EMPTY | SUFFICIENT


class TestWaiting:
    def test_who_was_told_to_come_again_is_called(self, argo: Make) -> None:
        reader, sender = argo(), argo()
        assert reader.register(1, 128) == 0
        assert sender.send(reader.domid, 1, bytes(80)) == 80
        assert sender.send(reader.domid, 1, bytes(64)) == EAGAIN
        assert sender.send(reader.domid, 1, bytes(16)) == EAGAIN
        assert reader.notify() == (0, [])
        assert not sender.signalled()
        assert reader.receive(128) is not None
        assert not sender.signalled()
        assert reader.notify() == (0, [])
        assert sender.signalled()
        # Once.
        assert reader.notify() == (0, [])
        assert not sender.signalled()

    def test_the_largest_wish_counts(self, argo: Make) -> None:
        reader, sender = argo(), argo()
        assert reader.register(1, 128) == 0
        for size in (0, 64):
            assert sender.send(reader.domid, 1, bytes(size)) == size
        for wish in (32, 64, 48):
            assert sender.send(reader.domid, 1, bytes(wish)) == EAGAIN
        assert reader.receive(128) is not None
        reader.notify()
        assert not sender.signalled()
        assert reader.receive(128) is not None
        reader.notify()
        assert sender.signalled()

    def test_room_for_a_header_is_no_room(self, argo: Make) -> None:
        reader, sender = argo(), argo()
        assert reader.register(1, 64) == 0
        assert sender.send(reader.domid, 1, bytes(32)) == 32
        assert sender.send(reader.domid, 1, b"") == EAGAIN
        reader.notify()
        assert not sender.signalled()
        assert reader.receive(64) is not None
        reader.notify()
        assert sender.signalled()

    def test_asking_queues_and_cancels(self, argo: Make) -> None:
        reader, sender = argo(), argo()
        assert reader.register(1, 128, sender.domid) == 0
        assert sender.send(reader.domid, 1, bytes(80)) == 80
        assert sender.notify((reader.domid, 1, 90))[1] == [(EXISTS, 96)]
        assert sender.notify((reader.domid, 1, 0))[1] == [(EXISTS | SUFFICIENT, 96)]
        assert reader.receive(128) is not None
        reader.notify()
        assert not sender.signalled()

    def test_too_many(self, argo: Make) -> None:
        reader, first, last = argo(), argo(), argo()
        assert reader.register(1, 64) == 0
        assert last.send(reader.domid, 1, bytes(32)) == 32
        assert first.send(reader.domid, 1, bytes(16)) == EAGAIN
        ring = reader.guest.domain.argo.find(1, first.domid)
        # More domains than fit into a test: they are gone when they are to be told.
        ring.pending |= {4000 + i: 16 for i in range(MAX_PENDING_PER_RING - 1)}
        assert last.send(reader.domid, 1, bytes(16)) == EBUSY
        assert last.notify((reader.domid, 1, 16))[1] == [(EXISTS | SHARED | BUSY, 32)]
        assert first.send(reader.domid, 1, bytes(16)) == EAGAIN
        first.guest.domain.destroy()
        assert last.send(reader.domid, 1, bytes(16)) == EAGAIN
        assert reader.receive(64) is not None
        reader.notify()
        assert last.signalled()
        assert not ring.pending

    def test_a_ring_that_ends_calls_nobody(self, argo: Make) -> None:
        reader, sender = argo(), argo()
        assert reader.register(1, 64) == 0
        assert sender.send(reader.domid, 1, bytes(32)) == 32
        assert sender.send(reader.domid, 1, bytes(32)) == EAGAIN
        assert reader.unregister(1) == 0
        reader.notify()
        assert not sender.signalled()
        assert sender.send(reader.domid, 1, b"") == ECONNREFUSED

    def test_registering_again_keeps_who_waits(self, argo: Make) -> None:
        reader, sender = argo(), argo()
        assert reader.register(1, 64) == 0
        assert sender.send(reader.domid, 1, bytes(32)) == 32
        assert sender.send(reader.domid, 1, bytes(32)) == EAGAIN
        assert reader.register(1, 64, slot=1) == 0
        reader.notify()
        assert sender.signalled()


class TestEndOfADomain:
    def test_of_the_reader(self, argo: Make) -> None:
        reader, sender = argo(), argo()
        assert reader.register(1, LENGTH) == 0
        assert sender.send(reader.domid, 1, b"x") == 1
        reader.guest.domain.destroy()
        assert sender.send(reader.domid, 1, b"x") == ESRCH

    def test_of_the_only_sender(self, argo: Make) -> None:
        reader, sender, other = argo(), argo(), argo()
        assert reader.register(1, LENGTH, sender.domid, slot=0) == 0
        assert reader.register(1, LENGTH, slot=1) == 0
        sender.guest.domain.destroy()
        assert reader.unregister(1, sender.domid) == ENOENT
        assert other.send(reader.domid, 1, b"x") == 1
        assert reader.guest.host.frames.references(reader.guest.domain.physmap.lookup(RING)[0]) == 0

    def test_nobody_waits_any_more(self, argo: Make) -> None:
        reader, sender = argo(), argo()
        assert reader.register(1, 64) == 0
        assert sender.send(reader.domid, 1, bytes(32)) == 32
        assert sender.send(reader.domid, 1, bytes(32)) == EAGAIN
        sender.guest.domain.destroy()
        assert reader.receive(64) is not None
        assert reader.notify() == (0, [])
