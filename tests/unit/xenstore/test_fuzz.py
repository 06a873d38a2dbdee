"""Proves that no bytes of a client or guest raise anything in the host, hurt another connection,
or leave the store or its accounts inconsistent.

Random messages, some well-formed, some damaged; says nothing on whether the answers are right
(test_model). The long version is marked slow.
"""

from __future__ import annotations

import random
import socket
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.xenstore.test_socket import Loop

from hvmlite.xenstore.migration import dump, load
from hvmlite.xenstore.ring import RingTransport
from hvmlite.xenstore.server import XenStore
from hvmlite.xenstore.socket import SocketServer

WORDS = [
    b"/",
    b"data",
    b"data/x",
    b"data/x/y",
    b"/local/domain/2/data",
    b"/local/domain/1",
    b"@releaseDomain",
    b"@introduceDomain",
    b"T",
    b"F",
    b"0",
    b"1",
    b"2",
    b"3",
    b"99999999999",
    b"-1",
    b"n1",
    b"b2",
    b"r0",
    b"n3",
    b"",
    b"check",
    b"quota",
    b"set",
    b"nodes",
    b"//",
    b"a b",
    b"\xff\xfe",
    b"x" * 300,
    b"x" * 2050,
]


def sensible(rng):
    """A request that may well succeed: type and payload."""
    path = "/".join(["data", *rng.choices("xyz", k=rng.randrange(3))]).encode()
    return rng.choice(
        [
            (1, path + b"\0"),
            (2, path + b"\0"),
            (3, path + b"\0"),
            (4, path + b"\0t%d\0" % rng.randrange(9)),
            (5, path + b"\0t%d\0" % rng.randrange(9)),
            (6, b"\0"),
            (7, rng.choice([b"T\0", b"T\0", b"F\0"])),
            (11, path + b"\0" + rng.randbytes(rng.randrange(20))),
            (11, path + b"\0" + bytes(rng.randrange(2100))),
            (12, path + b"\0"),
            (13, path + b"\0"),
            (14, path + b"\0n%d\0b%d\0" % (rng.randrange(1, 3), rng.randrange(4))),
            (22, path + b"\x000\0"),
        ]
    )


def some_message(rng):
    choice = rng.random()
    tx = rng.choice([0] * 9 + [1, 2, 3, 4]) if choice < 0.95 else rng.getrandbits(32)
    if choice < 0.7:
        kind, payload = sensible(rng)
        if kind == 6 or (kind == 7 and tx == 0):
            tx = 0 if kind == 6 else rng.randrange(1, 40)
    elif choice < 0.9:
        kind = rng.randrange(30)
        payload = b"\0".join(rng.choices(WORDS, k=rng.randrange(5)))
        payload += b"\0" if rng.random() < 0.8 else b""
    else:
        kind = rng.randrange(30) if choice < 0.95 else rng.getrandbits(32)
        payload = rng.randbytes(rng.choice([0, 1, 5, 40, 300]))
    length = len(payload)
    if rng.random() > 0.9995:
        length = rng.getrandbits(rng.choice([5, 32]))
    return struct.pack("<IIII", kind, rng.getrandbits(32), tx, length) + payload


class Page:
    def __init__(self):
        self.data = bytearray(4096)
        self.u32 = memoryview(self.data).cast("I")

    def read(self, offset, size):
        assert 0 <= offset <= offset + size <= 4096
        return bytes(self.data[offset : offset + size])

    def write(self, offset, data):
        assert 0 <= offset <= offset + len(data) <= 4096
        self.data[offset : offset + len(data)] = data


def furnish(store, domids):
    for domid in domids:
        home = f"/local/domain/{domid}"
        store.mkdir(home, ["n0", f"r{domid}"])
        store.mkdir(f"{home}/data", [f"n{domid}", "r1", "r2", "r3"])


def prepared(version):
    store = XenStore(version)
    furnish(store, (1, 2, 3))
    store.watch("/local/domain", lambda path: None)
    return store


def bystander(store):
    """A connection that must not be hurt, with a watch of its own and a value to read."""
    connection = store.introduce_domain(3)
    connection.feed(struct.pack("<IIII", 4, 1, 0, 12) + b"data/calm\0t\0")
    store.write("/local/domain/3/data/calm", "still here")
    connection.consume_output(connection.output_size)
    return connection


def check_bystander(connection):
    connection.consume_output(connection.output_size)
    connection.feed(struct.pack("<IIII", 2, 7, 0, 10) + b"data/calm\0")
    assert connection.pending_output == struct.pack("<IIII", 2, 7, 0, 10) + b"still here"
    assert len(connection.watches) == 1


def check_all(store):
    assert store.check() == []
    for domain in store.daemon.domains.values():
        assert domain.outstanding >= 0
        assert domain.memory >= 0
        assert domain.transactions >= 0
        assert domain.watches >= 0


class RingPeer:
    """A domain with a ring whose indexes it keeps in order most of the time."""

    def __init__(self, store, domid=2):
        self.domid = domid
        self.page = Page()
        self.connection = store.introduce_domain(domid)
        self.ring = RingTransport(self.page, lambda: None, self.connection)

    def step(self, message, rng):
        words = self.page.u32
        prod, cons = words[513], words[512]
        part = message[: 1024 - ((prod - cons) & 0xFFFFFFFF)]
        for index, byte in enumerate(part):
            self.page.data[(prod + index) % 1024] = byte
        words[513] = (prod + len(part)) & 0xFFFFFFFF
        self.ring.on_event()
        words[514] = words[515]
        if rng.random() < 0.001:
            words[rng.randrange(512, 516)] = rng.getrandbits(32)
        if not self.connection.active or rng.random() < 0.01:
            words[517] = 1
        self.ring.on_event()


