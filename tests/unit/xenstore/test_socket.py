"""Proves the tools' transport over real Unix sockets, driven by a minimal loop in this process.

Xen's own xenstore-* tools are tried where they are installed, in a second thread.
"""

from __future__ import annotations

import contextlib
import os
import random
import selectors
import shutil
import socket
import struct
import subprocess
import threading
import time

import pytest

from hvmlite.abi.xs_wire import XS_DIRECTORY, XS_READ, XS_WATCH, XS_WATCH_EVENT
from hvmlite.errors import UserError
from hvmlite.xenstore import socket as socket_module
from hvmlite.xenstore.server import XenStore
from hvmlite.xenstore.socket import SocketServer


class Loop:
    """The part of a host loop that the transport needs."""

    def __init__(self):
        self._selector = selectors.DefaultSelector()
        self._callbacks = {}

    def _set(self, fd, event, callback):
        callbacks = self._callbacks.setdefault(fd, {})
        if callback is None:
            del callbacks[event]
        else:
            assert event not in callbacks
            callbacks[event] = callback
        events = sum(callbacks)
        if not events:
            del self._callbacks[fd]
            self._selector.unregister(fd)
        elif len(callbacks) == 1 and callback is not None:
            self._selector.register(fd, events)
        else:
            self._selector.modify(fd, events)

    def add_reader(self, fd, callback):
        self._set(fd, selectors.EVENT_READ, callback)

    def remove_reader(self, fd):
        self._set(fd, selectors.EVENT_READ, None)

    def add_writer(self, fd, callback):
        self._set(fd, selectors.EVENT_WRITE, callback)

    def remove_writer(self, fd):
        self._set(fd, selectors.EVENT_WRITE, None)

    @property
    def watched(self):
        return len(self._callbacks)

    def turn(self, timeout=0.0):
        """One round; whether anything happened."""
        ready = self._selector.select(timeout)
        for key, events in ready:
            for event in (selectors.EVENT_READ, selectors.EVENT_WRITE):
                callback = self._callbacks.get(key.fd, {}).get(event)
                if events & event and callback is not None:
                    callback()
        return bool(ready)

    def spin(self, rounds=200):
        for _ in range(rounds):
            if not self.turn():
                break


class Client:
    def __init__(self, path, loop):
        self.loop = loop
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(os.fspath(path))
        self.socket.setblocking(False)
        self.buffer = bytearray()
        loop.spin()

    def send(self, kind, payload, times=1):
        self.socket.sendall((struct.pack("<IIII", kind, 1, 0, len(payload)) + payload) * times)

    def receive(self):
        self.loop.spin()
        while True:
            try:
                data = self.socket.recv(1 << 20)
            except BlockingIOError:
                break
            if not data:
                break
            self.buffer += data
            self.loop.spin()
        found = []
        at = 0
        while len(self.buffer) >= at + 16:
            kind, _, _, length = struct.unpack_from("<IIII", self.buffer, at)
            if len(self.buffer) < at + 16 + length:
                break
            found.append((kind, bytes(self.buffer[at + 16 : at + 16 + length])))
            at += 16 + length
        self.buffer = self.buffer[at:]
        return found

    def ask(self, kind, payload):
        self.send(kind, payload)
        return self.receive()


@pytest.fixture
def loop():
    return Loop()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "xenstored.sock"


@pytest.fixture
def server(loop, path):
    store = XenStore()
    store.write("/x", b"value")
    server = SocketServer(store, loop, path)
    server.store = store
    yield server
    server.close()
    assert loop.watched == 0
    assert not path.exists()


@pytest.fixture
def client(server, path, loop):
    client = Client(path, loop)
    yield client
    client.socket.close()


def test_request_and_reply(client):
    assert client.ask(XS_READ, b"/x\0") == [(XS_READ, b"value")]


def test_only_the_owner_may_connect(server, path):
    assert path.stat().st_mode & 0o777 == 0o600


def test_several_clients(server, path, loop):
    clients = [Client(path, loop) for _ in range(20)]
    for index, client in enumerate(clients):
        client.ask(XS_WATCH, b"/x\0%d\0" % index)
    server.store.write("/x", b"new")
    for index, client in enumerate(clients):
        assert client.receive() == [(XS_WATCH_EVENT, b"/x\0%d\0" % index)]
    for client in clients:
        client.socket.close()
    loop.spin()
    assert not server.store.daemon.connections
    assert loop.watched == 1


def test_large_replies_to_a_slow_reader(server, client):
    server.store.write("/x", b"v" * 4000)
    client.send(XS_READ, b"/x\0", 600)
    (connection,) = server.store.daemon.connections
    client.loop.spin()
    assert 0 < connection.output_size < 2 << 20
    assert client.receive() == [(XS_READ, b"v" * 4000)] * 600
    assert connection.output_size == 0


def test_input_is_not_read_while_output_waits(server, client):
    server.store.write("/x", b"v" * 4000)
    request = struct.pack("<IIII", XS_READ, 1, 0, 3) + b"/x\0"
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while sent < 10 << 20:
            sent += client.socket.send(request * 500)
            client.loop.spin()
    assert sent < 10 << 20
    (connection,) = server.store.daemon.connections
    assert not connection.wants_input
    assert connection.output_size < 2 << 20
    replies = client.receive()
    assert len(replies) == sent // len(request)


def test_garbage_ends_one_client_only(server, path, loop, client):
    rng = random.Random(1)
    for _ in range(30):
        bad = Client(path, loop)
        bad.socket.send(rng.randbytes(5000))
        loop.spin()
        with contextlib.suppress(BlockingIOError, ConnectionError):
            while bad.socket.recv(65536):
                pass
        bad.socket.close()
    loop.spin()
    assert client.ask(XS_READ, b"/x\0") == [(XS_READ, b"value")]
    assert len(server.store.daemon.connections) == 1


