"""HYPERVISOR_argo_op: copies a call's structs, checks them, and hands over to argo.py.

Facts: public/argo.h and what Xen's common/argo.c answers; without the toolstack's consent the
hypercall does not exist, as in a Xen that is built as usual.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from hvmlite.abi import argo as abi
from hvmlite.abi import xen
from hvmlite.abi.errno import (
    XEN_EACCES,
    XEN_ECONNREFUSED,
    XEN_EINVAL,
    XEN_ENOSYS,
    XEN_EOPNOTSUPP,
    XEN_EPERM,
    XEN_ESRCH,
)
from hvmlite.abi.layout import Abi
from hvmlite.engine.memory import PAGE_SHIFT
from hvmlite.hypervisor.argo import SMALLEST_RING, Argo, Ring, ring_pages
from hvmlite.hypervisor.call import XenError
from hvmlite.hypervisor.hypercalls.registry import Family, OpInfo, handlers_of, note
from hvmlite.hypervisor.memory import GuestAccessError

if TYPE_CHECKING:
    from hvmlite.hypervisor.call import Call

MAX_NOTIFY_COUNT = 256
_MAX_PAGES = abi.XEN_ARGO_MAX_RING_SIZE >> PAGE_SHIFT
_GFN_SIZE = 8
_GFNS_AT_ONCE = 512
_MASK32 = 0xFFFF_FFFF


def _argo(call: Call) -> Argo:
    # _dispatch has seen to it.
    argo = call.domain.argo
    assert argo is not None
    return argo


def _domain_argo(call: Call, domid: int) -> Argo | None:
    """The other end, None for domain 0, which has no ring; raises XenError."""
    domain = call.domain.host.domain(domid)
    if domain is None:
        # By number only: Xen does not take DOMID_SELF here.
        if domid:
            raise XenError(XEN_ESRCH)
        return None
    if domain.argo is None:
        raise XenError(XEN_ECONNREFUSED)
    return domain.argo


# ---- rings ---------------------------------------------------------------------------------------


def _gfns(call: Call, address: int, count: int) -> Iterator[int]:
    """The frame numbers that the caller lists, up to the first one that cannot be read."""
    for start in range(0, count, _GFNS_AT_ONCE):
        at, size = address + start * _GFN_SIZE, min(_GFNS_AT_ONCE, count - start)
        try:
            chunk = call.read_array(at, "Q", size)
        except GuestAccessError:
            # A frame number that is no good goes before a pointer that leads nowhere.
            for i in range(size):
                yield from call.read_array(at + i * _GFN_SIZE, "Q", 1)
        else:
            yield from chunk


def _register_ring(call: Call) -> int:
    _, pointer, gfns, pages, flags = call.args
    if pages > _MAX_PAGES or flags & ~abi.XEN_ARGO_REGISTER_FLAG_FAIL_EXIST:
        return -XEN_EINVAL
    arg = call.copy_from(pointer, abi.xen_argo_register_ring_t)
    if (
        not SMALLEST_RING <= arg.len <= abi.XEN_ARGO_MAX_RING_SIZE
        or arg.len % abi.XEN_ARGO_MSG_SLOT_SIZE
        or ring_pages(arg.len) != pages
        or arg.pad
    ):
        return -XEN_EINVAL
    argo = _argo(call)
    if arg.partner_id != abi.XEN_ARGO_DOMID_ANY:
        _domain_argo(call, arg.partner_id)
    elif not argo.permissive:
        return -XEN_EPERM
    argo.register(
        arg.aport, arg.partner_id, arg.len, _gfns(call, gfns, pages), fail_exist=bool(flags)
    )
    return 0


def _unregister_ring(call: Call) -> int:
    if any(call.args[2:]):
        return -XEN_EINVAL
    arg = call.copy_from(call.args[1], abi.xen_argo_unregister_ring_t)
    if arg.pad:
        return -XEN_EINVAL
    _argo(call).unregister(arg.aport, arg.partner_id)
    return 0


# ---- messages ------------------------------------------------------------------------------------


def _sendv(call: Call) -> int:
    _, addresses, pieces, count, message_type = call.args
    arg = call.copy_from(addresses, abi.xen_argo_send_addr_t)
    if count > abi.XEN_ARGO_MAXIOV:
        return -XEN_EINVAL
    size = abi.xen_argo_iov_t.sizeof(call.abi)
    raw = call.read_guest(pieces, count * size)
    iovs = [abi.xen_argo_iov_t.unpack(raw, call.abi, i * size) for i in range(count)]
    source, target = arg.src, arg.dst
    if source.pad or target.pad:
        return -XEN_EINVAL
    own = call.domain.domid
    if source.domain_id not in (own, abi.XEN_ARGO_DOMID_ANY):
        return -XEN_EPERM
    argo = _domain_argo(call, target.domain_id)
    if argo is None:
        return -XEN_ECONNREFUSED
    source = abi.xen_argo_addr_t(source.aport, own)
    return argo.receive(source, target.aport, message_type, iovs, call.read_guest)


def _notify(call: Call) -> int:
    if any(call.args[2:]):
        return -XEN_EINVAL
    _argo(call).tell_waiting()
    address = call.args[1]
    if not address:
        return 0
    count = call.copy_from(address, abi.xen_argo_ring_data_t).nent
    if count > MAX_NOTIFY_COUNT:
        return -XEN_EACCES
    at, size = address + abi.xen_argo_ring_data_t.sizeof(), abi.xen_argo_ring_data_ent_t.sizeof()
    for entry in range(at, at + count * size, size):
        _fill_ring_data(call, entry)
    return 0


def _fill_ring_data(call: Call, address: int) -> None:
    """Answers one question about a ring."""
    kind = abi.xen_argo_ring_data_ent_t
    entry = call.copy_from(address, kind)
    domain = call.domain.host.domain(entry.ring.domain_id)
    entry.flags = 0
    if domain is not None and domain.argo is not None:
        ring = domain.argo.find(entry.ring.aport, call.domain.domid)
        if ring is not None:
            entry.max_message_size = ring.max_message_size
            entry.flags = _ring_flags(ring, call.domain.domid, entry.space_required)
    call.copy_field_to(address, kind, "flags", entry.flags)
    call.copy_field_to(address, kind, "max_message_size", entry.max_message_size)


def _ring_flags(ring: Ring, domid: int, wanted: int) -> int:
    """How a ring is; a domain that wants more space than there is waits for it from now on."""
    flags, space = abi.XEN_ARGO_RING_EXISTS, ring.payload_space()
    if ring.partner_id == abi.XEN_ARGO_DOMID_ANY:
        flags |= abi.XEN_ARGO_RING_SHARED
    if wanted > ring.max_message_size:
        flags |= abi.XEN_ARGO_RING_EMSGSIZE
    elif space >= wanted:
        ring.pending.pop(domid, None)
        flags |= abi.XEN_ARGO_RING_SUFFICIENT
    elif not ring.wait(domid, wanted):
        flags |= abi.XEN_ARGO_RING_EBUSY
    if space == ring.max_message_size:
        flags |= abi.XEN_ARGO_RING_EMPTY
    return flags


OPS = {
    abi.XEN_ARGO_OP_register_ring: OpInfo("XEN_ARGO_OP_register_ring", _register_ring),
    abi.XEN_ARGO_OP_unregister_ring: OpInfo("XEN_ARGO_OP_unregister_ring", _unregister_ring),
    abi.XEN_ARGO_OP_sendv: OpInfo("XEN_ARGO_OP_sendv", _sendv),
    abi.XEN_ARGO_OP_notify: OpInfo("XEN_ARGO_OP_notify", _notify),
}
"""Every sub-operation; all others answer -EOPNOTSUPP, and all -ENOSYS where Argo is off."""

_HANDLERS = handlers_of(OPS)


def _dispatch(call: Call) -> int:
    if call.domain.argo is None:
        note(call, "argo_op")
        return -XEN_ENOSYS
    if call.abi is Abi.X86_64 and (call.args[3] > _MASK32 or call.args[4] > _MASK32):
        return -XEN_EINVAL
    op = call.args[0] & _MASK32
    handler = _HANDLERS.get(op)
    if handler is not None:
        return handler(call)
    note(call, f"argo_op {op}")
    return -XEN_EOPNOTSUPP


FAMILY = Family(xen.__HYPERVISOR_argo_op, "argo_op", _dispatch, OPS)
