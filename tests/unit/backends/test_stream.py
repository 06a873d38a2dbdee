"""Proves the host's ends of consoles: files, pseudo-terminals and Unix sockets, with peers that come,
go, read slowly and come again.

The loop is the real one, turned by hand. Cannot see a guest (test_console_device, tests/system).
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hvmlite.backends.stream import AHEAD, KEPT, FileStream, PtyStream, SocketStream, Stream
from hvmlite.errors import UserError
from hvmlite.hypervisor.host import Host

from ..hypervisor.fakes import ScriptedEngine


class End:
    """The guest's side of a stream."""

    def __init__(self, stream: Stream) -> None:
        self.got = b""
        self.room = 1 << 20
        self.gone_on = 0
        stream.connect(self.receive, lambda: self.room, self.go_on)

    def receive(self, data: bytes) -> None:
        assert len(data) <= self.room
        self.room -= len(data)
        self.got += data

    def go_on(self) -> None:
        self.gone_on += 1


@pytest.fixture
def loop() -> Iterator[Host]:
    made = Host(ScriptedEngine(), 1 << 20)
    yield made
    made.close()


def turn(loop: Host, until: Callable[[], bool], seconds: float = 10.0) -> None:
    """Lets the loop run until something is so."""
    deadline = time.monotonic() + seconds

    def look() -> None:
        if until() or time.monotonic() > deadline:
            loop.stop()
        else:
            loop.timers.at(loop.clock.now() + 1_000_000, look)

    loop.call_soon(look)
    loop.run()
    assert time.monotonic() < deadline, "it does not happen"


# ---- files --------------------------------------------------------------------------------------


def test_a_file_is_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"old\n")
    said: list[str] = []
    stream = FileStream(path, said.append)
    stream.write(b"new\n")
    stream.close()
    stream.write(b"late\n")
    assert path.read_bytes() == b"old\nnew\n"
    assert said == []


def test_a_new_file_is_for_its_owner(tmp_path: Path) -> None:
    FileStream(tmp_path / "log", lambda _: None).close()
    assert stat.S_IMODE((tmp_path / "log").stat().st_mode) & 0o077 == 0


