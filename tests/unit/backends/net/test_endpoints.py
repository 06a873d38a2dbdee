"""Proves what interfaces are attached to: streams, Unix sockets, links between domains, taps; that
each says how much it takes; and what a peer may not do.

Cannot see passt with a real guest, nor a tap's kernel side beyond its own frames.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvmlite.backends.net import user
from hvmlite.backends.net.frame import Frame
from hvmlite.backends.net.link import MOST_ADDRESSES, Port
from hvmlite.backends.net.stream import Stream
from hvmlite.backends.net.tap import Tap, to_virtio, virtio_net_hdr
from hvmlite.backends.net.unix import SocketEndpoint
from hvmlite.backends.net.user import Forward, UserNetwork
from hvmlite.errors import UserError
from hvmlite.hypervisor.clock import Clock, TimerQueue
from hvmlite.toolstack.devices.vif import VifSpec

from .netfront import MAC, OTHER, NetFront, ethernet
from .packets import tcp, udp
from .test_netback import Host, Make


class Loop:
    """As much of the host's loop as endpoints use."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.timers = TimerQueue(self.clock)
        self.readers: dict[int, Callable[[], None]] = {}
        self.writers: dict[int, Callable[[], None]] = {}

    def add_reader(self, fd: int, callback: Callable[[], None]) -> None:
        self.readers[fd] = callback

    def remove_reader(self, fd: int) -> None:
        self.readers.pop(fd, None)

    def add_writer(self, fd: int, callback: Callable[[], None]) -> None:
        self.writers[fd] = callback

    def remove_writer(self, fd: int) -> None:
        self.writers.pop(fd, None)

    def turn(self) -> None:
        for callback in [*self.readers.values(), *self.writers.values()]:
            callback()


def frame(data: bytes, **what: Any) -> Frame:
    return Frame([data[:7], data[7:]], len(data), **what)


def packed(*frames: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(data)) + data for data in frames)


class Peer:
    """A stream, and the other end of its socket."""

    def __init__(self) -> None:
        self.loop = Loop()
        ours, self.socket = socket.socketpair()
        self.got: list[bytes] = []
        self.room = 1 << 30
        self.ended: list[str] = []
        self.wakes = 0
        self.stream = Stream(
            cast(Any, self.loop), ours, receive=self.receive, has_room=self.wake,
            ended=self.ended.append,
        )  # fmt: skip
        self.socket.settimeout(5)

    def receive(self, frames: Any) -> int:
        taken = min(len(frames), self.room)
        self.room -= taken
        self.got += [each.data() for each in frames[:taken]]
        return taken

    def wake(self) -> None:
        self.wakes += 1

    def close(self) -> None:
        self.stream.close()
        self.socket.close()


@pytest.fixture
def peer() -> Iterator[Peer]:
    made = Peer()
    yield made
    made.close()


@given(st.lists(st.integers(14, 3000), max_size=30), st.lists(st.integers(1, 4000), min_size=1))
@settings(max_examples=40, deadline=None)
def test_stream_in_any_pieces(sizes: list[int], pieces: list[int]) -> None:
    peer = Peer()
    frames = [bytes([i]) * size for i, size in enumerate(sizes)]
    wire = packed(*frames)
    at = i = 0
    while at < len(wire):
        size = pieces[i % len(pieces)]
        peer.socket.sendall(wire[at : at + size])
        peer.loop.turn()
        at, i = at + size, i + 1
    assert peer.got == frames
    peer.close()


