"""An image behind an NBD server that is reached by a Unix socket: one connection, many requests.

Facts: the NBD protocol (doc/proto.md of the reference implementation): fixed newstyle negotiation,
NBD_OPT_GO, simple replies.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections import deque
from collections.abc import Callable
from typing import Protocol

from hvmlite.backends.block.image import Buffer, Image, Job, Operation

NBDMAGIC = 0x4E42444D41474943
IHAVEOPT = 0x49484156454F5054
NBD_FLAG_C_FIXED_NEWSTYLE = 1
NBD_OPT_GO = 7
NBD_OPT_REPLY = 0x3E889045565A9
NBD_REP_ACK = 1
NBD_REP_INFO = 3
NBD_INFO_EXPORT = 0
NBD_FLAG_SEND_FLUSH = 1 << 2
NBD_FLAG_SEND_TRIM = 1 << 5
NBD_REQUEST_MAGIC = 0x25609513
NBD_SIMPLE_REPLY_MAGIC = 0x67446698
NBD_CMD = {
    Operation.READ: 0,
    Operation.WRITE: 1,
    Operation.FLUSH: 3,
    Operation.DISCARD: 4,
}
_REQUEST = struct.Struct(">IHHQQI")
_REPLY = struct.Struct(">IIQ")
_OPTION_REPLY = struct.Struct(">QIII")
_GREETING = struct.Struct(">QQH")
_EXPORT = struct.Struct(">HQH")
_LONGEST_OPTION = 4096
_MOST_OPTIONS = 64
_LONGEST_TRIM = 1 << 30
_MOST_VIEWS = os.sysconf("SC_IOV_MAX")


class NbdError(Exception):
    """The server does not speak the protocol as it should, or has gone."""


class Loop(Protocol):
    """What is used of the host loop."""

    def add_reader(self, fd: int, callback: Callable[[], None]) -> None:
        """Has `callback()` called whenever `fd` is readable."""

    def remove_reader(self, fd: int) -> None:
        """Ends `add_reader`."""

    def add_writer(self, fd: int, callback: Callable[[], None]) -> None:
        """Has `callback()` called whenever `fd` is writable."""

    def remove_writer(self, fd: int) -> None:
        """Ends `add_writer`."""


class NbdImage(Image):
    """An export of a connected server.

    The negotiation waits for the server, up to the socket's timeout; it raises NbdError or OSError.
    `on_close()` is called at the end.
    """

    def __init__(
        self, connection: socket.socket, export: str, loop: Loop, on_close: Callable[[], None]
    ) -> None:
        self._socket = connection
        self._loop = loop
        self._on_close = on_close
        flags = self._negotiate(export.encode())
        self._flushes = bool(flags & NBD_FLAG_SEND_FLUSH)
        self.discards = bool(flags & NBD_FLAG_SEND_TRIM)
        self._jobs: dict[int, Job] = {}
        self._number = 0
        self._output: deque[Buffer] = deque()
        self._writing = False
        self._header = bytearray()
        self._reading: Job | None = None
        self._views: list[Buffer] = []
        self._lost = False
        connection.setblocking(False)
        loop.add_reader(connection.fileno(), self._readable)

    # ---- negotiation ----------------------------------------------------------------------------

    def _receive(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            more = self._socket.recv(size - len(data))
            if not more:
                raise NbdError("it closed the connection")
            data += more
        return bytes(data)

    def _negotiate(self, export: bytes) -> int:
        magic, option, _ = _GREETING.unpack(self._receive(_GREETING.size))
        if magic != NBDMAGIC or option != IHAVEOPT:
            raise NbdError("it is no NBD server of the newstyle")
        body = struct.pack(">I", len(export)) + export + struct.pack(">H", 0)
        self._socket.sendall(
            struct.pack(">IQII", NBD_FLAG_C_FIXED_NEWSTYLE, IHAVEOPT, NBD_OPT_GO, len(body)) + body
        )
        flags = -1
        for _ in range(_MOST_OPTIONS):
            magic, _, kind, length = _OPTION_REPLY.unpack(self._receive(_OPTION_REPLY.size))
            if magic != NBD_OPT_REPLY or length > _LONGEST_OPTION:
                raise NbdError("its answer to NBD_OPT_GO is nonsense")
            data = self._receive(length)
            if kind == NBD_REP_ACK and flags >= 0:
                return flags
            if kind >> 31:
                raise NbdError(f"it refuses the export: {data.decode(errors='replace')[:80]}")
            if kind == NBD_REP_INFO and len(data) == _EXPORT.size:
                info, size, export_flags = _EXPORT.unpack(data)
                if info == NBD_INFO_EXPORT:
                    self.size, flags = size, export_flags
        raise NbdError("it does not come to an end with its answer to NBD_OPT_GO")

    # ---- requests -------------------------------------------------------------------------------

    def start(self, job: Job) -> None:
        """See `Image.start`."""
        if self._lost:
            job.done(_gone())
        elif job.operation is Operation.FLUSH and not self._flushes:
            # Such a server writes through.
            job.done(None)
        elif job.operation is Operation.DISCARD and job.size > _LONGEST_TRIM:
            self._trim_in_parts(job)
        else:
            self._send(job)

    def _trim_in_parts(self, job: Job) -> None:
        def part(at: int, left: int, error: OSError | None) -> None:
            size = min(left, _LONGEST_TRIM)
            if error is not None or not size:
                job.done(error)
                return
            self.start(
                Job(Operation.DISCARD, at, size, (), lambda e: part(at + size, left - size, e))
            )

        part(job.offset, job.size, None)

    def _send(self, job: Job) -> None:
        self._number = number = self._number + 1 & 0xFFFF_FFFF_FFFF_FFFF
        self._jobs[number] = job
        operation = job.operation
        header = _REQUEST.pack(
            NBD_REQUEST_MAGIC, 0, NBD_CMD[operation], number, job.offset, job.size
        )
        self._output.append(memoryview(header))
        if operation is Operation.WRITE:
            self._output += job.views
        if not self._writing:
            self._write()

    def _write(self) -> None:
        output = self._output
        try:
            while output:
                sent = self._socket.sendmsg(
                    [output[i] for i in range(min(len(output), _MOST_VIEWS))]
                )
                while output and sent >= len(output[0]):
                    sent -= len(output.popleft())
                if sent:
                    output[0] = memoryview(output[0])[sent:]
        except BlockingIOError:
            pass
        except OSError:
            self._lose()
            return
        if bool(output) != self._writing:
            self._writing = bool(output)
            if output:
                self._loop.add_writer(self._socket.fileno(), self._write)
            else:
                self._loop.remove_writer(self._socket.fileno())

    # ---- replies --------------------------------------------------------------------------------

    def _readable(self) -> None:
        try:
            while not self._lost:
                if self._views:
                    self._take_data()
                else:
                    self._take_header()
        except BlockingIOError:
            pass
        except (OSError, NbdError):
            self._lose()

    def _take_data(self) -> None:
        views = self._views
        got = self._socket.recvmsg_into(views[:_MOST_VIEWS])[0]
        if not got:
            raise NbdError("it closed the connection")
        done = 0
        while done < len(views) and got >= len(views[done]):
            got -= len(views[done])
            done += 1
        del views[:done]
        if got:
            views[0] = memoryview(views[0])[got:]
        if not views:
            job, self._reading = self._reading, None
            assert job is not None
            job.done(None)

    def _take_header(self) -> None:
        header = self._header
        more = self._socket.recv(_REPLY.size - len(header))
        if not more:
            raise NbdError("it closed the connection")
        header += more
        if len(header) < _REPLY.size:
            return
        magic, error, number = _REPLY.unpack(header)
        header.clear()
        job = self._jobs.pop(number, None)
        if magic != NBD_SIMPLE_REPLY_MAGIC or job is None:
            if job is not None:
                self._jobs[number] = job
            raise NbdError("its answer is nonsense")
        if error:
            # The protocol's numbers are Linux's.
            job.done(OSError(error, os.strerror(error)))
        elif job.operation is Operation.READ:
            self._reading = job
            self._views = [view for view in job.views if len(view)]
        else:
            job.done(None)

    # ---- the end --------------------------------------------------------------------------------

    def _lose(self) -> None:
        """The server has gone: whatever is under way fails."""
        if self._lost:
            return
        self._stop()
        jobs = list(self._jobs.values())
        if self._reading is not None:
            jobs.append(self._reading)
        self._jobs.clear()
        self._views.clear()
        self._output.clear()
        for job in jobs:
            job.done(_gone())

    def _stop(self) -> None:
        if not self._lost:
            self._lost = True
            self._loop.remove_reader(self._socket.fileno())
            if self._writing:
                self._loop.remove_writer(self._socket.fileno())
            self._socket.close()

    def close(self) -> None:
        """See `Image.close`."""
        if not self._lost:
            with contextlib.suppress(OSError):
                # NBD_CMD_DISC: no answer follows.
                self._socket.send(_REQUEST.pack(NBD_REQUEST_MAGIC, 0, 2, 0, 0, 0))
        self._stop()
        self._on_close()


def _gone() -> OSError:
    return OSError(errno.EIO, "the program that serves the image has gone")
