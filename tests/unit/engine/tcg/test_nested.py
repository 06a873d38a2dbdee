"""Proves that the nested tables hold what was mapped, split and merged in any order, and which
frames count as executed, against a dictionary.

The tables are read from their root as a CPU reads them. Cannot see what a TLB still holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvmlite.engine.base import Access
from hvmlite.engine.memory import MachineMemory
from hvmlite.engine.tcg import layout as L
from hvmlite.engine.tcg import nested
from hvmlite.engine.tcg.nested import FETCH_AROUND, NestedTables

RO = Access.READ
RX = Access.READ | Access.EXECUTE
RW, RWX = Access.RW, Access.RWX
MIB = 1 << 20
NX = 1 << 63


@dataclass(frozen=True)
class Leaf:
    """What a CPU finds for a guest frame."""

    frame: int
    write: bool
    execute: bool


def walk(tables: NestedTables, memory: MachineMemory, gfn: int) -> Leaf | None:
    """Reads the tables from their root, as the CPU does."""
    table = L.frame_of(tables.root_address)
    for level in (3, 2, 1, 0):
        entry = memory.u64[table * 512 + (gfn >> 9 * level & 511)]
        if not entry & 1:
            return None
        assert entry & 4, "nested entries are user entries"
        if level == 0 or entry & 0x80:
            assert level in (0, 1), "only 2 MiB and 4 KiB entries"
            low = gfn & ((1 << 9 * level) - 1)
            frame = L.frame_of(entry)
            assert not frame & ((1 << 9 * level) - 1)
            return Leaf(frame + low, bool(entry & 2), not entry & NX)
        assert entry & 2, "a table never takes the right to write away"
        assert not entry & NX
        table = L.frame_of(entry)
    raise AssertionError


@pytest.fixture
def memory() -> Iterator[MachineMemory]:
    pool = MachineMemory(8 * MIB)
    yield pool
    pool.close()


@pytest.fixture
def tables(memory: MachineMemory) -> Iterator[NestedTables]:
    free = memory.free_frames
    made = NestedTables(memory)
    yield made
    made.close()
    assert memory.free_frames == free


def large(tables: NestedTables, memory: MachineMemory, gfn: int) -> bool:
    """Whether a guest frame is mapped by a 2 MiB entry."""
    table = L.frame_of(tables.root_address)
    for level in (3, 2):
        table = L.frame_of(memory.u64[table * 512 + (gfn >> 9 * level & 511)])
    return bool(memory.u64[table * 512 + (gfn >> 9 & 511)] & 0x80)


def test_empty(tables: NestedTables, memory: MachineMemory) -> None:
    for gfn in (0, 511, 0xFEFFF, (1 << 36) - 1):
        assert walk(tables, memory, gfn) is None
        assert tables.entry(gfn) == 0
        assert not tables.make_executable(gfn)


@pytest.mark.parametrize("gfn", [0, 0xFEFFF, 1 << 18, (1 << 36) - 1])
def test_one_frame_anywhere(tables: NestedTables, memory: MachineMemory, gfn: int) -> None:
    tables.map(gfn, 0x321, 1, RW, execute=False)
    assert walk(tables, memory, gfn) == Leaf(0x321, True, False)
    assert L.frame_of(tables.entry(gfn)) == 0x321
    for other in (gfn - 1, gfn + 1, gfn ^ 512, gfn ^ (1 << 18)):
        if 0 <= other < 1 << 36:
            assert walk(tables, memory, other) is None
    tables.unmap(gfn, 1)
    assert walk(tables, memory, gfn) is None


@pytest.mark.parametrize("access", [RO, RW, RX, RWX])
def test_rights(tables: NestedTables, memory: MachineMemory, access: Access) -> None:
    tables.map(5, 0x300, 1, access, execute=False)
    write, execute = bool(access & Access.WRITE), bool(access & Access.EXECUTE)
    # Nothing is executable before it is fetched.
    assert walk(tables, memory, 5) == Leaf(0x300, write, False)
    assert tables.make_executable(5) is execute
    assert walk(tables, memory, 5) == Leaf(0x300, write, execute)
    assert bool(tables.executed[0x300]) is execute


def test_large_entries_where_both_sides_allow_it(
    tables: NestedTables, memory: MachineMemory
) -> None:
    tables.map(512, 1024, 512, RWX, execute=False)
    assert large(tables, memory, 512)
    tables.map(1024 + 1, 512 + 1, 512, RWX, execute=False)
    assert not large(tables, memory, 1024)
    tables.map(4096, 513, 512, RWX, execute=False)
    assert not large(tables, memory, 4096)
    for i in range(512):
        assert walk(tables, memory, 512 + i) == Leaf(1024 + i, True, False)
        assert walk(tables, memory, 1025 + i) == Leaf(513 + i, True, False)
        assert walk(tables, memory, 4096 + i) == Leaf(513 + i, True, False)


def test_a_hole_splits_a_large_entry(tables: NestedTables, memory: MachineMemory) -> None:
    tables.map(0, 512, 1024, RWX, execute=False)
    tables.unmap(700, 2)
    assert large(tables, memory, 0)
    assert not large(tables, memory, 512)
    for gfn in range(1024):
        expected = None if gfn in (700, 701) else Leaf(512 + gfn, True, False)
        assert walk(tables, memory, gfn) == expected


def test_a_whole_region_merges_again(tables: NestedTables, memory: MachineMemory) -> None:
    tables.map(512, 512, 512, RWX, execute=False)
    tables.unmap(600, 1)
    tables.map(512, 1024, 512, RO, execute=False)
    assert large(tables, memory, 512)
    assert walk(tables, memory, 600) == Leaf(1024 + 88, False, False)
    tables.unmap(512, 512)
    assert walk(tables, memory, 1023) is None


def test_a_fetch_marks_its_surroundings(tables: NestedTables, memory: MachineMemory) -> None:
    tables.map(0, 512, 512, RWX, execute=False)
    assert tables.make_executable(FETCH_AROUND + 3)
    for gfn in range(4 * FETCH_AROUND):
        marked = FETCH_AROUND <= gfn < 2 * FETCH_AROUND
        assert walk(tables, memory, gfn) == Leaf(512 + gfn, True, marked)
        assert bool(tables.executed[512 + gfn]) is marked


def test_surroundings_that_may_not_be_executed_are_left_alone(
    tables: NestedTables, memory: MachineMemory
) -> None:
    tables.map(0, 0x200, 8, RWX, execute=False)
    tables.map(4, 0x300, 1, RW, execute=False)
    tables.unmap(5, 1)
    assert tables.make_executable(0)
    assert walk(tables, memory, 3) == Leaf(0x203, True, True)
    assert walk(tables, memory, 4) == Leaf(0x300, True, False)
    assert walk(tables, memory, 5) is None
    assert not tables.executed[0x300]
    assert not tables.make_executable(4)
    assert not tables.make_executable(5)


def test_a_mark_outlives_the_mapping(tables: NestedTables, memory: MachineMemory) -> None:
    tables.map(0, 0x300, 1, RWX, execute=True)
    assert walk(tables, memory, 0) == Leaf(0x300, True, True)
    tables.unmap(0, 1)
    assert tables.executed[0x300]


class WideMemory(MachineMemory):
    """A sparse pool beyond 3 GiB whose tables lie in its upper or lower part as asked."""

    def __init__(self, size: int, low: bool) -> None:
        super().__init__(size)
        self._low = low

    def allocate(self, count: int, align: int = 1, *, low: bool = False) -> int:
        return super().allocate(count, align, low=low or self._low)


@pytest.mark.parametrize("low", [True, False], ids=["tables below 3 GiB", "tables above 4 GiB"])
def test_frames_on_both_sides_of_the_hole(low: bool) -> None:
    memory = WideMemory(4 << 30, low)
    tables = NestedTables(memory)
    first = (3 << 18) - 701
    assert (tables.root >= 3 << 18) is not low
    tables.map(7, first, 1401, RWX, execute=False)
    tables.map(1 << 18, 3 << 18, 1024, RWX, execute=False)
    for i in range(1401):
        assert walk(tables, memory, 7 + i) == Leaf(first + i, True, False)
    assert large(tables, memory, 1 << 18)
    assert walk(tables, memory, (1 << 18) + 1000) == Leaf((3 << 18) + 1000, True, False)
    tables.unmap((1 << 18) + 5, 1)
    assert walk(tables, memory, (1 << 18) + 4) == Leaf((3 << 18) + 4, True, False)
    assert walk(tables, memory, (1 << 18) + 5) is None
    assert tables.make_executable(7 + 702)
    assert tables.executed[first + 702]
    tables.close()
    memory.close()


def test_changing_back_and_forth_takes_no_more_memory(
    tables: NestedTables, memory: MachineMemory
) -> None:
    """A guest may give 2 MiB back page by page and ask for 2 MiB again as often as it likes."""
    for turn in range(50):
        tables.map(512, 512, 512, RWX, execute=False)
        for gfn in range(512, 1024):
            tables.unmap(gfn, 1)
        tables.flushed()
        if turn == 1:
            free = memory.free_frames
    assert memory.free_frames == free


def test_a_table_that_went_is_not_reused_before_the_flush(
    tables: NestedTables, memory: MachineMemory
) -> None:
    tables.map(512, 0x300, 1, RWX, execute=False)
    old = tables._tables[1, 1]
    tables.map(512, 512, 512, RWX, execute=False)
    tables.unmap(4096, 1)
    tables.unmap(600, 1)
    assert old not in tables._tables.values()
    tables.flushed()
    tables.unmap(8192, 1)
    assert tables._tables[1, 16] == old
    assert not any(memory.u64[old * 512 : old * 512 + 512])


# --- any sequence ------------------------------------------------------------------------------

STARTS = st.one_of(
    st.integers(0, 1600), st.sampled_from((0, 512, 1024)), st.integers((1 << 18) - 600, 1 << 18)
)
COUNTS = st.one_of(st.integers(1, 40), st.sampled_from((511, 512, 513, 1024)))
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("map"),
            STARTS,
            st.one_of(st.integers(256, 700), st.sampled_from((512, 1024))),
            COUNTS,
            st.sampled_from((RO, RW, RX, RWX)),
            st.booleans(),
        ),
        st.tuples(st.just("unmap"), STARTS, COUNTS),
        st.tuples(st.just("fetch"), STARTS),
        st.tuples(st.just("forget"), st.integers(256, 700)),
        st.tuples(st.just("flush")),
    ),
    max_size=12,
)


@given(STEPS)
@settings(max_examples=40, deadline=None)
def test_against_a_dictionary(steps: list[tuple[str, ...]]) -> None:
    memory = MachineMemory(8 * MIB)
    tables = NestedTables(memory)
    model: dict[int, tuple[Leaf, bool]] = {}
    executed: set[int] = set()
    rewritten: set[int] = set()
    for kind, *rest in steps:
        if kind == "map":
            gfn, frame, count, access, execute = rest
            execute = execute and bool(access & Access.EXECUTE)
            tables.map(gfn, frame, count, access, execute=execute)
            for i in range(count):
                leaf = Leaf(frame + i, bool(access & Access.WRITE), execute)
                model[gfn + i] = leaf, bool(access & Access.EXECUTE)
            if execute:
                executed |= set(range(frame, frame + count))
        elif kind == "unmap":
            gfn, count = rest
            tables.unmap(gfn, count)
            for i in range(count):
                model.pop(gfn + i, None)
        elif kind == "flush":
            tables.flushed()
        elif kind == "forget":
            frame = rest[0]
            was = frame in executed
            tables.forget_code(frame)
            if was and not tables.executed[frame]:
                executed.discard(frame)
                rewritten.add(frame)
                for each, (leaf, may) in model.items():
                    if leaf.frame == frame:
                        model[each] = Leaf(frame, leaf.write, False), may
        else:
            gfn = rest[0]
            hit = model.get(gfn)
            assert tables.make_executable(gfn) is (hit is not None and hit[1])
            if hit is not None and hit[1]:
                first = gfn & ~(FETCH_AROUND - 1)
                for each in range(first, first + FETCH_AROUND):
                    leaf, may = model.get(each, (None, False))
                    if leaf is not None and may and (each == gfn or leaf.frame not in rewritten):
                        model[each] = Leaf(leaf.frame, leaf.write, True), True
                        executed.add(leaf.frame)
    for gfn in {*range(0, 2800, 3), *model, *range((1 << 18) - 600, (1 << 18) + 1100, 7)}:
        found = walk(tables, memory, gfn)
        assert found == (model[gfn][0] if gfn in model else None)
        entry = tables.entry(gfn)
        assert (L.frame_of(entry) if entry & 1 else None) == (found.frame if found else None)
    assert {i for i, mark in enumerate(tables.executed) if mark} == executed
    tables.close()
    assert memory.free_frames == memory.frames - 0x100
    memory.close()


def test_code_that_is_forgotten_must_be_fetched_again(
    tables: NestedTables, memory: MachineMemory
) -> None:
    tables.map(0, 0x300, 32, RWX, execute=False)
    assert tables.make_executable(3)
    tables.forget_code(0x304)
    assert not tables.executed[0x304]
    assert walk(tables, memory, 4) == Leaf(0x304, True, False)
    assert walk(tables, memory, 3) == Leaf(0x303, True, True)
    # Data that lies beside code is not taken for code again, unless it is executed itself.
    tables.forget_code(0x303)
    assert tables.make_executable(3)
    assert (tables.executed[0x303], tables.executed[0x304]) == (1, 0)
    assert walk(tables, memory, 4) == Leaf(0x304, True, False)
    assert tables.make_executable(4)
    assert walk(tables, memory, 4) == Leaf(0x304, True, True)
    # What was never executed has nothing to forget.
    tables.forget_code(0x31F)
    assert tables.make_executable(30)
    assert tables.executed[0x31F]


def test_code_is_forgotten_wherever_it_is_mapped(
    tables: NestedTables, memory: MachineMemory
) -> None:
    for gfn in (0x10, 0x300, 0x1000):
        tables.map(gfn, 0x321, 1, RWX, execute=gfn == 0x10)
    assert tables.make_executable(0x300)
    assert tables.make_executable(0x1000)
    tables.map(0x300, 0x322, 1, RWX, execute=True)
    tables.unmap(0x1000, 1)
    tables.forget_code(0x321)
    assert not tables.executed[0x321]
    assert walk(tables, memory, 0x10) == Leaf(0x321, True, False)
    assert walk(tables, memory, 0x300) == Leaf(0x322, True, True)
    assert walk(tables, memory, 0x1000) is None


def test_code_in_a_large_entry_is_forgotten_by_the_frame(
    tables: NestedTables, memory: MachineMemory
) -> None:
    tables.map(512, 1024, 512, RWX, execute=True)
    assert large(tables, memory, 512)
    tables.forget_code(1024 + 7)
    for i in range(512):
        assert walk(tables, memory, 512 + i) == Leaf(1024 + i, True, i != 7)
        assert bool(tables.executed[1024 + i]) is (i != 7)


def test_a_large_entry_that_cannot_be_split_stays_executable(
    tables: NestedTables, memory: MachineMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables.map(512, 1024, 512, RWX, execute=True)

    def full(*_: int) -> int:
        raise MemoryError

    monkeypatch.setattr(memory, "allocate", full)
    tables.forget_code(1024)
    assert tables.executed[1024]
    assert walk(tables, memory, 512) == Leaf(1024, True, True)


def test_a_frame_in_many_places_stays_code(tables: NestedTables, memory: MachineMemory) -> None:
    """As long as more places are executable than are followed."""
    for gfn in range(0, 20 * FETCH_AROUND, FETCH_AROUND):
        tables.map(gfn, 0x321, 1, RWX, execute=False)
        assert tables.make_executable(gfn)
        if gfn < 10 * FETCH_AROUND:
            tables.unmap(gfn, 1)
    tables.forget_code(0x321)
    places = range(10 * FETCH_AROUND, 20 * FETCH_AROUND, FETCH_AROUND)
    found = [walk(tables, memory, gfn) for gfn in places]
    assert bool(tables.executed[0x321]) is any(leaf and leaf.execute for leaf in found)
    assert tables.executed[0x321]


def test_the_constants_that_the_model_assumes() -> None:
    assert nested._SPAN == 512
    assert 512 % FETCH_AROUND == 0
