"""Proves that random requests of tools and guests, watches and transactions included, are answered
byte for byte as by Debian's own xenstored 4.17, which runs beside (hvmlite.testing.xenstored).

Tools speak to it by its socket, guests by their rings. Left out: CONTROL, whose texts are our own,
and what depends on a hypervisor (domains that shut down, foreign pages).
"""

from __future__ import annotations

import random
import re
import socket
import struct
import time

import pytest
from tests.unit.xenstore.test_fuzz import Page

from hvmlite.abi import xs_wire
from hvmlite.errors import UserError
from hvmlite.testing.xenstored import Xenstored
from hvmlite.xenstore.ring import RingTransport
from hvmlite.xenstore.server import XenStore

HEADER = struct.Struct("<IIII")
GUESTS = (1, 2)
LIMIT = 20.0


class Client:
    """One connection to one of the two stores; subclasses move the bytes."""

    def __init__(self):
        self.buffer = b""
        self.events = []

    def pump(self):
        """More of what the store has sent; may be nothing."""
        raise AssertionError

    def send(self, data):
        raise AssertionError

    def ask(self, kind, payload, tx):
        self.send(HEADER.pack(kind, 77, tx, len(payload)) + payload)
        deadline = time.monotonic() + LIMIT
        while True:
            while len(self.buffer) >= 16:
                kind, number, reply_tx, length = HEADER.unpack_from(self.buffer)
                if len(self.buffer) < 16 + length:
                    break
                payload = self.buffer[16 : 16 + length]
                self.buffer = self.buffer[16 + length :]
                if kind != xs_wire.XS_WATCH_EVENT:
                    assert (number, reply_tx) == (77, tx)
                    return kind, payload
                self.events.append(payload)
            assert time.monotonic() < deadline, "no reply"
            self.buffer += self.pump()

    def take_events(self):
        """Events so far: whatever came before the answer to a harmless request."""
        self.ask(xs_wire.XS_READ, b"/\0", 0)
        events, self.events = self.events, []
        return events


class Socket(Client):
    def __init__(self, path):
        super().__init__()
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(path))
        self.socket.settimeout(LIMIT)

    def send(self, data):
        self.socket.sendall(data)

    def pump(self):
        return self.socket.recv(65536)


class Direct(Client):
    def __init__(self, connection):
        super().__init__()
        self.connection = connection

    def send(self, data):
        self.connection.feed(data)

    def pump(self):
        data = self.connection.pending_output
        self.connection.consume_output(len(data))
        return data


class Ring(Client):
    """A guest: the same code drives the page of either store."""

    def __init__(self, page, kick):
        super().__init__()
        self.page = page
        self.words = memoryview(page).cast("I")
        self.kick = kick

    def send(self, data):
        deadline = time.monotonic() + LIMIT
        while data:
            prod, cons = self.words[513], self.words[512]
            room = 1024 - ((prod - cons) & 0xFFFFFFFF)
            part = data[:room]
            for index, byte in enumerate(part):
                self.page[(prod + index) % 1024] = byte
            if part:
                self.words[513] = (prod + len(part)) & 0xFFFFFFFF
                self.kick()
            data = data[len(part) :]
            self.buffer += self.pump()
            assert time.monotonic() < deadline, "the ring stays full"

    def pump(self):
        cons, prod = self.words[514], self.words[515]
        size = (prod - cons) & 0xFFFFFFFF
        if not size:
            time.sleep(0)
            return b""
        data = bytes([self.page[1024 + (cons + index) % 1024] for index in range(size)])
        self.words[514] = prod
        self.kick()
        return data


