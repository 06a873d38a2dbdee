"""Proves that a transaction sees its own changes, commits whole or not at all, and conflicts
exactly when something it touched has changed.

Cannot see its quotas (test_quotas) or random interleavings (test_model).
"""

from __future__ import annotations

import pytest

from hvmlite.abi.xs_wire import (
    XS_DIRECTORY_PART,
    XS_RESET_WATCHES,
    XS_TRANSACTION_END,
    XS_TRANSACTION_START,
)


@pytest.fixture
def tree(store):
    for name in ("a", "b", "c"):
        store.write(f"/t/{name}", name)
    return store


def test_ids_are_decimal_strings_from_one(dom0, guest):
    for peer in (dom0, guest):
        assert peer.ask(XS_TRANSACTION_START, "") == b"1\0"
        assert peer.ask(XS_TRANSACTION_START, "") == b"2\0"


def test_ids_wrap_around_without_zero_and_without_clash(dom0):
    assert dom0.start() == 1
    dom0.connection.next_transaction = 0xFFFFFFFF
    assert dom0.start() == 0xFFFFFFFF
    assert dom0.start() == 2


def test_changes_are_seen_inside_and_not_outside(tree, dom0, refused):
    tx = dom0.start()
    dom0.write("/t/a", b"new", tx)
    dom0.write("/t/d/e", b"", tx)
    dom0.rm("/t/b", tx)
    dom0.chmod("/t/c", "n1", tx=tx)
    assert dom0.read("/t/a", tx) == b"new"
    assert dom0.ls("/t", tx) == ["a", "c", "d"]
    assert dom0.ls("/t/d", tx) == ["e"]
    assert dom0.perms("/t/c", tx) == ["n1"]
    with refused("ENOENT"):
        dom0.read("/t/b", tx)
    assert dom0.read("/t/a") == b"a"
    assert dom0.ls("/t") == ["a", "b", "c"]
    assert dom0.perms("/t/c") == ["n0"]
    dom0.end(tx)
    assert dom0.read("/t/a") == b"new"
    assert dom0.ls("/t") == ["a", "c", "d"]
    assert dom0.ls("/t/d") == ["e"]
    assert dom0.perms("/t/c") == ["n1"]
    assert tree.check() == []


def test_discarded(tree, dom0):
    tx = dom0.start()
    dom0.write("/t/a", b"new", tx)
    dom0.rm("/t/b", tx)
    dom0.mkdir("/t/d", tx)
    dom0.end(tx, commit=False)
    assert dom0.ls("/t") == ["a", "b", "c"]
    assert dom0.read("/t/a") == b"a"
    assert tree.check() == []


def test_a_read_node_is_a_snapshot(tree, dom0):
    tx = dom0.start()
    assert dom0.read("/t/a", tx) == b"a"
    assert dom0.ls("/t", tx) == ["a", "b", "c"]
    dom0.write("/t/a", b"new")
    dom0.rm("/t/b")
    dom0.mkdir("/t/d")
    assert dom0.read("/t/a", tx) == b"a"
    assert dom0.ls("/t", tx) == ["a", "b", "c"]


def test_created_and_removed_inside(tree, dom0):
    before = tree.daemon.tree.get("/t").children.listing()
    tx = dom0.start()
    dom0.mkdir("/t/d/e", tx)
    dom0.rm("/t/d", tx)
    dom0.end(tx)
    assert tree.daemon.tree.get("/t").children.listing() == before
    assert tree.check() == []


def test_removed_and_created_again(tree, dom0):
    tx = dom0.start()
    dom0.rm("/t", tx)
    dom0.write("/t/z", b"", tx)
    assert dom0.ls("/t", tx) == ["z"]
    dom0.end(tx)
    assert dom0.ls("/t") == ["z"]
    assert tree.check() == []


@pytest.mark.parametrize(
    ("inside", "outside", "conflict"),
    [
        (lambda p, tx: p.read("/t/a", tx), lambda p: p.write("/t/a", b"x"), True),
        (lambda p, tx: p.read("/t/a", tx), lambda p: p.write("/t/a", b"a"), True),
        (lambda p, tx: p.read("/t/a", tx), lambda p: p.chmod("/t/a", "n1"), True),
        (lambda p, tx: p.read("/t/a", tx), lambda p: p.rm("/t/a"), True),
        (lambda p, tx: p.read("/t/a", tx), lambda p: p.rm("/t"), True),
        (lambda p, tx: p.read("/t/a", tx), lambda p: p.mkdir("/t/a/x"), True),
        (lambda p, tx: p.read("/t/a", tx), lambda p: p.write("/t/b", b"x"), False),
        (lambda p, tx: p.read("/t/a", tx), lambda p: p.mkdir("/t/d"), False),
        (lambda p, tx: p.read("/t/a", tx), lambda p: p.mkdir("/t/a"), False),
        (lambda p, tx: p.perms("/t/a", tx), lambda p: p.write("/t/a", b"x"), True),
        (lambda p, tx: p.ls("/t", tx), lambda p: p.write("/t/a", b"x"), False),
        (lambda p, tx: p.ls("/t", tx), lambda p: p.mkdir("/t/d"), True),
        (lambda p, tx: p.ls("/t", tx), lambda p: p.rm("/t/a"), True),
        (lambda p, tx: p.write("/t/a", b"y", tx), lambda p: p.write("/t/a", b"x"), True),
        (lambda p, tx: p.write("/t/a", b"y", tx), lambda p: p.write("/t/b", b"x"), False),
        (lambda p, tx: p.write("/t/d", b"y", tx), lambda p: p.write("/t/a", b"x"), False),
        (lambda p, tx: p.write("/t/d", b"y", tx), lambda p: p.write("/t/e", b"x"), True),
        (lambda p, tx: p.write("/t/d", b"y", tx), lambda p: p.write("/t/d", b"x"), True),
        (lambda p, tx: p.rm("/t", tx), lambda p: p.write("/t/c", b"x"), True),
        (lambda p, tx: p.rm("/t", tx), lambda p: p.mkdir("/u"), True),
        (lambda p, tx: p.rm("/t/a", tx), lambda p: p.write("/t/b", b"x"), False),
        (lambda p, tx: p.rm("/t/none", tx), lambda p: p.write("/t/none", b"x"), True),
    ],
)
def test_conflicts(tree, dom0, guest, refused, inside, outside, conflict):
    tx = dom0.start()
    inside(dom0, tx)
    outside(dom0)
    before = list(tree.daemon.tree.walk())
    if conflict:
        with refused("EAGAIN"):
            dom0.end(tx)
        assert list(tree.daemon.tree.walk()) == before
    else:
        dom0.end(tx)
    assert tree.check() == []


