"""The backend of a guest's network interface ("vif").

Facts: io/netif.h; which nodes there are, and what a frontend that lies loses, as Linux's
xen-netback has it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING
from zlib import crc32

from hvmlite.backends.device import Backend, Device, DeviceError
from hvmlite.backends.net.control import ControlRing, HashSettings
from hvmlite.backends.net.endpoint import Endpoint
from hvmlite.backends.net.frame import Frame
from hvmlite.backends.net.headers import LONGEST, flow
from hvmlite.backends.net.offload import Offloads, finish
from hvmlite.backends.net.rx import RxQueue
from hvmlite.backends.net.tx import TxQueue

if TYPE_CHECKING:
    from hvmlite.backends.net.rate import RateLimit
    from hvmlite.xenstore.watches import Watch

MOST_QUEUES = 8
MOST_MULTICAST = 64
"""Multicast addresses that a guest may ask for (Linux: 64)."""
_MOST_HEADROOM = 512
_LAST_PORT = 131071
_LAST_REF = 0xFFFF_FFFF


class _Queue:
    """One pair of rings."""

    def __init__(self, tx: TxQueue, rx: RxQueue) -> None:
        self.tx = tx
        self.rx = rx
        self.scheduled = False


class Netback(Backend):
    """Joins the rings of one interface to an endpoint, which is closed with it.

    `queues`: how many the guest may use.  `rate`: what it may send at most, or None.
    """

    kind = "vif"

    def __init__(
        self,
        device: Device,
        endpoint: Endpoint,
        *,
        queues: int = 1,
        rate: RateLimit | None = None,
    ) -> None:
        super().__init__(device)
        self._endpoint = endpoint
        self._most_queues = min(queues, MOST_QUEUES)
        self._rate = rate
        self._queues: list[_Queue] = []
        self._guest = Offloads()
        self._multicast: set[bytes] = set()
        self._all_multicast = True
        self._hashing = HashSettings()
        self._control: ControlRing | None = None
        self._control_scheduled = False
        self._watch: Watch | None = None
        self._unsent: list[Frame] = []
        endpoint.receive = self.receive
        endpoint.has_room = self._go_on
        if rate is not None:
            rate.has_credit = self._go_on

    # ---- the life of a connection ---------------------------------------------------------------

    def offer(self) -> Mapping[str, str | int]:
        """See `Backend.offer`."""
        return {
            "feature-sg": 1,
            "feature-gso-tcpv4": 1,
            "feature-gso-tcpv6": 1,
            "feature-ipv6-csum-offload": 1,
            "feature-rx-copy": 1,
            "feature-xdp-headroom": 1,
            "feature-rx-flip": 0,
            "feature-multicast-control": 1,
            "feature-dynamic-multicast-control": 1,
            "feature-split-event-channels": 1,
            "multi-queue-max-queues": self._most_queues,
            "feature-ctrl-ring": 1,
        }

    def connect(self) -> None:
        """See `Backend.connect`."""
        device = self.device
        if not device.read_int("request-rx-copy", 0, 1, 0):
            raise DeviceError("it wants pages flipped, not copied")
        count = device.read_int("multi-queue-num-queues", 1, self._most_queues, 1)
        self._guest = Offloads(
            csum4=not device.read_int("feature-no-csum-offload", 0, 1, 0),
            csum6=bool(device.read_int("feature-ipv6-csum-offload", 0, 1, 0)),
            gso4=bool(device.read_int("feature-gso-tcpv4", 0, 1, 0)),
            gso6=bool(device.read_int("feature-gso-tcpv6", 0, 1, 0)),
            sg=bool(device.read_int("feature-sg", 0, 1, 0)),
        )
        self._multicast.clear()
        self._hashing = HashSettings()
        self._connect_control()
        for index in range(count):
            self._queues.append(self._connect_queue(f"queue-{index}/" if count > 1 else ""))
        self._multicast_changed("")
        self._watch = device.store.watch(
            f"{device.frontend_path}/request-multicast-control", self._multicast_changed, 0
        )
        self.reconfigure()
        for queue in self._queues:
            self._schedule(queue)
        # What waited for a guest is let in.
        self._endpoint.resume()

    def _connect_queue(self, where: str) -> _Queue:
        device = self.device
        control, domain = device.control, device.domain
        tx_ref = device.read_int(f"{where}tx-ring-ref", 0, _LAST_REF)
        rx_ref = device.read_int(f"{where}rx-ring-ref", 0, _LAST_REF)
        tx = TxQueue(
            device.window([tx_ref]),
            control.lease(domain, readonly=True),
            self._transmit,
            self._change_multicast,
        )
        rx = RxQueue(device.window([rx_ref]), control.lease(domain, readonly=False))
        queue = _Queue(tx, rx)

        def on_tx() -> None:
            self._serve(queue)

        def on_rx() -> None:
            if rx.waiting:
                rx.waiting = False
                self._endpoint.resume()

        def on_both() -> None:
            on_rx()
            on_tx()

        shared = device.read(f"{where}event-channel")
        if shared is not None and device.read(f"{where}event-channel-tx") is None:
            port = device.read_int(f"{where}event-channel", 1, _LAST_PORT)
            tx.port = rx.port = device.bind(port, on_both, deferred=True)
        else:
            port = device.read_int(f"{where}event-channel-tx", 1, _LAST_PORT)
            tx.port = device.bind(port, on_tx, deferred=True)
            port = device.read_int(f"{where}event-channel-rx", 1, _LAST_PORT)
            rx.port = device.bind(port, on_rx, deferred=True)
        return queue

    def _connect_control(self) -> None:
        device = self.device
        if device.read("ctrl-ring-ref") is None:
            return
        ref = device.read_int("ctrl-ring-ref", 0, _LAST_REF)
        control = ControlRing(
            device.window([ref]),
            self._hashing,
            device.control.lease(device.domain, readonly=True),
            lambda: len(self._queues),
        )
        port = device.read_int("event-channel-ctrl", 1, _LAST_PORT)
        control.port = device.bind(port, self._serve_control, deferred=True)
        self._control = control
        self._serve_control()

    def _serve_control(self) -> None:
        # A second vCPU could keep the ring from ever being empty: others get their turn.
        control = self._control
        if control is not None and control.serve() and not self._control_scheduled:
            self._control_scheduled = True
            self.device.soon(self._go_on_with_control)

    def _go_on_with_control(self) -> None:
        self._control_scheduled = False
        self._serve_control()

    def reconfigure(self) -> None:
        """The frontend runs a program on each frame, or no longer, and needs room before it."""
        headroom = self.device.read_int("xdp-headroom", 0, _MOST_HEADROOM, 0)
        for queue in self._queues:
            queue.rx.headroom = headroom

    def disconnect(self) -> None:
        """See `Backend.disconnect`."""
        self._queues.clear()
        self._control = None
        self._control_scheduled = False
        self._unsent.clear()
        if self._watch is not None:
            self.device.store.unwatch(self._watch)
            self._watch = None
        # What waits for this guest waits no longer.
        self._endpoint.resume()

    def close(self) -> None:
        """See `Backend.close`."""
        self._endpoint.close()
        if self._rate is not None:
            self._rate.close()

    # ---- from the guest -------------------------------------------------------------------------

    def _schedule(self, queue: _Queue) -> None:
        """Serves a queue soon, after others had their turn."""
        if queue.scheduled:
            return
        queue.scheduled = True

        def run() -> None:
            queue.scheduled = False
            self._serve(queue)

        self.device.soon(run)

    def _serve(self, queue: _Queue) -> None:
        if queue.tx.serve():
            self._schedule(queue)

    def _go_on(self) -> None:
        for queue in self._queues:
            self._schedule(queue)

    def _transmit(self, frames: Sequence[Frame]) -> int:
        """Takes frames off a ring; returns how many of the first."""
        rate, endpoint = self._rate, self._endpoint
        if rate is not None:
            frames = frames[: rate.allowed(frames)]
        if self._unsent:
            done = endpoint.send(self._unsent)
            del self._unsent[:done]
            if self._unsent:
                return 0
        if endpoint.gso and endpoint.csum_blank:
            taken = endpoint.send(frames) if frames else 0
        else:
            taken = self._finish_and_send(frames)
        if rate is not None:
            rate.spend(frames[:taken])
        return taken

    def _finish_and_send(self, frames: Sequence[Frame]) -> int:
        endpoint = self._endpoint
        ready = Offloads(
            csum4=endpoint.csum_blank,
            csum6=endpoint.csum_blank,
            gso4=endpoint.gso,
            gso6=endpoint.gso,
        )
        for count, frame in enumerate(frames):
            finished = finish(frame, ready)
            done = endpoint.send(finished) if finished else 0
            if done < len(finished):
                if not done:
                    return count
                # It is on its way in part: the rest is ours to keep, 64 KiB at most.
                self._unsent = [each.copy() for each in finished[done:]]
                return count + 1
        return len(frames)

    def _change_multicast(self, add: bool, address: bytes) -> bool:
        listening = self._multicast
        if add and len(listening) >= MOST_MULTICAST and address not in listening:
            return False
        (listening.add if add else listening.discard)(address)
        return True

    def _multicast_changed(self, _path: str) -> None:
        wanted = self.device.store.read(f"{self.device.frontend_path}/request-multicast-control")
        self._all_multicast = wanted != b"1"

    # ---- to the guest ---------------------------------------------------------------------------

    def receive(self, frames: Sequence[Frame]) -> int:
        """See `Endpoint.receive`."""
        queues = self._queues
        if not queues:
            return len(frames)
        taken = 0

        def work() -> None:
            nonlocal taken
            taken = self._deliver(queues, frames)

        # What the frontend did wrong ends its connection; the frames are lost then.
        self.device.guarded(work)
        return taken if self._queues else len(frames)

    def _deliver(self, queues: list[_Queue], frames: Sequence[Frame]) -> int:
        guest, hashing = self._guest, self._hashing
        plain = self._all_multicast and not hashing.algorithm and len(queues) == 1
        if plain and all(guest.takes(frame) for frame in frames):
            return queues[0].rx.receive(frames)
        for count, frame in enumerate(frames):
            if not self._listens(frame):
                continue
            if not guest.fits(frame):
                continue
            ready = [frame] if guest.takes(frame) else finish(frame, guest)
            rx = self._choose(queues, frame, ready).rx
            rx.hashed = bool(hashing.algorithm)
            if not rx.receive_all(ready):
                return count
        return len(frames)

    def _listens(self, frame: Frame) -> bool:
        if self._all_multicast:
            return True
        address = frame.head(6)
        if not address[0] & 1 or address == b"\xff" * 6:
            return True
        return address in self._multicast

    def _choose(self, queues: list[_Queue], frame: Frame, ready: Sequence[Frame]) -> _Queue:
        hashing = self._hashing
        if hashing.algorithm:
            hashed = hashing.hash(frame.head(LONGEST))
            for each in ready:
                each.hash = hashed
            queue = hashing.queue(hashed)
            return queues[queue if queue < len(queues) else 0]
        if len(queues) == 1:
            return queues[0]
        # Frames of one flow stay in order.
        return queues[crc32(flow(frame.head(LONGEST))) % len(queues)]
