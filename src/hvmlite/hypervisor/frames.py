"""Who owns machine frames, and who else still uses them.

A frame goes back to the pool when its owner let it go and no mapping of another domain (a grant, a
foreign mapping) is left: a page can never be reused under somebody's hands.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator

from hvmlite.engine.memory import MachineMemory


class FrameTable:
    """References to frames beyond their owner's."""

    def __init__(self, machine: MachineMemory) -> None:
        self._machine = machine
        self._extra: dict[int, int] = {}
        self._orphans: dict[int, Callable[[int], None] | None] = {}

    def get(self, frame: int) -> None:
        """Takes another reference."""
        self._extra[frame] = self._extra.get(frame, 0) + 1

    def put(self, frame: int) -> None:
        """Gives a reference of `get` back."""
        left = self._extra[frame] - 1
        if left:
            self._extra[frame] = left
            return
        del self._extra[frame]
        if frame in self._orphans:
            gone = self._orphans.pop(frame)
            self._machine.release(frame)
            if gone is not None:
                gone(frame)

    def references(self, frame: int) -> int:
        """How many references there are beyond the owner's."""
        return self._extra.get(frame, 0)

    def release(
        self, frame: int, count: int = 1, gone: Callable[[int], None] | None = None
    ) -> None:
        """The owner lets frames go.

        `gone(frame)` is called for each when it is free: now, or when its last reference goes.
        To let one go again only replaces `gone`.
        """
        start, end = frame, frame + count
        kept = [frame] if count == 1 and frame in self._extra else []
        if count > 1:
            kept = sorted(one for one in self._extra if frame <= one < end)
        for one in [*kept, end]:
            if one > start:
                self._machine.release(start, one - start)
                if gone is not None:
                    for each in range(start, one):
                        gone(each)
            if one < end:
                self._orphans[one] = gone
            start = one + 1


class FrameSet:
    """A set of frames that is mostly long runs."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._counts: list[int] = []

    def __contains__(self, frame: int) -> bool:
        i = bisect_right(self._starts, frame) - 1
        return i >= 0 and frame < self._starts[i] + self._counts[i]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """The runs: first frame, count."""
        return zip(self._starts, self._counts, strict=True)

    def add(self, frame: int, count: int = 1) -> None:
        """Adds frames that are not in the set."""
        i = bisect_right(self._starts, frame)
        if i and self._starts[i - 1] + self._counts[i - 1] == frame:
            i -= 1
            self._counts[i] += count
        else:
            self._starts.insert(i, frame)
            self._counts.insert(i, count)
        if i + 1 < len(self._starts) and self._starts[i] + self._counts[i] == self._starts[i + 1]:
            del self._starts[i + 1]
            self._counts[i] += self._counts.pop(i + 1)

    def remove(self, frame: int) -> None:
        """Takes one frame out; raises KeyError if it is not in."""
        i = bisect_right(self._starts, frame) - 1
        if i < 0 or frame >= self._starts[i] + self._counts[i]:
            raise KeyError(frame)
        start, count = self._starts[i], self._counts[i]
        before = frame - start
        pieces = [(start, before), (frame + 1, count - before - 1)]
        self._starts[i : i + 1] = [first for first, length in pieces if length]
        self._counts[i : i + 1] = [length for _, length in pieces if length]