class World:
    """Clients 0 and 1 are tools, 2 and 3 the guests 1 and 2."""

    def __init__(self, theirs):
        self.theirs = [Socket(theirs.path), Socket(theirs.path)]
        self.store = XenStore()
        self.store.daemon.domain_exists = lambda _domid: True
        self.ours = [Direct(self.store.connect()), Direct(self.store.connect())]
        self.transactions = [[] for _ in range(4)]
        self.doomed = set()
        self.setup()
        for domid in GUESTS:
            page = theirs.page(domid)
            arguments = b"%d\0%d\0%d\0" % (domid, 1, 1)
            assert self.theirs[0].ask(xs_wire.XS_INTRODUCE, arguments, 0)[1] == b"OK\0"
            self.theirs.append(Ring(page, lambda domid=domid: theirs.kick(domid)))
            page = Page()
            ring = RingTransport(page, lambda: None, self.store.introduce_domain(domid))
            self.ours.append(Ring(page.data, ring.on_event))

    def setup(self):
        for domid in GUESTS:
            home = b"/local/domain/%d" % domid
            self.both(0, xs_wire.XS_MKDIR, home + b"\0")
            self.both(0, xs_wire.XS_SET_PERMS, home + b"\0n0\0r%d\0" % domid)
            self.both(0, xs_wire.XS_MKDIR, home + b"/data\0")
            self.both(0, xs_wire.XS_SET_PERMS, home + b"/data\0n%d\0b%d\0" % (domid, 3 - domid))

    def both(self, index, kind, payload, tx=0):
        theirs = self.theirs[index].ask(kind, payload, tx)
        ours = self.ours[index].ask(kind, payload, tx)
        self.collect()
        if not self.undefined(index, kind, payload, tx, ours, theirs):
            assert shape(ours) == shape(theirs), (index, kind, payload, tx)
        return theirs

    def undefined(self, index, kind, payload, tx, ours, theirs):
        """Whether xenstored's own answer depends on what was left over from earlier requests."""
        refused = ours[0] == theirs[0] == xs_wire.XS_ERROR
        if kind == xs_wire.XS_SET_PERMS and payload[:1] == b"@":
            return refused
        if (index, tx) in self.doomed:
            # It has seen nodes that do not fit together, so that RM may fail half way in it.
            return kind != xs_wire.XS_TRANSACTION_END or refused
        return False

    def find_doomed(self):
        """Note which open transactions cannot be committed any more."""
        daemon = self.store.daemon
        callers = [self.ours[0].connection, self.ours[1].connection]
        callers += [daemon.connection(domid) for domid in GUESTS]
        self.doomed = {
            (index, number)
            for index, caller in enumerate(callers)
            for number, transaction in caller.transactions.items()
            if transaction.doomed(daemon.domains)
        }

    def collect(self):
        """Have our events delivered at once, as xenstored does: one that waits is not repeated."""
        for client in self.ours[:2]:
            client.buffer += client.pump()

    def events(self):
        for index in range(4):
            theirs = self.theirs[index].take_events()
            ours = self.ours[index].take_events()
            # Whether one that waits swallows another depends on when it is written out.
            assert list(dict.fromkeys(ours)) == list(dict.fromkeys(theirs)), index

    def listing(self, path=b"/"):
        kind, names = self.both(0, xs_wire.XS_DIRECTORY, path + b"\0")
        if kind == xs_wire.XS_ERROR:
            return
        self.both(0, xs_wire.XS_READ, path + b"\0")
        self.both(0, xs_wire.XS_GET_PERMS, path + b"\0")
        for name in names.split(b"\0")[:-1]:
            self.listing(path.rstrip(b"/") + b"/" + name)


def shape(reply):
    """The reply without the generation that DIRECTORY_PART has in front."""
    kind, payload = reply
    if kind == xs_wire.XS_DIRECTORY_PART:
        return kind, re.sub(rb"^\d+\0", b"", payload)
    return kind, payload


PATHS = [
    *(b"data", b"data/x", b"data/x/y", b"data/z", b"data/x/y/w", b"/local/domain/1/data/x"),
    *(b"/local/domain/2/data/z", b"/local/domain/1", b"/local/domain/2/data", b"/", b"/local"),
    *(b"/tool", b"/a", b"/a/b", b"/a/b/c", b"/none/there", b"name"),
]
ODD = [b"", b"//", b"a//b", b"/a/", b"a b", b"@releaseDomain", b"@x", b"\xff", b"x" * 2049, b"."]
ODD += [b"/local/domain/1/data/" + b"l" * 2035, b"/" + b"l" * 3071, b"l" * 2048]
PERMS = [b"n0", b"n1", b"n2", b"r0", b"b1", b"w2", b"r2", b"b0", b"n7", b"x1", b"r", b"r-1", b"n 3"]
NUMBERS = [b"0", b"1", b"2", b"3", b"7", b"32752", b"70000", b"-1", b"x", b"", b" 1", b"0x1"]


