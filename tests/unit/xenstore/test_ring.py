"""Proves the guest's transport: the ring's arithmetic, its error word, reconnection, and that a
guest that lies about its indexes hurts only itself.

The page is a bytearray and the guest a few lines of Python: real memory, barriers and a guest that
runs at the same moment are for the system tests.
"""

from __future__ import annotations

import random

import pytest

from hvmlite.abi.layout import Abi
from hvmlite.abi.xs_wire import (
    XENSTORE_CONNECTED,
    XENSTORE_ERROR_PROTO,
    XENSTORE_ERROR_RINGIDX,
    XENSTORE_RECONNECT,
    XENSTORE_SERVER_FEATURE_ERROR,
    XENSTORE_SERVER_FEATURE_RECONNECTION,
    XS_DIRECTORY,
    XS_ERROR,
    XS_READ,
    XS_TRANSACTION_START,
    XS_WATCH,
    XS_WATCH_EVENT,
    XS_WRITE,
    xenstore_domain_interface,
    xsd_sockmsg,
)
from hvmlite.xenstore import ring as ring_module
from hvmlite.xenstore.ring import RingTransport


class FakePage:
    def __init__(self):
        self.data = bytearray(4096)
        self.u32 = memoryview(self.data).cast("I")

    def read(self, offset, size):
        assert 0 <= offset <= offset + size <= 2048
        return bytes(self.data[offset : offset + size])

    def write(self, offset, data):
        assert 1024 <= offset <= offset + len(data) <= 2048
        self.data[offset : offset + len(data)] = data


class Guest:
    """The guest's side of the ring, written from docs/misc/xenstore-ring.txt."""

    def __init__(self, store, domid=1, start=0, features=None):
        self.page = FakePage()
        self.kicks = 0
        self.pending = b""
        for name in ("req_cons", "req_prod", "rsp_cons", "rsp_prod"):
            self.set(name, start)
        self.connection = store.introduce_domain(domid, features=features)
        self.ring = RingTransport(self.page, self.kicked, self.connection)

    def kicked(self):
        self.kicks += 1

    def _at(self, name):
        return xenstore_domain_interface.offsetof(name, Abi.X86_32)

    def get(self, name):
        return int.from_bytes(self.page.data[self._at(name) : self._at(name) + 4], "little")

    def set(self, name, value):
        at = self._at(name)
        self.page.data[at : at + 4] = (value & 0xFFFFFFFF).to_bytes(4, "little")

    def put(self, data):
        """As much of `data` as the ring has room for, without a kick; returns the rest."""
        prod = self.get("req_prod")
        room = 1024 - ((prod - self.get("req_cons")) & 0xFFFFFFFF)
        for index, byte in enumerate(data[:room]):
            self.page.data[(prod + index) % 1024] = byte
        self.set("req_prod", prod + len(data[:room]))
        return data[room:]

    def take(self):
        cons = self.get("rsp_cons")
        size = (self.get("rsp_prod") - cons) & 0xFFFFFFFF
        assert size <= 1024
        data = bytes(self.page.data[1024 + (cons + i) % 1024] for i in range(size))
        self.set("rsp_cons", cons + size)
        return data

    def send(self, kind, payload, req_id=1, tx_id=0):
        """One message in as many steps as it takes."""
        data = xsd_sockmsg(kind, req_id, tx_id, len(payload)).pack() + payload
        while data:
            data = self.put(data)
            self.ring.on_event()
            self.pending += self.take()

    def receive(self):
        """All messages there are, as (type, payload)."""
        while True:
            self.ring.on_event()
            data = self.take()
            self.pending += data
            if not data:
                break
        found = []
        while len(self.pending) >= 16:
            header = xsd_sockmsg.unpack(self.pending)
            if len(self.pending) < 16 + header.len:
                break
            found.append((header.type, self.pending[16 : 16 + header.len]))
            self.pending = self.pending[16 + header.len :]
        return found

    def ask(self, kind, payload):
        self.send(kind, payload)
        return self.receive()


@pytest.fixture
def ring(store):
    return Guest(store)


def test_request_and_reply(ring):
    assert ring.ask(XS_READ, b"data\0") == [(XS_READ, b"")]
    assert ring.ask(XS_WRITE, b"data/x\0hello") == [(XS_WRITE, b"OK\0")]
    assert ring.ask(XS_READ, b"data/x\0") == [(XS_READ, b"hello")]
    assert ring.ask(XS_READ, b"none\0") == [(XS_ERROR, b"ENOENT\0")]


def test_one_kick_for_a_request(ring):
    before = ring.kicks
    ring.put(xsd_sockmsg(XS_READ, 1, 0, 5).pack() + b"data\0")
    ring.ring.on_event()
    assert ring.kicks == before + 1
    assert ring.get("req_cons") == ring.get("req_prod")


