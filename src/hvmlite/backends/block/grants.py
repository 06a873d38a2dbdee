"""The guest's pages that a queue's requests lie in, mapped for one request or kept mapped.

A frontend with persistent grants uses the same pages again and again; what it does not use for a
while is given up, so that the guest gets its memory back. Facts: public/io/blkif.h on
feature-persistent.
"""

from __future__ import annotations

from collections.abc import Sequence

from hvmlite.abi.blkif import SECTOR_SIZE
from hvmlite.backends.device import Device
from hvmlite.hypervisor.grant_table import BackendMapping

MOST_KEPT = 4096
"""Pages that one queue keeps mapped: 16 MiB."""


class Pages:
    """The pages of one request: `views` of all their bytes, and their machine frames.

    `own` are those that were mapped for it alone, to be released.
    """

    __slots__ = ("_mappings", "frames", "own", "views")

    def __init__(
        self,
        mappings: list[BackendMapping],
        views: list[memoryview],
        frames: list[int],
        own: list[BackendMapping],
    ) -> None:
        self._mappings = mappings
        self.views = views
        self.frames = frames
        self.own = own

    def stored(self, first: Sequence[int], last: Sequence[int]) -> None:
        """Sectors `first` to `last` of each were written, and the guest executes some of them."""
        for mapping, start, end in zip(self._mappings, first, last, strict=True):
            mapping.stored(start * SECTOR_SIZE, (end + 1 - start) * SECTOR_SIZE)

    def put(self, data: memoryview, first: Sequence[int], last: Sequence[int]) -> None:
        """Writes data into pages that may hold code, into the sectors `first` to `last` of each."""
        at = 0
        for mapping, start, end in zip(self._mappings, first, last, strict=True):
            size = (end + 1 - start) * SECTOR_SIZE
            mapping.write(start * SECTOR_SIZE, data[at : at + size])
            at += size


class GrantedPages:
    """Maps pages for requests; with `persistent` it keeps them.

    What is kept is in two generations: `rotate` drops the older one, of which nothing was used
    since the last time.
    """

    def __init__(self, device: Device, *, persistent: bool) -> None:
        self._device = device
        self._persistent = persistent
        self._kept: dict[int, BackendMapping] = {}
        self._views: dict[int, memoryview] = {}
        self._frames: dict[int, int] = {}
        self._older: dict[int, BackendMapping] = {}

    def __len__(self) -> int:
        return len(self._kept) + len(self._older)

    def find(self, refs: Sequence[int], *, readonly: bool) -> Pages:
        """The pages of one request; maps what is not mapped.  Raises GrantError."""
        try:
            return Pages(
                [*map(self._kept.__getitem__, refs)],
                [*map(self._views.__getitem__, refs)],
                [*map(self._frames.__getitem__, refs)],
                [],
            )
        except KeyError:
            return self._map(refs, readonly=readonly and not self._persistent)

    def _map(self, refs: Sequence[int], *, readonly: bool) -> Pages:
        mappings: list[BackendMapping] = []
        own: list[BackendMapping] = []
        try:
            for ref in refs:
                mapping = self._kept.get(ref) or self._revive(ref)
                if mapping is None:
                    mapping = self._device.map(ref, readonly=readonly)
                    if self._persistent and len(self) < MOST_KEPT:
                        self._keep(ref, mapping)
                    else:
                        own.append(mapping)
                mappings.append(mapping)
        except BaseException:
            self.release(own)
            raise
        pages = [each.page for each in mappings]
        return Pages(mappings, [page.u8 for page in pages], [page.frame for page in pages], own)

    def _revive(self, ref: int) -> BackendMapping | None:
        mapping = self._older.pop(ref, None)
        if mapping is not None:
            self._keep(ref, mapping)
        return mapping

    def _keep(self, ref: int, mapping: BackendMapping) -> None:
        self._kept[ref] = mapping
        self._views[ref] = mapping.page.u8
        self._frames[ref] = mapping.page.frame

    def release(self, mappings: Sequence[BackendMapping]) -> None:
        """Gives up what was mapped for one request."""
        for mapping in mappings:
            self._device.unmap(mapping)

    def rotate(self) -> None:
        """Gives up what was not used since the last time; no request may be under way."""
        self.release(list(self._older.values()))
        self._older = self._kept
        self._kept = {}
        self._views = {}
        self._frames = {}
