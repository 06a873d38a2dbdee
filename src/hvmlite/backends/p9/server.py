"""Answers the messages of one 9P2000.L client.

Sources: as abi/p9.py; what Linux's client expects of servers (fs/9p, net/9p).
"""

from __future__ import annotations

import errno
from collections.abc import Callable

from hvmlite.abi import p9
from hvmlite.abi.xen_9pfs import xen_9pfs_header
from hvmlite.backends.p9.contents import ContentHandlers
from hvmlite.backends.p9.files import Node, error
from hvmlite.backends.p9.handlers import HEADER, Handler, Job
from hvmlite.backends.p9.names import NameHandlers
from hvmlite.backends.p9.session import Session
from hvmlite.backends.p9.wire import decode

_WRITERS = frozenset(
    {"lcreate", "symlink", "mknod", "mkdir", "link", "rename", "renameat", "unlinkat", "remove"}
    | {"write", "setattr", "xattrcreate"}
)
"""What a read-only share refuses; lopen looks at its flags."""


class Server(NameHandlers, ContentHandlers):
    """One connection to the folder `root`.  `max_msize` bounds messages, in bytes."""

    def __init__(
        self, root: Node, max_msize: int, *, readonly: bool, max_fids: int, max_open: int
    ) -> None:
        self.session = Session(root, max_fids, max_open)
        self._max_msize = max_msize
        self.readonly = readonly
        self._jobs: dict[int, Job] = {}

    def begin(self, message: bytes) -> Job:
        """Takes a request, a whole message; raises MalformedError."""
        header = xen_9pfs_header.unpack(message)
        known = p9.MESSAGES.get(header.id)
        if known is None:
            job = Job(self, header.id, header.tag, "", self._refuse(errno.EOPNOTSUPP))
        else:
            values = decode(known.request, message[HEADER:])
            refusal = self._refusal(header.id, known.name, len(message))
            handler = self._refuse(refusal) if refusal else self._handle(known.name, values)
            job = Job(self, header.id, header.tag, known.answer, handler)
        self._jobs[header.tag] = job
        return job

    def _refusal(self, kind: int, name: str, size: int) -> int:
        if kind == p9.P9_TVERSION:
            return 0
        if not self.msize:
            return errno.EPROTO
        if size > self.msize:
            return errno.EMSGSIZE
        return errno.EROFS if self.readonly and name in _WRITERS else 0

    def _handle(self, name: str, values: list[int | bytes | list[bytes]]) -> Handler:
        # Whatever a handler raises, at once too, is the job's.
        handler: Callable[..., Handler] = getattr(self, f"_{name}")
        return (yield from handler(*values))

    def _refuse(self, number: int) -> Handler:
        raise error(number)
        yield  # a generator like the others

    def finished(self, job: Job) -> None:
        """The job has its answer."""
        if self._jobs.get(job.tag) is job:
            del self._jobs[job.tag]

    def close(self) -> None:
        """The client has gone."""
        self.session.close()

    # ---- the session ----------------------------------------------------------------------------

    def _version(self, msize: int, version: bytes) -> Handler:
        self.session.reset()
        self.msize = min(msize, self._max_msize)
        if version.split(b".")[0] != b"9P2000" or self.msize < p9.P9_IOHDRSZ:
            self.msize = 0
            return self._max_msize, p9.VERSION_UNKNOWN
        if version != p9.VERSION_9P2000_L:
            self.msize = 0
            return min(msize, self._max_msize), p9.VERSION_UNKNOWN
        return self.msize, p9.VERSION_9P2000_L
        yield

    def _auth(self, _afid: int, _uname: bytes, _aname: bytes, _n_uname: int) -> Handler:
        raise error(errno.EOPNOTSUPP)
        yield

    def _attach(
        self, number: int, afid: int, _uname: bytes, aname: bytes, _n_uname: int
    ) -> Handler:
        if afid != p9.P9_NOFID:
            raise error(errno.EBADF)
        if aname.strip(b"/"):
            raise error(errno.ENOENT)
        with self.session.new(number) as nodes:
            nodes.append(self.session.root.hold())
        return (self._qid(self.session.root.status),)
        yield

    def _flush(self, tag: int) -> Handler:
        # The client may use that tag again only after our answer: the other one's comes first.
        job = self._jobs.get(tag)
        if job is not None and job.kind != p9.P9_TFLUSH:
            yield job
        return ()

    def _clunk(self, number: int) -> Handler:
        fid = self.session.remove(number)
        try:
            attribute = fid.attribute
            if attribute is not None and attribute.size >= 0:
                value = bytes(attribute.value)
                if len(value) != attribute.size:
                    raise error(errno.EINVAL)
                name, flags = attribute.name, attribute.flags
                yield lambda: fid.node.set_xattr(name, value, flags)
            elif fid.file is not None:
                file = fid.file.hold()
                try:
                    yield file.flush
                finally:
                    file.release()
        finally:
            self.session.end(fid)
        return ()
