"""One domain's grant table: its frames, its version, and which of its grants are in use.

Facts: public/grant_table.h and what real Xen 4.17 answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvmlite.abi.errno import XEN_EBUSY, XEN_ENOMEM, XEN_ERANGE
from hvmlite.abi.grant_table import (
    GNTTAB_NR_RESERVED_ENTRIES,
    GNTST_bad_copy_arg,
    GNTST_bad_gntref,
    GNTST_bad_page,
    GNTST_eagain,
    GNTST_general_error,
    GTF_invalid,
    GTF_permit_access,
    GTF_reading,
    GTF_transitive,
    GTF_type_mask,
    GTF_writing,
)
from hvmlite.abi.memory import XENMAPIDX_grant_table_status
from hvmlite.engine.memory import PAGE_SIZE
from hvmlite.hypervisor.grant_table.backend import BackendMapping
from hvmlite.hypervisor.grant_table.entries import (
    STATUS_PER_FRAME,
    V2_PER_FRAME,
    Entries,
    EntriesV2,
    Entry,
    GrantError,
)
from hvmlite.hypervisor.grant_table.loan import Loans
from hvmlite.hypervisor.grant_table.maptrack import Maptrack
from hvmlite.hypervisor.memory import Page
from hvmlite.records import record

if TYPE_CHECKING:
    from hvmlite.hypervisor.domain import Domain

_MOST_PINS = 128
"""How often one entry may be in use, for reading and for writing."""
_V1_FRAME_LIMIT = 1 << 32
_RESERVED = range(GNTTAB_NR_RESERVED_ENTRIES)


@record
class Pin:
    """An entry in use: what it granted when it was taken up, and how often it is used.

    `offset` and `length` (bytes) bound a copy.  One that is for a `part` of a page, or leads
    `through` to another domain's grant, cannot be mapped.
    """

    domid: int
    frame: int
    gfn: int
    offset: int = 0
    length: int = PAGE_SIZE
    part: bool = False
    through: bool = False
    readers: int = 0
    writers: int = 0


@record
class Claim:
    """One entry taken up for one copy; `release` it."""

    table: GrantTable
    ref: int
    pin: Pin
    readonly: bool
    source: Claim | None
    """The grant of another domain that a transitive one led to."""

    def release(self) -> None:
        """Ends the claim."""
        self.table.unpin_claim(self)
        if self.source is not None:
            self.source.release()

    def check(self, offset: int, size: int) -> None:
        """Raises GrantError for bytes beyond the page or beyond what is granted of it."""
        if offset < 0 or size < 0 or offset + size > PAGE_SIZE:
            raise GrantError(GNTST_bad_copy_arg, f"bytes {offset}+{size} are not in one page")
        pin = self.pin
        if offset < pin.offset or offset + size > pin.offset + pin.length:
            raise GrantError(GNTST_general_error, f"bytes {offset}+{size} are not granted")

    def read(self, offset: int, size: int) -> bytes:
        """Copies bytes out; `check` them first."""
        start = self.pin.frame * PAGE_SIZE + offset
        return bytes(self.table.domain.host.machine.u8[start : start + size])

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Copies bytes in so that their owner may also execute them; `check` them first."""
        owner = self.table if self.source is None else self.source.table
        owner.store(self.pin.frame, offset, data)


