"""The user's side of a guest's console: raw terminals, pipes, and Ctrl-] to leave."""

from __future__ import annotations

import contextlib
import os
import select
import stat
import termios
import time
import tty
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from hvmlite.errors import EngineError

if TYPE_CHECKING:
    from hvmlite.toolstack.console import Console
    from hvmlite.toolstack.host import Host

ESCAPE = 0x1D
"""Ctrl-], as in `xl console`."""
_CHUNK = 4096
_BACKLOG = 1 << 22
"""Bytes kept for a slow reader of our stdout before older output is dropped."""
_PAUSE = 0.05


class ConsoleOutput:
    """Writes guest output to a file descriptor without ever blocking the host."""

    def __init__(self, host: Host, fd: int, on_gone: Callable[[], None]) -> None:
        self._host = host
        self._given = fd
        self._fd = _unblocking(fd)
        self._on_gone = on_gone
        self._waiting = bytearray()
        self._gone = False
        self._expected = False
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLOUT)

    def write(self, data: bytes) -> None:
        """Writes what can be written now; the rest follows as the reader takes it.

        In the host's thread, like all that a console calls.
        """
        self._waiting += data
        if len(self._waiting) > _BACKLOG:
            del self._waiting[: len(self._waiting) - _BACKLOG]
        self._go_on()

    def flush(self, patience: float) -> None:
        """Writes all that is kept, once no more `write` comes.

        Gives up on a reader that takes nothing for `patience` seconds.
        """
        if self._expected:
            with contextlib.suppress(EngineError):
                self._host.call(self._expect, False)
        last, size = time.monotonic(), len(self._waiting)
        while self._waiting and not self._gone and time.monotonic() - last < patience:
            self._drain(100)
            if len(self._waiting) < size:
                last, size = time.monotonic(), len(self._waiting)
        self._gone = True
        if self._fd != self._given:
            os.close(self._fd)
            self._fd = self._given

    def _go_on(self) -> None:
        self._drain(0)
        self._expect(bool(self._waiting))

    def _expect(self, wanted: bool) -> None:
        """Has the host call `_go_on` when the reader has taken something, or not any more."""
        if wanted != self._expected:
            self._expected = wanted
            if wanted:
                self._host.loop.add_writer(self._fd, self._go_on)
            else:
                self._host.loop.remove_writer(self._fd)

    def _drain(self, wait_ms: int) -> None:
        while self._waiting and not self._gone:
            if not self._poll.poll(wait_ms):
                return
            # A pipe that is ready takes this much without blocking.
            piece = bytes(self._waiting[:_CHUNK])
            try:
                done = os.write(self._fd, piece)
            except BlockingIOError:
                return
            except OSError:
                self._gone = True
                self._waiting.clear()
                self._on_gone()
                return
            del self._waiting[:done]


def _unblocking(fd: int) -> int:
    """A descriptor for the same file that never blocks, where poll() alone does not say enough.

    A write to a terminal may block though it is ready, and the flags of the open file are shared
    with whoever else has the terminal: it is opened anew.
    """
    with contextlib.suppress(OSError):
        return os.open(os.ttyname(fd), os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    return fd


class ConsoleInput:
    """Feeds a file to a guest's console; a terminal is raw meanwhile and restored at the end."""

    def __init__(
        self, host: Host, console: Console, source: TextIO | None, on_leave: Callable[[], None]
    ) -> None:
        self._host = host
        self._console = console
        self._on_leave = on_leave
        self.left = False
        self._saved: list[Any] | None = None
        self._terminal = -1
        self._registered = False
        self._fd = -1
        if source is not None:
            with contextlib.suppress(OSError, ValueError):
                self._fd = source.fileno()

    def __enter__(self) -> Self:
        if self._fd < 0:
            return self
        if os.isatty(self._fd):
            self._terminal = self._fd
            self._saved = termios.tcgetattr(self._fd)
            tty.setraw(self._fd)
        try:
            mode = os.fstat(self._fd).st_mode
        except OSError:
            return self
        try:
            if stat.S_ISREG(mode):
                # Always readable, which no poll can tell: feed it as the guest takes it.
                self._host.soon(self._read_file)
            elif stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or self._saved is not None:
                self._host.call(self._host.loop.add_reader, self._fd, self._readable)
                self._registered = True
        except BaseException:
            self._restore()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._registered:
            self._registered = False
            with contextlib.suppress(Exception):
                self._host.call(self._host.loop.remove_reader, self._fd)
        self._fd = -1
        self._restore()

    def _restore(self) -> None:
        if self._saved is not None:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(self._terminal, termios.TCSADRAIN, self._saved)
            self._saved = None

    def _readable(self) -> None:
        room = self._console.input_room
        if not room:
            # The guest does not read: look again a little later.
            self._stop_reading()
            self._host.loop.timers.at(
                self._host.loop.clock.now() + int(_PAUSE * 1e9), self._read_again
            )
            return
        try:
            data = os.read(self._fd, min(_CHUNK, room))
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._stop_reading()
            return
        if self._saved is not None and ESCAPE in data:
            data = data[: data.index(ESCAPE)]
            self.left = True
            self._stop_reading()
            self._on_leave()
        self._console.write(data)

    def _stop_reading(self) -> None:
        if self._registered:
            self._registered = False
            self._host.loop.remove_reader(self._fd)

    def _read_again(self) -> None:
        if self._fd >= 0 and not self._registered:
            self._registered = True
            self._host.loop.add_reader(self._fd, self._readable)

    def _read_file(self) -> None:
        if self._fd < 0:
            return
        if room := self._console.input_room:
            if data := os.read(self._fd, min(_CHUNK, room)):
                self._console.write(data)
                # Behind the write, which only then has taken its share of the room.
                self._host.soon(self._read_file)
            return
        self._host.loop.timers.at(self._host.loop.clock.now() + int(_PAUSE * 1e9), self._read_file)
