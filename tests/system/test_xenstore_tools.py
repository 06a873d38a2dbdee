"""Debian's xenstore tools and PyPI's pyxs, unmodified, at the socket of a host with a Debian guest.

Proves that each works, that the guest sees what they do, and that the guest's nodes are those of a
guest on real Xen (xenstore-4.17.txt). Cannot see what the tools never send: tests/unit/xenstore.
"""

from __future__ import annotations

import os
import re
import select
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import pyxs

from hvmlite import DomainConfig
from hvmlite.testing import assets
from hvmlite.testing.assets import AssetMissingError

from .guests import QUIET, Shell
from .store_tools import store_tools

REFERENCE = Path(__file__).with_name("xenstore-4.17.txt")


class Difference(NamedTuple):
    """A part of the listing that differs from the recorded one by nature."""

    pattern: str
    why: str


ONLY_RECORDED = [
    Difference(r"/local/domain/0/backend/vbd(/.*)?", "the recorded guest had a disk"),
    Difference(r"/local/domain/DOMID/device/vbd(/.*)?", "the recorded guest had a disk"),
    Difference(r"/local/domain/0/backend/vif(/.*)?", "the recorded guest had a network interface"),
    Difference(r"/local/domain/DOMID/device/vif(/.*)?", "the recorded guest had one"),
]
ONLY_HERE = [
    Difference(r"/tool(/xenstored)?", "made by every xenstored; the recording leaves it out"),
]
OTHER_VALUE = [
    Difference(r"/vm/UUID/start_time", "the time of the start"),
    Difference(r"/local/domain/DOMID/console/tty", "a name of the host; our console is no pty"),
    Difference(r"/local/domain/DOMID/memory/(target|static-max)", "as configured"),
]


class Node(NamedTuple):
    perms: str
    value: str


class Store:
    """The guest, its host's socket, and the tools with their environment."""

    def __init__(self, guest: Shell, path: Path) -> None:
        self.guest = guest
        self.path = path
        guest.host.listen_xenstore(path)
        self.env = {**os.environ, "XENSTORED_PATH": str(path)}
        self.home = f"/local/domain/{guest.domain.id}"

    def run(self, *arguments: str | Path) -> tuple[int, str, str]:
        done = subprocess.run(
            arguments, env=self.env, capture_output=True, text=True, timeout=30, check=False
        )
        return done.returncode, done.stdout, done.stderr

    def tool(self, *arguments: str | Path) -> str:
        status, output, messages = self.run(*arguments)
        assert status == 0, messages
        return output

    def value(self, path: str) -> bytes | None:
        return self.guest.host.xenstore.read(path)


@pytest.fixture(scope="module")
def store(
    linux: Path, shell_cpio: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Store]:
    if not store_tools():
        pytest.skip("no xenstore programs on this machine: install xenstore-utils")
    # A guest of its own: what other tests write would be in the listing.
    guest = Shell(DomainConfig(kernel=linux, ramdisk=shell_cpio, cmdline=QUIET, memory=256 << 20))
    try:
        guest.ready()
        yield Store(guest, tmp_path_factory.mktemp("store") / "socket")
    finally:
        guest.close()


@pytest.fixture(scope="module")
def control() -> Path:
    try:
        return assets.xen_tool("xenstore-control")
    except AssetMissingError as error:
        pytest.skip(str(error))


def reference() -> dict[str, Node]:
    lines = [line for line in REFERENCE.read_text().splitlines() if not line.startswith("#")]
    nodes = {}
    for line in lines:
        perms, _, rest = line.partition(" ")
        path, _, value = rest.strip().partition(" ")
        nodes[path] = Node(perms, value)
    return nodes


def listing(store: Store) -> dict[str, Node]:
    """The output of xenstore-ls -fp, with DOMID, UUID and NAME for the guest's own."""
    domid = str(store.guest.domain.id)
    uuid = store.guest.domain.incarnation.uuid
    name = store.guest.domain.config.title
    nodes = {}
    for line in store.tool("xenstore-ls", "-f", "-p").splitlines():
        match = re.fullmatch(r'(\S+) = "(.*)" +\((\S+)\)', line.replace(uuid, "UUID"))
        assert match, line
        path, value, perms = match.groups()
        path, value = (re.sub(rf"/domain/{domid}\b", "/domain/DOMID", x) for x in (path, value))
        path = re.sub(rf"^(/local/domain/0/backend/\w+)/{domid}\b", r"\1/DOMID", path)
        value = re.sub(rf"^(/local/domain/0/backend/\w+)/{domid}\b", r"\1/DOMID", value)
        leaf = path.rpartition("/")[2]
        if (leaf in {"frontend-id", "domid"} and value == domid) or (leaf, value) == ("name", name):
            value = "NAME" if leaf == "name" else "DOMID"
        nodes[path] = Node(re.sub(rf"([nrwb]){domid}\b", r"\1DOMID", perms), value)
    return nodes


