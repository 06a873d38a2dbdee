"""The words of a grant table that the guest and the hypervisor both change.

Knows the two layouts and the atomic way to change them, and nothing of who may use a grant.
Facts: public/grant_table.h.
"""

from __future__ import annotations

from hvmlite.abi.grant_table import (
    GNTST_general_error,
    GTF_permit_access,
    GTF_reading,
    GTF_readonly,
    GTF_sub_page,
    GTF_transitive,
    GTF_type_mask,
    GTF_writing,
    grant_entry_header,
    grant_entry_v1,
    grant_entry_v2,
    grant_entry_v2_full_page,
    grant_entry_v2_sub_page,
    grant_entry_v2_transitive,
    grant_status_t,
)
from hvmlite.engine.memory import PAGE_SIZE
from hvmlite.errors import HvmliteError
from hvmlite.hypervisor.memory import Page
from hvmlite.records import record

V1_SIZE = grant_entry_v1.sizeof()
V2_SIZE = grant_entry_v2.sizeof()
V1_PER_FRAME = PAGE_SIZE // V1_SIZE
V2_PER_FRAME = PAGE_SIZE // V2_SIZE
STATUS_PER_FRAME = PAGE_SIZE // grant_status_t.sizeof()
_V1_WORDS = V1_SIZE // 4
_V2_WORDS = V2_SIZE // 4
_V1_FRAME = grant_entry_v1.offsetof("frame") // 4
_V2_FRAME = grant_entry_v2_full_page.offsetof("frame") // 8
# Flags and domid are changed as the one word that they make up.
_DOMID_SHIFT = 8 * grant_entry_header.offsetof("domid")
_FLAGS = 0xFFFF
_TRIES = 5
_IN_USE = GTF_reading | GTF_writing


class GrantError(HvmliteError):
    """A grant cannot be used as asked: `status` is one of GNTST_*."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(f"grant not usable: {why} (status {status})")
        self.status = status


@record
class Entry:
    """What an entry grants, at one moment: a byte range of a guest frame, or another's grant."""

    flags: int
    domid: int
    gfn: int = 0
    offset: int = 0
    length: int = PAGE_SIZE
    part: bool = False
    """Whether it is a GTF_sub_page entry, even if for all of the page."""
    transitive: tuple[int, int] | None = None
    """(domain, reference) for GTF_transitive."""


