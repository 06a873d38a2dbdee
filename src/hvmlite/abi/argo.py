"""argo_op: messages between domains through hypervisor-owned copies. Source: argo.h."""

from typing import Annotated

from hvmlite.abi.layout import Array, Struct, handle, u8, u16, u32

XEN_ARGO_DOMID_ANY = 0x7FF4  # DOMID_INVALID

XEN_ARGO_MAX_RING_SIZE = 0x1000000  # bytes
XEN_ARGO_MAXIOV = 8
XEN_ARGO_MSG_SLOT_SIZE = 0x10  # bytes; every message in a ring is rounded up to it

XEN_ARGO_OP_register_ring = 1
XEN_ARGO_OP_unregister_ring = 2
XEN_ARGO_OP_sendv = 3
XEN_ARGO_OP_notify = 4

XEN_ARGO_REGISTER_FLAG_FAIL_EXIST = 1

# xen_argo_ring_data_ent_t.flags
XEN_ARGO_RING_EXISTS = 1 << 0
XEN_ARGO_RING_SHARED = 1 << 1
XEN_ARGO_RING_EMPTY = 1 << 2
XEN_ARGO_RING_SUFFICIENT = 1 << 3
XEN_ARGO_RING_EMSGSIZE = 1 << 4
XEN_ARGO_RING_EBUSY = 1 << 5


class xen_argo_iov_t(Struct):
    """One piece of a message to send; iov_len in bytes."""

    iov_hnd: handle = 0
    iov_len: u32 = 0
    pad: u32 = 0


class xen_argo_addr_t(Struct):
    """One end of a connection."""

    aport: u32 = 0
    domain_id: u16 = 0
    pad: u16 = 0


class xen_argo_send_addr_t(Struct):
    """XEN_ARGO_OP_sendv: both ends."""

    src: xen_argo_addr_t = xen_argo_addr_t()
    dst: xen_argo_addr_t = xen_argo_addr_t()


class xen_argo_ring_t(Struct):
    """The start of a ring; its bytes follow."""

    rx_ptr: u32 = 0
    tx_ptr: u32 = 0
    reserved: Annotated[tuple[int, ...], Array(u8, 56)] = ()


class xen_argo_register_ring_t(Struct):
    """XEN_ARGO_OP_register_ring; len in bytes."""

    aport: u32 = 0
    partner_id: u16 = 0
    pad: u16 = 0
    len: u32 = 0


class xen_argo_unregister_ring_t(Struct):
    """XEN_ARGO_OP_unregister_ring."""

    aport: u32 = 0
    partner_id: u16 = 0
    pad: u16 = 0


class xen_argo_ring_data_ent_t(Struct):
    """XEN_ARGO_OP_notify: in ring, space_required (bytes); out flags, max_message_size."""

    ring: xen_argo_addr_t = xen_argo_addr_t()
    flags: u16 = 0
    pad: u16 = 0
    space_required: u32 = 0
    max_message_size: u32 = 0


class xen_argo_ring_data_t(Struct):
    """XEN_ARGO_OP_notify: the start; nent entries follow."""

    nent: u32 = 0
    pad: u32 = 0


class xen_argo_ring_message_header(Struct):
    """The start of a message in a ring; len in bytes includes this header."""

    len: u32 = 0
    source: xen_argo_addr_t = xen_argo_addr_t()
    message_type: u32 = 0
