"""memory_op on single guest frames: add_to_physmap, its batch form and remove_from_physmap.

Facts: public/memory.h and what real Xen 4.17 answers.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from hvmlite.abi import memory as abi
from hvmlite.abi.errno import (
    XEN_EACCES,
    XEN_EDOM,
    XEN_EILSEQ,
    XEN_EINVAL,
    XEN_ENOENT,
    XEN_ENOSYS,
    XEN_EOPNOTSUPP,
    XEN_EPERM,
    XEN_ESRCH,
    XEN_EXDEV,
)
from hvmlite.hypervisor.call import XenError
from hvmlite.hypervisor.hypercalls.domid import exists, is_self
from hvmlite.hypervisor.hypercalls.memory_extents import MEMOP_EXTENT_SHIFT, SLICE, go_on
from hvmlite.hypervisor.physmap import P2mType

if TYPE_CHECKING:
    from hvmlite.hypervisor.call import Call
    from hvmlite.hypervisor.domain import Domain

_ERRNO = struct.Struct("<i")
_MAX_SIZE = 0xFFFF


def _require_own_physmap(call: Call, domid: int, space: int = abi.XENMAPSPACE_shared_info) -> None:
    """Raises XenError unless the caller may change the physmap of that domain in this way."""
    if not exists(call, domid):
        raise XenError(XEN_ESRCH)
    # Domain 0 has no physmap; device memory is for the hardware domain.
    foreign = not is_self(call, domid)
    if space == abi.XENMAPSPACE_dev_mmio or (foreign and call.domain.host.domain(domid) is None):
        raise XenError(XEN_EACCES)
    if foreign:
        raise XenError(XEN_EPERM)


def _map_one(domain: Domain, space: int, idx: int, gpfn: int) -> int:
    """Puts one frame of the domain's own at `gpfn`; returns 0 or a negative errno."""
    pages, physmap = domain.pages, domain.physmap
    kind = P2mType.XENHEAP
    if space == abi.XENMAPSPACE_shared_info:
        frame = domain.shared_info.frame if idx == 0 else -1
    elif space == abi.XENMAPSPACE_grant_table:
        frame = domain.grants.frame(idx)
    elif space == abi.XENMAPSPACE_gmfn:
        frame = pages.frame_at(idx)
        if frame >= 0 and not pages.owns(frame):
            frame = -1
        if frame >= 0 and not pages.is_special(frame):
            kind = P2mType.RAM_RW
    elif space == abi.XENMAPSPACE_gmfn_foreign:
        # For the hardware domain only: the rest may not hold frames that are not theirs.
        return -XEN_EPERM
    else:
        frame = -1
    if frame < 0:
        return -XEN_EINVAL
    place = physmap.find(frame)
    if space == abi.XENMAPSPACE_gmfn and place != idx:
        return -XEN_EXDEV
    old = physmap.lookup(gpfn)
    if old is not None:
        if pages.is_special(old[0]):
            pages.take_out(gpfn)
        elif old[0] != frame:
            error = pages.free(gpfn)
            if error:
                return error
    if place >= 0 and place != gpfn:
        pages.take_out(place)
    return pages.place(gpfn, frame, kind)


def add_to_physmap(call: Call) -> int:
    """XENMEM_add_to_physmap."""
    start = call.args[0] >> MEMOP_EXTENT_SHIFT
    if start > _MAX_SIZE:
        return -XEN_EDOM
    arg = call.copy_from(call.args[1], abi.xen_add_to_physmap)
    if arg.space == abi.XENMAPSPACE_gmfn_foreign:
        return -XEN_ENOSYS
    _require_own_physmap(call, arg.domid, arg.space)
    domain = call.domain
    try:
        if arg.space != abi.XENMAPSPACE_gmfn_range:
            return _map_one(domain, arg.space, arg.idx, arg.gpfn)
        if arg.size < start:
            return -XEN_EILSEQ
        end = min(arg.size, start + SLICE)
        for i in range(start, end):
            error = _map_one(domain, abi.XENMAPSPACE_gmfn, arg.idx + i, arg.gpfn + i)
            if error:
                return error
        return go_on(call, end) if end < arg.size else 0
    finally:
        domain.pages.settle()


def add_to_physmap_batch(call: Call) -> int:
    """XENMEM_add_to_physmap_batch: an errno for each entry, the result only for the lists."""
    start = call.args[0] >> MEMOP_EXTENT_SHIFT
    if start > _MAX_SIZE:
        return -XEN_EDOM
    arg = call.copy_from(call.args[1], abi.xen_add_to_physmap_batch)
    if arg.space == abi.XENMAPSPACE_gmfn_range:
        return -XEN_EOPNOTSUPP
    _require_own_physmap(call, arg.domid, arg.space)
    if arg.size < start or (start and arg.size == start):
        return -XEN_EILSEQ
    domain = call.domain
    code, size = call.pfn_code, call.abi.word
    try:
        end = min(arg.size, start + SLICE)
        for i in range(start, end):
            (idx,) = call.read_array(arg.idxs + i * size, code, 1)
            (gpfn,) = call.read_array(arg.gpfns + i * size, code, 1)
            error = _map_one(domain, arg.space, idx, gpfn)
            call.write_guest(arg.errs + i * _ERRNO.size, _ERRNO.pack(error))
        return go_on(call, end) if end < arg.size else 0
    finally:
        domain.pages.settle()


def remove_from_physmap(call: Call) -> int:
    """XENMEM_remove_from_physmap: the frame behind it stays the domain's."""
    if call.args[0] >> MEMOP_EXTENT_SHIFT:
        return -XEN_EINVAL
    arg = call.copy_from(call.args[1], abi.xen_remove_from_physmap)
    _require_own_physmap(call, arg.domid)
    domain = call.domain
    if domain.physmap.readable(arg.gpfn) < 0:
        return -XEN_ENOENT
    domain.pages.take_out(arg.gpfn)
    domain.pages.settle()
    return 0