class GrantTable:
    """The grants of one domain, and those of others that it has mapped (`maptrack`)."""

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self.frames: list[Page] = []
        self.status: list[Page] = []
        self.entries = Entries(self.frames, self.status)
        self.pins: dict[int, Pin] = {}
        self.maptrack = Maptrack(domain.limits.max_maptrack_frames)
        self.loans = Loans(self)
        self.dead = False
        if not self.grow(1):
            raise MemoryError("no memory for a grant table")

    # ---- frames and version ---------------------------------------------------------------------

    @property
    def version(self) -> int:
        """1 or 2."""
        return self.entries.version

    @property
    def max_frames(self) -> int:
        """How many frames the table may grow to."""
        return self.domain.limits.max_grant_frames

    def grow(self, frames: int) -> bool:
        """Brings the table to at least that many frames; False if it cannot be."""
        if frames > self.max_frames:
            return False
        shared = self._new_pages(frames - len(self.frames))
        if shared is None:
            return False
        if self.version > 1 and not self._grow_status(len(self.frames) + len(shared)):
            self._release(shared)
            return False
        self.frames += shared
        return True

    def _grow_status(self, frames: int) -> bool:
        pages = self._new_pages(-(-frames * V2_PER_FRAME // STATUS_PER_FRAME) - len(self.status))
        if pages is None:
            return False
        self.status += pages
        return True

    def _new_pages(self, count: int) -> list[Page] | None:
        machine = self.domain.host.machine
        pages: list[Page] = []
        try:
            for _ in range(count):
                pages.append(Page(machine, machine.allocate(1)))
        except MemoryError:
            self._release(pages)
            return None
        for page in pages:
            self.domain.pages.share(page.frame)
        return pages

    def _release(self, pages: list[Page]) -> None:
        for page in pages:
            self.domain.pages.unshare(page.frame)
            self.domain.host.frames.release(page.frame)

    def frame(self, idx: int) -> int:
        """The machine frame for XENMAPSPACE_grant_table, if need be new; -1 if there is none."""
        if self.version > 1 and idx & XENMAPIDX_grant_table_status:
            idx &= ~XENMAPIDX_grant_table_status
            if idx >= len(self.status):
                self.grow((idx + 1) * STATUS_PER_FRAME // V2_PER_FRAME)
            return self.status[idx].frame if idx < len(self.status) else -1
        if idx >= len(self.frames) and not self.grow(idx + 1):
            return -1
        return self.frames[idx].frame

    def set_version(self, version: int) -> int:
        """Goes over to a version; only the reserved entries survive, and no other may be in use.

        Returns 0 or a negative errno.
        """
        old = self.entries
        if version == old.version:
            return 0
        if any(ref not in _RESERVED for ref in self.pins):
            return -XEN_EBUSY
        if version > 1:
            if not self._grow_status(len(self.frames)):
                return -XEN_ENOMEM
        elif any(_too_much_for_v1(old.read(ref)) for ref in _RESERVED):
            return -XEN_ERANGE
        kept = [self._kept(ref) for ref in _RESERVED]
        if version == 1 and not self._drop_status():
            return -XEN_EBUSY
        for page in self.frames:
            page.write(0, bytes(PAGE_SIZE))
        self.entries = (EntriesV2 if version > 1 else Entries)(self.frames, self.status)
        for ref, (flags, domid, gfn) in zip(_RESERVED, kept, strict=True):
            self.entries.write(ref, flags, domid, gfn)
        return 0

    def _kept(self, ref: int) -> tuple[int, int, int]:
        """A reserved entry for the other version: flags with the marks of use, domain, frame."""
        entry = self.entries.read(ref)
        kind = entry.flags & GTF_type_mask
        if self.version > 1 and kind != GTF_permit_access:
            return GTF_invalid, 0, 0
        return entry.flags | self.entries.in_use(ref), entry.domid, entry.gfn

    def _drop_status(self) -> bool:
        """Frees the status frames; False, and a crash, if somebody else still has one mapped."""
        domain = self.domain
        for page in self.status:
            gfn = domain.physmap.find(page.frame)
            if gfn >= 0:
                domain.pages.take_out(gfn)
        domain.pages.settle()
        if any(domain.host.frames.references(page.frame) for page in self.status):
            domain.crash("a status frame of its grant table is in use when it should go")
            return False
        self._release(self.status)
        self.status.clear()
        return True

    def set_reserved(self, ref: int, domid: int, gfn: int) -> None:
        """Grants a special page to a domain before the guest starts (console, xenstore).

        Raises ValueError for a reference that is the guest's own.
        """
        if ref not in _RESERVED:
            raise ValueError(f"grant reference {ref} is not reserved for the toolstack")
        self.entries.write(ref, GTF_permit_access, domid, gfn)

    # ---- use of an entry ------------------------------------------------------------------------

    def pin(self, ref: int, domid: int, *, readonly: bool) -> Pin:
        """Takes an entry up for a mapping, with a reference to its frame; raises GrantError."""
        pin = self._in_use(ref, domid, readonly)
        if pin is not None and pin.part:
            raise GrantError(GNTST_general_error, "it is in use for a part of its page")
        if pin is None or (not readonly and not pin.writers):
            self.entries.claim(ref, domid, readonly=readonly, pinned=pin is not None, whole=True)
        if pin is None:
            gfn = self.entries.read(ref).gfn
            frame = self.domain.pages.frame_at(gfn, write=not readonly)
            if frame < 0:
                self._unmark(ref, None, readonly)
                raise GrantError(GNTST_bad_page, f"guest frame {gfn:#x} is no memory")
            pin = self.pins[ref] = Pin(domid, frame, gfn)
        self._count(pin, readonly)
        if not self.domain.pages.owns(pin.frame):
            self._unpin(ref, pin, readonly)
            raise GrantError(GNTST_general_error, "the granted frame is not its grantor's")
        self.domain.host.frames.get(pin.frame)
        return pin

    def unpin(self, ref: int, *, readonly: bool) -> None:
        """Ends one `pin`."""
        pin = self.pins[ref]
        self._unpin(ref, pin, readonly)
        self.domain.host.frames.put(pin.frame)

    def claim(self, ref: int, domid: int, *, readonly: bool, transitive: bool = True) -> Claim:
        """Takes an entry up for one copy; raises GrantError."""
        pin = self._in_use(ref, domid, readonly)
        entry = self.entries.read(ref)
        through = entry.transitive is not None
        if pin is not None and pin.through != through:
            raise GrantError(GNTST_eagain, "it changed its kind while in use")
        source: Claim | None = None
        if through or pin is None or (not readonly and not pin.writers):
            self.entries.claim(ref, domid, readonly=readonly, pinned=pin is not None, whole=False)
            # What counts is what is there once the guest sees that the entry is in use.
            entry = self.entries.read(ref)
            try:
                if (entry.transitive is not None) != through:
                    raise GrantError(GNTST_general_error, "the guest keeps changing the entry")
                if through:
                    source = self._follow(entry, readonly, transitive)
                    found = source.pin
                else:
                    found = self._granted(entry, readonly)
                if pin is not None:
                    self._check_same(pin, found)
            except GrantError:
                if source is not None:
                    source.release()
                self._unmark(ref, pin, readonly)
                raise
            if pin is None:
                pin = self.pins[ref] = Pin(
                    domid,
                    found.frame,
                    found.gfn,
                    found.offset,
                    found.length,
                    found.part or through,
                    through,
                )
        self._count(pin, readonly)
        return Claim(self, ref, pin, readonly, source)

    def unpin_claim(self, claim: Claim) -> None:
        """Ends one `claim`; for `Claim.release`."""
        self._unpin(claim.ref, claim.pin, claim.readonly)

    def _in_use(self, ref: int, domid: int, readonly: bool) -> Pin | None:
        """The pin of an entry that is in use, if `domid` may use it once more."""
        if ref >= len(self.entries):
            raise GrantError(GNTST_bad_gntref, f"there is no reference {ref}")
        pin = self.pins.get(ref)
        if pin is not None and (
            pin.domid != domid or (pin.readers if readonly else pin.writers) >= _MOST_PINS
        ):
            raise GrantError(GNTST_general_error, "it is in use by another domain or too often")
        return pin

    @staticmethod
    def _count(pin: Pin, readonly: bool) -> None:
        if readonly:
            pin.readers += 1
        else:
            pin.writers += 1

    def _granted(self, entry: Entry, readonly: bool) -> Pin:
        frame = self.domain.pages.frame_at(entry.gfn, write=not readonly)
        if frame < 0:
            raise GrantError(GNTST_bad_page, f"guest frame {entry.gfn:#x} is no memory")
        return Pin(0, frame, entry.gfn, entry.offset, entry.length, entry.part)

    def _check_same(self, pin: Pin, found: Pin) -> None:
        """An entry that is in use must still lead where it did, unless that is the grantor's own.

        Or else what was taken up for reading could be written by the rights to something else.
        """
        now = (found.frame, found.offset, found.length)
        if now != (pin.frame, pin.offset, pin.length) and (
            pin.through or not self.domain.pages.owns(pin.frame)
        ):
            raise GrantError(GNTST_eagain, "it leads elsewhere than when it was taken up")

    def _follow(self, entry: Entry, readonly: bool, transitive: bool) -> Claim:
        assert entry.transitive is not None
        domid, ref = entry.transitive
        other = self.domain.host.domain(domid)
        if not transitive or other is None or other is self.domain:
            raise GrantError(GNTST_general_error, "a transitive grant leads nowhere")
        return other.grants.claim(ref, self.domain.domid, readonly=readonly, transitive=False)

    def _unpin(self, ref: int, pin: Pin, readonly: bool) -> None:
        if readonly:
            pin.readers -= 1
        else:
            pin.writers -= 1
        if pin.readers or pin.writers:
            self._unmark(ref, pin, readonly)
        else:
            del self.pins[ref]
            self._unmark(ref, None, readonly)

    def _unmark(self, ref: int, pin: Pin | None, readonly: bool) -> None:
        """Brings an entry's marks of use down to what is still in use of it."""
        flags = 0
        if not readonly and (pin is None or not pin.writers):
            flags = GTF_writing
        if pin is None:
            flags |= GTF_reading
        if flags and not self.dead:
            self.entries.unclaim(ref, flags)

    def swap(self, a: int, b: int) -> int:
        """Exchanges two entries that are not in use; returns a GNTST_*."""
        if a >= len(self.entries) or b >= len(self.entries):
            return GNTST_bad_gntref
        if a != b:
            if a in self.pins or b in self.pins:
                return GNTST_eagain
            self.entries.swap(a, b)
        return 0

    def store(self, frame: int, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Writes into a page of this domain, which its guest may execute, if it still runs."""
        if self.dead:
            Page(self.domain.host.machine, frame).write(offset, data)
        else:
            self.domain.partition.write(frame, offset, data)

    def in_place(self, frame: int) -> bool:
        """Whether a page of this domain holds no code, so that it may be written directly."""
        return self.dead or not self.domain.partition.executed(frame)

    def stored(self, frame: int, offset: int = 0, size: int = PAGE_SIZE) -> None:
        """Bytes of a page of this domain were written directly."""
        if not self.dead and self.domain.partition.executed(frame):
            self.domain.partition.contents_replaced(frame, offset, size)

    # ---- for backends in this process -----------------------------------------------------------

    def map_for_backend(
        self, ref: int, *, readonly: bool = False, domid: int = 0
    ) -> BackendMapping:
        """Maps a page that the guest granted to domain `domid`; raises GrantError."""
        return BackendMapping(self, ref, self.pin(ref, domid, readonly=readonly), readonly)

    def read_grant(self, ref: int, offset: int, size: int, *, domid: int = 0) -> bytes:
        """Copies bytes out of a granted page; raises GrantError."""
        claim = self.claim(ref, domid, readonly=True)
        try:
            claim.check(offset, size)
            return claim.read(offset, size)
        finally:
            claim.release()

    def write_grant(
        self, ref: int, offset: int, data: bytes | bytearray | memoryview, *, domid: int = 0
    ) -> None:
        """Copies bytes into a granted page; raises GrantError."""
        claim = self.claim(ref, domid, readonly=False)
        try:
            claim.check(offset, len(data))
            claim.write(offset, data)
        finally:
            claim.release()

    # ---- the end --------------------------------------------------------------------------------

    def destroy(self) -> None:
        """Unmaps what the domain has mapped and frees the table; its vCPUs must be gone.

        Whoever still has a page of this domain mapped keeps that page until he lets it go.
        """
        if self.dead:
            return
        for mapping in self.maptrack.mapped.values():
            mapping.table.unpin(mapping.ref, readonly=mapping.readonly)
        self.maptrack.mapped.clear()
        self.dead = True
        self.loans.close()
        self._release([*self.frames, *self.status])
        self.frames.clear()
        self.status.clear()


def _too_much_for_v1(entry: Entry) -> bool:
    kind = entry.flags & GTF_type_mask
    if kind == GTF_permit_access:
        return entry.gfn >= _V1_FRAME_LIMIT
    return kind == GTF_transitive
