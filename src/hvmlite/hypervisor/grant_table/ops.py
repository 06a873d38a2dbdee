"""HYPERVISOR_grant_table_op: the table of its operations, with those that a PVH guest may use.

Each copies its structs in one by one, has the table do it, and copies the result back: what was
done before a bad pointer stays done.  Facts: public/grant_table.h and what real Xen 4.17 answers.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from hvmlite.abi import grant_table as abi
from hvmlite.abi import xen
from hvmlite.abi.errno import XEN_EINVAL, XEN_ENOSYS
from hvmlite.abi.layout import Abi, Struct
from hvmlite.hypervisor.grant_table.copy import copy_grant
from hvmlite.hypervisor.grant_table.mapping import finish_unmap, map_grant, unmap_grant
from hvmlite.hypervisor.hypercalls.continuation import continue_with
from hvmlite.hypervisor.hypercalls.domid import exists, is_self, require_self
from hvmlite.hypervisor.hypercalls.registry import Handler, OpInfo, by_op
from hvmlite.hypervisor.memory import GuestAccessError

if TYPE_CHECKING:
    from hvmlite.hypervisor.call import Call
    from hvmlite.hypervisor.grant_table.maptrack import Mapping

S = TypeVar("S", bound=Struct)

SLICE = 256
"""Operations of a batch that are done in one go."""
_UNMAP_BATCH = 32
"""Unmappings that share one flush of the guest's translations."""
_COUNT_LIMIT = 1 << 31
_NOWHERE = (1 << 64) - 1


# ---- batches ------------------------------------------------------------------------------------


def _count(call: Call) -> int:
    return call.args[2] & 0xFFFF_FFFF


def _counted(handler: Handler) -> Handler:
    def checked(call: Call) -> int:
        return -XEN_EINVAL if _count(call) >= _COUNT_LIMIT else handler(call)

    return checked


def _batch(kind: type[Struct], some: Callable[[Call, int, int], int]) -> Handler:
    """A handler that has `some(call, address, count)` done slice by slice."""

    def handler(call: Call) -> int:
        op, address, count = call.args[0], call.args[1], _count(call)
        if count <= SLICE:
            return some(call, address, count)
        result = some(call, address, SLICE)
        if result:
            return result
        address += SLICE * kind.sizeof(call.abi)
        return continue_with(call, FAMILY.number, op, address, count - SLICE)

    return _counted(handler)


def _each(kind: type[S], one: Callable[[Call, S], int]) -> Handler:
    """A handler that does `one` for each struct, and copies back the status that it returns."""

    def some(call: Call, address: int, count: int) -> int:
        size = kind.sizeof(call.abi)
        for at in range(address, address + count * size, size):
            status = one(call, call.copy_from(at, kind))
            call.copy_field_to(at, kind, "status", status)
        return 0

    return _batch(kind, some)


def _map(call: Call, address: int, count: int) -> int:
    kind, vcpu = abi.gnttab_map_grant_ref, call.vcpu
    size = kind.sizeof(call.abi)
    try:
        for at in range(address, address + count * size, size):
            op = call.copy_from(at, kind)
            op.status = map_grant(vcpu, op)
            call.copy_to(at, op)
    finally:
        call.domain.pages.settle()
    return 0


def _unmap(call: Call, address: int, count: int) -> int:
    kind, domain = abi.gnttab_unmap_grant_ref, call.domain
    size = kind.sizeof(call.abi)
    gone: list[Mapping] = []
    try:
        for at in range(address, address + count * size, size):
            op = call.copy_from(at, kind)
            status = unmap_grant(domain, op, gone)
            call.copy_field_to(at, kind, "status", status)
            if len(gone) == _UNMAP_BATCH:
                finish_unmap(domain, gone)
    finally:
        finish_unmap(domain, gone)
    return 0


def _swap(call: Call, op: abi.gnttab_swap_grant_ref) -> int:
    return call.domain.grants.swap(op.ref_a, op.ref_b)


# ---- the table itself ---------------------------------------------------------------------------


def _refusal(call: Call, domid: int) -> int:
    """GNTST_* for asking about a domain that is not the caller's own, else GNTST_okay."""
    if is_self(call, domid):
        return abi.GNTST_okay
    return abi.GNTST_permission_denied if exists(call, domid) else abi.GNTST_bad_domain


