"""The guest's transport: the page struct xenstore_domain_interface and an event channel.

The page may change at any moment under us: every index is read once, checked, then used, and only
offsets modulo the ring are ever touched. A guest that breaks the rules loses its own connection.
Rules: docs/misc/xenstore-ring.txt and public/io/xs_wire.h of Xen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from hvmlite.abi.xs_wire import (
    XENSTORE_CONNECTED,
    XENSTORE_ERROR_NONE,
    XENSTORE_ERROR_RINGIDX,
    XENSTORE_RECONNECT,
    XENSTORE_RING_SIZE,
    XENSTORE_SERVER_FEATURE_RECONNECTION,
)
from hvmlite.xenstore.connection import Connection
from hvmlite.xenstore.wire import Interface

_MASK: Final = XENSTORE_RING_SIZE - 1
_ROUNDS: Final = 64
"""How often the request ring is emptied for one kick."""


class SharedPage(Protocol):
    """What is needed of a guest's page: hypervisor/memory.py's Page."""

    @property
    def u32(self) -> memoryview:
        """The page as 32-bit words."""

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes at `offset`."""

    def write(self, offset: int, data: bytes) -> None:
        """Store `data` at `offset`."""


class RingTransport:
    """Carries `connection` over the guest's `page`; `notify` kicks the guest's event channel.

    Call on_event() when the guest kicks. The page's indexes are taken as they are, so that a
    restored guest goes on where it was; the feature word is written at once.
    """

    def __init__(
        self, page: SharedPage, notify: Callable[[], None], connection: Connection
    ) -> None:
        self._page = page
        self._words = page.u32
        self._notify = notify
        self._connection = connection
        self._changed = False
        self._busy = False
        self._budget = 0
        self._attached = True
        self._features = connection.domain.features
        words = self._words
        if self._features:
            words[Interface.server_features] = self._features
        if words[Interface.connection] == XENSTORE_RECONNECT:
            # Somebody prepared the page for a store that was to come later.
            words[Interface.connection] = XENSTORE_CONNECTED
            self._changed = True
        connection.transport = self
        self.on_event()

    def on_event(self) -> None:
        """The guest kicked: serve its requests, as far as there is room for the replies."""
        # A guest that keeps writing beside us is left after a while: it owes us a kick for each
        # of its writes, and gets its turn again with that.
        self._budget = _ROUNDS
        self._pump()
        self._connection.store.settle()

    def _pump(self) -> None:
        if not self._attached or self._busy:
            return
        self._busy = True
        try:
            if (
                self._features & XENSTORE_SERVER_FEATURE_RECONNECTION
                and self._words[Interface.connection] == XENSTORE_RECONNECT
            ):
                self._reconnect()
            while self._send() | self._receive():
                pass
        finally:
            self._busy = False
            if self._changed and self._attached:
                self._changed = False
                self._notify()

    def _receive(self) -> bool:
        """Take what the guest has written; returns whether there was anything."""
        connection = self._connection
        if not self._budget or not connection.wants_input:
            return False
        words = self._words
        cons = words[Interface.req_cons]
        size = (words[Interface.req_prod] - cons) & 0xFFFFFFFF
        if not size:
            return False
        if size > XENSTORE_RING_SIZE:
            connection.fail(XENSTORE_ERROR_RINGIDX)
            return False
        start = cons & _MASK
        first = min(size, XENSTORE_RING_SIZE - start)
        data = self._page.read(Interface.req + start, first)
        if first < size:
            data += self._page.read(Interface.req, size - first)
        words[Interface.req_cons] = (cons + size) & 0xFFFFFFFF
        self._changed = True
        self._budget -= 1
        connection.feed(data)
        return True

    def _send(self) -> bool:
        """Hand the guest what there is room for; returns whether there was anything."""
        connection = self._connection
        if not connection.output_size or not connection.active:
            return False
        words = self._words
        prod = words[Interface.rsp_prod]
        used = (prod - words[Interface.rsp_cons]) & 0xFFFFFFFF
        if used > XENSTORE_RING_SIZE:
            connection.fail(XENSTORE_ERROR_RINGIDX)
            return False
        data = connection.peek_output(XENSTORE_RING_SIZE - used)
        if not data:
            return False
        start = prod & _MASK
        room = XENSTORE_RING_SIZE - start
        self._page.write(Interface.rsp + start, data[:room])
        if len(data) > room:
            self._page.write(Interface.rsp, data[room:])
        words[Interface.rsp_prod] = (prod + len(data)) & 0xFFFFFFFF
        self._changed = True
        connection.consume_output(len(data))
        return True

    def _clear(self) -> None:
        words = self._words
        for index in (
            Interface.req_cons,
            Interface.req_prod,
            Interface.rsp_cons,
            Interface.rsp_prod,
        ):
            words[index] = 0

    def _reconnect(self) -> None:
        self._connection.reset()
        self._clear()
        self._words[Interface.error] = XENSTORE_ERROR_NONE
        self._words[Interface.connection] = XENSTORE_CONNECTED
        self._changed = True

    # What the connection asks for

    def output_ready(self) -> None:
        """See Transport."""
        self._pump()

    def reset(self) -> None:
        """See Transport."""
        if self._attached:
            self._clear()
            if self._words[Interface.connection] == XENSTORE_RECONNECT:
                self._words[Interface.connection] = XENSTORE_CONNECTED
                self._notify()

    def failed(self, error: int) -> None:
        """See Transport. The guest finds the reason in the page's error word."""
        if self._attached:
            self._words[Interface.error] = error
            self._notify()

    def closed(self) -> None:
        """See Transport. The page is not touched any more."""
        self._attached = False
