"""Proves that the physmap and the engine's map say the same as a dictionary after any sequence of
changes, and where a frame of the domain's own is found.

Who may change it is decided in pages.py, which has tests of its own.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvmlite.engine.base import Access
from hvmlite.engine.memory import MachineMemory
from hvmlite.hypervisor.physmap import OWN_TYPES, P2mType, Physmap, allows

from .conftest import FakePartition

RIGHTS = {
    P2mType.RAM_RW: Access.RWX,
    P2mType.RAM_RO: Access.READ | Access.EXECUTE,
    P2mType.GRANT_RW: Access.RW,
    P2mType.GRANT_RO: Access.READ,
    P2mType.FOREIGN: Access.RW,
    P2mType.XENHEAP: Access.RW,
    P2mType.XENHEAP_RO: Access.READ,
}


@pytest.fixture(scope="module")
def machine() -> Iterator[MachineMemory]:
    pool = MachineMemory(4 << 20)
    yield pool
    pool.close()


@pytest.fixture
def partition(machine: MachineMemory) -> Iterator[FakePartition]:
    made = FakePartition(machine, 1)
    yield made
    made.close()


@pytest.fixture
def physmap(partition: FakePartition) -> Physmap:
    return Physmap(partition)


def test_empty(physmap: Physmap) -> None:
    assert physmap.lookup(0) is None
    assert physmap.readable(0) == physmap.writable(0) == physmap.find(0x300) == -1
    assert physmap.highest == -1
    assert list(physmap.entries()) == list(physmap.extents()) == []


def test_extents_of_ram(physmap: Physmap, partition: FakePartition) -> None:
    physmap.add_ram(0x100, 0x400, 8)
    physmap.add_ram(0, 0x300, 16)
    assert list(physmap.extents()) == [(0, 0x300, 16), (0x100, 0x400, 8)]
    assert physmap.lookup(15) == (0x30F, P2mType.RAM_RW)
    assert physmap.lookup(16) is None
    assert physmap.lookup(0xFF) is None
    assert physmap.lookup(0x107) == (0x407, P2mType.RAM_RW)
    assert physmap.highest == 0x107
    assert physmap.find(0x404) == 0x104
    assert physmap.find(0x408) == -1
    assert partition.nested[5] == (0x305, Access.RWX)


@pytest.mark.parametrize(("gfn", "count"), [(10, 10), (15, 1), (0, 40), (20, 5), (29, 1), (4, 2)])
def test_extents_do_not_overlap(physmap: Physmap, gfn: int, count: int) -> None:
    physmap.add_ram(5, 0x300, 11)
    physmap.add_ram(24, 0x400, 6)
    with pytest.raises(ValueError, match="overlap other RAM"):
        physmap.add_ram(gfn, 0x200, count)
    assert len(list(physmap.extents())) == 2


def test_extents_may_touch(physmap: Physmap) -> None:
    physmap.add_ram(5, 0x300, 11)
    physmap.add_ram(24, 0x400, 6)
    physmap.add_ram(16, 0x200, 8)
    physmap.add_ram(0, 0x280, 5)
    assert [gfn for gfn, _ in physmap.entries()] == list(range(30))


@pytest.mark.parametrize("kind", RIGHTS)
def test_rights_of_each_type(physmap: Physmap, partition: FakePartition, kind: P2mType) -> None:
    physmap.set(7, 0x333, kind)
    assert partition.nested[7] == (0x333, RIGHTS[kind])
    writable = bool(RIGHTS[kind] & Access.WRITE)
    assert physmap.readable(7) == 0x333
    assert physmap.writable(7) == (0x333 if writable else -1)
    assert allows(kind)
    assert allows(kind, write=True) is writable
    assert allows(kind, fetch=True) is bool(RIGHTS[kind] & Access.EXECUTE)


def test_a_device_models_range_allows_nothing() -> None:
    assert not allows(P2mType.MMIO_DM)
    assert not allows(P2mType.MMIO_DM, write=True)


def test_a_hole_in_an_extent(physmap: Physmap, partition: FakePartition) -> None:
    physmap.add_ram(0, 0x300, 16)
    physmap.clear(5)
    assert physmap.lookup(5) is None
    assert physmap.find(0x305) == -1
    assert 5 not in partition.nested
    physmap.clear(5)
    physmap.set(5, 0x305, P2mType.RAM_RW)
    assert physmap.lookup(5) == (0x305, P2mType.RAM_RW)
    assert physmap.find(0x305) == 5


def test_a_frame_of_the_domains_own_moves(physmap: Physmap) -> None:
    physmap.add_ram(0, 0x300, 16)
    physmap.clear(3)
    physmap.set(0x50, 0x303, P2mType.RAM_RW)
    assert physmap.find(0x303) == 0x50
    physmap.clear(0x50)
    assert physmap.find(0x303) == -1
    physmap.set(3, 0x303, P2mType.RAM_RW)
    assert physmap.find(0x303) == 3


def test_a_grant_has_no_place(physmap: Physmap) -> None:
    physmap.add_ram(0, 0x300, 16)
    physmap.set(0x50, 0x304, P2mType.GRANT_RW)
    assert physmap.find(0x304) == 4
    physmap.clear(0x50)
    assert physmap.find(0x304) == 4


def test_what_replaces_ram_takes_its_place(physmap: Physmap) -> None:
    physmap.add_ram(0, 0x300, 16)
    physmap.set(4, 0x380, P2mType.XENHEAP)
    assert (physmap.find(0x304), physmap.find(0x380)) == (-1, 4)
    physmap.set(4, 0x390, P2mType.GRANT_RO)
    assert (physmap.find(0x304), physmap.find(0x380)) == (-1, -1)


def test_code_is_marked_where_there_is_ram(physmap: Physmap, partition: FakePartition) -> None:
    marks: list[tuple[int, int, int]] = []
    real = partition.map

    def record(gfn: int, frame: int, count: int, access: Access, *, code: bool = False) -> None:
        if code:
            assert access == Access.RWX
            marks.append((gfn, frame, count))
        real(gfn, frame, count, access, code=code)

    partition.map = record  # type: ignore[method-assign]
    physmap.add_ram(0, 0x300, 16)
    physmap.add_ram(16, 0x400, 16)
    physmap.add_ram(0x100, 0x500, 4)
    physmap.mark_code(10, 12)
    physmap.mark_code(0x80, 8)
    assert marks == [(10, 0x30A, 6), (16, 0x400, 6)]


STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("set"),
            st.integers(0, 60),
            st.integers(0, 40),
            st.sampled_from(sorted(RIGHTS)),
            st.sampled_from((1, 1, 1, 3)),
        ),
        st.tuples(st.just("clear"), st.integers(0, 60)),
    ),
    max_size=30,
)


@given(STEPS)
@settings(max_examples=150, deadline=None)
def test_against_a_dictionary(machine: MachineMemory, steps: list[tuple[int, ...]]) -> None:
    partition = FakePartition(machine, 1)
    physmap = Physmap(partition)
    physmap.add_ram(0, 0x300, 16)
    physmap.add_ram(20, 0x380, 10)
    model: dict[int, tuple[int, P2mType]] = {
        **{i: (0x300 + i, P2mType.RAM_RW) for i in range(16)},
        **{20 + i: (0x380 + i, P2mType.RAM_RW) for i in range(10)},
    }
    highest = 29
    for name, gfn, *rest in steps:
        if name == "clear":
            physmap.clear(gfn)
            model.pop(gfn, None)
            continue
        offset, kind, count = rest
        kind = P2mType(kind)
        frame = 0x300 + offset
        if kind in OWN_TYPES:
            # One place for each of its own frames: whoever moves one takes it out first.
            for i in range(count):
                for place in [
                    p for p, e in model.items() if e[0] == frame + i and e[1] in OWN_TYPES
                ]:
                    physmap.clear(place)
                    del model[place]
        physmap.set(gfn, frame, kind, count)
        highest = max(highest, gfn + count - 1)
        for i in range(count):
            model[gfn + i] = frame + i, kind
    assert dict(physmap.entries()) == model
    assert [gfn for gfn, _ in physmap.entries()] == sorted(model)
    assert physmap.highest == highest
    for gfn in range(70):
        entry = model.get(gfn)
        assert physmap.lookup(gfn) == entry
        assert physmap.readable(gfn) == (entry[0] if entry else -1)
        assert physmap.writable(gfn) == (
            entry[0] if entry and RIGHTS[entry[1]] & Access.WRITE else -1
        )
        found = partition.nested.get(gfn)
        assert found == ((entry[0], RIGHTS[entry[1]]) if entry else None)
    places = {frame: gfn for gfn, (frame, kind) in model.items() if kind in OWN_TYPES}
    for frame in range(0x300, 0x3A0):
        assert physmap.find(frame) == places.get(frame, -1)
    partition.close()
