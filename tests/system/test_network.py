"""Proves PV networks with Debian's own driver: addresses by DHCP, files, names and forwarded ports
through passt, a rate that is kept, attaching and detaching, and two domains of one host on a link.

Cannot see how fast it is (benchmarks/net.py), nor networks beyond this machine.
"""

from __future__ import annotations

import hashlib
import http.server
import os
import re
import shutil
import socket
import socketserver
import struct
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hvmlite import DomainConfig, Host
from hvmlite.testing import network
from hvmlite.testing.assets import AssetMissingError
from hvmlite.toolstack.devices.vif import parse

from .conftest import Boot
from .guests import BOOT_LIMIT, QUIET, Shell, shell_ramdisk

SIZE = 3_000_000
GONE = "while [ -e /sys/bus/xen/devices/vif-0 ]; do sleep 0.02; done"


@pytest.fixture(scope="module")
def cpio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ramdisk with the driver, which the tests load, and iperf3."""
    path = tmp_path_factory.mktemp("network") / "initrd.cpio"
    try:
        files, _ = network.driver()
        lease, _ = network.dhcp()
        path.write_bytes(shell_ramdisk({**files, **lease, **network.program("iperf3")}))
    except AssetMissingError as error:
        pytest.skip(str(error))
    return path


def up(guest: Shell, dhcp: bool = True) -> None:
    for command in network.driver()[1]:
        guest.run(command)
    guest.run("ip link set lo up; ip link set eth0 up")
    if dhcp:
        guest.run(network.dhcp()[1])


def has_default_route() -> bool:
    """Whether this machine is on a network that passt can take after."""
    routes = Path("/proc/net/route").read_text().splitlines()[1:]
    return any(line.split()[1] == "00000000" for line in routes)


@pytest.fixture
def boot(uvm: Boot, linux: Path, cpio: Path) -> Callable[..., Shell]:
    """Boots a guest with interfaces: `boot("type=user")`."""
    if shutil.which("passt") is None:
        pytest.skip("passt is not installed")
    if not has_default_route():
        pytest.skip("passt needs a default route")

    def make(*vifs: str, dhcp: bool = True, **config: object) -> Shell:
        guest = uvm(
            linux,
            shell=True,
            ramdisk=cpio,
            cmdline=QUIET,
            devices=[parse(each) for each in vifs],
            **config,
        )
        assert isinstance(guest, Shell)
        up(guest, dhcp)
        return guest

    return make


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path) -> Iterator[int]:
    """The port of a web server on the loopback interface, with one file."""
    (tmp_path / "file").write_bytes(os.urandom(SIZE))

    def handler(*args: object) -> Quiet:
        return Quiet(*args, directory=str(tmp_path))  # type: ignore[arg-type]

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as made:  # type: ignore[arg-type]
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made.server_port
        made.shutdown()


def gateway(guest: Shell) -> str:
    return guest.run("ip route | awk '/^default/ {print $3}'").strip()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Names(socketserver.BaseRequestHandler):
    """A name server that knows one address for all names."""

    def handle(self) -> None:
        data, connection = self.request
        question = data[12:]
        answer = b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 60, 4) + bytes([203, 0, 113, 7])
        kind = question[question.index(b"\0") + 1 :][:2]
        counts = struct.pack(">HHHHH", 0x8180, 1, 1 if kind == b"\0\1" else 0, 0, 0)
        connection.sendto(
            data[:2] + counts + question + (answer if kind == b"\0\1" else b""),
            self.client_address,
        )


def test_user_network(boot: Callable[..., Shell], server: int, tmp_path: Path) -> None:
    forward = free_port()
    guest = boot(f"type=user,forward=tcp:127.0.0.1:{forward}-7000")
    assert re.search(r"inet \d", guest.run("ip addr show eth0"))
    assert "mtu 65516" in guest.run("ip link show eth0")
    # Down, with checksums that passt made and lengths that need all of a ring.
    host = gateway(guest)
    guest.run(f"wget -q -O /tmp/file http://{host}:{server}/file")
    theirs = guest.run("md5sum </tmp/file").split()[0]
    wanted = (tmp_path / "file").read_bytes()
    assert theirs == hashlib.md5(wanted).hexdigest()
    # Names, by a server of ours that the guest reaches at the gateway's address.
    with socketserver.ThreadingUDPServer(("127.0.0.1", 0), Names) as names:
        threading.Thread(target=names.serve_forever, daemon=True).start()
        port = names.server_address[1]
        found = guest.run(f"nslookup -type=a some.name.test {host}:{port}")
        assert "203.0.113.7" in found
        names.shutdown()
    # Up, through the forwarded port: the guest serves what it got.
    guest.run("httpd -p 7000 -h /tmp")
    with urllib.request.urlopen(f"http://127.0.0.1:{forward}/file", timeout=30) as answer:
        assert answer.read() == wanted


def test_two_queues_and_small_frames(boot: Callable[..., Shell], server: int) -> None:
    guest = boot("type=user,mtu=1500", vcpus=2)
    assert guest.run("ls -d /sys/class/net/eth0/queues/tx-*").count("tx-") == 2
    host = gateway(guest)
    for _ in range(3):
        guest.run(f"wget -q -O /tmp/file http://{host}:{server}/file")
        assert int(guest.run("stat -c %s /tmp/file")) == SIZE


def attach_and_detach(guest: Shell, times: int) -> None:
    domain = guest.domain.incarnation.domain

    def held() -> tuple[int, int, int, bool]:
        return (
            len(domain.grants.pins),
            len(domain.evtchn._backends),
            len(os.listdir("/proc/self/fd")),
            guest.host.store.exists("/local/domain/0/backend/vif"),
        )

    before: tuple[int, ...] = ()
    for i in range(times):
        assert guest.host.call(guest.domain.attach, parse("type=user")) == ("vif", 0)
        guest.run("until ip link set eth0 up 2>/dev/null; do sleep 0.02; done")
        guest.run("until ip link show eth0 | grep -q LOWER_UP; do sleep 0.02; done")
        guest.run(network.dhcp()[1])
        assert guest.domain.detach("vif", 0, 20)
        # A driver that has not noticed yet would take the next one of that number for the old one.
        guest.run(GONE)
        if i == 0:
            before = guest.call(held)
    assert guest.call(held) == before
    # Not even the folder that all of them were in.
    assert not before[-1]
    assert guest.call(guest.host.store.check) == []


def test_attach_and_detach(boot: Callable[..., Shell]) -> None:
    guest = boot("type=user")
    assert guest.domain.detach("vif", 0, 20)
    guest.run(GONE)
    attach_and_detach(guest, 3)


@pytest.mark.slow
def test_attach_and_detach_a_hundred_times(boot: Callable[..., Shell]) -> None:
    guest = boot("type=user")
    assert guest.domain.detach("vif", 0, 20)
    guest.run(GONE)
    attach_and_detach(guest, 100)


def test_two_domains_on_one_link(linux: Path, cpio: Path) -> None:
    class Tenant(Shell):
        """A guest on a host that is not its own."""

        def __init__(self, host: Host, number: int) -> None:
            self.host = host
            config = DomainConfig(
                kernel=linux, ramdisk=cpio, cmdline=QUIET, memory=192 << 20,
                name=f"guest{number}", devices=[parse("type=domain,link=between")],
            )  # fmt: skip
            self.domain = host.create(config)
            self.console = self.domain.console
            self.domain.start()

    with Host(1 << 30) as host:
        guests = [Tenant(host, number) for number in (1, 2)]
        for number, guest in enumerate(guests, 1):
            guest.console.expect("shell guest is ready\r?\n", BOOT_LIMIT)
            up(guest, dhcp=False)
            guest.run(f"ip addr add 10.9.9.{number}/24 dev eth0")
        one, two = guests
        assert "3 packets received" in one.run("ping -c 3 -i 0.2 10.9.9.2")
        assert "3 packets received" in two.run("ping -c 3 -i 0.2 -s 9000 10.9.9.1")
        two.run("iperf3 -s -D")
        for reverse in ("", "-R"):
            said = one.run(f"iperf3 -c 10.9.9.2 -t 1 -f m {reverse}", 40)
            rates = [float(rate) for rate in re.findall(r"([\d.]+) Mbits/sec", said)]
            assert rates, said
            assert rates[-1] > 10, said