class Entries:
    """The shared frames of one table in version 1; `EntriesV2` is the other layout."""

    version = 1
    per_frame = V1_PER_FRAME

    def __init__(self, frames: list[Page], status: list[Page]) -> None:
        self._frames = frames
        self._status = status

    def __len__(self) -> int:
        return len(self._frames) * self.per_frame

    def read(self, ref: int) -> Entry:
        """A copy of an entry."""
        page, index = self._frames[ref // V1_PER_FRAME], ref % V1_PER_FRAME * _V1_WORDS
        word = page.u32[index]
        return Entry(word & _FLAGS, word >> _DOMID_SHIFT, page.u32[index + _V1_FRAME])

    def write(self, ref: int, flags: int, domid: int, gfn: int) -> None:
        """Fills in an entry for a whole page."""
        page, index = self._frames[ref // V1_PER_FRAME], ref % V1_PER_FRAME
        page.write(index * V1_SIZE, grant_entry_v1(flags, domid, gfn).pack())

    def in_use(self, ref: int) -> int:
        """GTF_reading and GTF_writing of an entry."""
        return self.read(ref).flags & _IN_USE

    def claim(self, ref: int, domid: int, *, readonly: bool, pinned: bool, whole: bool) -> None:
        """Marks an entry as read and, unless `readonly`, as written; raises GrantError.

        `pinned`: it is in use already, so that only GTF_readonly counts.  `whole`: the page is to
        be mapped, which neither GTF_sub_page nor GTF_transitive allow.
        """
        page, index = self._frames[ref // V1_PER_FRAME], ref % V1_PER_FRAME * _V1_WORDS
        mask = GTF_type_mask | (GTF_sub_page if whole else 0)
        wanted = GTF_reading if readonly else _IN_USE
        word = page.u32[index]
        # A guest can change the word faster than we can: it gets as many tries as real Xen's.
        for _ in range(_TRIES):
            if not pinned and (word & mask != GTF_permit_access or word >> _DOMID_SHIFT != domid):
                raise GrantError(GNTST_general_error, f"flags {word & _FLAGS:#x} do not permit it")
            if not readonly and word & GTF_readonly:
                raise GrantError(GNTST_general_error, "it is read-only")
            seen = page.cmpxchg32(index, word, word | wanted)
            if seen == word:
                return
            word = seen
        raise GrantError(GNTST_general_error, "the guest keeps changing the entry")

    def unclaim(self, ref: int, flags: int) -> None:
        """Clears GTF_reading or GTF_writing or both."""
        page, index = self._frames[ref // V1_PER_FRAME], ref % V1_PER_FRAME * _V1_WORDS
        page.fetch_and16(index * 2, ~flags & _FLAGS)

    def swap(self, a: int, b: int) -> None:
        """Exchanges two entries."""
        _swap(self._frames, V1_SIZE, a, b)


class EntriesV2(Entries):
    """Version 2: 16-byte entries, and the marks of use in frames of their own."""

    version = 2
    per_frame = V2_PER_FRAME

    def read(self, ref: int) -> Entry:
        """See `Entries.read`."""
        page, index = self._frames[ref // V2_PER_FRAME], ref % V2_PER_FRAME
        data = page.read(index * V2_SIZE, V2_SIZE)
        head = grant_entry_header.unpack(data)
        if head.flags & GTF_type_mask == GTF_transitive:
            other = grant_entry_v2_transitive.unpack(data)
            pair = (other.trans_domid, other.gref)
            return Entry(head.flags, head.domid, transitive=pair)
        if head.flags & GTF_sub_page:
            part = grant_entry_v2_sub_page.unpack(data)
            return Entry(head.flags, head.domid, part.frame, part.page_off, part.length, True)
        return Entry(head.flags, head.domid, grant_entry_v2_full_page.unpack(data).frame)

    def write(self, ref: int, flags: int, domid: int, gfn: int) -> None:
        """See `Entries.write`; marks of use go where this version has them."""
        page, index = self._frames[ref // V2_PER_FRAME], ref % V2_PER_FRAME
        entry = grant_entry_v2_full_page(grant_entry_header(flags & ~_IN_USE, domid), 0, gfn)
        page.write(index * V2_SIZE, entry.pack())
        status = self._status[ref // STATUS_PER_FRAME]
        at = ref % STATUS_PER_FRAME * grant_status_t.sizeof()
        status.write(at, grant_status_t(flags & _IN_USE).pack())

    def in_use(self, ref: int) -> int:
        """See `Entries.in_use`."""
        return self._status[ref // STATUS_PER_FRAME].u8[ref % STATUS_PER_FRAME * 2] & _IN_USE

    def claim(self, ref: int, domid: int, *, readonly: bool, pinned: bool, whole: bool) -> None:
        """See `Entries.claim`."""
        page, index = self._frames[ref // V2_PER_FRAME], ref % V2_PER_FRAME * _V2_WORDS
        mask = GTF_type_mask | (GTF_sub_page if whole else 0)
        types = (GTF_permit_access,) if whole else (GTF_permit_access, GTF_transitive)
        self._check(page.u32[index], mask, types, domid, pinned)
        if not readonly and page.u32[index] & GTF_readonly:
            raise GrantError(GNTST_general_error, "it is read-only")
        status = self._status[ref // STATUS_PER_FRAME]
        status.fetch_or8(ref % STATUS_PER_FRAME * 2, GTF_reading if readonly else _IN_USE)
        # The guest revokes by clearing the flags, then looks at the status: so look again.
        word = page.u32[index]
        try:
            self._check(word, mask, types, domid, pinned)
        except GrantError:
            self.unclaim(ref, _IN_USE)
            raise
        if not readonly and word & GTF_readonly:
            self.unclaim(ref, GTF_writing if pinned else _IN_USE)
            raise GrantError(GNTST_general_error, "it became read-only")

    @staticmethod
    def _check(word: int, mask: int, types: tuple[int, ...], domid: int, pinned: bool) -> None:
        if not pinned and (word & mask not in types or word >> _DOMID_SHIFT != domid):
            raise GrantError(GNTST_general_error, f"flags {word & _FLAGS:#x} do not permit it")

    def unclaim(self, ref: int, flags: int) -> None:
        """See `Entries.unclaim`."""
        status = self._status[ref // STATUS_PER_FRAME]
        status.fetch_and16(ref % STATUS_PER_FRAME, ~flags & _FLAGS)

    def swap(self, a: int, b: int) -> None:
        """See `Entries.swap`."""
        _swap(self._frames, V2_SIZE, a, b)
        _swap(self._status, grant_status_t.sizeof(), a, b)


def _swap(pages: list[Page], size: int, a: int, b: int) -> None:
    per_frame = PAGE_SIZE // size
    page_a, at_a = pages[a // per_frame], a % per_frame * size
    page_b, at_b = pages[b // per_frame], b % per_frame * size
    data = page_a.read(at_a, size)
    page_a.write(at_a, page_b.read(at_b, size))
    page_b.write(at_b, data)
