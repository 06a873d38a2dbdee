"""Keeps two programs from writing one image: the byte-range locks that QEMU's tools use as well.

Each right that somebody has is a shared lock on one byte, and each right that he does not let
others have is one on another byte. Facts: QEMU's docs/system/images.rst on image locking, and
fcntl(2) on open file description locks.
"""

from __future__ import annotations

import errno
import fcntl
import struct

from hvmlite.errors import UserError

_CONSISTENT_READ, _WRITE, _WRITE_UNCHANGED, _RESIZE = range(4)
_HAVE = 100
_KEEP = 200
_FLOCK = struct.Struct("hhqqi4x")
_BUSY = (errno.EACCES, errno.EAGAIN)
_UNSUPPORTED = (errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)


def lock_image(fd: int, name: str, *, readonly: bool) -> None:
    """Takes the locks of a reader or a writer, held until the file is closed.

    Raises UserError if another program has the image in use in a way that does not go with it.
    File systems without such locks are used without.
    """
    have = [_CONSISTENT_READ] if readonly else [_CONSISTENT_READ, _WRITE, _RESIZE]
    # Who reads does not want it written by others, and who writes wants to be alone in that.
    keep = [_WRITE, _RESIZE]
    try:
        for byte in [_HAVE + each for each in have] + [_KEEP + each for each in keep]:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _lock(fcntl.F_RDLCK, byte))
        for byte in [_KEEP + each for each in have] + [_HAVE + each for each in keep]:
            found = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _lock(fcntl.F_WRLCK, byte))
            if _FLOCK.unpack(found)[0] != fcntl.F_UNLCK:
                raise UserError(_in_use(name, readonly))
    except OSError as error:
        if error.errno in _BUSY:
            raise UserError(_in_use(name, readonly)) from None
        if error.errno not in _UNSUPPORTED:
            raise UserError(f"disk {name} cannot be locked: {error.strerror}") from error


def _lock(kind: int, byte: int) -> bytes:
    return _FLOCK.pack(kind, 0, byte, 1, 0)


def _in_use(name: str, readonly: bool) -> str:
    what = "is written" if readonly else "is in use"
    return f"disk {name} {what} by another program or another guest"