ONE_STRING = {1, 2, 3, 12, 13}
"""Requests that are one path. Of several strings, or none, 4.17.7 makes an error that is left over
from earlier, or crashes; ours is EINVAL."""


def strings(*parts):
    return b"".join([part + b"\0" for part in parts])


def some_request(rng, world, index):
    """Type, payload and transaction of a request that is sensible most of the time."""
    path = rng.choice(PATHS) if rng.random() < 0.95 else rng.choice(ODD)
    open_ones = world.transactions[index]
    tx = rng.choice([0, 0, *open_ones]) if rng.random() < 0.98 else rng.randrange(50)
    kind = rng.choices(
        [*range(1, 8), 11, 12, 13, 14, 10, 17, 18, 19, 21, 22, 20, 23, 25, 30],
        [6, 8, 5, 4, 3, 4, 6, 14, 6, 5, 8, 1, 1, 1, 1, 0.3, 2, 0.2, 0.2, 0.2, 0.2],
    )[0]
    if kind == xs_wire.XS_TRANSACTION_START:
        payload, tx = rng.choice([b"\0", b"\0", b"", b"x\0"]), 0 if rng.random() < 0.95 else tx
    elif kind == xs_wire.XS_TRANSACTION_END:
        payload = rng.choice([b"T\0", b"T\0", b"T\0", b"F\0", b"X\0", b"T", b""])
    elif kind == xs_wire.XS_WRITE:
        size = rng.choice([0, 1, 5, 40, 300, 1900, 2010, 2030])
        payload = path + b"\0" + rng.randbytes(size)
    elif kind == xs_wire.XS_SET_PERMS:
        # 4.17.7 may crash on a special name that it does not know.
        path = b"@releaseDomain" if path == b"@x" else path
        payload = strings(path, *rng.choices(PERMS, k=rng.choice([1, 1, 2, 2, 3, 6])))
    elif kind in {xs_wire.XS_WATCH, xs_wire.XS_UNWATCH}:
        payload = strings(path, rng.choice([b"t", b"u", b""]))
    elif kind == xs_wire.XS_DIRECTORY_PART:
        payload = strings(path, rng.choice([b"0", b"2", b"500", b"x"]))
    elif kind == xs_wire.XS_SET_TARGET:
        payload = strings(rng.choice(NUMBERS), rng.choice(NUMBERS))
    elif kind in {10, 17, 18}:
        payload = strings(rng.choice(NUMBERS))
    else:
        payload = strings(path)
    if kind not in ONE_STRING:
        damage = rng.random()
        if damage > 0.98:
            payload = payload[:-1]
        elif damage > 0.96:
            payload += strings(rng.choice(ODD))
        elif damage > 0.955:
            payload = rng.randbytes(rng.choice([0, 3, 20]))
    # A guest's message without a payload waits in xenstored until the guest's next kick.
    return kind, payload[:4096] or b"\0", tx


def compare(world, rng, count):
    kinds = set()
    for step in range(count):
        index = rng.randrange(4)
        kind, payload, tx = some_request(rng, world, index)
        world.find_doomed()
        if kind == xs_wire.XS_RM and index < 2 and rng.random() < 0.8:
            # Else there is little left to look at.
            continue
        answer, reply = world.both(index, kind, payload, tx)
        kinds.add((kind, answer, reply[:8]) if answer == xs_wire.XS_ERROR else kind)
        held = world.transactions[index]
        if answer == xs_wire.XS_TRANSACTION_START:
            held.append(int(reply[:-1]))
        elif answer == xs_wire.XS_RESET_WATCHES:
            held.clear()
        elif (
            kind == xs_wire.XS_TRANSACTION_END
            and tx in held
            # It is gone, unless the request was not understood.
            and (answer, reply) != (xs_wire.XS_ERROR, b"EINVAL\0")
        ):
            held.remove(tx)
        if step % 10 == 0:
            world.events()
        if step % 200 == 199:
            world.listing()
            world.setup()
    world.events()
    world.listing()
    return kinds


