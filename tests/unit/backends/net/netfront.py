"""A network frontend that does what a test says, and an endpoint that keeps what it is given."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from hvmlite.abi import netif as n
from hvmlite.backends.device import Backend, Device
from hvmlite.backends.net.endpoint import Endpoint
from hvmlite.backends.net.frame import Frame
from hvmlite.backends.net.netback import Netback
from hvmlite.backends.net.rate import RateLimit
from hvmlite.hypervisor.memory import Page
from hvmlite.toolstack.devices.vif import VifSpec
from hvmlite.toolstack.domain import Domain
from hvmlite.toolstack.host import Host

from ..frontend import Frontend, FrontRing

INITIALISING, INIT_WAIT, CONNECTED, CLOSING, CLOSED = 1, 2, 4, 5, 6
MAC = bytes.fromhex("00163e000001")
OTHER = bytes.fromhex("00163e000002")


class Recorder(Endpoint):
    """Keeps frames, as far as it has room."""

    def __init__(self, *, finished: bool = False) -> None:
        super().__init__()
        self.frames: list[Frame] = []
        self.room = 1 << 30
        self.resumed = 0
        self.closed = False
        self.csum_blank = self.gso = not finished

    def send(self, frames: Sequence[Frame]) -> int:
        taken = min(self.room, len(frames))
        self.room -= taken
        self.frames += [frame.copy() for frame in frames[:taken]]
        return taken

    def resume(self) -> None:
        self.resumed += 1

    def close(self) -> None:
        self.closed = True


@dataclass
class RecordedVif(VifSpec):
    """An interface whose endpoint is the test's."""

    endpoint: Endpoint | None = None

    def make(self, device: Device) -> Backend:
        if self.endpoint is None:
            return super().make(device)
        from hvmlite.toolstack.devices.vif import parse_rate

        rate = None
        if self.rate:
            rate = RateLimit(device.control.host.timers, *parse_rate(self.rate))
        self.mac = self.mac or MAC.hex(":")
        return Netback(device, self.endpoint, queues=self.queues or 2, rate=rate)


