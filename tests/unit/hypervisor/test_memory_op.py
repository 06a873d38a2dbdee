"""HYPERVISOR_memory_op: the answers recorded from real Xen 4.17, and what they leave open.

Cannot see: the nested tables of a real engine, and what a running CPU caches of them.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvmlite.abi import memory as abi
from hvmlite.abi.e820 import e820entry
from hvmlite.abi.layout import Abi
from hvmlite.abi.xen import DOMID_SELF
from hvmlite.hypervisor.hypercalls.memory_extents import SLICE
from hvmlite.hypervisor.physmap import P2mType

MEMORY_OP = 12
RAM = 1024
HOLE = 0xD0000
"""A guest frame with nothing behind it."""
UNMAPPED = 0xFFFF_8000_0000_0000
MAP = [(0, 0x8000000, 1), (0xFEFF8000, 0x8000, 2), (0xFC008000, 64, 3), (0xFC000000, 4096, 3)]

Guests = Callable[..., Any]


@pytest.fixture(params=[Abi.X86_64, Abi.X86_32], ids=["64", "32"])
def guest(request: pytest.FixtureRequest, guests: Guests) -> Any:
    return guests(abi=request.param)


def op(guest: Any, number: int, arg: Any = 0, start: int = 0) -> int:
    """The operation with a struct of its argument, or an address."""
    address = arg if isinstance(arg, int) else guest.place(arg.pack(guest.abi))
    result: int = guest.hypercall(MEMORY_OP, number | start << 6, address)
    return result


def extents(
    guest: Any, number: int, gfns: list[int], *, start: int = 0, count: int = -1, **fields: int
) -> int:
    """A reservation operation on a list of guest frames."""
    fields.setdefault("domid", DOMID_SELF)
    arg = abi.xen_memory_reservation(
        extent_start=guest.words(*gfns) if gfns else 0,
        nr_extents=len(gfns) if count < 0 else count,
        **fields,
    )
    return op(guest, number, arg, start)


def populate(guest: Any, *gfns: int, **fields: int) -> int:
    return extents(guest, abi.XENMEM_populate_physmap, list(gfns), **fields)


def decrease(guest: Any, *gfns: int, **fields: int) -> int:
    return extents(guest, abi.XENMEM_decrease_reservation, list(gfns), **fields)


def increase(guest: Any, count: int, **fields: int) -> int:
    return extents(guest, abi.XENMEM_increase_reservation, [], count=count, **fields)


def place(guest: Any, space: int, idx: int, gpfn: int, **fields: int) -> int:
    """XENMEM_add_to_physmap."""
    fields.setdefault("domid", DOMID_SELF)
    arg = abi.xen_add_to_physmap(space=space, idx=idx, gpfn=gpfn, **fields)
    return op(guest, abi.XENMEM_add_to_physmap, arg)


def remove(guest: Any, gfn: int, domid: int = DOMID_SELF) -> int:
    return op(guest, abi.XENMEM_remove_from_physmap, abi.xen_remove_from_physmap(domid, gfn))


def pages(guest: Any) -> int:
    return op(guest, abi.XENMEM_current_reservation, abi.xen_memory_domain(DOMID_SELF))


def batch(guest: Any, space: int, pairs: list[tuple[int, int]], **fields: Any) -> Any:
    """XENMEM_add_to_physmap_batch: the result and the errors."""
    errs = guest.place(b"\x55" * 4 * len(pairs))
    arg = abi.xen_add_to_physmap_batch(
        domid=fields.pop("domid", DOMID_SELF),
        space=space,
        size=len(pairs),
        idxs=guest.words(*(idx for idx, _ in pairs)),
        gpfns=guest.words(*(gpfn for _, gpfn in pairs)),
        errs=errs,
    )
    result = op(guest, abi.XENMEM_add_to_physmap_batch, arg, fields.pop("start", 0))
    data = guest.domain.memory.read(errs, 4 * len(pairs))
    return result, list(struct.unpack(f"<{len(pairs)}i", data))


class TestRecordedInOrder:
    """The recorded questions about the physmap, one after the other, as the guest asked them."""

    def test_all(self, guest: Any) -> None:
        total = pages(guest)
        assert total == RAM
        # mem.atp.shared_info.ram: RAM that was there is freed.
        assert place(guest, abi.XENMAPSPACE_shared_info, 0, 0x80) == 0
        assert guest.read32(0x80FFC) == 0
        assert pages(guest) == total - 1
        # It is at one place at a time.
        assert place(guest, abi.XENMAPSPACE_shared_info, 0, HOLE) == 0
        assert guest.read32(0x80000) == 0xFFFFFFFF
        # mem.populate.lost_page
        assert populate(guest, 0x80) == 1
        assert pages(guest) == total
        # mem.atp.*
        assert place(guest, abi.XENMAPSPACE_grant_table, 63, HOLE + 1) == 0
        assert place(guest, abi.XENMAPSPACE_grant_table, 10000, HOLE + 2) == -22
        assert place(guest, abi.XENMAPSPACE_grant_table, 0x80000000, HOLE + 2) == -22
        assert place(guest, abi.XENMAPSPACE_dev_mmio, 0, HOLE + 2) == -13
        # mem.gmfn.moved.read
        assert guest.write32(0x81000, 0x76543210)
        assert place(guest, abi.XENMAPSPACE_gmfn, 0x81, HOLE + 3) == 0
        assert guest.read32((HOLE + 3) << 12) == 0x76543210
        assert guest.read32(0x81000) == 0xFFFFFFFF
        # mem.batch.*
        moves = [(i, HOLE + 16 + i) for i in range(3)]
        assert batch(guest, abi.XENMAPSPACE_grant_table, moves) == (0, [0, 0, 0])
        result = batch(guest, abi.XENMAPSPACE_gmfn_foreign, [(0, HOLE + 20)])
        assert result == (0, [-1])
        assert batch(guest, abi.XENMAPSPACE_gmfn_range, [(0, 0)])[0] == -95
        assert op(guest, abi.XENMEM_add_to_physmap_batch) == -14
        # mem.remove.*
        assert remove(guest, 0x82) == 0
        assert guest.read32(0x82000) == 0xFFFFFFFF
        assert remove(guest, 0x82) == -2
        assert remove(guest, HOLE + 16) == 0
        assert remove(guest, HOLE + 100) == -2
        assert remove(guest, 0x83, domid=0) == -13
        # mem.current_reservation and what follows; the removed page still counts.
        assert pages(guest) == total
        assert decrease(guest, 0x84, 0x85) == 2
        assert pages(guest) == total - 2
        assert guest.read32(0x84000) == 0xFFFFFFFF
        assert populate(guest, 0x84, 0x85) == 2
        assert pages(guest) == total
        assert populate(guest, 0x84, 0x85) == 2
        assert populate(guest, HOLE + 200, HOLE + 201) == 2
        assert guest.write32((HOLE + 200) << 12, 0x1234)
        assert guest.read32((HOLE + 200) << 12) == 0x1234
        assert decrease(guest, HOLE + 200, HOLE + 201) == 2
        assert increase(guest, 1) == 1
        assert pages(guest) == total + 3
        assert increase(guest, 0) == 0
        assert populate(guest) == 0
        assert populate(guest, HOLE, domid=4444) == 0
        assert decrease(guest, 0x84, domid=4444) == 0
        highest = op(guest, abi.XENMEM_maximum_gpfn, abi.xen_memory_domain(DOMID_SELF))
        assert highest == HOLE + 201
        own = abi.xen_memory_domain(guest.domain.domid)
        assert op(guest, abi.XENMEM_current_reservation, own) == total + 3
        assert op(guest, abi.XENMEM_current_reservation, abi.xen_memory_domain(4444)) == -3
        assert op(guest, abi.XENMEM_current_reservation, abi.xen_memory_domain(0)) == -1
        assert op(guest, abi.XENMEM_maximum_ram_page) > 0

    def test_maps(self, guest: Any) -> None:
        guest.domain.memory_map = MAP
        buffer = guest.place(bytes(200))
        arg = guest.place(abi.xen_memory_map(10, buffer).pack(guest.abi))
        assert op(guest, abi.XENMEM_memory_map, arg) == 0
        assert guest.get(arg, abi.xen_memory_map).nr_entries == 4
        data = guest.domain.memory.read(buffer, 80)
        found = [e820entry.unpack(data, offset=20 * i) for i in range(4)]
        assert [(e.addr, e.size, e.type) for e in found] == MAP
        arg = guest.place(abi.xen_memory_map(1, buffer).pack(guest.abi))
        assert op(guest, abi.XENMEM_memory_map, arg) == 0
        assert guest.get(arg, abi.xen_memory_map).nr_entries == 1
        new = abi.xen_foreign_memory_map(DOMID_SELF, abi.xen_memory_map(2, buffer))
        assert op(guest, abi.XENMEM_set_memory_map, new) == 0
        assert guest.domain.memory_map == MAP[:2]
        new.domid = 0
        assert op(guest, abi.XENMEM_set_memory_map, new) == -1
        new.domid, new.map.nr_entries = DOMID_SELF, 1025
        assert op(guest, abi.XENMEM_set_memory_map, new) == -22
        new.map.nr_entries = 0
        assert op(guest, abi.XENMEM_set_memory_map, new) == 0
        assert op(guest, abi.XENMEM_memory_map, arg) == -38

    def test_exchange(self, guest: Any) -> None:
        def exchange(gfn: int = 0x90, done: int = 0, **out: int) -> tuple[int, int]:
            half = abi.xen_memory_reservation(guest.words(gfn), 1, 0, 0, DOMID_SELF)
            other = abi.xen_memory_reservation(guest.words(gfn), 1, 0, 0, DOMID_SELF)
            for name, value in out.items():
                setattr(other, name, value)
            arg = guest.place(abi.xen_memory_exchange(half, other, done).pack(guest.abi))
            result = op(guest, abi.XENMEM_exchange, arg)
            return result, guest.get(arg, abi.xen_memory_exchange).nr_exchanged

        assert exchange() == (-95, 0)
        assert exchange(nr_extents=2) == (-22, 0)
        assert exchange(HOLE) == (-22, 0)
        assert exchange(extent_order=10) == (-1, 0)
        assert exchange(domid=0) == (-22, 0)
        assert exchange(done=1) == (0, 1)
        assert exchange(done=2) == (-22, 2)
        assert op(guest, abi.XENMEM_exchange, 0, 1) == -22


# mem.op.N.null and mem.op.N.unmapped, mem.op.63, and the rest of the same kind.
BAD_POINTER = {
    0: 0, 1: 0, 3: -14, 4: -14, 5: -14, 6: 0, 7: -14, 8: -38, 9: -14, 10: -38, 11: -14, 12: -38,
    13: -14, 14: -14, 15: -14, 16: -14, 17: -14, 18: 0, 19: 0, 20: -38, 21: -14, 22: -38, 23: -14,
    24: -14, 25: -95, 26: -14, 27: -14, 28: -13, 29: -38, 30: -38, 31: -38, 32: -38, 63: -38,
}  # fmt: skip


@pytest.mark.parametrize("address", [0, UNMAPPED], ids=["null", "unmapped"])
def test_bad_pointers(guests: Guests, address: int) -> None:
    guest = guests()
    guest.domain.memory_map = MAP
    assert {number: op(guest, number, address) for number in BAD_POINTER} == BAD_POINTER
    assert op(guest, 2, address) > 0
    assert guest.hypercall(MEMORY_OP, -1) == -38


def test_start_extent(guest: Any) -> None:
    # mem.op.start_extent: the three on lists return it where there is nothing to do.
    for number in (0, 1, 6):
        assert op(guest, number, 0, 5) == 5
        assert extents(guest, number, [0x90, 0x91], start=2) == 2
    assert decrease(guest, HOLE, 0x90, start=1) == 2
    for number in (2, 3, 4, 11, 14, 15, 24, 26, 27):
        assert op(guest, number, 0, 1) == -22
    for number in (5, 9, 13, 16, 17, 18, 19, 25):
        assert op(guest, number, 0, 1) == -38
    assert op(guest, 7, 0, 0x10000) == -33
    assert op(guest, 23, 0, 0x10000) == -33
    assert batch(guest, abi.XENMAPSPACE_gmfn, [(0x90, 0x90)], start=1) == (-84, [0x55555555])


class TestAnswersForDomains:
    @pytest.mark.parametrize(("domid", "errno"), [(0, -1), (4444, -3)])
    def test_refused(self, guest: Any, domid: int, errno: int) -> None:
        assert op(guest, abi.XENMEM_maximum_reservation, abi.xen_memory_domain(domid)) == errno
        assert op(guest, abi.XENMEM_set_pod_target, abi.xen_pod_target(domid=domid)) == errno
        topology = abi.xen_vnuma_topology_info(domid)
        assert op(guest, abi.XENMEM_get_vnumainfo, topology) == errno
        assert remove(guest, 0x90, domid) == (-13 if domid == 0 else -3)
        assert place(guest, 0, 0, 0x90, domid=domid) == (-13 if domid == 0 else -3)
        assert populate(guest, HOLE, domid=domid) == 0

    def test_another_guest(self, guests: Guests) -> None:
        guest, other = guests(), guests()
        domid = other.domain.domid
        assert remove(guest, 0x90, domid) == -1
        assert place(guest, 0, 0, 0x90, domid=domid) == -1
        assert decrease(guest, 0x90, domid=domid) == 0
        assert op(guest, abi.XENMEM_access_op, abi.xen_mem_access_op(domid=domid)) == -1

    def test_self(self, guest: Any) -> None:
        maximum = op(guest, abi.XENMEM_maximum_reservation, abi.xen_memory_domain(DOMID_SELF))
        assert maximum == guest.domain.max_pages
        assert op(guest, abi.XENMEM_get_pod_target, abi.xen_pod_target(domid=DOMID_SELF)) == -1
        topology = abi.xen_vnuma_topology_info(DOMID_SELF)
        assert op(guest, abi.XENMEM_get_vnumainfo, topology) == -95
        topology.pad = 1
        assert op(guest, abi.XENMEM_get_vnumainfo, topology) == -22
        assert op(guest, abi.XENMEM_access_op, abi.xen_mem_access_op(domid=DOMID_SELF)) == -3
        claim = abi.xen_memory_reservation(domid=guest.domain.domid)
        compat = guest.abi is Abi.X86_32
        assert op(guest, abi.XENMEM_claim_pages, claim) == (-38 if compat else -1)
        claim.domid = DOMID_SELF
        assert op(guest, abi.XENMEM_claim_pages, claim) == (-38 if compat else -22)
        rdm = abi.xen_reserved_device_memory_map(flags=1, nr_entries=5)
        at = guest.place(rdm.pack(guest.abi))
        assert op(guest, abi.XENMEM_reserved_device_memory_map, at) == 0
        assert guest.get(at, abi.xen_reserved_device_memory_map).nr_entries == 0
        rdm.flags = 2
        assert op(guest, abi.XENMEM_reserved_device_memory_map, rdm) == -22
        listed = guest.place(abi.xen_machphys_mfn_list(4, guest.words(9, 9)).pack(guest.abi))
        answer = op(guest, abi.XENMEM_machphys_mfn_list, listed)
        assert answer == (-95 if compat else 0)
        if not compat:
            assert guest.get(listed, abi.xen_machphys_mfn_list).nr_extents == 1


class TestExtents:
    def test_orders(self, guest: Any) -> None:
        total = pages(guest)
        assert decrease(guest, 0x200, 0x208, extent_order=3) == 2
        assert pages(guest) == total - 16
        assert populate(guest, 0x200, 0x208, extent_order=3) == 2
        assert guest.write32(0x20F000, 7)
        assert populate(guest, HOLE, extent_order=10) == 0
        assert decrease(guest, 0x200, extent_order=10) == 0
        assert increase(guest, 2, extent_order=2) == 2
        assert pages(guest) == total + 8

    def test_two_mib(self, guest: Any) -> None:
        guest.domain.max_pages += 512
        assert populate(guest, HOLE, extent_order=9) == 1
        frames = [guest.partition.nested[HOLE + i][0] for i in range(512)]
        assert frames == list(range(frames[0], frames[0] + 512))
        assert frames[0] % 512 == 0

    def test_limit(self, guest: Any) -> None:
        guest.domain.max_pages = pages(guest) + 2
        assert populate(guest, *range(HOLE, HOLE + 5)) == 2
        assert increase(guest, 1) == 0
        assert populate(guest, HOLE + 9) == 0

    def test_stops_at_the_first_hole(self, guest: Any) -> None:
        assert decrease(guest, 0x90, 0x91, HOLE, 0x92) == 2
        assert guest.read32(0x92000) == 0

    def test_list_runs_into_a_hole(self, guest: Any) -> None:
        # The last page of RAM is the end of the list.
        word = guest.abi.word
        at = RAM * 4096 - 2 * word
        guest.domain.memory.write(at, struct.pack("<2" + "IQ"[word == 8], HOLE, HOLE + 1))
        arg = abi.xen_memory_reservation(at, 5, 0, 0, DOMID_SELF)
        assert op(guest, abi.XENMEM_populate_physmap, arg) == 2

    def test_flags(self, guest: Any) -> None:
        on_demand, exact = abi.XENMEMF_populate_on_demand, abi.XENMEMF_exact_node_request
        assert populate(guest, HOLE, mem_flags=on_demand) == 0
        assert populate(guest, HOLE, mem_flags=12) == 0
        assert populate(guest, HOLE, mem_flags=32) == 1
        assert populate(guest, HOLE + 1, mem_flags=exact | 1 << 8) == 0
        assert populate(guest, HOLE + 1, mem_flags=1 << 8) == 1
        assert populate(guest, HOLE + 2, mem_flags=exact) == 1
        assert populate(guest, HOLE + 3, mem_flags=abi.XENMEMF_vnode | exact | 1 << 8) == 1

    def test_beyond_the_tables(self, guests: Guests) -> None:
        guest = guests()
        total = pages(guest)
        # As on real Xen such memory is the guest's, and lost to it.
        assert populate(guest, 1 << 36, (1 << 64) - 1) == 2
        assert pages(guest) == total + 2
        assert place(guest, abi.XENMAPSPACE_shared_info, 0, 1 << 36) == -22
        assert place(guest, abi.XENMAPSPACE_shared_info, 0, (1 << 36) - 1) == 0

    def test_too_many(self, guest: Any) -> None:
        assert increase(guest, 0x4000000) == 0

    def test_slices(self, guest: Any) -> None:
        gfns = random.Random(1).sample(range(0x180, RAM), 512)
        guest.domain.max_pages = 1 << 20
        assert decrease(guest, *gfns) == 512
        assert guest.slices == 1
        new = list(range(HOLE, HOLE + SLICE + 500))
        assert populate(guest, *new) == len(new)
        assert guest.slices == 2
        assert decrease(guest, *new) == len(new)
        assert guest.slices == 2
        assert guest.partition.flushes < 10


class TestPhysmap:
    def test_gmfn(self, guest: Any) -> None:
        total = pages(guest)
        guest.write32(0x90000, 1)
        guest.write32(0x91000, 2)
        # The page that was there is freed; a move onto itself changes nothing.
        assert place(guest, abi.XENMAPSPACE_gmfn, 0x90, 0x91) == 0
        assert [guest.read32(0x90000), guest.read32(0x91000)] == [0xFFFFFFFF, 1]
        assert pages(guest) == total - 1
        assert place(guest, abi.XENMAPSPACE_gmfn, 0x91, 0x91) == 0
        assert guest.read32(0x91000) == 1
        assert place(guest, abi.XENMAPSPACE_gmfn, HOLE, 0x91) == -22

    def test_gmfn_of_shared_info(self, guest: Any) -> None:
        assert place(guest, abi.XENMAPSPACE_shared_info, 0, HOLE) == 0
        assert place(guest, abi.XENMAPSPACE_gmfn, HOLE, HOLE + 1) == 0
        entry = guest.domain.physmap.lookup(HOLE + 1)
        assert entry == (guest.domain.shared_info.frame, P2mType.XENHEAP)
        # What is Xen's own is not freed by the guest.
        assert decrease(guest, HOLE + 1) == 1
        assert place(guest, abi.XENMAPSPACE_shared_info, 0, HOLE) == 0

    def test_range(self, guest: Any) -> None:
        for i in range(4):
            guest.write32(0x90000 + i * 4096, i)
        assert place(guest, abi.XENMAPSPACE_gmfn_range, 0x90, HOLE, size=4) == 0
        assert [guest.read32((HOLE + i) << 12) for i in range(4)] == [0, 1, 2, 3]
        assert place(guest, abi.XENMAPSPACE_gmfn_range, 0x90, HOLE, size=0) == 0
        assert place(guest, abi.XENMAPSPACE_gmfn_range, HOLE + 3, 0x90, size=4) == -22
        assert guest.read32(0x90000) == 3

    def test_other_spaces(self, guest: Any) -> None:
        assert place(guest, abi.XENMAPSPACE_shared_info, 1, HOLE) == -22
        assert place(guest, abi.XENMAPSPACE_gmfn_foreign, 0x90, HOLE) == -38
        assert place(guest, 6, 0, HOLE) == -22

    def test_shared_info_again(self, guest: Any) -> None:
        assert place(guest, abi.XENMAPSPACE_shared_info, 0, HOLE) == 0
        assert place(guest, abi.XENMAPSPACE_shared_info, 0, HOLE) == 0
        assert guest.write32(HOLE << 12, 0)
        assert place(guest, abi.XENMAPSPACE_grant_table, 0, HOLE) == 0
        assert guest.domain.physmap.find(guest.domain.shared_info.frame) == -1

    def test_batch_with_a_hole(self, guest: Any) -> None:
        moves = [(0x90, HOLE), (HOLE + 5, HOLE + 1), (0x91, HOLE + 2)]
        assert batch(guest, abi.XENMAPSPACE_gmfn, moves) == (0, [0, -22, 0])

    def test_batch_with_unwritable_errors(self, guest: Any) -> None:
        arg = abi.xen_add_to_physmap_batch(
            DOMID_SELF, abi.XENMAPSPACE_gmfn, 2, idxs=guest.words(0x90, 0x91),
            gpfns=guest.words(HOLE, HOLE + 1), errs=0,
        )  # fmt: skip
        assert op(guest, abi.XENMEM_add_to_physmap_batch, arg) == -14
        # The first was done before its error could not be told.
        assert guest.read32(HOLE << 12) == 0
        assert guest.read32((HOLE + 1) << 12) == 0xFFFFFFFF

    def test_a_page_comes_back(self, guest: Any) -> None:
        # A page that was only taken out is the guest's, but nowhere.
        assert remove(guest, 0x90) == 0
        assert place(guest, abi.XENMAPSPACE_gmfn, 0x90, 0x91) == -22
        assert populate(guest, 0x90) == 1

    def test_room_for_tables(self, guest: Any) -> None:
        results = [place(guest, abi.XENMAPSPACE_shared_info, 0, i << 9) for i in range(2000)]
        assert results[0] == results[900] == 0
        assert results[-1] == -12


frames = st.sampled_from([*range(0x200, 0x208), *range(HOLE, HOLE + 8)])
steps = st.one_of(
    st.tuples(st.just("populate"), frames),
    st.tuples(st.just("decrease"), frames),
    st.tuples(st.just("remove"), frames),
    st.tuples(st.just("gmfn"), frames, frames),
    st.tuples(st.just("shared_info"), frames),
    st.tuples(st.just("grant"), frames, st.integers(0, 2)),
    st.tuples(st.just("write"), frames, st.integers(1, 1 << 30)),
)


@settings(max_examples=60, deadline=None)
@given(script=st.lists(steps, min_size=5, max_size=40))
def test_model(hosts: Any, script: list[tuple[Any, ...]]) -> None:
    """The physmap against a dictionary: guest frame -> page, and which pages are the guest's."""
    with hosts() as guests:
        run_model(guests(vcpus=1), script)