def test_no_kick_without_a_change(ring):
    before = ring.kicks
    ring.ring.on_event()
    assert ring.kicks == before


def test_what_waits_in_the_page_is_served_at_attachment(store):
    guest = Guest(store)
    page = guest.page
    guest.ring.closed()
    guest.put(xsd_sockmsg(XS_READ, 1, 0, 5).pack() + b"data\0")
    guest.ring = RingTransport(page, guest.kicked, guest.connection)
    assert guest.receive() == [(XS_READ, b"")]


@pytest.mark.parametrize("start", [0, 1, 1000, 0xFFFFFFF0, 0xFFFFFC00])
def test_indexes_run_freely_and_wrap(store, start):
    guest = Guest(store, start=start)
    rng = random.Random(start)
    for _ in range(60):
        value = rng.randbytes(rng.randrange(400))
        assert guest.ask(XS_WRITE, b"data/x\0" + value) == [(XS_WRITE, b"OK\0")]
        assert guest.ask(XS_READ, b"data/x\0") == [(XS_READ, value)]


def test_messages_larger_than_the_ring(store, ring):
    value = bytes(range(1, 251)) * 8
    assert ring.ask(XS_WRITE, b"data/x\0" + value) == [(XS_WRITE, b"OK\0")]
    assert ring.ask(XS_READ, b"data/x\0") == [(XS_READ, value)]
    store.mkdir("/big", ["r0"])
    for index in range(300):
        store.write(f"/big/child{index}", b"")
    ((kind, listing),) = ring.ask(XS_DIRECTORY, b"/big\0")
    assert (kind, listing.count(b"\0")) == (XS_DIRECTORY, 300)


def test_single_bytes(ring):
    data = xsd_sockmsg(XS_READ, 1, 0, 5).pack() + b"data\0"
    for index in range(len(data)):
        assert ring.receive() == []
        ring.put(data[index : index + 1])
        ring.ring.on_event()
    assert ring.receive() == [(XS_READ, b"")]


def test_many_requests_before_a_reply_is_read(ring):
    message = xsd_sockmsg(XS_READ, 1, 0, 5).pack() + b"data\0"
    data = message * 400
    while data:
        before = len(data)
        data = ring.put(data)
        ring.ring.on_event()
        if len(data) == before:
            break
    # Replies fill their ring, requests theirs: nothing grows beyond.
    assert ring.get("rsp_prod") - ring.get("rsp_cons") == 1024
    assert ring.get("req_prod") - ring.get("req_cons") == 1024
    assert ring.connection.output_size <= 20 * 16
    replies = []
    while data or ring.get("req_prod") != ring.get("req_cons"):
        replies += ring.receive()
        data = ring.put(data)
        ring.ring.on_event()
    replies += ring.receive()
    assert replies == [(XS_READ, b"")] * 400


def test_events_come_without_a_request(ring, store):
    ring.ask(XS_WATCH, b"data\0token\0")
    before = ring.kicks
    store.write("/local/domain/1/data/x", b"")
    assert ring.kicks == before + 1
    assert ring.receive() == [(XS_WATCH_EVENT, b"data/x\0token\0")]


def test_callback_that_writes_while_the_guest_is_served(ring, store):
    def answer(path):
        if path.endswith("/ask"):
            store.write("/local/domain/1/data/answer", store.read(path) or b"")

    store.watch("/local/domain/1/data", answer)
    ring.ask(XS_WATCH, b"data/answer\0t\0")
    messages = ring.ask(XS_WRITE, b"data/ask\x0042")
    assert sorted(messages) == [(XS_WRITE, b"OK\0"), (XS_WATCH_EVENT, b"data/answer\0t\0")]
    assert ring.ask(XS_READ, b"data/answer\0") == [(XS_READ, b"42")]


class TestFeatureWords:
    def test_all_by_default(self, ring):
        assert ring.get("server_features") == (
            XENSTORE_SERVER_FEATURE_RECONNECTION | XENSTORE_SERVER_FEATURE_ERROR
        )
        assert ring.get("connection") == XENSTORE_CONNECTED
        assert ring.get("error") == 0

    def test_as_the_toolstack_says(self, store):
        assert Guest(store, features=0).get("server_features") == 0
        assert Guest(store, 2, features=2).get("server_features") == 2

    def test_page_prepared_for_a_later_store(self, store):
        page = FakePage()
        kicks = []
        page.u32[517] = XENSTORE_RECONNECT
        RingTransport(page, lambda: kicks.append(1), store.introduce_domain(1))
        assert page.u32[517] == XENSTORE_CONNECTED
        assert kicks == [1]


