"""The frames that a domain owns, and the rules by which its physmap changes.

A frame of the domain's own is at one guest frame at most; what only the guest gave away stays its
own until it is freed.  The rules are those of real Xen's p2m_add_page, p2m_remove_page and
guest_remove_page, as its answers show them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvmlite.abi.errno import XEN_EINVAL, XEN_ENOENT, XEN_ENOMEM, XEN_ENXIO, XEN_EPERM
from hvmlite.hypervisor.frames import FrameSet
from hvmlite.hypervisor.physmap import OWN_TYPES, SPECIAL_TYPES, P2mType

if TYPE_CHECKING:
    from hvmlite.hypervisor.domain import Domain

GFN_LIMIT = 1 << 36
"""Guest frames that four levels of nested tables reach."""
_REGION_SHIFT = 9
_REGIONS = 1024
"""How many 2 MiB regions beyond its RAM a guest may spread mappings over: each costs a table."""


class Pages:
    """A domain's memory.

    Every method that takes a mapping away leaves work for `settle`, which whoever called it does
    before the guest goes on.
    """

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self._physmap = domain.physmap
        self._frames = domain.host.frames
        self._ram = FrameSet()
        self._special: set[int] = set()
        self._regions: set[int] = set()
        self._stale = False
        self._unused: list[int] = []
        self._unreferenced: list[int] = []

    # ---- ownership ------------------------------------------------------------------------------

    def owns(self, frame: int) -> bool:
        """Whether a machine frame belongs to the domain, be it RAM or shared with Xen."""
        return frame in self._special or frame in self._ram

    def is_special(self, frame: int) -> bool:
        """Whether the frame is one that the hypervisor shares with the guest."""
        return frame in self._special

    def share(self, frame: int) -> None:
        """A frame of the hypervisor's may be mapped by the guest from now on."""
        self._special.add(frame)

    def unshare(self, frame: int) -> None:
        """Ends `share`; the frame must not be mapped any more."""
        self._special.discard(frame)

    def add_ram(self, gfn: int, count: int) -> None:
        """Gives the domain `count` fresh frames of RAM from `gfn` on; raises MemoryError."""
        align = 512 if count >= 512 and not gfn & 511 else 1
        frame = self._domain.host.machine.allocate(count, align)
        self._ram.add(frame, count)
        self._physmap.add_ram(gfn, frame, count)
        self._domain.total_pages += count

    def allocate(self, order: int) -> int:
        """Takes 2**order fresh consecutive frames, not mapped anywhere yet; -1 if it may not."""
        count = 1 << order
        if self._domain.total_pages + count > self._domain.max_pages:
            return -1
        try:
            frame = self._domain.host.machine.allocate(count, count)
        except MemoryError:
            return -1
        self._ram.add(frame, count)
        self._domain.total_pages += count
        # The guest may have had one of them before, and executed what was in it then.
        for each in range(frame, frame + count):
            self._domain.partition.contents_replaced(each)
        return frame

    # ---- the physmap ----------------------------------------------------------------------------

    def frame_at(self, gfn: int, *, write: bool = False) -> int:
        """The frame behind a guest frame for a hypercall to use; -1 if there is none.

        A foreign mapping cannot be passed on, nor a read-only grant be written through.
        """
        entry = self._physmap.lookup(gfn)
        if entry is None or entry[1] in (P2mType.FOREIGN, P2mType.MMIO_DM):
            return -1
        return -1 if write and entry[1] is P2mType.GRANT_RO else entry[0]

    def place(self, gfn: int, frame: int, kind: P2mType, count: int = 1) -> int:
        """Maps frames; returns 0 or a negative errno.

        RAM that was there stays the domain's own, without a place.  A frame of its own moves here.
        Whoever replaces a grant or a foreign mapping in this way crashes.
        """
        if gfn + count > GFN_LIMIT:
            return -XEN_EINVAL
        physmap = self._physmap
        for i in range(count):
            old = physmap.lookup(gfn + i)
            if old is None:
                continue
            if old[1] in SPECIAL_TYPES:
                self._domain.crash(f"guest frame {gfn + i:#x}: a grant mapping was to be replaced")
                return -XEN_EPERM
            self._stale = True
        if not self._has_room(gfn, count):
            return -XEN_ENOMEM
        for i in range(count):
            if self.owns(frame + i):
                place = physmap.find(frame + i)
                if place >= 0 and place != gfn + i:
                    self.take_out(place)
        physmap.set(gfn, frame, kind, count)
        return 0

    def _has_room(self, gfn: int, count: int) -> bool:
        first, last = gfn >> _REGION_SHIFT, (gfn + count - 1) >> _REGION_SHIFT
        regions = set(range(first, last + 1)) - self._regions
        if not regions:
            return True
        limit = _REGIONS + (self._domain.max_pages >> (_REGION_SHIFT - 1))
        if len(self._regions) + len(regions) > limit:
            return False
        self._regions |= regions
        return True

    def take_out(self, gfn: int) -> None:
        """Makes a guest frame a hole; the frame stays its owner's."""
        old = self._physmap.lookup(gfn)
        if old is None:
            return
        self._physmap.clear(gfn)
        self._stale = True
        if old[1] is P2mType.FOREIGN:
            self._unreferenced.append(old[0])

    def free(self, gfn: int) -> int:
        """Makes a guest frame a hole and frees what was there; returns 0 or a negative errno."""
        old = self._physmap.lookup(gfn)
        if old is None or old[1] is P2mType.MMIO_DM:
            return -XEN_ENOENT
        frame, kind = old
        if kind not in OWN_TYPES and not self.owns(frame):
            return -XEN_ENXIO
        self.take_out(gfn)
        if frame not in self._special:
            self._unused.append(frame)
        return 0

    def drop(self, frame: int) -> None:
        """Gives a reference of `FrameTable.get` back once no vCPU can use the frame."""
        self._unreferenced.append(frame)

    def settle(self) -> None:
        """Has every vCPU forget the mappings that went, then frees what was behind them."""
        if self._stale:
            self._stale = False
            self._domain.partition.flush()
        if self._unused:
            frames = sorted(set(self._unused))
            self._unused.clear()
            start = 0
            for i in range(1, len(frames) + 1):
                if i == len(frames) or frames[i] != frames[i - 1] + 1:
                    self._frames.release(frames[start], i - start, self._gone)
                    start = i
        if self._unreferenced:
            for frame in self._unreferenced:
                self._frames.put(frame)
            self._unreferenced.clear()

    def _gone(self, frame: int) -> None:
        self._ram.remove(frame)
        self._domain.total_pages -= 1

    def destroy(self) -> None:
        """Frees all RAM; the partition must be closed."""
        self._unused.clear()
        for frame in self._unreferenced:
            self._frames.put(frame)
        self._unreferenced.clear()
        for start, count in self._ram:
            self._frames.release(start, count)
        self._ram = FrameSet()
