"""Proves that an unprivileged domain is held to every quota, with the right error, and that what
was refused changed nothing; and that domain 0 is exempt.

Limits are those of Xen 4.17's xenstored; what it lets through by one more is let through here.
"""

from __future__ import annotations

import pytest

from hvmlite.abi.xs_wire import XS_TRANSACTION_END, XS_TRANSACTION_START, XS_WATCH
from hvmlite.xenstore.server import XenStore


def test_nodes(store, guest, dom0, refused):
    domain = store.daemon.domains[1]
    own = domain.nodes
    for index in range(1000 - own):
        guest.write(
            f"data/{index // 50}/{index % 50}" if index % 50 else f"data/{index // 50}", b""
        )
    assert domain.nodes == 1000
    with refused("ENOSPC"):
        guest.write("data/one-more", b"")
    with refused("ENOSPC"):
        guest.mkdir("data/one-more")
    guest.write("data/0", b"existing ones can be written")
    dom0.write("/local/domain/1/data/by-dom0", b"")
    assert domain.nodes == 1001
    guest.rm("data/1")
    guest.write("data/one-more", b"")
    assert store.check() == []


def test_nodes_count_with_the_parents_that_a_write_makes(store, guest, refused):
    store.set_quota(1, "nodes", 4)
    with refused("ENOSPC"):
        guest.write("data/a/b/c/d", b"")
    assert store.list("/local/domain/1/data") == []
    guest.write("data/a/b/c", b"")
    assert store.daemon.domains[1].nodes == 4


def test_nodes_follow_their_owner(store, guest, dom0):
    one, two = store.daemon.domains[1], store.daemon.domains[2]
    guest.write("data/x", b"")
    before = one.nodes, two.nodes
    dom0.chmod("/local/domain/1/data/x", "n2")
    assert (one.nodes, two.nodes) == (before[0] - 1, before[1] + 1)
    dom0.rm("/local/domain/1/data/x")
    assert (one.nodes, two.nodes) == (before[0] - 1, before[1])


def test_watches(guest, dom0, refused):
    for index in range(129):
        guest.watch("data", f"t{index}")
    with refused("E2BIG"):
        guest.ask(XS_WATCH, "data", "one-more")
    guest.unwatch("data", "t7")
    guest.watch("data", "one-more")
    for index in range(200):
        dom0.watch("/", f"t{index}")


def test_transactions(guest, dom0, refused):
    opened = [guest.start() for _ in range(11)]
    with refused("ENOSPC"):
        guest.ask(XS_TRANSACTION_START, "")
    guest.end(opened[3], commit=False)
    guest.start()
    for _ in range(30):
        dom0.start()


def test_nodes_per_transaction(guest, dom0, refused):
    tx = guest.start()
    # The node asked for and the parent that says whether the guest may know: 1 + 1023.
    for index in range(1023):
        with refused("ENOENT"):
            guest.read(f"data/n{index}", tx)
    with refused("ENOSPC"):
        guest.read("data/one-more", tx)
    with refused("ENOMEM"):
        guest.ask(XS_TRANSACTION_END, "T", tx=tx)
    with refused("ENOENT"):
        guest.ask(XS_TRANSACTION_END, "F", tx=tx)
    tx = dom0.start()
    for index in range(2000):
        with refused("ENOENT"):
            dom0.read(f"/n{index}", tx)
    dom0.end(tx)


def test_node_quota_counts_what_a_transaction_made(store, guest, refused):
    store.set_quota(1, "nodes", 4)
    tx = guest.start()
    guest.write("data/a", b"", tx)
    guest.write("data/b", b"", tx)
    guest.write("data/c", b"", tx)
    with refused("ENOSPC"):
        guest.write("data/d", b"", tx)
    with refused("ENOMEM"):
        guest.ask(XS_TRANSACTION_END, "T", tx=tx)
    # As in xenstored, reaching the quota in a transaction is too much already.
    tx = guest.start()
    for name in "abc":
        guest.write(f"data/{name}", b"", tx)
    with refused("ENOSPC"):
        guest.ask(XS_TRANSACTION_END, "T", tx=tx)
    tx = guest.start()
    for name in "ab":
        guest.write(f"data/{name}", b"", tx)
    guest.end(tx)
    assert store.daemon.domains[1].nodes == 3
    assert store.check() == []