class TestReconnection:
    def test_everything_starts_anew(self, ring, store):
        ring.ask(XS_WATCH, b"data\0t\0")
        ((_, number),) = ring.ask(XS_TRANSACTION_START, b"\0")
        ring.put(b"half a header")
        ring.ring.on_event()
        before = ring.kicks
        ring.set("connection", XENSTORE_RECONNECT)
        ring.ring.on_event()
        assert ring.kicks == before + 1
        assert ring.get("connection") == XENSTORE_CONNECTED
        for name in ("req_cons", "req_prod", "rsp_cons", "rsp_prod"):
            assert ring.get(name) == 0
        ring.pending = b""
        store.write("/local/domain/1/data", b"")
        assert ring.receive() == []
        ring.send(XS_READ, b"data\0", tx_id=int(number[:-1]))
        assert ring.receive() == [(XS_ERROR, b"ENOENT\0")]
        assert ring.ask(XS_READ, b"data\0") == [(XS_READ, b"")]

    def test_heals_an_error(self, ring):
        ring.set("req_prod", ring.get("req_cons") + 2000)
        ring.ring.on_event()
        assert ring.get("error") == XENSTORE_ERROR_RINGIDX
        ring.set("connection", XENSTORE_RECONNECT)
        ring.ring.on_event()
        assert ring.get("error") == 0
        assert ring.ask(XS_READ, b"data\0") == [(XS_READ, b"")]

    def test_only_if_offered(self, store):
        guest = Guest(store, features=0)
        guest.set("connection", XENSTORE_RECONNECT)
        guest.ring.on_event()
        assert guest.get("connection") == XENSTORE_RECONNECT


class TestHostile:
    @pytest.mark.parametrize("lead", [1025, 2000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF])
    def test_request_indexes(self, ring, store, lead):
        ring.ask(XS_WATCH, b"data\0t\0")
        before = ring.kicks
        ring.set("req_prod", ring.get("req_cons") + lead)
        ring.ring.on_event()
        assert ring.get("error") == XENSTORE_ERROR_RINGIDX
        assert ring.kicks == before + 1
        ring.set("req_prod", ring.get("req_cons"))
        ring.put(xsd_sockmsg(XS_READ, 1, 0, 5).pack() + b"data\0")
        ring.ring.on_event()
        assert ring.take() == b""
        assert ring.connection.watches == {}
        store.write("/local/domain/1/data", b"")

    def test_reply_indexes(self, ring):
        ring.set("rsp_cons", ring.get("rsp_prod") + 1)
        ring.put(xsd_sockmsg(XS_READ, 1, 0, 5).pack() + b"data\0")
        ring.ring.on_event()
        assert ring.get("error") == XENSTORE_ERROR_RINGIDX

    def test_too_long_a_message(self, ring):
        ring.put(xsd_sockmsg(XS_READ, 1, 0, 4097).pack())
        ring.ring.on_event()
        assert ring.get("error") == XENSTORE_ERROR_PROTO

    def test_indexes_moved_under_us(self, ring, store):
        rng = random.Random(1)
        for _ in range(3000):
            name = rng.choice(["req_cons", "req_prod", "rsp_cons", "rsp_prod", "connection"])
            ring.set(name, rng.choice([0, 1, 16, 1024, 0xFFFFFFFF, rng.getrandbits(32)]))
            ring.page.data[rng.randrange(1024)] = rng.getrandbits(8)
            ring.ring.on_event()
        assert store.check() == []
        second = Guest(store, 2)
        assert second.ask(XS_READ, b"data\0") == [(XS_READ, b"")]

    def test_guest_that_never_stops_writing_is_left_after_a_while(self, store, monkeypatch):
        guest = Guest(store)
        message = xsd_sockmsg(XS_READ, 1, 0, 5).pack() + b"data\0"
        rounds = []
        whole = FakePage.read

        def read_while_the_guest_runs(page, offset, size):
            data = whole(page, offset, size)
            guest.take()
            guest.put(message)
            rounds.append(1)
            return data

        guest.put(message)
        monkeypatch.setattr(FakePage, "read", read_while_the_guest_runs)
        guest.ring.on_event()
        assert len(rounds) <= 2 * ring_module._ROUNDS
        guest.ring.on_event()
        assert len(rounds) > ring_module._ROUNDS


class TestEnd:
    def test_released_domain_is_left_alone(self, ring, store):
        store.release_domain(1)
        before = bytes(ring.page.data), ring.kicks
        ring.put(b"")
        ring.ring.on_event()
        assert (bytes(ring.page.data), ring.kicks) == before

    def test_introduced_again(self, ring, store):
        ring.ask(XS_WATCH, b"data\0t\0")
        store.introduce_domain(1)
        assert ring.get("req_prod") == ring.get("rsp_prod") == 0
        assert ring.ask(XS_READ, b"data\0") == [(XS_READ, b"")]
