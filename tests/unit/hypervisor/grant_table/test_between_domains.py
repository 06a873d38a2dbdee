"""Grants from one domain to another and to the backends in this process, and how they end.

Every host is checked for leaked frames when a test is over, and a frame that is freed while some
vCPU could still use it fails the test.  Cannot see: a guest that uses its mapping while it goes.
"""

from __future__ import annotations

from typing import Any

import pytest

from hvmlite.abi import grant_table as abi
from hvmlite.abi import memory
from hvmlite.abi.xen import DOMID_SELF
from hvmlite.hypervisor.grant_table import GrantError
from hvmlite.hypervisor.memory import Page
from hvmlite.hypervisor.physmap import P2mType

HOLE = 0xD0000
PAGE_A = 0x200
PAGE_B = 0x201


@pytest.fixture
def pair(granting: Any) -> Any:
    """A grants B reference 8, its page PAGE_A with 0xA5A5 in it."""
    a, b = granting(), granting()
    a.entry(8, abi.GTF_permit_access, b.domid, PAGE_A)
    a.guest.write32(PAGE_A << 12, 0xA5A5)
    return a, b


def decrease(grants: Any, gfn: int) -> int:
    guest = grants.guest
    arg = memory.xen_memory_reservation(guest.words(gfn), 1, 0, 0, DOMID_SELF)
    result: int = guest.hypercall(
        12, memory.XENMEM_decrease_reservation, guest.place(arg.pack(guest.abi))
    )
    return result


def frame(grants: Any, gfn: int) -> int:
    entry = grants.guest.domain.physmap.lookup(gfn)
    assert entry is not None
    return int(entry[0])


