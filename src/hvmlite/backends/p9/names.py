"""Handlers of 9P requests about names: finding, making, moving and removing files."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Generator
from typing import Any

from hvmlite.abi import p9
from hvmlite.backends.p9.files import Node, OpenFile, check_name, error, find, walk
from hvmlite.backends.p9.handlers import Handler, Handlers, Work
from hvmlite.backends.p9.wire import Qid


class NameHandlers(Handlers):
    """Walking, opening, making, moving, removing.

    A `..` and the two requests that name a file by its fid alone (rename, remove) go by the names
    that led to it; after somebody moved it they fail.
    """

    # ---- finding and making ---------------------------------------------------------------------

    def _walk(self, number: int, new: int, names: list[bytes]) -> Handler:
        fid = self.session.get(number)
        if fid.file is not None or fid.attribute is not None:
            raise error(errno.EBADF)
        root, start = self.session.root.hold(), fid.node.hold()
        try:
            if new == number:
                reached = yield from self._go(root, start, names)
                if len(reached) == len(names) and reached:
                    # Still there, and still at the start: nobody else may have moved it on.
                    if self.session.get(number) is not fid or fid.node is not start:
                        self._drop(reached)
                        raise error(errno.EBADF)
                    fid.node.release()
                    fid.node = reached[-1].hold()
                return (self._drop(reached),)
            with self.session.new(new) as nodes:
                reached = yield from self._go(root, start, names)
                if len(reached) == len(names):
                    nodes.append((reached[-1] if reached else start).hold())
            return (self._drop(reached),)
        finally:
            start.release()
            root.release()

    def _go(self, root: Node, start: Node, names: list[bytes]) -> Generator[Work, Any, list[Node]]:
        if not names:
            return []
        reached, failure = yield lambda: walk(root, start, names)
        if failure is not None and not reached:
            raise failure
        found: list[Node] = reached
        return found

    def _drop(self, nodes: list[Node]) -> list[Qid]:
        qids = [self._qid(node.status) for node in nodes]
        for node in nodes:
            node.release()
        return qids

    def _lopen(self, number: int, flags: int) -> Handler:
        fid = self._unopened(number)
        ours = self._flags(flags)
        if flags & p9.P9_DOTL_DIRECTORY and not stat.S_ISDIR(fid.node.status.st_mode):
            raise error(errno.ENOTDIR)
        with self.session.opening():
            node = fid.node.hold()
            try:
                fd = yield lambda: node.open(ours)
                file = OpenFile(fd, ours, stat.S_ISDIR(node.status.st_mode))
                self.session.opened(number, fid, file)
                return self._qid(node.status), 0
            finally:
                node.release()

    def _lcreate(self, number: int, name: bytes, flags: int, mode: int, _gid: int) -> Handler:
        fid = self._unopened(number)
        ours = self._flags(flags) | (os.O_EXCL if flags & p9.P9_DOTL_EXCL else 0)
        with self.session.opening():
            folder = fid.node.hold()
            try:
                made, fd = yield lambda: folder.create(name, ours, mode)
                try:
                    self.session.opened(number, fid, OpenFile(fd, ours & ~os.O_EXCL, False))
                except OSError:
                    made.release()
                    raise
                # From now on the fid stands for the file.
                fid.node.release()
                fid.node = made
                return self._qid(made.status), 0
            finally:
                folder.release()

    def _flags(self, flags: int) -> int:
        """open(2)'s flags for a client's; those that mean nothing here are left out."""
        ours = flags & p9.P9_DOTL_ACCMODE
        if ours == p9.P9_DOTL_ACCMODE:
            raise error(errno.EINVAL)
        if self.readonly and (ours != p9.P9_DOTL_RDONLY or flags & p9.P9_DOTL_TRUNC):
            raise error(errno.EROFS)
        for theirs, mine in (
            (p9.P9_DOTL_TRUNC, os.O_TRUNC),
            (p9.P9_DOTL_APPEND, os.O_APPEND),
            (p9.P9_DOTL_DSYNC, os.O_DSYNC),
            (p9.P9_DOTL_SYNC, os.O_SYNC),
        ):
            if flags & theirs == theirs:
                ours |= mine
        return ours

    def _made(self, number: int, make: Callable[[Node], Node]) -> Handler:
        folder = self.session.get(number).node.hold()
        try:
            node = yield lambda: make(folder)
            return (self._drop([node])[0],)
        finally:
            folder.release()

    def _mkdir(self, number: int, name: bytes, mode: int, _gid: int) -> Handler:
        kind = stat.S_IFDIR | stat.S_IMODE(mode)
        return self._made(number, lambda folder: folder.make(name, kind))

    def _mknod(
        self, number: int, name: bytes, mode: int, _major: int, _minor: int, _gid: int
    ) -> Handler:
        return self._made(number, lambda folder: folder.make(name, mode))

    def _symlink(self, number: int, name: bytes, target: bytes, _gid: int) -> Handler:
        return self._made(number, lambda folder: folder.symlink(name, target))

    def _link(self, number: int, target: int, name: bytes) -> Handler:
        return self._both(number, target, lambda folder, node: folder.link(name, node))

    def _both(self, one: int, two: int, work: Callable[[Node, Node], None]) -> Handler:
        first, second = self.session.get(one).node, self.session.get(two).node
        first.hold()
        second.hold()
        try:
            yield lambda: work(first, second)
            return ()
        finally:
            first.release()
            second.release()

    def _renameat(self, old: int, name: bytes, new: int, new_name: bytes) -> Handler:
        return self._both(old, new, lambda folder, to: folder.rename(name, to, new_name))

    def _rename(self, number: int, folder: int, name: bytes) -> Handler:
        root = self.session.root

        def work(node: Node, to: Node) -> None:
            parent = _parent(root, node)
            try:
                parent.rename(node.names[-1], to, name)
            finally:
                parent.release()

        return self._both(number, folder, work)

    def _unlinkat(self, number: int, name: bytes, flags: int) -> Handler:
        is_folder = bool(flags & p9.P9_DOTL_AT_REMOVEDIR)
        return self._on(number, lambda node: node.unlink(name, folder=is_folder))

    def _remove(self, number: int) -> Handler:
        root = self.session.root
        fid = self.session.remove(number)

        def work() -> None:
            node = fid.node
            parent = _parent(root, node)
            try:
                parent.unlink(node.names[-1], folder=stat.S_ISDIR(node.status.st_mode))
            finally:
                parent.release()

        try:
            yield work
            return ()
        finally:
            self.session.end(fid)


def _parent(root: Node, node: Node) -> Node:
    """The folder that a file was found in, if it is still there by that name."""
    if not node.names:
        raise error(errno.EBUSY)
    parent = find(root, node.names[:-1])
    try:
        child = parent.child(check_name(node.names[-1]))
        same = child.identity == node.identity
        child.release()
        if not same:
            raise error(errno.ESTALE)
    except BaseException:
        parent.release()
        raise
    return parent
