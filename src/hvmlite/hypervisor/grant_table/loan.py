"""Whole granted pages, many at a time: for backends that have data moved to and from them in place.

The pages of one request are taken up together, by operations on all of their entries instead of an
object for each. What is not as it is mostly is left to `GrantTable.pin`, entry by entry, which says
what is wrong with it too. Facts: public/grant_table.h.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from hvmlite.abi.grant_table import (
    GTF_permit_access,
    GTF_reading,
    GTF_readonly,
    GTF_sub_page,
    GTF_type_mask,
    GTF_writing,
    grant_entry_v1,
)
from hvmlite.engine import atomics
from hvmlite.engine.memory import PAGE_SHIFT, PAGE_SIZE
from hvmlite.hypervisor.grant_table.entries import V1_SIZE
from hvmlite.hypervisor.memory import Window

if TYPE_CHECKING:
    from hvmlite.hypervisor.grant_table.table import GrantTable

_FRAME_SHIFT = 8 * grant_entry_v1.offsetof("frame")
_HEAD = (1 << _FRAME_SHIFT) - 1
_DOMID = 0xFFFF_0000
_KEPT_TO_WRITE = _DOMID | GTF_type_mask | GTF_sub_page | GTF_readonly
_KEPT_TO_READ = _KEPT_TO_WRITE & ~GTF_readonly
_IN_USE = GTF_reading | GTF_writing


class Loan:
    """Pages in use: machine `frames` in the order of their references.

    It holds for as long as nothing else of the host loop gets its turn; beyond that only after
    `keep`, even if the guest gives the pages away or is destroyed. `release` it in any case.
    """

    __slots__ = ("_marked", "_pinned", "_readonly", "_refs", "_table", "frames")

    def __init__(
        self,
        table: GrantTable,
        refs: Sequence[int],
        frames: list[int],
        marked: Sequence[int],
        *,
        readonly: bool,
    ) -> None:
        self._table = table
        self._refs = refs
        self._readonly = readonly
        self._marked = marked
        """Addresses of the entries whose marks are ours to take back."""
        self._pinned: list[int] | None = None
        self.frames = frames

    def keep(self) -> None:
        """Has the pages last until `release`; raises GrantError if an entry changed meanwhile.

        `frames` may be others then: what counts is what the entries say by now.
        """
        if self._pinned is not None:
            return
        table, readonly = self._table, self._readonly
        pinned: list[int] = []
        frames: list[int] = []
        try:
            for ref in self._refs:
                frames.append(table.pin(ref, 0, readonly=readonly).frame)
                pinned.append(ref)
        except BaseException:
            for ref in pinned:
                table.unpin(ref, readonly=readonly)
            raise
        # The marks are those of the pins now.
        self._marked = ()
        self._pinned, self.frames = pinned, frames

    def release(self) -> None:
        """Ends the use of all of them; safe to call twice."""
        readonly = self._readonly
        if self._marked:
            _unmark(self._marked, readonly=readonly)
            self._marked = ()
        if self._pinned:
            for ref in self._pinned:
                self._table.unpin(ref, readonly=readonly)
            self._pinned = []
        self._refs = ()


class Loans:
    """What makes loans of one guest's pages for backends of domain 0; one for each table.

    `memory` is machine memory, in bytes, which is read and written in place; see `stored`.
    """

    def __init__(self, table: GrantTable) -> None:
        self._table = table
        self._host = table.domain.host
        self._partition = table.domain.partition
        self.memory = self._host.machine.u8
        self._ram_frames = table.domain.physmap.ram_frames
        self._window: Window | None = None
        self._address = 0
        self._entry: Callable[[int], int] = ().__getitem__
        self._covered = 0

    def _cover(self) -> None:
        """Maps the table's frames one behind the other, so that a reference is an index."""
        self.close()
        frames = [page.frame for page in self._table.frames]
        if frames:
            self._window = Window(self._host.machine, frames)
            self._address = self._window.address
            self._entry = self._window.u64.__getitem__
            self._covered = len(frames)

    def close(self) -> None:
        """The table's frames go."""
        if self._window is not None:
            self._entry = ().__getitem__
            self._window.close()
            self._window = None
            self._covered = 0

    def take(self, refs: Sequence[int], *, readonly: bool) -> Loan:
        """Takes up whole pages, to be read by the backend or also written.

        Raises GrantError, and then nothing is taken up.
        """
        table = self._table
        if self._covered != len(table.frames):
            self._cover()
        if table.version == 1 and table.pins.keys().isdisjoint(refs):
            loan = self._take_at_once(refs, readonly)
            if loan is not None:
                return loan
        loan = Loan(table, refs, [], (), readonly=readonly)
        loan.keep()
        return loan

    def write(self, start: int, data: memoryview) -> None:
        """Stores bytes in pages that are taken up, so that the guest may also execute them.

        `start`: the byte of machine memory.
        """
        if self._table.dead:
            self.memory[start : start + len(data)] = data
        else:
            self._partition.write(start >> PAGE_SHIFT, start & PAGE_SIZE - 1, data)

    def stored(self, start: int, size: int) -> None:
        """Bytes of pages that are taken up were written directly: the guest sees them as code."""
        end = start + size
        while start < end:
            step = min(end, (start | PAGE_SIZE - 1) + 1) - start
            self._table.stored(start >> PAGE_SHIFT, start & PAGE_SIZE - 1, step)
            start += step

    def _take_at_once(self, refs: Sequence[int], readonly: bool) -> Loan | None:
        """A loan of entries of the ordinary kind that nobody else uses; None if some are not."""
        entry = self._entry
        kept = _KEPT_TO_READ if readonly else _KEPT_TO_WRITE
        try:
            words = [*map(entry, refs)]
        except IndexError:
            return None
        if {*map(kept.__and__, words)} != {GTF_permit_access}:
            return None
        marked: Sequence[int] = ()
        # While no guest runs, nobody can look at the marks, nor change the entries.
        if self._host.guests_run:
            marked = self._mark(refs, words, readonly)
            if len(marked) == len(refs):
                # What counts is where an entry led once the guest could see that it is in use.
                words = [*map(entry, refs)]
            else:
                _unmark(marked, readonly=readonly)
                return None
        frames = self._ram_frames([word >> _FRAME_SHIFT for word in words])
        if frames is None:
            _unmark(marked, readonly=readonly)
            return None
        return Loan(self._table, refs, frames, marked, readonly=readonly)

    def _mark(self, refs: Sequence[int], words: Sequence[int], readonly: bool) -> list[int]:
        """Marks entries that still are what `words` says; returns the addresses of those."""
        marks = GTF_reading if readonly else _IN_USE
        base, fetch_or = self._address, atomics.fetch_or32
        marked: list[int] = []
        for ref, word in zip(refs, words, strict=True):
            address = base + ref * V1_SIZE
            if fetch_or(address, marks) != word & _HEAD:
                # Changed this moment, or named twice: the caller takes back what is marked.
                _unmark((address,), readonly=readonly)
                break
            marked.append(address)
        return marked


def _unmark(marked: Sequence[int], *, readonly: bool) -> None:
    keep = 0xFFFF & ~(GTF_reading if readonly else _IN_USE)
    fetch_and = atomics.fetch_and16
    for address in marked:
        fetch_and(address, keep)
