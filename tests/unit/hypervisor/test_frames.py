"""Proves that a frame goes back to the pool once its owner and every other user let it go, and what
a set of frames holds; both against plain sets.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvmlite.engine.memory import MachineMemory
from hvmlite.hypervisor.frames import FrameSet, FrameTable

FIRST = 0x180
COUNT = 24


@pytest.fixture(scope="module")
def machine() -> Iterator[MachineMemory]:
    pool = MachineMemory(4 << 20)
    yield pool
    pool.close()


def test_a_frame_without_other_users_goes_at_once(machine: MachineMemory) -> None:
    table, gone, free = FrameTable(machine), [], machine.free_frames
    frame = machine.allocate(4)
    table.release(frame, 4, gone.append)
    assert gone == [frame, frame + 1, frame + 2, frame + 3]
    assert machine.free_frames == free


def test_a_frame_in_use_goes_with_its_last_user(machine: MachineMemory) -> None:
    table, gone, free = FrameTable(machine), [], machine.free_frames
    frame = machine.allocate(1)
    table.get(frame)
    table.get(frame)
    assert table.references(frame) == 2
    machine.u8[frame * 4096] = 7
    table.release(frame, gone=gone.append)
    table.put(frame)
    assert (gone, machine.u8[frame * 4096]) == ([], 7)
    table.put(frame)
    assert (gone, machine.u8[frame * 4096]) == ([frame], 0)
    assert table.references(frame) == 0
    assert machine.free_frames == free


def test_the_others_of_a_run_do_not_wait(machine: MachineMemory) -> None:
    table, gone, free = FrameTable(machine), [], machine.free_frames
    frame = machine.allocate(6)
    for i in (1, 4):
        table.get(frame + i)
    table.release(frame, 6, gone.append)
    assert gone == [frame + i for i in (0, 2, 3, 5)]
    for i in (4, 1):
        table.put(frame + i)
    assert gone[4:] == [frame + 4, frame + 1]
    assert machine.free_frames == free


def test_letting_go_again_replaces_who_is_told(machine: MachineMemory) -> None:
    table, told = FrameTable(machine), []
    frame = machine.allocate(1)
    table.get(frame)
    table.release(frame, gone=lambda _: told.append("first"))
    table.release(frame, gone=lambda _: told.append("second"))
    table.put(frame)
    assert told == ["second"]


def test_a_user_of_what_still_has_its_owner(machine: MachineMemory) -> None:
    table = FrameTable(machine)
    frame = machine.allocate(1)
    table.get(frame)
    table.put(frame)
    table.release(frame)
    with pytest.raises(KeyError):
        table.put(frame)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("get"), st.integers(0, COUNT - 1), st.just(1)),
        st.tuples(st.just("put"), st.integers(0, COUNT - 1), st.just(1)),
        st.tuples(st.just("release"), st.integers(0, COUNT - 1), st.integers(1, 6)),
    ),
    max_size=60,
)


@given(STEPS)
@settings(max_examples=100, deadline=None)
def test_against_counts(machine: MachineMemory, steps: list[tuple[str, int, int]]) -> None:
    free = machine.free_frames
    base = machine.allocate(COUNT)
    table, gone = FrameTable(machine), []
    users = dict.fromkeys(range(COUNT), 0)
    owned = set(range(COUNT))
    expected: set[int] = set()
    for kind, i, count in steps:
        if kind == "get" and i not in expected:
            table.get(base + i)
            users[i] += 1
        elif kind == "put" and users[i]:
            table.put(base + i)
            users[i] -= 1
            if not users[i] and i not in owned:
                expected.add(i)
        elif kind == "release":
            run = range(i, min(i + count, COUNT))
            if owned.issuperset(run):
                table.release(base + i, len(run), gone.append)
                owned -= set(run)
                expected |= {each for each in run if not users[each]}
        assert sorted(gone) == sorted(base + each for each in expected)
        assert machine.free_frames == free - COUNT + len(expected)
        for each, number in users.items():
            assert table.references(base + each) == number
    for i in owned:
        table.release(base + i)
    for i, number in users.items():
        for _ in range(number):
            table.put(base + i)
    assert machine.free_frames == free


# --- sets of frames --------------------------------------------------------------------------


def test_runs_are_kept_together() -> None:
    frames = FrameSet()
    frames.add(10, 5)
    frames.add(20)
    frames.add(15, 5)
    assert list(frames) == [(10, 11)]
    frames.remove(12)
    frames.remove(10)
    frames.remove(20)
    assert list(frames) == [(11, 1), (13, 7)]
    frames.add(12)
    assert list(frames) == [(11, 9)]


@pytest.mark.parametrize("frame", [9, 15, 0, 1 << 40])
def test_what_is_not_in_cannot_be_taken_out(frame: int) -> None:
    frames = FrameSet()
    frames.add(10, 5)
    with pytest.raises(KeyError):
        frames.remove(frame)
    assert frame not in frames
    assert list(frames) == [(10, 5)]


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 20), st.integers(1, 3)), max_size=60))
@settings(max_examples=150)
def test_against_a_set(steps: list[tuple[bool, int, int]]) -> None:
    frames, model = FrameSet(), set[int]()
    for add, frame, count in steps:
        run = set(range(frame, frame + count))
        if add and not run & model:
            frames.add(frame, count)
            model |= run
        elif not add and frame in model:
            frames.remove(frame)
            model.discard(frame)
        assert {each for start, length in frames for each in range(start, start + length)} == model
        assert all(a + n < b for (a, n), (b, _) in zip(frames, [*frames][1:], strict=False))
        assert all((each in frames) is (each in model) for each in range(-1, 25))