def test_client_that_leaves_with_output_pending(server, path, loop):
    server.store.mkdir("/big")
    client = Client(path, loop)
    client.send(XS_DIRECTORY, b"/\0", 500)
    client.socket.close()
    loop.spin()
    assert not server.store.daemon.connections


def test_client_that_shuts_down_one_way(server, path, loop):
    client = Client(path, loop)
    client.send(XS_READ, b"/x\0")
    client.socket.shutdown(socket.SHUT_WR)
    assert client.receive() == [(XS_READ, b"value")]
    client.socket.close()
    loop.spin()
    assert not server.store.daemon.connections


def test_number_of_clients_is_bounded(server, path, loop, monkeypatch):
    monkeypatch.setattr(socket_module, "MAX_CLIENTS", 3)
    clients = [Client(path, loop) for _ in range(5)]
    assert len(server.store.daemon.connections) == 3
    assert clients[4].ask(XS_READ, b"/x\0") == []
    clients[0].socket.close()
    clients[1].socket.close()
    loop.spin()
    assert len(server.store.daemon.connections) == 3
    assert clients[4].receive() == [(XS_READ, b"value")]
    for client in clients:
        client.socket.close()
    loop.spin()


def test_close_drops_clients(loop, path):
    server = SocketServer(XenStore(), loop, path)
    client = Client(path, loop)
    server.close()
    server.close()
    assert client.socket.recv(10) == b""
    assert loop.watched == 0
    client.socket.close()


def test_stale_socket_is_replaced(loop, path):
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(os.fspath(path))
    stale.close()
    SocketServer(XenStore(), loop, path).close()


def test_other_files_are_not(loop, path):
    path.write_text("precious")
    with pytest.raises(UserError, match=r"xenstore socket .*: Address already in use"):
        SocketServer(XenStore(), loop, path)
    assert path.read_text() == "precious"


def test_missing_directory_is_made_and_removed(loop, tmp_path):
    path = tmp_path / "run" / "socket"
    server = SocketServer(XenStore(), loop, path)
    assert path.parent.stat().st_mode & 0o777 == 0o700
    server.close()
    assert not path.parent.exists()


def test_directory_with_something_in_it_is_left(loop, tmp_path):
    path = tmp_path / "run" / "socket"
    server = SocketServer(XenStore(), loop, path)
    (path.parent / "other").touch()
    server.close()
    assert [each.name for each in path.parent.iterdir()] == ["other"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [("none/none/socket", "No such file"), ("x" * 200, "too long"), ("file/socket", "Not a dir")],
)
def test_impossible_paths(loop, tmp_path, name, reason):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=rf"^xenstore socket .*: .*{reason}"):
        SocketServer(XenStore(), loop, tmp_path / name)
    assert loop.watched == 0
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_socket_in_use_is_refused(server, loop, path, client):
    with pytest.raises(UserError, match=r"^xenstore socket .*: in use by another process$"):
        SocketServer(XenStore(), loop, path)
    assert client.ask(XS_READ, b"/x\0") == [(XS_READ, b"value")]


def test_a_socket_that_took_the_name_is_left(loop, path):
    server = SocketServer(XenStore(), loop, path)
    path.unlink()
    later = SocketServer(XenStore(), loop, path)
    server.close()
    assert path.is_socket()
    later.close()
    assert not path.exists()


def test_two_starts_at_once(loop, path):
    """One of them gets the socket, whatever the other does; a stale one is in the way."""
    for _ in range(20):
        stale = socket.socket(socket.AF_UNIX)
        stale.bind(os.fspath(path))
        stale.close()
        made, refused = [], []
        barrier = threading.Barrier(2)

        def start(made=made, refused=refused, barrier=barrier):
            barrier.wait()
            try:
                made.append(SocketServer(XenStore(), Loop(), path))
            except UserError as error:
                refused.append(error)

        threads = [threading.Thread(target=start) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(made), len(refused)) == (1, 1)
        made[0].close()
        assert not path.exists()


@pytest.mark.skipif(shutil.which("xenstore-ls") is None, reason="Xen's tools are not installed")
def test_xens_own_tools(server, path, loop):
    done = threading.Event()

    def tool(name, *arguments):
        result = subprocess.run(
            [name, *arguments],
            env={**os.environ, "XENSTORED_PATH": os.fspath(path)},
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        return result.stdout, result.returncode

    results = []

    def run():
        try:
            results.append(tool("xenstore-write", "/a/b", "hello", "/a/c", "x"))
            results.append(tool("xenstore-read", "/a/b"))
            results.append(tool("xenstore-chmod", "/a/b", "n3", "r0"))
            results.append(tool("xenstore-ls", "-f", "-p", "/a"))
            results.append(tool("xenstore-list", "/many"))
            results.append(tool("xenstore-rm", "/a"))
            results.append(tool("xenstore-exists", "/a"))
        finally:
            done.set()

    for index in range(1500):
        server.store.write(f"/many/child{index}", b"")
    server.store.write("/local/domain/3", b"")
    server.store.introduce_domain(3)
    thread = threading.Thread(target=run)
    thread.start()
    deadline = time.monotonic() + 60
    while not done.is_set() and time.monotonic() < deadline:
        loop.turn(0.02)
    thread.join()
    loop.spin()
    assert [code for _, code in results] == [0, 0, 0, 0, 0, 0, 1]
    assert results[1][0] == "hello\n"
    assert results[3][0].splitlines() == ['/a/b = "hello"   (n3,r0)', '/a/c = "x"   (n0)']
    assert results[4][0].splitlines() == [f"child{index}" for index in range(1500)]