def expected(path: str, differences: list[Difference]) -> bool:
    return any(re.fullmatch(each.pattern, path) for each in differences)


def test_listing_is_that_of_real_xen(store: Store) -> None:
    """Must stay the first test here: later ones change the store."""
    recorded, found = reference(), listing(store)
    assert [p for p in recorded if p not in found and not expected(p, ONLY_RECORDED)] == []
    assert [p for p in found if p not in recorded and not expected(p, ONLY_HERE)] == []
    both = [p for p in recorded if p in found]
    assert len(both) > 60
    assert [(p, found[p].perms) for p in both] == [(p, recorded[p].perms) for p in both]
    assert [
        (p, found[p].value, recorded[p].value)
        for p in both
        if found[p].value != recorded[p].value and not expected(p, OTHER_VALUE)
    ] == []


def test_every_difference_is_one(store: Store) -> None:
    """No line of the lists above is without effect."""
    recorded, found = reference(), listing(store)
    for nodes, others, differences in (
        (recorded, found, ONLY_RECORDED),
        (found, recorded, ONLY_HERE),
    ):
        for each in differences:
            assert any(re.fullmatch(each.pattern, p) for p in nodes.keys() - others.keys()), each
    for each in OTHER_VALUE:
        hits = [p for p in recorded if re.fullmatch(each.pattern, p)]
        assert hits, each


def test_order_is_that_of_real_xen(store: Store) -> None:
    """A listing is in order of creation, which shows who made what when."""
    recorded, found = list(reference()), list(listing(store))
    home = "/local/domain/DOMID/"
    common = [p for p in recorded if p in found and p.startswith(home)]
    assert [p for p in found if p in recorded and p.startswith(home)] == common


def test_read(store: Store) -> None:
    assert store.tool("xenstore-read", f"{store.home}/domid") == f"{store.guest.domain.id}\n"
    path = f"{store.home}/control/feature-poweroff"
    assert store.tool("xenstore-read", "-p", path) == f"{path}: 1\n"
    status, _, messages = store.run("xenstore-read", "/none")
    assert status == 1
    assert "couldn't read path /none" in messages


def test_write_is_seen_by_the_guest(store: Store) -> None:
    path = f"{store.home}/data/by-tool"
    store.tool("xenstore-write", path, "first", f"{path}/below", "two words")
    store.tool("xenstore-chmod", path, f"n{store.guest.domain.id}")
    store.tool("xenstore-chmod", f"{path}/below", "n0", f"r{store.guest.domain.id}")
    assert store.guest.run("xenstore-read data/by-tool data/by-tool/below") == "first\ntwo words\n"


def test_list_and_exists(store: Store) -> None:
    names = store.tool("xenstore-list", store.home).splitlines()
    assert names[:3] == ["vm", "name", "cpu"]
    path = f"{store.home}/name"
    assert store.tool("xenstore-list", "-p", store.home).splitlines()[1] == path
    assert store.run("xenstore-exists", path)[0] == 0
    assert store.run("xenstore-exists", f"{path}/x")[0] == 1


def test_list_of_more_than_a_message(store: Store) -> None:
    """1,000 names are over 4 KiB: libxenstore goes on with DIRECTORY_PART."""
    names = [f"a-rather-long-name-{number}" for number in range(1000)]

    def make(transaction) -> None:
        for name in names:
            transaction.mkdir(f"/many/{name}")

    store.guest.host.xenstore.transact(make)
    assert store.tool("xenstore-list", "/many").splitlines() == names
    store.tool("xenstore-rm", "/many")
    assert store.value("/many") is None


def test_rm(store: Store) -> None:
    store.tool("xenstore-write", "/scratch/a/b", "1")
    store.tool("xenstore-rm", "/scratch/a")
    assert store.value("/scratch/a/b") is None
    assert store.value("/scratch") == b""
    store.tool("xenstore-rm", "-t", "/scratch")
    assert store.value("/scratch") is None


