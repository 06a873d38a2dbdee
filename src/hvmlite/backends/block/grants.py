"""The guest's pages that a queue's requests lie in, taken up for one request or kept mapped.

A frontend with persistent grants uses the same pages again and again; what it does not use for a
while is given up, so that the guest gets its memory back. Facts: public/io/blkif.h on
feature-persistent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from hvmlite.abi.blkif import SECTOR_SIZE, SECTORS_PER_PAGE
from hvmlite.abi.ring import XEN_PAGE_SHIFT
from hvmlite.backends.device import Device, DeviceError
from hvmlite.hypervisor.grant_table import BackendMapping

_PAGE_SIZE = 1 << XEN_PAGE_SHIFT
MOST_KEPT = 4096
"""Pages that one queue keeps mapped: 16 MiB."""
Spans = Sequence[tuple[int, int]]
"""Bytes of machine memory, in the order of a request: where each starts, and how many."""
Parts = tuple[Sequence[int], Sequence[int]] | None
"""The first and the last sector that is meant of each page; None for whole pages."""


class Pages(Protocol):
    """The pages of one request: their machine frames, until `release`."""

    frames: list[int]

    def keep(self) -> None:
        """They are needed for longer than this turn; raises GrantError. `frames` may change."""

    def release(self) -> None:
        """The request is done with; safe to call twice."""


class PageSource(Protocol):
    """Where a queue has its pages from."""

    def find(self, refs: Sequence[int], *, readonly: bool) -> Pages:
        """The pages of one request; raises GrantError."""

    def rotate(self) -> None:
        """Gives up what was not used since the last time; no request may be under way."""


def count_sectors(first: Sequence[int], last: Sequence[int]) -> int:
    """Sectors of a request's segments; raises DeviceError for one that cannot be."""
    for start, end in zip(first, last, strict=True):
        if not start <= end < SECTORS_PER_PAGE:
            raise DeviceError(f"a segment of sectors {start} to {end} of a page")
    return sum(last) - sum(first) + len(first)


def spans(frames: Sequence[int], rest: Parts) -> Spans:
    """Where a request's bytes are, in as few spans as whole pages come to."""
    if rest is not None:
        return [
            ((frame << XEN_PAGE_SHIFT) + start * SECTOR_SIZE, (end + 1 - start) * SECTOR_SIZE)
            for frame, start, end in zip(frames, *rest, strict=True)
        ]
    first = frames[0]
    if len(frames) == 1:
        return ((first << XEN_PAGE_SHIFT, _PAGE_SIZE),)
    found = []
    end = first
    for frame in frames:
        if frame != end:
            found.append((first << XEN_PAGE_SHIFT, end - first << XEN_PAGE_SHIFT))
            first = end = frame
        end += 1
    found.append((first << XEN_PAGE_SHIFT, end - first << XEN_PAGE_SHIFT))
    return found


class _Kept:
    """The pages of one request of a frontend with persistent grants.

    `own` are those that were mapped for it alone.
    """

    __slots__ = ("_device", "_own", "frames")

    def __init__(self, device: Device, frames: list[int], own: list[BackendMapping]) -> None:
        self._device = device
        self._own = own
        self.frames = frames

    def keep(self) -> None:
        """See `Pages.keep`."""

    def release(self) -> None:
        """See `Pages.release`."""
        if self._own:
            for mapping in self._own:
                self._device.unmap(mapping)
            self._own = []


class PersistentPages:
    """Maps pages for requests and keeps them.

    What is kept is in two generations: `rotate` drops the older one, of which nothing was used
    since the last time.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._kept: dict[int, BackendMapping] = {}
        self._frames: dict[int, int] = {}
        self._older: dict[int, BackendMapping] = {}

    def __len__(self) -> int:
        return len(self._kept) + len(self._older)

    def find(self, refs: Sequence[int], *, readonly: bool) -> Pages:
        """See `PageSource.find`; maps what is not mapped: for writing, whatever it is now for."""
        try:
            return _Kept(self._device, [*map(self._frames.__getitem__, refs)], [])
        except KeyError:
            return self._map(refs)

    def _map(self, refs: Sequence[int]) -> Pages:
        frames: list[int] = []
        own: list[BackendMapping] = []
        device = self._device
        try:
            for ref in refs:
                mapping = self._kept.get(ref) or self._revive(ref)
                if mapping is None:
                    mapping = device.map(ref)
                    if len(self) < MOST_KEPT:
                        self._keep(ref, mapping)
                    else:
                        own.append(mapping)
                frames.append(mapping.page.frame)
        except BaseException:
            for mapping in own:
                device.unmap(mapping)
            raise
        return _Kept(device, frames, own)

    def _revive(self, ref: int) -> BackendMapping | None:
        mapping = self._older.pop(ref, None)
        if mapping is not None:
            self._keep(ref, mapping)
        return mapping

    def _keep(self, ref: int, mapping: BackendMapping) -> None:
        self._kept[ref] = mapping
        self._frames[ref] = mapping.page.frame

    def rotate(self) -> None:
        """See `PageSource.rotate`."""
        for mapping in self._older.values():
            self._device.unmap(mapping)
        self._older = self._kept
        self._kept = {}
        self._frames = {}


class MomentaryPages:
    """Takes pages up for one request each."""

    def __init__(self, device: Device) -> None:
        self._loans = device.control.loans(device.domain)

    def find(self, refs: Sequence[int], *, readonly: bool) -> Pages:
        """See `PageSource.find`."""
        return self._loans.take(refs, readonly=readonly)

    def rotate(self) -> None:
        """See `PageSource.rotate`: nothing is kept."""
