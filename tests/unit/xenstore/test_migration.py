"""Proves that a store survives dump and load, and that what is loaded is not trusted.

The layout is checked against docs/designs/xenstore-migration.md by hand-made bytes; no stream of
a real xenstored was at hand.
"""

from __future__ import annotations

import contextlib
import random
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.xenstore.conftest import Peer

from hvmlite.abi.xs_wire import XS_READ, XS_TRANSACTION_END, XS_WRITE
from hvmlite.errors import UserError
from hvmlite.xenstore.migration import StateError, dump, dump_domain, load, load_domain
from hvmlite.xenstore.server import XenStore


def listing(store):
    """Everything in the tree but generations."""
    return [
        (path, node.value, [str(p) for p in node.perms], node.children.listing())
        for path, node in store.daemon.tree.walk()
    ] + [(name, store.get_perms(name)) for name in ("@introduceDomain", "@releaseDomain")]


@pytest.fixture
def again(connect):
    """again(store, *domids): the store after dump and load, and Peers for the domains."""

    def reload(store, *domids):
        data = dump(store)
        assert data == dump(store)
        loaded = load(data)
        assert listing(loaded) == listing(store)
        assert loaded.check() == []
        assert dump(loaded) == data
        return loaded, *[type(connect(loaded))(loaded.connection(domid)) for domid in domids]

    return reload


def test_empty_store(again, store):
    again(store)


def test_nodes(store, again):
    store.write("/a/b", b"\0\xff" * 100, ["n0", "r1", "w2", "b3"])
    store.write("/z", "")
    store.write("/a/a", "")
    store.set_perms("@releaseDomain", ["n0", "r1"])
    loaded, *_ = again(store)
    assert loaded.list("/a") == ["b", "a"]
    assert loaded.get_perms("/a/b") == ["n0", "r1", "w2", "b3"]


def test_accounts(store, guest, again):
    guest.write("data/x/y", b"value")
    guest.watch("data", "t")
    guest.sort_out()
    before = store.daemon.domains[1]
    loaded, *_ = again(store)
    after = loaded.daemon.domains[1]
    assert (after.nodes, after.watches, after.memory) == (
        before.nodes,
        before.watches,
        before.memory,
    )


def test_domains_and_targets(store, guest, other, again, dom0):
    store.introduce_domain(1, port=17)
    dom0.ask(19, "2", "1")
    store.write("/s", "v", ["n0", "r1"])
    _, one, two = again(store, 1, 2)
    assert one.connection.domain.port == 17
    assert two.connection.domain.target == 1
    assert two.read("/s") == b"v"


def test_watches(store, guest, again):
    guest.watch("data", "rel")
    guest.watch("/local/domain/1/data", "\xff")
    guest.take_events()
    loaded, peer = again(store, 1)
    assert peer.take_events() == []
    loaded.write("/local/domain/1/data/x", "")
    assert peer.take_events() == [("data/x", "rel"), ("/local/domain/1/data/x", "\xff")]
    peer.unwatch("data", "rel")


def test_void_permissions_stay_void(store, again, connect, refused):
    store.write("/s", "v", ["n0", "r5"])
    store.release_domain(5)
    store.write("/t", "v", ["n0", "b40000", "r32752"])
    loaded, *_ = again(store)
    with refused("EACCES"):
        connect(loaded, 5).read("/s")


def test_streams_under_way(store, guest, again):
    guest.watch("data", "t")
    guest.sort_out()
    guest.connection.feed(guest.message(XS_READ, b"data\0", req_id=7))
    guest.write_later = guest.message(XS_WRITE, b"data/x\x001", req_id=8)
    guest.connection.feed(guest.write_later[:20])
    store.write("/local/domain/1/data", "")
    first = guest.connection.peek_output(5)
    guest.connection.consume_output(5)
    _, peer = again(store, 1)
    assert peer.connection.domain.outstanding == 1
    peer._buffer = first
    replies = peer.sort_out()
    assert replies == [(XS_READ, 7, 0, b"")]
    assert peer.take_events() == [("data", "t")]
    peer.connection.feed(guest.write_later[20:])
    assert peer.sort_out() == [(XS_WRITE, 8, 0, b"OK\0")]
    assert peer.connection.domain.outstanding == 0


