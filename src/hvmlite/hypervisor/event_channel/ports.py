"""The port table of a domain: what each port is bound to, and which number is handed out next.

Knows neither the guest's words (two_level.py, fifo.py) nor the rules of binding (channels.py).
States as Xen's own event_channel.c keeps them; EVTCHNSTAT_* are from public/event_channel.h.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from hvmlite.abi import event_channel as abi
from hvmlite.abi.errno import XEN_ENOSPC
from hvmlite.hypervisor.call import XenError
from hvmlite.records import record

if TYPE_CHECKING:
    from hvmlite.hypervisor.event_channel.backend import BackendPort
    from hvmlite.hypervisor.event_channel.fifo import Queue
    from hvmlite.hypervisor.event_channel.interface import Callback, Domain, Page, Vcpu

PORTS_PER_BUCKET = 64
"""Ports come into being this many at a time; a number beyond the last bucket is not valid."""


class PortState(enum.IntEnum):
    """What a port is bound to. All but RESERVED have the value that EVTCHNOP_status answers."""

    CLOSED = abi.EVTCHNSTAT_closed
    UNBOUND = abi.EVTCHNSTAT_unbound
    INTERDOMAIN = abi.EVTCHNSTAT_interdomain
    PIRQ = abi.EVTCHNSTAT_pirq
    VIRQ = abi.EVTCHNSTAT_virq
    IPI = abi.EVTCHNSTAT_ipi
    RESERVED = 6
    """Port 0, which is never bound and shows as closed."""


class Port:
    """One event channel of a domain.

    `vcpu` is set while the port is bound. The second half belongs to the ABI in use: where the
    port's bits lie is worked out when the port or the ABI changes, not on every event.
    """

    __slots__ = (
        "bit",
        "consumer",
        "deliver",
        "last_queue",
        "mask_index",
        "number",
        "page",
        "peer",
        "pending_index",
        "pirq",
        "priority",
        "queue",
        "remote_domid",
        "saved_pending",
        "select_bit",
        "select_index",
        "signal",
        "state",
        "vcpu",
        "virq",
        "word",
    )

    number: int
    state: PortState
    vcpu: Vcpu
    remote_domid: int
    peer: Port | BackendPort | None
    virq: int
    pirq: int
    consumer: Callback | None
    """Set on a port whose events Xen itself consumes: the guest can neither send nor close."""
    signal: Callback | None
    """What EVTCHNOP_send on this port does; None: -EINVAL."""
    deliver: Callable[[Port], None]
    """Raises an event on this port: the ABI's set_pending, or the consumer's callback."""

    pending_index: int
    mask_index: int
    bit: int
    select_index: int
    select_bit: int
    page: Page | None
    word: int
    priority: int
    queue: Queue
    last_queue: Queue
    saved_pending: bool

    def __init__(self, number: int) -> None:
        self.number = number
        self.state = PortState.CLOSED
        self.remote_domid = 0
        self.peer = None
        self.virq = 0
        self.pirq = 0
        self.consumer = None
        self.signal = None
        self.page = None
        self.word = 0
        self.priority = abi.EVTCHN_FIFO_PRIORITY_DEFAULT
        self.saved_pending = False

    @property
    def usable(self) -> bool:
        """Bound, and its events are the guest's to see."""
        state = self.state
        return (
            self.consumer is None
            and state is not PortState.CLOSED
            and state is not PortState.RESERVED
        )

    @property
    def remote_port(self) -> int:
        """The number of the other end; 0 if there is none."""
        peer = self.peer
        if peer is None:
            return 0
        return peer.number if isinstance(peer, Port) else peer.local_port

    def set_pending(self) -> None:
        """Raise an event on this port."""
        self.deliver(self)


