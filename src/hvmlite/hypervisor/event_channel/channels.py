"""Event channels of one domain: the rules of binding, sending, closing and resetting ports.

The one object the rest of the hypervisor, the toolstack and the backends use. Where an event's
bits lie is two_level.py's and fifo.py's business; structs and copying are ops.py's.
Facts: public/event_channel.h, and what real Xen 4.17 answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hvmlite.abi.errno import (
    XEN_EACCES,
    XEN_EBUSY,
    XEN_EEXIST,
    XEN_EINVAL,
    XEN_ENOENT,
    XEN_ENOSPC,
    XEN_ENOSYS,
    XEN_EOPNOTSUPP,
    XEN_ESRCH,
)
from hvmlite.abi.event_channel import evtchn_fifo_control_block
from hvmlite.abi.xen import (
    DOMID_SELF,
    NR_VIRQS,
    VIRQ_ARGO,
    VIRQ_DEBUG,
    VIRQ_TIMER,
    VIRQ_XENOPROF,
    VIRQ_XENPMU,
)
from hvmlite.engine.memory import PAGE_SIZE
from hvmlite.hypervisor.call import XenError
from hvmlite.hypervisor.event_channel.backend import BackendPort
from hvmlite.hypervisor.event_channel.fifo import Fifo
from hvmlite.hypervisor.event_channel.ops import OPS
from hvmlite.hypervisor.event_channel.ports import (
    Port,
    PortInfo,
    PortOps,
    PortState,
    PortTable,
    mark_events_pending,
    port_info,
)
from hvmlite.hypervisor.event_channel.two_level import TwoLevel
from hvmlite.hypervisor.memory import Gfn
from hvmlite.hypervisor.physmap import P2mType

if TYPE_CHECKING:
    from hvmlite.hypervisor.call import Call
    from hvmlite.hypervisor.event_channel.interface import Callback, Domain, Page, Vcpu

NR_PIRQS = 56
"""PIRQs a domU may bind: those of a host with one 24-pin IO-APIC, and Xen's 32 extra for a domU."""

PER_VCPU_VIRQS = frozenset({VIRQ_TIMER, VIRQ_DEBUG, VIRQ_XENOPROF, VIRQ_XENPMU})
"""All other VIRQs are bound on vCPU 0, then moved by EVTCHNOP_bind_vcpu."""
_GLOBAL_VIRQS_HELD = (4, 21)
"""The release from which only domain 0, which gets them, can bind a global VIRQ (not VIRQ_ARGO)."""


def _drop() -> None:
    """A send on an unbound port is lost, without an error."""


def _deliver_to_consumer(port: Port) -> None:
    if port.consumer is not None:
        port.consumer()


