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
"""Bytes that their messages may take; beyond it requests stay on the rings."""
_AT_ONCE = 2
"""Threads that one device may keep busy: a share that hangs leaves some for others."""
_AT_A_TIME = 64
"""Requests that are begun before others get their turn."""


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
        self._jobs = 0
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
            channel.unsent.popleft()
            self._jobs -= 1
            sent = True
        if sent:
            channel.port.notify()
        self._take_all()

    def _take_all(self) -> None:
        for channel in self._channels:
            self._take(channel)

    def _take(self, channel: _Channel) -> None:
        """Takes requests off a ring, as many as may be under way."""
        server = self._server
        if server is None:
            return
        most = min(MAX_JOBS, max(_AT_ONCE, _MAX_BYTES // (server.msize or self._limit)))
        for _ in range(_AT_A_TIME):
            if self._jobs >= most:
                return
            message = channel.ring.take(self._limit)
            if message is None:
                return
            try:
                job = server.begin(message)
            except MalformedError as error:
                raise DeviceError(f"a malformed request of type {message[4]}") from error
            self._jobs += 1
            self._carry_on(channel, job, job.step())
        self.device.soon(lambda: self._take(channel))

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
            if channel in self._channels:
                self._carry_on(channel, job, following)
            elif following is not None:
                # Its frontend has gone.
                job.cancel()
            while self._queue and self._busy < _AT_ONCE:
                self._start(*self._queue.popleft())
            self._take_all()

        self.device.work(step, done)

    def _answer(self, channel: _Channel, job: Job) -> None:
        if channel.unsent or not channel.ring.put(job.answer):
            channel.unsent.append(job.answer)
        else:
            self._jobs -= 1
            channel.port.notify()
        for waiter in job.waiters:
            waiter()
