"""Version 2 of the grant table: status frames, parts of pages and transitive grants.

No recorded answers here: the rules are those of public/grant_table.h and of Xen 4.17's behaviour as
its source describes it.
"""

from __future__ import annotations

from typing import Any

import pytest

from hvmlite.abi import grant_table as abi
from hvmlite.abi import memory
from hvmlite.hypervisor.grant_table import GrantError
from hvmlite.hypervisor.memory import Page

HOLE = 0xD0000
PAGE_A = 0x200
PAGE_B = 0x201
STATUS_INDEX = memory.XENMAPIDX_grant_table_status
READING = abi.GTF_reading
WRITING = abi.GTF_writing


@pytest.fixture
def v2(grants: Any) -> Any:
    """A guest whose table is of version 2."""
    assert grants.set_version(2) == (0, 2)
    return grants


def sub_page(grants: Any, ref: int, gfn: int, offset: int, length: int, domid: int = -1) -> None:
    head = abi.grant_entry_header(
        abi.GTF_permit_access | abi.GTF_sub_page, grants.domid if domid < 0 else domid
    )
    grants.raw(ref, abi.grant_entry_v2_sub_page(head, offset, length, gfn))


def transitive(grants: Any, ref: int, domid: int, to_domid: int, to_ref: int) -> None:
    head = abi.grant_entry_header(abi.GTF_transitive, domid)
    grants.raw(ref, abi.grant_entry_v2_transitive(head, to_domid, 0, to_ref))


class TestStatusFrames:
    def test_marks(self, v2: Any) -> None:
        v2.entry(9, abi.GTF_permit_access, v2.domid, PAGE_A)
        reader = v2.map(9, HOLE, abi.GNTMAP_host_map | abi.GNTMAP_readonly).handle
        assert (v2.flags(9), v2.status(9), v2.status(8)) == (1, READING, 0)
        writer = v2.map(9, HOLE + 1).handle
        assert (v2.flags(9), v2.status(9)) == (1, READING | WRITING)
        assert v2.unmap(writer, HOLE + 1) == 0
        assert v2.status(9) == READING
        assert v2.unmap(reader, HOLE) == 0
        assert v2.status(9) == 0

    def test_size(self, v2: Any) -> None:
        table = v2.guest.domain.grants
        # 256 entries a frame, 2048 status words a frame.
        assert (len(table.frames), len(table.entries), len(table.status)) == (2, 512, 1)
        assert v2.map(512, HOLE).status == -3
        assert v2.place(9, HOLE) == 0
        assert (len(table.frames), len(table.status)) == (10, 2)
        # Asking for status frames makes the table grow for them.
        assert v2.place(7 | STATUS_INDEX, HOLE + 1) == 0
        assert (len(table.frames), len(table.status)) == (64, 8)
        assert v2.place(8 | STATUS_INDEX, HOLE + 2) == -22
        assert v2.place(64, HOLE + 2) == -22

    def test_back_to_version_1(self, v2: Any) -> None:
        domain = v2.guest.domain
        assert domain.physmap.lookup(0xE0100) is not None
        v2.entry(9, abi.GTF_permit_access, v2.domid, PAGE_A)
        handle = v2.map(9, HOLE).handle
        assert v2.set_version(1) == (-16, 2)
        assert v2.unmap(handle, HOLE) == 0
        assert v2.set_version(1) == (0, 1)
        assert domain.physmap.lookup(0xE0100) is None
        assert v2.flags(9) == 0
        assert v2.place(STATUS_INDEX, HOLE) == -22

    def test_reserved_in_use(self, v2: Any) -> None:
        # The console stays mapped while the guest changes the version.
        table = v2.guest.domain.grants
        table.set_reserved(0, 0, PAGE_A)
        with table.map_for_backend(0):
            assert v2.status(0) == READING | WRITING
            assert v2.set_version(1) == (0, 1)
            assert v2.flags(0) == 1 | READING | WRITING
            assert v2.set_version(2) == (0, 2)
            assert (v2.flags(0), v2.status(0)) == (1, READING | WRITING)
        assert v2.status(0) == 0

    def test_what_version_1_cannot_hold(self, v2: Any) -> None:
        head = abi.grant_entry_header(abi.GTF_permit_access, 0)
        v2.raw(2, abi.grant_entry_v2_full_page(head, 0, 1 << 32))
        assert v2.set_version(1) == (-34, 2)
        transitive(v2, 2, 0, 1, 8)
        assert v2.set_version(1) == (-34, 2)
        v2.entry(2, abi.GTF_accept_transfer, 5, 6)
        assert v2.set_version(1) == (0, 1)
        assert v2.flags(2) == 0

    def test_a_status_frame_in_use(self, v2: Any) -> None:
        # A guest may grant even its status frame; then it cannot go.
        v2.entry(9, abi.GTF_permit_access, 0, 0xE0100)
        v2.guest.domain.grants.frames[0].u8[0:16] = v2.guest.domain.grants.frames[0].u8[144:160]
        mapping = v2.guest.domain.grants.map_for_backend(0)
        assert v2.set_version(1) == (-16, 2)
        assert v2.guest.domain.crash_info is not None
        mapping.close()


