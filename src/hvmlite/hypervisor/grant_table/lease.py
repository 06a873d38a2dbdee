"""Granted pages in use for a moment: for backends that copy a lot.

What GNTTABOP_copy does for a driver domain, without its objects: an entry is marked as in use,
looked at, and unmarked when the copy is done. Facts: public/grant_table.h.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from hvmlite.abi.grant_table import (
    GTF_permit_access,
    GTF_reading,
    GTF_readonly,
    GTF_type_mask,
    GTF_writing,
)
from hvmlite.engine import atomics
from hvmlite.engine.memory import PAGE_SHIFT, PAGE_SIZE
from hvmlite.hypervisor.grant_table.entries import V1_PER_FRAME, V1_SIZE, GrantError

if TYPE_CHECKING:
    from hvmlite.hypervisor.grant_table.table import Claim, GrantTable

_DOMID = 0xFFFF_0000
_UNMARK = {True: 0xFFFF & ~GTF_reading, False: 0xFFFF & ~(GTF_reading | GTF_writing)}


class Lease:
    """What one backend of domain 0 uses of a guest's grants between `take` and `release`.

    Both are called without anything else of the host loop in between: nobody else can then change
    the physmap or the grants' owners, and an entry's frame, read after the guest sees the mark,
    counts.  `memory` is machine memory, which the offsets that `take` returns are for.
    """

    __slots__ = ("_claims", "_marked", "_readonly", "_table", "memory")

    def __init__(self, table: GrantTable, *, readonly: bool) -> None:
        self._table = table
        self._readonly = readonly
        self._marked: list[int] = []
        self._claims: list[Claim] = []
        self.memory = table.domain.host.machine.u8

    def take(self, pieces: Iterable[tuple[int, int, int]]) -> list[int]:
        """Takes up pieces of pages: (reference, offset, bytes) each.

        Returns where each starts in machine memory, in bytes; -1 where the grant or the range does
        not allow it.
        """
        table, readonly = self._table, self._readonly
        frames, pins, frame_at = table.frames, table.pins, table.domain.pages.frame_at
        marked, cmpxchg = self._marked, atomics.cmpxchg32
        whole = len(frames) * V1_PER_FRAME if table.version == 1 else 0
        mask = _DOMID | GTF_type_mask | (0 if readonly else GTF_readonly)
        marks = GTF_reading if readonly else GTF_reading | GTF_writing
        write = not readonly
        found = []
        for ref, offset, size in pieces:
            if ref < whole and ref not in pins:
                page = frames[ref // V1_PER_FRAME]
                at = ref % V1_PER_FRAME
                word = page.u32[2 * at]
                if word & mask == GTF_permit_access and offset + size <= PAGE_SIZE:
                    address = page.address + at * V1_SIZE
                    if cmpxchg(address, word, word | marks) == word:
                        marked.append(address)
                        frame = frame_at(page.u32[2 * at + 1], write=write)
                        found.append((frame << PAGE_SHIFT) + offset if frame >= 0 else -1)
                        continue
            found.append(self._take_slowly(ref, offset, size))
        return found

    def _take_slowly(self, ref: int, offset: int, size: int) -> int:
        """For version 2, what is mapped meanwhile, and what is to be refused: also a grant of a
        third domain's."""
        try:
            claim = self._table.claim(ref, 0, readonly=self._readonly, transitive=False)
        except GrantError:
            return -1
        self._claims.append(claim)
        try:
            claim.check(offset, size)
        except GrantError:
            return -1
        return (claim.pin.frame << PAGE_SHIFT) + offset

    def write(self, start: int, data: bytes | bytearray | memoryview) -> None:
        """Stores bytes where `take` said, so that the guest may also execute them."""
        frame = start >> PAGE_SHIFT
        table = self._table
        if table.dead or not table.domain.partition.executed(frame):
            self.memory[start : start + len(data)] = data
        else:
            table.store(frame, start & PAGE_SIZE - 1, data)

    def release(self) -> None:
        """Unmarks all that was taken."""
        if self._marked:
            keep, fetch_and = _UNMARK[self._readonly], atomics.fetch_and16
            for address in self._marked:
                fetch_and(address, keep)
            self._marked.clear()
        for claim in self._claims:
            claim.release()
        self._claims.clear()
