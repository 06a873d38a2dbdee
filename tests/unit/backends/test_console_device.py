"""Proves further consoles: the nodes as xl writes them, bytes both ways, a guest that waits for a slow
reader, and frontends that lie.

The frontend is scripted. Cannot see Linux's driver (tests/system/test_channels.py).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from hvmlite.errors import UserError
from hvmlite.hypervisor.memory import Page
from hvmlite.toolstack.devices.console import ChannelSpec, Connection, parse
from hvmlite.toolstack.domain import Domain
from hvmlite.toolstack.host import Host

from ..toolstack.conftest import Make
from .frontend import Frontend

INITIALISING, INIT_WAIT, INITIALISED, CONNECTED, CLOSING, CLOSED = 1, 2, 3, 4, 5, 6
IN_CONS, IN_PROD, OUT_CONS, OUT_PROD = 768, 769, 770, 771


class Rig:
    """A domain with one channel on a socket, and the frontend of it."""

    def __init__(self, host: Host, domain: Domain, path: Path) -> None:
        self.host = host
        self.domain = domain
        self.path = path / "s"
        self.log = path / "log"
        self.messages: list[str] = []
        domain.on_message = self.messages.append
        self.spec = ChannelSpec(Connection("socket", self.path, self.log), "org.test")
        assert domain.attach(self.spec) == ("console", 1)
        self.front = Frontend(host, domain, "console", 1)
        self.page: Page
        self.peer = socket.socket(socket.AF_UNIX)
        self.peer.settimeout(10)

    def connect(self) -> None:
        front = self.front
        front.state(INITIALISING)
        self.page = front.page()
        self.page.u8[:] = bytes(4096)
        self.port = front.port()
        front.write(ring_ref=front.grant(self.page), port=self.port)
        front.state(INITIALISED)

    def write(self, data: bytes) -> int:
        """What a guest does; returns how much found room."""
        words = self.page.u32
        room = 2048 - (words[OUT_PROD] - words[OUT_CONS])
        for byte in data[:room]:
            self.page.u8[1024 + words[OUT_PROD] % 2048] = byte
            words[OUT_PROD] += 1
        self.front.kick(self.port)
        return min(room, len(data))

    def read(self) -> bytes:
        words = self.page.u32
        data = bytearray()
        while words[IN_CONS] != words[IN_PROD]:
            data.append(self.page.u8[words[IN_CONS] % 1024])
            words[IN_CONS] += 1
        self.front.kick(self.port)
        return bytes(data)


@pytest.fixture
def rig(host: Host, make: Make, tmp_path: Path) -> Iterator[Rig]:
    made = Rig(host, make(), tmp_path)
    yield made
    made.peer.close()


def test_nodes(rig: Rig) -> None:
    front, store = rig.front, rig.host.store

    def read(path: str) -> bytes | None:
        return rig.host.call(lambda: store.read(path))

    assert {name: read(f"{front.home}/{name}") for name in ("limit", "type", "output", "tty")} == {
        "limit": b"1048576",
        "type": b"ioemu",
        "output": b"chardev:libxl-channel1",
        "tty": b"",
    }
    assert read(f"{front.home}/name") == b"org.test"
    assert front.backend("name") == "org.test"
    assert front.backend("connection") == "socket"
    assert front.backend("path") == str(rig.path)
    assert front.backend("protocol") == "vt100"
    assert front.backend_state() == INIT_WAIT


def test_both_ways_and_again(rig: Rig) -> None:
    rig.peer.connect(str(rig.path))
    for i in range(3):
        rig.connect()
        assert rig.front.backend_state() == CONNECTED
        assert rig.write(b"out%d" % i) == 4
        assert rig.peer.recv(100) == b"out%d" % i
        rig.peer.sendall(b"in%d" % i)
        rig.front.wait(lambda i=i: rig.read() == b"in%d" % i)  # type: ignore[misc]
        assert rig.front.pending(rig.port)
        rig.front.state(CLOSED)
        assert rig.front.grants_in_use() == 0
    assert rig.log.read_bytes() == b"out0out1out2"
    rig.domain.detach("console", 1)
    assert not rig.path.exists()


def test_a_slow_reader_stops_the_guest_and_input_goes_on(rig: Rig) -> None:
    rig.connect()
    rig.peer.connect(str(rig.path))
    rig.peer.sendall(b"1")
    rig.front.wait(lambda: rig.read() == b"1")
    sent = 0
    while (done := rig.write(b"x" * 2048)) == 2048:
        sent += done
        assert sent < 1 << 22
    sent += done
    rig.peer.sendall(b"still heard")
    rig.front.wait(lambda: rig.read() == b"still heard")
    rig.front.pending(rig.port)
    got = 0
    while got < sent:
        got += len(rig.peer.recv(1 << 16))
    rig.front.wait(lambda: rig.front.pending(rig.port))
    assert rig.write(b"y") == 1
    assert rig.peer.recv(10) == b"y"


def test_a_terminal(host: Host, make: Make) -> None:
    domain = make(devices=[ChannelSpec(Connection("pty"), "tty")])
    front = Frontend(host, domain, "console", 1)
    tty = host.call(lambda: host.store.read(f"{front.home}/tty"))
    assert tty is not None
    assert Path(tty.decode()).is_char_device()


def test_the_first_console_too(host: Host, make: Make, tmp_path: Path) -> None:
    log = tmp_path / "log"
    domain = make(console=Connection("pty"), console_log=log)
    home = f"/local/domain/{domain.id}/console"
    assert host.call(lambda: host.store.read(f"{home}/tty")) == domain.tty.encode()
    line = os.open(domain.tty, os.O_RDWR | os.O_NOCTTY)
    try:
        os.write(line, b"typed")
        Frontend(host, domain, "console", 0).wait(
            lambda: (
                host.call(
                    lambda: domain.incarnation.domain.memory.read(0xFEFFF000, 5)  # type: ignore[arg-type]
                )
                == b"typed"
            )
        )
        host.call(domain.console.received, b"said")
        assert os.read(line, 10) == b"said"
    finally:
        os.close(line)
    assert log.read_bytes() == b"said"
    domain.destroy()
    assert not Path(domain.tty).exists()


def test_a_connection_that_cannot_be(host: Host, make: Make, tmp_path: Path) -> None:
    bad = Connection("socket", tmp_path / "missing" / "s")
    with pytest.raises(UserError, match="No such file"):
        make(console=bad)
    with pytest.raises(UserError, match="No such file"):
        make(devices=[ChannelSpec(bad, "x")])
    good = ChannelSpec(Connection("socket", tmp_path / "s", tmp_path), "x")
    with pytest.raises(UserError, match="Is a directory"):
        make(devices=[good])
    assert not (tmp_path / "s").exists()
    assert host.domains == {}


# ---- frontends that lie -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ({"ring_ref": 4000}, "there is no reference 4000"),
        ({"ring_ref": "-1"}, "its node ring-ref is '-1'"),
        ({"ring_ref": ""}, "its node ring-ref is ''"),
        ({"port": 0}, "its node port is '0'"),
        ({"port": 1 << 17}, "its node port is"),
        ({"port": 2}, ""),
        ({"port": 900}, ""),
    ],
)
def test_nodes_that_lie(rig: Rig, nodes: dict[str, object], said: str) -> None:
    front = rig.front
    front.write(ring_ref=front.grant(front.page()), port=front.port())
    front.write(**nodes)
    front.state(INITIALISED)
    assert front.backend_state() == CLOSING
    assert front.grants_in_use() == 0
    assert len(rig.messages) == 1 and said in rig.messages[0]
    rig.connect()
    assert front.backend_state() == CONNECTED


@pytest.mark.parametrize(
    ("index", "value"), [(OUT_PROD, 2049), (OUT_PROD, 0xFFFFFFFF), (IN_CONS, 1), (OUT_CONS, 1)]
)
def test_indexes_that_lie(rig: Rig, index: int, value: int) -> None:
    rig.connect()
    rig.page.u32[index] = value
    rig.front.kick(rig.port)
    assert rig.front.backend_state() == CLOSING
    assert "ring indexes that cannot be" in rig.messages[0]
    assert rig.front.grants_in_use() == 0
    rig.connect()
    rig.peer.connect(str(rig.path))
    rig.write(b"fine")
    assert rig.peer.recv(10) == b"fine"


def test_a_page_that_is_granted_read_only(rig: Rig) -> None:
    front = rig.front
    front.write(ring_ref=front.grant(front.page(), readonly=True), port=front.port())
    front.state(INITIALISED)
    assert front.backend_state() == CLOSING
    assert len(rig.messages) == 1


# ---- xl's syntax --------------------------------------------------------------------------------


def test_syntax() -> None:
    spec = parse("name=org.my, connection=socket, path=/run/s,backend=0,")
    assert (spec.name, spec.connection) == ("org.my", Connection("socket", Path("/run/s")))
    assert parse("connection=PTY,name=x,log=l").connection == Connection("pty", None, Path("l"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "lacks connection="),
        ("connection=pty", "lacks name="),
        ("name=x,connection=telnet", "connection='telnet' is not one of pty, socket, file"),
        ("name=x,connection=socket", "connection=socket needs a path="),
        ("name=x,connection=pty,path=/x", "connection=pty takes no path="),
        ("name=x,connection=pty,color=red", "no key 'color'; known: "),
        ("name=x,name=y,connection=pty", "name= is there twice"),
        ("name=x,pty", "'pty' is not of the form key=value"),
        ("name=x\ty,connection=pty", "is no text"),
        ("name=x,connection=pty,backend=other", "domain 0 only"),
    ],
)
def test_bad_syntax(text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        parse(text)
