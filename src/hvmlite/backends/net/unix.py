"""An interface at a Unix stream socket: the other end is a QEMU, a switch, another of our guests.

Facts: QEMU's documentation of `-netdev stream`.
"""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from hvmlite.backends.net.stream import StreamEndpoint
from hvmlite.errors import UserError

if TYPE_CHECKING:
    from hvmlite.hypervisor.host import Host


class SocketEndpoint(StreamEndpoint):
    """Connects to the socket at `path`, or, as `server`, takes one connection at a time there.

    A client's end is the end of its network; a server waits for the next client.
    """

    def __init__(
        self, host: Host, report: Callable[[str], None], path: str, *, server: bool
    ) -> None:
        super().__init__(host, report)
        self._path = path
        self._listener: socket.socket | None = None
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            if server:
                self._clear_away()
                made.bind(path)
                made.listen(1)
                made.setblocking(False)
                self._listener = made
                self._listen()
            else:
                made.connect(path)
                self.connect(made)
        except OSError as error:
            made.close()
            what = "listen at" if server else "connect to"
            raise UserError(f"vif: cannot {what} {path}: {error.strerror or error}") from error

    def _clear_away(self) -> None:
        """Removes a socket that nobody listens at any more."""
        try:
            if not stat.S_ISSOCK(Path(self._path).lstat().st_mode):
                return
        except FileNotFoundError:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(self._path)
            except ConnectionRefusedError:
                Path(self._path).unlink()

    def _listen(self) -> None:
        assert self._listener is not None
        self._host.add_reader(self._listener.fileno(), self._accept)

    def _accept(self) -> None:
        assert self._listener is not None
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            # One at a time: others wait in the listener's queue.
            self._host.remove_reader(self._listener.fileno())
            self.connect(connection)

    def ended(self, reason: str) -> None:
        """See `StreamEndpoint.ended`."""
        if self._listener is not None:
            self._listen()
        else:
            self._report(f"lost its network: the peer at {self._path}: {reason}")

    def close(self) -> None:
        """See `Endpoint.close`."""
        super().close()
        if self._listener is not None:
            self._host.remove_reader(self._listener.fileno())
            self._listener.close()
            self._listener = None
            with contextlib.suppress(OSError):
                os.unlink(self._path)
