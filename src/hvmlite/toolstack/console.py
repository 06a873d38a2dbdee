"""A domain's console as its owner sees it: a stream of bytes both ways.

Keeps the recent output for `read` and `expect`, and hands it on as it comes to `sink`s.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable

HISTORY = 1 << 20
"""Bytes of output kept."""


class ConsoleTimeoutError(Exception):
    """What was waited for did not appear in time; the message ends with the last output."""


class Console:
    """The console of one domain.  All methods may be called from any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._output = bytearray()
        self._dropped = 0
        self._read = 0
        self._closed = False
        self._sinks: list[Callable[[bytes], None]] = []
        self._feed: Callable[[bytes], None] | None = None
        self._room: Callable[[], int] = lambda: 0
        self._early = bytearray()

    # ---- the backend's side ---------------------------------------------------------------------

    def connect(
        self, feed: Callable[[bytes], None] | None, room: Callable[[], int] = lambda: 0
    ) -> None:
        """Says where input goes (None: nowhere for now; it waits) and how much fits."""
        with self._changed:
            self._feed = feed
            self._room = room
            early, self._early = bytes(self._early), bytearray()
        if feed is not None and early:
            feed(early)

    def received(self, data: bytes) -> None:
        """The guest wrote `data`."""
        with self._changed:
            self._output += data
            surplus = len(self._output) - HISTORY
            if surplus > 0:
                del self._output[:surplus]
                self._dropped += surplus
            self._changed.notify_all()
        for sink in self._sinks:
            sink(data)

    def close(self) -> None:
        """There will be no more output."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    # ---- the owner's side -----------------------------------------------------------------------

    def add_sink(self, sink: Callable[[bytes], None]) -> None:
        """Has `sink(data)` called with all further output, in the host's thread; be quick."""
        self._sinks.append(sink)

    def write(self, data: bytes | str) -> None:
        """Sends input to the guest."""
        raw = data.encode() if isinstance(data, str) else data
        with self._changed:
            feed = self._feed
            if feed is None:
                self._early += raw
        if feed is not None:
            feed(raw)

    @property
    def input_room(self) -> int:
        """How many bytes `write` can hand on at present (in the host's thread)."""
        return self._room() if self._feed is not None else max(0, HISTORY - len(self._early))

    @property
    def output(self) -> bytes:
        """The output so far, the last HISTORY bytes of it."""
        with self._changed:
            return bytes(self._output)

    def read(self, timeout: float | None = None) -> bytes:
        """Output since the last `read` or `expect`; waits for some.

        Returns b"" at the end of the console, or when `timeout` (seconds) is over.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or self._dropped + len(self._output) > self._read, timeout
            )
            data = bytes(self._output[max(self._read - self._dropped, 0) :])
            self._read = self._dropped + len(self._output)
            return data

    def expect(self, pattern: bytes | str, timeout: float = 30.0) -> re.Match[bytes]:
        """Waits until unread output matches a regular expression; reads up to the match's end.

        Raises ConsoleTimeoutError after `timeout` seconds or at the end of the console.
        """
        expression = re.compile(pattern.encode() if isinstance(pattern, str) else pattern)
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                start = max(self._read - self._dropped, 0)
                match = expression.search(bytes(self._output), start)
                if match is not None:
                    self._read = self._dropped + match.end()
                    return match
                left = deadline - time.monotonic()
                if self._closed or left <= 0:
                    tail = bytes(self._output[-400:]).decode(errors="replace")
                    why = "the console ended" if self._closed else f"not within {timeout:g} s"
                    raise ConsoleTimeoutError(f"no {expression.pattern!r}: {why}; last: {tail!r}")
                self._changed.wait(left)
