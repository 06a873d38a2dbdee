"""One connection: bytes in, messages served in order, bytes out, and the brakes on both.

A transport feeds it what its peer sent and carries away its output; it never blocks, and what it
holds is bounded: a peer that does not take its output is not served further.
Framing and limits: public/io/xs_wire.h of Xen; back-pressure as in tools/xenstored.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

from hvmlite.abi.xs_wire import XENSTORE_ERROR_PROTO, XENSTORE_PAYLOAD_MAX, XS_WATCH_EVENT
from hvmlite.xenstore import protocol
from hvmlite.xenstore.domains import Caller, Domain
from hvmlite.xenstore.log import logger
from hvmlite.xenstore.watches import Request
from hvmlite.xenstore.wire import HEADER, HEADER_SIZE

if TYPE_CHECKING:
    from hvmlite.xenstore.daemon import Daemon
    from hvmlite.xenstore.watches import Watch

OUTPUT_HIGH: Final = 1 << 20
"""Bytes of output at which a privileged connection is not served further until it is read."""
OUTPUT_MAX: Final = 1 << 26
"""Bytes of output (watch events) at which a connection that is never read is dropped."""


class Transport(Protocol):
    """What carries a connection's bytes. All calls come after the operation that caused them."""

    def output_ready(self) -> None:
        """There is output to carry, or room for input again."""

    def reset(self) -> None:
        """The byte streams start anew, both empty (the domain was introduced again)."""

    def failed(self, error: int) -> None:
        """The peer broke the protocol (XENSTORE_ERROR_*): it is not served any more."""

    def closed(self) -> None:
        """The connection is gone: let go of the channel."""


class _Message:
    """One message of output; what remains of it is data[offset:]."""

    __slots__ = ("data", "event", "request")

    def __init__(self, data: bytes, request: Request | None, event: bool) -> None:
        self.data = data
        self.request = request
        self.event = event