def test_requests_that_were_held_back_are_served(store, guest):
    guest.connection.feed(guest.message(XS_READ, b"data\0") * 25)
    loaded = load(dump(store))
    peer = type(guest)(loaded.connection(1))
    assert len(peer.messages()) == 25


class TestTransactions:
    @pytest.fixture
    def opened(self, store, guest):
        store.write("/local/domain/1/data/old/er", "0", ["n1"])
        tx = guest.start()
        guest.write("data/new/er", b"1", tx)
        guest.rm("data/old", tx)
        guest.write("data", b"2", tx)
        guest.watch("data", "t")
        guest.take_events()
        return tx

    def test_commit_after_load(self, store, guest, opened, again):
        loaded, peer = again(store, 1)
        assert peer.ls("data", opened) == ["new"]
        assert peer.read("data/new/er", opened) == b"1"
        peer.end(opened)
        assert peer.ls("data") == ["new"]
        assert peer.read("data") == b"2"
        paths = {path for path, _ in peer.take_events()}
        assert {"data/new/er", "data/old", "data/old/er", "data"} <= paths
        assert loaded.check() == []

    def test_conflict_after_load(self, store, guest, opened, again, refused):
        loaded, peer = again(store, 1)
        loaded.write("/local/domain/1/data/old/er", "x")
        with refused("EAGAIN"):
            peer.end(opened)
        assert peer.ls("data") == ["old"]

    def test_conflict_before_dump(self, store, guest, opened, again, refused):
        store.write("/local/domain/1/data/old/er", "x")
        _, peer = again(store, 1)
        with refused("EAGAIN"):
            peer.ask(XS_TRANSACTION_END, "T", tx=opened)

    def test_reads(self, store, guest, again, refused):
        one, two = guest.start(), guest.start()
        guest.read("data", one)
        with refused("ENOENT"):
            guest.read("data/none", two)
        loaded, peer = again(store, 1)
        loaded.write("/local/domain/1/data/none", "")
        for tx in (one, two):
            with refused("EAGAIN"):
                peer.end(tx)

    def test_numbers_go_on(self, store, guest, again):
        guest.start(), guest.start()
        _, peer = again(store, 1)
        assert peer.start() == 3

    def test_created_and_removed_inside(self, store, guest, again):
        tx = guest.start()
        guest.write("data/x", b"", tx)
        guest.rm("data/x", tx)
        loaded, peer = again(store, 1)
        peer.end(tx)
        assert peer.ls("data") == []
        assert loaded.check() == []


# What cannot be loaded.


def record(kind, body, length=None):
    length = len(body) if length is None else length
    return struct.pack("<II", kind, length) + body + bytes(-len(body) % 8)


def node(path, value=b"", perms=(b"n\0\0\0",), conn=0, tx=0, access=0):
    name = path + b"\0"
    head = struct.pack("<IIHHHH", conn, tx, len(name), len(value), access, len(perms))
    return record(5, head + b"".join(perms) + name + value)


def stream(*records, end=True, head=b"xenstore\0\0\0\1\0\0\0\0"):
    return head + b"".join(records) + (record(0, b"") if end else b"")


CONNECTION = record(2, struct.pack("<IHHHHIHHI", 1, 0, 0, 1, 0x7FF4, 3, 0, 0, 0))
TRANSACTION = record(4, struct.pack("<II", 1, 5))
ROOT = node(b"/")


def watch(path=b"/a\0", token=b"t\0", conn=1):
    return record(3, struct.pack("<IHH", conn, len(path), len(token)) + path + token)


def test_layout_by_hand(connect):
    loaded = load(
        stream(
            record(1, b"\xff" * 8),
            CONNECTION,
            watch(),
            TRANSACTION,
            ROOT,
            node(b"/a", b"v", (b"n\0\1\0", b"r\1\2\0")),
            node(b"/a/b", b"w"),
            node(b"/a", b"v", (b"n\0\1\0", b"r\1\2\0"), 1, 5, 1),
            node(b"/a/b", b"x", (b"n\0\0\0",), 1, 5, 3),
        )
    )
    assert loaded.get_perms("/a") == ["n1", "r2"]
    assert loaded.list("/a") == ["b"]
    peer = type(connect(loaded))(loaded.connection(1))
    peer.end(5)
    assert loaded.read("/a/b") == b"x"
    assert peer.take_events() == [("/a/b", "t")]