class TestBetweenGuests:
    def test_map(self, pair: Any) -> None:
        a, b = pair
        mapped = b.map(8, HOLE, dom=a.domid)
        assert (mapped.status, mapped.handle, a.flags(8)) == (0, 0, 0x19)
        assert b.guest.domain.physmap.lookup(HOLE) == (frame(a, PAGE_A), P2mType.GRANT_RW)
        assert b.guest.read32(HOLE << 12) == 0xA5A5
        # Another's page stays where it was.
        assert b.guest.write32(HOLE << 12, 0x5A5A)
        assert a.guest.read32(PAGE_A << 12) == 0x5A5A
        assert b.unmap(0, HOLE) == 0
        assert a.flags(8) == 1

    def test_not_for_the_third(self, pair: Any, granting: Any) -> None:
        a, b = pair
        c = granting()
        assert c.map(8, HOLE, dom=a.domid).status == -1
        assert a.map(8, HOLE).status == -1
        b.map(8, HOLE, dom=a.domid)
        # The guest may name another domain while it is mapped, to no avail.
        a.entry(8, 0x19, c.domid, PAGE_B)
        assert c.map(8, HOLE, dom=a.domid).status == -1
        assert b.map(8, HOLE + 1, dom=a.domid).status == 0
        assert b.guest.read32((HOLE + 1) << 12) == 0xA5A5

    def test_copy(self, pair: Any) -> None:
        a, b = pair
        assert b.copy(("ref", 8, 0), ("gfn", PAGE_B, 0), 4, (a.domid, DOMID_SELF)) == 0
        assert b.guest.read32(PAGE_B << 12) == 0xA5A5
        a.entry(8, abi.GTF_permit_access | abi.GTF_readonly, b.domid, PAGE_A)
        assert b.copy(("gfn", PAGE_B, 0), ("ref", 8, 0), 4, (DOMID_SELF, a.domid)) == -1
        assert a.flags(8) == 5

    def test_copy_through_a_mapping(self, pair: Any) -> None:
        a, b = pair
        b.map(8, HOLE, dom=a.domid)
        b.guest.write32(PAGE_B << 12, 0x77)
        assert b.copy(("gfn", PAGE_B, 0), ("gfn", HOLE, 4), 4) == 0
        assert a.guest.read32((PAGE_A << 12) + 4) == 0x77

    def test_not_to_be_passed_on(self, pair: Any, granting: Any) -> None:
        a, b = pair
        c = granting()
        b.map(8, HOLE, dom=a.domid)
        b.entry(8, abi.GTF_permit_access, c.domid, HOLE)
        assert c.map(8, HOLE, dom=b.domid).status == -1
        assert b.flags(8) == 1

    def test_the_page_is_freed_below_it(self, pair: Any) -> None:
        a, b = pair
        page, host = frame(a, PAGE_A), a.guest.host
        b.map(8, HOLE, dom=a.domid)
        assert decrease(a, PAGE_A) == 1
        # It is still the guest's as long as it is mapped, and cannot be anybody else's.
        assert a.guest.domain.total_pages == 1024
        assert host.frames.references(page) == 1
        assert b.guest.read32(HOLE << 12) == 0xA5A5
        assert b.unmap(0, HOLE) == 0
        assert a.guest.domain.total_pages == 1023
        assert host.frames.references(page) == 0

    def test_the_mapping_is_overwritten(self, pair: Any) -> None:
        a, b = pair
        b.map(8, HOLE, dom=a.domid)
        # What is not one's own cannot be freed; it can only be taken out, and stays in use.
        assert decrease(b, HOLE) == 0
        arg = memory.xen_remove_from_physmap(DOMID_SELF, HOLE)
        address = b.guest.place(arg.pack(b.guest.abi))
        assert b.guest.hypercall(12, memory.XENMEM_remove_from_physmap, address) == 0
        assert a.flags(8) == 0x19
        assert b.unmap(0, HOLE) == -1

    def test_the_grantor_ends_first(self, pair: Any) -> None:
        a, b = pair
        b.map(8, HOLE, dom=a.domid)
        a.guest.domain.destroy()
        assert b.guest.read32(HOLE << 12) == 0xA5A5
        assert b.map(8, HOLE + 1, dom=a.domid).status == -2
        assert b.unmap(0, HOLE) == 0
        assert b.guest.read32(HOLE << 12) == 0xFFFFFFFF

    def test_both_end(self, pair: Any) -> None:
        a, b = pair
        b.map(8, HOLE, dom=a.domid)
        a.guest.domain.destroy()
        b.guest.domain.destroy()

    def test_the_user_ends_first(self, pair: Any) -> None:
        a, b = pair
        b.map(8, HOLE, dom=a.domid)
        b.map(8, HOLE + 1, abi.GNTMAP_host_map | abi.GNTMAP_readonly, dom=a.domid)
        b.guest.domain.destroy()
        assert a.flags(8) == 1
        assert not a.guest.domain.grants.pins

    def test_its_own_page_twice_freed(self, granting: Any) -> None:
        a = granting()
        a.entry(8, abi.GTF_permit_access, a.domid, PAGE_A)
        assert [a.map(8, HOLE + i).status for i in range(3)] == [0, 0, 0]
        assert [decrease(a, HOLE + i) for i in range(2)] == [1, 1]
        assert a.guest.domain.total_pages == 1024
        assert [a.unmap(i, HOLE + i) for i in range(3)] == [-1, -1, 0]
        a.guest.domain.destroy()

    def test_a_page_of_xen(self, pair: Any) -> None:
        # Even shared_info and the table itself can be granted.
        a, b = pair
        a.entry(9, abi.GTF_permit_access, b.domid, 0xE0000)
        assert b.map(9, HOLE, dom=a.domid).status == 0
        assert b.guest.read32((HOLE << 12) + 72) & 0xFF == 0x19
        a.guest.domain.destroy()
        assert b.unmap(0, HOLE) == 0