def _query_size(call: Call) -> int:
    if _count(call) != 1:
        return -XEN_EINVAL
    arg = call.copy_from(call.args[1], abi.gnttab_query_size)
    grants = call.domain.grants
    arg.status = _refusal(call, arg.dom)
    if arg.status == abi.GNTST_okay:
        arg.nr_frames, arg.max_nr_frames = len(grants.frames), grants.max_frames
    call.copy_to(call.args[1], arg)
    return 0


def _setup_table(call: Call) -> int:
    if _count(call) != 1:
        # The 32-bit entry of real Xen takes none for an empty batch.
        return 0 if call.abi is Abi.X86_32 and not _count(call) else -XEN_EINVAL
    arg = call.copy_from(call.args[1], abi.gnttab_setup_table)
    grants, find = call.domain.grants, call.domain.physmap.find
    arg.status = _refusal(call, arg.dom)
    if arg.status == abi.GNTST_okay and not grants.grow(arg.nr_frames):
        arg.status = abi.GNTST_general_error
    if arg.status == abi.GNTST_okay:
        frames = [find(page.frame) & _NOWHERE for page in grants.frames[: arg.nr_frames]]
        mask = (1 << 8 * call.abi.word) - 1
        data = struct.pack(f"<{len(frames)}{call.pfn_code}", *(gfn & mask for gfn in frames))
        try:
            if data:
                call.write_guest(arg.frame_list, data)
        except GuestAccessError:
            arg.status = abi.GNTST_bad_virt_addr
    call.copy_field_to(call.args[1], abi.gnttab_setup_table, "status", arg.status)
    return 0


def _set_version(call: Call) -> int:
    arg = call.copy_from(call.args[1], abi.gnttab_set_version)
    grants = call.domain.grants
    if arg.version not in (1, 2):
        result = -XEN_EINVAL
    elif arg.version > call.domain.limits.max_grant_version:
        result = -XEN_ENOSYS
    else:
        result = grants.set_version(arg.version)
    arg.version = grants.version
    call.copy_to(call.args[1], arg)
    return result


def _get_version(call: Call) -> int:
    arg = call.copy_from(call.args[1], abi.gnttab_get_version)
    require_self(call, arg.dom)
    version = call.domain.grants.version
    call.copy_field_to(call.args[1], abi.gnttab_get_version, "version", version)
    return 0


_NOT_AUDITED = "real Xen keeps it from HVM and PVH guests"
OPS: dict[int, OpInfo] = {
    abi.GNTTABOP_map_grant_ref: OpInfo(
        "GNTTABOP_map_grant_ref", _batch(abi.gnttab_map_grant_ref, _map)
    ),
    abi.GNTTABOP_unmap_grant_ref: OpInfo(
        "GNTTABOP_unmap_grant_ref", _batch(abi.gnttab_unmap_grant_ref, _unmap)
    ),
    abi.GNTTABOP_setup_table: OpInfo("GNTTABOP_setup_table", _counted(_setup_table)),
    abi.GNTTABOP_dump_table: OpInfo("GNTTABOP_dump_table", why="removed from Xen"),
    abi.GNTTABOP_transfer: OpInfo("GNTTABOP_transfer", why=_NOT_AUDITED),
    abi.GNTTABOP_copy: OpInfo("GNTTABOP_copy", _each(abi.gnttab_copy, copy_grant)),
    abi.GNTTABOP_query_size: OpInfo("GNTTABOP_query_size", _counted(_query_size)),
    abi.GNTTABOP_unmap_and_replace: OpInfo("GNTTABOP_unmap_and_replace", why=_NOT_AUDITED),
    abi.GNTTABOP_set_version: OpInfo("GNTTABOP_set_version", _counted(_set_version)),
    abi.GNTTABOP_get_status_frames: OpInfo("GNTTABOP_get_status_frames", why=_NOT_AUDITED),
    abi.GNTTABOP_get_version: OpInfo("GNTTABOP_get_version", _counted(_get_version)),
    abi.GNTTABOP_swap_grant_ref: OpInfo(
        "GNTTABOP_swap_grant_ref", _each(abi.gnttab_swap_grant_ref, _swap)
    ),
    abi.GNTTABOP_cache_flush: OpInfo("GNTTABOP_cache_flush", why=_NOT_AUDITED),
}
FAMILY = by_op(xen.__HYPERVISOR_grant_table_op, "grant_table_op", OPS)
