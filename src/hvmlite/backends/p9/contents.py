"""Handlers of 9P requests about what is in files: contents, attributes, locks."""

from __future__ import annotations

import errno
import os

from hvmlite.abi import p9
from hvmlite.backends.p9.files import XATTR_SIZE_MAX, Node, error
from hvmlite.backends.p9.handlers import (
    HEADER,
    QID_TYPES,
    Answer,
    Handler,
    Handlers,
    checked_offset,
)
from hvmlite.backends.p9.session import Attribute
from hvmlite.backends.p9.wire import Qid, encode

_ROOM = HEADER + 4
"""What stands before the data of an answer."""
_LONGEST_TIME = (1 << 63) // 10**9


class ContentHandlers(Handlers):
    """Reading, writing, attributes, locks."""

    # ---- contents -------------------------------------------------------------------------------

    def _read(self, number: int, offset: int, count: int) -> Handler:
        size = min(count, self.msize - _ROOM)
        attribute = self.session.get(number).attribute
        if attribute is not None:
            return (bytes(attribute.value[offset : offset + size]),)
        file = self._opened(number, folder=False).hold()
        try:
            data = yield lambda: file.read(checked_offset(offset), size)
            return (data,)
        finally:
            file.release()

    def _write(self, number: int, offset: int, data: bytes) -> Handler:
        attribute = self.session.get(number).attribute
        if attribute is not None:
            if offset != len(attribute.value) or offset + len(data) > attribute.size:
                raise error(errno.EINVAL)
            attribute.value += data
            return (len(data),)
        file = self._opened(number, folder=False).hold()
        try:
            done = yield lambda: file.write(checked_offset(offset), data)
            return (done,)
        finally:
            file.release()

    def _readdir(self, number: int, offset: int, count: int) -> Handler:
        file = self._opened(number, folder=True).hold()
        room = min(count, self.msize - _ROOM)
        try:
            # A host's entry is never shorter than ours but by one byte or so: most fit.
            entries = yield lambda: file.entries(checked_offset(offset), max(room, 512))
        finally:
            file.release()
        parts: list[bytes] = []
        for inode, following, kind, name in entries:
            qid = Qid(QID_TYPES.get(kind, p9.P9_QTFILE), 0, inode)
            part = encode(p9.READDIR_ENTRY, (qid, following, kind, name))
            room -= len(part)
            if room < 0:
                break
            parts.append(part)
        if entries and not parts:
            raise error(errno.EINVAL)
        return (b"".join(parts),)

    def _fsync(self, number: int, data_only: int) -> Handler:
        file = self.session.get(number).file
        if file is None:
            raise error(errno.EBADF)
        file.hold()
        try:
            yield lambda: file.sync(data_only=bool(data_only))
            return ()
        finally:
            file.release()

    # ---- attributes -----------------------------------------------------------------------------

    def _getattr(self, number: int, _mask: int) -> Handler:
        return self._on(number, lambda node: os.fstat(node.fd), self._attributes)

    def _attributes(self, s: os.stat_result) -> Answer:
        times = (s.st_atime_ns, s.st_mtime_ns, s.st_ctime_ns)
        split = (part & (1 << 64) - 1 for time in times for part in divmod(time, 10**9))
        return (
            *(p9.P9_STATS_BASIC, self._qid(s), s.st_mode, s.st_uid, s.st_gid, s.st_nlink),
            *(s.st_rdev, s.st_size, s.st_blksize, s.st_blocks, *split, 0, 0, 0, 0),
        )

    def _setattr(
        self,
        number: int,
        valid: int,
        mode: int,
        uid: int,
        gid: int,
        size: int,
        atime: int,
        atime_ns: int,
        mtime: int,
        mtime_ns: int,
    ) -> Handler:
        def moment(changed: int, given: int, seconds: int, ns: int) -> int | None:
            if not valid & changed:
                return None
            if not valid & given:
                return -1
            if ns >= 10**9 or seconds >= _LONGEST_TIME:
                raise error(errno.EINVAL)
            return seconds * 10**9 + ns

        accessed = moment(p9.P9_ATTR_ATIME, p9.P9_ATTR_ATIME_SET, atime, atime_ns)
        modified = moment(p9.P9_ATTR_MTIME, p9.P9_ATTR_MTIME_SET, mtime, mtime_ns)

        def work(node: Node) -> None:
            if valid & p9.P9_ATTR_SIZE:
                node.truncate(checked_offset(size))
            if valid & (p9.P9_ATTR_UID | p9.P9_ATTR_GID):
                node.chown(
                    _id(uid) if valid & p9.P9_ATTR_UID else -1,
                    _id(gid) if valid & p9.P9_ATTR_GID else -1,
                )
            if valid & p9.P9_ATTR_MODE:
                node.chmod(mode)
            if accessed is not None or modified is not None:
                node.utime(accessed, modified)

        return self._on(number, work)

    def _statfs(self, number: int) -> Handler:
        def answer(found: os.statvfs_result) -> Answer:
            return (
                *(p9.V9FS_MAGIC, found.f_bsize, found.f_blocks, found.f_bfree, found.f_bavail),
                *(found.f_files, found.f_ffree, found.f_fsid, found.f_namemax),
            )

        return self._on(number, lambda node: os.statvfs(node.fd), answer)

    def _readlink(self, number: int) -> Handler:
        return self._on(number, Node.readlink, lambda target: (target,))

    def _xattrwalk(self, number: int, new: int, name: bytes) -> Handler:
        node = self.session.get(number).node.hold()
        try:
            with self.session.new(new) as nodes:
                value = yield lambda: node.get_xattr(name) if name else node.list_xattrs()
                nodes.append(node.hold())
            try:
                self.session.give_attribute(self.session.get(new), Attribute(name, value=value))
            except OSError:
                self.session.end(self.session.remove(new))
                raise
            return (len(value),)
        finally:
            node.release()

    def _xattrcreate(self, number: int, name: bytes, size: int, flags: int) -> Handler:
        fid = self._unopened(number)
        if size > XATTR_SIZE_MAX:
            raise error(errno.E2BIG)
        self.session.give_attribute(fid, Attribute(name, size, flags))
        return ()
        yield

    # ---- locks ----------------------------------------------------------------------------------

    def _lock(
        self,
        number: int,
        kind: int,
        _flags: int,
        start: int,
        length: int,
        process: int,
        client: bytes,
    ) -> Handler:
        fid = self.session.get(number)
        file = self._opened(number, folder=False)
        who = fid.node.identity, client, process
        node, locks = fid.node.hold(), self.session.locks
        flags = file.flags & p9.P9_DOTL_ACCMODE
        try:
            granted = yield lambda: locks.set(node, flags, kind, (start, length), who)
            if granted and kind != p9.P9_LOCK_TYPE_UNLCK and self.session.get(number) is fid:
                self.session.locks_now(fid)
            return (p9.P9_LOCK_SUCCESS if granted else p9.P9_LOCK_BLOCKED,)
        finally:
            node.release()

    def _getlock(
        self, number: int, kind: int, start: int, length: int, process: int, client: bytes
    ) -> Handler:
        fid = self.session.get(number)
        flags = self._opened(number, folder=False).flags & p9.P9_DOTL_ACCMODE
        who = fid.node.identity, client, process
        node, locks = fid.node.hold(), self.session.locks
        try:
            found = yield lambda: locks.get(node, flags, kind, (start, length), who)
            if found[0] == p9.P9_LOCK_TYPE_UNLCK:
                return p9.P9_LOCK_TYPE_UNLCK, start, length, process, client
            return *found, 0, b""
        finally:
            node.release()


def _id(value: int) -> int:
    return -1 if value == 0xFFFF_FFFF else value
