"""Proves which events a watcher gets, with which path, in which order, and which it may not get.

Cannot see delivery over a ring (test_ring) or callbacks (test_server).
"""

from __future__ import annotations

import pytest

from hvmlite.abi.xs_wire import (
    XS_INTRODUCE,
    XS_RELEASE,
    XS_RESET_WATCHES,
    XS_RESUME,
    XS_UNWATCH,
    XS_WATCH,
    XS_WATCH_EVENT,
    XS_WRITE,
)
from hvmlite.xenstore.server import XenStore


@pytest.fixture
def watcher(store, dom0):
    """A second tool that watches /w and has had its first event."""
    store.write("/w/a/b", b"")
    dom0.watch("/w", "token")
    dom0.take_events()
    return dom0


def test_fires_once_at_registration(dom0, guest):
    dom0.watch("/tool", "t")
    dom0.watch("/does/not/exist", "t2")
    guest.watch("/secret", "t3")
    assert dom0.take_events() == [("/tool", "t"), ("/does/not/exist", "t2")]
    assert guest.take_events() == [("/secret", "t3")]


def test_first_event_follows_the_reply(dom0):
    dom0.connection.feed(dom0.message(XS_WATCH, b"/tool\0t\0"))
    assert [m[0] for m in dom0.messages()] == [XS_WATCH, XS_WATCH_EVENT]


def test_own_event_precedes_the_reply_to_a_write(watcher):
    watcher.connection.feed(watcher.message(XS_WRITE, b"/w/a\0x"))
    assert [m[0] for m in watcher.messages()] == [XS_WATCH_EVENT, XS_WRITE]


def test_payload_of_an_event(watcher, store):
    store.write("/w/a", b"x")
    assert watcher.messages() == [(XS_WATCH_EVENT, 0, 0, b"/w/a\0token\0")]


@pytest.mark.parametrize(
    ("change", "events"),
    [
        (lambda s: s.write("/w", b""), ["/w"]),
        (lambda s: s.write("/w/a/b", b"x"), ["/w/a/b"]),
        (lambda s: s.write("/w/new/deep/node", b""), ["/w/new/deep/node"]),
        (lambda s: s.mkdir("/w/new"), ["/w/new"]),
        (lambda s: s.mkdir("/w/a"), []),
        (lambda s: s.set_perms("/w/a", ["n0", "r1"]), ["/w/a"]),
        (lambda s: s.rm("/w/a/b"), ["/w/a/b"]),
        (lambda s: s.rm("/w/a"), ["/w/a"]),
        (lambda s: s.rm("/w/none"), []),
        (lambda s: s.rm("/w"), ["/w"]),
        (lambda s: s.read("/w/a"), []),
        (lambda s: s.write("/wx", b""), []),
        (lambda s: s.write("/tool", b""), []),
    ],
)
def test_what_fires(watcher, store, change, events):
    change(store)
    assert [path for path, _ in watcher.take_events()] == events


def test_removal_of_a_parent_fires_below_it_with_the_watched_path(store, dom0):
    store.write("/p/q/r", b"")
    for path, token in (("/p/q/r", "1"), ("/p/q/none", "2"), ("/p/q", "3"), ("/p", "4")):
        dom0.watch(path, token)
    dom0.take_events()
    store.rm("/p")
    assert dom0.take_events() == [("/p/q/r", "1"), ("/p/q", "3"), ("/p", "4")]


def test_several_tokens_and_overlapping_watches_in_order(store, dom0):
    for path, token in (("/w", "1"), ("/", "2"), ("/w/a", "3"), ("/w", "4")):
        dom0.watch(path, token)
    dom0.take_events()
    store.write("/w/a", b"")
    assert dom0.take_events() == [("/w/a", "1"), ("/w/a", "2"), ("/w/a", "3"), ("/w/a", "4")]


def test_relative_watch_gets_relative_paths(guest, store):
    guest.watch("data", "rel")
    guest.watch("/local/domain/1/data", "abs")
    assert guest.take_events() == [("data", "rel"), ("/local/domain/1/data", "abs")]
    store.write("/local/domain/1/data/x/y", b"")
    assert guest.take_events() == [("data/x/y", "rel"), ("/local/domain/1/data/x/y", "abs")]


def test_duplicates_and_unwatch(guest, refused):
    guest.watch("data", "t")
    for path in ("data", "/local/domain/1/data"):
        with refused("EEXIST"):
            guest.ask(XS_WATCH, path, "t")
    guest.watch("data", "u")
    guest.unwatch("/local/domain/1/data", "t")
    for path, token in (("data", "t"), ("data", "x"), ("datax", "u")):
        with refused("ENOENT"):
            guest.ask(XS_UNWATCH, path, token)
    guest.take_events()
    guest.write("data", b"")
    assert guest.take_events() == [("data", "u")]


def test_watches_belong_to_a_connection(dom0, connect, store, refused):
    second = connect(store)
    dom0.watch("/w", "t")
    second.watch("/w", "t")
    second.unwatch("/w", "t")
    with refused("ENOENT"):
        second.ask(XS_UNWATCH, "/w", "t")
    dom0.take_events(), second.take_events()
    store.write("/w", b"")
    assert (dom0.take_events(), second.take_events()) == ([("/w", "t")], [])


