"""The one checked way to guest memory.

A guest-physical address is its own type and never a host address; every access is bounded by the
domain's physmap.  Writes go through the engine, which alone knows what a running guest needs to
see them as code; words that the guest changes too change by the atomic operations of `Page`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from itertools import pairwise
from typing import NewType

from hvmlite.engine import atomics
from hvmlite.engine.base import Partition
from hvmlite.engine.memory import PAGE_SHIFT, PAGE_SIZE, MachineMemory, address_of
from hvmlite.errors import HvmliteError
from hvmlite.hypervisor.physmap import Physmap

Gpa = NewType("Gpa", int)
"""A guest-physical byte address."""
Gfn = NewType("Gfn", int)
"""A guest frame number: a guest-physical address / 4096."""


class GuestAccessError(HvmliteError):
    """An address that the guest handed over has no memory behind it, or may not be written."""

    def __init__(self, gpa: int, size: int, why: str = "no memory there") -> None:
        super().__init__(f"invalid guest access: address {gpa:#x}, {size} bytes: {why}")
        self.gpa = gpa
        self.size = size


class Page:
    """One machine frame, mapped for the hypervisor.

    `u8`, `u32`, `u64` view its 4096 bytes in units of 1, 4 and 8; an index beyond them raises
    IndexError.  The atomic operations take an index in their own units and are full barriers.
    Store plain only what the guest does not write; these stores are for data, not for code.
    """

    __slots__ = ("_base", "frame", "u8", "u32", "u64")

    def __init__(self, memory: MachineMemory, frame: int) -> None:
        self.frame = frame
        start = frame << PAGE_SHIFT
        self._base = memory.address + start
        self.u8 = memory.u8[start : start + PAGE_SIZE]
        self.u32 = self.u8.cast("I")
        self.u64 = self.u8.cast("Q")

    @property
    def address(self) -> int:
        """Where the page lies in this process, for `engine.atomics`."""
        return self._base

    def read(self, offset: int, size: int) -> bytes:
        """A copy of `size` bytes from `offset`."""
        self._check(offset, size)
        return bytes(self.u8[offset : offset + size])

    def write(self, offset: int, data: bytes | bytearray | memoryview) -> None:
        """Stores bytes at `offset`."""
        self._check(offset, len(data))
        self.u8[offset : offset + len(data)] = data

    @staticmethod
    def _check(offset: int, size: int) -> None:
        if offset < 0 or size < 0 or offset + size > PAGE_SIZE:
            raise IndexError(f"bytes {offset}+{size} are not in one page")

    def _at(self, index: int, size: int) -> int:
        offset = index * size
        if not 0 <= offset < PAGE_SIZE:
            raise IndexError(f"offset {offset} is not in the page")
        return self._base + offset

    def fetch_or8(self, index: int, mask: int) -> int:
        """Sets bits of a byte; returns its old value."""
        return atomics.fetch_or8(self._at(index, 1), mask)

    def fetch_and16(self, index: int, mask: int) -> int:
        """Keeps only the bits of `mask` in a 16-bit word; returns its old value."""
        return atomics.fetch_and16(self._at(index, 2), mask)

    def fetch_or32(self, index: int, mask: int) -> int:
        """Sets bits of a 32-bit word; returns its old value."""
        return atomics.fetch_or32(self._at(index, 4), mask)

    def fetch_and32(self, index: int, mask: int) -> int:
        """Keeps only the bits of `mask` in a 32-bit word; returns its old value."""
        return atomics.fetch_and32(self._at(index, 4), mask)

    def fetch_or64(self, index: int, mask: int) -> int:
        """Sets bits of a 64-bit word; returns its old value."""
        return atomics.fetch_or64(self._at(index, 8), mask)

    def fetch_and64(self, index: int, mask: int) -> int:
        """Keeps only the bits of `mask` in a 64-bit word; returns its old value."""
        return atomics.fetch_and64(self._at(index, 8), mask)

    def exchange32(self, index: int, value: int) -> int:
        """Replaces a 32-bit word; returns its old value."""
        return atomics.exchange32(self._at(index, 4), value)

    def cmpxchg16(self, index: int, expected: int, new: int) -> int:
        """Replaces a 16-bit word if it is `expected`; returns its old value."""
        return atomics.cmpxchg16(self._at(index, 2), expected, new)

    def cmpxchg32(self, index: int, expected: int, new: int) -> int:
        """Replaces a 32-bit word if it is `expected`; returns its old value."""
        return atomics.cmpxchg32(self._at(index, 4), expected, new)


class Window:
    """Machine frames mapped one behind the other, in the order given: a ring of several pages.

    `u8`, `u32` and `u64` view them in units of 1, 4 and 8 bytes.  As for `Page`: plain stores are
    for words that the guest does not write, and for data, not for code.
    """

    __slots__ = ("_base", "_region", "u8", "u32", "u64")

    def __init__(self, memory: MachineMemory, frames: Sequence[int]) -> None:
        self._region = memory.map_together(frames)
        self.u8 = memoryview(self._region)
        self.u32 = self.u8.cast("I")
        self.u64 = self.u8.cast("Q")
        self._base = address_of(self._region)

    @property
    def address(self) -> int:
        """Where the window lies in this process, for `engine.atomics`."""
        return self._base

    def exchange32(self, index: int, value: int) -> int:
        """Replaces a 32-bit word, with a full barrier; returns its old value."""
        if not 0 <= index < len(self.u32):
            raise IndexError(f"word {index} is not in the window")
        return atomics.exchange32(self._base + index * 4, value)

    def close(self) -> None:
        """Unmaps the frames, or leaves it to the last view of them; safe to call twice."""
        self.u64.release()
        self.u32.release()
        self.u8.release()
        with contextlib.suppress(BufferError):
            self._region.close()


class GuestMemory:
    """The guest-physical memory of one domain."""

    def __init__(self, machine: MachineMemory, partition: Partition, physmap: Physmap) -> None:
        self.machine = machine
        self._partition = partition
        self._physmap = physmap

    def read(self, gpa: Gpa, size: int) -> bytes:
        """A copy of `size` bytes from a guest-physical address; raises GuestAccessError."""
        offset = gpa & (PAGE_SIZE - 1)
        if 0 <= size <= PAGE_SIZE - offset:
            frame = self._physmap.readable(gpa >> PAGE_SHIFT)
            if frame < 0:
                raise GuestAccessError(gpa, size)
            start = frame << PAGE_SHIFT | offset
            return bytes(self.machine.u8[start : start + size])
        parts = [self.read(at, step) for at, step in _pages(gpa, size)]
        return b"".join(parts)

    def write(self, gpa: Gpa, data: bytes | bytearray | memoryview) -> None:
        """Stores bytes at a guest-physical address; raises GuestAccessError, then writes nothing.

        What is written may be executed at once, also if older code was there.
        """
        size = len(data)
        offset = gpa & (PAGE_SIZE - 1)
        if size <= PAGE_SIZE - offset:
            self._partition.write(self._writable(gpa, size), offset, data)
            return
        pieces: list[tuple[int, int, int]] = []
        for at, step in _pages(gpa, size):
            frame = self._writable(at, size)
            # Join what lies together: one long write costs the engine less than many.
            if pieces and pieces[-1][0] + (pieces[-1][1] + pieces[-1][2] >> PAGE_SHIFT) == frame:
                first, start, length = pieces[-1]
                pieces[-1] = (first, start, length + step)
            else:
                pieces.append((frame, at & (PAGE_SIZE - 1), step))
        view, done = memoryview(data), 0
        for frame, start, length in pieces:
            self._partition.write(frame, start, view[done : done + length])
            done += length

    def is_readonly(self, gpa: Gpa) -> bool:
        """Whether there is memory at an address that the guest may not write."""
        gfn = gpa >> PAGE_SHIFT
        return self._physmap.writable(gfn) < 0 <= self._physmap.readable(gfn)

    def _writable(self, gpa: Gpa, size: int) -> int:
        frame = self._physmap.writable(gpa >> PAGE_SHIFT)
        if frame < 0:
            why = "read-only" if self.is_readonly(gpa) else None
            raise GuestAccessError(gpa, size, *(why,) if why else ())
        return frame

    def page(self, gfn: Gfn) -> Page:
        """The page behind a guest frame, writable; raises GuestAccessError."""
        return Page(self.machine, self._writable(Gpa(gfn << PAGE_SHIFT), PAGE_SIZE))


def _pages(gpa: Gpa, size: int) -> list[tuple[Gpa, int]]:
    """Cuts a range at page boundaries into (address, size)."""
    if size < 0 or gpa < 0 or gpa + size > 1 << 52:
        raise GuestAccessError(gpa, size, "outside of the physical address space")
    end = gpa + size
    cuts = [gpa, *range((gpa | (PAGE_SIZE - 1)) + 1, end, PAGE_SIZE), end]
    return [(Gpa(at), to - at) for at, to in pairwise(cuts)]