class TestSubPage:
    def test_copy(self, v2: Any) -> None:
        v2.guest.write32((PAGE_A << 12) + 512, 0x11223344)
        sub_page(v2, 9, PAGE_A, 512, 64)
        assert v2.copy(("ref", 9, 512), ("gfn", PAGE_B, 0), 4) == 0
        assert v2.guest.read32(PAGE_B << 12) == 0x11223344
        assert v2.copy(("ref", 9, 512), ("gfn", PAGE_B, 0), 64) == 0
        assert v2.copy(("gfn", PAGE_B, 0), ("ref", 9, 512), 64) == 0
        assert v2.copy(("ref", 9, 511), ("gfn", PAGE_B, 0), 4) == -1
        assert v2.copy(("ref", 9, 512), ("gfn", PAGE_B, 0), 65) == -1
        assert v2.copy(("gfn", PAGE_B, 0), ("ref", 9, 576), 1) == -1
        assert v2.copy(("ref", 9, 512), ("gfn", PAGE_B, 4090), 60) == -10
        assert v2.status(9) == 0

    def test_no_mapping(self, v2: Any) -> None:
        sub_page(v2, 9, PAGE_A, 0, 4096)
        assert v2.map(9, HOLE).status == -1
        assert v2.status(9) == 0


class TestTransitive:
    @pytest.fixture
    def three(self, granting: Any) -> Any:
        """A grants B a page, B passes it on to C."""
        a, b, c = (granting() for _ in range(3))
        for each in (a, b, c):
            each.set_version(2)
        a.entry(9, abi.GTF_permit_access, b.domid, PAGE_A)
        transitive(b, 10, c.domid, a.domid, 9)
        a.guest.write32(PAGE_A << 12, 0xABCD)
        return a, b, c

    def test_copy(self, three: Any) -> None:
        a, b, c = three
        domids = (b.domid, 0x7FF0)
        assert c.copy(("ref", 10, 0), ("gfn", PAGE_B, 0), 4, domids) == 0
        assert c.guest.read32(PAGE_B << 12) == 0xABCD
        c.guest.write32(PAGE_B << 12, 0x1234)
        assert c.copy(("gfn", PAGE_B, 0), ("ref", 10, 0), 4, domids[::-1]) == 0
        assert a.guest.read32(PAGE_A << 12) == 0x1234
        # As both sides of one copy it is in use twice.
        assert c.copy(("ref", 10, 0), ("ref", 10, 64), 4, (b.domid, b.domid)) == 0
        assert a.guest.read32((PAGE_A << 12) + 64) == 0x1234
        assert (a.status(9), b.status(10)) == (0, 0)
        assert not a.guest.domain.grants.pins
        assert not b.guest.domain.grants.pins

    def test_refused(self, three: Any) -> None:
        a, b, c = three

        def copy() -> int:
            return int(c.copy(("ref", 10, 0), ("gfn", PAGE_B, 0), 4, (b.domid, 0x7FF0)))

        assert c.map(10, HOLE, dom=b.domid).status == -1
        transitive(b, 10, c.domid, b.domid, 9)
        assert copy() == -1
        transitive(b, 10, c.domid, 4444, 9)
        assert copy() == -1
        transitive(b, 10, c.domid, a.domid, 5000)
        assert copy() == -3
        # One step and no more.
        transitive(a, 11, b.domid, c.domid, 9)
        transitive(b, 10, c.domid, a.domid, 11)
        assert copy() == -1
        assert (a.status(9), a.status(11), b.status(10)) == (0, 0, 0)

    def test_a_backend_follows_it(self, three: Any) -> None:
        a, b, _c = three
        transitive(b, 10, 0, a.domid, 9)
        assert b.guest.domain.grants.read_grant(10, 0, 2) == b"\xcd\xab"
        with pytest.raises(GrantError, match="do not permit"):
            b.guest.domain.grants.map_for_backend(10)


