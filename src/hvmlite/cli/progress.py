"""Shows on stderr how far something has come that takes long."""

from __future__ import annotations

import sys
import time
from typing import TextIO

_PATIENCE = 0.5
"""Seconds before anything is shown: what is quicker needs no word."""
_PAUSE = 0.1
_MIB = 1 << 20


class ProgressLine:
    """One line that is written over on a terminal, and lines of their own elsewhere.

    A `Progress` of toolstack/progress.py.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._terminal = stream.isatty()
        self._what = ""
        self._begin = 0.0
        self._last = 0.0
        self._tenth = -1
        self._shown = False

    def __call__(self, what: str, done: int, size: int) -> None:
        """See Progress."""
        now = time.monotonic()
        if what != self._what:
            self._what, self._begin, self._last, self._tenth = what, now, now, -1
        if done >= size:
            self.clear()
            self._what = ""
            return
        if now - self._begin < _PATIENCE or now - self._last < _PAUSE:
            return
        self._last = now
        text = f"hvmlite: {_plain(what)}: {done // _MIB} of {-(-size // _MIB)} MiB"
        if self._terminal:
            self._stream.write(f"\r{text}\x1b[K")
            self._shown = True
        elif done * 10 // size != self._tenth:
            self._tenth = done * 10 // size
            self._stream.write(f"{text}\n")
        self._stream.flush()

    def clear(self) -> None:
        """Takes the line away, before somebody else writes."""
        if self._shown:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._shown = False


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def watcher(wanted: bool | None) -> ProgressLine | None:
    """Who watches, if anybody does: `wanted` None is for a terminal to decide."""
    if wanted is False or (wanted is None and not sys.stderr.isatty()):
        return None
    return ProgressLine(sys.stderr)
