"""Frames over a Unix stream socket: a length of 4 bytes in network order before each frame.

The protocol of QEMU's `-netdev stream` and `-netdev socket`, which passt speaks too.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from hvmlite.backends.net.endpoint import Endpoint
from hvmlite.backends.net.frame import ETH_HLEN, LONGEST, Buffer, Frame

if TYPE_CHECKING:
    from hvmlite.hypervisor.host import Host

_LENGTH = struct.Struct(">I")
_BUFFER = 1 << 18
"""What is read at once at most: some frames, so that a guest gets one event for all of them.

Not many: while a program in the guest reads from its socket, what comes meanwhile waits in a
backlog little longer than the receive window, and what finds no room there is dropped. passt sends
again all that is on its way for each duplicate acknowledgement, which overflows it for good.
"""
_SOCKET_BUFFER = 4 << 20
_MOST_PARTS = 1000
"""Buffers that one system call takes (IOV_MAX is 1024)."""
_AT_ONCE = 32 << 10
"""Bytes of several frames that are sent by one system call; a longer frame goes alone.

The kernel passes on what is sent in blocks of some 36 KiB, and the reader may see a block while the
next is being made. A passt of 2023 then waits for the rest of its frame, takes one block for it,
and if that is not all it loses step, and everything that is on its way. So a frame may have two
blocks, and the second must hold nothing else.
"""
_SO_SNDBUFFORCE = 32
_SO_RCVBUFFORCE = 33


def enlarge(connection: socket.socket) -> None:
    """Gives a socket room for many frames, as far as the user may."""
    for forced, plain in (
        (_SO_SNDBUFFORCE, socket.SO_SNDBUF),
        (_SO_RCVBUFFORCE, socket.SO_RCVBUF),
    ):
        try:
            connection.setsockopt(socket.SOL_SOCKET, forced, _SOCKET_BUFFER)
        except OSError:
            connection.setsockopt(socket.SOL_SOCKET, plain, _SOCKET_BUFFER)


class Stream:
    """Both directions of one connected socket.

    `receive(frames)` as `Endpoint.receive`; `has_room()` as there.  `ended(reason)` is called once
    when the peer closes it or breaks the protocol; the stream is closed by then.  `validated`: what
    comes has right checksums.
    """

    def __init__(
        self,
        host: Host,
        connection: socket.socket,
        *,
        receive: Callable[[Sequence[Frame]], int],
        has_room: Callable[[], None],
        ended: Callable[[str], None],
        validated: bool = False,
    ) -> None:
        self._host = host
        self._socket = connection
        self._receive = receive
        self._has_room = has_room
        self._ended = ended
        self._validated = validated
        self._fd = connection.fileno()
        connection.setblocking(False)
        self._buffer = bytearray(_BUFFER)
        self._view = memoryview(self._buffer)
        self._start = 0
        self._end = 0
        self._rest = b""
        self._waiting = False
        self._open = True
        host.add_reader(self._fd, self._readable)

    # ---- to the peer ----------------------------------------------------------------------------

    def send(self, frames: Sequence[Frame]) -> int:
        """Takes finished frames; see `Endpoint.send`."""
        if not self._open:
            return len(frames)
        if self._rest:
            return 0
        done = 0
        while done < len(frames):
            frame = frames[done]
            buffers: list[Buffer] = [_LENGTH.pack(frame.size), *frame.parts]
            first, total = done, 4 + frame.size
            done += 1
            while done < len(frames) and len(buffers) < _MOST_PARTS - 32:
                frame = frames[done]
                if total + 4 + frame.size > _AT_ONCE:
                    break
                buffers.append(_LENGTH.pack(frame.size))
                buffers += frame.parts
                total += 4 + frame.size
                done += 1
            sent = self._sendmsg(buffers)
            if sent < 0:
                return len(frames)
            if sent < total:
                return self._keep_rest(frames, first, sent)
        return done

    def _sendmsg(self, buffers: list[Buffer]) -> int:
        try:
            return self._socket.sendmsg(buffers, (), socket.MSG_NOSIGNAL)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            self._fail(error.strerror or str(error))
            return -1

    def _keep_rest(self, frames: Sequence[Frame], first: int, sent: int) -> int:
        """A frame that is partly sent is ours to finish; those behind it are the caller's."""
        self._host.add_writer(self._fd, self._writable)
        for i in range(first, len(frames)):
            size = 4 + frames[i].size
            if sent < size:
                if not sent:
                    return i
                self._rest = (_LENGTH.pack(frames[i].size) + frames[i].data())[sent:]
                return i + 1
            sent -= size
        return len(frames)

    def _writable(self) -> None:
        if self._rest:
            sent = self._sendmsg([self._rest])
            if sent < 0:
                return
            self._rest = self._rest[sent:]
            if self._rest:
                return
        self._host.remove_writer(self._fd)
        self._has_room()

    # ---- from the peer --------------------------------------------------------------------------

    def _readable(self) -> None:
        if self._start and self._end == len(self._buffer):
            self._compact()
        try:
            got = self._socket.recv_into(self._view[self._end :])
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._fail(error.strerror or str(error))
            return
        if not got:
            self._fail("it closed the connection")
            return
        self._end += got
        self._pass_on()

    def _compact(self) -> None:
        size = self._end - self._start
        self._buffer[:size] = self._buffer[self._start : self._end]
        self._start, self._end = 0, size

    def _pass_on(self) -> None:
        at, end, view = self._start, self._end, self._view
        frames = []
        unpack, validated = _LENGTH.unpack_from, self._validated
        while end - at >= 4:
            (size,) = unpack(view, at)
            if not ETH_HLEN <= size <= LONGEST:
                self._fail(f"it sent a frame of {size} bytes")
                return
            if end - at - 4 < size:
                break
            frames.append(Frame([view[at + 4 : at + 4 + size]], size, validated=validated))
            at += 4 + size
        taken = self._receive(frames) if frames else 0
        if not self._open:
            return
        for frame in frames[:taken]:
            self._start += 4 + frame.size
        waiting = taken < len(frames)
        if waiting is not self._waiting:
            self._waiting = waiting
            if waiting:
                self._host.remove_reader(self._fd)
            else:
                self._host.add_reader(self._fd, self._readable)
        if self._start == end:
            self._start = self._end = 0
        elif len(self._buffer) - self._start < 2 * LONGEST:
            self._compact()

    def resume(self) -> None:
        """See `Endpoint.resume`."""
        if self._waiting:
            self._pass_on()

    # ---- the end --------------------------------------------------------------------------------

    def _fail(self, reason: str) -> None:
        if self._open:
            self.close()
            self._ended(reason)

    def close(self) -> None:
        """Ends it without a word; safe to repeat."""
        if self._open:
            self._open = False
            self._host.remove_reader(self._fd)
            self._host.remove_writer(self._fd)
            self._rest = b""
            self._socket.close()