def test_reset_watches(guest, dom0):
    guest.watch("data", "t")
    guest.take_events()
    assert guest.ask(XS_RESET_WATCHES, "") == b"OK\0"
    guest.write("data", b"")
    assert guest.take_events() == []
    guest.watch("data", "t")


def test_token_is_any_bytes(dom0, store):
    token = "".join(map(chr, range(1, 256)))
    dom0.watch("/w", token)
    dom0.take_events()
    store.write("/w", b"")
    assert dom0.take_events() == [("/w", token)]
    dom0.unwatch("/w", token)
    dom0.watch("/w", "")
    assert dom0.take_events() == [("/w", "")]


def test_identical_event_is_queued_once(watcher, store):
    for value in (b"1", b"2", b"3"):
        store.write("/w/a", value)
    store.write("/w/b", b"")
    assert watcher.take_events() == [("/w/a", "token"), ("/w/b", "token")]
    store.write("/w/a", b"4")
    assert watcher.take_events() == [("/w/a", "token")]


def test_event_that_does_not_fit_a_message_is_dropped(dom0, store):
    token = "t" * 4080
    dom0.watch("/w", token)
    dom0.take_events()
    store.write("/w/" + "x" * 20, b"")
    assert dom0.take_events() == []


class TestPermissions:
    @pytest.fixture
    def armed(self, store, guest):
        """Domain 1 watches /p, of which it may read /p/open only."""
        store.mkdir("/p", ["n0"])
        store.write("/p/open", b"", ["n0", "r1"])
        store.write("/p/shut", b"", ["n0"])
        guest.watch("/p", "t")
        guest.take_events()
        return guest

    def test_unreadable_nodes_stay_silent(self, armed, store):
        store.write("/p/shut", b"x")
        store.write("/p/shut/below", b"x")
        store.write("/p", b"x")
        assert armed.take_events() == []
        store.write("/p/open", b"x")
        assert armed.take_events() == [("/p/open", "t")]

    def test_readable_parent_is_enough(self, armed, store):
        store.write("/p/open/x", b"", ["n0"])
        armed.take_events()
        store.write("/p/open/x", b"y")
        assert armed.take_events() == [("/p/open/x", "t")]

    def test_losing_the_right_is_told(self, armed, store):
        store.set_perms("/p/open", ["n0"])
        assert armed.take_events() == [("/p/open", "t")]
        store.set_perms("/p/open", ["n0", "w1"])
        assert armed.take_events() == []

    def test_removal_is_told(self, armed, store):
        store.rm("/p/open")
        assert armed.take_events() == [("/p/open", "t")]
        store.rm("/p/shut")
        assert armed.take_events() == []

    def test_removal_with_the_parent_is_told_to_an_exact_watch(self, armed, store):
        armed.watch("/p/open", "u")
        armed.take_events()
        store.rm("/p")
        assert armed.take_events() == [("/p/open", "u")]

    def test_removal_in_a_transaction_is_told(self, armed, store):
        with store.transaction() as tx:
            tx.rm("/p/open")
            tx.rm("/p/shut")
        assert armed.take_events() == [("/p/open", "t")]


class TestTransactions:
    def test_fires_at_commit_once_for_each_path(self, watcher, store):
        with store.transaction() as tx:
            tx.write("/w/a", b"1")
            tx.write("/w/a", b"2")
            tx.write("/w/n/m", b"")
            tx.rm("/w/a/b")
            assert watcher.take_events() == []
        assert sorted(watcher.take_events()) == [
            ("/w/a", "token"),
            ("/w/a/b", "token"),
            ("/w/n/m", "token"),
        ]

    def test_does_not_fire_when_discarded_or_refused(self, watcher, dom0, refused):
        tx = dom0.start()
        dom0.write("/w/a", b"", tx)
        dom0.end(tx, commit=False)
        tx = dom0.start()
        dom0.write("/w/a", b"", tx)
        dom0.write("/w/a", b"")
        dom0.take_events()
        with refused("EAGAIN"):
            dom0.end(tx)
        assert dom0.take_events() == []

    def test_subtree_removed_inside(self, store, dom0):
        store.write("/p/q/r", b"")
        for path, token in (("/p/q/r", "1"), ("/p/q", "2"), ("/p", "3")):
            dom0.watch(path, token)
        dom0.take_events()
        with store.transaction() as tx:
            tx.rm("/p/q")
        assert sorted(dom0.take_events()) == [("/p/q", "2"), ("/p/q", "3"), ("/p/q/r", "1")]

    def test_created_and_removed_inside_is_not_told(self, watcher, store):
        with store.transaction() as tx:
            tx.write("/w/short/lived", b"")
            tx.rm("/w/short")
        assert watcher.take_events() == []