@pytest.mark.parametrize("kind", ["folder", "fifo", "missing folder"])
def test_no_file(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "log"
    if kind == "folder":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path = path / "log"
    with pytest.raises(UserError, match="log"):
        FileStream(path, lambda _: None)


def test_a_full_disk_is_told_once() -> None:
    said: list[str] = []
    stream = FileStream(Path("/dev/full"), said.append)
    stream.write(b"x")
    stream.write(b"y")
    assert said == ["/dev/full: No space left on device; output is lost from here on"]


# ---- sockets ------------------------------------------------------------------------------------


@pytest.fixture
def server(loop: Host, tmp_path: Path) -> Iterator[SocketStream]:
    made = SocketStream(loop, tmp_path / "s")
    yield made
    made.close()
    assert not (tmp_path / "s").exists()


def client(tmp_path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.connect(str(tmp_path / "s"))
    made.settimeout(10)
    return made


def read(peer: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = peer.recv(1 << 16)
        assert more
        data += more
    return data


def test_both_ways(loop: Host, server: SocketStream, tmp_path: Path) -> None:
    assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o600
    end = End(server)
    with client(tmp_path) as peer:
        peer.sendall(b"hello")
        turn(loop, lambda: end.got == b"hello")
        server.write(b"there")
        assert read(peer, 5) == b"there"


def test_clients_come_and_go(loop: Host, server: SocketStream, tmp_path: Path) -> None:
    end = End(server)
    for i in range(5):
        server.write(b"%d" % i)
        with client(tmp_path) as peer:
            peer.sendall(b"in")
            turn(loop, lambda i=i: len(end.got) == 2 * (i + 1))  # type: ignore[misc]
            assert read(peer, 1) == b"%d" % i
        turn(loop, lambda: not server._present)


def test_the_second_client_waits(loop: Host, server: SocketStream, tmp_path: Path) -> None:
    end = End(server)
    with client(tmp_path) as first, client(tmp_path) as second:
        second.sendall(b"two")
        first.sendall(b"one")
        turn(loop, lambda: end.got == b"one")
        first.close()
        turn(loop, lambda: end.got == b"onetwo")


def test_a_client_for_whom_no_descriptor_is_left(
    loop: Host, server: SocketStream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client waits, and the loop meanwhile is not called all the time."""
    calls: list[int] = []
    real = socket.socket.accept

    def accept(sock: socket.socket) -> tuple[socket.socket, object]:
        calls.append(1)
        if len(calls) == 1:
            raise OSError(errno.EMFILE, "Too many open files")
        return real(sock)

    monkeypatch.setattr(socket.socket, "accept", accept)
    begin = time.monotonic()
    peer = client(tmp_path)
    end = End(server)
    peer.send(b"x")
    turn(loop, lambda: end.got == b"x")
    assert len(calls) == 2
    assert time.monotonic() - begin >= 0.04
    peer.close()


def test_nobody_there_keeps_the_newest(loop: Host, server: SocketStream, tmp_path: Path) -> None:
    End(server)
    for i in range(30):
        assert server.room == AHEAD
        server.write(bytes([i]) * (1 << 16))
    with client(tmp_path) as peer:
        turn(loop, lambda: server._present)
        data = b""
        peer.setblocking(False)

        def take() -> bool:
            nonlocal data
            with contextlib.suppress(BlockingIOError):
                data += peer.recv(1 << 20)
            return len(data) == KEPT

        turn(loop, take)
    assert data == b"".join(bytes([i]) * (1 << 16) for i in range(14, 30))


def test_a_slow_reader_stops_the_guest(loop: Host, server: SocketStream, tmp_path: Path) -> None:
    end = End(server)
    sent = 0
    with client(tmp_path) as peer:
        turn(loop, lambda: server._present)
        while server.room >= 2048:
            server.write(b"x" * 2048)
            sent += 2048
        assert len(server._waiting) <= AHEAD
        assert end.gone_on == 0
        got = 0
        peer.setblocking(False)

        def take() -> bool:
            nonlocal got
            with contextlib.suppress(BlockingIOError):
                got += len(peer.recv(1 << 20))
            return got == sent

        turn(loop, take)
        assert end.gone_on == 1
        assert server.room == AHEAD


def test_a_reader_that_goes_frees_the_guest(
    loop: Host, server: SocketStream, tmp_path: Path
) -> None:
    end = End(server)
    with client(tmp_path):
        turn(loop, lambda: server._present)
        while server.room >= 2048:
            server.write(b"x" * 2048)
    turn(loop, lambda: end.gone_on == 1)
    assert server.room == AHEAD


def test_a_guest_that_does_not_read(loop: Host, server: SocketStream, tmp_path: Path) -> None:
    """The sender waits, is let go when it leaves, and the next one gets its turn."""
    end = End(server)
    end.room = 10
    with client(tmp_path) as peer:
        peer.sendall(b"x" * 30)
        turn(loop, lambda: end.got == b"x" * 10)
        turn(loop, lambda: not server._reading)
        end.room = 20
        turn(loop, lambda: end.got == b"x" * 30)
        end.room = 0
        peer.sendall(b"never")
        turn(loop, lambda: not server._reading)
    turn(loop, lambda: not server._present)
    with client(tmp_path) as peer:
        end.room = 100
        peer.sendall(b"next")
        turn(loop, lambda: end.got.endswith(b"next"))


def test_a_client_that_only_listens_from_now_on(
    loop: Host, server: SocketStream, tmp_path: Path
) -> None:
    end = End(server)
    with client(tmp_path) as peer:
        peer.sendall(b"question")
        peer.shutdown(socket.SHUT_WR)
        turn(loop, lambda: end.got == b"question" and server._ended)
        server.write(b"answer")
        assert read(peer, 6) == b"answer"
    turn(loop, lambda: not server._present)


def test_without_a_guest_input_waits(loop: Host, server: SocketStream, tmp_path: Path) -> None:
    with client(tmp_path) as peer:
        peer.sendall(b"early")
        turn(loop, lambda: server._present and not server._reading)
        end = End(server)
        turn(loop, lambda: end.got == b"early")
        server.disconnect()
        peer.sendall(b"late")
        turn(loop, lambda: not server._reading)
        other = End(server)
        turn(loop, lambda: other.got == b"late")
        assert end.got == b"early"


def test_an_abandoned_socket_is_replaced(loop: Host, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(tmp_path / "s"))
    SocketStream(loop, tmp_path / "s").close()


def test_what_is_in_the_way_stays(loop: Host, server: SocketStream, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="s: Address already in use"):
        SocketStream(loop, tmp_path / "s")
    (tmp_path / "file").write_text("precious")
    with pytest.raises(UserError, match="Address already in use"):
        SocketStream(loop, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "precious"
    with pytest.raises(UserError, match="longer than"):
        SocketStream(loop, tmp_path / ("x" * 120))


# ---- pseudo-terminals ---------------------------------------------------------------------------


def test_a_terminal_that_is_opened_and_closed(loop: Host) -> None:
    stream = PtyStream(loop)
    end = End(stream)
    assert stream.tty.startswith("/dev/pts/")
    for i in range(3):
        stream.write(b"prompt%d> " % i)
        line = os.open(stream.tty, os.O_RDWR | os.O_NOCTTY)
        try:
            turn(loop, lambda: stream._present)
            # Raw: no echo, no signal, no line discipline.
            os.write(line, b"\x03\r")
            turn(loop, lambda i=i: end.got == b"\x03\r" * (i + 1))  # type: ignore[misc]
            assert os.read(line, 100) == b"prompt%d> " % i
        finally:
            os.close(line)
        turn(loop, lambda: not stream._present)
    assert stream.room == AHEAD
    stream.close()
    assert not Path(stream.tty).exists()


def test_an_idle_terminal_costs_nothing(loop: Host) -> None:
    """A hung-up terminal is always ready: the loop must not be told so without end."""
    stream = PtyStream(loop)
    End(stream)
    begin, cpu = time.monotonic(), time.process_time()
    turn(loop, lambda: time.monotonic() - begin > 0.3)
    assert not loop._writers and len(loop._readers) == 1
    assert time.process_time() - cpu < 0.2
    stream.close()
