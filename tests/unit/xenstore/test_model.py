"""Proves that random requests of several clients, transactions and watches included, are answered
as by a model that keeps everything in plain copies.

The model has no quotas, no domains that come and go, no copy-on-write; its rules are those of
docs/misc/xenstore.txt and of xenstored's permission checks.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from itertools import product

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule
from tests.unit.xenstore.conftest import Peer, RefusedError

from hvmlite.xenstore.server import XenStore

READ, WRITE, OWNER = 1, 2, 4
BITS = {"n": 0, "r": 1, "w": 2, "b": 3}


class Error(Exception):
    pass


@dataclass
class Node:
    value: bytes
    perms: list
    children: list = field(default_factory=list)
    version: int = 0


class Tx:
    def __init__(self):
        self.seen = {}
        self.view = {}
        self.perms = {}
        self.changed = {}
        self.fired = {}


def parent(path):
    return path.rpartition("/")[0] or "/"


def rights(domid, perms):
    owner, rest = perms[0], perms[1:]
    if domid in (0, int(owner[1:])):
        return READ | WRITE | OWNER
    for perm in rest:
        if int(perm[1:]) == domid:
            return BITS[perm[0]]
    return BITS[owner[0]]


class Model:
    def __init__(self):
        self.nodes = {}
        self.version = 0
        self.watches = []
        self.events = []

    def get(self, tx, path):
        if tx is None:
            return self.nodes.get(path)
        if path not in tx.seen:
            node = self.nodes.get(path)
            tx.seen[path] = node and node.version
            tx.view[path] = copy.deepcopy(node)
            tx.perms[path] = node and list(node.perms)
        return tx.view[path]

    def put(self, tx, path, node):
        if tx is None:
            self.version += 1
            if node is not None:
                node.version = self.version
                self.nodes[path] = node
            else:
                del self.nodes[path]
        else:
            tx.view[path] = node
            tx.changed[path] = True

    def find(self, domid, tx, path, need):
        node = self.get(tx, path)
        if node is not None and rights(domid, node.perms) & need == need:
            return node
        above = path
        ancestor = None
        while ancestor is None and above != "/":
            above = parent(above)
            ancestor = self.get(tx, above)
        if node is not None or ancestor is None or not rights(domid, ancestor.perms) & need:
            raise Error("EACCES")
        return None

    def look(self, domid, tx, path):
        node = self.find(domid, tx, path, READ)
        if node is None:
            raise Error("ENOENT")
        return node

    def create(self, domid, tx, path, value):
        above = parent(path)
        node = self.get(tx, above)
        if node is None:
            node = self.create(domid, tx, above, b"")
        perms = list(node.perms)
        if domid:
            perms[0] = perms[0][0] + str(domid)
        if path.rpartition("/")[2] not in node.children:
            node.children.append(path.rpartition("/")[2])
        self.put(tx, above, node)
        new = Node(value, perms)
        self.put(tx, path, new)
        return new

    def write(self, domid, tx, path, value):
        node = self.find(domid, tx, path, WRITE)
        if node is None:
            self.create(domid, tx, path, value)
        else:
            node.value = value
            self.put(tx, path, node)
        self.fire(tx, path, exact=False)

    def mkdir(self, domid, tx, path):
        if self.find(domid, tx, path, WRITE) is None:
            self.create(domid, tx, path, b"")
            self.fire(tx, path, exact=False)

    def rm(self, domid, tx, path):
        if self.find(domid, tx, path, WRITE) is None:
            if self.get(tx, parent(path)) is None:
                raise Error("ENOENT")
            return
        if path == "/":
            raise Error("EINVAL")
        above = self.get(tx, parent(path))
        self.rm_below(tx, path, exact=False)
        # What a transaction has seen need not fit together; it will not commit then.
        if path.rpartition("/")[2] in above.children:
            above.children.remove(path.rpartition("/")[2])
        self.put(tx, parent(path), above)

    def rm_below(self, tx, path, exact):
        node = self.get(tx, path)
        if node is None:
            return
        for name in list(node.children):
            self.rm_below(tx, f"{path}/{name}", exact=True)
        self.fire(tx, path, exact)
        self.put(tx, path, None)

    def chmod(self, domid, tx, path, perms):
        node = self.find(domid, tx, path, WRITE | OWNER)
        if node is None:
            raise Error("ENOENT")
        if domid and perms[0][1:] != node.perms[0][1:]:
            raise Error("EPERM")
        old = node.perms
        node.perms = list(perms)
        self.put(tx, path, node)
        self.fire(tx, path, exact=False, old=old)

    def fire(self, tx, path, exact, old=None):
        if tx is not None:
            tx.fired[path] = exact and tx.fired.get(path, True)
            return
        node = self.nodes.get(path)
        for client, domid, watched, token in self.watches:
            if exact:
                hit = path == watched
            else:
                hit = watched in {"/", path} or path.startswith(watched + "/")
            if not hit:
                continue
            if domid == 0:
                told = node is not None or old is not None
            else:
                above = self.nodes.get(parent(path))
                told = (old is not None and rights(domid, old) & READ) or (
                    node is not None
                    and (
                        rights(domid, node.perms) & READ
                        or (above is not None and rights(domid, above.perms) & READ)
                    )
                )
            if told:
                self.events.append((client, path, token))

    def end(self, tx):
        for path, version in tx.seen.items():
            node = self.nodes.get(path)
            if (node and node.version) != version:
                raise Error("EAGAIN")
        for path in tx.changed:
            node = tx.view[path]
            if node is not None or path in self.nodes:
                self.put(None, path, node)
        for path, exact in tx.fired.items():
            self.fire(None, path, exact, tx.perms[path])


NAMES = ["a", "b", "c"]
PATHS = ["/"] + [
    "/" + "/".join(parts) for depth in (1, 2, 3) for parts in product(NAMES, repeat=depth)
]
paths = st.sampled_from(PATHS)
clients = st.sampled_from([0, 1, 2, 3])
values = st.binary(max_size=4)
some_perms = st.lists(
    st.builds("{}{}".format, st.sampled_from("nrwb"), st.integers(0, 2)), min_size=1, max_size=3
)


class Comparison(RuleBasedStateMachine):
    """Clients 0 and 3 are tools, 1 and 2 the domains of that id."""

    transactions = Bundle("transactions")

    def __init__(self):
        super().__init__()
        self.store = XenStore()
        self.domids = [0, 1, 2, 0]
        self.peers = [
            Peer(self.store.introduce_domain(domid) if domid else self.store.connect())
            for domid in self.domids
        ]
        self.model = Model()
        self.model.nodes["/"] = Node(b"", ["n0"])
        self.store.rm("/tool")
        for name, perms in (("a", ["n0", "b1"]), ("b", ["r0", "n2"]), ("c", ["n2", "r1"])):
            self.store.write(f"/{name}", b"", perms)
            self.model.write(0, None, f"/{name}", b"")
            self.model.chmod(0, None, f"/{name}", perms)
        self.open = {}

    def compare(self, client, tx, ask, expect):
        """`ask` of the store and `expect` of the model, as client; both answers must agree."""
        number, state = (0, None) if tx is None else (tx[1], self.open.get(tx))
        try:
            wanted = expect(self.domids[client], state)
        except Error as error:
            wanted = str(error)
        if number and state is None:
            wanted = "ENOENT"
        try:
            got = ask(self.peers[client], number)
        except RefusedError as refused:
            got = str(refused)
        assert got == wanted

    def step(self, client, tx, ask, expect):
        if tx is None:
            self.compare(client, None, ask, expect)
        else:
            self.compare(tx[0], tx, ask, expect)

    maybe_tx = st.one_of(st.none(), transactions)

    @rule(client=clients, tx=maybe_tx, path=paths)
    def read(self, client, tx, path):
        self.step(
            client, tx, lambda p, n: p.read(path, n), lambda d, t: self.model.look(d, t, path).value
        )

    @rule(client=clients, tx=maybe_tx, path=paths)
    def ls(self, client, tx, path):
        self.step(
            client,
            tx,
            lambda p, n: p.ls(path, n),
            lambda d, t: list(self.model.look(d, t, path).children),
        )

    @rule(client=clients, tx=maybe_tx, path=paths)
    def perms(self, client, tx, path):
        self.step(
            client,
            tx,
            lambda p, n: p.perms(path, n),
            lambda d, t: list(self.model.look(d, t, path).perms),
        )

    @rule(client=clients, tx=maybe_tx, path=paths, value=values)
    def write(self, client, tx, path, value):
        self.step(
            client,
            tx,
            lambda p, n: p.write(path, value, n),
            lambda d, t: self.model.write(d, t, path, value),
        )

    @rule(client=clients, tx=maybe_tx, path=paths)
    def mkdir(self, client, tx, path):
        self.step(
            client, tx, lambda p, n: p.mkdir(path, n), lambda d, t: self.model.mkdir(d, t, path)
        )

    @rule(client=clients, tx=maybe_tx, path=paths)
    def rm(self, client, tx, path):
        self.step(client, tx, lambda p, n: p.rm(path, n), lambda d, t: self.model.rm(d, t, path))

    @rule(client=clients, tx=maybe_tx, path=paths, perms=some_perms)
    def chmod(self, client, tx, path, perms):
        self.step(
            client,
            tx,
            lambda p, n: p.chmod(path, *perms, tx=n),
            lambda d, t: self.model.chmod(d, t, path, perms),
        )

    @rule(client=clients, path=paths, token=st.sampled_from(["t", "u"]))
    def watch(self, client, path, token):
        entry = (client, self.domids[client], path, token)
        if entry in self.model.watches:
            self.peers[client].unwatch(path, token)
            self.model.watches.remove(entry)
        else:
            self.peers[client].watch(path, token)
            self.model.watches.append(entry)
            self.model.events.append((client, path, token))

    @rule(target=transactions, client=clients)
    def start(self, client):
        held = [tx for tx in self.open if tx[0] == client]
        if len(held) > 8:
            return held[0]
        tx = (client, self.peers[client].start())
        self.open[tx] = Tx()
        return tx

    @rule(tx=consumes(transactions), commit=st.booleans())
    def end(self, tx, commit):
        def expect(_domid, state):
            if state is None:
                raise Error("ENOENT")
            del self.open[tx]
            if commit:
                self.model.end(state)

        self.compare(tx[0], tx, lambda p, n: p.end(n, commit), expect)

    @invariant()
    def same_tree(self):
        found = {
            path: (node.value, [str(p) for p in node.perms], [*node.children.names])
            for path, node in self.store.daemon.tree.walk()
        }
        assert found == {
            path: (node.value, node.perms, node.children) for path, node in self.model.nodes.items()
        }

    @invariant()
    def same_events(self):
        got = [
            (client, path, token)
            for client, peer in enumerate(self.peers)
            for path, token in peer.take_events()
        ]
        # Two watches with one token may want the same event: it is sent once.
        assert sorted(got) == sorted(set(self.model.events))
        self.model.events.clear()

    @invariant()
    def sound(self):
        assert self.store.check() == []
        for domain in self.store.daemon.domains.values():
            assert domain.outstanding == 0


TestComparison = Comparison.TestCase
TestComparison.settings = settings(
    max_examples=60,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
