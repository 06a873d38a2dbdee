"""What the handlers of 9P requests share, and a request on its way through one of them.

Each handler is a generator: what it does itself happens in the host loop's thread, what it yields
(a function) is called in another one, where it may block.  Errors are OSError and go to the client.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Generator
from typing import Any

from hvmlite.abi import p9
from hvmlite.abi.xen_9pfs import xen_9pfs_header
from hvmlite.backends.p9.files import Node, OpenFile, error
from hvmlite.backends.p9.session import Fid, Session
from hvmlite.backends.p9.wire import Qid, encode

Work = Callable[[], Any]
Answer = tuple[object, ...]
Handler = Generator["Work | Job", Any, Answer]

HEADER = xen_9pfs_header.sizeof()
QID_TYPES = {stat.S_IFDIR >> 12: p9.P9_QTDIR, stat.S_IFLNK >> 12: p9.P9_QTSYMLINK}
"""By d_type, which is that part of a file's mode."""
_MOST = (1 << 63) - 1


class Job:
    """One request on its way: `step` carries it on until `answer` is there."""

    __slots__ = ("_generator", "_layout", "_server", "answer", "kind", "tag", "waiters")

    def __init__(
        self, server: Handlers, kind: int, tag: int, layout: str, generator: Handler
    ) -> None:
        self._server = server
        self._generator = generator
        self._layout = layout
        self.kind = kind
        self.tag = tag
        self.answer = b""
        self.waiters: list[Callable[[], None]] = []
        """Called once the answer is there, by whoever carries the job on."""

    def step(
        self, result: object = None, failure: BaseException | None = None
    ) -> Work | Job | None:
        """Goes on with what came of the last function.

        Returns the next function, another job whose end must come first, or None: it is done.
        """
        try:
            if failure is not None:
                return self._generator.throw(failure)
            return self._generator.send(result)
        except StopIteration as stop:
            body = encode(self._layout, stop.value)
            if HEADER + len(body) > self._server.msize and self.kind != p9.P9_TVERSION:
                self._fail(errno.EMSGSIZE)
            else:
                self._finish(self.kind + 1, body)
        except OSError as found:
            self._fail(found.errno or errno.EIO)
        except (ValueError, OverflowError):
            # A number or string that no file system takes.
            self._fail(errno.EINVAL)
        return None

    def _fail(self, number: int) -> None:
        self._finish(p9.P9_RLERROR, encode("d", (number,)))

    def _finish(self, kind: int, body: bytes) -> None:
        self.answer = xen_9pfs_header(HEADER + len(body), kind, self.tag).pack() + body
        self._server.finished(self)

    def cancel(self) -> None:
        """Nobody waits for the answer any more; what it holds is given up."""
        self._generator.close()


class Handlers:
    """What handlers need: the client's session, and the bound on messages."""

    session: Session
    msize: int = 0
    """The bound on messages that was agreed on, in bytes; 0 before that."""
    readonly: bool = False

    def finished(self, job: Job) -> None:
        """The job has its answer."""
        raise AssertionError("the server knows its jobs")

    def _on(
        self,
        number: int,
        work: Callable[[Node], Any],
        answer: Callable[[Any], Answer] = lambda _result: (),
    ) -> Handler:
        """A call on a fid's file, and the answer that is made of its result."""
        node = self.session.get(number).node.hold()
        try:
            result = yield lambda: work(node)
            return answer(result)
        finally:
            node.release()

    def _unopened(self, number: int) -> Fid:
        fid = self.session.get(number)
        if fid.file is not None or fid.attribute is not None:
            raise error(errno.EBADF)
        return fid

    def _opened(self, number: int, *, folder: bool) -> OpenFile:
        file = self.session.get(number).file
        if file is None:
            raise error(errno.EBADF)
        if file.is_folder is not folder:
            raise error(errno.EISDIR if file.is_folder else errno.ENOTDIR)
        return file

    def _qid(self, status: os.stat_result) -> Qid:
        kind = status.st_mode >> 12
        version = (status.st_mtime_ns >> 10 ^ status.st_size) & 0xFFFF_FFFF
        path = status.st_ino
        own = self.session.root.status.st_dev
        if status.st_dev != own:
            # Another file system mounted below the root has numbers of its own.
            path ^= (status.st_dev ^ own) << 40
        return Qid(QID_TYPES.get(kind, p9.P9_QTFILE), version, path & (1 << 64) - 1)


def checked_offset(value: int) -> int:
    """An offset or a size that the host can take; raises OSError."""
    if value > _MOST:
        raise error(errno.EINVAL)
    return value
