"""One domain's grant table: its frames, its version and what is mapped of it.

Facts: public/grant_table.h and the answers of real Xen 4.17.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvmlite.abi.grant_table import (
    GNTTAB_NR_RESERVED_ENTRIES,
    GTF_permit_access,
    grant_entry_v1,
    grant_entry_v2_full_page,
)
from hvmlite.engine.memory import PAGE_SIZE
from hvmlite.errors import HvmliteError
from hvmlite.hypervisor.memory import Page

if TYPE_CHECKING:
    from hvmlite.hypervisor.domain import Domain

V1_PER_FRAME = PAGE_SIZE // grant_entry_v1.sizeof()
V2_PER_FRAME = PAGE_SIZE // grant_entry_v2_full_page.sizeof()
STATUS_PER_FRAME = PAGE_SIZE // 2


class GrantError(HvmliteError):
    """A grant cannot be used as asked: `status` is one of GNTST_*."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(f"grant: {why} (status {status})")
        self.status = status


class GrantTable:
    """The grants of one domain."""

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self.version = 1
        self.frames: list[Page] = []
        self.status: list[Page] = []
        self.grow(1)

    @property
    def max_frames(self) -> int:
        """How many frames the table may grow to."""
        return self.domain.limits.max_grant_frames

    def grow(self, frames: int) -> bool:
        """Brings the table to at least that many frames; False if it may not grow that far."""
        if frames > self.max_frames:
            return False
        while len(self.frames) < frames:
            self.frames.append(self._new_page())
        if self.version == 2:
            self._grow_status()
        return True

    def _grow_status(self) -> None:
        wanted = -(-len(self.frames) * V2_PER_FRAME // STATUS_PER_FRAME)
        while len(self.status) < wanted:
            self.status.append(self._new_page())

    def frame(self, idx: int) -> int:
        """The machine frame for XENMAPSPACE_grant_table; -1 if there is none."""
        if self.version == 2 and idx & 0x80000000:
            idx &= ~0x80000000
            if idx < len(self.status):
                return self.status[idx].frame
            return -1
        return self.frames[idx].frame if self.grow(idx + 1) else -1

    def _new_page(self) -> Page:
        machine = self.domain.host.machine
        page = Page(machine, machine.allocate(1))
        self.domain.pages.share(page.frame)
        return page

    def set_version(self, version: int) -> None:
        """Takes up a version of the table's layout; the table must have no user entries."""
        if version == self.version:
            return
        keep = []
        for ref in range(GNTTAB_NR_RESERVED_ENTRIES):
            keep.append(self._reserved(ref))
        for page in self.frames:
            page.write(0, bytes(PAGE_SIZE))
        self.version = version
        if version == 2:
            self._grow_status()
        for ref, (flags, domid, frame) in enumerate(keep):
            self._store(ref, flags, domid, frame)

    def _reserved(self, ref: int) -> tuple[int, int, int]:
        if self.version == 1:
            v1 = grant_entry_v1.unpack(self.frames[0].u8, offset=ref * grant_entry_v1.sizeof())
            return v1.flags, v1.domid, v1.frame
        v2 = grant_entry_v2_full_page.unpack(
            self.frames[0].u8, offset=ref * grant_entry_v2_full_page.sizeof()
        )
        return v2.hdr.flags, v2.hdr.domid, v2.frame

    def _store(self, ref: int, flags: int, domid: int, frame: int) -> None:
        data = grant_entry_v1(flags, domid, frame).pack()
        if self.version == 2:
            full = grant_entry_v2_full_page(frame=frame)
            full.hdr.flags, full.hdr.domid = flags, domid
            data = full.pack()
        self.frames[0].write(ref * len(data), data)

    def set_reserved(self, ref: int, domid: int, gfn: int) -> None:
        """Grants a special page to a domain before the guest starts (console, xenstore)."""
        if not 0 <= ref < GNTTAB_NR_RESERVED_ENTRIES:
            raise ValueError(f"reference {ref} is not reserved for the toolstack")
        self._store(ref, GTF_permit_access, domid, gfn)

    def destroy(self) -> None:
        """Frees everything."""
        for page in (*self.frames, *self.status):
            self.domain.host.frames.release(page.frame)
        self.frames, self.status = [], []
