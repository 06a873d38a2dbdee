"""Raw images: a file or a block device of the host, through the host's page cache.

Reads of what is cached and writes into the cache are done at once; a thread of `Workers` does what
waits for the disk. Facts: preadv2(2), fallocate(2), fdatasync(2), linux/fs.h for the ioctls.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
import struct
import time
from collections.abc import Callable, Sequence

from hvmlite.backends.block.image import Buffer, Image, Job, Operation
from hvmlite.backends.block.locks import lock_image
from hvmlite.backends.workers import Workers
from hvmlite.errors import UserError

_BLKGETSIZE64 = 0x80081272
_BLKPBSZGET = 0x127B
_BLKDISCARD = 0x1277
_PUNCH_HOLE = 3
"""FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE."""
_MOST_VIEWS = os.sysconf("SC_IOV_MAX")
_PATIENCE = 0.005
"""Seconds: a write into the page cache that takes longer was throttled by the host."""
_DETOUR = 0.5
"""Seconds for which writes are then left to threads."""
_UNSUPPORTED = (errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class RawImage(Image):
    """A file or block device of raw data.  Raises UserError if it cannot be opened as asked."""

    def __init__(self, path: str, workers: Workers, *, readonly: bool) -> None:
        self._path = path
        self._workers = workers
        flags = (os.O_RDONLY if readonly else os.O_RDWR) | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            self._fd = os.open(path, flags)
        except OSError as error:
            raise UserError(f"disk {path}: {error.strerror}") from error
        try:
            self._look()
            lock_image(self._fd, path, readonly=readonly)
        except BaseException:
            os.close(self._fd)
            raise
        self.discards = not readonly
        self._nowait = os.RWF_NOWAIT
        self._detour_until = 0.0
        self._written = 0
        """Writes that are done; of these a flush has covered the first `_flushed`."""
        self._flushed = 0
        self._lost: OSError | None = None
        """What the host said when it could not write back; it says so once and forgets the data."""

    def _look(self) -> None:
        status = os.fstat(self._fd)
        self._is_file = stat.S_ISREG(status.st_mode)
        if self._is_file:
            self.size = status.st_size
        elif stat.S_ISBLK(status.st_mode):
            self.size = self._device_size()
            answer = fcntl.ioctl(self._fd, _BLKPBSZGET, bytes(4))
            self.physical_block = max(struct.unpack("I", answer)[0], 512)
        else:
            raise UserError(f"disk {self._path} is neither a file nor a block device")

    def _device_size(self) -> int:
        size: int = struct.unpack("Q", fcntl.ioctl(self._fd, _BLKGETSIZE64, bytes(8)))[0]
        return size

    def refresh(self) -> bool:
        """See `Image.refresh`."""
        try:
            size = os.fstat(self._fd).st_size if self._is_file else self._device_size()
        except OSError:
            # A device that was pulled out; requests to it will say so.
            return False
        changed = size != self.size
        self.size = size
        return changed

    # ---- at once --------------------------------------------------------------------------------

    def read_now(self, views: Sequence[Buffer], offset: int, size: int) -> bool:
        """See `Image.read_now`."""
        try:
            return os.preadv(self._fd, views, offset, self._nowait) == size
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno == errno.EOPNOTSUPP:
                # A file system that cannot tell whether it would wait.
                return False
            raise

    def write_now(self, views: Sequence[Buffer], offset: int, size: int) -> bool:
        """See `Image.write_now`."""
        begin = time.monotonic()
        if begin < self._detour_until:
            return False
        self._written += 1
        written = os.pwritev(self._fd, views, offset)
        if time.monotonic() - begin > _PATIENCE:
            self._detour_until = begin + _DETOUR
        # The rest, if there is one, says why in a thread.
        return written == size

    # ---- in a thread ----------------------------------------------------------------------------

    def start(self, job: Job) -> None:
        """See `Image.start`."""
        operation = job.operation
        if operation is Operation.FLUSH:
            self._flush(job)
        else:
            self._workers.submit(
                lambda: self._carry_out(job), lambda _, error: self._done(job, error)
            )

    def _flush(self, job: Job) -> None:
        covered = self._written
        if self._lost is not None or covered == self._flushed:
            job.done(self._lost)
            return

        def flushed(_result: None, error: BaseException | None) -> None:
            if error is None:
                self._flushed = max(self._flushed, covered)
            elif isinstance(error, OSError):
                self._lost = error
            _finish(job, error)

        self._workers.submit(lambda: os.fdatasync(self._fd), flushed)

    def _done(self, job: Job, error: BaseException | None) -> None:
        # Counted when it is done: a flush that began before may have missed it.
        self._written += 1
        _finish(job, error)

    def _carry_out(self, job: Job) -> None:
        if job.operation is Operation.READ:
            self._whole(os.preadv, job)
        elif job.operation is Operation.WRITE:
            self._whole(os.pwritev, job)
        else:
            self._discard(job.offset, job.size)

    def _discard(self, offset: int, size: int) -> None:
        try:
            if self._is_file:
                self._punch(offset, size)
            else:
                fcntl.ioctl(self._fd, _BLKDISCARD, struct.pack("QQ", offset, size))
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                raise OSError(errno.EOPNOTSUPP, error.strerror) from error
            raise

    def _whole(self, call: Callable[[int, list[Buffer], int], int], job: Job) -> None:
        views, offset, left = list(job.views), job.offset, job.size
        while left:
            moved = call(self._fd, views[:_MOST_VIEWS], offset)
            if moved <= 0:
                # The file is shorter than it was.
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            offset += moved
            left -= moved
            while views and moved >= len(views[0]):
                moved -= len(views.pop(0))
            if moved:
                views[0] = memoryview(views[0])[moved:]

    def _punch(self, offset: int, size: int) -> None:
        if _libc.fallocate(self._fd, _PUNCH_HOLE, offset, size):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    def close(self) -> None:
        """See `Image.close`."""
        os.close(self._fd)


def _finish(job: Job, error: BaseException | None) -> None:
    if error is not None and not isinstance(error, OSError):
        raise error
    job.done(error)
