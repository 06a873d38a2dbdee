"""Proves the NBD client against a server of a few lines: requests and answers in any order and in
pieces, errors, big discards, a server that goes or talks nonsense.

Cannot see a real server: test_storage_daemon.py has QEMU's.
"""

from __future__ import annotations

import errno
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator

import pytest

from hvmlite.backends.block.image import Job, Operation
from hvmlite.backends.block.nbd import NbdError, NbdImage

MAGIC = b"NBDMAGICIHAVEOPT" + struct.pack(">H", 1)
REPLY = 0x3E889045565A9
INFO = struct.pack(">QIII", REPLY, 7, 3, 12) + struct.pack(">HQH", 0, 1 << 32, 1 | 4 | 32)
ACK = struct.pack(">QIII", REPLY, 7, 1, 0)


class Loop:
    """The callbacks that a host loop would call."""

    def __init__(self) -> None:
        self.readers: dict[int, Callable[[], None]] = {}
        self.writers: dict[int, Callable[[], None]] = {}

    def add_reader(self, fd: int, callback: Callable[[], None]) -> None:
        self.readers[fd] = callback

    def remove_reader(self, fd: int) -> None:
        del self.readers[fd]

    def add_writer(self, fd: int, callback: Callable[[], None]) -> None:
        self.writers[fd] = callback

    def remove_writer(self, fd: int) -> None:
        del self.writers[fd]

    def run(self, until: Callable[[], bool]) -> None:
        while not until():
            readable, writable, _ = select.select(list(self.readers), list(self.writers), [], 10)
            assert readable or writable
            for fd in readable:
                self.readers[fd]()
            for fd in writable:
                if fd in self.writers:
                    self.writers[fd]()


