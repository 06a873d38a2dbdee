"""The host's files of one shared folder, reached so that nothing outside of it can be.

A file is a descriptor (O_PATH), found by one name at a time from another's: no path of the guest's
is ever resolved, a symbolic link is never followed, and `..` is not asked of the host.  So neither
links nor folders that somebody moves meanwhile lead out.  All of this may block and runs in worker
threads; errors are OSError.  Facts: open(2), symlink(7), proc(5) on /proc/self/fd.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import struct
import threading
from typing import NamedTuple

_NAME_MAX = 255
_LINK = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_TRIES = 8
"""How often to begin again when somebody makes and removes a file under our hands."""
MAX_DEPTH = 1024
"""Folders within folders: each fid keeps the names that led to it."""
_AT_FDCWD = -100
_UTIME_NOW = (1 << 30) - 1
_UTIME_OMIT = (1 << 30) - 2
XATTR_SIZE_MAX = 1 << 16
_libc = ctypes.CDLL(None, use_errno=True)
_DIRENT = struct.Struct("<QqHB")
"""ino, off, reclen, type: the start of struct linux_dirent64."""


class Entry(NamedTuple):
    """One entry of a folder; `following` is where to read on behind it."""

    inode: int
    following: int
    kind: int
    name: bytes


def error(number: int) -> OSError:
    """An OSError of that number."""
    return OSError(number, os.strerror(number))


def check_name(name: bytes) -> bytes:
    """The name of one entry of a folder; raises OSError for whatever else."""
    if not name or name in {b".", b".."} or b"/" in name or b"\0" in name:
        raise error(errno.EINVAL)
    if len(name) > _NAME_MAX:
        raise error(errno.ENAMETOOLONG)
    return name


class Node:
    """A file of the share: a descriptor that only stands for it.

    Held by `users` (fids, and requests in work), closed by the last; only the loop's thread counts.
    """

    __slots__ = ("fd", "names", "status", "users")

    def __init__(self, fd: int, names: tuple[bytes, ...]) -> None:
        self.fd = fd
        self.names = names
        """How it was reached from the root, for `..`."""
        self.status = os.fstat(fd)
        """As it was then; the type and the number never change."""
        self.users = 1

    def hold(self) -> Node:
        """One user more."""
        self.users += 1
        return self

    def release(self) -> None:
        """One user less."""
        self.users -= 1
        if not self.users:
            os.close(self.fd)

    @property
    def path(self) -> str:
        """A name for calls that take no O_PATH descriptor; it leads to this very file."""
        return f"/proc/self/fd/{self.fd}"

    @property
    def is_link(self) -> bool:
        """Whether it is a symbolic link."""
        return stat.S_ISLNK(self.status.st_mode)

    @property
    def identity(self) -> tuple[int, int]:
        """What tells it from all other files."""
        return self.status.st_dev, self.status.st_ino

    def _entry(self, name: bytes) -> bytes:
        """The name of an entry of this folder; raises OSError if that leads too deep."""
        if len(self.names) >= MAX_DEPTH:
            raise error(errno.ENAMETOOLONG)
        return check_name(name)

    def child(self, name: bytes) -> Node:
        """An entry of this folder, whatever it is."""
        fd = os.open(self._entry(name), _LINK, dir_fd=self.fd)
        try:
            return Node(fd, (*self.names, name))
        except BaseException:
            os.close(fd)
            raise

    def open(self, flags: int) -> int:
        """Opens it; only regular files and folders, for no other has contents of the share's."""
        mode = self.status.st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise error(errno.ELOOP if self.is_link else errno.EOPNOTSUPP)
        # The inode is held by our descriptor: it is still the one whose type was looked at.
        return os.open(self.path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)

    def create(self, name: bytes, flags: int, mode: int) -> tuple[Node, int]:
        """Makes and opens a regular file here, or opens the one that is there."""
        self._entry(name)
        exclusive = flags & os.O_EXCL
        flags &= ~os.O_EXCL
        for _ in range(_TRIES):
            made = -1
            with contextlib.suppress(FileExistsError):
                made = os.open(
                    name, flags | os.O_CREAT | os.O_EXCL | _QUIET, mode & 0o777, dir_fd=self.fd
                )
            if made < 0 and exclusive:
                raise error(errno.EEXIST)
            try:
                if made >= 0:
                    # Not as our umask would have it.
                    os.fchmod(made, mode & 0o777)
                    node = Node(os.open(f"/proc/self/fd/{made}", os.O_PATH | os.O_CLOEXEC), ())
                    node.names = (*self.names, name)
                    return node, made
                node = self.child(name)
            except FileNotFoundError:
                continue
            except BaseException:
                if made >= 0:
                    os.close(made)
                raise
            try:
                return node, node.open(flags)
            except BaseException:
                node.release()
                raise
        raise error(errno.EAGAIN)

    def make(self, name: bytes, mode: int) -> Node:
        """Makes a folder, or an empty file, FIFO or socket; never a device."""
        self._entry(name)
        kind = stat.S_IFMT(mode)
        if kind == stat.S_IFDIR:
            os.mkdir(name, mode & 0o777, dir_fd=self.fd)
            allowed = 0o1777
        elif kind in {stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK}:
            os.mknod(name, kind | mode & 0o777, dir_fd=self.fd)
            allowed = 0o777
        else:
            raise error(errno.EPERM)
        node = self.child(name)
        if not node.is_link:
            os.chmod(node.path, mode & allowed)
        return node

    def symlink(self, name: bytes, target: bytes) -> Node:
        """Makes a symbolic link, which only the guest will ever follow."""
        os.symlink(target, self._entry(name), dir_fd=self.fd)
        return self.child(name)

    def link(self, name: bytes, node: Node) -> None:
        """A further name, in this folder, for another file of the share."""
        # Only what /proc has is followed: it leads to the inode that we hold.
        os.link(node.path, check_name(name), dst_dir_fd=self.fd, follow_symlinks=True)

    def rename(self, name: bytes, folder: Node, new: bytes) -> None:
        """Gives an entry of this folder another name or folder."""
        os.rename(check_name(name), check_name(new), src_dir_fd=self.fd, dst_dir_fd=folder.fd)

    def unlink(self, name: bytes, *, folder: bool) -> None:
        """Takes an entry away."""
        if folder:
            os.rmdir(check_name(name), dir_fd=self.fd)
        else:
            os.unlink(check_name(name), dir_fd=self.fd)

    def readlink(self) -> bytes:
        """What a symbolic link says."""
        return os.readlink(b"", dir_fd=self.fd)

    def chmod(self, mode: int) -> None:
        """Permissions; never set-user-ID or set-group-ID on files, which would act on the host."""
        if self.is_link:
            raise error(errno.EOPNOTSUPP)
        os.chmod(self.path, mode & (0o1777 if stat.S_ISDIR(self.status.st_mode) else 0o777))

    def chown(self, uid: int, gid: int) -> None:
        """Owner and group (-1: unchanged), where we may; security model "none" says no more."""
        with contextlib.suppress(PermissionError):
            os.chown(self.path, uid, gid)

    def truncate(self, size: int) -> None:
        """The size in bytes of a regular file."""
        if not stat.S_ISREG(self.status.st_mode):
            raise error(errno.EINVAL)
        os.truncate(self.path, size)

    def utime(self, accessed: int | None, modified: int | None) -> None:
        """Times in nanoseconds, -1 for now, None for unchanged."""
        times = (ctypes.c_long * 4)()
        for i, value in enumerate((accessed, modified)):
            if value is None or value < 0:
                times[2 * i + 1] = _UTIME_OMIT if value is None else _UTIME_NOW
            else:
                times[2 * i], times[2 * i + 1] = divmod(value, 10**9)
        if _libc.utimensat(_AT_FDCWD, self.path.encode(), times, 0):
            raise error(ctypes.get_errno())

    def get_xattr(self, name: bytes) -> bytes:
        """An extended attribute of the namespace "user", the one that is the owner's to use."""
        self._check_xattr(name)
        return os.getxattr(self.path, name)

    def list_xattrs(self) -> bytes:
        """The names of those attributes, each with a zero byte behind it."""
        if self.is_link:
            return b""
        names = (os.fsencode(each) for each in os.listxattr(self.path))
        return b"".join(name + b"\0" for name in names if name.startswith(b"user."))

    def set_xattr(self, name: bytes, value: bytes, flags: int) -> None:
        """Sets an attribute; an empty value takes it away."""
        self._check_xattr(name)
        if value:
            os.setxattr(self.path, name, value, flags)
        else:
            os.removexattr(self.path, name)

    def _check_xattr(self, name: bytes) -> None:
        if not name.startswith(b"user.") or b"\0" in name or self.is_link:
            raise error(errno.EOPNOTSUPP)
        if len(name) > _NAME_MAX:
            raise error(errno.ERANGE)