def test_big_endian():
    name = b"/\0"
    head = struct.pack(">IIHHHH", 0, 0, len(name), 3, 0, 1)
    body = head + b"n\0\0\0" + name + b"abc"
    data = b"xenstore\0\0\0\1\0\0\0\1" + struct.pack(">II", 5, len(body)) + body
    data += bytes(-len(body) % 8) + bytes(8)
    assert load(data).read("/") == b"abc"


def test_sockets_are_left_out():
    socket = record(2, struct.pack("<IHHiIHHI", 9, 1, 0, 7, 0, 0, 0, 0))
    entry = node(b"/x", b"", (b"n\0\0\0",), 9, 5, 3)
    opened = record(4, struct.pack("<II", 9, 5))
    loaded = load(stream(socket, watch(conn=9), opened, ROOT, entry))
    assert loaded.list("/") == []
    assert not loaded.daemon.connections


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "too short for a header"),
        (stream(head=b"Xenstore\0\0\0\1\0\0\0\0"), "not a xenstore stream"),
        (stream(head=b"xenstore\0\0\0\2\0\0\0\0"), "version 2 is not known"),
        (stream(head=b"xenstore\0\0\0\1\0\0\0\2"), "unknown flags 0x2"),
        (stream(ROOT, end=False), "without an END record"),
        (stream(record(0, b"12345678")), "END record with a body"),
        (stream(record(6, b"")), "unknown record type 6"),
        (stream(record(5, b"", 1 << 31)), "beyond the end"),
        (stream(), "no root node"),
        (stream(ROOT, ROOT), "node / appears twice"),
        (stream(node(b"/", perms=())), "has no owner"),
        (stream(ROOT, node(b"/a/b")), "before its parent"),
        (stream(ROOT, node(b"a")), "relative path"),
        (stream(ROOT, node(b"/a b")), "EINVAL"),
        (stream(ROOT, node(b"@x")), "unknown special node"),
        (stream(node(b"/", perms=(b"x\0\0\0",))), "unknown permission"),
        (stream(node(b"/", perms=(b"n\0\xf0\x7f",))), "impossible domain"),
        (stream(record(5, bytes(15))), "record is too short"),
        (stream(record(5, struct.pack("<IIHHHH", 0, 0, 9, 0, 0, 1))), "record is too short"),
        (stream(record(5, struct.pack("<IIHHHH", 0, 0, 3, 0, 0, 0) + b"/ab")), "NUL-terminated"),
        (stream(record(5, struct.pack("<IIHHHH", 0, 0, 0, 0, 0, 0))), "NUL-terminated"),
        (stream(CONNECTION, CONNECTION), "appears twice"),
        (stream(record(2, struct.pack("<IHHHHIHHI", 0, *[0] * 8))), "connection 0 is zero"),
        (stream(record(2, struct.pack("<IHHHHIHHI", 1, 2, *[0] * 7))), "connection type 2"),
        (
            stream(CONNECTION, record(2, struct.pack("<IHHHHIHHI", 2, 0, 0, 1, *[0] * 5))),
            "domain 1 is impossible",
        ),
        (
            stream(record(2, struct.pack("<IHHHHIHHI", 1, 0, 0, 0x7FF0, *[0] * 5))),
            "domain 32752 is impossible",
        ),
        (
            stream(record(2, struct.pack("<IHHHHIHHI", 1, 0, 0, 1, 5, 0, 0, 0, 0)), ROOT),
            "target domain 5",
        ),
        (
            stream(record(2, struct.pack("<IHHHHIHHI", 1, 0, 0, 1, 5, 0, 9, 0, 0)), ROOT),
            "record is too short",
        ),
        (
            stream(record(2, struct.pack("<IHHHHIHHI", 1, 0, 0, 1, 5, 0, 0, 0, 4) + b"abcd")),
            "not whole messages",
        ),
        (
            stream(record(2, struct.pack("<IHHHHIHHI", 1, 0, 0, 1, 5, 0, 0, 5, 4) + b"abcd")),
            "not whole messages",
        ),
        (stream(watch()), "connection 1 has no record"),
        (stream(CONNECTION, watch(), watch()), "watch on /a appears twice"),
        (stream(CONNECTION, watch(path=b"/a b\0")), "EINVAL"),
        (stream(CONNECTION, watch(token=b"t")), "NUL-terminated"),
        (stream(TRANSACTION), "connection 1 has no record"),
        (stream(CONNECTION, TRANSACTION, TRANSACTION), "appears twice"),
        (stream(CONNECTION, ROOT, node(b"/", conn=1, tx=5)), "transaction 5 has no record"),
        (
            stream(
                CONNECTION,
                TRANSACTION,
                ROOT,
                node(b"/", conn=1, tx=5, access=1),
                node(b"/", conn=1, tx=5, access=1),
            ),
            "twice in a transaction",
        ),
        (
            stream(CONNECTION, TRANSACTION, ROOT, node(b"/", perms=(), conn=1, tx=5, access=2)),
            "has no owner",
        ),
        (
            stream(CONNECTION, TRANSACTION, ROOT, node(b"/a/b", conn=1, tx=5, access=2)),
            "created without its parent",
        ),
    ],
)
def test_refused(data, problem):
    with pytest.raises(StateError, match=problem) as caught:
        load(data)
    assert isinstance(caught.value, UserError)
    assert str(caught.value).startswith("xenstore state: ")


