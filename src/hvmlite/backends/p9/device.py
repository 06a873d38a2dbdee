"""The PV device "9pfs": rings of requests, and a server behind them that works in other threads.

Facts: docs/misc/9pfs.pandoc; what Linux's net/9p/trans_xen.c does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING

from hvmlite.backends.device import Backend, Device, DeviceError
from hvmlite.backends.p9.handlers import Job
from hvmlite.backends.p9.server import Server
from hvmlite.backends.p9.transport import MAX_ORDER, MAX_RINGS, MessageRing
from hvmlite.backends.p9.wire import MalformedError

if TYPE_CHECKING:
    from hvmlite.backends.p9.files import Node
    from hvmlite.hypervisor.event_channel import BackendPort

_MAX_PORT = (1 << 17) - 1
MAX_MSIZE = 1 << 19
"""Bytes of the longest message: the most that Linux asks for over this transport."""
MAX_JOBS = 32
"""Requests that are off the rings and not answered, of one device."""
_MAX_BYTES = 1 << 22
"""Bytes of such requests and of answers that wait for room; beyond it requests stay on the rings."""
_AT_ONCE = 2
"""Threads that one device may keep busy: a share that hangs leaves some for others."""


class _Channel:
    """One ring with its event channel, and the answers that it has no room for."""

    def __init__(self, ring: MessageRing) -> None:
        self.ring = ring
        self.port: BackendPort
        self.unsent: deque[bytes] = deque()


class P9Device(Backend):
    """One shared folder, `root`; see Session for `max_fids` and `max_open`."""

    kind = "9pfs"

    def __init__(
        self, device: Device, root: Node, *, readonly: bool, max_fids: int, max_open: int
    ) -> None:
        super().__init__(device)
        self._root = root
        self._readonly = readonly
        self._max_fids = max_fids
        self._max_open = max_open
        self._server: Server | None = None
        self._channels: list[_Channel] = []
        self._jobs = 0
        self._bytes = 0
        self._busy = 0
        self._queue: deque[tuple[_Channel, Job, object]] = deque()
        self._limit = 0

    def offer(self) -> Mapping[str, str | int]:
        """What the transport can do."""
        return {"versions": "1", "max-rings": MAX_RINGS, "max-ring-page-order": MAX_ORDER}

    def connect(self) -> None:
        """Takes up the frontend's rings."""
        device = self.device
        if (version := device.read("version")) != "1":
            raise DeviceError(f"its version is {str(version)[:40]!r}, not '1'")
        for i in range(device.read_int("num-rings", 1, MAX_RINGS)):
            ring = MessageRing(device, device.read_int(f"ring-ref{i}", 0, 0xFFFF_FFFF))
            channel = _Channel(ring)
            self._channels.append(channel)
            port = device.read_int(f"event-channel-{i}", 1, _MAX_PORT)
            channel.port = device.bind(port, lambda channel=channel: self._event(channel))  # type: ignore[misc]
        self._limit = min(MAX_MSIZE, *(each.ring.size for each in self._channels))
        self._server = Server(
            self._root,
            self._limit,
            readonly=self._readonly,
            max_fids=self._max_fids,
            max_open=self._max_open,
        )
        self._jobs = self._bytes = 0
        for channel in self._channels:
            self._take(channel)

    def disconnect(self) -> None:
        """Forgets the client; what threads still do for it ends by itself."""
        self._channels = []
        for _, job, _ in self._queue:
            job.cancel()
        self._queue.clear()
        if self._server is not None:
            self._server.close()
            self._server = None

    def close(self) -> None:
        """Lets go of the folder."""
        self._root.release()

    # ---- requests -------------------------------------------------------------------------------

    def _event(self, channel: _Channel) -> None:
        sent = False
        while channel.unsent and channel.ring.put(channel.unsent[0]):
            self._gone(channel.unsent.popleft())
            sent = True
        if sent:
            channel.port.notify()
            for each in self._channels:
                self._take(each)
        else:
            self._take(channel)

    def _take(self, channel: _Channel) -> None:
        """Takes requests off a ring, as many as may be under way."""
        server = self._server
        while server is not None and self._jobs < MAX_JOBS and self._bytes < _MAX_BYTES:
            message = channel.ring.take(self._limit)
            if message is None:
                return
            try:
                job = server.begin(message)
            except MalformedError as error:
                raise DeviceError(f"a malformed request of type {message[4]}") from error
            self._jobs += 1
            # The answer to a read is as long as a message may be.
            self._bytes += self._limit
            self._carry_on(channel, job, job.step())
            server = self._server

    def _carry_on(self, channel: _Channel, job: Job, step: object) -> None:
        if isinstance(step, Job):
            step.waiters.append(lambda: self._carry_on(channel, job, job.step()))
        elif step is None:
            self._answer(channel, job)
        elif self._busy >= _AT_ONCE:
            self._queue.append((channel, job, step))
        else:
            self._start(channel, job, step)

    def _start(self, channel: _Channel, job: Job, step: object) -> None:
        assert callable(step)
        self._busy += 1

        def done(result: object, error: BaseException | None) -> None:
            self._busy -= 1
            following = job.step(result, error)
            if channel not in self._channels:
                # Its frontend has gone.
                if following is not None:
                    job.cancel()
            else:
                self._carry_on(channel, job, following)
            while self._queue and self._busy < _AT_ONCE:
                self._start(*self._queue.popleft())

        self.device.work(step, done)

    def _answer(self, channel: _Channel, job: Job) -> None:
        if channel.unsent or not channel.ring.put(job.answer):
            channel.unsent.append(job.answer)
        else:
            self._gone(job.answer)
            channel.port.notify()
        for waiter in job.waiters:
            waiter()
        if self._queue or self._jobs == MAX_JOBS - 1:
            return
        for each in self._channels:
            self._take(each)

    def _gone(self, _answer: bytes) -> None:
        self._jobs -= 1
        self._bytes -= self._limit
