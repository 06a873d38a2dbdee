"""Which machine frame is behind which guest frame (Xen's p2m), and what kind of mapping it is.

The single truth about a domain's guest-physical space; the engine's nested tables follow it.
"""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterator, Sequence
from enum import IntEnum

from hvmlite.engine.base import Access, Partition


class P2mType(IntEnum):
    """The kind of a mapping (the names of Xen's asm-x86/p2m.h without their prefix)."""

    RAM_RW = 0
    RAM_RO = 1
    GRANT_RW = 2
    GRANT_RO = 3
    FOREIGN = 4
    XENHEAP = 5
    """A frame of the hypervisor's own (shared_info, grant table); the guest may write it."""
    XENHEAP_RO = 6
    """The same, read-only (grant status frames are not: they are XENHEAP)."""
    MMIO_DM = 7
    """Claimed by a device model: no frame."""


OWN_TYPES = (P2mType.RAM_RW, P2mType.RAM_RO, P2mType.XENHEAP, P2mType.XENHEAP_RO)
"""Types of a frame that belongs to the domain; such a frame is at one guest frame at most."""
GRANT_TYPES = (P2mType.GRANT_RW, P2mType.GRANT_RO)
SPECIAL_TYPES = (*GRANT_TYPES, P2mType.FOREIGN)
"""Types that only the operation which made the mapping may replace."""
_WRITABLE = (P2mType.RAM_RW, P2mType.GRANT_RW, P2mType.FOREIGN, P2mType.XENHEAP)
_ACCESS = {
    P2mType.RAM_RW: Access.RWX,
    P2mType.RAM_RO: Access.READ | Access.EXECUTE,
    P2mType.GRANT_RW: Access.RW,
    P2mType.GRANT_RO: Access.READ,
    P2mType.FOREIGN: Access.RW,
    P2mType.XENHEAP: Access.RW,
    P2mType.XENHEAP_RO: Access.READ,
}


def allows(kind: P2mType, *, write: bool = False, fetch: bool = False) -> bool:
    """Whether a guest may access a frame of that kind in that way."""
    wanted = Access.EXECUTE if fetch else Access.WRITE if write else Access.READ
    return bool(_ACCESS.get(kind, Access(0)) & wanted)


