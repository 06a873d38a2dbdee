"""HYPERVISOR_memory_op: the table of its operations, and those that tell a guest about memory.

Facts: public/memory.h and what real Xen 4.17 answers.  The operation stands in the low six bits of
the command; above them a continued call says where it goes on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvmlite.abi import memory as abi
from hvmlite.abi import xen
from hvmlite.abi.e820 import e820entry
from hvmlite.abi.errno import (
    XEN_EACCES,
    XEN_EINVAL,
    XEN_ENOSYS,
    XEN_EOPNOTSUPP,
    XEN_EPERM,
    XEN_ESRCH,
)
from hvmlite.abi.layout import Abi
from hvmlite.hypervisor.hypercalls import memory_extents, memory_mapping
from hvmlite.hypervisor.hypercalls.domid import exists, require_self
from hvmlite.hypervisor.hypercalls.memory_extents import MEMOP_CMD_MASK, MEMOP_EXTENT_SHIFT
from hvmlite.hypervisor.hypercalls.registry import Handler, OpInfo, by_op

if TYPE_CHECKING:
    from hvmlite.hypervisor.call import Call
    from hvmlite.hypervisor.domain import Domain

E820MAX = 1024
"""Entries that a memory map may have."""
_M2P_BYTES = 2 << 20
"""What one extent of the machine-to-physical table covers."""


def _started(handler: Handler, errno: int) -> Handler:
    """The handler, for an operation that cannot be continued: `errno` if the call says it is."""

    def checked(call: Call) -> int:
        return -errno if call.args[0] >> MEMOP_EXTENT_SHIFT else handler(call)

    return checked


def _whole(handler: Handler) -> Handler:
    return _started(handler, XEN_EINVAL)


def _arch(handler: Handler) -> Handler:
    # Xen looks these up by the whole command.
    return _started(handler, XEN_ENOSYS)


def _own(call: Call) -> Domain:
    """The domain that a call on one domid names: the caller's own."""
    require_self(call, call.copy_from(call.args[1], abi.xen_memory_domain).domid)
    return call.domain


def _maximum_ram_page(call: Call) -> int:
    return call.domain.host.machine.frames


def _current_reservation(call: Call) -> int:
    return _own(call).total_pages


def _maximum_reservation(call: Call) -> int:
    return _own(call).max_pages


def _maximum_gpfn(call: Call) -> int:
    return _own(call).physmap.highest


def _memory_map(call: Call) -> int:
    entries = call.domain.memory_map
    if not entries:
        return -XEN_ENOSYS
    arg = call.copy_from(call.args[1], abi.xen_memory_map)
    arg.nr_entries = min(arg.nr_entries, len(entries))
    if arg.nr_entries:
        data = b"".join(e820entry(*entry).pack() for entry in entries[: arg.nr_entries])
        call.write_guest(arg.buffer, data)
    call.copy_to(call.args[1], arg)
    return 0


def _set_memory_map(call: Call) -> int:
    arg = call.copy_from(call.args[1], abi.xen_foreign_memory_map)
    if arg.map.nr_entries > E820MAX:
        return -XEN_EINVAL
    require_self(call, arg.domid)
    size = e820entry.sizeof()
    data = b""
    if arg.map.nr_entries:
        data = call.read_guest(arg.map.buffer, arg.map.nr_entries * size)
    entries = [e820entry.unpack(data, offset=at) for at in range(0, len(data), size)]
    call.domain.memory_map = [(entry.addr, entry.size, entry.type) for entry in entries]
    return 0