class Server:
    def __init__(self, answer: bytes = INFO + ACK, greeting: bytes = MAGIC) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.ours.settimeout(10)
        self.theirs.settimeout(10)
        self.ours.sendall(greeting + answer)
        self.loop = Loop()
        self.closed: list[int] = []

    def open(self) -> NbdImage:
        image = NbdImage(self.theirs, "disk", self.loop, lambda: self.closed.append(1))
        asked = self.receive(4 + 16 + 4 + 4 + 2)
        assert asked == struct.pack(">IQII", 1, 0x49484156454F5054, 7, 10) + (
            struct.pack(">I4sH", 4, b"disk", 0)
        )
        return image

    def receive(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self.ours.recv(size - len(data))
            assert more
            data += more
        return data

    def request(self) -> tuple[int, int, int, int]:
        """Kind, number, offset, length."""
        magic, flags, kind, number, offset, size = struct.unpack(">IHHQQI", self.receive(28))
        assert (magic, flags) == (0x25609513, 0)
        return kind, number, offset, size

    def answer(self, number: int, data: bytes = b"", error: int = 0) -> None:
        self.ours.sendall(struct.pack(">IIQ", 0x67446698, error, number) + data)


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.ours.close()
    made.theirs.close()


def job(
    operation: Operation, offset: int, size: int, *views: bytearray
) -> tuple[Job, list[object]]:
    done: list[object] = []
    return Job(operation, offset, size, views, done.append), done


def test_reads_in_another_order(server: Server) -> None:
    image = server.open()
    assert (image.size, image.discards) == (1 << 32, True)
    first, second = bytearray(512), [bytearray(300), bytearray(0), bytearray(212)]
    one, one_done = job(Operation.READ, 0, 512, first)
    two, two_done = job(Operation.READ, 4096, 512, *second)
    image.start(one)
    image.start(two)
    kind, a, offset, size = server.request()
    assert (kind, offset, size) == (0, 0, 512)
    _, b, offset, _ = server.request()
    assert offset == 4096
    server.answer(b, bytes(range(256)) * 2)
    server.loop.run(lambda: bool(two_done))
    assert b"".join(second) == bytes(range(256)) * 2
    server.ours.sendall(struct.pack(">IIQ", 0x67446698, 0, a)[:7])
    server.loop.readers[server.theirs.fileno()]()
    server.ours.sendall(struct.pack(">IIQ", 0x67446698, 0, a)[7:] + b"z" * 100)
    server.loop.readers[server.theirs.fileno()]()
    server.ours.sendall(b"y" * 412)
    server.loop.run(lambda: bool(one_done))
    assert (one_done, two_done) == ([None], [None])
    assert first == b"z" * 100 + b"y" * 412


def test_a_write_that_the_socket_does_not_take_at_once(server: Server) -> None:
    image = server.open()
    data = [bytearray(bytes([i]) * 65536) for i in range(64)]
    write, done = job(Operation.WRITE, 512, 64 * 65536, *data)
    image.start(write)
    assert server.loop.writers
    got: list[bytes] = []

    def serve() -> None:
        kind, number, offset, size = server.request()
        assert (kind, offset, size) == (1, 512, 64 * 65536)
        got.append(server.receive(size))
        server.answer(number)

    thread = threading.Thread(target=serve)
    thread.start()
    server.loop.run(lambda: bool(done))
    thread.join()
    assert done == [None]
    assert got == [b"".join(data)]
    assert not server.loop.writers


def test_errors_are_the_jobs(server: Server) -> None:
    image = server.open()
    write, done = job(Operation.WRITE, 0, 4, bytearray(4))
    image.start(write)
    _, number, _, _ = server.request()
    server.receive(4)
    server.answer(number, error=errno.ENOSPC)
    server.loop.run(lambda: bool(done))
    assert isinstance(done[0], OSError)
    assert done[0].errno == errno.ENOSPC
    flush, done = job(Operation.FLUSH, 0, 0)
    image.start(flush)
    kind, number, _, _ = server.request()
    assert kind == 3
    server.answer(number)
    server.loop.run(lambda: bool(done))
    assert done == [None]


def test_a_big_discard_goes_in_parts(server: Server) -> None:
    image = server.open()
    discard, done = job(Operation.DISCARD, 512, (2 << 30) + 1024)
    image.start(discard)
    seen = []
    for _ in range(3):
        kind, number, offset, size = server.request()
        seen.append((kind, offset, size))
        server.answer(number)
        server.loop.readers[server.theirs.fileno()]()
    assert seen == [
        (4, 512, 1 << 30),
        (4, 512 + (1 << 30), 1 << 30),
        (4, 512 + (2 << 30), 1024),
    ]
    assert done == [None]


def test_a_server_that_goes(server: Server) -> None:
    image = server.open()
    jobs = [job(Operation.READ, 0, 512, bytearray(512)) for _ in range(3)]
    for each, _ in jobs:
        image.start(each)
    _, number, _, _ = server.request()
    server.answer(number, b"x" * 100)
    server.ours.close()
    server.loop.run(lambda: all(done for _, done in jobs))
    for _, done in jobs:
        assert isinstance(done[0], OSError)
        assert done[0].errno == errno.EIO
    late, done = job(Operation.FLUSH, 0, 0)
    image.start(late)
    assert isinstance(done[0], OSError)
    assert not server.loop.readers
    image.close()
    assert server.closed == [1]


@pytest.mark.parametrize(
    "answer",
    [
        struct.pack(">IIQ", 0x67446698, 0, 999),
        struct.pack(">IIQ", 0x668E33EF, 0, 1),
        b"\0" * 16,
    ],
)
def test_nonsense_ends_the_connection(server: Server, answer: bytes) -> None:
    image = server.open()
    read, done = job(Operation.READ, 0, 512, bytearray(512))
    image.start(read)
    server.ours.sendall(answer)
    server.loop.run(lambda: bool(done))
    assert isinstance(done[0], OSError)


@pytest.mark.parametrize(
    ("greeting", "answer", "why"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", b"", "no NBD server"),
        (
            MAGIC,
            struct.pack(">QIII", REPLY, 7, 1 << 31 | 6, 4) + b"none",
            "refuses the export: none",
        ),
        (MAGIC, struct.pack(">QIII", REPLY, 7, 3, 1 << 20), "nonsense"),
        (MAGIC, struct.pack(">QIII", 5, 7, 1, 0), "nonsense"),
        (MAGIC, ACK * 80, "does not come to an end"),
    ],
)
def test_a_negotiation_that_fails(greeting: bytes, answer: bytes, why: str) -> None:
    server = Server(answer, greeting)
    with pytest.raises(NbdError, match=why):
        server.open()
    server.ours.close()
    server.theirs.close()


def test_a_server_that_says_nothing() -> None:
    server = Server(b"", b"")
    server.ours.close()
    with pytest.raises(NbdError, match="closed the connection"):
        server.open()
    server.theirs.close()


def test_the_end(server: Server) -> None:
    server.open().close()
    assert server.request()[0] == 2
    assert server.closed == [1]
