"""The tools' transport: a Unix stream socket, every client as privileged as domain 0.

Who may connect is decided by the permissions of the socket's directory alone. Never blocks; the
loop object calls back. A client that sends garbage or never reads loses its own connection.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Callable
from typing import Final, Protocol

from hvmlite.errors import UserError
from hvmlite.xenstore.connection import Connection
from hvmlite.xenstore.server import XenStore

_CHUNK: Final = 65536
"""Bytes read or written at once."""
MAX_CLIENTS: Final = 256


class Loop(Protocol):
    """The host loop's part that is used here."""

    def add_reader(self, fd: int, callback: Callable[[], None]) -> object:
        """Call `callback` whenever `fd` is readable."""

    def remove_reader(self, fd: int) -> object:
        """Undo add_reader."""

    def add_writer(self, fd: int, callback: Callable[[], None]) -> object:
        """Call `callback` whenever `fd` is writable."""

    def remove_writer(self, fd: int) -> object:
        """Undo add_writer."""


class SocketClient:
    """Carries one connection over one connected stream socket, which it owns."""

    def __init__(
        self,
        sock: socket.socket,
        loop: Loop,
        connection: Connection,
        gone: Callable[[SocketClient], None] | None = None,
    ) -> None:
        self._socket = sock
        self._loop = loop
        self._connection = connection
        self._gone = gone
        self._reading = False
        self._writing = False
        sock.setblocking(False)
        connection.transport = self
        self._update()

    def _update(self) -> None:
        """Listen to what can go on: reading only while input is wanted, writing while due."""
        if self._socket.fileno() < 0:
            return
        reading = self._connection.wants_input
        writing = self._connection.output_size > 0
        if reading != self._reading:
            self._reading = reading
            if reading:
                self._loop.add_reader(self._socket.fileno(), self._readable)
            else:
                self._loop.remove_reader(self._socket.fileno())
        if writing != self._writing:
            self._writing = writing
            if writing:
                self._loop.add_writer(self._socket.fileno(), self._writable)
            else:
                self._loop.remove_writer(self._socket.fileno())

    def _readable(self) -> None:
        try:
            data = self._socket.recv(_CHUNK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if data:
            self._connection.feed(data)
            self._update()
        else:
            self._connection.close()

    def _writable(self) -> None:
        self._send()
        self._update()

    def _send(self) -> None:
        connection = self._connection
        while connection.output_size:
            data = connection.peek_output(_CHUNK)
            try:
                sent = self._socket.send(data, socket.MSG_NOSIGNAL)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                connection.close()
                return
            connection.consume_output(sent)
            if sent < len(data):
                return

    def output_ready(self) -> None:
        """See Transport."""
        if self._socket.fileno() >= 0:
            self._send()
            self._update()

    def reset(self) -> None:
        """See Transport. A tool's connection is never reset."""

    def failed(self, error: int) -> None:
        """See Transport."""
        self._connection.close()

    def closed(self) -> None:
        """See Transport."""
        if self._socket.fileno() < 0:
            return
        if self._reading:
            self._loop.remove_reader(self._socket.fileno())
        if self._writing:
            self._loop.remove_writer(self._socket.fileno())
        self._socket.close()
        if self._gone is not None:
            self._gone(self)

    def close(self) -> None:
        """Drop the client."""
        self._connection.close()


class SocketServer:
    """Listens at `path` for tools (xenstore-ls and the like find it by XENSTORED_PATH)."""

    def __init__(self, store: XenStore, loop: Loop, path: str | os.PathLike[str]) -> None:
        """Raises UserError if the socket cannot be made; a stale one at `path` is replaced."""
        self._store = store
        self._loop = loop
        self._path = os.fspath(path)
        self._clients: set[SocketClient] = set()
        self._listening = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with contextlib.suppress(FileNotFoundError):
                if stat.S_ISSOCK(os.stat(self._path, follow_symlinks=False).st_mode):
                    os.unlink(self._path)
            self._socket.bind(self._path)
            os.chmod(self._path, 0o600)
            self._socket.listen(16)
        except OSError as error:
            self._socket.close()
            reason = error.strerror or str(error)
            raise UserError(f"xenstore socket {self._path}: {reason}") from None
        self._socket.setblocking(False)
        self._listen()

    def _listen(self) -> None:
        wanted = self._socket.fileno() >= 0 and len(self._clients) < MAX_CLIENTS
        if wanted and not self._listening:
            self._loop.add_reader(self._socket.fileno(), self._accept)
        elif self._listening and not wanted:
            self._loop.remove_reader(self._socket.fileno())
        self._listening = wanted

    def _accept(self) -> None:
        while len(self._clients) < MAX_CLIENTS:
            try:
                sock, _ = self._socket.accept()
            except OSError:
                break
            self._clients.add(SocketClient(sock, self._loop, self._store.connect(), self._left))
        self._listen()

    def _left(self, client: SocketClient) -> None:
        self._clients.discard(client)
        self._listen()

    def close(self) -> None:
        """Drop all clients, stop listening and remove the socket."""
        if self._socket.fileno() < 0:
            return
        if self._listening:
            self._loop.remove_reader(self._socket.fileno())
            self._listening = False
        self._socket.close()
        for client in list(self._clients):
            client.close()
        with contextlib.suppress(OSError):
            os.unlink(self._path)
