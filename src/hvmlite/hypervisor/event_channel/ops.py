"""HYPERVISOR_event_channel_op: copies a call's struct in, has the channels do it, copies it out.

No rules of its own but who may name which domain. OPS is also what docs/limits.md lists.
Facts: public/event_channel.h; the order of checks is that of real Xen 4.17's answers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from hvmlite.abi import event_channel as abi
from hvmlite.abi.errno import XEN_EBUSY, XEN_EPERM, XEN_ESRCH
from hvmlite.abi.xen import DOMID_SELF
from hvmlite.hypervisor.call import XenError
from hvmlite.hypervisor.event_channel.ports import PortState
from hvmlite.records import record

if TYPE_CHECKING:
    from hvmlite.hypervisor.call import Call
    from hvmlite.hypervisor.event_channel.channels import EventChannels

EVTCHNOP_reset_cont = 14
"""Xen's own continuation of EVTCHNOP_reset; the public header shows it to Xen alone."""


@record(frozen=True)
class OpInfo:
    """One sub-operation: its header name, its handler, and the Xen version that brought it."""

    name: str
    handler: Callable[[EventChannels, Call], int]
    since: str


def _require_self(channels: EventChannels, domid: int) -> None:
    """Only the caller's own domain may be named. Raises XenError(EPERM or ESRCH)."""
    domain = channels.domain
    if domid in (DOMID_SELF, domain.domid):
        return
    # Domain 0 is this process itself: it exists, whether or not a Domain object plays it.
    known = domid == 0 or domain.host.domain(domid) is not None
    raise XenError(XEN_EPERM if known else XEN_ESRCH)


def _alloc_unbound(channels: EventChannels, call: Call) -> int:
    arg = call.copy_from(call.args[1], abi.evtchn_alloc_unbound)
    _require_self(channels, arg.dom)
    arg.port = channels.alloc_unbound(arg.remote_dom)
    call.copy_to(call.args[1], arg)
    return 0


def _bind_interdomain(channels: EventChannels, call: Call) -> int:
    arg = call.copy_from(call.args[1], abi.evtchn_bind_interdomain)
    arg.local_port = channels.bind_interdomain(arg.remote_dom, arg.remote_port)
    call.copy_to(call.args[1], arg)
    return 0


def _bind_virq(channels: EventChannels, call: Call) -> int:
    arg = call.copy_from(call.args[1], abi.evtchn_bind_virq)
    arg.port = channels.bind_virq(arg.virq, arg.vcpu)
    call.copy_to(call.args[1], arg)
    return 0


def _bind_pirq(channels: EventChannels, call: Call) -> int:
    arg = call.copy_from(call.args[1], abi.evtchn_bind_pirq)
    arg.port = channels.bind_pirq(arg.pirq)
    call.copy_to(call.args[1], arg)
    return 0


def _close(channels: EventChannels, call: Call) -> int:
    channels.close(call.copy_from(call.args[1], abi.evtchn_close).port)
    return 0


def _send(channels: EventChannels, call: Call) -> int:
    return channels.send(call.copy_from(call.args[1], abi.evtchn_send).port)


def _status(channels: EventChannels, call: Call) -> int:
    arg = call.copy_from(call.args[1], abi.evtchn_status)
    _require_self(channels, arg.dom)
    port = channels.port(arg.port)
    state = port.state
    member = b""
    if state is PortState.UNBOUND:
        member = abi.evtchn_status_unbound(dom=port.remote_domid).pack(call.abi)
    elif state is PortState.INTERDOMAIN:
        member = abi.evtchn_status_interdomain(dom=port.remote_domid, port=port.remote_port).pack(
            call.abi
        )
    elif state is PortState.PIRQ:
        member = abi.evtchn_status_irq(irq=port.pirq).pack(call.abi)
    elif state is PortState.VIRQ:
        member = abi.evtchn_status_irq(irq=port.virq).pack(call.abi)
    # What the port's state has no use for stays as the guest left it.
    arg.u = member + arg.u[len(member) :]
    bound = state is not PortState.CLOSED and state is not PortState.RESERVED
    arg.status = state if bound else abi.EVTCHNSTAT_closed
    arg.vcpu = port.vcpu.id if bound else 0
    call.copy_to(call.args[1], arg)
    return 0