_QUIET = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class OpenFile:
    """An open regular file or folder; counted like a Node."""

    __slots__ = ("_position", "fd", "flags", "is_folder", "users")

    def __init__(self, fd: int, flags: int, is_folder: bool) -> None:
        self.fd = fd
        self.flags = flags
        self.is_folder = is_folder
        self.users = 1
        self._position = threading.Lock()

    def hold(self) -> OpenFile:
        """One user more."""
        self.users += 1
        return self

    def release(self) -> None:
        """One user less."""
        self.users -= 1
        if not self.users:
            os.close(self.fd)

    def read(self, offset: int, count: int) -> bytes:
        """Bytes from a place in the file."""
        return os.pread(self.fd, count, offset)

    def write(self, offset: int, data: bytes) -> int:
        """Stores bytes; returns how many."""
        done = os.pwrite(self.fd, data, offset)
        while done < len(data):
            more = os.pwrite(self.fd, data[done:], offset + done)
            if not more:
                break
            done += more
        return done

    def sync(self, *, data_only: bool) -> None:
        """Has what was written reach the disk."""
        if data_only:
            os.fdatasync(self.fd)
        else:
            os.fsync(self.fd)

    def flush(self) -> None:
        """Has the file system tell now what it only tells whoever closes a file."""
        if self.flags & os.O_ACCMODE != os.O_RDONLY:
            os.close(os.dup(self.fd))

    def entries(self, offset: int, size: int) -> list[Entry]:
        """Entries of a folder from a place that `Entry.following` named, 0 at first.

        As many as the host gives for a buffer of `size` bytes.
        """
        buffer = ctypes.create_string_buffer(size)
        with self._position:
            os.lseek(self.fd, offset, os.SEEK_SET)
            got = _libc.getdents64(self.fd, buffer, size)
            if got < 0:
                raise error(ctypes.get_errno())
        found, at, raw = [], 0, buffer.raw
        while at < got:
            inode, following, length, kind = _DIRENT.unpack_from(raw, at)
            name = raw[at + _DIRENT.size : at + length].split(b"\0", 1)[0]
            found.append(Entry(inode, following & (1 << 64) - 1, kind, name))
            at += length
        return found