class TestNodeSize:
    """Header, permissions (8 bytes each), value and names of children against 2048 bytes."""

    @pytest.mark.parametrize(
        ("version", "most"), [((4, 17), 2015), ((4, 18), 2016), ((4, 19), 2024)]
    )
    def test_value(self, version, most, connect, refused):
        store = XenStore(version)
        store.mkdir("/local/domain/1/data", ["n1"])
        guest, dom0 = connect(store, 1), connect(store)
        guest.write("data/x", b"v" * most)
        with refused("ENOSPC"):
            guest.write("data/x", b"v" * (most + 1))
        with refused("ENOSPC"):
            guest.write("data/y", b"v" * (most + 1))
        assert dom0.ls("/local/domain/1/data") == ["x"]
        dom0.write("/local/domain/1/data/x", b"v" * 4000)

    def test_children(self, guest, store, refused):
        # 24 + 8 + 20 * 100 bytes fit, 20 more do not.
        for index in range(100):
            guest.mkdir(f"data/child-number--{index:05d}")
        with refused("ENOSPC"):
            guest.mkdir("data/child-number--00100")
        guest.rm("data/child-number--00000")
        guest.mkdir("data/child-number--00100")
        assert store.check() == []

    def test_permissions(self, guest, store, refused):
        guest.write("data/x", b"v" * 2000)
        guest.chmod("data/x", "n1", "r2")
        with refused("ENOSPC"):
            guest.chmod("data/x", "n1", "r2", "r3")
        assert store.get_perms("/local/domain/1/data/x") == ["n1", "r2"]


class TestPathLength:
    def test_relative_part_counts(self, guest, dom0, refused):
        guest.write("data/" + "x" * 1900, b"")
        with refused("EINVAL"):
            guest.write("data/" + "x" * 2044, b"")
        with refused("EINVAL"):
            dom0.write("/" + "x" * 2048, b"")
        dom0.write("/" + "x" * 2047, b"")
        dom0.write("/local/domain/1/" + "x" * 2048, b"")

    def test_domain_0_is_measured_by_the_header_only_from_4_18_on(self, connect, refused):
        store = XenStore((4, 18))
        dom0, guest = connect(store), connect(store, 1)
        dom0.write("/" + "x" * 3071, b"")
        with refused("EINVAL"):
            dom0.write("/" + "x" * 3072, b"")
        with refused("EINVAL"):
            guest.read("/" + "x" * 3071)


class TestMemory:
    def test_nodes(self, store, guest, refused):
        store.set_quota(1, "memory", 20000)
        with refused("ENOMEM"):
            for index in range(1000):
                guest.write(f"data/{index}", b"v" * 1000)
        assert 18000 < store.daemon.domains[1].memory < 20000
        assert guest.read("data/0") == b"v" * 1000
        guest.rm("data/0")
        guest.write("data/new", b"v" * 1000)

    def test_transaction(self, store, guest, refused):
        store.set_quota(1, "memory", 20000)
        before = store.daemon.domains[1].memory
        tx = guest.start()
        guest.write("data/x", b"", tx)
        with refused("ENOMEM"):
            for _ in range(1000):
                guest.write("data/x", b"v" * 1000, tx)
                guest.write("data/x", b"", tx)
        guest.end(tx, commit=False)
        assert store.daemon.domains[1].memory == before

    def test_all_is_given_back(self, store, guest, connect):
        domain = store.daemon.domains[1]
        before = domain.memory
        guest.watch("data", "token")
        tx = guest.start()
        guest.write("data/a/b", b"value", tx)
        guest.end(tx)
        guest.write("data/a/b", b"longer value")
        guest.rm("data/a")
        guest.unwatch("data", "token")
        guest.sort_out()
        assert domain.memory == before


def test_quota_of_one_domain_is_its_own(store, guest, other, refused):
    store.set_quota(1, "watches", 1)
    store.set_quota(None, "watches", 2)
    guest.watch("data", "1")
    guest.watch("data", "2")
    with refused("E2BIG"):
        guest.ask(XS_WATCH, "data", "3")
    for token in "123":
        other.watch("data", token)
    with refused("E2BIG"):
        other.ask(XS_WATCH, "data", "4")