class Physmap:
    """Guest frames to machine frames: a few large extents of RAM, and single changes to them."""

    def __init__(self, partition: Partition) -> None:
        self._partition = partition
        self._starts: list[int] = []
        self._extents: list[tuple[int, int, int]] = []
        self._frames: list[tuple[int, int, int]] = []
        # What differs from the extents: (frame, type), or None for a hole.
        self._changes: dict[int, tuple[int, P2mType] | None] = {}
        # The other way round (Xen's m2p), for frames of OWN_TYPES: -1 where one has no place.
        self._gfns: dict[int, int] = {}
        self.highest = -1
        """The highest guest frame that was ever mapped."""

    def add_ram(self, gfn: int, frame: int, count: int) -> None:
        """Maps an extent of RAM where nothing was mapped before."""
        i = bisect_right(self._starts, gfn)
        if (i and sum(self._extents[i - 1][::2]) > gfn) or (
            i < len(self._starts) and gfn + count > self._starts[i]
        ):
            raise ValueError(f"guest frames {gfn:#x}+{count:#x} overlap other RAM")
        self._starts.insert(i, gfn)
        self._extents.insert(i, (gfn, frame, count))
        insort(self._frames, (frame, gfn, count))
        self.highest = max(self.highest, gfn + count - 1)
        self._partition.map(gfn, frame, count, Access.RWX)

    def lookup(self, gfn: int) -> tuple[int, P2mType] | None:
        """The machine frame and type behind a guest frame, None for a hole."""
        changes = self._changes
        if gfn in changes:
            return changes[gfn]
        i = bisect_right(self._starts, gfn) - 1
        if i >= 0:
            start, frame, count = self._extents[i]
            if gfn < start + count:
                return frame + gfn - start, P2mType.RAM_RW
        return None

    def readable(self, gfn: int) -> int:
        """The machine frame behind a guest frame, -1 if there is none."""
        entry = self.lookup(gfn)
        return -1 if entry is None else entry[0]

    def writable(self, gfn: int) -> int:
        """The machine frame behind a guest frame that may be written, else -1."""
        entry = self.lookup(gfn)
        return entry[0] if entry is not None and entry[1] in _WRITABLE else -1

    def ram_frames(self, gfns: Sequence[int]) -> list[int] | None:
        """The machine frames behind guest frames, if all are RAM of one extent, unchanged.

        None means: look at each.
        """
        if not self._changes.keys().isdisjoint(gfns):
            return None
        low, high = (gfns[0], gfns[0]) if len(gfns) == 1 else (min(gfns), max(gfns))
        i = bisect_right(self._starts, low) - 1
        if i < 0:
            return None
        start, frame, count = self._extents[i]
        if high >= start + count:
            return None
        return [*map((frame - start).__add__, gfns)]

    def set(self, gfn: int, frame: int, kind: P2mType, count: int = 1) -> None:
        """Maps guest frames to machine frames; what was there is the caller's to settle.

        Whoever took a mapping away calls `Partition.flush` before the frame is reused.
        """
        own = kind in OWN_TYPES
        for i in range(count):
            old = self.lookup(gfn + i)
            if old is not None and old[1] in OWN_TYPES:
                self._lose_place(old[0])
            if own:
                self._gfns[frame + i] = gfn + i
            self._changes[gfn + i] = (frame + i, kind)
        self.highest = max(self.highest, gfn + count - 1)
        self._partition.map(gfn, frame, count, _ACCESS[kind])

    def clear(self, gfn: int) -> None:
        """Makes one guest frame a hole."""
        old = self.lookup(gfn)
        if old is None:
            return
        if old[1] in OWN_TYPES:
            self._lose_place(old[0])
        i = bisect_right(self._starts, gfn) - 1
        if i >= 0 and gfn < self._extents[i][0] + self._extents[i][2]:
            self._changes[gfn] = None
        else:
            del self._changes[gfn]
        self._partition.unmap(gfn, 1)

    def find(self, frame: int) -> int:
        """The guest frame where a frame of the domain's own is, -1 if it is nowhere."""
        gfn = self._gfns.get(frame)
        return self._first_place(frame) if gfn is None else gfn

    def _first_place(self, frame: int) -> int:
        i = bisect_right(self._frames, frame, key=_start) - 1
        if i >= 0:
            start, gfn, count = self._frames[i]
            if frame < start + count:
                return gfn + frame - start
        return -1

    def _lose_place(self, frame: int) -> None:
        if self._first_place(frame) >= 0:
            self._gfns[frame] = -1
        else:
            self._gfns.pop(frame, None)

    def entries(self) -> Iterator[tuple[int, tuple[int, P2mType]]]:
        """Every mapping in ascending order: guest frame, (machine frame, type)."""
        changed = sorted(gfn for gfn, entry in self._changes.items() if entry is not None)
        position = 0
        for start, frame, count in self._extents:
            for gfn in range(start, start + count):
                while position < len(changed) and changed[position] < gfn:
                    entry = self._changes[changed[position]]
                    position += 1
                    if entry is not None:
                        yield changed[position - 1], entry
                if gfn not in self._changes:
                    yield gfn, (frame + gfn - start, P2mType.RAM_RW)
        for gfn in changed[position:]:
            entry = self._changes[gfn]
            if entry is not None:
                yield gfn, entry

    def extents(self) -> Iterator[tuple[int, int, int]]:
        """The extents of RAM as they were added: guest frame, machine frame, count."""
        yield from self._extents

    def mark_code(self, gfn: int, count: int) -> None:
        """Tells the engine that RAM frames hold code already written."""
        for start, frame, length in self._extents:
            first, end = max(gfn, start), min(gfn + count, start + length)
            if first < end:
                self._partition.map(
                    first, frame + first - start, end - first, Access.RWX, code=True
                )


def _start(extent: tuple[int, int, int]) -> int:
    return extent[0]
