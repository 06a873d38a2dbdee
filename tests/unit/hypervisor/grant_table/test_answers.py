"""HYPERVISOR_grant_table_op: the answers recorded from real Xen 4.17, and questions of their kind.

Cannot see: what a real CPU still uses of a mapping that went (the fake engine only says so).
"""

from __future__ import annotations

from typing import Any

import pytest

from hvmlite.abi import grant_table as abi
from hvmlite.abi.xen import DOMID_SELF

HOLE = 0xD0000
PAGE_A = 0x200
PAGE_B = 0x201
HOST_RO = abi.GNTMAP_host_map | abi.GNTMAP_readonly
ONES = 0xFFFFFFFF
NULL = 0
UNMAPPED = 0xFFFF_8000_0000_0000


class TestTable:
    def test_query_size(self, grants: Any) -> None:
        assert grants.place(63, HOLE) == 0
        arg = abi.gnttab_query_size(DOMID_SELF)
        result, arg = grants.one(abi.GNTTABOP_query_size, arg)
        assert (result, arg.status, arg.nr_frames, arg.max_nr_frames) == (0, 0, 64, 64)
        for domid, status in ((4444, -2), (0, -8)):
            arg = abi.gnttab_query_size(domid)
            assert grants.one(abi.GNTTABOP_query_size, arg)[1].status == status

    def test_get_version(self, grants: Any) -> None:
        result, arg = grants.one(abi.GNTTABOP_get_version, abi.gnttab_get_version(DOMID_SELF))
        assert (result, arg.version) == (0, 1)
        for domid, result in ((4444, -3), (0, -1)):
            arg = abi.gnttab_get_version(domid)
            assert grants.one(abi.GNTTABOP_get_version, arg)[0] == result

    def test_setup_table(self, grants: Any) -> None:
        guest, word = grants.guest, grants.guest.abi.word
        frames = guest.place(bytes(64 * word))

        def setup(count: int, domid: int = DOMID_SELF, at: int = frames) -> int:
            arg = abi.gnttab_setup_table(domid, count, 77, at)
            result, arg = grants.one(abi.GNTTABOP_setup_table, arg)
            assert result == 0
            return int(arg.status)

        assert setup(64) == 0
        data = guest.domain.memory.read(frames, 3 * word)
        values = [int.from_bytes(data[i : i + word], "little") for i in range(0, 3 * word, word)]
        assert values == [0xE0000, 0xE0001, (1 << 8 * word) - 1]
        assert setup(65) == -1
        assert setup(0, 4444) == -2
        assert setup(0, 0) == -8
        assert setup(1, at=NULL) == -5
        assert setup(0, at=NULL) == 0

    def test_initial_entries(self, grants: Any) -> None:
        assert [grants.flags(ref) for ref in range(600)] == [0] * 600

    def test_set_version(self, grants: Any) -> None:
        assert grants.set_version(2) == (0, 2)
        assert grants.set_version(2) == (0, 2)
        assert grants.set_version(1) == (0, 1)
        assert grants.set_version(3) == (-22, 1)
        assert grants.set_version(0) == (-22, 1)

    def test_reserved_entries_survive(self, grants: Any) -> None:
        table = grants.guest.domain.grants
        table.set_reserved(abi.GNTTAB_RESERVED_CONSOLE, 0, 0xFEFFF)
        table.set_reserved(abi.GNTTAB_RESERVED_XENSTORE, 0, 0xFEFFC)
        grants.entry(8, abi.GTF_permit_access, 0, 1)
        assert grants.set_version(2) == (0, 2)
        assert [grants.flags(ref) for ref in (0, 1, 8)] == [1, 1, 0]
        assert table.entries.read(1).gfn == 0xFEFFC
        assert grants.set_version(1) == (0, 1)
        assert [grants.flags(ref) for ref in (0, 1, 8)] == [1, 1, 0]
        assert table.entries.read(0).gfn == 0xFEFFF
        with pytest.raises(ValueError, match="8 is not reserved"):
            table.set_reserved(8, 0, 1)

    def test_only_version_one(self, granting: Any) -> None:
        assert granting(max_grant_version=1).set_version(2) == (-38, 1)

    def test_swap(self, grants: Any) -> None:
        def swap(a: int, b: int) -> int:
            result, arg = grants.one(
                abi.GNTTABOP_swap_grant_ref, abi.gnttab_swap_grant_ref(a, b, 77)
            )
            assert result == 0
            return int(arg.status)

        grants.entry(8, abi.GTF_permit_access, 5, PAGE_A)
        grants.entry(600, abi.GTF_permit_access, grants.domid, PAGE_B)
        assert swap(8, 8) == 0
        assert swap(8, 600) == 0
        assert grants.guest.domain.grants.entries.read(600).domid == 5
        assert swap(8, 1024) == -3
        assert swap(1024, 8) == -3
        handle = grants.map(8, HOLE).handle
        assert swap(8, 600) == -12
        assert swap(600, 8) == -12
        assert grants.unmap(handle, HOLE) == 0
        assert swap(600, 8) == 0


