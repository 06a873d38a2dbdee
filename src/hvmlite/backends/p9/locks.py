"""Byte-range locks of a client, held on the host's files, where all others see them.

Each owner in the guest (client and process) has a descriptor of its own for each file, since a lock
belongs to an open file description.  Facts: fcntl(2), "Open file description locks".
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import threading

from hvmlite.abi.p9 import P9_LOCK_TYPE_RDLCK, P9_LOCK_TYPE_UNLCK, P9_LOCK_TYPE_WRLCK
from hvmlite.backends.p9.files import Node, error

_TYPES = {
    P9_LOCK_TYPE_RDLCK: fcntl.F_RDLCK,
    P9_LOCK_TYPE_WRLCK: fcntl.F_WRLCK,
    P9_LOCK_TYPE_UNLCK: fcntl.F_UNLCK,
}
_NAMES = {value: key for key, value in _TYPES.items()}
_FLOCK = struct.Struct("hhqqi4x")
"""struct flock of x86-64: l_type, l_whence, l_start, l_len, l_pid."""
MAX_OWNERS = 256
Owner = tuple[tuple[int, int], bytes, int]
"""File, client, process."""


class Locks:
    """The locks of one connection; used in worker threads."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._files: dict[Owner, int] = {}
        self._closed = False

    def set(self, node: Node, flags: int, kind: int, span: tuple[int, int], who: Owner) -> bool:
        """Takes or gives back a range (start, length; length 0: to the end); whether it is granted.

        `flags` are those that the file may be opened with.  Raises OSError.
        """
        request = self._flock(kind, span)
        if kind != P9_LOCK_TYPE_UNLCK:
            self._open(node, flags, who)
        with self._mutex:
            fd = self._files.get(who)
            if fd is None:
                return kind == P9_LOCK_TYPE_UNLCK
            try:
                fcntl.fcntl(fd, fcntl.F_OFD_SETLK, request)
            except OSError as failure:
                if failure.errno not in {errno.EAGAIN, errno.EACCES}:
                    raise
                return False
            if kind == P9_LOCK_TYPE_UNLCK and span == (0, 0):
                os.close(self._files.pop(who))
        return True

    def get(
        self, node: Node, flags: int, kind: int, span: tuple[int, int], who: Owner
    ) -> tuple[int, int, int]:
        """What stands in the way of such a lock: type, start, length; type UNLCK if nothing."""
        request = self._flock(kind, span)
        self._open(node, flags, who)
        with self._mutex:
            fd = self._files.get(who)
            if fd is None:
                raise error(errno.EBADF)
            answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, request)
        found, _, start, length, _ = _FLOCK.unpack(answer)
        return _NAMES[found], start, length

    def _open(self, node: Node, flags: int, who: Owner) -> None:
        """Sees to a descriptor for the owner.  Opening may block: not under the mutex."""
        with self._mutex:
            if who in self._files:
                return
            if len(self._files) >= MAX_OWNERS:
                raise error(errno.ENOLCK)
        fd = node.open(flags)
        with self._mutex:
            if who in self._files or self._closed:
                os.close(fd)
            else:
                self._files[who] = fd

    @staticmethod
    def _flock(kind: int, span: tuple[int, int]) -> bytes:
        start, length = span
        if kind not in _TYPES or start + length >= 1 << 63:
            raise error(errno.EINVAL)
        return _FLOCK.pack(_TYPES[kind], os.SEEK_SET, start, length, 0)

    def forget(self, identity: tuple[int, int]) -> None:
        """Gives back all that the client has on a file, which it has open no more."""
        with self._mutex:
            for who in [each for each in self._files if each[0] == identity]:
                os.close(self._files.pop(who))

    def close(self) -> None:
        """Gives back all locks, those that are on their way too."""
        with self._mutex:
            self._closed = True
        self.clear()

    def clear(self) -> None:
        """Gives back all locks."""
        with self._mutex:
            while self._files:
                os.close(self._files.popitem()[1])