def run_model(guest: Any, script: list[tuple[Any, ...]]) -> None:
    model: dict[int, str] = {gfn: f"ram{gfn}" for gfn in range(0x200, 0x208)}
    contents = dict.fromkeys(model.values(), 0)
    total, fresh = pages(guest), 0

    def settle(gfn: int, page: str) -> None:
        nonlocal total
        for at in [at for at, there in model.items() if there == page]:
            del model[at]
        old = model.pop(gfn, None)
        if old is not None and old[:3] in ("ram", "new"):
            total -= 1
        model[gfn] = page

    for kind, gfn, *more in script:
        if kind == "populate":
            assert populate(guest, gfn) == 1
            fresh, total = fresh + 1, total + 1
            model[gfn] = f"new{fresh}"
            contents[model[gfn]] = 0
        elif kind == "decrease":
            assert decrease(guest, gfn) == (gfn in model)
            if model.pop(gfn, "xen")[:3] in ("ram", "new"):
                total -= 1
        elif kind == "remove":
            assert remove(guest, gfn) == (0 if gfn in model else -2)
            model.pop(gfn, None)
        elif kind == "gmfn":
            result = place(guest, abi.XENMAPSPACE_gmfn, gfn, more[0])
            assert result == (0 if gfn in model else -22)
            if gfn in model and gfn != more[0]:
                settle(more[0], model[gfn])
        elif kind == "write":
            assert guest.write32(gfn << 12, more[0]) == (gfn in model)
            if gfn in model:
                contents[model[gfn]] = more[0]
        else:
            space = abi.XENMAPSPACE_shared_info
            if kind == "grant":
                space = abi.XENMAPSPACE_grant_table
            name = f"xen{kind}{more}"
            contents.setdefault(name, guest.domain.shared_info.u32[0] if not more else 0)
            assert place(guest, space, more[0] if more else 0, gfn) == 0
            settle(gfn, name)
        assert pages(guest) == total
    for gfn in [*range(0x200, 0x208), *range(HOLE, HOLE + 8)]:
        expected = contents[model[gfn]] if gfn in model else 0xFFFFFFFF
        assert guest.read32(gfn << 12) == expected


@settings(max_examples=150, deadline=None)
@given(
    number=st.integers(0, 63),
    start=st.one_of(st.just(0), st.integers(0, 1 << 26)),
    words=st.lists(
        st.one_of(
            st.sampled_from([0, 1, 2, 9, DOMID_SELF, 0x100000, 0xFFFFFFFF, UNMAPPED, HOLE]),
            st.integers(0, (1 << 64) - 1),
        ),
        min_size=12,
        max_size=12,
    ),
    wide=st.booleans(),
)
def test_hostile(hosts: Any, number: int, start: int, words: list[int], wide: bool) -> None:
    """Whatever a guest passes, it gets an answer."""
    with hosts() as guests:
        guest = guests(vcpus=1, abi=Abi.X86_64 if wide else Abi.X86_32)
        guest.domain.memory_map = MAP
        result = op(guest, number, guest.place(struct.pack("<12Q", *words)), start)
        assert -200 < result < 1 << 60
