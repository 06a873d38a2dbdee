"""Who owns machine frames, and who else still uses them.

A frame goes back to the pool when its owner let it go and no mapping of another domain (a grant, a
foreign mapping) is left: a page can never be reused under somebody's hands.
"""

from __future__ import annotations

from hvmlite.engine.memory import MachineMemory


class FrameTable:
    """References to frames beyond their owner's."""

    def __init__(self, machine: MachineMemory) -> None:
        self._machine = machine
        self._extra: dict[int, int] = {}
        self._orphans: set[int] = set()

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
            self._orphans.discard(frame)
            self._machine.release(frame)

    def references(self, frame: int) -> int:
        """How many references there are beyond the owner's."""
        return self._extra.get(frame, 0)

    def release(self, frame: int, count: int = 1) -> None:
        """The owner lets frames go."""
        if not self._extra:
            self._machine.release(frame, count)
            return
        for one in range(frame, frame + count):
            if one in self._extra:
                self._orphans.add(one)
            else:
                self._machine.release(one)