class Connection(Caller):
    """One peer. `transport` is set by whoever carries its bytes."""

    def __init__(self, store: Daemon, domain: Domain, sequence: int) -> None:
        super().__init__(domain, sequence)
        self.store = store
        self.transport: Transport | None = None
        self.active = True
        """Served at all; False after a protocol violation or once closed."""
        self.is_open = True
        self.next_transaction = 1
        self.after_reply: tuple[Watch, str] | None = None
        self.output_size = 0
        self._input = bytearray()
        self._output: deque[_Message] = deque()
        self._sent = 0
        self._pending_events: set[bytes] = set()
        self._serving = False
        self._flush_due = False
        self._serve_due = False

    @property
    def wants_input(self) -> bool:
        """Whether the transport should feed more; output_ready() follows when that comes true."""
        if not self.active:
            return False
        if self.privileged:
            return self.output_size < OUTPUT_HIGH
        return not self.domain.stalled

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Take bytes of the peer and serve the complete messages among them.

        A transport feeds only while `wants_input`, and no more than it read at once; what comes
        while the connection is stalled waits.
        """
        if not self.active:
            return
        self._input += data
        outer = self.store.enter()
        try:
            self._serve()
        finally:
            self.store.leave(outer)

    def _serve(self) -> None:
        self._serve_due = False
        if self._serving:
            return
        self._serving = True
        data = self._input
        position = 0
        unpack = HEADER.unpack_from
        dispatch = protocol.dispatch
        privileged = self.privileged
        store = self.store
        try:
            while len(data) - position >= HEADER_SIZE and self.wants_input:
                kind, req_id, tx_id, length = unpack(data, position)
                if length > XENSTORE_PAYLOAD_MAX:
                    self.fail(XENSTORE_ERROR_PROTO)
                    break
                end = position + HEADER_SIZE + length
                if len(data) < end:
                    break
                payload = bytes(data[position + HEADER_SIZE : end])
                position = end
                request = None
                if not privileged:
                    self.request = request = Request(self)
                if store.trace:
                    logger().info("d%d in %d tx %d %r", self.domid, kind, tx_id, payload)
                kind, payload = dispatch(self, kind, tx_id, payload)
                if store.trace:
                    logger().info("d%d out %d %r", self.domid, kind, payload)
                if data is not self._input:
                    # The connection was reset or closed by this very request.
                    break
                if request is not None:
                    self.domain.outstanding += 1
                reply = HEADER.pack(kind, req_id, tx_id, len(payload)) + payload
                self._queue(reply, request, False)
                if self.after_reply is not None:
                    watch, path = self.after_reply
                    self.after_reply = None
                    self.send_event(watch, path, None)
        finally:
            self.request = None
            self._serving = False
            if position and data is self._input:
                del data[:position]

    def send_event(self, watch: Watch, path: str, request: Request | None) -> None:
        """Queue a WATCH_EVENT, unless the same one is queued already (special events always)."""
        payload = path.encode("ascii") + b"\0" + watch.token + b"\0"
        if not self.active or len(payload) > XENSTORE_PAYLOAD_MAX:
            return
        special = path.startswith("@")
        if not special and payload in self._pending_events:
            return
        if not self.privileged and self.domain.memory >= self.domain.quota.memory:
            return
        if not special:
            self._pending_events.add(payload)
        if request is not None:
            request.events += 1
        self._queue(HEADER.pack(XS_WATCH_EVENT, 0, 0, len(payload)) + payload, request, True)
        if self.output_size > OUTPUT_MAX:
            self.store.work.append(self.close)

    def _queue(self, data: bytes, request: Request | None, event: bool) -> None:
        self._output.append(_Message(data, request, event))
        self.output_size += len(data)
        if not self.privileged:
            self.domain.memory += len(data)
        if not self._flush_due:
            self._flush_due = True
            self.store.work.append(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        if self.transport is not None and self.is_open:
            self.transport.output_ready()

    # Output, for the transport

    @property
    def pending_output(self) -> bytes:
        """All output that has not been consumed."""
        return self.peek_output(self.output_size)

    def peek_output(self, limit: int) -> bytes:
        """Up to `limit` bytes of the output that has not been consumed."""
        output = self._output
        if not output or limit <= 0:
            return b""
        first = output[0].data
        if self._sent:
            first = first[self._sent :]
        if len(first) >= limit or len(output) == 1:
            return first[:limit]
        parts = [first]
        size = len(first)
        for index, message in enumerate(output):
            if index == 0:
                continue
            parts.append(message.data)
            size += len(message.data)
            if size >= limit:
                break
        return b"".join(parts)[:limit]

    def consume_output(self, count: int) -> None:
        """Note that the transport has carried away the first `count` bytes of the output."""
        output = self._output
        was_stalled = not self.wants_input
        self.output_size -= count
        if not self.privileged:
            self.domain.memory -= count
        count += self._sent
        while output and count >= len(output[0].data):
            count -= len(output[0].data)
            self._delivered(output.popleft())
        self._sent = count
        if was_stalled:
            self._resume()
        self.store.settle()

    def _delivered(self, message: _Message) -> None:
        request = message.request
        if message.event:
            self._pending_events.discard(message.data[HEADER_SIZE:])
            if request is not None:
                request.event_delivered()
        elif request is not None:
            request.reply_delivered()

    def request_done(self) -> None:
        """A request's reply and all its events are delivered."""
        self.domain.outstanding -= 1
        self._resume()

    def _resume(self) -> None:
        if not self._serve_due and self.active and self.wants_input:
            self._serve_due = True
            self.store.work.append(self._resumed)

    def _resumed(self) -> None:
        self._serve()
        if not self._flush_due and self.transport is not None and self.active:
            self.transport.output_ready()

    # Saving and restoring

    def streams(self) -> tuple[bytes, int, bytes]:
        """Input not served yet; how many bytes of a partly carried message begin the output; the
        output.
        """
        output = self.pending_output
        partial = len(self._output[0].data) - self._sent if self._sent else 0
        return bytes(self._input), partial, output

    def restore_streams(self, data: bytes, partial: int, output: bytes) -> bool:
        """Take up where streams() left; False if the output is not made of whole messages."""
        if partial > len(output):
            return False
        cuts = [output[:partial]] if partial else []
        at = partial
        while at < len(output):
            if at + HEADER_SIZE > len(output):
                return False
            length = HEADER.unpack_from(output, at)[3]
            end = at + HEADER_SIZE + length
            if length > XENSTORE_PAYLOAD_MAX or end > len(output):
                return False
            cuts.append(output[at:end])
            at = end
        for index, message in enumerate(cuts):
            whole = index > 0 or not partial
            if whole and HEADER.unpack_from(message)[0] == XS_WATCH_EVENT:
                self._pending_events.add(message[HEADER_SIZE:])
                self._queue(message, None, True)
                continue
            request = None
            if not self.privileged:
                request = Request(self)
                self.domain.outstanding += 1
            if whole:
                self._queue(message, request, False)
            else:
                # One byte stands for all that has been carried away.
                self._queue(b"\0" + message, request, False)
                self._sent = 1
                self.output_size -= 1
                if not self.privileged:
                    self.domain.memory -= 1
        self._input += data
        self.store.work.append(self._resumed)
        return True

    # The end

    def _drop(self) -> None:
        """Forget watches, transactions and everything under way."""
        self.drop_watches()
        self.drop_transactions()
        self._input = bytearray()
        output = self._output
        self._output = deque()
        if not self.privileged:
            self.domain.memory -= self.output_size
        self.output_size = 0
        self._sent = 0
        for message in output:
            self._delivered(message)
        self._pending_events.clear()

    def drop_watches(self) -> None:
        """Remove all watches of this connection."""
        for watch in list(self.watches.values()):
            self.store.watches.remove(watch)
        self.after_reply = None

    def drop_transactions(self) -> None:
        """Discard all open transactions of this connection."""
        for transaction in list(self.transactions.values()):
            transaction.discard()

    def reset(self) -> None:
        """Start anew, as after INTRODUCE or at the guest's request to reconnect."""
        self._drop()
        if self.is_open:
            self.active = True

    def fail(self, error: int) -> None:
        """Stop serving a peer that broke the protocol; `error` is XENSTORE_ERROR_*."""
        if not self.active:
            return
        self._drop()
        self.active = False
        if self.transport is not None:
            transport = self.transport
            self.store.work.append(lambda: transport.failed(error))

    def close(self) -> None:
        """End the connection for good and tell the transport. A domain's own connection ends with
        the domain: see Daemon.release_domain.
        """
        if not self.is_open:
            return
        self._drop()
        self.is_open = False
        self.active = False
        self.store.forget(self)
        if self.transport is not None:
            self.store.work.append(self.transport.closed)
            self.transport = None
        self.store.settle()
