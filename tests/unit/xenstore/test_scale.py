"""Proves by counting, not by the clock, that with a thousand domains in the store an operation
looks at as many nodes as with one: what it costs is what it touches.

Counts nodes looked up, put and removed, names copied and watches considered. Cannot see what the
interpreter does below that: benchmarks/xenstore.py measures it.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from tests.unit.xenstore.conftest import Peer

from hvmlite.toolstack.config import DomainConfig
from hvmlite.toolstack.store import prepare_store, write_domain
from hvmlite.xenstore.server import XenStore
from hvmlite.xenstore.tree import Children

DOMAINS = 1000


class CountingDict(dict):
    """Counts every way in which the store uses its dictionary of nodes."""

    def __init__(self, data, counter):
        super().__init__(data)
        self.counter = counter

    def get(self, *arguments):
        self.counter["looked up"] += 1
        return super().get(*arguments)

    def __getitem__(self, key):
        self.counter["looked up"] += 1
        return super().__getitem__(key)

    def __setitem__(self, key, value):
        self.counter["put"] += 1
        super().__setitem__(key, value)

    def pop(self, *arguments):
        self.counter["removed"] += 1
        return super().pop(*arguments)

    def _all(self, *arguments):
        raise AssertionError("looks at every node")

    __iter__ = keys = values = items = _all


def populated(domains):
    store = XenStore()
    prepare_store(store)
    guests = {}
    for domid in range(1, domains + 1):
        config = DomainConfig(kernel=Path("kernel"), vcpus=4)
        write_domain(store, config, domid, f"{domid:032x}", 1, 2)
        guests[domid] = Peer(store.introduce_domain(domid))
        guests[domid].watch("control", "c")
        store.watch(f"/local/domain/{domid}/device", lambda path: None)
        guests[domid].take_events()
    return store, guests


@pytest.fixture(scope="module")
def stores():
    return populated(1), populated(DOMAINS)


def transaction(store, guest):
    tx = guest.start()
    state = guest.read("control/shutdown", tx)
    guest.write("data/answer", state + b"x", tx)
    guest.mkdir("data/deep/er", tx)
    guest.rm("data/deep", tx)
    guest.ls("device", tx)
    guest.end(tx)


def host_transaction(store, _guest):
    with store.transaction() as tx:
        tx.write("/local/domain/1/device/vbd/51712/state", "1")
        tx.write("/local/domain/0/backend/vbd/1/51712/state", "1")
    store.rm("/local/domain/1/device/vbd")
    store.rm("/local/domain/0/backend/vbd")


def release(store, _guest):
    store.introduce_domain(5000)
    store.mkdir("/local/domain/5000", ["n5000"])
    store.mkdir("/local/domain/5000/data")
    store.release_domain(5000)


def count(store, guest, work, monkeypatch):
    counter = Counter()
    tree = store.daemon.tree
    copied = Children._own

    def own(children):
        if children.shared:
            counter["names copied"] += len(children.names)
        return copied(children)

    with monkeypatch.context() as patch:
        patch.setattr(tree, "nodes", CountingDict(tree.nodes, counter))
        patch.setattr(tree, "get", tree.nodes.get)
        patch.setattr(Children, "_own", own)
        work(store, guest)
        nodes = dict(dict.items(tree.nodes))
    tree.nodes = nodes
    tree.get = nodes.get
    return counter


@pytest.mark.parametrize("work", [transaction, host_transaction, release])
def test_work_does_not_depend_on_the_number_of_domains(stores, work, monkeypatch):
    (small, few), (large, many) = stores
    assert len(large.daemon.tree.nodes) > 40 * DOMAINS
    first = count(small, few[1], work, monkeypatch)
    second = count(large, many[1], work, monkeypatch)
    assert first == second
    assert 0 < first["put"] < 100
    assert large.check() == []


def test_a_watch_is_found_by_its_path(stores, monkeypatch):
    """An event looks at the watches on its path and above, however many there are elsewhere."""
    (_, _), (large, many) = stores
    guest = many[7]
    considered = []
    monkeypatch.setattr(
        type(large.daemon),
        "_may_know",
        lambda self, watcher, *rest: considered.append(watcher) or True,
    )
    large.write("/local/domain/7/control/sysrq", "h", ["n7"])
    assert set(considered) == {guest.connection}
    assert guest.take_events() == [("control/sysrq", "c")]