class TestBackends:
    @pytest.fixture
    def grants(self, granting: Any) -> Any:
        grants = granting()
        grants.entry(8, abi.GTF_permit_access, 0, PAGE_A)
        grants.entry(9, abi.GTF_permit_access | abi.GTF_readonly, 0, PAGE_B)
        return grants

    def test_map(self, grants: Any) -> None:
        table = grants.guest.domain.grants
        mapping = table.map_for_backend(8)
        assert (mapping.gfn, mapping.page.frame) == (PAGE_A, frame(grants, PAGE_A))
        assert grants.flags(8) == 0x19
        mapping.write(4, b"abcd")
        assert grants.guest.read32((PAGE_A << 12) + 4) == int.from_bytes(b"abcd", "little")
        mapping.page.fetch_or32(0, 5)
        assert mapping.read(0, 8) == b"\x05\0\0\0abcd"
        with pytest.raises(GrantError, match="not in one page"):
            mapping.write(4095, b"ab")
        with pytest.raises(IndexError):
            mapping.read(4095, 2)
        mapping.close()
        mapping.close()
        assert grants.flags(8) == 1

    def test_read_only(self, grants: Any) -> None:
        table = grants.guest.domain.grants
        with pytest.raises(GrantError, match="read-only") as caught:
            table.map_for_backend(9)
        assert caught.value.status == abi.GNTST_general_error
        with table.map_for_backend(9, readonly=True) as mapping:
            assert grants.flags(9) == 0xD
            with pytest.raises(GrantError, match="read-only"):
                mapping.write(0, b"x")
        assert grants.flags(9) == 5
        with pytest.raises(GrantError):
            table.write_grant(9, 0, b"x")
        assert table.read_grant(9, 0, 1) == b"\0"

    def test_copies(self, grants: Any) -> None:
        table = grants.guest.domain.grants
        table.write_grant(8, 4090, b"123456")
        assert table.read_grant(8, 4090, 6) == b"123456"
        for offset, size in ((4090, 7), (-1, 2), (0, 4097)):
            with pytest.raises(GrantError, match="not in one page") as caught:
                table.read_grant(8, offset, size)
            assert caught.value.status == abi.GNTST_bad_copy_arg
        with pytest.raises(GrantError, match="no reference") as caught:
            table.read_grant(1024, 0, 1)
        assert caught.value.status == abi.GNTST_bad_gntref
        assert grants.flags(8) == 1

    def test_for_another_domain(self, grants: Any) -> None:
        table = grants.guest.domain.grants
        with pytest.raises(GrantError, match="do not permit"):
            table.map_for_backend(8, domid=3)
        grants.entry(10, abi.GTF_permit_access, 3, PAGE_A)
        with table.map_for_backend(10, domid=3), pytest.raises(GrantError):
            table.map_for_backend(10)

    def test_the_guest_ends_first(self, grants: Any) -> None:
        mapping = grants.guest.domain.grants.map_for_backend(8)
        assert decrease(grants, PAGE_A) == 1
        grants.guest.domain.destroy()
        mapping.write(0, b"still there")
        assert mapping.read(0, 11) == b"still there"
        mapping.close()

    def test_a_hole(self, grants: Any) -> None:
        grants.entry(10, abi.GTF_permit_access, 0, HOLE + 77)
        with pytest.raises(GrantError) as caught:
            grants.guest.domain.grants.map_for_backend(10)
        assert caught.value.status == abi.GNTST_bad_page
        assert grants.flags(10) == 1


class _Restless(Page):
    """A first table frame whose entry the guest changes before each of our attempts."""

    __slots__ = ()
    left: int

    def cmpxchg32(self, index: int, expected: int, new: int) -> int:
        if type(self).left:
            type(self).left -= 1
            self.u32[index] ^= 0x20
        return super().cmpxchg32(index, expected, new)


@pytest.mark.parametrize(("changes", "status"), [(0, 0), (4, 0), (5, -1)])
def test_an_unstable_entry(pair: Any, changes: int, status: int) -> None:
    a, b = pair
    a.guest.domain.grants.frames[0].__class__ = _Restless
    _Restless.left = changes
    assert b.map(8, HOLE, dom=a.domid).status == status