def open_root(path: str) -> Node:
    """The folder that is shared; here alone links are followed, for its name is the user's."""
    return Node(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), ())


def walk(root: Node, start: Node, names: list[bytes]) -> tuple[list[Node], OSError | None]:
    """Goes from `start` name by name: what was reached, each a new Node, and what stopped it.

    `..` leads back by the names that led here, from the root anew: a folder that was moved out of
    the share meanwhile has no way back to where it is now.
    """
    reached: list[Node] = []
    current = start
    try:
        for name in names:
            current = _up(root, current) if name == b".." else current.child(name)
            reached.append(current)
    except OSError as failure:
        return reached, failure
    except BaseException:
        for node in reached:
            node.release()
        raise
    return reached, None


def _up(root: Node, node: Node) -> Node:
    if not stat.S_ISDIR(node.status.st_mode):
        raise error(errno.ENOTDIR)
    above = find(root, node.names[:-1])
    if not stat.S_ISDIR(above.status.st_mode):
        above.release()
        raise error(errno.ESTALE)
    return above


def find(root: Node, names: tuple[bytes, ...]) -> Node:
    """The file of those names below the root."""
    current = Node(os.dup(root.fd), ())
    for name in names:
        try:
            following = current.child(name)
        finally:
            current.release()
        current = following
    return current
