"""A 9P2000.L client that sends what a test says, straight to a server."""

from __future__ import annotations

from pathlib import Path

from hvmlite.abi import p9
from hvmlite.abi.xen_9pfs import xen_9pfs_header
from hvmlite.backends.p9.files import open_root
from hvmlite.backends.p9.handlers import HEADER, Job
from hvmlite.backends.p9.server import Server
from hvmlite.backends.p9.wire import Qid, decode, encode

NUMBERS = {message.name: number for number, message in p9.MESSAGES.items()}
MSIZE = 1 << 16


class RefusedError(Exception):
    """Rlerror, and its errno."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.errno = number


def message(name: str, *values: object, tag: int = 1) -> bytes:
    number = NUMBERS[name]
    body = encode(p9.MESSAGES[number].request, values)
    return xen_9pfs_header(HEADER + len(body), number, tag).pack() + body


def parse(name: str, answer: bytes) -> tuple[object, ...]:
    """The fields of an answer; raises RefusedError."""
    header = xen_9pfs_header.unpack(answer)
    assert header.size == len(answer) <= MSIZE
    body = answer[HEADER:]
    if header.id == p9.P9_RLERROR:
        raise RefusedError(int.from_bytes(body, "little"))
    assert header.id == NUMBERS[name] + 1
    layout = p9.MESSAGES[NUMBERS[name]].answer
    values: list[object] = []
    for code in layout:
        if code == "Q":
            kind, version, path = decode("bdq", body[:13])
            values.append(Qid(kind, version, path))  # type: ignore[arg-type]
            body = body[13:]
        elif code == "N":
            count = int.from_bytes(body[:2], "little")
            values.append([body[2 + 13 * i : 15 + 13 * i] for i in range(count)])
            body = body[2 + 13 * count :]
        else:
            size = {"b": 1, "h": 2, "d": 4, "q": 8}.get(code)
            if size is None:
                ahead = 2 if code == "s" else 4
                size = ahead + int.from_bytes(body[:ahead], "little")
            values += decode(code, body[:size])
            body = body[size:]
    assert not body
    return tuple(values)


def finish(job: Job, step: object) -> bytes:
    """Carries a job on to its answer, in this thread."""
    while step is not None:
        assert callable(step)
        try:
            result = step()
        except OSError as error:
            step = job.step(failure=error)
        else:
            step = job.step(result)
    return job.answer


class Client:
    """A connection; fid 0 is the root."""

    ROOT = 0

    def __init__(
        self, folder: Path, *, readonly: bool = False, max_fids: int = 100, max_open: int = 50
    ) -> None:
        self.root = open_root(str(folder))
        self.server = Server(
            self.root, MSIZE, readonly=readonly, max_fids=max_fids, max_open=max_open
        )
        self._next = 1
        self("version", MSIZE, b"9P2000.L")
        self("attach", self.ROOT, p9.P9_NOFID, b"user", b"", 0)

    def __call__(self, name: str, *values: object) -> tuple[object, ...]:
        job = self.server.begin(message(name, *values))
        return parse(name, finish(job, job.step()))

    def fid(self) -> int:
        self._next += 1
        return self._next

    def walk(self, path: str, start: int = ROOT) -> int:
        """A fid for a path, which is sent name by name as it is."""
        names = [part.encode() for part in path.split("/") if part]
        new = self.fid()
        (qids,) = self("walk", start, new, names)
        if len(qids) != len(names):  # type: ignore[arg-type]
            raise RefusedError(-1)
        return new

    def open(self, path: str, flags: int = 0) -> int:
        fid = self.walk(path)
        try:
            self("lopen", fid, flags)
        except RefusedError:
            self("clunk", fid)
            raise
        return fid

    def create(self, folder: str, name: str, flags: int = 2, mode: int = 0o644) -> int:
        fid = self.walk(folder)
        self("lcreate", fid, name.encode(), flags, mode, 0)
        return fid

    def read(self, path: str) -> bytes:
        fid = self.open(path)
        (data,) = self("read", fid, 0, MSIZE)
        self("clunk", fid)
        assert isinstance(data, bytes)
        return data

    def names(self, path: str, count: int = 4096) -> set[bytes]:
        fid = self.open(path)
        found: list[bytes] = []
        offset = 0
        while True:
            (data,) = self("readdir", fid, offset, count)
            assert isinstance(data, bytes)
            if not data:
                break
            while data:
                # qid[13] offset[8] type[1] name[s]
                offset = int.from_bytes(data[13:21], "little")
                length = int.from_bytes(data[22:24], "little")
                found.append(data[24 : 24 + length])
                data = data[24 + length :]
        self("clunk", fid)
        assert len(found) == len(set(found))
        return set(found) - {b".", b".."}

    def close(self) -> None:
        self.server.close()
        self.root.release()