def _machphys_mfn_list(call: Call) -> int:
    """Where the machine-to-physical table lies; a PVH guest can map none of it."""
    if call.abi is Abi.X86_32:
        # Real Xen's layer for 32-bit callers knows this for PV guests only.
        return -XEN_EOPNOTSUPP
    arg = call.copy_from(call.args[1], abi.xen_machphys_mfn_list)
    per_extent = _M2P_BYTES // call.abi.word
    extents = -(-call.domain.host.machine.frames // per_extent)
    arg.nr_extents = min(arg.max_extents, extents)
    if arg.nr_extents:
        call.write_guest(arg.extent_start, bytes(arg.nr_extents * call.abi.word))
    call.copy_to(call.args[1], arg)
    return 0


def _machphys_compat_mfn_list(_call: Call) -> int:
    # The 32-bit table is for 32-bit PV guests, which this host does not run.
    return -XEN_EOPNOTSUPP


def _pod_target(call: Call) -> int:
    arg = call.copy_from(call.args[1], abi.xen_pod_target)
    return -XEN_EPERM if exists(call, arg.domid) else -XEN_ESRCH


def _no_pages(_call: Call) -> int:
    return 0


def _access_op(call: Call) -> int:
    arg = call.copy_from(call.args[1], abi.xen_mem_access_op)
    if arg.domid == call.domain.domid:
        return -XEN_EPERM
    if call.domain.host.domain(arg.domid) is not None:
        return -XEN_EPERM
    # Domain 0 exists, but has no physmap to restrict.
    return -XEN_EINVAL if arg.domid == 0 else -XEN_ESRCH


def _claim_pages(call: Call) -> int:
    if call.abi is Abi.X86_32:
        # Unknown to real Xen's layer for 32-bit callers.
        return -XEN_ENOSYS
    arg = call.copy_from(call.args[1], abi.xen_memory_reservation)
    known = arg.domid == 0 or call.domain.host.domain(arg.domid) is not None
    if arg.extent_start or arg.extent_order or arg.mem_flags or not known:
        return -XEN_EINVAL
    return -XEN_EPERM


def _get_vnumainfo(call: Call) -> int:
    arg = call.copy_from(call.args[1], abi.xen_vnuma_topology_info)
    if arg.pad:
        return -XEN_EINVAL
    require_self(call, arg.domid)
    return -XEN_EOPNOTSUPP


def _reserved_device_memory_map(call: Call) -> int:
    arg = call.copy_from(call.args[1], abi.xen_reserved_device_memory_map)
    if arg.flags & ~abi.XENMEM_RDM_ALL:
        return -XEN_EINVAL
    arg.nr_entries = 0
    call.copy_to(call.args[1], arg)
    return 0


OPS: dict[int, OpInfo] = {
    abi.XENMEM_increase_reservation: OpInfo(
        "XENMEM_increase_reservation", memory_extents.increase_reservation
    ),
    abi.XENMEM_decrease_reservation: OpInfo(
        "XENMEM_decrease_reservation", memory_extents.decrease_reservation
    ),
    abi.XENMEM_maximum_ram_page: OpInfo("XENMEM_maximum_ram_page", _whole(_maximum_ram_page)),
    abi.XENMEM_current_reservation: OpInfo(
        "XENMEM_current_reservation", _whole(_current_reservation)
    ),
    abi.XENMEM_maximum_reservation: OpInfo(
        "XENMEM_maximum_reservation", _whole(_maximum_reservation)
    ),
    abi.XENMEM_machphys_mfn_list: OpInfo("XENMEM_machphys_mfn_list", _arch(_machphys_mfn_list)),
    abi.XENMEM_populate_physmap: OpInfo("XENMEM_populate_physmap", memory_extents.populate_physmap),
    abi.XENMEM_add_to_physmap: OpInfo("XENMEM_add_to_physmap", memory_mapping.add_to_physmap),
    abi.XENMEM_memory_map: OpInfo("XENMEM_memory_map", _arch(_memory_map)),
    abi.XENMEM_machine_memory_map: OpInfo(
        "XENMEM_machine_memory_map", why="the machine's memory map is for domain 0"
    ),
    abi.XENMEM_exchange: OpInfo("XENMEM_exchange", memory_extents.exchange),
    abi.XENMEM_machphys_mapping: OpInfo(
        "XENMEM_machphys_mapping", why="a PVH guest has no machine-to-physical table"
    ),
    abi.XENMEM_set_memory_map: OpInfo("XENMEM_set_memory_map", _arch(_set_memory_map)),
    abi.XENMEM_maximum_gpfn: OpInfo("XENMEM_maximum_gpfn", _whole(_maximum_gpfn)),
    abi.XENMEM_remove_from_physmap: OpInfo(
        "XENMEM_remove_from_physmap", memory_mapping.remove_from_physmap
    ),
    abi.XENMEM_set_pod_target: OpInfo("XENMEM_set_pod_target", _arch(_pod_target)),
    abi.XENMEM_get_pod_target: OpInfo("XENMEM_get_pod_target", _arch(_pod_target)),
    abi.XENMEM_get_sharing_freed_pages: OpInfo("XENMEM_get_sharing_freed_pages", _arch(_no_pages)),
    abi.XENMEM_get_sharing_shared_pages: OpInfo(
        "XENMEM_get_sharing_shared_pages", _arch(_no_pages)
    ),
    abi.XENMEM_paging_op: OpInfo("XENMEM_paging_op", why="memory is never paged out"),
    abi.XENMEM_access_op: OpInfo("XENMEM_access_op", _access_op),
    abi.XENMEM_sharing_op: OpInfo("XENMEM_sharing_op", why="memory is never shared"),
    abi.XENMEM_add_to_physmap_batch: OpInfo(
        "XENMEM_add_to_physmap_batch", memory_mapping.add_to_physmap_batch
    ),
    abi.XENMEM_claim_pages: OpInfo("XENMEM_claim_pages", _whole(_claim_pages)),
    abi.XENMEM_machphys_compat_mfn_list: OpInfo(
        "XENMEM_machphys_compat_mfn_list", _arch(_machphys_compat_mfn_list)
    ),
    abi.XENMEM_get_vnumainfo: OpInfo("XENMEM_get_vnumainfo", _whole(_get_vnumainfo)),
    abi.XENMEM_reserved_device_memory_map: OpInfo(
        "XENMEM_reserved_device_memory_map", _whole(_reserved_device_memory_map)
    ),
    abi.XENMEM_acquire_resource: OpInfo(
        "XENMEM_acquire_resource", errno=XEN_EACCES, why="for the hardware domain"
    ),
}
FAMILY = by_op(xen.__HYPERVISOR_memory_op, "memory_op", OPS, MEMOP_CMD_MASK)
