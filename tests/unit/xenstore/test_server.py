"""Proves the Python side: reading and writing as domain 0, callbacks, transactions with retry.

What the requests themselves do is proved over the wire by the other files.
"""

from __future__ import annotations

import pytest

from hvmlite.abi.errno import (
    XEN_E2BIG,
    XEN_EAGAIN,
    XEN_EINVAL,
    XEN_ENOENT,
)
from hvmlite.errors import HvmliteError
from hvmlite.xenstore.errors import XenStoreError
from hvmlite.xenstore.server import RETRIES, XenStore
from hvmlite.xenstore.tree import Perm


def raises(errno):
    class Matcher:
        def __enter__(self):
            self._context = pytest.raises(XenStoreError)
            self._caught = self._context.__enter__()

        def __exit__(self, *what):
            handled = self._context.__exit__(*what)
            assert self._caught.value.errno == errno
            return handled

    return Matcher()


def test_read_and_write(store):
    store.write("/a/b", "text")
    store.write("/a/c", b"\0bytes")
    assert store.read("/a/b") == b"text"
    assert store.read("/a") == b""
    assert store.read("/none") is None
    assert (store.exists("/a"), store.exists("/none")) == (True, False)
    assert store.list("/a") == ["b", "c"]
    store.rm("/a/b")
    assert store.list("/a") == ["c"]


def test_relative_paths_are_domain_0s(store):
    store.write("name", "Domain-0")
    assert store.read("/local/domain/0/name") == b"Domain-0"


def test_permissions(store):
    store.write("/a", "", ["n0", "r4"])
    store.mkdir("/b", [Perm(0, 0), "b5"])
    assert store.get_perms("/a") == ["n0", "r4"]
    assert store.get_perms("/b") == ["n0", "b5"]
    store.set_perms("/a", ["n3"])
    assert store.get_perms("/a") == ["n3"]
    assert store.get_perms("@releaseDomain") == ["n0"]


def test_errors(store):
    for call in (store.list, store.get_perms, lambda p: store.set_perms(p, ["n0"])):
        with raises(XEN_ENOENT):
            call("/none")
    with raises(XEN_ENOENT):
        store.rm("/none/none")
    for path in ("", "a b", "/a/", "/\u00e9", "//"):
        with raises(XEN_EINVAL):
            store.write(path, "")
        with raises(XEN_EINVAL):
            store.read(path)
    for perms in ([], ["x1"], ["\u20ac1"]):
        with raises(XEN_EINVAL):
            store.set_perms("/tool", perms)
    assert issubclass(XenStoreError, HvmliteError)


def test_value_that_no_guest_could_read_back(store):
    store.write("/a", b"v" * 4093)
    with raises(XEN_E2BIG):
        store.write("/a", b"v" * 4094)


def test_refused_permissions_do_not_hide_the_write(store):
    with raises(XEN_ENOENT):
        store.write("/a", "v", ["n32752"])
    assert store.check() == []