@pytest.fixture
def theirs():
    try:
        daemon = Xenstored()
    except UserError as error:
        pytest.skip(str(error))
    with daemon:
        yield daemon


@pytest.mark.parametrize("seed", range(2))
def test_same_answers(theirs, seed):
    kinds = compare(World(theirs), random.Random(seed), 1500)
    # The requests were not all refused, nor all granted.
    assert {1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 14, 22} <= kinds
    errors = {kind[2] for kind in kinds if isinstance(kind, tuple)}
    assert {b"EINVAL\0", b"ENOENT\0", b"EACCES\0", b"EAGAIN\0", b"ENOSPC\0", b"EEXIST\0"} <= errors


def test_same_limits(theirs):
    """A guest that goes up to every quota and beyond; only requests that count are sent."""
    world = World(theirs)
    guest = 2
    for size in range(2000, 2030):
        world.both(guest, xs_wire.XS_WRITE, b"data/size\0" + bytes(size))
    for length in range(2040, 2060):
        world.both(guest, xs_wire.XS_WRITE, b"data/" + b"p" * length + b"\0")
        world.both(0, xs_wire.XS_WRITE, b"/" + b"p" * length + b"\0")
        world.both(0, xs_wire.XS_RM, b"/" + b"p" * length + b"\0")
        world.both(guest, xs_wire.XS_RM, b"data/" + b"p" * length + b"\0")
    for count in range(1, 8):
        world.both(guest, xs_wire.XS_SET_PERMS, strings(b"data/size", *[b"n1"] * count))
    for number in range(135):
        world.both(guest, xs_wire.XS_WATCH, strings(b"data", b"%d" % number))
    for number in range(135):
        world.both(guest, xs_wire.XS_UNWATCH, strings(b"data", b"%d" % number))
    started = [world.both(guest, xs_wire.XS_TRANSACTION_START, b"\0") for _ in range(14)]
    for kind, number in started:
        if kind == xs_wire.XS_TRANSACTION_START:
            world.both(guest, xs_wire.XS_TRANSACTION_END, b"F\0", int(number[:-1]))
    for number in range(40):
        # A hundred names in a directory, so that its own size is no limit.
        world.both(guest, xs_wire.XS_MKDIR, b"data/d%d\0" % number)
    refused = []
    for number in range(1010):
        path = b"data/d%d/n%d\0" % (number % 40, number)
        refused.append(world.both(guest, xs_wire.XS_WRITE, path)[0] == xs_wire.XS_ERROR)
    assert True in refused
    assert refused.index(True) > 900
    world.listing()
    tx = int(world.both(guest, xs_wire.XS_TRANSACTION_START, b"\0")[1][:-1])
    for number in range(1040):
        world.both(guest, xs_wire.XS_READ, b"data/d1/none%d\0" % number, tx)
    world.both(guest, xs_wire.XS_TRANSACTION_END, b"T\0", tx)


@pytest.mark.parametrize("breakage", ["request index", "reply index", "length"])
def test_same_end_of_a_broken_ring(theirs, breakage):
    """The indexes and the error word; that the other guest is served."""
    world = World(theirs)
    for ring in (world.theirs[2], world.ours[2]):
        words = ring.words
        if breakage == "request index":
            words[513] = (words[512] + 1025) & 0xFFFFFFFF
        else:
            length = 4097 if breakage == "length" else 2
            message = HEADER.pack(xs_wire.XS_READ, 1, 0, length)
            message += b"" if breakage == "length" else b"/\0"
            ring.page[: len(message)] = message
            words[513] = len(message)
        if breakage == "reply index":
            words[514] = 5
        ring.kick()
    deadline = time.monotonic() + LIMIT
    while not world.theirs[2].words[518] and time.monotonic() < deadline:
        time.sleep(0.001)
    both = [[*ring.words[512:516], ring.words[518]] for ring in (world.theirs[2], world.ours[2])]
    assert both[0] == both[1]
    assert both[0][4] != 0
    world.both(3, xs_wire.XS_READ, b"data\0")


@pytest.mark.slow
@pytest.mark.timeout(480)
def test_same_answers_for_long(theirs):
    compare(World(theirs), random.Random(99), 100_000)