class TestMap:
    """gnttab.map.* and gnttab.unmap.*"""

    def test_own(self, grants: Any) -> None:
        guest = grants.guest
        guest.write32(PAGE_A << 12, 0x12121212)
        grants.entry(8, abi.GTF_permit_access, grants.domid, PAGE_A)
        assert grants.map(8, HOLE, dom=DOMID_SELF).status == -2
        first = grants.map(8, HOLE)
        assert (first.status, first.handle) == (0, 0)
        assert guest.read32(HOLE << 12) == 0x12121212
        # The page has left its first place.
        assert guest.read32(PAGE_A << 12) == ONES
        second = grants.map(8, HOLE + 1)
        assert (second.status, second.handle, grants.flags(8)) == (0, 1, 0x19)
        assert second.dev_bus_addr == first.dev_bus_addr
        assert grants.unmap(0, HOLE) == 0
        assert grants.flags(8) == 0x19
        assert grants.unmap(1, HOLE + 1) == 0
        assert grants.flags(8) == 1
        assert guest.read32(HOLE << 12) == ONES
        # It still counts as the guest's.
        assert guest.domain.total_pages == 1024

    def test_handles_go_round(self, grants: Any) -> None:
        grants.entry(8, abi.GTF_permit_access, grants.domid, PAGE_A)
        handles = [grants.map(8, HOLE + i).handle for i in range(3)]
        assert handles == [0, 1, 2]
        # A failed one takes a handle and gives it back too; the oldest comes first.
        assert grants.map(9, HOLE + 5).status == -1
        assert grants.unmap(1, HOLE + 1) == 0
        assert grants.map(8, HOLE + 1).handle == 4

    def test_read_only(self, grants: Any) -> None:
        grants.entry(8, abi.GTF_permit_access | abi.GTF_readonly, grants.domid, PAGE_A)
        assert grants.map(8, HOLE).status == -1
        assert grants.flags(8) == 5
        mapped = grants.map(8, HOLE, HOST_RO)
        assert (mapped.status, grants.flags(8)) == (0, 0xD)
        assert grants.map(8, HOLE + 1).status == -1
        assert not grants.guest.write32(HOLE << 12, 1)
        assert grants.unmap(mapped.handle, HOLE) == 0
        assert grants.flags(8) == 5

    def test_both_ways(self, grants: Any) -> None:
        grants.entry(8, abi.GTF_permit_access, grants.domid, PAGE_A)
        reader = grants.map(8, HOLE, HOST_RO).handle
        assert grants.flags(8) == 9
        writer = grants.map(8, HOLE + 1).handle
        assert grants.flags(8) == 0x19
        assert grants.unmap(writer, HOLE + 1) == 0
        assert grants.flags(8) == 9
        assert grants.unmap(reader, HOLE) == 0
        assert grants.flags(8) == 1

    @pytest.mark.parametrize(
        ("flags", "domid", "status"),
        [
            (abi.GTF_permit_access, 4444, -1),
            (abi.GTF_invalid, -1, -1),
            (abi.GTF_accept_transfer, -1, -1),
            (abi.GTF_permit_access | abi.GTF_sub_page, -1, -1),
        ],
    )
    def test_not_granted(self, grants: Any, flags: int, domid: int, status: int) -> None:
        grants.entry(8, flags, grants.domid if domid < 0 else domid, PAGE_A)
        assert grants.map(8, HOLE).status == status
        assert grants.flags(8) == flags

    def test_refused(self, grants: Any) -> None:
        grants.entry(8, abi.GTF_permit_access, grants.domid, PAGE_A)
        assert grants.map(8, HOLE, 0).status == -3
        assert grants.map(8, HOLE, abi.GNTMAP_readonly).status == -3
        assert grants.map(8, HOLE, abi.GNTMAP_host_map | abi.GNTMAP_device_map).status == -1
        assert grants.map(8, HOLE, abi.GNTMAP_host_map | abi.GNTMAP_contains_pte).status == -1
        assert grants.map(8, HOLE, abi.GNTMAP_host_map | 1 << 16).status == -1
        assert grants.map(8, HOLE, dom=0).status == -1
        assert grants.map(600, HOLE, dom=0).status == -3
        assert grants.map(8, HOLE, dom=4444).status == -2
        assert grants.map(1024, HOLE).status == -3
        assert grants.map(8, 1 << 40).status == -1
        assert grants.flags(8) == 1
        grants.entry(9, abi.GTF_permit_access, grants.domid, HOLE + 99)
        assert grants.map(9, HOLE).status == -9
        assert grants.flags(9) == 1

    def test_over_ram(self, grants: Any) -> None:
        guest = grants.guest
        grants.entry(8, abi.GTF_permit_access, grants.domid, PAGE_A)
        handle = grants.map(8, PAGE_B).handle
        assert grants.unmap(handle, PAGE_B) == 0
        assert guest.read32(PAGE_B << 12) == ONES
        assert guest.domain.total_pages == 1024

    def test_over_its_own_page(self, grants: Any) -> None:
        grants.entry(8, abi.GTF_permit_access, grants.domid, PAGE_A)
        handle = grants.map(8, PAGE_A).handle
        assert grants.guest.read32(PAGE_A << 12) == 0
        assert grants.unmap(handle, PAGE_A) == 0
        assert grants.guest.read32(PAGE_A << 12) == ONES

    def test_over_a_grant(self, grants: Any) -> None:
        grants.entry(8, abi.GTF_permit_access, grants.domid, PAGE_A)
        grants.map(8, HOLE)
        assert grants.map(8, HOLE).status == -1
        assert "a grant mapping was to be replaced" in grants.guest.domain.crash_info.reason

    def test_unaligned(self, grants: Any) -> None:
        grants.entry(8, abi.GTF_permit_access, grants.domid, PAGE_A)
        arg = abi.gnttab_map_grant_ref(HOLE << 12 | 0x123, 2, 8, grants.domid)
        arg = grants.one(abi.GNTTABOP_map_grant_ref, arg)[1]
        assert (arg.status, grants.flags(8)) == (0, 0x19)
        assert grants.guest.read32(HOLE << 12) == 0

    def test_unmap_refused(self, grants: Any) -> None:
        grants.entry(8, abi.GTF_permit_access, grants.domid, PAGE_A)
        mapped = grants.map(8, HOLE)
        assert grants.unmap(7, HOLE) == -4
        assert grants.unmap(1 << 31, HOLE) == -4
        assert grants.unmap(mapped.handle, HOLE + 1) == -1
        assert grants.unmap(mapped.handle, PAGE_B) == -1
        assert grants.unmap(mapped.handle, HOLE, mapped.dev_bus_addr + 4096) == -1
        # Without an address there is nothing to unmap, which is no error.
        assert grants.unmap(mapped.handle, 0) == 0
        assert grants.flags(8) == 0x19
        assert grants.unmap(mapped.handle, HOLE, mapped.dev_bus_addr) == 0
        assert grants.unmap(mapped.handle, HOLE) == -4

    def test_too_often(self, grants: Any) -> None:
        grants.entry(8, abi.GTF_permit_access, grants.domid, PAGE_A)
        for i in range(128):
            assert grants.map(8, HOLE + i).status == 0
        assert grants.map(8, HOLE + 128).status == -1
        assert grants.map(8, HOLE + 128, HOST_RO).status == 0

    def test_no_handles(self, granting: Any) -> None:
        grants = granting(max_maptrack_frames=1)
        for ref in (8, 9, 10):
            grants.entry(ref, abi.GTF_permit_access, grants.domid, 0x200 + ref)
        statuses = [grants.map(8 + i // 120, HOLE + i).status for i in range(258)]
        # One of the 256 always stays in the list.
        assert statuses == [0] * 255 + [-13] * 3
        assert grants.unmap(17, HOLE + 17) == 0
        assert grants.map(10, HOLE + 300).status == 0


class TestCopy:
    """gnttab.copy.*: bytes 0, 1, 2… lie in PAGE_A, which reference 8 grants."""

    @pytest.fixture
    def grants(self, grants: Any) -> Any:
        for i in range(0, 4096, 4):
            value = int.from_bytes(bytes((i + k) & 0xFF for k in range(4)), "little")
            grants.guest.write32((PAGE_A << 12) + i, value)
        grants.entry(8, abi.GTF_permit_access, grants.domid, PAGE_A)
        grants.entry(9, abi.GTF_permit_access | abi.GTF_readonly, grants.domid, PAGE_B)
        grants.entry(10, abi.GTF_permit_access, grants.domid, PAGE_B)
        return grants

    def check(self, grants: Any) -> int:
        return int(grants.guest.read32(PAGE_B << 12))

    def test_good(self, grants: Any) -> None:
        ways = [
            (("gfn", PAGE_A, 0), ("gfn", PAGE_B, 0)),
            (("ref", 8, 0), ("gfn", PAGE_B, 0)),
            (("gfn", PAGE_A, 0), ("ref", 10, 0)),
            (("ref", 8, 0), ("ref", 10, 0)),
            (("ref", 8, 0), ("ref", 8, 512)),
        ]
        for source, dest in ways:
            grants.guest.write32(PAGE_B << 12, 0)
            assert grants.copy(source, dest, 64) == 0
            assert self.check(grants) == (0x03020100 if dest[1] != 8 else 0)
            assert [grants.flags(ref) for ref in (8, 9, 10)] == [1, 5, 1]
        assert grants.copy(("ref", 8, 3), ("ref", 10, 1), 2) == 0
        assert self.check(grants) & 0xFFFFFF == 0x040300

    @pytest.mark.parametrize(
        ("source", "dest", "size", "status"),
        [
            (("gfn", PAGE_A, 0), ("ref", 9, 0), 4, -1),
            (("ref", 8, 0), ("gfn", PAGE_B, 0), 0, 0),
            (("ref", 8, 0), ("gfn", PAGE_B, 4093), 4, -10),
            (("ref", 8, 4093), ("gfn", PAGE_B, 0), 4, -10),
            (("ref", 8, 4096), ("gfn", PAGE_B, 4096), 0, 0),
            (("ref", 8, 4096), ("gfn", PAGE_B, 0), 1, -10),
            (("ref", 8, 0), ("gfn", PAGE_B, 0), 4097, -10),
            (("ref", 8, 0xFFFF), ("gfn", PAGE_B, 0), 0xFFFF, -10),
            (("ref", 5000, 0), ("gfn", PAGE_B, 0), 4, -3),
            (("ref", 11, 0), ("gfn", PAGE_B, 0), 4, -1),
            (("gfn", HOLE, 0), ("gfn", PAGE_B, 0), 4, -9),
            (("gfn", PAGE_A, 0), ("gfn", HOLE, 0), 4, -9),
        ],
    )
    def test_refused(self, grants: Any, source: Any, dest: Any, size: int, status: int) -> None:
        assert grants.copy(source, dest, size) == status
        assert self.check(grants) == 0
        assert [grants.flags(ref) for ref in (8, 9)] == [1, 5]

    @pytest.mark.parametrize(
        ("domids", "status"),
        [
            ((0, DOMID_SELF), -1),
            ((4444, DOMID_SELF), -2),
            ((DOMID_SELF, 4444), -2),
            ((DOMID_SELF, 0), -1),
        ],
    )
    def test_domains(self, grants: Any, domids: tuple[int, int], status: int) -> None:
        assert grants.copy(("ref", 8, 0), ("ref", 10, 0), 4, domids) == status

    def test_frames_of_others(self, grants: Any) -> None:
        # Frames can be named of one's own only, and only by DOMID_SELF.
        for domid in (0, 4444, grants.domid):
            assert grants.copy(("gfn", PAGE_A, 0), ("gfn", PAGE_B, 0), 4, (domid, 0x7FF0)) == -8
            assert grants.copy(("ref", 8, 0), ("gfn", PAGE_B, 0), 4, (0x7FF0, domid)) == -8
        own = (grants.domid, grants.domid)
        assert grants.copy(("ref", 8, 0), ("ref", 10, 0), 4, own) == 0
        assert grants.copy(("ref", 999, 0), ("gfn", PAGE_B, 0), 4, (0, DOMID_SELF)) == -3

    def test_unknown_flags(self, grants: Any) -> None:
        assert grants.copy(("ref", 8, 0), ("ref", 10, 0), 4, flags=0xFFFC) == 0

    def test_through_a_read_only_mapping(self, grants: Any) -> None:
        grants.map(9, HOLE, HOST_RO)
        assert grants.copy(("gfn", HOLE, 0), ("gfn", PAGE_A, 0), 4) == 0
        assert grants.copy(("gfn", PAGE_A, 0), ("gfn", HOLE, 0), 4) == -9

    def test_into_the_table(self, grants: Any) -> None:
        # Xen's own pages count as memory of the guest that may write them.
        assert grants.copy(("gfn", PAGE_A, 0), ("gfn", 0xE0001, 0), 8) == 0
        assert grants.flags(512) == 0x0100


# gnttab.op.N.null, gnttab.op.N.count0, and the others of their kind.
NULL_ANSWERS = {
    0: -14, 1: -14, 2: -14, 3: -38, 4: -38, 5: -14, 6: -14, 7: -38, 8: -14, 9: -38, 10: -14,
    11: -14, 12: -38, 13: -38, 15: -38, 99: -38,
}  # fmt: skip
COUNT_0_ANSWERS = {
    0: 0, 1: 0, 2: -22, 3: -38, 4: -38, 5: 0, 6: -22, 7: -38, 9: -38, 11: 0, 12: -38, 13: -38,
}  # fmt: skip


@pytest.mark.parametrize("address", [NULL, UNMAPPED], ids=["null", "unmapped"])
def test_bad_pointers(granting: Any, address: int) -> None:
    grants = granting()
    assert {number: grants.op(number, address) for number in NULL_ANSWERS} == NULL_ANSWERS


def test_counts(grants: Any) -> None:
    address = grants.guest.place(bytes(64))
    answers = {number: grants.op(number, address, 0) for number in COUNT_0_ANSWERS}
    expected = dict(COUNT_0_ANSWERS)
    if grants.guest.abi:
        # The 32-bit entry of real Xen loops over setup_table too.
        expected[2] = 0
    assert answers == expected
    assert grants.op(8, address, 0) == -22
    for number in (0, 1, 2, 5, 6, 8, 10, 11):
        assert grants.op(number, address, 0xFFFFFFFF) == -22
    assert grants.op(12, address, 0xFFFFFFFF) == -38
    assert grants.op(2, address, 2) == -22
    assert grants.op(1 << 12, address) == -38
    assert grants.guest.hypercall(20, -1, -1, -1, -1, -1) == -38


def test_done_until_the_fault(grants: Any) -> None:
    grants.entry(8, abi.GTF_permit_access, grants.domid, PAGE_A)
    size = abi.gnttab_map_grant_ref.sizeof(grants.guest.abi)
    end = 1024 * 4096
    for i in range(2):
        op = abi.gnttab_map_grant_ref((HOLE + i) << 12, 2, 8, grants.domid)
        grants.guest.domain.memory.write(end - (2 - i) * size, op.pack(grants.guest.abi))
    assert grants.op(0, end - 2 * size, 3) == -14
    assert grants.guest.read32(HOLE << 12) == grants.guest.read32((HOLE + 1) << 12) == 0
    for i in range(2):
        op = abi.gnttab_unmap_grant_ref((HOLE + i) << 12, 0, i)
        size = op.sizeof(grants.guest.abi)
        grants.guest.domain.memory.write(end - (2 - i) * size, op.pack(grants.guest.abi))
    assert grants.op(1, end - 2 * size, 3) == -14
    assert grants.guest.read32(HOLE << 12) == ONES
    assert grants.flags(8) == 1


def test_slices(grants: Any) -> None:
    guest = grants.guest
    for ref in range(8, 18):
        grants.entry(ref, abi.GTF_permit_access, grants.domid, 0x200 + ref)
    ops = [
        abi.gnttab_map_grant_ref((HOLE + i) << 12, 2, 8 + i % 10, grants.domid) for i in range(600)
    ]
    address = guest.place(b"".join(op.pack(guest.abi) for op in ops))
    assert grants.op(0, address, 600) == 0
    assert guest.slices == 3
    assert {guest.read32((HOLE + i) << 12) for i in range(600)} == {0}
    size = ops[0].sizeof(guest.abi)
    handles = [guest.get(address + i * size, type(ops[0])).handle for i in range(600)]
    assert sorted(handles) == sorted({*range(601)} - {255})
    undo = [
        abi.gnttab_unmap_grant_ref((HOLE + i) << 12, 0, handle) for i, handle in enumerate(handles)
    ]
    address = guest.place(b"".join(op.pack(guest.abi) for op in undo))
    assert grants.op(1, address, 600) == 0
    assert {guest.read32((HOLE + i) << 12) for i in range(600)} == {ONES}
    assert grants.flags(8) == 1
