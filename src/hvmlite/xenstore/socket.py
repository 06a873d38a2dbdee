"""The tools' transport: a Unix stream socket, every client as privileged as domain 0.

Who may connect is decided by file permissions alone: the socket is its owner's (mode 0600). Never
blocks; the loop object calls back. A client that sends garbage or never reads loses its own
connection.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Protocol

from hvmlite.errors import UserError
from hvmlite.xenstore.connection import Connection
from hvmlite.xenstore.server import XenStore

_CHUNK: Final = 65536
"""Bytes read or written at once."""
MAX_CLIENTS: Final = 256
_LOCK_ATTEMPTS: Final = 50
_LOCK_PAUSE: Final = 0.01
"""Seconds between two attempts."""


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
        """Raises UserError if the socket cannot be made, or somebody listens there already.

        What a process that is gone has left at `path` is replaced; a directory that is missing is
        made, and removed again by close().
        """
        self._store = store
        self._loop = loop
        self._path = Path(os.path.abspath(path))
        self._clients: set[SocketClient] = set()
        self._listening = False
        self._made_directory = False
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._bind()
        except OSError as error:
            self._socket.close()
            self._remove_directory()
            reason = error.strerror or str(error)
            raise UserError(f"xenstore socket {os.fspath(path)}: {reason}") from None
        except UserError:
            self._socket.close()
            raise
        self._socket.setblocking(False)
        self._listen()

    def _bind(self) -> None:
        directory = self._path.parent
        if not directory.exists():
            directory.mkdir(mode=0o700)
            self._made_directory = True
        with _locked(directory):
            self._remove_stale()
            # Linux gives the name this mode when it binds: there is no moment without it.
            os.fchmod(self._socket.fileno(), 0o600)
            self._socket.bind(os.fspath(self._path))
            status = self._path.stat(follow_symlinks=False)
            self._identity = status.st_dev, status.st_ino
            self._socket.listen(16)

    def _remove_stale(self) -> None:
        """Take away a socket that nobody listens at. Raises UserError if somebody does."""
        try:
            mode = self._path.stat(follow_symlinks=False).st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            try:
                probe.connect(os.fspath(self._path))
            except ConnectionRefusedError:
                self._path.unlink()
                return
            except BlockingIOError:
                # Somebody listens, and has many waiting.
                pass
        raise UserError(f"xenstore socket {self._path}: in use by another process")

    def _remove_directory(self) -> None:
        if self._made_directory:
            with contextlib.suppress(OSError):
                self._path.parent.rmdir()

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
            status = self._path.stat(follow_symlinks=False)
            # Somebody may have put another one there meanwhile.
            if (status.st_dev, status.st_ino) == self._identity:
                self._path.unlink()
        self._remove_directory()


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Keep other starts of ours away from a directory; without effect where it cannot be locked."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:
        yield
        return
    try:
        # Not waited for long: whoever may read the directory can hold the lock for ever.
        for _ in range(_LOCK_ATTEMPTS):
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                time.sleep(_LOCK_PAUSE)
        yield
    finally:
        os.close(fd)