@given(st.lists(st.integers(14, 65535), max_size=40))
@settings(max_examples=40, deadline=None)
def test_stream_sends_frames_alone_or_few_together(sizes: list[int]) -> None:
    """Of what is sent at once, a reader never waits for more than the second of two blocks."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    loop: Any = Loop()
    stream = Stream(
        loop, ours, receive=len, has_room=lambda: None, ended=lambda reason: None
    )  # fmt: skip
    frames = [bytes([i]) * size for i, size in enumerate(sizes)]
    left, wire = [frame(data) for data in frames], b""
    theirs.settimeout(5)
    while left:
        taken = stream.send(left)
        left = left[taken:]
        got = sum(4 + len(data) for data in frames[: len(frames) - len(left)])
        while len(wire) < got:
            piece = theirs.recv(1 << 20)
            (first,) = struct.unpack_from(">I", piece)
            assert len(piece) == 4 + first or len(piece) <= 32 << 10
            wire += piece
    assert wire == packed(*frames)
    stream.close()
    theirs.close()


def test_stream_waits_for_its_reader(peer: Peer) -> None:
    frames = [bytes([i]) * 60000 for i in range(40)]
    sent = 0
    peer.socket.setblocking(False)
    peer.room = 3
    wire = packed(*frames)
    for _ in range(300):
        with contextlib.suppress(BlockingIOError):
            sent += peer.socket.send(wire[sent : sent + 100000])
        peer.loop.turn()
        if not peer.room:
            peer.room = 3
            peer.stream.resume()
    assert peer.got == frames


def test_stream_out_with_back_pressure(peer: Peer) -> None:
    frames = [bytes([i]) * 50000 for i in range(60)]
    left = list(frames)
    got = b""
    peer.socket.setblocking(False)
    for _ in range(400):
        if left:
            taken = peer.stream.send([frame(data) for data in left])
            del left[:taken]
        with_room = peer.wakes
        with contextlib.suppress(BlockingIOError):
            got += peer.socket.recv(300000)
        peer.loop.turn()
        assert peer.wakes >= with_room
    assert got == packed(*frames)
    assert peer.wakes


@pytest.mark.parametrize("length", [0, 13, 65536, 0xFFFF_FFFF])
def test_stream_of_nonsense(peer: Peer, length: int) -> None:
    peer.socket.sendall(packed(b"x" * 20) + struct.pack(">I", length) + b"x" * 100)
    peer.loop.turn()
    assert peer.ended == [f"it sent a frame of {length} bytes"]
    assert peer.stream.send([frame(b"x" * 20)]) == 1
    assert not peer.loop.readers


def test_stream_that_ends(peer: Peer) -> None:
    peer.socket.close()
    peer.stream.send([frame(b"x" * 20)])
    peer.loop.turn()
    assert len(peer.ended) == 1


# ---- sockets ------------------------------------------------------------------------------------


def test_server_and_clients(tmp_path: Path) -> None:
    loop: Any = Loop()
    path = str(tmp_path / "socket")
    said: list[str] = []
    server = SocketEndpoint(loop, said.append, path, server=True)
    assert server.send([frame(b"x" * 20)]) == 1
    for _ in range(3):
        client = SocketEndpoint(loop, said.append, path, server=False)
        got: list[bytes] = []
        server.receive = lambda frames, got=got: (  # type: ignore[misc]
            got.extend(each.data() for each in frames) or len(frames)
        )
        loop.turn()
        client.send([frame(b"abc" * 20)])
        loop.turn()
        assert got == [b"abc" * 20]
        client.close()
        loop.turn()
    server.close()
    assert not Path(path).exists()
    assert said == []
    with pytest.raises(UserError, match="cannot connect to"):
        SocketEndpoint(loop, said.append, path, server=False)


def test_server_where_one_died(tmp_path: Path) -> None:
    loop: Any = Loop()
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    server = SocketEndpoint(loop, print, path, server=True)
    with pytest.raises(UserError, match="cannot listen at"):
        SocketEndpoint(loop, print, path, server=True)
    server.close()
    Path(path).write_text("a file")
    with pytest.raises(UserError, match="cannot listen at"):
        SocketEndpoint(loop, print, path, server=True)
    assert Path(path).read_text() == "a file"


# ---- links --------------------------------------------------------------------------------------


def ports(loop: Any, count: int) -> tuple[list[Port], list[list[bytes]], list[list[int]]]:
    made = [Port(loop, "link a") for _ in range(count)]
    got: list[list[bytes]] = [[] for _ in made]
    room = [[1 << 30] for _ in made]
    for port, its, left in zip(made, got, room, strict=True):

        def receive(frames: Any, its: list[bytes] = its, left: list[int] = left) -> int:
            taken = min(left[0], len(frames))
            left[0] -= taken
            its.extend(each.data() for each in frames[:taken])
            return taken

        port.receive = receive
    return made, got, room


def test_switch_learns() -> None:
    loop: Any = Loop()
    (a, b, c), got, _ = ports(loop, 3)
    other = Port(loop, "link b")
    assert a.send([frame(ethernet(b"1", OTHER, MAC))]) == 1
    assert b.send([frame(ethernet(b"2", MAC, OTHER))] * 2) == 2
    assert a.send([frame(ethernet(b"3", OTHER, MAC))]) == 1
    assert c.send([frame(ethernet(b"4", b"\xff" * 6, b"\2" * 6))]) == 1
    assert [[data[14:] for data in each] for each in got] == [
        [b"2", b"2", b"4"], [b"1", b"3", b"4"], [b"1"],
    ]  # fmt: skip
    b.close()
    assert a.send([frame(ethernet(b"5", OTHER, MAC))]) == 1
    assert got[2][-1][14:] == b"5"
    for port in (a, c, other):
        port.close()
        port.close()


def test_switch_waits_but_not_for_ever() -> None:
    loop: Any = Loop()
    now = [10]
    loop.clock.now = loop.timers.now = lambda: now[0]
    (a, b), got, room = ports(loop, 2)
    wakes: list[int] = []
    a.has_room = lambda: wakes.append(1)
    b.send([frame(ethernet(b"hello", MAC, OTHER))])
    room[1][0] = 1
    to_b = [frame(ethernet(bytes([i]), OTHER, MAC)) for i in range(3)]
    assert a.send(to_b) == 1
    room[1][0] = 1
    b.resume()
    assert wakes == [1]
    assert a.send(to_b[1:]) == 1
    now[0] += 2_000_000_000
    loop.timers.run(now[0])
    assert wakes == [1, 1]
    # By now it is lost; what is sent to others goes on.
    assert a.send(to_b[2:]) == 1
    room[1][0] = 5
    b.resume()
    assert a.send(to_b[:1]) == 1
    assert [data[14] for data in got[1]] == [0, 1, 0]
    a.close()
    b.close()


def test_switch_does_not_wait_for_one_that_trickles() -> None:
    """It takes a frame just before the others would be lost, over and over."""
    loop: Any = Loop()
    now = [10]
    loop.clock.now = loop.timers.now = lambda: now[0]
    (a, b), got, room = ports(loop, 2)
    b.send([frame(ethernet(b"hello", MAC, OTHER))])
    room[1][0] = 0
    to_b = [frame(ethernet(bytes([i]), OTHER, MAC)) for i in range(3)]
    waited = 0
    for _ in range(100):
        if a.send(to_b) < 3:
            step = 900_000_000 if waited < 900_000_000 else 3_000_000
            now[0] += step
            waited += step
            loop.timers.run(now[0])
        room[1][0] = 1
        b.resume()
    assert waited < 1_400_000_000
    assert len(got[1]) >= 99
    # Where it takes what there is, there is patience again.
    room[1][0] = 1000
    for _ in range(100):
        assert a.send(to_b) == 3
    room[1][0] = 0
    assert a.send(to_b) == 0
    a.close()
    b.close()


def test_switch_remembers_no_end_of_addresses() -> None:
    loop: Any = Loop()
    (a, b), _, _ = ports(loop, 2)
    for i in range(MOST_ADDRESSES + 100):
        a.send([frame(ethernet(b"x", b"\xff" * 6, b"\2\0" + i.to_bytes(4, "big")))])
    assert len(a._switch.where) == MOST_ADDRESSES
    a.close()
    assert not b._switch.where
    b.close()


def test_between_two_domains(host: Host, make: Make) -> None:
    fronts = []
    for mac in (MAC, OTHER):
        fronts.append(NetFront(host, make(), VifSpec(link="one", mac=mac.hex(":"))))
        fronts[-1].connect()
        fronts[-1].post(20)
    a, b = fronts
    data = tcp(4, bytes(range(256)) * 30)
    a.send(data, 1)
    assert [status for _, status in a.go()] == [0, 0]
    assert [each for each, _, _ in b.received()] == [data]
    back = ethernet(b"z" * 5000, MAC, OTHER)
    b.send(back)
    b.go()
    assert [each for each, _, _ in a.received()] == [back]
    b.domain.destroy()
    a.send(data, 1)
    assert [status for _, status in a.go()] == [0, 0]


# ---- user networks ------------------------------------------------------------------------------


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_no_passt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(user.ENVIRONMENT, "no-such-passt")
    with pytest.raises(UserError, match="install the package passt"):
        UserNetwork(cast(Any, Loop()), print)


def test_passt_that_dies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = script(tmp_path / "passt", "echo 'no luck today' >&2; exit 1")
    monkeypatch.setenv(user.ENVIRONMENT, fake)
    loop = Loop()
    said: list[str] = []
    network = UserNetwork(cast(Any, loop), said.append)
    deadline = time.monotonic() + 10
    while not said and time.monotonic() < deadline:
        loop.turn()
        time.sleep(0.01)
    assert said == ["lost its network: passt ended: no luck today"]
    assert network.send([frame(b"x" * 20)]) == 1
    network.close()


def test_passt_is_told_and_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told = tmp_path / "told"
    fake = script(tmp_path / "passt", f'echo "$@" >{told}.new; mv {told}.new {told}; exec sleep 60')
    monkeypatch.setenv(user.ENVIRONMENT, fake)
    forwards = [Forward("tcp", "127.0.0.1", _free_port(), 22), Forward("udp", "", _free_port(), 53)]
    network = UserNetwork(cast(Any, Loop()), print, mtu=1500, forwards=forwards)
    while not told.exists():
        time.sleep(0.01)
    words = told.read_text()
    assert "-m 1500" in words
    assert f"-t 127.0.0.1/{forwards[0].port}:22" in words
    assert f"-u {forwards[1].port}:53" in words
    network.close()
    with pytest.raises(ProcessLookupError):
        os.kill(network.pid, 0)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_port_that_is_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match="cannot forward tcp port"):
            Forward("tcp", "127.0.0.1", taken.getsockname()[1], 22).check()


# ---- taps ---------------------------------------------------------------------------------------


def test_virtio_headers() -> None:
    assert to_virtio(frame(ethernet(b"x" * 50))) == bytes(10)
    data = udp(6, b"x" * 50)
    made = virtio_net_hdr.unpack(to_virtio(frame(data, csum_blank=True)) or b"")
    assert (made.flags, made.csum_start, made.csum_offset) == (1, 54, 6)
    data = tcp(4, bytes(5000))
    blank = frame(data, csum_blank=True, gso_type=1, gso_size=1448)
    made = virtio_net_hdr.unpack(to_virtio(blank) or b"")
    assert (made.gso_type, made.gso_size, made.hdr_len) == (1, 1448, 54)
    assert to_virtio(frame(ethernet(b"x" * 50), csum_blank=True)) is None


@pytest.fixture
def tap() -> Iterator[tuple[Loop, Tap]]:
    loop = Loop()
    try:
        made = Tap(cast(Any, loop))
    except UserError as error:
        pytest.skip(str(error))
    yield loop, made
    made.close()


def test_tap(tap: tuple[Loop, Tap]) -> None:
    loop, made = tap
    got: list[bytes] = []
    made.receive = lambda frames: got.extend(each.data() for each in frames) or len(frames)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0x0300) as raw:
        raw.bind((made.name, 3))
        raw.settimeout(5)
        # As bound: family, protocol, kind of packet, kind of hardware, then its address.
        address: bytes = raw.getsockname()[4]
        to_host = ethernet(b"x" * 50, address, MAC)
        assert made.send([frame(to_host), frame(b"\0" * 14, csum_blank=True)]) == 2
        while raw.recv(4096) != to_host:
            pass
        raw.send(ethernet(b"y" * 50, MAC, OTHER))
    deadline = time.monotonic() + 5
    while ethernet(b"y" * 50, MAC, OTHER) not in got and time.monotonic() < deadline:
        loop.turn()
    assert ethernet(b"y" * 50, MAC, OTHER) in got


def test_tap_that_cannot_be() -> None:
    with pytest.raises(UserError, match="cannot"):
        Tap(cast(Any, Loop()), bridge="no-such-br")
