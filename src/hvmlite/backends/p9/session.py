"""What one client has: its fids, each a file that it has walked to and may have opened.

Everything here happens in the host loop's thread; nothing here blocks.
"""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from hvmlite.backends.p9.files import Node, OpenFile, error
from hvmlite.backends.p9.locks import Locks

MAX_ATTRIBUTE_BYTES = 1 << 22
"""What the extended attributes that a client's fids stand for may take in all, in bytes."""


class Attribute:
    """What a fid for an extended attribute holds: the value as read, or the one to be written."""

    __slots__ = ("flags", "name", "size", "value")

    def __init__(self, name: bytes, size: int = -1, flags: int = 0, value: bytes = b"") -> None:
        self.name = name
        self.size = size
        """Bytes that will be written; -1 if it is for reading."""
        self.flags = flags
        self.value = bytearray(value)

    @property
    def room(self) -> int:
        """Bytes that it takes at most."""
        return len(self.value) if self.size < 0 else self.size


class Fid:
    """One fid."""

    __slots__ = ("attribute", "file", "locked", "node")

    def __init__(self, node: Node) -> None:
        self.node = node
        self.file: OpenFile | None = None
        self.attribute: Attribute | None = None
        self.locked = False


class Session:
    """The fids of a client, at most `max_fids`, of which `max_open` may be open."""

    def __init__(self, root: Node, max_fids: int, max_open: int) -> None:
        self.root = root.hold()
        self.locks = Locks()
        self.open_files = 0
        self.attribute_bytes = 0
        self._max_fids = max_fids
        self._max_open = max_open
        self._fids: dict[int, Fid | None] = {}
        self._locked: Counter[tuple[int, int]] = Counter()
        self._generation = 0

    def __len__(self) -> int:
        return len(self._fids)

    def get(self, number: int) -> Fid:
        """The fid of that number; raises OSError."""
        found = self._fids.get(number)
        if found is None:
            raise error(errno.EBADF)
        return found

    @contextmanager
    def new(self, number: int) -> Iterator[list[Node]]:
        """Keeps a number for a fid to come: its node is put into the list by the end.

        Raises OSError if the number is taken or there are too many.
        """
        if number in self._fids:
            raise error(errno.EBADF)
        if len(self._fids) >= self._max_fids:
            raise error(errno.ENFILE)
        self._fids[number] = None
        generation = self._generation
        nodes: list[Node] = []
        try:
            yield nodes
        except BaseException:
            for node in nodes:
                node.release()
            nodes.clear()
            raise
        finally:
            current = generation == self._generation
            if nodes and current:
                self._fids[number] = Fid(nodes[0])
            elif nodes:
                # The client began anew meanwhile.
                nodes[0].release()
            elif current:
                del self._fids[number]

    @contextmanager
    def opening(self) -> Iterator[None]:
        """Counts one open file more, unless it fails; raises OSError if there are too many."""
        if self.open_files >= self._max_open:
            raise error(errno.EMFILE)
        self.open_files += 1
        try:
            yield
        except BaseException:
            self.open_files -= 1
            raise

    def opened(self, number: int, fid: Fid, file: OpenFile) -> None:
        """The fid has a file now, if it is still there and has none."""
        if self._fids.get(number) is not fid or fid.file is not None:
            file.release()
            raise error(errno.EBADF)
        fid.file = file

    def give_attribute(self, fid: Fid, attribute: Attribute) -> None:
        """The fid stands for an attribute from now on; raises OSError if that takes too much."""
        if self.attribute_bytes + attribute.room > MAX_ATTRIBUTE_BYTES:
            raise error(errno.ENOMEM)
        self.attribute_bytes += attribute.room
        fid.attribute = attribute

    def locks_now(self, fid: Fid) -> None:
        """The fid has taken a lock."""
        if not fid.locked:
            fid.locked = True
            self._locked[fid.node.identity] += 1

    def remove(self, number: int) -> Fid:
        """Takes a fid away; its owner then ends it by `end`."""
        fid = self.get(number)
        del self._fids[number]
        return fid

    def end(self, fid: Fid) -> None:
        """Gives up what a fid holds."""
        if fid.locked:
            identity = fid.node.identity
            self._locked[identity] -= 1
            if not self._locked[identity]:
                del self._locked[identity]
                self.locks.forget(identity)
        if fid.attribute is not None:
            self.attribute_bytes -= fid.attribute.room
        if fid.file is not None:
            self.open_files -= 1
            fid.file.release()
        fid.node.release()

    def reset(self) -> None:
        """The client begins anew, or has gone."""
        self._generation += 1
        fids = [fid for fid in self._fids.values() if fid is not None]
        self._fids.clear()
        for fid in fids:
            self.end(fid)
        self.locks.clear()

    def close(self) -> None:
        """Gives up everything, the root as well."""
        self.reset()
        self.locks.close()
        self.root.release()
