"""Proves who may read, write and own which node, and what a refused caller is told.

Cannot see quotas (test_quotas) or who is sent which event (test_watches).
"""

from __future__ import annotations

import pytest

from hvmlite.abi.xs_wire import XS_DIRECTORY, XS_GET_PERMS, XS_READ, XS_SET_PERMS, XS_SET_TARGET
from hvmlite.xenstore.server import XenStore


@pytest.fixture
def shared(store):
    """/s of domain 0: domain 1 may read, domain 2 may write, others neither."""
    store.write("/s", b"v", ["n0", "r1", "w2"])
    return store


def test_domain_0_may_everything(dom0, guest):
    guest.write("data/x", b"1")
    dom0.chmod("/local/domain/1/data/x", "n1")
    assert dom0.read("/local/domain/1/data/x") == b"1"
    dom0.write("/local/domain/1/data/x", b"2")
    dom0.chmod("/local/domain/1/data/x", "n2")


def test_entries_of_a_domain(shared, guest, other, refused):
    assert guest.read("/s") == b"v"
    with refused("EACCES"):
        guest.write("/s", b"w")
    other.write("/s", b"w")
    with refused("EACCES"):
        other.read("/s")


def test_first_entry_is_everyone_elses(store, guest, other, refused):
    store.write("/s", b"v", ["r0", "n1"])
    assert other.read("/s") == b"v"
    with refused("EACCES"):
        guest.read("/s")


def test_owner_may_everything_whatever_the_entry(store, guest):
    store.write("/s", b"v", ["n1"])
    guest.write("/s", b"w")
    assert guest.read("/s") == b"w"
    guest.chmod("/s", "n1", "b2")
    assert guest.perms("/s") == ["n1", "b2"]


def test_all_rights_asked_for_must_be_there(store, guest, refused):
    store.write("/s", b"v", ["n0", "b1"])
    with refused("EACCES"):
        guest.chmod("/s", "n0", "b1", "r2")


def test_guest_owns_what_it_creates(guest, dom0):
    guest.write("data/a/b", b"")
    assert dom0.perms("/local/domain/1/data/a/b") == ["n1"]
    dom0.chmod("/local/domain/1/data", "b0", "r2", "b1")
    guest.write("data/c", b"")
    assert dom0.perms("/local/domain/1/data/c") == ["b1", "r2", "b1"]


def test_guest_creates_only_where_it_may_write(guest, refused):
    for path in ("/x", "x", "/local/domain/2/data/x", "/local/domain/1/x/y/z"):
        with refused("EACCES"):
            guest.write(path, b"")
        with refused("EACCES"):
            guest.mkdir(path)


class TestWhatARefusalTells:
    def test_missing_under_an_unreadable_parent_is_eacces(self, store, guest, refused):
        store.mkdir("/closed", ["n0"])
        for kind in (XS_READ, XS_DIRECTORY, XS_GET_PERMS):
            with refused("EACCES"):
                guest.ask(kind, "/closed/none")
        with refused("EACCES"):
            guest.rm("/closed/none")

    def test_missing_under_a_readable_parent_is_enoent(self, guest, refused):
        with refused("ENOENT"):
            guest.read("none")
        with refused("ENOENT"):
            guest.read("none/at/all")

    def test_readable_below_an_unreadable_parent(self, store, guest):
        store.mkdir("/closed", ["n0"])
        store.write("/closed/open", b"v", ["n0", "r1"])
        assert guest.read("/closed/open") == b"v"

    def test_root(self, guest, refused):
        with refused("EACCES"):
            guest.ask(XS_DIRECTORY, "/")
        with refused("EACCES"):
            guest.rm("/")


class TestSetPerms:
    def test_only_the_owner(self, shared, guest, other, refused):
        for peer in (guest, other):
            with refused("EACCES"):
                peer.chmod("/s", "n1")

    def test_guest_does_not_give_nodes_away(self, guest, refused):
        guest.write("data/x", b"")
        with refused("EPERM"):
            guest.chmod("data/x", "n2", "r1")

    def test_guest_may_not_have_more_than_five_entries(self, guest, dom0, refused):
        guest.chmod("data", "n1", "r2", "r3", "r4", "r5")
        with refused("ENOSPC"):
            guest.chmod("data", "n1", "r2", "r3", "r4", "r5", "r6")
        dom0.chmod("/local/domain/1/data", "n1", "r2", "r3", "r4", "r5", "r6")

    def test_missing_node(self, dom0, guest, refused):
        with refused("ENOENT"):
            dom0.chmod("/none", "n0")
        with refused("ENOENT"):
            guest.chmod("data/none/none", "n1")
        with refused("EACCES"):
            guest.chmod("/none", "n1")

    def test_owner_must_be_possible(self, dom0, refused):
        with refused("ENOENT"):
            dom0.chmod("/tool", "n32752")
        with refused("ENOENT"):
            dom0.chmod("/tool", "n70000")
        with refused("ENOENT"):
            dom0.chmod("/tool", "n-1")

    def test_entry_for_an_impossible_domain_is_kept_but_void(self, dom0):
        dom0.chmod("/tool", "n0", "b40000")
        assert dom0.perms("/tool") == ["n0", "b40000"]

    def test_special_nodes(self, dom0, guest, refused):
        """In 4.17 their permissions are no node's: set by their owner, read by nobody."""
        for peer in (dom0, guest):
            with refused("EINVAL"):
                peer.perms("@releaseDomain")
        with refused("EACCES"):
            guest.chmod("@releaseDomain", "n0", "r1")
        dom0.watch("@releaseDomain", "t")
        dom0.take_events()
        dom0.chmod("@releaseDomain", "n1", "r2")
        guest.chmod("@releaseDomain", "n1", "r1")
        assert dom0.take_events() == []
        with refused("EINVAL"):
            dom0.chmod("@nonsense", "n0")

    def test_special_nodes_are_in_no_transaction(self, dom0, guest, refused):
        tx = dom0.start()
        dom0.chmod("@releaseDomain", "n1", tx=tx)
        guest.chmod("@releaseDomain", "n1", "r1")
        dom0.end(tx, commit=False)
        guest.chmod("@releaseDomain", "n1", "r2")

    def test_special_nodes_from_4_18_on(self, connect, refused):
        store = XenStore((4, 18))
        dom0, guest = connect(store), connect(store, 1)
        assert dom0.perms("@releaseDomain") == ["n0"]
        with refused("EACCES"):
            guest.perms("@releaseDomain")
        with refused("EACCES"):
            guest.chmod("@releaseDomain", "n0", "r1")
        dom0.chmod("@releaseDomain", "n0", "r1")
        assert guest.perms("@releaseDomain") == ["n0", "r1"]
        with refused("ENOENT"):
            dom0.perms("@nonsense")

    def test_numbers_that_no_domain_has(self, dom0, refused):
        dom0.chmod("/tool", "n0", "r-1", "b40000")
        assert dom0.perms("/tool") == ["n0", "r-1", "b40000"]
        with refused("ENOENT"):
            dom0.chmod("a malformed path", "n40000")


