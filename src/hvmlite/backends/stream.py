"""The host's end of a console: a pseudo-terminal, a Unix socket or a file, none of which may block.

Moves bytes only. Everything runs in the host loop's thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import stat
import tty
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from hvmlite.errors import UserError

if TYPE_CHECKING:
    from hvmlite.hypervisor.clock import Timer
    from hvmlite.hypervisor.host import Host

KEPT = 1 << 20
"""Bytes of output kept for nobody, the newest: what xl calls the console's limit."""
AHEAD = 1 << 16
"""Bytes of output kept for somebody who reads slowly, before the guest has to wait."""
_CHUNK = 1 << 14
_LOOK_NS = 50_000_000
"""How often to look for what no event tells: a terminal that was opened, a reader who left."""
_LONGEST_PATH = 107
"""Bytes of a path in sockaddr_un."""


class Stream(ABC):
    """One host end.  `write` takes the guest's output; the rest is set by `connect`."""

    tty: str = ""
    """The path of its terminal, if it is one."""

    def __init__(self) -> None:
        self._receive: Callable[[bytes], None]
        self._guest_room: Callable[[], int]
        self._go_on: Callable[[], None]
        self.disconnect()

    def connect(
        self, receive: Callable[[bytes], None], room: Callable[[], int], go_on: Callable[[], None]
    ) -> None:
        """A guest is there: `receive(data)` takes up to `room()` bytes of input, and `go_on()` is
        called when a guest that found no `room` here may write again."""
        self._receive, self._guest_room, self._go_on = receive, room, go_on
        self.resume()

    def disconnect(self) -> None:
        """The guest has gone: input waits with whoever sends it."""
        self._receive = lambda _data: None
        self._guest_room = lambda: 0
        self._go_on = lambda: None

    @property
    def room(self) -> int:
        """Bytes of output that it takes without dropping or keeping too much."""
        return AHEAD

    @abstractmethod
    def write(self, data: bytes) -> None:
        """Takes the guest's output; beyond what can be kept the oldest is lost."""

    def resume(self) -> None:  # noqa: B027 (a file has no input)
        """The guest has taken input, and may take more."""

    @abstractmethod
    def close(self) -> None:
        """Ends it; safe to repeat."""