class PlainPeer:
    """Domain 1 or a tool, fed directly."""

    def __init__(self, connection):
        self.connection = connection

    def step(self, message, rng):
        connection = self.connection
        cut = rng.randrange(len(message) + 1)
        connection.feed(message[:cut])
        connection.feed(message[cut:])
        if rng.random() < 0.7:
            connection.consume_output(rng.randrange(connection.output_size + 1))


def run(seed, count, version=(4, 17), privileged=False):
    rng = random.Random(seed)
    store = prepared(version)
    calm = bystander(store)
    makers = [lambda: PlainPeer(store.introduce_domain(1)), lambda: RingPeer(store)]
    if privileged:
        makers.append(lambda: PlainPeer(store.connect()))
    peers = [maker() for maker in makers]
    for step in range(count):
        if step % 20 == 0:
            furnish(store, (1, 2))
        index = rng.randrange(len(peers))
        peer = peers[index]
        peer.step(some_message(rng), rng)
        if not peer.connection.is_open or (index != 1 and not peer.connection.active):
            if index == 2:
                peer.connection.close()
            peers[index] = makers[index]()
    check_all(store)
    if not privileged:
        check_bystander(calm)
    for peer in peers:
        peer.connection.consume_output(peer.connection.output_size)
    loaded = load(dump(store), version)
    check_all(loaded)
    return store


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("version", [(4, 17), (4, 22)])
def test_guests(seed, version):
    run(seed, 1000, version)


@pytest.mark.parametrize("seed", range(4))
def test_guests_and_tools(seed):
    run(seed, 1000, (4, 22), privileged=True)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_100000_messages():
    run(99, 60000)
    run(98, 40000, (4, 22), privileged=True)


class SocketPeer:
    """A tool at the socket, which now and then sends plain noise and must connect anew."""

    def __init__(self, path, loop):
        self._path = path
        self._loop = loop
        self.lost = 0
        self._connect()

    def _connect(self):
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(self._path))
        self.socket.setblocking(False)

    def step(self, message, rng):
        if rng.random() < 0.01:
            message = rng.randbytes(rng.choice([1, 16, 40, 5000]))
        try:
            self.socket.send(message)
            if rng.random() < 0.5:
                self._loop.turn()
            if rng.random() < 0.7 and not self.socket.recv(1 << 20):
                raise ConnectionError
        except BlockingIOError:
            self._loop.turn()
        except ConnectionError:
            self.lost += 1
            self.socket.close()
            self._connect()


def ask_calmly(client, loop):
    """A tool's connection that must not be hurt: whatever the others did, it gets its answer."""
    client.sendall(struct.pack("<IIII", 10, 5, 0, 2) + b"3\0")
    wanted = struct.pack("<IIII", 10, 5, 0, 16) + b"/local/domain/3\0"
    loop.spin()
    assert client.recv(4096) == wanted


def run_transports(seed, count, path):
    """Messages and noise by real sockets and by rings, whose guests must not hurt each other."""
    rng = random.Random(seed)
    store = prepared((4, 22))
    loop = Loop()
    server = SocketServer(store, loop, path)
    calm = socket.socket(socket.AF_UNIX)
    calm.connect(str(path))
    peers = [SocketPeer(path, loop), SocketPeer(path, loop), RingPeer(store), RingPeer(store, 1)]
    for step in range(count):
        if step % 20 == 0:
            furnish(store, (1, 2))
        index = rng.randrange(len(peers))
        peers[index].step(some_message(rng), rng)
        if index > 1 and not peers[index].connection.is_open:
            # A tool has released the domain.
            peers[index] = RingPeer(store, peers[index].domid)
        if step % 1000 == 0:
            ask_calmly(calm, loop)
            check_all(store)
    loop.spin()
    ask_calmly(calm, loop)
    check_all(store)
    for peer in peers[:2]:
        peer.socket.close()
    calm.close()
    server.close()
    assert loop.watched == 0
    assert peers[0].lost + peers[1].lost > count // 2000


def test_sockets_and_rings(tmp_path):
    run_transports(7, 8000, tmp_path / "socket")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_100000_messages_by_sockets_and_rings(tmp_path):
    run_transports(77, 100_000, tmp_path / "socket")


@given(st.binary(max_size=200), st.booleans())
@settings(max_examples=200, deadline=None)
def test_any_bytes(data, privileged):
    store = prepared((4, 22))
    calm = bystander(store)
    connection = store.connect() if privileged else store.introduce_domain(1)
    connection.feed(data)
    check_all(store)
    check_bystander(calm)


@given(
    st.integers(0, 30),
    st.binary(max_size=60),
    st.integers(0, 2),
)
@settings(max_examples=300, deadline=None)
def test_any_payload(kind, payload, tx):
    store = prepared((4, 22))
    connection = store.introduce_domain(1)
    connection.feed(struct.pack("<IIII", 6, 0, 0, 0))
    connection.consume_output(connection.output_size)
    connection.feed(struct.pack("<IIII", kind, 9, tx, len(payload)) + payload)
    reply = connection.pending_output
    assert len(reply) >= 16
    check_all(store)


@given(st.binary(min_size=28, max_size=28), st.binary(max_size=64))
@settings(max_examples=200, deadline=None)
def test_any_indexes(words, data):
    store = prepared((4, 17))
    calm = bystander(store)
    page = Page()
    ring = RingTransport(page, lambda: None, store.introduce_domain(1))
    page.data[: len(data)] = data
    page.data[2048 : 2048 + 28] = words
    for _ in range(3):
        ring.on_event()
        store.write("/local/domain/1/data/x", "")
    check_all(store)
    check_bystander(calm)
