"""Proves CONTROL's sub-commands, and which requests exist in which version of Xen.

The wording of CONTROL's answers is free (docs/misc/xenstore.txt): only what a reader looks for in
them is checked.
"""

from __future__ import annotations

import logging

import pytest

from hvmlite.abi.xs_wire import (
    XS_CONTROL,
    XS_GET_FEATURE,
    XS_GET_QUOTA,
    XS_SET_FEATURE,
    XS_SET_QUOTA,
    XS_WATCH,
)
from hvmlite.xenstore.server import XenStore
from hvmlite.xenstore.tree import OWNED_BY_DOM0, Node


@pytest.fixture
def control(dom0):
    return lambda *arguments: dom0.ask(XS_CONTROL, *arguments)


def test_help_lists_every_command(control):
    reply = control("help")
    assert reply.endswith(b"\n\0")
    names = [line.split()[0] for line in reply[:-1].decode().splitlines()]
    assert names == ["check", "log", "memreport", "print", "quota", "help"]


def test_print(control, caplog):
    with caplog.at_level(logging.INFO, "hvmlite.xenstore"):
        assert control("print", "hello\nworld") == b"OK\0"
    assert caplog.messages == [r"control: 'hello\nworld'"]


def test_log(control, dom0, store, caplog):
    assert control("log", "on") == b"OK\0"
    with caplog.at_level(logging.INFO, "hvmlite.xenstore"):
        dom0.read("/tool")
        assert len(caplog.messages) == 2
        assert control("log", "off") == b"OK\0"
        caplog.clear()
        dom0.read("/tool")
    assert caplog.messages == []


def test_check_logs_what_is_wrong(control, store, caplog):
    assert control("check") == b"OK\0"
    assert caplog.messages == []
    store.daemon.tree.nodes["/lost"] = Node(b"", OWNED_BY_DOM0)
    assert control("check") == b"OK\0"
    assert "node /lost is orphaned" in caplog.text


def test_check_finds_all_kinds_of_damage(store):
    nodes = store.daemon.tree.nodes
    nodes["/tool"].children.names["gone"] = None
    nodes["/local"].perms = store.daemon.tree.nodes["/local/domain/1/data"].perms
    problems = "\n".join(store.check())
    assert "/tool/gone is listed but missing" in problems
    assert "listing of /tool" in problems
    assert "domain 1 owns 2 nodes, not 1" in problems
    del store.daemon.domains[1]
    assert "unknown domain 1" in "\n".join(store.check())


def test_quota(control, store, guest, refused):
    listing = control("quota").decode()
    for line in ("nodes            :     1000 ", "watches          :      128 "):
        assert line in listing
    assert control("quota", "set", "watches", "1") == b"OK\0"
    guest.watch("data", "1")
    guest.watch("data", "2")
    with refused("E2BIG"):
        guest.ask(XS_WATCH, "data", "3")
    used = control("quota", "1").decode()
    assert used.startswith("Domain 1:\n")
    assert "watches          :        2\n" in used
    with refused("ENOENT"):
        control("quota", "9")


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nonsense",),
        ("check", "x"),
        ("help", "x"),
        ("log",),
        ("log", "maybe"),
        ("memreport",),
        ("memreport", "/etc/passwd"),
        ("logfile", "/etc/passwd"),
        ("print",),
        ("quota", "set", "nodes"),
        ("quota", "set", "nodes", "0"),
        ("quota", "set", "nodes", "-5"),
        ("quota", "set", "nonsense", "5"),
        ("quota", "1", "2"),
    ],
)
def test_refused(control, refused, arguments):
    with refused("EINVAL"):
        control(*arguments)


class TestVersions:
    def test_4_17_has_none_of_the_new_requests(self, dom0, guest, refused):
        for kind in (XS_GET_FEATURE, XS_SET_FEATURE, XS_GET_QUOTA, XS_SET_QUOTA):
            for peer in (dom0, guest):
                with refused("ENOSYS"):
                    peer.raw(kind)

    def test_4_21_has_features_but_no_quotas(self, connect, refused):
        store = XenStore((4, 21))
        dom0 = connect(store)
        assert dom0.raw(XS_GET_FEATURE) == b"3\0"
        with refused("ENOSYS"):
            dom0.raw(XS_GET_QUOTA)
        with refused("EACCES"):
            connect(store, 5).raw(XS_GET_FEATURE)

    def test_features(self, connect, refused):
        store = XenStore((4, 22))
        dom0 = connect(store)
        assert dom0.raw(XS_GET_FEATURE) == b"7\0"
        assert dom0.ask(XS_SET_FEATURE, "5", "4") == b"OK\0"
        assert dom0.ask(XS_GET_FEATURE, "5") == b"4\0"
        guest = connect(store, 5)
        assert guest.raw(XS_GET_FEATURE) == b"4\0"
        with refused("EACCES"):
            guest.ask(XS_GET_FEATURE, "5")
        with refused("EACCES"):
            guest.ask(XS_SET_FEATURE, "5", "7")
        with refused("EBUSY"):
            dom0.ask(XS_SET_FEATURE, "5", "7")
        with refused("EINVAL"):
            dom0.ask(XS_SET_FEATURE, "6", "8")
        with refused("EINVAL"):
            dom0.ask(XS_SET_FEATURE, "6")
        with refused("EINVAL"):
            dom0.ask(XS_SET_FEATURE, "40000", "1")
        with refused("EINVAL"):
            dom0.ask(XS_GET_FEATURE, "5", "6")
        with refused("ENOENT"):
            dom0.ask(XS_GET_FEATURE, "9")

    def test_quotas(self, connect, refused):
        store = XenStore((4, 22))
        dom0, guest = connect(store), connect(store, 5)
        names = dom0.raw(XS_GET_QUOTA)
        assert names.endswith(b"\0")
        assert {"nodes", "watches", "transactions", "node-size", "permissions"} <= set(
            names[:-1].decode().split(" ")
        )
        assert dom0.ask(XS_GET_QUOTA, "nodes") == b"1000\0"
        assert dom0.ask(XS_SET_QUOTA, "5", "nodes", "7") == b"OK\0"
        assert dom0.ask(XS_GET_QUOTA, "5", "nodes") == b"7\0"
        assert dom0.ask(XS_GET_QUOTA, "nodes") == b"1000\0"
        assert dom0.ask(XS_SET_QUOTA, "watches", "9") == b"OK\0"
        assert dom0.ask(XS_GET_QUOTA, "watches") == b"9\0"
        assert dom0.ask(XS_GET_QUOTA, "node-permissions") == b"5\0"
        for kind in (XS_GET_QUOTA, XS_SET_QUOTA):
            with refused("EACCES"):
                guest.raw(kind)
        for arguments in (("nonsense",), ("1", "2", "3")):
            with refused("EINVAL"):
                dom0.ask(XS_GET_QUOTA, *arguments)
        for arguments in ((), ("nodes",), ("nodes", "-1"), ("1", "2", "3", "4")):
            with refused("EINVAL"):
                dom0.ask(XS_SET_QUOTA, *arguments)
        with refused("ENOENT"):
            dom0.ask(XS_GET_QUOTA, "9", "nodes")

    def test_disabled_quota(self, connect):
        store = XenStore((4, 22))
        dom0 = connect(store)
        store.mkdir("/local/domain/5/data", ["n5"])
        guest = connect(store, 5)
        assert dom0.ask(XS_SET_QUOTA, "5", "watches", "0") == b"OK\0"
        for index in range(200):
            guest.watch("data", str(index))