class TestWatch:
    def test_once_now_and_at_each_change(self, store):
        seen = []
        store.watch("/w", seen.append)
        assert seen == ["/w"]
        store.write("/w/a", "")
        store.rm("/w")
        assert seen == ["/w", "/w/a", "/w"]

    def test_of_changes_by_a_guest(self, store, guest):
        seen = []
        store.watch("/local/domain/1/data", seen.append)
        guest.write("data/x", b"1")
        assert seen == ["/local/domain/1/data", "/local/domain/1/data/x"]

    def test_relative(self, store):
        seen = []
        store.watch("backend", seen.append)
        store.write("/local/domain/0/backend/vbd", "")
        assert seen == ["backend", "backend/vbd"]

    def test_depth(self, store):
        seen = []
        store.watch("/w", seen.append, depth=1)
        for path in ("/w/a", "/w/a/b"):
            store.write(path, "")
        assert seen == ["/w", "/w/a"]

    def test_special(self, store):
        seen = []
        store.watch("@releaseDomain", seen.append)
        store.introduce_domain(5)
        store.release_domain(5)
        assert seen == ["@releaseDomain"] * 2

    def test_end(self, store):
        seen = []
        watch = store.watch("/w", seen.append)
        store.unwatch(watch)
        store.unwatch(watch)
        store.write("/w", "")
        assert seen == ["/w"]

    def test_end_inside_the_callback_of_another(self, store):
        seen = []
        watches = []

        def first(path):
            seen.append(("first", path))
            for watch in watches:
                store.unwatch(watch)

        store.watch("/w", first)
        watches.append(store.watch("/w", lambda path: seen.append(("second", path))))
        seen.clear()
        store.write("/w", "")
        assert seen == [("first", "/w")]

    def test_callback_may_use_the_store(self, store):
        def copy(path):
            value = store.read(path)
            if value:
                store.write("/copy" + path, value + b"!")

        seen = []
        store.watch("/w", copy)
        store.watch("/copy", seen.append)
        store.write("/w/a", "1")
        assert store.read("/copy/w/a") == b"1!"
        assert seen == ["/copy", "/copy/w/a"]

    def test_callbacks_run_one_after_another(self, store):
        log = []

        def outer(path):
            log.append("outer begins")
            store.write("/inner", "")
            log.append("outer ends")

        store.watch("/inner", lambda path: log.append("inner"))
        store.watch("/w", outer)
        assert log == ["inner", "outer begins", "outer ends", "inner"]

    def test_callback_sees_a_transaction_whole(self, store):
        seen = []
        store.watch("/w", lambda path: seen.append((path, store.read("/w/a"), store.read("/w/b"))))
        seen.clear()
        with store.transaction() as tx:
            tx.write("/w/a", "1")
            tx.write("/w/b", "2")
        assert seen == [("/w/a", b"1", b"2"), ("/w/b", b"1", b"2")]

    def test_an_exception_reaches_who_caused_it_and_nobody_else_suffers(self, store):
        def broken(path):
            if path != "/w":
                raise ZeroDivisionError

        seen = []
        store.watch("/w", broken)
        store.watch("/w", seen.append)
        with pytest.raises(ZeroDivisionError):
            store.write("/w/a", "")
        store.write("/elsewhere", "")
        assert store.read("/w/a") == b""
        assert seen == ["/w", "/w/a"]

    def test_event_at_the_python_side_counts_until_it_is_delivered(self, store, guest):
        store.watch("/local/domain/1", lambda path: None)
        for _ in range(100):
            guest.write("data", b"")
        assert store.daemon.domains[1].outstanding == 0


class TestTransaction:
    def test_commit(self, store):
        with store.transaction() as tx:
            tx.write("/a/b", "1", ["n0", "r1"])
            tx.mkdir("/c")
            assert tx.read("/a/b") == b"1"
            assert tx.list("/a") == ["b"]
            assert tx.get_perms("/a/b") == ["n0", "r1"]
            assert store.read("/a/b") is None
        assert store.read("/a/b") == b"1"
        assert store.exists("/c")

    def test_exception_discards(self, store):
        def fail():
            with store.transaction() as tx:
                tx.write("/a", "1")
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert not store.exists("/a")
        assert store.daemon.domains[0].transactions == 0

    def test_conflict(self, store):
        with raises(XEN_EAGAIN), store.transaction() as tx:
            tx.read("/tool")
            store.write("/tool", "")

    def test_retry(self, store):
        attempts = []

        def body(tx):
            attempts.append(tx.read("/counter"))
            if len(attempts) < 3:
                store.write("/counter", str(len(attempts)))
            tx.write("/counter", "done")
            return len(attempts)

        assert store.transact(body) == 3
        assert attempts == [None, b"1", b"2"]
        assert store.read("/counter") == b"done"

    def test_retry_gives_up(self, store):
        attempts = []

        def body(tx):
            attempts.append(1)
            tx.read("/counter")
            store.write("/counter", "")

        with raises(XEN_EAGAIN):
            store.transact(body)
        assert len(attempts) == RETRIES

    def test_other_errors_are_not_retried(self, store):
        attempts = []

        def body(tx):
            attempts.append(1)
            tx.list("/none")

        with raises(XEN_ENOENT):
            store.transact(body)
        assert len(attempts) == 1


def test_two_stores_share_nothing():
    one, two = XenStore(), XenStore()
    one.write("/a", "")
    one.mkdir("/tool/x")
    assert not two.exists("/a")
    assert two.list("/tool") == ["xenstored"]


def test_a_listing_as_real_xen_has_it(store):
    """Part of what a 4.17 toolstack writes for a guest, read back in its order."""
    home = "/local/domain/4"
    perms = ["n0", "r4"]
    store.mkdir(home, perms)
    for path in ("cpu", "memory", "device", "control"):
        store.mkdir(f"{home}/{path}", perms)
    for path in ("device/suspend/event-channel", "control/shutdown", "data", "attr"):
        store.write(f"{home}/{path}", "", ["n4"])
    store.write(f"{home}/memory/target", "262144", perms)
    assert store.list(home) == ["cpu", "memory", "device", "control", "data", "attr"]
    assert store.get_perms(f"{home}/device/suspend") == perms
    assert store.get_perms(f"{home}/data") == ["n4"]
    assert store.check() == []
