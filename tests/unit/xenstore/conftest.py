"""A peer that speaks the wire protocol to one connection, for all xenstore tests."""

from __future__ import annotations

import struct

import pytest

from hvmlite.abi import xs_wire
from hvmlite.xenstore.server import XenStore

HEADER = struct.Struct("<IIII")


class RefusedError(Exception):
    """The store answered with an ERROR; str() is its name."""


class Peer:
    """One client: builds requests by hand, takes replies apart by hand."""

    def __init__(self, connection):
        self.connection = connection
        self.events = []
        self._req_id = 0
        self._buffer = b""

    @staticmethod
    def message(kind, payload=b"", tx=0, req_id=1):
        return HEADER.pack(kind, req_id, tx, len(payload)) + payload

    def messages(self):
        """All output so far, as (type, req_id, tx_id, payload); takes it away."""
        found = []
        while True:
            data = self.connection.pending_output
            self.connection.consume_output(len(data))
            self._buffer += data
            if not data:
                break
        while len(self._buffer) >= 16:
            kind, req_id, tx_id, length = HEADER.unpack_from(self._buffer)
            if len(self._buffer) < 16 + length:
                break
            found.append((kind, req_id, tx_id, self._buffer[16 : 16 + length]))
            self._buffer = self._buffer[16 + length :]
        return found

    def sort_out(self):
        """Output so far without events, which go to self.events."""
        replies = []
        for message in self.messages():
            if message[0] == xs_wire.XS_WATCH_EVENT:
                assert message[1:3] == (0, 0)
                path, token, rest = message[3].split(b"\0")
                assert rest == b""
                self.events.append((path.decode(), token.decode("latin-1")))
            else:
                replies.append(message)
        return replies

    def raw(self, kind, payload=b"", tx=0):
        """The reply's payload; raises RefusedError."""
        self._req_id += 1
        self.connection.feed(self.message(kind, payload, tx, self._req_id))
        (reply,) = self.sort_out()
        assert reply[1:3] == (self._req_id, tx)
        if reply[0] == xs_wire.XS_ERROR:
            assert reply[3][-1:] == b"\0"
            raise RefusedError(reply[3][:-1].decode())
        assert reply[0] == kind
        return reply[3]

    def ask(self, kind, *strings, tx=0):
        """As raw, the payload made of NUL-terminated strings."""
        return self.raw(kind, b"".join([s.encode("latin-1") + b"\0" for s in strings]), tx)

    def read(self, path, tx=0):
        return self.ask(xs_wire.XS_READ, path, tx=tx)

    def write(self, path, value, tx=0):
        assert self.raw(xs_wire.XS_WRITE, path.encode() + b"\0" + value, tx) == b"OK\0"

    def mkdir(self, path, tx=0):
        assert self.ask(xs_wire.XS_MKDIR, path, tx=tx) == b"OK\0"

    def rm(self, path, tx=0):
        assert self.ask(xs_wire.XS_RM, path, tx=tx) == b"OK\0"

    def ls(self, path, tx=0):
        return self.ask(xs_wire.XS_DIRECTORY, path, tx=tx).decode().split("\0")[:-1]

    def perms(self, path, tx=0):
        return self.ask(xs_wire.XS_GET_PERMS, path, tx=tx).decode().split("\0")[:-1]

    def chmod(self, path, *perms, tx=0):
        assert self.ask(xs_wire.XS_SET_PERMS, path, *perms, tx=tx) == b"OK\0"

    def watch(self, path, token):
        assert self.ask(xs_wire.XS_WATCH, path, token) == b"OK\0"

    def unwatch(self, path, token):
        assert self.ask(xs_wire.XS_UNWATCH, path, token) == b"OK\0"

    def start(self):
        reply = self.ask(xs_wire.XS_TRANSACTION_START, "")
        assert reply[-1:] == b"\0"
        return int(reply[:-1])

    def end(self, tx, commit=True):
        assert self.ask(xs_wire.XS_TRANSACTION_END, "T" if commit else "F", tx=tx) == b"OK\0"

    def take_events(self):
        self.sort_out()
        events, self.events = self.events, []
        return events


@pytest.fixture
def refused():
    """`with refused("ENOENT"):` expects that answer."""
    return lambda name: pytest.raises(RefusedError, match=f"^{name}$")


@pytest.fixture
def store():
    """A store with the homes of domains 1 and 2, as a toolstack makes them."""
    store = XenStore()
    for domid in (1, 2):
        make_home(store, domid)
    return store


def make_home(store, domid):
    home = f"/local/domain/{domid}"
    store.mkdir(home, ["n0", f"r{domid}"])
    store.mkdir(f"{home}/data", [f"n{domid}"])


@pytest.fixture
def connect():
    """connect(store, domid): a Peer; a guest is introduced first."""

    def make(store, domid=0):
        return Peer(store.connect() if domid == 0 else store.introduce_domain(domid))

    return make


@pytest.fixture
def dom0(store, connect):
    return connect(store)


@pytest.fixture
def guest(store, connect):
    """Domain 1."""
    return connect(store, 1)


@pytest.fixture
def other(store, connect):
    """Domain 2."""
    return connect(store, 2)
