"""Nested page tables (AMD64 APM volume 2, section 15.25) in machine memory.

Entries start no-execute; the first fetch from a page faults and marks it, so that only pages that
may hold translated code need care when they are written from outside.  Once nothing is translated
any more, because all of a page was written through QEMU, the mark is taken back.
"""

from __future__ import annotations

from array import array

from hvmlite.engine.base import Access
from hvmlite.engine.memory import MachineMemory
from hvmlite.engine.tcg.layout import frame_of, physical

_PRESENT = 1
_WRITE = 2
_USER = 4
_LARGE = 1 << 7
_NX = 1 << 63
_TABLE = _PRESENT | _WRITE | _USER
_SPAN = 512
_NEVER_EXECUTE = 1 << 9
"""A software bit: the mapping itself forbids execution, whatever the guest fetches."""

_PLACES = 8
"""How many executable mappings of one frame are followed."""
FETCH_AROUND = 16
"""Frames that one fetch fault makes executable: an exit costs more than a few writes through the
slower path."""


class NestedTables:
    """A four-level table from guest frames to machine frames.

    2 MiB entries are used where both sides allow it and split when a part changes.
    """

    def __init__(self, memory: MachineMemory) -> None:
        self._memory = memory
        # Per machine frame: whether this partition's CPUs may hold translated code of it.  Cleared
        # by `forget_code` alone: a translation outlives the frame's use and even its contents.
        self.executed = bytearray(memory.frames)
        # Frames that were: data that lay beside code, and is written again and again.
        self._rewritten = bytearray(memory.frames)
        # Where each executed frame is executable, None if it is in too many places to be followed;
        # some of it may have changed since.
        self._places: dict[int, tuple[int, ...] | None] = {}
        self._u64 = memory.u64
        self._pages: list[int] = []
        # Tables out of use: those that a CPU may still be reading, and those to be used again.
        self._retired: list[int] = []
        self._spare: list[int] = []
        # Frame of every level-1 and level-2 table by the guest frame number it starts at.
        self._tables: dict[tuple[int, int], int] = {}
        self.root = self._new_page()

    @property
    def root_address(self) -> int:
        """The physical address for VMCB.N_CR3."""
        return physical(self.root)

    def _new_page(self) -> int:
        if self._spare:
            return self._spare.pop()
        frame = self._memory.allocate(1)
        self._pages.append(frame)
        return frame

    def _table(self, level: int, gfn: int) -> int:
        """The frame of the table of `level` (1: 4 KiB entries, 2: 2 MiB) that covers `gfn`."""
        span = 9 * level
        key = (level, gfn >> span)
        frame = self._tables.get(key)
        if frame is None:
            frame = self._new_page()
            self._tables[key] = frame
            parent = self.root if level == 3 else self._table(level + 1, gfn)
            self._u64[parent * 512 + ((gfn >> span) & 511)] = physical(frame) | _TABLE
        return frame

    def _flags(self, access: Access) -> int:
        flags = _PRESENT | _USER
        if access & Access.WRITE:
            flags |= _WRITE
        if not access & Access.EXECUTE:
            flags |= _NX | _NEVER_EXECUTE
        return flags

    def map(self, gfn: int, frame: int, count: int, access: Access, *, execute: bool) -> None:
        """Maps frames; with `execute` they are executable at once and count as executed."""
        flags = self._flags(access)
        if access & Access.EXECUTE and not execute:
            flags |= _NX
        if execute:
            if self._places:
                for i in range(count):
                    self._mark(frame + i, gfn + i)
            else:
                self.executed[frame : frame + count] = b"\1" * count
                self._places = {frame + i: (gfn + i,) for i in range(count)}
        while count:
            if not (gfn | frame) & (_SPAN - 1) and count >= _SPAN:
                self._set_large(gfn, physical(frame) | flags | _LARGE)
                step = _SPAN
            else:
                step = min(count, _SPAN - (gfn & (_SPAN - 1)), self._contiguous(frame))
                index = self._small(gfn) * 512 + (gfn & 511)
                base = physical(frame) | flags
                self._u64[index : index + step] = memoryview(
                    array("Q", range(base, base + (step << 12), 1 << 12))
                )
            gfn, frame, count = gfn + step, frame + step, count - step

    @staticmethod
    def _contiguous(frame: int) -> int:
        return _SPAN - (frame & (_SPAN - 1))

    def _set_large(self, gfn: int, entry: int) -> None:
        self._u64[self._table(2, gfn) * 512 + ((gfn >> 9) & 511)] = entry
        small = self._tables.pop((1, gfn >> 9), None)
        if small is not None:
            self._retired.append(small)

    def flushed(self) -> None:
        """No CPU uses a mapping any more that was taken away: tables that went can be reused."""
        for frame in self._retired:
            self._memory.drop(frame)
        self._spare += self._retired
        self._retired.clear()

    def _small(self, gfn: int) -> int:
        """The table of 4 KiB entries for `gfn`, made by splitting a large entry if need be."""
        table = self._tables.get((1, gfn >> 9))
        if table is not None:
            return table
        index = self._table(2, gfn) * 512 + ((gfn >> 9) & 511)
        large = self._u64[index]
        table = self._new_page()
        if large & _PRESENT:
            base = large & ~_LARGE
            start = table * 512
            self._u64[start : start + 512] = memoryview(
                array("Q", range(base, base + (512 << 12), 1 << 12))
            )
        self._tables[(1, gfn >> 9)] = table
        self._u64[index] = physical(table) | _TABLE
        return table

    def unmap(self, gfn: int, count: int) -> None:
        """Makes guest frames absent."""
        while count:
            if not gfn & (_SPAN - 1) and count >= _SPAN:
                self._set_large(gfn, 0)
                step = _SPAN
            else:
                step = min(count, _SPAN - (gfn & (_SPAN - 1)))
                index = self._small(gfn) * 512 + (gfn & 511)
                self._u64[index : index + step] = memoryview(array("Q", bytes(8 * step)))
            gfn, count = gfn + step, count - step

    def entry(self, gfn: int) -> int:
        """The entry that maps `gfn` (0: absent), as if it were a 4 KiB one."""
        table = self._tables.get((1, gfn >> 9))
        if table is not None:
            return self._u64[table * 512 + (gfn & 511)]
        upper = self._tables.get((2, gfn >> 18))
        if upper is None:
            return 0
        large = self._u64[upper * 512 + ((gfn >> 9) & 511)]
        return (large & ~_LARGE) + ((gfn & 511) << 12) if large & _PRESENT else 0

    def _mark(self, frame: int, gfn: int) -> None:
        self.executed[frame] = 1
        places = self._places
        known = places.get(frame, ())
        if known is not None and gfn not in known:
            if len(known) == _PLACES:
                known = tuple(at for at in known if self._runs(at, frame))
            places[frame] = (*known, gfn) if len(known) < _PLACES else None

    def _runs(self, gfn: int, frame: int) -> bool:
        """Whether a guest frame is mapped to that frame, executable."""
        entry = self.entry(gfn)
        return entry & (_PRESENT | _NX) == _PRESENT and frame_of(entry) == frame

    def forget_code(self, frame: int) -> None:
        """No CPU runs, and none holds translated code of the frame: the next fetch faults again.

        Flush the TLBs before a CPU runs on.
        """
        places = self._places.get(frame, ())
        if not self.executed[frame] or places is None:
            return
        try:
            for gfn in places:
                if self._runs(gfn, frame):
                    self._u64[self._small(gfn) * 512 + (gfn & 511)] |= _NX
        except MemoryError:
            # No frame is left to split a large entry: the mark stays, which only costs time.
            return
        self._places.pop(frame, None)
        self.executed[frame] = 0
        self._rewritten[frame] = 1

    def make_executable(self, gfn: int) -> bool:
        """Answers a fetch fault; False if the mapping is absent or forbids execution."""
        entry = self.entry(gfn)
        if not entry & _PRESENT or entry & _NEVER_EXECUTE:
            return False
        first = gfn & ~(FETCH_AROUND - 1)
        index = self._small(gfn) * 512 + (first & 511)
        for i in range(FETCH_AROUND):
            entry = self._u64[index + i]
            if entry & _PRESENT and not entry & _NEVER_EXECUTE:
                frame = frame_of(entry)
                if first + i == gfn or not self._rewritten[frame]:
                    self._u64[index + i] = entry & ~_NX
                    self._mark(frame, first + i)
        return True

    def close(self) -> None:
        """Frees the tables."""
        for frame in self._pages:
            self._memory.release(frame)
        self._pages.clear()
        self._spare.clear()
        self._retired.clear()
        self._tables.clear()
        self._places.clear()
