"""Event channel operations, and the 2-level and FIFO ABIs. Source: event_channel.h."""

from typing import Annotated

from hvmlite.abi.layout import Array, Struct, UnionOf, u8, u16, u32, u64

EVTCHNOP_bind_interdomain = 0
EVTCHNOP_bind_virq = 1
EVTCHNOP_bind_pirq = 2
EVTCHNOP_close = 3
EVTCHNOP_send = 4
EVTCHNOP_status = 5
EVTCHNOP_alloc_unbound = 6
EVTCHNOP_bind_ipi = 7
EVTCHNOP_bind_vcpu = 8
EVTCHNOP_unmask = 9
EVTCHNOP_reset = 10
EVTCHNOP_init_control = 11
EVTCHNOP_expand_array = 12
EVTCHNOP_set_priority = 13
EVTCHNOP_reset_cont = 14  # the hypervisor's own continuation of a reset

BIND_PIRQ__WILL_SHARE = 1

EVTCHNSTAT_closed = 0
EVTCHNSTAT_unbound = 1
EVTCHNSTAT_interdomain = 2
EVTCHNSTAT_pirq = 3
EVTCHNSTAT_virq = 4
EVTCHNSTAT_ipi = 5

# 2-level ABI: one selector word of words of bits.
EVTCHN_2L_NR_CHANNELS_X86_64 = 8 * 8 * 64
EVTCHN_2L_NR_CHANNELS_X86_32 = 4 * 4 * 64

# FIFO ABI: a queue for each priority, 0 the highest.
EVTCHN_FIFO_PRIORITY_MAX = 0
EVTCHN_FIFO_PRIORITY_DEFAULT = 7
EVTCHN_FIFO_PRIORITY_MIN = 15
EVTCHN_FIFO_MAX_QUEUES = EVTCHN_FIFO_PRIORITY_MIN + 1

# Bit numbers in an event word.
EVTCHN_FIFO_PENDING = 31
EVTCHN_FIFO_MASKED = 30
EVTCHN_FIFO_LINKED = 29
EVTCHN_FIFO_BUSY = 28

EVTCHN_FIFO_LINK_BITS = 17
EVTCHN_FIFO_LINK_MASK = (1 << EVTCHN_FIFO_LINK_BITS) - 1
EVTCHN_FIFO_NR_CHANNELS = 1 << EVTCHN_FIFO_LINK_BITS


class evtchn_alloc_unbound(Struct):
    """EVTCHNOP_alloc_unbound: in dom, remote_dom; out port."""

    dom: u16 = 0
    remote_dom: u16 = 0
    port: u32 = 0


class evtchn_bind_interdomain(Struct):
    """EVTCHNOP_bind_interdomain: in remote_dom, remote_port; out local_port."""

    remote_dom: u16 = 0
    remote_port: u32 = 0
    local_port: u32 = 0


class evtchn_bind_virq(Struct):
    """EVTCHNOP_bind_virq: in virq (VIRQ_*), vcpu; out port."""

    virq: u32 = 0
    vcpu: u32 = 0
    port: u32 = 0


class evtchn_bind_pirq(Struct):
    """EVTCHNOP_bind_pirq: in pirq, flags (BIND_PIRQ__*); out port."""

    pirq: u32 = 0
    flags: u32 = 0
    port: u32 = 0


class evtchn_bind_ipi(Struct):
    """EVTCHNOP_bind_ipi: in vcpu; out port."""

    vcpu: u32 = 0
    port: u32 = 0


class evtchn_close(Struct):
    """EVTCHNOP_close: in port."""

    port: u32 = 0


class evtchn_send(Struct):
    """EVTCHNOP_send: in port."""

    port: u32 = 0


class evtchn_status_unbound(Struct):
    """evtchn_status.u for EVTCHNSTAT_unbound."""

    dom: u16 = 0


class evtchn_status_interdomain(Struct):
    """evtchn_status.u for EVTCHNSTAT_interdomain."""

    dom: u16 = 0
    port: u32 = 0


class evtchn_status_irq(Struct):
    """evtchn_status.u for EVTCHNSTAT_pirq and EVTCHNSTAT_virq."""

    irq: u32 = 0


class evtchn_status(Struct):
    """EVTCHNOP_status: in dom, port; out the rest."""

    dom: u16 = 0
    port: u32 = 0
    status: u32 = 0  # EVTCHNSTAT_*
    vcpu: u32 = 0
    u: Annotated[
        bytes, UnionOf(evtchn_status_unbound, evtchn_status_interdomain, evtchn_status_irq)
    ] = b""


class evtchn_bind_vcpu(Struct):
    """EVTCHNOP_bind_vcpu: in port, vcpu."""

    port: u32 = 0
    vcpu: u32 = 0


class evtchn_unmask(Struct):
    """EVTCHNOP_unmask: in port."""

    port: u32 = 0


class evtchn_reset(Struct):
    """EVTCHNOP_reset: in dom."""

    dom: u16 = 0


class evtchn_init_control(Struct):
    """EVTCHNOP_init_control: in control_gfn (frame), offset (bytes), vcpu; out link_bits."""

    control_gfn: u64 = 0
    offset: u32 = 0
    vcpu: u32 = 0
    link_bits: u8 = 0
    _pad: Annotated[tuple[int, ...], Array(u8, 7)] = ()


class evtchn_expand_array(Struct):
    """EVTCHNOP_expand_array: in array_gfn (frame)."""

    array_gfn: u64 = 0


class evtchn_set_priority(Struct):
    """EVTCHNOP_set_priority: in port, priority."""

    port: u32 = 0
    priority: u32 = 0


class evtchn_op(Struct):
    """Argument of __HYPERVISOR_event_channel_op_compat: in cmd; the operation's struct in `u`."""

    cmd: u32 = 0
    u: Annotated[
        bytes,
        UnionOf(
            evtchn_alloc_unbound,
            evtchn_bind_interdomain,
            evtchn_bind_virq,
            evtchn_bind_pirq,
            evtchn_bind_ipi,
            evtchn_close,
            evtchn_send,
            evtchn_status,
            evtchn_bind_vcpu,
            evtchn_unmask,
        ),
    ] = b""


class evtchn_fifo_control_block(Struct):
    """A vCPU's FIFO control block: a bit of `ready` and the head of the queue for each priority."""

    ready: u32 = 0
    _rsvd: u32 = 0
    head: Annotated[tuple[int, ...], Array(u32, EVTCHN_FIFO_MAX_QUEUES)] = ()
