"""Proves the payloads of the node requests, byte for byte: arguments, termination, errors.

Seen from domain 0; what a guest may do is test_permissions and test_quotas.
"""

from __future__ import annotations

import pytest

from hvmlite.abi.xs_wire import (
    XS_DIRECTORY,
    XS_DIRECTORY_PART,
    XS_ERROR,
    XS_GET_DOMAIN_PATH,
    XS_GET_PERMS,
    XS_IS_DOMAIN_INTRODUCED,
    XS_MKDIR,
    XS_READ,
    XS_RM,
    XS_SET_PERMS,
    XS_UNWATCH,
    XS_WATCH,
    XS_WATCH_EVENT,
    XS_WRITE,
)


def test_value_comes_back_as_it_was(dom0):
    for value in (b"", b"hello", b"\0a\0\xff", b"v" * 4000):
        dom0.write("/x", value)
        assert dom0.read("/x") == value


def test_write_makes_parents_with_empty_values(dom0):
    dom0.write("/a/b/c", b"1")
    assert dom0.read("/a") == b""
    assert dom0.read("/a/b") == b""
    assert dom0.ask(XS_DIRECTORY, "/a") == b"b\0"
    assert dom0.ask(XS_DIRECTORY, "/a/b/c") == b""


def test_children_in_order_of_creation(dom0):
    for name in ("z", "a", "m"):
        dom0.mkdir(f"/d/{name}")
    dom0.rm("/d/a")
    dom0.mkdir("/d/a")
    assert dom0.ls("/d") == ["z", "m", "a"]


def test_mkdir_leaves_what_exists(dom0):
    dom0.write("/a", b"kept")
    dom0.mkdir("/a")
    assert dom0.read("/a") == b"kept"
    dom0.mkdir("/a/b/c")
    assert dom0.read("/a/b/c") == b""


def test_rm(dom0, refused):
    dom0.write("/a/b/c", b"1")
    dom0.rm("/a/nothing")
    with refused("ENOENT"):
        dom0.rm("/a/nothing/below")
    with refused("EINVAL"):
        dom0.rm("/")
    dom0.rm("/a")
    with refused("ENOENT"):
        dom0.read("/a/b/c")
    assert "a" not in dom0.ls("/")


def test_rm_of_a_very_deep_tree(dom0, store):
    path = "/d" * 1000
    dom0.write(path, b"bottom")
    assert dom0.read(path) == b"bottom"
    dom0.rm("/d")
    assert "d" not in dom0.ls("/")
    assert store.check() == []


def test_missing_nodes(dom0, refused):
    for kind in (XS_READ, XS_DIRECTORY, XS_GET_PERMS):
        with refused("ENOENT"):
            dom0.ask(kind, "/none")


def test_permissions_come_as_strings(dom0):
    dom0.mkdir("/p")
    assert dom0.ask(XS_GET_PERMS, "/p") == b"n0\0"
    dom0.chmod("/p", "b3", "r1", "w2", "n4")
    assert dom0.ask(XS_GET_PERMS, "/p") == b"b3\0r1\0w2\0n4\0"


def test_new_nodes_inherit_permissions(dom0):
    dom0.mkdir("/p")
    dom0.chmod("/p", "n3", "r1")
    dom0.write("/p/q/r", b"")
    assert dom0.perms("/p/q/r") == ["n3", "r1"]


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (XS_READ, b""),
        (XS_READ, b"/"),
        (XS_READ, b"/\0\0"),
        (XS_READ, b"/\0x"),
        (XS_READ, b"\0"),
        (XS_READ, b"a b\0"),
        (XS_READ, b"@releaseDomain\0"),
        (XS_DIRECTORY, b"/tool"),
        (XS_DIRECTORY_PART, b"/\0"),
        (XS_DIRECTORY_PART, b"/\x000\x00x\x00"),
        (XS_WRITE, b"/x"),
        (XS_WRITE, b""),
        (XS_WRITE, b"@releaseDomain\0x"),
        (XS_MKDIR, b"/x/\0"),
        (XS_MKDIR, b"/x"),
        (XS_RM, b"/x//y\0"),
        (XS_SET_PERMS, b"/tool\0"),
        (XS_SET_PERMS, b"/tool\0x0\0"),
        (XS_SET_PERMS, b"/tool\0n\0"),
        (XS_WATCH, b"/tool\0"),
        (XS_WATCH, b"/tool\0t\0u\0"),
        (XS_WATCH, b"/tool\0t"),
        (XS_WATCH, b"/to ol\0t\0"),
        (XS_UNWATCH, b"/tool\0"),
        (XS_GET_DOMAIN_PATH, b""),
        (XS_GET_DOMAIN_PATH, b"1"),
        (XS_IS_DOMAIN_INTRODUCED, b"1\0 1\0"),
    ],
)
def test_malformed_payloads(dom0, refused, kind, payload):
    with refused("EINVAL"):
        dom0.raw(kind, payload)


