"""Bounded reads of a kernel file, or of what it was decompressed to.

The file is read, never mapped: a file that another process truncates while it is mapped kills the
reader (SIGBUS), and this process may be running other domains.
"""

from __future__ import annotations

import os
import stat
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator

from hvmlite.errors import UserError

MAX_FILE_SIZE = 4 << 30
CHUNK_SIZE = 1 << 20
START_SIZE = 1024
"""Bytes at the beginning of a file that tell what it is."""

_CLOSED = "the kernel image is closed"


class KernelError(UserError):
    """A file that cannot be used as a PVH kernel; `reason` is the message without the file name."""

    def __init__(self, reason: str, name: str = "") -> None:
        super().__init__(f"{name}: {reason}" if name else reason)
        self.reason = reason


class Source(ABC):
    """Bytes that are read by offset; `size` is their number and does not change."""

    size: int

    @abstractmethod
    def _read(self, offset: int, length: int) -> bytes | memoryview:
        """Read `length` bytes; the range was checked."""

    def close(self) -> None:
        """Release what the source holds; reading ends here."""
        return

    def read(self, offset: int, length: int) -> bytes | memoryview:
        """Return exactly `length` bytes from byte `offset`; KernelError if they are not there."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise KernelError(f"{length} bytes at offset {offset:#x} lie beyond its end")
        return self._read(offset, length)

    def chunks(self, offset: int, length: int, step: int = CHUNK_SIZE) -> Iterator[memoryview]:
        """Yield `length` bytes from byte `offset` in pieces of at most `step` bytes."""
        end = offset + length
        while offset < end:
            size = min(step, end - offset)
            yield memoryview(self.read(offset, size))
            offset += size


class BufferSource(Source):
    """Bytes already in memory; nothing is copied."""

    def __init__(self, data: bytes | bytearray | memoryview) -> None:
        self._view = memoryview(data).toreadonly()
        self.size = len(self._view)

    def close(self) -> None:
        """Drop the bytes."""
        self._view = memoryview(b"")

    def _read(self, offset: int, length: int) -> memoryview:
        if len(self._view) != self.size:
            raise KernelError(_CLOSED)
        return self._view[offset : offset + length]


class FileSource(Source):
    """An open regular file. It stays open until `close` or until nothing refers to it."""

    def __init__(self, fd: int, size: int, name: str) -> None:
        self.size = size
        self._fd = fd
        self._name = name
        self._close = weakref.finalize(self, os.close, fd)

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._close()

    def _read(self, offset: int, length: int) -> bytes:
        if not self._close.alive:
            raise KernelError(_CLOSED, self._name)
        parts = []
        while length:
            try:
                part = os.pread(self._fd, length, offset)
            except OSError as error:
                raise KernelError(f"cannot be read: {error.strerror}", self._name) from None
            if not part:
                raise KernelError("became shorter while it was read", self._name)
            parts.append(part)
            offset += len(part)
            length -= len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


def printable(text: str) -> str:
    """Return `text` on one line: whatever a terminal would not print is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def open_file(path: str | os.PathLike[str], name: str) -> FileSource:
    """Open a file that may be a kernel.

    Raises KernelError if it cannot be opened, is not a regular file, is empty or is larger than
    MAX_FILE_SIZE. A FIFO or a device is refused without waiting for it.
    """
    try:
        # O_NONBLOCK: opening a FIFO without a writer would wait for one
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise KernelError(f"cannot be opened: {error.strerror}", name) from None
    except ValueError as error:
        raise KernelError(f"cannot be opened: {error}", name) from None
    try:
        status = os.fstat(fd)
        if stat.S_ISDIR(status.st_mode):
            raise KernelError("is a directory", name)
        if not stat.S_ISREG(status.st_mode):
            raise KernelError("is not a regular file", name)
        if status.st_size == 0:
            raise KernelError("is empty", name)
        if status.st_size > MAX_FILE_SIZE:
            raise KernelError(f"is larger than {MAX_FILE_SIZE >> 30} GiB", name)
        return FileSource(fd, status.st_size, name)
    except BaseException:
        os.close(fd)
        raise