class TestDomainsThatAreGone:
    """A permission means the domain of its time, not a later one of the same id."""

    def test_entry_is_void_for_the_next_domain(self, store, connect, refused):
        store.write("/s", b"v", ["n0", "b5"])
        connect(store, 5).write("/s", b"w")
        store.release_domain(5)
        successor = connect(store, 5)
        with refused("EACCES"):
            successor.read("/s")
        assert store.get_perms("/s") == ["n0", "b5"]
        store.set_perms("/s", ["n0", "b5"])
        assert successor.read("/s") == b"w"

    def test_void_entry_stays_void_when_the_node_is_written(self, store, connect, refused):
        store.write("/s", b"v", ["n0", "b5"])
        store.release_domain(5)
        store.write("/s", b"w")
        store.write("/s/child", b"")
        successor = connect(store, 5)
        store.write("/s", b"x")
        store.rm("/s/child")
        store.write("/s/child", b"")
        for path in ("/s", "/s/child"):
            with refused("EACCES"):
                successor.read(path)

    def test_transaction_open_across_the_change(self, store, dom0, connect, refused):
        store.write("/s", b"v")
        tx = dom0.start()
        dom0.chmod("/s", "n0", "b5", tx=tx)
        store.release_domain(5)
        successor = connect(store, 5)
        dom0.end(tx)
        assert store.get_perms("/s") == ["n0", "b5"]
        with refused("EACCES"):
            successor.read("/s")

    def test_transaction_open_across_the_end_of_an_owner(self, store, dom0, connect, refused):
        store.write("/s", b"v")
        tx = dom0.start()
        dom0.chmod("/s", "n5", tx=tx)
        store.release_domain(5)
        with refused("ENOMEM"):
            dom0.end(tx)
        assert store.get_perms("/s") == ["n0"]
        assert store.check() == []

    def test_guest_cannot_prepare_for_a_domain_to_come(self, store, connect, guest, refused):
        guest.chmod("data", "n1", "b9")
        later = connect(store, 9)
        with refused("EACCES"):
            later.read("/local/domain/1/data")

    def test_toolstack_can(self, store, connect):
        store.write("/s", b"v", ["n0", "r9"])
        assert connect(store, 9).read("/s") == b"v"

    def test_guest_may_name_what_the_toolstack_knows(self, store, connect, guest):
        store.daemon.domain_exists = lambda domid: domid == 9
        guest.chmod("data", "n1", "b9")
        assert connect(store, 9).perms("/local/domain/1/data") == ["n1", "b9"]


class TestTarget:
    """SET_TARGET: a domain acts for another (a device model for its guest)."""

    def test_rights_of_the_target(self, store, dom0, guest, other, refused):
        guest.write("data/x", b"1")
        store.write("/s", b"v", ["n0", "r1"])
        with refused("EACCES"):
            other.read("/local/domain/1/data/x")
        assert dom0.ask(XS_SET_TARGET, "2", "1") == b"OK\0"
        assert other.read("/local/domain/1/data/x") == b"1"
        assert other.read("/s") == b"v"
        other.write("/local/domain/1/data/x", b"2")
        other.write("/local/domain/1/data/new", b"")
        assert dom0.perms("/local/domain/1/data/new") == ["n2"]
        with refused("EACCES"):
            guest.write("/local/domain/2/data/x", b"")

    def test_ends_with_the_target(self, store, dom0, guest, other, connect, refused):
        dom0.ask(XS_SET_TARGET, "2", "1")
        store.release_domain(1)
        store.write("/s", b"v", ["n0", "r1"])
        connect(store, 1)
        with refused("EACCES"):
            other.read("/s")

    def test_arguments(self, dom0, guest, refused):
        with refused("EACCES"):
            guest.ask(XS_SET_TARGET, "1", "0")
        with refused("EINVAL"):
            dom0.ask(XS_SET_TARGET, "1")
        for pair in (("1", "9"), ("9", "1")):
            with refused("ENOENT"):
                dom0.ask(XS_SET_TARGET, *pair)


def test_set_perms_checks_count_before_anything_else(guest, refused):
    with refused("ENOSPC"):
        guest.ask(XS_SET_PERMS, "not a path", *["x"] * 6)