def test_chmod(store: Store) -> None:
    domid = store.guest.domain.id
    store.tool("xenstore-write", "/secret/x", "1")
    status, _ = store.guest.attempt("xenstore-read /secret/x 2>&1")
    assert status != 0
    store.tool("xenstore-chmod", "-r", "/secret", "n0", f"r{domid}")
    assert store.guest.host.xenstore.get_perms("/secret/x") == ["n0", f"r{domid}"]
    assert store.guest.run("xenstore-read /secret/x") == "1\n"


def test_watch(store: Store) -> None:
    """One event at once, then one for each change by the guest and by the host."""
    path = f"{store.home}/data/watched"
    with subprocess.Popen(
        ["xenstore-watch", "-n", "3", path], env=store.env, stdout=subprocess.PIPE
    ) as watching:
        assert watching.stdout is not None
        output = b""
        for change in (
            lambda: store.guest.run("xenstore-write data/watched 1"),
            lambda: store.guest.host.xenstore.write(f"{path}/below", "2"),
            None,
        ):
            deadline = time.monotonic() + 20
            wanted = output.count(b"\n") + 1
            while output.count(b"\n") < wanted and time.monotonic() < deadline:
                if select.select([watching.stdout], [], [], 1)[0]:
                    output += os.read(watching.stdout.fileno(), 4096)
            if change is not None:
                change()
        assert watching.wait(20) == 0
    assert output.decode().splitlines() == [path, path, f"{path}/below"]


def test_control(store: Store, control: Path) -> None:
    assert store.tool(control, "check") == "OK\n"
    assert store.tool(control, "print", "words in our log") == "OK\n"
    assert store.tool(control, "log", "on") == "OK\n"
    assert store.tool(control, "log", "off") == "OK\n"
    assert re.search(r"^nodes +: +1000 ", store.tool(control, "quota"), re.MULTILINE)
    used = store.tool(control, "quota", str(store.guest.domain.id))
    owned = re.search(r"^nodes +: +(\d+)", used, re.MULTILINE)
    assert owned
    assert 10 < int(owned[1]) < 100
    assert "quota" in store.tool(control, "help")
    status, _, messages = store.run(control, "no-such-command")
    assert status != 0
    assert "not supported" in messages


def test_quota_set_by_control_holds_for_the_guest(store: Store, control: Path) -> None:
    store.tool(control, "quota", "set", "node-size", "100")
    try:
        status, output = store.guest.attempt(f"xenstore-write data/big {'x' * 200} 2>&1")
        assert status != 0, output
    finally:
        store.tool(control, "quota", "set", "node-size", "2048")
    store.guest.run(f"xenstore-write data/big {'x' * 200}")


def test_pyxs(store: Store) -> None:
    home = store.home.encode()
    path = home + b"/data/pyxs"
    with pyxs.Client(unix_socket_path=str(store.path)) as client:
        client[path] = b"by pyxs"
        assert client[path] == b"by pyxs"
        assert client.exists(path)
        assert client.list(home)[:2] == [b"vm", b"name"]
        client.set_perms(path, [b"n%d" % store.guest.domain.id, b"r0"])
        assert client.get_perms(path) == [b"n%d" % store.guest.domain.id, b"r0"]
        assert store.guest.run("xenstore-read data/pyxs") == "by pyxs\n"
        assert client.get_domain_path(store.guest.domain.id) == home
        client.mkdir(path + b"/below")
        client.delete(path)
        assert not client.exists(path)
        assert list(client.walk(home + b"/store"))


def test_pyxs_transactions(store: Store) -> None:
    path = f"{store.home}/data/account"
    store.guest.host.xenstore.write(path, "10", [f"n{store.guest.domain.id}"])
    raw = path.encode()
    with pyxs.Client(unix_socket_path=str(store.path)) as client:
        client.transaction()
        client[raw] = b"%d" % (int(client[raw]) + 1)
        store.guest.run("xenstore-write data/account 50")
        assert client.commit() is False
        client.transaction()
        client[raw] = b"%d" % (int(client[raw]) + 1)
        assert store.guest.run("xenstore-read data/account") == "50\n"
        assert client.commit() is True
        assert store.guest.run("xenstore-read data/account") == "51\n"
        client.transaction()
        client[raw] = b"0"
        client.rollback()
    assert store.value(path) == b"51"


def test_pyxs_monitor(store: Store) -> None:
    path = f"{store.home}/data/monitored".encode()
    with (
        pyxs.Client(unix_socket_path=str(store.path)) as client,
        client.monitor() as monitor,
    ):
        monitor.watch(path, b"token")
        events = monitor.wait()
        assert next(events) == (path, b"token")
        store.guest.run("xenstore-write data/monitored x")
        assert next(events) == (path, b"token")
