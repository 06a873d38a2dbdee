"""The PV console's backend: what xenconsoled does, over one console ring.

Moves bytes between the ring and whoever owns the console; it interprets none of them.
Facts: public/io/console.h.
"""

from __future__ import annotations

from collections.abc import Callable

from hvmlite.abi.console import xencons_interface
from hvmlite.hypervisor.memory import Page

_IN = xencons_interface.offsetof("in_")
_IN_SIZE = xencons_interface.sizeof_field("in_")
_OUT = xencons_interface.offsetof("out")
_OUT_SIZE = xencons_interface.sizeof_field("out")
_IN_CONS = xencons_interface.offsetof("in_cons") // 4
_IN_PROD = xencons_interface.offsetof("in_prod") // 4
_OUT_CONS = xencons_interface.offsetof("out_cons") // 4
_OUT_PROD = xencons_interface.offsetof("out_prod") // 4
_MASK32 = 0xFFFF_FFFF

INPUT_LIMIT = 1 << 16
"""Bytes of input kept for a guest that does not read."""


class ConsoleBackend:
    """One console: `output(data)` is called with what the guest writes, `feed` sends input.

    Wire `on_event` to the guest's event channel and `notify` to the other direction.  A guest that
    corrupts its indexes only loses console bytes.
    """

    def __init__(
        self, page: Page, notify: Callable[[], None], output: Callable[[bytes], None]
    ) -> None:
        self._page = page
        self._notify = notify
        self._output = output
        self._input = bytearray()
        self._closed = False

    def close(self) -> None:
        """The page may go to somebody else: touches it no more, whatever still comes."""
        self._closed = True

    def on_event(self) -> None:
        """The guest kicked: takes its output, and gives it more input if there is some."""
        taken = self.drain()
        given = self._fill()
        # Only a guest that found the ring full may be waiting for room.
        if given or taken > _OUT_SIZE // 2:
            self._notify()

    def drain(self) -> int:
        """Takes what is in the output ring; returns the number of bytes."""
        if self._closed:
            return 0
        words = self._page.u32
        consumer, producer = words[_OUT_CONS], words[_OUT_PROD]
        size = producer - consumer & _MASK32
        if not size:
            return 0
        if size > _OUT_SIZE:
            # Nonsense from the guest: resynchronise, as xenconsoled does.
            words[_OUT_CONS] = producer
            return 0
        start = consumer % _OUT_SIZE
        first = min(size, _OUT_SIZE - start)
        data = self._page.read(_OUT + start, first) + self._page.read(_OUT, size - first)
        self._page.exchange32(_OUT_CONS, producer)
        self._output(data)
        return size

    @property
    def input_room(self) -> int:
        """How many bytes `feed` takes at present."""
        return INPUT_LIMIT - len(self._input)

    def feed(self, data: bytes) -> None:
        """Sends input to the guest; what it does not read waits, up to INPUT_LIMIT bytes."""
        self._input += data[: self.input_room]
        if self._fill():
            self._notify()

    def _fill(self) -> bool:
        if not self._input or self._closed:
            return False
        words = self._page.u32
        consumer, producer = words[_IN_CONS], words[_IN_PROD]
        room = _IN_SIZE - (producer - consumer & _MASK32)
        if room <= 0:
            return False
        data = bytes(self._input[:room])
        del self._input[: len(data)]
        start = producer % _IN_SIZE
        first = min(len(data), _IN_SIZE - start)
        self._page.write(_IN + start, data[:first])
        self._page.write(_IN, data[first:])
        self._page.exchange32(_IN_PROD, producer + len(data) & _MASK32)
        return True