class PortOps(Protocol):
    """The operations in which the 2-level and the FIFO ABI differ."""

    @property
    def max_ports(self) -> int:
        """Number of ports this ABI can express."""

    def place(self, port: Port, /) -> None:
        """Work out where the port's bits lie; called for every port there is."""

    def bound(self, port: Port, /) -> None:
        """The port was bound anew."""

    def retarget(self, port: Port, /) -> None:
        """The port's vCPU changed."""

    def set_pending(self, port: Port, /) -> None:
        """Raise an event and tell the vCPU if it must hear of it."""

    def clear_pending(self, port: Port, /) -> None:
        """Take back an event that the guest has not seen."""

    def unmask(self, port: Port, /) -> None:
        """Clear the mask; deliver the event if there is one."""

    def is_pending(self, port: Port, /) -> bool:
        """Whether an event is pending, masked or not."""

    def is_masked(self, port: Port, /) -> bool:
        """Whether the guest masks the port."""

    def is_busy(self, port: Port, /) -> bool:
        """Whether a closed port cannot be handed out yet."""

    def describe(self, port: Port, /) -> str:
        """The ABI's own state of a port, for a person to read."""


@record(frozen=True)
class PortInfo:
    """The state of one bound port, for debugging. Fields that do not apply are None."""

    port: int
    state: PortState
    vcpu: int
    pending: bool
    masked: bool
    remote_domid: int | None
    remote_port: int | None
    virq: int | None
    pirq: int | None
    xen_consumer: bool
    detail: str


def port_info(port: Port, ops: PortOps) -> PortInfo:
    """The state of a bound port."""
    state = port.state
    interdomain = state is PortState.INTERDOMAIN
    usable = port.usable
    return PortInfo(
        port=port.number,
        state=state,
        vcpu=port.vcpu.id,
        pending=usable and ops.is_pending(port),
        masked=not usable or ops.is_masked(port),
        remote_domid=port.remote_domid if interdomain or state is PortState.UNBOUND else None,
        remote_port=port.remote_port if interdomain else None,
        virq=port.virq if state is PortState.VIRQ else None,
        pirq=port.pirq if state is PortState.PIRQ else None,
        xen_consumer=port.consumer is not None,
        detail=ops.describe(port),
    )


class PortTable:
    """All ports of a domain, in buckets; the lowest free number is handed out first."""

    def __init__(self, domain: Domain, ops: PortOps) -> None:
        self._domain = domain
        self._ops = ops
        self.ports: list[Port] = []
        self._grow()
        self.ports[0].state = PortState.RESERVED
        self._first_free = 1
        """No port below this one is free."""

    def use(self, ops: PortOps) -> None:
        """Change the ABI under all ports."""
        self._ops = ops
        for port in self.ports:
            # Nothing of the ABI before may hold on to the guest's pages.
            port.page = None
            ops.place(port)
            if port.consumer is None:
                port.deliver = ops.set_pending

    def lowest_free(self) -> Port:
        """The port to bind next, its vCPU reset to vCPU 0; free until its state is set.

        Raises XenError(ENOSPC) at the domain's limit or the ABI's.
        """
        ports = self.ports
        end = min(self._domain.max_evtchn_port + 1, self._ops.max_ports)
        first_free = None
        for number in range(self._first_free, end):
            if number == len(ports):
                self._grow()
            port = ports[number]
            if port.state is not PortState.CLOSED:
                continue
            if first_free is None:
                first_free = number
            if not self._ops.is_busy(port):
                self._first_free = first_free
                port.vcpu = self._domain.vcpus[0]
                return port
        self._first_free = end if first_free is None else first_free
        raise XenError(XEN_ENOSPC)

    def freed(self, port: Port) -> None:
        """A port was closed."""
        self._first_free = min(self._first_free, port.number)

    def _grow(self) -> None:
        first = len(self.ports)
        for number in range(first, first + PORTS_PER_BUCKET):
            port = Port(number)
            self._ops.place(port)
            port.deliver = self._ops.set_pending
            self.ports.append(port)


def mark_events_pending(vcpu: Vcpu) -> None:
    """Set evtchn_upcall_pending of a vCPU; the vCPU hears of it if it was clear."""
    # evtchn_upcall_pending is the first byte of vcpu_info; Xen, too, tests and sets bit 0 of it.
    if not vcpu.info_page.fetch_or32(vcpu.info_offset >> 2, 1) & 1:
        vcpu.event_pending()


def wake_pollers(polling: set[Vcpu], port: Port) -> None:
    """Tell the vCPUs in SCHEDOP_poll that a port became pending."""
    # A vCPU that wakes leaves the set.
    for vcpu in tuple(polling):
        vcpu.wake_poll(port.number)