class EventChannels:
    """All event channels of one domain.

    Methods that bind, close or change a port raise XenError with the errno the guest would get;
    send and unmask return it, negated. A domain's own calls and those made for it are the same.
    """

    def __init__(self, domain: Domain) -> None:
        self.domain = domain
        self.polling: set[Vcpu] = set()
        """vCPUs in SCHEDOP_poll. Each hears of every port that becomes pending (wake_poll)."""
        self._two_level = TwoLevel(domain, self.polling)
        self._fifo: Fifo | None = None
        self._ops: PortOps = self._two_level
        self._table = PortTable(domain, self._ops)
        self._ports = self._table.ports
        self._virqs: list[list[Port | None]] = []
        self._pirqs: dict[int, Port] = {}
        self._backends: dict[int, BackendPort] = {}
        self._dying = False

    # -- the hypercall ------------------------------------------------------------------------

    def dispatch(self, call: Call) -> int:
        """HYPERVISOR_event_channel_op: returns what the guest gets, or raises as handlers do."""
        # The command is an int in Xen: a 64-bit guest's upper half does not count.
        info = OPS.get(call.args[0] & 0xFFFFFFFF)
        if info is None:
            return -XEN_ENOSYS
        return info.handler(self, call)

    # -- sending ------------------------------------------------------------------------------

    def send(self, number: int) -> int:
        """Send an event to the other end of a port; returns 0, or -EINVAL for one without."""
        ports = self._ports
        if number >= len(ports):
            return -XEN_EINVAL
        signal = ports[number].signal
        if signal is None:
            return -XEN_EINVAL
        signal()
        return 0

    def send_virq(self, vcpu: Vcpu, virq: int) -> None:
        """Raise a per-vCPU VIRQ; nothing happens if the guest has not bound it."""
        rows = self._virqs
        if vcpu.id < len(rows):
            port = rows[vcpu.id][virq]
            if port is not None:
                port.deliver(port)

    def send_guest_global_virq(self, virq: int) -> None:
        """Raise a global VIRQ on the vCPU its port is bound to, if the guest has bound it."""
        if self._virqs:
            port = self._virqs[0][virq]
            if port is not None:
                port.deliver(port)

    # -- binding ------------------------------------------------------------------------------

    def alloc_unbound(self, remote_domid: int) -> int:
        """Allocate a port that `remote_domid` may bind; returns its number."""
        port = self._free_port()
        if remote_domid == DOMID_SELF:
            remote_domid = self.domain.domid
        port.remote_domid = remote_domid
        port.signal = _drop
        return self._bind(port, PortState.UNBOUND)

    def bind_interdomain(self, remote_domid: int, remote_port: int) -> int:
        """Bind to an unbound port of another domain, this one or a backend; returns the number.

        The new port is made pending: events sent before it was bound may have been lost.
        """
        remote = self._remote_channels(remote_domid)
        port = self._free_port()
        if remote is None:
            backend = self._backends.get(remote_port)
            if backend is None or backend.peer is not None or backend.domid != remote_domid:
                raise XenError(XEN_EINVAL)
            self._connect_backend(port, backend)
        else:
            peer = remote.port(remote_port)
            if peer.state is not PortState.UNBOUND or peer.remote_domid != self.domain.domid:
                raise XenError(XEN_EINVAL)
            port.peer = peer
            port.remote_domid = remote.domain.domid
            port.signal = peer.set_pending
            peer.peer = port
            peer.state = PortState.INTERDOMAIN
            if peer.consumer is None:
                peer.signal = port.set_pending
        self._bind(port, PortState.INTERDOMAIN)
        port.deliver(port)
        return port.number

    def bind_virq(self, virq: int, vcpu_id: int) -> int:
        """Bind a VIRQ to a port of its own; returns the number."""
        if virq >= NR_VIRQS:
            raise XenError(XEN_EINVAL)
        if virq not in PER_VCPU_VIRQS and vcpu_id != 0:
            raise XenError(XEN_EINVAL)
        vcpu = self._vcpu(vcpu_id)
        if (
            virq not in PER_VCPU_VIRQS
            and virq != VIRQ_ARGO
            and self.domain.domid
            and self.domain.release.pair >= _GLOBAL_VIRQS_HELD
        ):
            raise XenError(XEN_EBUSY)
        rows = self._virqs
        while len(rows) <= vcpu_id:
            rows.append([None] * NR_VIRQS)
        if rows[vcpu_id][virq] is not None:
            raise XenError(XEN_EEXIST)
        port = self._free_port()
        port.vcpu = vcpu
        port.virq = virq
        rows[vcpu_id][virq] = port
        return self._bind(port, PortState.VIRQ)

    def bind_ipi(self, vcpu_id: int) -> int:
        """Allocate a port that sends to `vcpu_id` of this domain; returns the number."""
        vcpu = self._vcpu(vcpu_id)
        port = self._free_port()
        port.vcpu = vcpu
        port.signal = port.set_pending
        return self._bind(port, PortState.IPI)

    def bind_pirq(self, pirq: int) -> int:
        """Bind a physical IRQ; returns the number. A PVH domU may bind, and nothing ever comes."""
        if pirq >= NR_PIRQS:
            raise XenError(XEN_EINVAL)
        if pirq in self._pirqs:
            raise XenError(XEN_EEXIST)
        port = self._free_port()
        port.pirq = pirq
        self._pirqs[pirq] = port
        return self._bind(port, PortState.PIRQ)

    def bind_vcpu(self, number: int, vcpu_id: int) -> None:
        """Choose the vCPU that a port notifies; IPIs and per-vCPU VIRQs cannot move."""
        vcpu = self._vcpu(vcpu_id)
        port = self.port(number)
        if (
            not port.usable
            or port.state is PortState.IPI
            or (port.state is PortState.VIRQ and port.virq in PER_VCPU_VIRQS)
        ):
            raise XenError(XEN_EINVAL)
        port.vcpu = vcpu
        self._ops.retarget(port)

    # -- closing ------------------------------------------------------------------------------

    def close(self, number: int) -> None:
        """Close a port as the guest does; the other end becomes unbound."""
        port = self.port(number)
        if not port.usable:
            raise XenError(XEN_EINVAL)
        self._close(port)

    def reset(self) -> None:
        """Close all ports the guest may close and return to the 2-level ABI."""
        for port in self._ports:
            if port.usable:
                self._close(port)
        self._leave_fifo()

    def destroy(self) -> None:
        """Close everything, for good, while the domain's pages are still there."""
        self._dying = True
        for port in self._ports:
            if port.state is not PortState.CLOSED and port.state is not PortState.RESERVED:
                self._close(port)
        self._backends.clear()
        self.polling.clear()
        self._leave_fifo()

    # -- the guest's bits ---------------------------------------------------------------------

    def unmask(self, number: int) -> int:
        """Unmask a port and deliver its event, if one is pending; returns 0 or -EINVAL."""
        ports = self._ports
        if number >= len(ports):
            return -XEN_EINVAL
        port = ports[number]
        if port.usable:
            self._ops.unmask(port)
        return 0

    def is_pending(self, number: int) -> bool:
        """Whether an event is pending on a port, masked or not."""
        return self.poll(number) > 0

    def is_masked(self, number: int) -> bool:
        """Whether a port is masked; one that is not in use counts as masked."""
        ports = self._ports
        if number >= len(ports) or not ports[number].usable:
            return True
        return self._ops.is_masked(ports[number])

    def poll(self, number: int) -> int:
        """What SCHEDOP_poll asks of a port: 1 pending, 0 not, -EINVAL if it is not in use."""
        ports = self._ports
        if number >= len(ports) or not ports[number].usable:
            return -XEN_EINVAL
        return int(self._ops.is_pending(ports[number]))

    def init_control(self, vcpu_id: int, gfn: int, offset: int) -> None:
        """Give a vCPU its FIFO control block; the first one switches the domain to FIFO."""
        vcpu = self._vcpu(vcpu_id)
        if offset > PAGE_SIZE - evtchn_fifo_control_block.sizeof() or offset & 7:
            raise XenError(XEN_EINVAL)
        fifo = self._fifo
        if fifo is not None:
            if fifo.has_control_block(vcpu):
                raise XenError(XEN_EINVAL)
            fifo.map_control_block(vcpu, self._page(gfn), offset)
            return
        page = self._page(gfn)
        fifo = Fifo(self.domain, self.polling)
        fifo.map_control_block(vcpu, page, offset)
        for port in self._ports:
            # The event array has no page yet: what is pending waits for it.
            port.saved_pending = port.usable and self._two_level.is_pending(port)
        self._fifo = fifo
        self._use(fifo)

    def expand_array(self, gfn: int) -> None:
        """Add a page of 1024 events to the FIFO event array."""
        fifo = self._fifo
        if fifo is None:
            raise XenError(XEN_EOPNOTSUPP)
        if fifo.array_full:
            raise XenError(XEN_ENOSPC)
        fifo.add_page(self._page(gfn), self._ports)

    def set_priority(self, number: int, priority: int) -> None:
        """Set a port's FIFO priority, 0 (highest) to 15, for the events to come."""
        port = self.port(number)
        fifo = self._fifo
        if fifo is None:
            raise XenError(XEN_ENOSYS)
        if not port.usable:
            raise XenError(XEN_EACCES)
        fifo.set_priority(port, priority)

    def abi_changed(self) -> None:
        """The domain's shared_info changed between the 32-bit and the 64-bit layout."""
        self._two_level = TwoLevel(self.domain, self.polling)
        if self._fifo is None:
            self._use(self._two_level)

    def vcpu_info_moved(self, vcpu: Vcpu) -> None:
        """vcpu_info has a new place: mark everything pending there, so that nothing is lost."""
        self._two_level.vcpu_info_moved(vcpu)
        mark_events_pending(vcpu)

    # -- the other end in this process --------------------------------------------------------

    def alloc_for_backend(self, callback: Callback, remote_domid: int = 0) -> BackendPort:
        """Allocate a port in the guest, bound to a backend from the start (store, console)."""
        port = self._ports[self.alloc_unbound(remote_domid)]
        return self.bind_backend(port.number, callback, remote_domid)

    def bind_backend(self, number: int, callback: Callback, domid: int = 0) -> BackendPort:
        """Bind a port that the guest allocated for `domid` to a backend in this process.

        The caller should look at its ring once: events sent before this were lost.
        """
        port = self.port(number)
        if port.state is not PortState.UNBOUND or port.remote_domid != domid:
            raise XenError(XEN_EINVAL)
        local_port = 1
        while local_port in self._backends:
            local_port += 1
        backend = BackendPort(self, domid, local_port, callback)
        self._backends[local_port] = backend
        port.state = PortState.INTERDOMAIN
        self._connect_backend(port, backend)
        return backend

    def close_backend(self, backend: BackendPort) -> None:
        """Close the backend's side of a port (BackendPort.close)."""
        if self._backends.get(backend.local_port) is not backend:
            return
        del self._backends[backend.local_port]
        port = backend.peer
        if port is not None:
            backend.peer = None
            self._unbind(port)

    def alloc_unbound_xen_event_channel(
        self, vcpu_id: int, remote_domid: int, callback: Callback
    ) -> int:
        """Allocate a port whose events Xen itself consumes (an ioreq server's); its number.

        The guest sees it in EVTCHNOP_status, and cannot send on it, move it or close it.
        """
        vcpu = self._vcpu(vcpu_id)
        port = self._free_port()
        port.vcpu = vcpu
        port.remote_domid = remote_domid
        port.consumer = callback
        port.deliver = _deliver_to_consumer
        return self._bind(port, PortState.UNBOUND)

    def free_xen_event_channel(self, number: int) -> None:
        """Close a port of alloc_unbound_xen_event_channel."""
        port = self.port(number)
        if port.consumer is None:
            raise XenError(XEN_EINVAL)
        self._close(port)

    def notify_via_xen_event_channel(self, number: int) -> None:
        """Send from Xen's side of such a port; nothing happens while it is unbound."""
        peer = self.port(number).peer
        if isinstance(peer, Port):
            peer.deliver(peer)
        elif peer is not None:
            peer.callback()

    # -- looking ------------------------------------------------------------------------------

    def port(self, number: int) -> Port:
        """The port behind a number, bound or not. Raises XenError(EINVAL) if there is none."""
        if not 0 <= number < len(self._ports):
            raise XenError(XEN_EINVAL)
        return self._ports[number]

    @property
    def fifo(self) -> bool:
        """Whether the guest has switched to the FIFO ABI."""
        return self._fifo is not None

    def ports(self) -> Iterator[PortInfo]:
        """The state of every bound port, lowest number first."""
        for port in self._ports:
            if port.state is not PortState.CLOSED and port.state is not PortState.RESERVED:
                yield port_info(port, self._ops)

    # -- helpers ------------------------------------------------------------------------------

    def _use(self, ops: PortOps) -> None:
        self._ops = ops
        self._table.use(ops)

    def _leave_fifo(self) -> None:
        fifo = self._fifo
        if fifo is not None:
            self._fifo = None
            self._use(self._two_level)
            fifo.release()

    def _free_port(self) -> Port:
        if self._dying:
            raise XenError(XEN_EINVAL)
        return self._table.lowest_free()

    def _vcpu(self, vcpu_id: int) -> Vcpu:
        vcpus = self.domain.vcpus
        if not 0 <= vcpu_id < len(vcpus):
            raise XenError(XEN_ENOENT)
        return vcpus[vcpu_id]

    def _page(self, gfn: int) -> Page:
        """A page of the guest's own RAM, the only kind that events may be written to."""
        entry = self.domain.physmap.lookup(gfn)
        if entry is None or entry[1] is not P2mType.RAM_RW:
            raise XenError(XEN_EINVAL)
        return self.domain.memory.page(Gfn(gfn))

    def _remote_channels(self, domid: int) -> EventChannels | None:
        """The event channels of another domain; None if it is one that this process plays."""
        domain = self.domain
        if domid in (DOMID_SELF, domain.domid):
            return self
        remote = domain.host.domain(domid)
        if remote is not None:
            return remote.evtchn
        if domid == 0 or any(backend.domid == domid for backend in self._backends.values()):
            return None
        raise XenError(XEN_ESRCH)

    def _bind(self, port: Port, state: PortState) -> int:
        port.state = state
        if port.consumer is None:
            self._ops.bound(port)
        return port.number

    @staticmethod
    def _connect_backend(port: Port, backend: BackendPort) -> None:
        port.peer = backend
        port.remote_domid = backend.domid
        if port.consumer is None:
            port.signal = backend.callback
        backend.peer = port

    @staticmethod
    def _unbind(port: Port) -> None:
        """The other end closed."""
        port.state = PortState.UNBOUND
        port.peer = None
        if port.consumer is None:
            port.signal = _drop

    def _close(self, port: Port) -> None:
        if port.state is PortState.VIRQ:
            row = port.vcpu.id if port.virq in PER_VCPU_VIRQS else 0
            self._virqs[row][port.virq] = None
        elif port.state is PortState.PIRQ:
            del self._pirqs[port.pirq]
        peer = port.peer
        if isinstance(peer, Port):
            self._unbind(peer)
        elif peer is not None:
            peer.peer = None
        port.peer = None
        port.signal = None
        if port.consumer is None:
            self._ops.clear_pending(port)
        else:
            port.consumer = None
            port.deliver = self._ops.set_pending
        port.state = PortState.CLOSED
        self._table.freed(port)
