"""Proves that machine memory hands out each frame once, zeroed, and takes it back whole.

Frames are compared with a plain set of numbers. Cannot see whether the kernel gives host memory
back for released frames, only that they read as zero.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hvmlite.engine.memory import PAGE_SIZE, RESERVED_FRAMES, MachineMemory
from hvmlite.errors import EngineError

MIB = 1 << 20
POOL = 4 * MIB
FRAMES = POOL // PAGE_SIZE


@pytest.fixture
def memory() -> Iterator[MachineMemory]:
    pool = MachineMemory(POOL)
    yield pool
    pool.close()


def free_extents(memory: MachineMemory) -> list[tuple[int, int]]:
    return list(memory._free)


def test_views_show_the_same_memory(memory: MachineMemory) -> None:
    memory.u64[0x200] = 0x1122334455667788
    assert memory.u32[0x400] == 0x55667788
    assert bytes(memory.u8[0x1000:0x1008]) == bytes.fromhex("8877665544332211")
    assert memory.frames == FRAMES == len(memory.u8) // PAGE_SIZE


def test_memory_is_shared_through_its_file(memory: MachineMemory) -> None:
    memory.u8[0x1234] = 0x5A
    assert os.pread(memory.fd, 1, 0x1234) == b"\x5a"


def test_size_is_rounded_up_to_2_mib() -> None:
    pool = MachineMemory(2 * MIB + 1)
    assert pool.size == 4 * MIB
    pool.close()


@pytest.mark.parametrize("size", [0, -1, -MIB])
def test_a_pool_needs_more_than_the_reserved_part(size: int) -> None:
    with pytest.raises(ValueError, match="smaller than its reserved part"):
        MachineMemory(size)


@pytest.mark.parametrize("size", [1 << 62, 1 << 80])
def test_more_than_can_be_mapped_is_one_clear_line(size: int) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(EngineError, match=f"cannot map {size >> 20} MiB of machine memory: "):
        MachineMemory(size)
    assert len(os.listdir("/proc/self/fd")) == before


def test_reserved_frames_are_never_handed_out(memory: MachineMemory) -> None:
    frames = set()
    with pytest.raises(MemoryError, match=f"no 1 consecutive free frames of {FRAMES}"):
        while True:
            frames.add(memory.allocate(1, low=True))
    assert frames == set(range(RESERVED_FRAMES, FRAMES))


def test_low_and_high_ends(memory: MachineMemory) -> None:
    assert memory.allocate(3, low=True) == RESERVED_FRAMES
    assert memory.allocate(3) == FRAMES - 3
    assert memory.allocate(1, 512) == 512


def test_no_run_is_long_enough(memory: MachineMemory) -> None:
    with pytest.raises(MemoryError):
        memory.allocate(FRAMES - RESERVED_FRAMES + 1)
    with pytest.raises(MemoryError):
        memory.allocate(1, FRAMES)
    assert memory.free_frames == FRAMES - RESERVED_FRAMES


def test_released_frames_read_as_zero(memory: MachineMemory) -> None:
    frame = memory.allocate(2)
    memory.u8[frame * PAGE_SIZE : (frame + 2) * PAGE_SIZE] = b"\xff" * (2 * PAGE_SIZE)
    memory.release(frame)
    start = frame * PAGE_SIZE
    assert not any(memory.u8[start : start + PAGE_SIZE])
    assert all(memory.u8[start + PAGE_SIZE : start + 2 * PAGE_SIZE])


def test_neighbours_merge_whatever_the_order(memory: MachineMemory) -> None:
    whole = free_extents(memory)
    for order in ((0, 1, 2), (2, 1, 0), (0, 2, 1), (1, 0, 2)):
        frame = memory.allocate(3)
        for i in order:
            memory.release(frame + i)
        assert free_extents(memory) == whole


@pytest.mark.parametrize(
    ("offset", "count"),
    [(3, 1), (2, 2), (-1, 1), (-1, 2), (-1, 5), (0, 4)],
    ids=["behind", "over the end", "before", "over the start", "around", "one too many"],
)
def test_what_is_not_handed_out_cannot_be_released(
    memory: MachineMemory, offset: int, count: int
) -> None:
    memory.allocate(FRAMES - RESERVED_FRAMES)
    frame = FRAMES - 10
    memory.release(frame - 5, 5)
    memory.release(frame + 3, 5)
    before = free_extents(memory)
    with pytest.raises(ValueError, match="are not handed out"):
        memory.release(frame + offset, count)
    assert free_extents(memory) == before


@pytest.mark.parametrize("frame", [0, RESERVED_FRAMES - 1, FRAMES, FRAMES + 7, -1])
def test_frames_outside_of_the_pool_cannot_be_released(memory: MachineMemory, frame: int) -> None:
    with pytest.raises(ValueError, match="are not handed out"):
        memory.release(frame)


def test_drop_zeroes_and_keeps(memory: MachineMemory) -> None:
    frame = memory.allocate(1)
    memory.u8[frame * PAGE_SIZE] = 1
    memory.drop(frame)
    assert memory.u8[frame * PAGE_SIZE] == 0
    memory.release(frame)


def test_close_twice_and_with_a_view_still_out() -> None:
    pool = MachineMemory(POOL)
    view = pool.u8[0x1000:0x2000].cast("Q")
    pool.close()
    pool.close()
    view[0] = 7
    assert view[0] == 7
    with pytest.raises(ValueError, match="released"):
        pool.u8[0]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.integers(1, 90), st.sampled_from((1, 2, 8, 64, 512))),
        st.tuples(st.just("take low"), st.integers(1, 90), st.sampled_from((1, 2, 8, 64))),
        st.tuples(st.just("give"), st.integers(0, 1 << 20), st.integers(0, 1 << 20)),
    ),
    max_size=40,
)


@given(STEPS)
@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_against_a_set_of_frames(memory: MachineMemory, steps: list[tuple[str, int, int]]) -> None:
    whole = free_extents(memory)
    taken: dict[int, int] = {}
    for kind, first, second in steps:
        if kind.startswith("take"):
            used = {f for start, count in taken.items() for f in range(start, start + count)}
            try:
                frame = memory.allocate(first, second, low=kind == "take low")
            except MemoryError:
                free = set(range(RESERVED_FRAMES, FRAMES)) - used
                assert not any(
                    free.issuperset(range(start, start + first))
                    for start in range(0, FRAMES, second)
                )
                continue
            assert frame % second == 0
            assert RESERVED_FRAMES <= frame <= FRAMES - first
            assert used.isdisjoint(range(frame, frame + first))
            # One byte stands for all: a released frame is dropped whole.
            assert not any(memory.u8[f * PAGE_SIZE + 8] for f in range(frame, frame + first))
            for f in range(frame, frame + first):
                memory.u8[f * PAGE_SIZE + 8] = 0xEE
            taken[frame] = first
        elif taken:
            # Any part of any run may be given back.
            start = sorted(taken)[first % len(taken)]
            count = taken.pop(start)
            at = second % count
            size = second % (count - at) + 1
            memory.release(start + at, size)
            if at:
                taken[start] = at
            if at + size < count:
                taken[start + at + size] = count - at - size
        extents = free_extents(memory)
        assert extents == sorted(extents)
        assert all(sum(a) < b[0] for a, b in itertools.pairwise(extents))
        assert memory.free_frames == FRAMES - RESERVED_FRAMES - sum(taken.values())
    for start, count in taken.items():
        memory.release(start, count)
    assert free_extents(memory) == whole
