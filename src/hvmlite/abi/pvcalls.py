"""Requests, responses and data rings of PV Calls (sockets by proxy). Source: io/pvcalls.h."""

from typing import Annotated

from hvmlite.abi.layout import Bytes, Struct, UnionOf, s32, u8, u32, u64

PVCALLS_SOCKET = 0
PVCALLS_CONNECT = 1
PVCALLS_RELEASE = 2
PVCALLS_BIND = 3
PVCALLS_LISTEN = 4
PVCALLS_ACCEPT = 5
PVCALLS_POLL = 6


class pvcalls_data_intf(Struct):
    """The start of a connection's indexes page; 1 << ring_order grant references follow."""

    in_cons: u32 = 0
    in_prod: u32 = 0
    in_error: s32 = 0
    pad1: Annotated[bytes, Bytes(52)] = b""
    out_cons: u32 = 0
    out_prod: u32 = 0
    out_error: s32 = 0
    pad2: Annotated[bytes, Bytes(52)] = b""
    ring_order: u32 = 0


class xen_pvcalls_socket(Struct):
    """PVCALLS_SOCKET."""

    id: u64 = 0
    domain: u32 = 0
    type: u32 = 0
    protocol: u32 = 0
    pad: Annotated[bytes, Bytes(4)] = b""


class xen_pvcalls_connect(Struct):
    """PVCALLS_CONNECT; addr is a struct sockaddr of len bytes."""

    id: u64 = 0
    addr: Annotated[bytes, Bytes(28)] = b""
    len: u32 = 0
    flags: u32 = 0
    ref: u32 = 0
    evtchn: u32 = 0
    pad: Annotated[bytes, Bytes(4)] = b""


class xen_pvcalls_release(Struct):
    """PVCALLS_RELEASE."""

    id: u64 = 0
    reuse: u8 = 0
    pad: Annotated[bytes, Bytes(7)] = b""


class xen_pvcalls_bind(Struct):
    """PVCALLS_BIND."""

    id: u64 = 0
    addr: Annotated[bytes, Bytes(28)] = b""
    len: u32 = 0


class xen_pvcalls_listen(Struct):
    """PVCALLS_LISTEN."""

    id: u64 = 0
    backlog: u32 = 0
    pad: Annotated[bytes, Bytes(4)] = b""


class xen_pvcalls_accept(Struct):
    """PVCALLS_ACCEPT."""

    id: u64 = 0
    id_new: u64 = 0
    ref: u32 = 0
    evtchn: u32 = 0


class xen_pvcalls_poll(Struct):
    """PVCALLS_POLL."""

    id: u64 = 0


class xen_pvcalls_request(Struct):
    """One request on the command ring: in cmd (PVCALLS_*); the command's struct in `u`."""

    req_id: u32 = 0
    cmd: u32 = 0
    u: Annotated[bytes, UnionOf(u64, Bytes(56))] = b""


class xen_pvcalls_response(Struct):
    """One response: ret is zero or a negative errno; `id` is the socket's."""

    req_id: u32 = 0
    cmd: u32 = 0
    ret: s32 = 0
    pad: u32 = 0
    id: u64 = 0