@pytest.mark.parametrize("kind", [XS_WATCH_EVENT, XS_ERROR, 20, 23, 24, 25, 26, 27, 0xFFFF])
def test_unknown_types(dom0, guest, refused, kind):
    for peer in (dom0, guest):
        with refused("ENOSYS"):
            peer.raw(kind, b"/\0")


def test_unterminated_rest_of_a_write_is_its_value(dom0):
    dom0.raw(XS_WRITE, b"/x\0abc\0def")
    assert dom0.read("/x") == b"abc\0def"


def test_relative_paths_of_a_tool_are_domain_0s(dom0):
    dom0.write("name", b"Domain-0")
    assert dom0.read("/local/domain/0/name") == b"Domain-0"


def test_domain_paths(dom0, guest):
    for peer in (dom0, guest):
        assert peer.ask(XS_GET_DOMAIN_PATH, "4") == b"/local/domain/4\0"
        assert peer.ask(XS_GET_DOMAIN_PATH, "x") == b"/local/domain/0\0"
        assert peer.ask(XS_GET_DOMAIN_PATH, " 7b") == b"/local/domain/7\0"
        assert peer.ask(XS_GET_DOMAIN_PATH, "-1") == b"/local/domain/4294967295\0"


class TestLargeDirectory:
    def fill(self, store, count=2000):
        for index in range(count):
            store.write(f"/big/child{index}", b"")
        return b"".join([b"child%d\0" % index for index in range(count)])

    def test_directory_answers_e2big(self, dom0, store, refused):
        self.fill(store)
        with refused("E2BIG"):
            dom0.ask(XS_DIRECTORY, "/big")

    def test_parts_add_up(self, dom0, store):
        listing = self.fill(store)
        found = b""
        generations = set()
        while not found.endswith(b"\0\0"):
            reply = dom0.ask(XS_DIRECTORY_PART, "/big", str(len(found)))
            assert len(reply) <= 4096
            generation, _, part = reply.partition(b"\0")
            generations.add(generation)
            assert part.endswith(b"\0")
            found += part
        assert found == listing + b"\0"
        assert len(generations) == 1

    def test_generation_changes_with_the_list(self, dom0, store):
        self.fill(store, 3)
        first = dom0.ask(XS_DIRECTORY_PART, "/big", "0").split(b"\0")[0]
        store.write("/big/more", b"")
        assert dom0.ask(XS_DIRECTORY_PART, "/big", "0").split(b"\0")[0] != first

    def test_offsets(self, dom0, store):
        self.fill(store, 2)
        generation = dom0.ask(XS_DIRECTORY_PART, "/big", "0").split(b"\0")[0]
        ask = lambda offset: dom0.ask(XS_DIRECTORY_PART, "/big", offset)  # noqa: E731
        assert ask("0") == generation + b"\0child0\0child1\0\0"
        assert ask("7") == generation + b"\0child1\0\0"
        assert ask("9") == generation + b"\0ild1\0\0"
        assert ask("14") == generation + b"\0\0"
        assert ask("99999") == generation + b"\0\0"
        assert ask("-1") == generation + b"\0\0"

    def test_a_name_longer_than_a_part(self, dom0, store):
        name = "n" * 3000
        store.write(f"/big/{name}", b"")
        store.write(f"/big/{name}2", b"")
        reply = dom0.ask(XS_DIRECTORY_PART, "/big", "0")
        assert reply.split(b"\0", 1)[1] == name.encode() + b"\0"


def test_reply_longer_than_a_message(dom0, store, refused):
    store.daemon.tree.nodes["/tool"].value = b"v" * 4097
    with refused("E2BIG"):
        dom0.read("/tool")