class _Revoking(Page):
    __slots__ = ()
    table: Any

    def fetch_or8(self, index: int, mask: int) -> int:
        self.table.entry(9, abi.GTF_invalid, 0, 0)
        return super().fetch_or8(index, mask)


class _Redirecting(Page):
    __slots__ = ()
    calls: list[Any]

    def fetch_or8(self, index: int, mask: int) -> int:
        if type(self).calls:
            type(self).calls.pop(0)()
        return super().fetch_or8(index, mask)


class _Restricting(Page):
    __slots__ = ()
    table: Any

    def fetch_or8(self, index: int, mask: int) -> int:
        self.table.entry(9, abi.GTF_permit_access | abi.GTF_readonly, self.table.domid, PAGE_A)
        return super().fetch_or8(index, mask)


def test_changes_under_our_hands(v2: Any) -> None:
    # The guest revokes between our first look and our mark.
    v2.entry(9, abi.GTF_permit_access, v2.domid, PAGE_A)
    table = v2.guest.domain.grants
    page = table.status[0]
    page.__class__ = _Revoking
    _Revoking.table = v2
    assert v2.map(9, HOLE).status == -1
    assert v2.status(9) == 0


def test_turns_read_only_under_our_hands(v2: Any) -> None:
    v2.entry(9, abi.GTF_permit_access, v2.domid, PAGE_A)
    page = v2.guest.domain.grants.status[0]
    page.__class__ = _Restricting
    _Restricting.table = v2
    assert v2.map(9, HOLE).status == -1
    assert v2.status(9) == 0
    assert v2.map(9, HOLE, 6).status == 0


def test_led_elsewhere_between_both_sides(granting: Any) -> None:
    # B passes on a read-only page for the source, and a writable one for the destination.
    a, b, c = (granting() for _ in range(3))
    b.set_version(2)
    a.entry(9, abi.GTF_permit_access | abi.GTF_readonly, b.domid, PAGE_A)
    a.entry(12, abi.GTF_permit_access, b.domid, PAGE_B)
    a.guest.write32(PAGE_A << 12, 0x1111)
    transitive(b, 10, c.domid, a.domid, 9)
    b.guest.domain.grants.status[0].__class__ = _Redirecting
    _Redirecting.calls = [lambda: None, lambda: transitive(b, 10, c.domid, a.domid, 12)]
    assert c.copy(("ref", 10, 0), ("ref", 10, 512), 4, (b.domid, b.domid)) == -12
    assert a.guest.read32((PAGE_A << 12) + 512) == 0
    assert (a.flags(9), a.flags(12), b.status(10)) == (5, 1, 0)


def test_grantor_has_no_right_itself(granting: Any) -> None:
    # B has A's page read-only, and grants it on; then its own in the same entry.
    a, b, c = (granting() for _ in range(3))
    b.set_version(2)
    a.entry(9, abi.GTF_permit_access | abi.GTF_readonly, b.domid, PAGE_A)
    assert b.map(9, HOLE, 6, a.domid).status == 0
    b.entry(10, abi.GTF_permit_access, c.domid, HOLE)
    assert c.copy(("ref", 10, 0), ("gfn", PAGE_B, 0), 4, (b.domid, 0x7FF0)) == 0
    assert c.copy(("gfn", PAGE_B, 0), ("ref", 10, 0), 4, (0x7FF0, b.domid)) == -9
    b.guest.domain.grants.status[0].__class__ = _Redirecting
    _Redirecting.calls = [
        lambda: None,
        lambda: b.entry(10, abi.GTF_permit_access, c.domid, PAGE_B),
    ]
    assert c.copy(("ref", 10, 0), ("ref", 10, 512), 4, (b.domid, b.domid)) == -12
    assert a.guest.read32((PAGE_A << 12) + 512) == 0
    assert b.status(10) == 0