@pytest.fixture(scope="module")
def rich():
    """A stream with a bit of everything."""
    from hvmlite.xenstore.server import XenStore

    store = XenStore()
    for domid in (1, 2):
        store.mkdir(f"/local/domain/{domid}", [f"n{domid}", "r0"])
        connection = store.introduce_domain(domid, port=domid)
        for kind, tx, payload in (
            (4, 0, b"x\0token\0"),
            (6, 0, b"\0"),
            (11, 1, b"x/y\0value"),
            (1, 1, b"z\0"),
            (2, 0, b"x\0"),
        ):
            connection.feed(struct.pack("<IIII", kind, 1, tx, len(payload)) + payload)
        connection.feed(b"\2\0\0")
    return dump(store)


def test_every_truncation_is_refused(rich):
    for size in range(len(rich)):
        with pytest.raises(StateError):
            load(rich[:size])
    load(rich)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_damage_is_loaded_or_refused(rich, data):
    damaged = bytearray(rich)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at] = data.draw(st.integers(0, 255))
    try:
        loaded = load(bytes(damaged))
    except StateError:
        return
    assert loaded.check() == []


@pytest.mark.slow
def test_much_damage(rich):
    rng = random.Random(4)
    for _ in range(20000):
        damaged = bytearray(rich)
        for _ in range(rng.randrange(1, 8)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            loaded = load(bytes(damaged))
        except StateError:
            continue
        assert loaded.check() == []


class TestOneDomain:
    """dump_domain and load_domain: one domain moves from a store to another with others in it."""

    @pytest.fixture
    def elsewhere(self):
        other = XenStore()
        other.write("/local/domain/7/name", "resident", ["n7"])
        other.introduce_domain(7)
        return other

    @pytest.fixture
    def lively(self, store, guest):
        """Domain 1 with nodes, watches, an open transaction; domain 2 beside it."""
        store.write("/vm/uuid/name", "one")
        store.write("/local/domain/1/name", "one", ["n0", "r1"])
        guest.write("data/x/y", b"value")
        guest.chmod("data/x", "n1", "b2")
        guest.watch("data", "relative")
        guest.watch("/local/domain/1/name", "absolute")
        guest.watch("@releaseDomain", "special")
        guest.take_events()
        return store

    def move(self, source, target, domid=None):
        data = dump_domain(source, 1, ["/vm/uuid"])
        connection = load_domain(target, data, domid)
        assert target.check() == []
        return Peer(connection)

    def test_under_its_own_number(self, lively, elsewhere, guest):
        tx = guest.start()
        guest.write("data/x/y", guest.read("data/x/y", tx) + b"2", tx)
        peer = self.move(lively, elsewhere)
        assert dump_domain(elsewhere, 1, ["/vm/uuid"]) == dump_domain(lively, 1, ["/vm/uuid"])
        assert elsewhere.read("/local/domain/7/name") == b"resident"
        assert not elsewhere.exists("/local/domain/2")
        assert elsewhere.read("/vm/uuid/name") == b"one"
        peer.end(tx)
        assert elsewhere.read("/local/domain/1/data/x/y") == b"value2"
        assert peer.take_events() == [("data/x/y", "relative")]

    def test_under_another_number(self, lively, elsewhere, guest, refused):
        tx = guest.start()
        guest.read("data/x/y", tx)
        peer = self.move(lively, elsewhere, 9)
        assert not elsewhere.exists("/local/domain/1")
        assert elsewhere.get_perms("/local/domain/9/name") == ["n0", "r9"]
        assert elsewhere.get_perms("/local/domain/9/data/x") == ["n9", "b2"]
        assert peer.read("data/x/y") == b"value"
        with refused("EAGAIN"):
            peer.end(tx)
        elsewhere.write("/local/domain/9/name", "nine")
        elsewhere.write("/local/domain/9/data/x", "")
        assert sorted(peer.take_events()) == [
            ("/local/domain/9/name", "absolute"),
            ("data/x", "relative"),
        ]
        assert elsewhere.daemon.domains[9].nodes == lively.daemon.domains[1].nodes

    def test_what_was_at_its_home_goes(self, lively, elsewhere):
        elsewhere.write("/local/domain/1/stale", "old")
        self.move(lively, elsewhere)
        assert not elsewhere.exists("/local/domain/1/stale")

    def test_transaction_whose_nodes_differ_there_conflicts(
        self, lively, elsewhere, guest, refused
    ):
        lively.write("/shared", "here", ["r0"])
        elsewhere.write("/shared", "there", ["r0"])
        tx = guest.start()
        guest.read("/shared", tx)
        guest.write("data/seen", b"", tx)
        peer = self.move(lively, elsewhere)
        with refused("EAGAIN"):
            peer.end(tx)

    def test_others_are_told(self, lively, elsewhere):
        seen = []
        elsewhere.watch("@introduceDomain", seen.append)
        elsewhere.watch("/local/domain/1/name", seen.append)
        seen.clear()
        self.move(lively, elsewhere)
        assert set(seen) == {"@introduceDomain", "/local/domain/1/name"}

    def test_streams_under_way(self, lively, elsewhere, guest):
        guest.connection.feed(guest.message(XS_READ, b"data/x/y\0", req_id=5)[:10])
        peer = self.move(lively, elsewhere)
        peer.connection.feed(guest.message(XS_READ, b"data/x/y\0", req_id=5)[10:])
        assert peer.messages() == [(XS_READ, 5, 0, b"value")]

    def test_a_number_in_use_is_refused(self, lively, elsewhere):
        with pytest.raises(StateError, match="domain 7 is impossible or appears twice"):
            self.move(lively, elsewhere, 7)
        assert elsewhere.read("/local/domain/7/name") == b"resident"
        assert elsewhere.connection(7) is not None

    def test_unknown_domain(self, lively):
        with pytest.raises(StateError, match="domain 5 is not introduced"):
            dump_domain(lively, 5)

    @pytest.mark.parametrize(
        ("data", "problem"),
        [
            (stream(), "holds no domain"),
            (stream(ROOT), "before the connection's record"),
            (
                stream(CONNECTION, record(2, struct.pack("<IHHHHIHHI", 2, 0, 0, 3, *[0] * 5))),
                "more",
            ),
            (stream(CONNECTION, node(b"/a"), node(b"/a")), "appears twice"),
            (stream(CONNECTION, node(b"@releaseDomain")), "nobody's"),
        ],
    )
    def test_refused_without_a_trace(self, elsewhere, data, problem):
        before = listing(elsewhere)
        with pytest.raises(StateError, match=problem):
            load_domain(elsewhere, data)
        assert listing(elsewhere) == before
        assert elsewhere.check() == []

    def test_damage_is_loaded_or_refused(self, lively, elsewhere):
        rng = random.Random(5)
        data = dump_domain(lively, 1)
        for _ in range(400):
            damaged = bytearray(data)
            for _ in range(rng.randrange(1, 4)):
                damaged[rng.randrange(len(damaged))] = rng.getrandbits(8)
            with contextlib.suppress(StateError):
                connection = load_domain(elsewhere, bytes(damaged), rng.choice([None, 9]))
                domid = connection.domid
                elsewhere.release_domain(domid)
            assert elsewhere.check() == []
            assert elsewhere.read("/local/domain/7/name") == b"resident"