class FileStream(Stream):
    """Appends output to a file.  Raises UserError if it cannot be opened.

    `report(text)` hears once if writing fails; what comes later is lost.
    """

    def __init__(self, path: Path, report: Callable[[str], None]) -> None:
        super().__init__()
        self._path = path
        self._report = report
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        try:
            self._fd = os.open(path, flags, 0o600)
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from error
        mode = os.fstat(self._fd).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISCHR(mode):
            os.close(self._fd)
            raise UserError(f"{path} is no file that a console could be written to")

    def write(self, data: bytes) -> None:
        """Appends; a file takes what it gets at once."""
        while data and self._fd >= 0:
            try:
                data = data[os.write(self._fd, data) :]
            except OSError as error:
                self._report(f"{self._path}: {error.strerror}; output is lost from here on")
                self.close()

    def close(self) -> None:
        """Closes the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class _PeerStream(Stream):
    """What sockets and terminals share: somebody is at the other end, or nobody."""

    def __init__(self, loop: Host) -> None:
        super().__init__()
        self._loop = loop
        self._fd = -1
        self._waiting = bytearray()
        self._present = False
        self._reading = self._writing = False
        self._ended = False
        """The peer sends nothing more, but may still read."""
        self._timer: Timer | None = None
        self._closed = False

    @property
    def room(self) -> int:
        """With nobody there the guest never waits: the oldest output is dropped instead."""
        return max(0, AHEAD - len(self._waiting)) if self._present else AHEAD

    def write(self, data: bytes) -> None:
        """Hands on what the peer takes, and keeps the rest."""
        if self._closed:
            return
        self._waiting += data
        if len(self._waiting) > KEPT:
            del self._waiting[: len(self._waiting) - KEPT]
        if self._present and not self._writing:
            self._writable()

    def _writable(self) -> None:
        full = len(self._waiting) >= AHEAD
        while self._waiting and self._present:
            try:
                done = os.write(self._fd, self._waiting[:_CHUNK])
            except (BlockingIOError, InterruptedError):
                break
            except OSError:
                self._left()
                break
            del self._waiting[:done]
        self._want(write=bool(self._waiting) and self._present)
        if full and len(self._waiting) < AHEAD:
            self._go_on()

    def resume(self) -> None:
        """Reads on if that waited for the guest."""
        if self._present and not self._reading and not self._ended and self._guest_room() > 0:
            self._want(read=True)

    def _readable(self) -> None:
        room = self._guest_room()
        if room <= 0:
            self._want(read=False)
            return
        try:
            data = os.read(self._fd, min(room, _CHUNK))
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if data:
            self._receive(data)
            return
        self._ended = True
        self._want(read=False)
        self._look()

    def _want(self, *, read: bool | None = None, write: bool | None = None) -> None:
        """Which events the loop should tell."""
        loop, fd = self._loop, self._fd
        if read is not None and read is not self._reading:
            self._reading = read
            if read:
                loop.add_reader(fd, self._readable)
            else:
                loop.remove_reader(fd)
        if write is not None and write is not self._writing:
            self._writing = write
            if write:
                loop.add_writer(fd, self._writable)
            else:
                loop.remove_writer(fd)
        if self._present and not self._reading:
            # Nothing tells then that the peer leaves.
            self._look_later()

    def _look_later(self) -> None:
        if self._timer is None and not self._closed:
            timers = self._loop.timers
            self._timer = timers.at(self._loop.clock.now() + _LOOK_NS, self._look_now)

    def _look_now(self) -> None:
        self._timer = None
        self._look()

    def _look(self) -> None:
        if self._closed or self._fd < 0:
            return
        poll = select.poll()
        poll.register(self._fd, 0)
        gone = any(mask & (select.POLLHUP | select.POLLERR) for _, mask in poll.poll(0))
        if gone and self._present:
            self._left()
        elif not gone and not self._present:
            self._came()
        elif self._present and not self._reading:
            self.resume()
            if not self._reading:
                self._look_later()

    def _came(self) -> None:
        self._present, self._ended = True, False
        self._writable()
        if self._present:
            self._want(read=True)

    def _left(self) -> None:
        """The peer has gone; the guest need not wait for it."""
        self._want(read=False, write=False)
        self._present = False
        self._go_on()

    def close(self) -> None:
        """Ends it, after a last attempt to hand on what is kept."""
        if not self._closed:
            if self._present:
                self._writable()
            self.disconnect()
            self._closed = True
            if self._fd >= 0:
                self._want(read=False, write=False)
                os.close(self._fd)
                self._fd = -1
            self._present = False
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None


class PtyStream(_PeerStream):
    """A new pseudo-terminal in raw mode; `tty` is its path.

    Whoever opens it gets the newest output that nobody read.
    """

    def __init__(self, loop: Host) -> None:
        super().__init__(loop)
        try:
            self._fd, line = os.openpty()
        except OSError as error:
            raise UserError(f"no pseudo-terminal to be had: {error.strerror}") from error
        os.set_blocking(self._fd, False)
        self.tty = os.ttyname(line)
        tty.setraw(line)
        # With our own end closed it can be told whether anybody has it open.
        os.close(line)
        self._look_later()

    def _left(self) -> None:
        super()._left()
        self._look_later()

    def _look(self) -> None:
        super()._look()
        if not self._present:
            self._look_later()


class SocketStream(_PeerStream):
    """A Unix socket that one client at a time may connect to; further ones wait for their turn."""

    def __init__(self, loop: Host, path: Path) -> None:
        super().__init__(loop)
        self._path = path
        self._server = _listen(path)
        status = os.stat(path)
        self._identity = status.st_dev, status.st_ino
        self._listening = False
        self._listen(True)

    def _listen(self, wanted: bool) -> None:
        if wanted and not self._closed and not self._listening:
            self._listening = True
            self._loop.add_reader(self._server.fileno(), self._accept)
        elif not wanted and self._listening:
            self._listening = False
            self._loop.remove_reader(self._server.fileno())

    def _accept(self) -> None:
        try:
            client, _ = self._server.accept()
        except OSError:
            # The client gave up first, or we are out of descriptors: then again a little later, for
            # the loop would call at once.
            self._listen(False)
            self._look_later()
            return
        client.setblocking(False)
        self._fd = client.detach()
        self._listen(False)
        self._came()

    def _look(self) -> None:
        super()._look()
        if self._fd < 0:
            self._listen(True)

    def _left(self) -> None:
        super()._left()
        os.close(self._fd)
        self._fd = -1
        self._listen(True)

    def close(self) -> None:
        """Ends it and takes its name away, if it is still ours."""
        if not self._closed:
            super().close()
            self._listen(False)
            self._server.close()
            with contextlib.suppress(OSError):
                status = os.lstat(self._path)
                if (status.st_dev, status.st_ino) == self._identity:
                    self._path.unlink()


def _listen(path: Path) -> socket.socket:
    """A listening socket at that path, for its owner only; one that nobody serves is replaced."""
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise UserError(f"{path} is longer than a socket's path may be ({_LONGEST_PATH} bytes)")
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        os.fchmod(server.fileno(), 0o600)
        try:
            server.bind(os.fspath(path))
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not _abandoned(path):
                raise
            path.unlink()
            server.bind(os.fspath(path))
        server.listen(8)
    except OSError as error:
        server.close()
        raise UserError(f"{path}: {error.strerror}") from error
    return server


def _abandoned(path: Path) -> bool:
    """Whether a socket lies there that nobody listens at."""
    if not stat.S_ISSOCK(path.lstat().st_mode):
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        return probe.connect_ex(os.fspath(path)) == errno.ECONNREFUSED
