"""Machine memory: the frames that all domains of one host are made of.

One anonymous memory file, mapped here and by every engine process, so that a frame can be shared
between domains (grants, foreign mappings) as on real hardware.  It is sparse: a frame costs host
memory once it is touched.  This module hands out frames; who owns them is the hypervisor's affair.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from bisect import bisect_left, insort
from collections.abc import Sequence

from hvmlite.errors import EngineError

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
RESERVED_FRAMES = 0x100
"""The first MiB is never handed out: engines keep start-up code for real mode there."""

_MAP_FIXED = 0x10
_FALLOC_FL_KEEP_SIZE = 1
_FALLOC_FL_PUNCH_HOLE = 2


class MachineMemory:
    """A pool of zeroed 4 KiB frames.

    `u8`, `u32` and `u64` view all of it in units of 1, 4 and 8 bytes; `address` is where it starts
    in this process.  Frames are plain numbers: byte offset / 4096.
    """

    def __init__(self, size: int) -> None:
        """Makes a pool of `size` bytes (rounded up to 2 MiB), reserved frames included."""
        size = -(-size >> 21) << 21
        if size <= RESERVED_FRAMES << PAGE_SHIFT:
            raise ValueError("machine memory is smaller than its reserved part")
        self.size = size
        self.fd = os.memfd_create("hvmlite", os.MFD_CLOEXEC)
        try:
            os.ftruncate(self.fd, size)
            self._map = mmap.mmap(self.fd, size)
        except (OSError, OverflowError, ValueError) as error:
            os.close(self.fd)
            raise EngineError(f"cannot map {size >> 20} MiB of machine memory: {error}") from error
        self.u8 = memoryview(self._map)
        self.u32 = self.u8.cast("I")
        self.u64 = self.u8.cast("Q")
        self._anchor = ctypes.c_char.from_buffer(self._map)
        self.address = ctypes.addressof(self._anchor)
        self.frames = size >> PAGE_SHIFT
        # Free extents as (start, count), ordered, never touching each other.
        self._free = [(RESERVED_FRAMES, self.frames - RESERVED_FRAMES)]

    @property
    def free_frames(self) -> int:
        """How many frames are not handed out."""
        return sum(count for _, count in self._free)

    def allocate(self, count: int, align: int = 1, *, low: bool = False) -> int:
        """Takes `count` consecutive zeroed frames, the first a multiple of `align` frames.

        From the end of the pool, or from its start with `low` (engines need low addresses).
        Raises MemoryError if there is no such run.
        """
        order = range(len(self._free)) if low else range(len(self._free) - 1, -1, -1)
        for i in order:
            start, length = self._free[i]
            if low:
                first = -(-start // align) * align
            else:
                first = (start + length - count) // align * align
            if first >= start and first + count <= start + length:
                pieces = [(start, first - start), (first + count, start + length - first - count)]
                self._free[i : i + 1] = [piece for piece in pieces if piece[1]]
                return first
        raise MemoryError(f"no {count} consecutive free frames of {self.frames}")

    def release(self, frame: int, count: int = 1) -> None:
        """Gives frames back; their contents are dropped."""
        i = bisect_left(self._free, (frame,))
        before = self._free[i - 1] if i else (0, 0)
        if (
            frame < RESERVED_FRAMES
            or frame + count > self.frames
            or sum(before) > frame
            or (i < len(self._free) and frame + count > self._free[i][0])
        ):
            raise ValueError(f"frames {frame:#x}+{count:#x} are not handed out")
        self.drop(frame, count)
        insort(self._free, (frame, count))
        for j in (i, i - 1):
            if 0 <= j < len(self._free) - 1 and sum(self._free[j]) == self._free[j + 1][0]:
                self._free[j : j + 2] = [
                    (self._free[j][0], self._free[j][1] + self._free[j + 1][1])
                ]

    def drop(self, frame: int, count: int = 1) -> None:
        """Zeroes frames by giving their host memory back."""
        offset, length = frame << PAGE_SHIFT, count << PAGE_SHIFT
        _fallocate(self.fd, _FALLOC_FL_PUNCH_HOLE | _FALLOC_FL_KEEP_SIZE, offset, length)

    def map_together(self, frames: Sequence[int]) -> mmap.mmap:
        """Maps frames one behind the other, in the order given; the caller closes the mapping.

        Raises ValueError for a frame that is not in the pool, OSError if there is no room.
        """
        if not frames or not all(0 <= frame < self.frames for frame in frames):
            raise ValueError(f"no frames of the pool: {frames}")
        # The address range is the object's; what is in it is replaced page by page.
        region = mmap.mmap(-1, len(frames) << PAGE_SHIFT, mmap.MAP_SHARED)
        address = address_of(region)
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        flags = mmap.MAP_SHARED | _MAP_FIXED
        for i, frame in enumerate(frames):
            at, offset = address + (i << PAGE_SHIFT), frame << PAGE_SHIFT
            if _libc.mmap(at, PAGE_SIZE, protection, flags, self.fd, offset) != at:
                error = ctypes.get_errno()
                region.close()
                raise OSError(error, os.strerror(error))
        return region

    def close(self) -> None:
        """Unmaps the pool; views that others still hold keep it alive until they go."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
            del self._anchor
            for view in (self.u64, self.u32, self.u8):
                view.release()
            try:
                self._map.close()
            except BufferError:
                # A caller still holds a view: the mapping goes with the last of them.
                return


def address_of(buffer: mmap.mmap) -> int:
    """Where a mapping starts in this process."""
    return ctypes.addressof(ctypes.c_char.from_buffer(buffer))


_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_int64,
)  # fmt: skip
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


def _fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    if _libc.fallocate(fd, mode, offset, length):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
