"""The order in which handles are given out, by vCPU, and what happens when they run out.

Cannot see: which vCPU real Xen steals from first (it picks at random).
"""

from __future__ import annotations

from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st

from hvmlite.hypervisor.grant_table.maptrack import NO_HANDLE, PER_FRAME, Mapping, Maptrack

SOMETHING = cast(Any, Mapping)(None, 8, 0x1234, False)


def test_order() -> None:
    track = Maptrack(2)
    assert [track.allocate(0) for _ in range(3)] == [0, 1, 2]
    assert track.allocate(1) == PER_FRAME
    track.release(1)
    assert [track.allocate(0) for _ in range(PER_FRAME - 3)] == [*range(3, PER_FRAME)]


def test_stealing() -> None:
    track = Maptrack(1)
    first = track.allocate(0)
    # vCPU 1 takes one to keep and one to use.
    assert track.allocate(1) == 2
    track.release(2)
    assert track.allocate(1) == 1
    rest = [track.allocate(0) for _ in range(PER_FRAME)]
    assert rest.index(NO_HANDLE) == PER_FRAME - 4
    track.release(first)
    assert track.allocate(0) == PER_FRAME - 1


def test_none_at_all() -> None:
    assert Maptrack(0).allocate(0) == NO_HANDLE


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), max_size=700), st.integers(1, 2))
def test_never_twice(steps: list[tuple[bool, int]], frames: int) -> None:
    track = Maptrack(frames)
    used: list[int] = []
    for take, number in steps:
        if take or not used:
            handle = track.allocate(number)
            if handle != NO_HANDLE:
                assert handle not in used
                assert handle < frames * PER_FRAME
                used.append(handle)
                track.mapped[handle] = SOMETHING
        else:
            handle = used.pop(number % len(used))
            track.release(handle)
            assert handle not in track.mapped