class NetFront(Frontend):
    """The guest's side of one interface."""

    def __init__(self, host: Host, domain: Domain, spec: VifSpec) -> None:
        self.messages: list[str] = []
        domain.on_message = self.messages.append
        kind, devid = domain.attach(spec)
        super().__init__(host, domain, kind, devid)
        self.tx: list[FrontRing] = []
        self.rx: list[FrontRing] = []
        self.tx_ports: list[int] = []
        self.rx_ports: list[int] = []
        self.pages: dict[int, Page] = {}
        self.posted: dict[int, int] = {}

    def connect(self, queues: int = 1, *, split: bool = True, **nodes: object) -> None:
        self.state(INITIALISING)
        self.tx, self.rx, self.tx_ports, self.rx_ports = [], [], [], []
        written: dict[str, object] = {
            "request_rx_copy": 1,
            "feature_sg": 1,
            "feature_gso_tcpv4": 1,
            "feature_gso_tcpv6": 1,
            "feature_ipv6_csum_offload": 1,
        }
        if queues > 1:
            written["multi_queue_num_queues"] = queues
        for queue in range(queues):
            where = f"queue_{queue}/" if queues > 1 else ""
            for name, size, rings in (("tx", 12, self.tx), ("rx", 8, self.rx)):
                page = self.page()
                rings.append(FrontRing([page], size))
                written[f"{where}{name}_ring_ref"] = self.grant(page)
            if split:
                self.tx_ports.append(self.port())
                self.rx_ports.append(self.port())
                written[f"{where}event_channel_tx"] = self.tx_ports[-1]
                written[f"{where}event_channel_rx"] = self.rx_ports[-1]
            else:
                self.tx_ports.append(self.port())
                self.rx_ports.append(self.tx_ports[-1])
                written[f"{where}event_channel"] = self.tx_ports[-1]
        self.write(**{**written, **nodes})
        self.state(CONNECTED)

    @property
    def backend_object(self) -> Netback:
        devices = self.domain.incarnation.devices
        assert devices is not None
        return cast(Netback, devices._devices["vif", int(self.home.rpartition("/")[2])].backend)

    # ---- sending --------------------------------------------------------------------------------

    def put(self, *slots: bytes, queue: int = 0) -> None:
        for slot in slots:
            self.tx[queue].put(slot.ljust(12, b"\0"))

    def go(self, queue: int = 0) -> list[tuple[int, int]]:
        """Shows what was put to the backend; returns (id, status) of the answers."""
        self.tx[queue].push()
        self.kick(self.tx_ports[queue])
        self.settle()
        return [struct.unpack("<Hh", each[:4]) for each in self.tx[queue].take()]

    def settle(self) -> None:
        """Lets the backend do what it put off."""
        for _ in range(6):
            self.call(lambda: None)

    def data(self, data: bytes) -> int:
        """Grants a page that begins with these bytes."""
        page = self.page()
        page.write(0, data)
        ref = self.grant(page, readonly=True)
        self.pages[ref] = page
        return ref

    def send(self, data: bytes, flags: int = 0, extra: Sequence[bytes] = (), queue: int = 0) -> int:
        """Puts a frame in as many slots as it needs; returns how many it took."""
        parts = [data[i : i + 4096] for i in range(0, len(data), 4096)] or [b""]
        more = n.NETTXF_more_data if len(parts) > 1 else 0
        more |= n.NETTXF_extra_info if extra else 0
        self.put(tx(self.data(parts[0]), len(data), flags | more, 1), *extra, queue=queue)
        for i, part in enumerate(parts[1:], 2):
            last = i == len(parts)
            more = 0 if last else n.NETTXF_more_data
            self.put(tx(self.data(part), len(part), more, i), queue=queue)
        return len(parts) + len(extra)

    # ---- receiving ------------------------------------------------------------------------------

    def post(self, count: int, queue: int = 0) -> None:
        """Gives the backend pages to fill."""
        for _ in range(count):
            page = self.page()
            ref = self.grant(page)
            identifier = len(self.posted) & 0xFFFF
            self.posted[identifier] = ref
            self.pages[ref] = page
            self.rx[queue].put(n.netif_rx_request(identifier, 0, ref).pack())
        if self.rx[queue].push():
            self.kick(self.rx_ports[queue])
            self.settle()

    def deliver(self, *frames: Frame) -> int:
        """Hands frames to the backend, as its endpoint would."""
        return self.call(lambda: self.backend_object.receive(list(frames)))

    def received(self, queue: int = 0) -> list[tuple[bytes, int, list[bytes]]]:
        """Frames with the flags of their first slot and their extra information."""
        found: list[tuple[bytes, int, list[bytes]]] = []
        raw = self.rx[queue].take()
        while raw:
            data, first, extras = b"", -1, []
            more = True
            while more:
                identifier, offset, flags, status = struct.unpack("<HHHh", raw.pop(0))
                assert status >= 0, status
                page = self.pages[self.posted[identifier]]
                data += page.read(offset, status)
                if first < 0:
                    first = flags
                    again = flags & n.NETRXF_extra_info
                    while again:
                        extras.append(raw.pop(0))
                        again = extras[-1][1] & n.XEN_NETIF_EXTRA_FLAG_MORE
                more = bool(flags & n.NETRXF_more_data)
            found.append((data, first, extras))
        return found


def tx(ref: int, size: int, flags: int = 0, identifier: int = 0, offset: int = 0) -> bytes:
    return n.netif_tx_request(ref, offset, flags, identifier, size).pack()


def gso(size: int, kind: int = n.XEN_NETIF_GSO_TYPE_TCPV4, flags: int = 0) -> bytes:
    inner = n.netif_extra_gso(size, kind).pack()
    return n.netif_extra_info(n.XEN_NETIF_EXTRA_TYPE_GSO, flags, inner).pack()


def ethernet(payload: bytes, to: bytes = OTHER, source: bytes = MAC, kind: int = 0x88B5) -> bytes:
    return to + source + kind.to_bytes(2, "big") + payload