class TestSpecial:
    def test_introduce_and_release(self, store, dom0, connect):
        dom0.watch("@introduceDomain", "i")
        dom0.watch("@releaseDomain", "r")
        assert dom0.take_events() == [("@introduceDomain", "i"), ("@releaseDomain", "r")]
        connect(store, 5)
        connect(store, 5)
        assert dom0.take_events() == [("@introduceDomain", "i")]
        store.release_domain(5)
        assert dom0.take_events() == [("@releaseDomain", "r")]
        store.release_domain(5)
        assert dom0.take_events() == []

    def test_over_the_wire(self, dom0):
        dom0.watch("@introduceDomain", "i")
        dom0.watch("@releaseDomain", "r")
        dom0.take_events()
        dom0.ask(XS_INTRODUCE, "5", "1044476", "1")
        dom0.ask(XS_RELEASE, "5")
        assert dom0.take_events() == [("@introduceDomain", "i"), ("@releaseDomain", "r")]

    def test_shutdown_fires_once_until_resumed(self, store, dom0, guest):
        dom0.watch("@releaseDomain", "r")
        dom0.take_events()
        store.domain_shutdown(1)
        store.domain_shutdown(1)
        assert dom0.take_events() == [("@releaseDomain", "r")]
        dom0.ask(XS_RESUME, "1")
        store.domain_shutdown(1)
        assert dom0.take_events() == [("@releaseDomain", "r")]
        store.domain_shutdown(9)
        assert dom0.take_events() == []

    def test_guests_only_with_permission(self, store, guest):
        guest.watch("@releaseDomain", "r")
        guest.take_events()
        store.introduce_domain(5)
        store.release_domain(5)
        assert guest.take_events() == []
        store.set_perms("@releaseDomain", ["n0", "r1"])
        guest.take_events()
        store.introduce_domain(5)
        store.release_domain(5)
        assert guest.take_events() == [("@releaseDomain", "r")]

    def test_not_dropped_as_duplicates(self, store, dom0):
        dom0.watch("@introduceDomain", "i")
        for domid in (5, 6, 7):
            store.introduce_domain(domid)
        assert dom0.take_events() == [("@introduceDomain", "i")] * 4

    def test_watch_on_the_root_does_not_see_them(self, store, dom0):
        dom0.watch("/", "t")
        dom0.take_events()
        store.introduce_domain(5)
        assert dom0.take_events() == []

    def test_any_special_name_can_be_watched(self, dom0, refused):
        dom0.watch("@whatever", "t")
        assert dom0.take_events() == [("@whatever", "t")]
        with refused("EINVAL"):
            dom0.ask(XS_WATCH, "@what ever", "t")


class TestDepth:
    """WATCH with a depth, from Xen 4.22 on."""

    @pytest.fixture
    def new(self):
        store = XenStore((4, 22))
        store.write("/w/a/b/c", b"")
        return store

    @pytest.mark.parametrize(
        ("depth", "events"),
        [
            ("0", ["/w"]),
            ("1", ["/w", "/w/a"]),
            ("2", ["/w", "/w/a", "/w/a/b"]),
            ("9", ["/w", "/w/a", "/w/a/b", "/w/a/b/c"]),
        ],
    )
    def test_levels(self, new, connect, depth, events):
        peer = connect(new)
        peer.ask(XS_WATCH, "/w", "t", depth)
        peer.take_events()
        for path in ("/w", "/w/a", "/w/a/b", "/w/a/b/c"):
            new.write(path, b"x")
        assert [path for path, _ in peer.take_events()] == events

    def test_root(self, new, connect):
        peer = connect(new)
        peer.ask(XS_WATCH, "/", "t", "1")
        peer.take_events()
        new.write("/w", b"")
        new.write("/w/a", b"")
        assert peer.take_events() == [("/w", "t")]

    def test_special_events_name_the_domain(self, new, connect):
        peer = connect(new)
        peer.ask(XS_WATCH, "@introduceDomain", "1", "1")
        peer.ask(XS_WATCH, "@introduceDomain", "0", "0")
        peer.ask(XS_WATCH, "@introduceDomain", "none")
        peer.ask(XS_WATCH, "@releaseDomain/5", "five")
        peer.take_events()
        new.introduce_domain(5)
        assert peer.take_events() == [("@introduceDomain", "none"), ("@introduceDomain/5", "1")]
        new.introduce_domain(6)
        peer.take_events()
        new.release_domain(6)
        assert peer.take_events() == []
        new.release_domain(5)
        assert peer.take_events() == [("@releaseDomain/5", "five")]

    def test_arguments(self, new, connect, refused):
        peer = connect(new)
        with refused("EINVAL"):
            peer.ask(XS_WATCH, "/w", "t", "-1")
        with refused("EINVAL"):
            peer.ask(XS_WATCH, "/w", "t", "1", "2")

    def test_only_with_the_feature(self, new, connect, refused):
        peer = connect(new, 1)
        peer.ask(XS_WATCH, "data", "t", "1")
        new.introduce_domain(2, features=3)
        with refused("EINVAL"):
            connect(new, 2).ask(XS_WATCH, "data", "t", "1")
