"""Proves the life of a domain in the store: INTRODUCE, RELEASE, what is dropped and what stays.

Cannot see the ring (test_ring) or the special watches themselves (test_watches).
"""

from __future__ import annotations

import pytest

from hvmlite.abi.errno import XEN_EINVAL
from hvmlite.abi.xs_wire import (
    XS_CONTROL,
    XS_INTRODUCE,
    XS_IS_DOMAIN_INTRODUCED,
    XS_RELEASE,
    XS_RESUME,
    XS_SET_TARGET,
)
from hvmlite.xenstore.errors import XenStoreError


def test_is_domain_introduced(store, dom0, connect):
    ask = lambda domid: dom0.ask(XS_IS_DOMAIN_INTRODUCED, domid)  # noqa: E731
    assert ask("5") == b"F\0"
    store.write("/s", b"", ["n0", "r5"])
    assert ask("5") == b"F\0"
    connect(store, 5)
    assert ask("5") == b"T\0"
    assert ask("0") == b"T\0"
    assert ask("32752") == b"T\0"
    store.release_domain(5)
    assert ask("5") == b"F\0"


@pytest.mark.parametrize(
    "kind",
    [XS_INTRODUCE, XS_RELEASE, XS_IS_DOMAIN_INTRODUCED, XS_RESUME, XS_SET_TARGET, XS_CONTROL],
)
def test_guests_may_not(guest, refused, kind):
    with refused("EACCES"):
        guest.ask(kind, "1", "1", "1")


def test_introduce_arguments(dom0, refused):
    for arguments in (("5", "1"), ("5", "1", "0"), ("5", "1", "-1"), ("0", "1", "1")):
        with refused("EINVAL"):
            dom0.ask(XS_INTRODUCE, *arguments)
    with refused("EINVAL"):
        dom0.ask(XS_INTRODUCE, "32752", "1", "1")


def test_introduce_tells_the_toolstack(store, dom0):
    told = []
    store.daemon.on_introduce = lambda *what: told.append(what)
    assert dom0.ask(XS_INTRODUCE, "5", "1044476", "3", "ignored") == b"OK\0"
    assert told == [(5, 1044476, 3)]
    assert store.connection(5) is not None


def test_release_and_resume_arguments(dom0, guest, refused):
    for kind in (XS_RELEASE, XS_RESUME):
        with refused("EINVAL"):
            dom0.ask(kind, "0")
        with refused("EINVAL"):
            dom0.ask(kind, "junk")
        with refused("ENOENT"):
            dom0.ask(kind, "9")
        with refused("EINVAL"):
            dom0.ask(kind, "1", "1")


def test_release_drops_all_that_is_the_domains(store, guest, other):
    guest.watch("data", "t")
    guest.write("data/x/y", b"")
    tx = guest.start()
    guest.write("data/x", b"", tx)
    store.write("/elsewhere", b"", ["n1"])
    store.write("/elsewhere/kept", b"", ["n0"])
    store.write("/local/domain/1/name", b"deb")
    other.watch("/local/domain/1", "w")
    store.release_domain(1)
    assert not guest.connection.is_open
    assert guest.connection.watches == {}
    assert guest.connection.transactions == {}
    guest.connection.feed(guest.message(2, b"data\0"))
    assert guest.connection.pending_output == b""
    # Nodes it owned are gone with all below them; those of others stay.
    assert not store.exists("/elsewhere")
    assert store.list("/local/domain/1") == ["name"]
    assert 1 not in store.daemon.domains
    assert store.check() == []


def test_release_tells_watchers_of_the_removed_nodes(store, guest, dom0):
    guest.write("data/x", b"")
    dom0.watch("/local/domain/1/data", "t")
    dom0.take_events()
    store.release_domain(1)
    assert dom0.take_events() == [("/local/domain/1/data", "t")]


def test_release_resets_the_owner_of_what_cannot_go(store):
    store.set_perms("/", ["r1"])
    store.set_perms("@releaseDomain", ["n1", "r2"])
    store.introduce_domain(1)
    store.release_domain(1)
    assert store.get_perms("/") == ["n0"]
    assert store.get_perms("@releaseDomain") == ["n0"]
    assert store.check() == []


def test_release_of_a_domain_that_never_was_introduced(store):
    store.write("/s", b"", ["n5"])
    store.release_domain(5)
    assert not store.exists("/s")
    store.release_domain(5)


def test_impossible_ids(store):
    for call in (lambda: store.release_domain(0), lambda: store.introduce_domain(0x7FF0)):
        with pytest.raises(XenStoreError) as caught:
            call()
        assert caught.value.errno == XEN_EINVAL


def test_introduced_again_starts_anew(store, guest, refused):
    guest.watch("data", "t")
    tx = guest.start()
    guest.connection.feed(b"half a mess")
    guest.sort_out()
    assert store.introduce_domain(1, port=7) is guest.connection
    assert store.daemon.domains[1].port == 7
    with refused("ENOENT"):
        guest.end(tx)
    guest.take_events()
    guest.write("data", b"")
    assert guest.take_events() == []
    guest.watch("data", "t")


def test_a_domain_may_be_introduced_after_release(store, guest, connect, refused):
    guest.write("data/x", b"")
    store.release_domain(1)
    again = connect(store, 1)
    assert again.connection is not guest.connection
    # Its predecessor's home still stands, but speaks of the predecessor.
    with refused("EACCES"):
        again.read("data")
    store.set_perms("/local/domain/1", ["n0", "r1"])
    with refused("ENOENT"):
        again.read("data")
    assert store.check() == []


def test_closed_tool_leaves_nothing(store, dom0):
    dom0.watch("/", "t")
    dom0.start()
    dom0.connection.close()
    dom0.connection.close()
    assert dom0.connection not in store.daemon.connections
    store.write("/x", b"")
    assert store.daemon.domains[0].watches == 0
    assert store.daemon.domains[0].transactions == 0