def _bind_ipi(channels: EventChannels, call: Call) -> int:
    arg = call.copy_from(call.args[1], abi.evtchn_bind_ipi)
    arg.port = channels.bind_ipi(arg.vcpu)
    call.copy_to(call.args[1], arg)
    return 0


def _bind_vcpu(channels: EventChannels, call: Call) -> int:
    arg = call.copy_from(call.args[1], abi.evtchn_bind_vcpu)
    channels.bind_vcpu(arg.port, arg.vcpu)
    return 0


def _unmask(channels: EventChannels, call: Call) -> int:
    return channels.unmask(call.copy_from(call.args[1], abi.evtchn_unmask).port)


def _reset(channels: EventChannels, call: Call) -> int:
    _require_self(channels, call.copy_from(call.args[1], abi.evtchn_reset).dom)
    channels.reset()
    return 0


def _reset_cont(channels: EventChannels, call: Call) -> int:
    _require_self(channels, call.copy_from(call.args[1], abi.evtchn_reset).dom)
    # A reset runs in one go here, so there is never one to continue.
    return -XEN_EBUSY


def _init_control(channels: EventChannels, call: Call) -> int:
    arg = call.copy_from(call.args[1], abi.evtchn_init_control)
    channels.init_control(arg.vcpu, arg.control_gfn, arg.offset)
    arg.link_bits = abi.EVTCHN_FIFO_LINK_BITS
    call.copy_to(call.args[1], arg)
    return 0


def _expand_array(channels: EventChannels, call: Call) -> int:
    channels.expand_array(call.copy_from(call.args[1], abi.evtchn_expand_array).array_gfn)
    return 0


def _set_priority(channels: EventChannels, call: Call) -> int:
    arg = call.copy_from(call.args[1], abi.evtchn_set_priority)
    channels.set_priority(arg.port, arg.priority)
    return 0


OPS: dict[int, OpInfo] = {
    abi.EVTCHNOP_bind_interdomain: OpInfo("EVTCHNOP_bind_interdomain", _bind_interdomain, "3.0"),
    abi.EVTCHNOP_bind_virq: OpInfo("EVTCHNOP_bind_virq", _bind_virq, "3.0"),
    abi.EVTCHNOP_bind_pirq: OpInfo("EVTCHNOP_bind_pirq", _bind_pirq, "3.0"),
    abi.EVTCHNOP_close: OpInfo("EVTCHNOP_close", _close, "3.0"),
    abi.EVTCHNOP_send: OpInfo("EVTCHNOP_send", _send, "3.0"),
    abi.EVTCHNOP_status: OpInfo("EVTCHNOP_status", _status, "3.0"),
    abi.EVTCHNOP_alloc_unbound: OpInfo("EVTCHNOP_alloc_unbound", _alloc_unbound, "3.0"),
    abi.EVTCHNOP_bind_ipi: OpInfo("EVTCHNOP_bind_ipi", _bind_ipi, "3.0"),
    abi.EVTCHNOP_bind_vcpu: OpInfo("EVTCHNOP_bind_vcpu", _bind_vcpu, "3.0"),
    abi.EVTCHNOP_unmask: OpInfo("EVTCHNOP_unmask", _unmask, "3.0"),
    abi.EVTCHNOP_reset: OpInfo("EVTCHNOP_reset", _reset, "3.1"),
    abi.EVTCHNOP_init_control: OpInfo("EVTCHNOP_init_control", _init_control, "4.4"),
    abi.EVTCHNOP_expand_array: OpInfo("EVTCHNOP_expand_array", _expand_array, "4.4"),
    abi.EVTCHNOP_set_priority: OpInfo("EVTCHNOP_set_priority", _set_priority, "4.4"),
    EVTCHNOP_reset_cont: OpInfo("EVTCHNOP_reset_cont", _reset_cont, "4.15"),
}
"""Every sub-operation there is; all others answer -ENOSYS."""