class StreamEndpoint(Endpoint):
    """An endpoint that has at most one stream at a time; without one, frames are lost."""

    validated = False

    def __init__(self, host: Host, report: Callable[[str], None]) -> None:
        super().__init__()
        self._host = host
        self._report = report
        self._stream: Stream | None = None

    def connect(self, connection: socket.socket) -> None:
        """Takes up a connected socket."""
        with contextlib.suppress(OSError):
            enlarge(connection)
        self._stream = Stream(
            self._host,
            connection,
            receive=self._pass_in,
            has_room=self._go_on,
            ended=self._on_end,
            validated=self.validated,
        )

    # The interface sets its own after the stream may have been made.
    def _pass_in(self, frames: Sequence[Frame]) -> int:
        return self.receive(frames)

    def _go_on(self) -> None:
        self.has_room()

    def _on_end(self, reason: str) -> None:
        self._stream = None
        self.ended(reason)
        # Whoever waits for room need not any longer.
        self.has_room()

    def ended(self, reason: str) -> None:
        """The peer has gone: by default, the user is told."""
        self._report(reason)

    def send(self, frames: Sequence[Frame]) -> int:
        """See `Endpoint.send`."""
        return len(frames) if self._stream is None else self._stream.send(frames)

    def resume(self) -> None:
        """See `Endpoint.resume`."""
        if self._stream is not None:
            self._stream.resume()

    def close(self) -> None:
        """See `Endpoint.close`."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None
