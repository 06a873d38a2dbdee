"""The handles of the grants that a domain has mapped, given out in real Xen's order.

Each vCPU has its own list of free handles: the oldest is used first, and one always stays in it.
"""

from __future__ import annotations

from array import array
from collections import deque
from typing import TYPE_CHECKING

from hvmlite.records import record

if TYPE_CHECKING:
    from hvmlite.hypervisor.grant_table.table import GrantTable

PER_FRAME = 256
"""Handles in one frame of Xen's maptrack table."""
NO_HANDLE = -1


@record
class Mapping:
    """One mapped grant: whose, which, and how."""

    table: GrantTable
    ref: int
    frame: int
    readonly: bool


class Maptrack:
    """The mapped grants of one domain by handle."""

    def __init__(self, max_frames: int) -> None:
        self._max = max_frames * PER_FRAME
        self._free: dict[int, deque[int]] = {}
        self._vcpu = array("I")
        self.mapped: dict[int, Mapping] = {}

    def allocate(self, vcpu: int) -> int:
        """Takes a handle for a vCPU; NO_HANDLE if there is none."""
        free = self._free.setdefault(vcpu, deque())
        if len(free) > 1:
            return free.popleft()
        first = len(self._vcpu)
        if first < self._max:
            self._vcpu.extend([vcpu] * PER_FRAME)
            free.extendleft(range(first + PER_FRAME - 1, first, -1))
            return first
        if not free:
            handle = self._steal(vcpu)
            if handle == NO_HANDLE:
                return NO_HANDLE
            free.append(handle)
        return self._steal(vcpu)

    def _steal(self, vcpu: int) -> int:
        for free in self._free.values():
            if len(free) > 1:
                handle = free.popleft()
                self._vcpu[handle] = vcpu
                return handle
        return NO_HANDLE

    def release(self, handle: int) -> None:
        """Gives a handle back."""
        self.mapped.pop(handle, None)
        self._free[self._vcpu[handle]].append(handle)