def test_missing_nodes_count_as_touched(tree, dom0, refused):
    tx = dom0.start()
    with refused("ENOENT"):
        dom0.read("/t/none", tx)
    dom0.write("/t/none", b"")
    with refused("EAGAIN"):
        dom0.end(tx)


def test_of_two_that_conflict_the_first_wins(tree, dom0, connect, refused):
    second = connect(tree)
    one, two = dom0.start(), second.start()
    dom0.write("/t/a", dom0.read("/t/b", one), one)
    second.write("/t/b", second.read("/t/a", two), two)
    dom0.end(one)
    with refused("EAGAIN"):
        second.end(two)
    assert (dom0.read("/t/a"), dom0.read("/t/b")) == (b"b", b"b")


def test_several_at_once_on_one_connection(tree, dom0):
    one, two = dom0.start(), dom0.start()
    dom0.write("/t/a", b"1", one)
    dom0.write("/t/b", b"2", two)
    dom0.end(two)
    dom0.end(one)
    assert (dom0.read("/t/a"), dom0.read("/t/b")) == (b"1", b"2")


class TestErrors:
    def test_nested(self, dom0, refused):
        tx = dom0.start()
        with refused("EBUSY"):
            dom0.ask(XS_TRANSACTION_START, "", tx=tx)

    def test_unknown_id(self, dom0, guest, refused):
        tx = dom0.start()
        for peer, number in ((guest, tx), (dom0, tx + 1), (dom0, 0xFFFFFFFF)):
            with refused("ENOENT"):
                peer.read("/tool", number)
            with refused("ENOENT"):
                peer.ask(XS_TRANSACTION_END, "T", tx=number)
            with refused("ENOENT"):
                peer.ask(XS_TRANSACTION_START, "", tx=number)
        with refused("ENOENT"):
            dom0.ask(XS_TRANSACTION_END, "T")

    def test_end_takes_t_or_f(self, dom0, refused):
        tx = dom0.start()
        for verdict in ("", "t", "TT", "T\0F"):
            with refused("EINVAL"):
                dom0.ask(XS_TRANSACTION_END, verdict, tx=tx)
        dom0.end(tx)
        with refused("ENOENT"):
            dom0.ask(XS_TRANSACTION_END, "T", tx=tx)

    def test_watch_requests_ignore_the_id(self, dom0):
        dom0.raw(4, b"/\0t\0", tx=77)
        dom0.raw(5, b"/\0t\0", tx=77)

    def test_refused_request_without_quota_leaves_it_usable(self, store, guest, refused):
        tx = guest.start()
        with refused("EACCES"):
            guest.write("/x", b"", tx)
        guest.write("data/x", b"1", tx)
        guest.end(tx)
        assert guest.read("data/x") == b"1"


def test_reset_watches_ends_transactions(tree, dom0, refused):
    tx = dom0.start()
    dom0.write("/t/a", b"new", tx)
    dom0.ask(XS_RESET_WATCHES, "", tx=tx)
    with refused("ENOENT"):
        dom0.end(tx)
    assert dom0.read("/t/a") == b"a"


def test_generation_in_a_listing_moves_inside(tree, dom0):
    tx = dom0.start()
    generation = lambda: dom0.ask(XS_DIRECTORY_PART, "/t", "0", tx=tx).split(b"\0")[0]  # noqa: E731
    first = generation()
    assert generation() == first
    dom0.mkdir("/t/d", tx)
    assert generation() != first


def test_cost_is_what_it_touches(store, dom0):
    for index in range(20000):
        store.write(f"/many/{index // 100}/{index % 100}", b"")
    tx = dom0.start()
    dom0.write("/many/7/7", b"x", tx)
    dom0.mkdir("/many/7/new", tx)
    (transaction,) = dom0.connection.transactions.values()
    assert set(transaction.accessed) == {"/many/7/7", "/many/7/new", "/many/7"}
    dom0.end(tx)
    assert store.check() == []


def test_accounts_after_commits_and_discards(store, guest):
    domain = store.daemon.domains[1]
    tx = guest.start()
    guest.write("data/a/b", b"v", tx)
    assert domain.nodes == 1
    guest.end(tx)
    assert domain.nodes == 3
    tx = guest.start()
    guest.rm("data/a", tx)
    guest.end(tx, commit=False)
    assert domain.nodes == 3
    tx = guest.start()
    guest.rm("data/a", tx)
    guest.end(tx)
    assert (domain.nodes, domain.transactions) == (1, 0)
    assert store.check() == []
