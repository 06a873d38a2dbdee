"""memory_op: a domain's memory reservation and its physical map. Source: memory.h."""

from typing import Annotated

from hvmlite.abi.layout import (
    Struct,
    UnionOf,
    handle,
    u8,
    u16,
    u32,
    u64,
    u64_aligned,
    ulong,
    xen_pfn,
)
from hvmlite.abi.physdev import physdev_pci_device

XENMEM_increase_reservation = 0
XENMEM_decrease_reservation = 1
XENMEM_maximum_ram_page = 2
XENMEM_current_reservation = 3
XENMEM_maximum_reservation = 4
XENMEM_machphys_mfn_list = 5
XENMEM_populate_physmap = 6
XENMEM_add_to_physmap = 7
XENMEM_memory_map = 9
XENMEM_machine_memory_map = 10
XENMEM_exchange = 11
XENMEM_machphys_mapping = 12
XENMEM_set_memory_map = 13
XENMEM_maximum_gpfn = 14
XENMEM_remove_from_physmap = 15
XENMEM_set_pod_target = 16
XENMEM_get_pod_target = 17
XENMEM_get_sharing_freed_pages = 18
XENMEM_get_sharing_shared_pages = 19
XENMEM_paging_op = 20
XENMEM_access_op = 21
XENMEM_sharing_op = 22
XENMEM_add_to_physmap_batch = 23
XENMEM_claim_pages = 24
XENMEM_machphys_compat_mfn_list = 25
XENMEM_get_vnumainfo = 26
XENMEM_reserved_device_memory_map = 27
XENMEM_acquire_resource = 28

# xen_memory_reservation.mem_flags: address width in bits 0-7, node + 1 in bits 8-15.
XENMEMF_populate_on_demand = 1 << 16
XENMEMF_exact_node_request = 1 << 17
XENMEMF_vnode = 1 << 18

XENMAPSPACE_shared_info = 0
XENMAPSPACE_grant_table = 1
XENMAPSPACE_gmfn = 2
XENMAPSPACE_gmfn_range = 3
XENMAPSPACE_gmfn_foreign = 4
XENMAPSPACE_dev_mmio = 5

XENMAPIDX_grant_table_status = 0x80000000  # in idx: the status frames of grant table v2

XENMEM_resource_ioreq_server = 0
XENMEM_resource_grant_table = 1
XENMEM_resource_vmtrace_buf = 2

XENMEM_resource_grant_table_id_shared = 0
XENMEM_resource_grant_table_id_status = 1

# xen_mem_acquire_resource.frame for an ioreq server; the page of vCPU n is 1 + n.
XENMEM_resource_ioreq_server_frame_bufioreq = 0

XENMEM_access_op_set_access = 0
XENMEM_access_op_get_access = 1
XENMEM_access_op_set_access_multi = 4

XENMEM_access_n = 0
XENMEM_access_r = 1
XENMEM_access_w = 2
XENMEM_access_rw = 3
XENMEM_access_x = 4
XENMEM_access_rx = 5
XENMEM_access_wx = 6
XENMEM_access_rwx = 7
XENMEM_access_rx2rw = 8
XENMEM_access_n2rwx = 9
XENMEM_access_default = 10

XENMEM_RDM_ALL = 1


class xen_memory_reservation(Struct):
    """XENMEM_{increase,decrease}_reservation, XENMEM_populate_physmap, and half of exchange."""

    extent_start: handle = 0  # array of nr_extents xen_pfn
    nr_extents: ulong = 0
    extent_order: u32 = 0  # log2 of the frames in an extent
    mem_flags: u32 = 0  # XENMEMF_*
    domid: u16 = 0


class xen_memory_exchange(Struct):
    """XENMEM_exchange: in `in_`, `out`; out nr_exchanged, also in on a continuation."""

    in_: xen_memory_reservation = xen_memory_reservation()
    out: xen_memory_reservation = xen_memory_reservation()
    nr_exchanged: ulong = 0


class xen_memory_domain(Struct):
    """XENMEM_{current,maximum}_reservation and XENMEM_maximum_gpfn."""

    domid: u16 = 0


class xen_machphys_mfn_list(Struct):
    """XENMEM_machphys_mfn_list."""

    max_extents: u32 = 0
    extent_start: handle = 0
    nr_extents: u32 = 0


class xen_machphys_mapping(Struct):
    """XENMEM_machphys_mapping."""

    v_start: ulong = 0
    v_end: ulong = 0
    max_mfn: ulong = 0


class xen_add_to_physmap(Struct):
    """XENMEM_add_to_physmap: put `idx` of `space` (XENMAPSPACE_*) at guest frame gpfn."""

    domid: u16 = 0
    size: u16 = 0  # frames, for XENMAPSPACE_gmfn_range only
    space: u32 = 0
    idx: ulong = 0
    gpfn: xen_pfn = 0


class xen_add_to_physmap_batch_extra(Struct):
    """xen_add_to_physmap_batch.u: the owner (gmfn_foreign), or zero (all other spaces)."""

    foreign_domid: u16 = 0


class xen_add_to_physmap_batch(Struct):
    """XENMEM_add_to_physmap_batch: `size` entries; an errno for each goes to errs."""

    domid: u16 = 0
    space: u16 = 0
    size: u16 = 0
    u: xen_add_to_physmap_batch_extra = xen_add_to_physmap_batch_extra()
    idxs: handle = 0  # array of ulong
    gpfns: handle = 0  # array of xen_pfn
    errs: handle = 0  # array of s32


class xen_remove_from_physmap(Struct):
    """XENMEM_remove_from_physmap: in domid, gpfn."""

    domid: u16 = 0
    gpfn: xen_pfn = 0


class xen_memory_map(Struct):
    """XENMEM_memory_map: in nr_entries of room, buffer (20-byte e820 entries); out nr_entries."""

    nr_entries: u32 = 0
    buffer: handle = 0


class xen_foreign_memory_map(Struct):
    """XENMEM_set_memory_map: the map of another domain."""

    domid: u16 = 0
    map: xen_memory_map = xen_memory_map()


class xen_pod_target(Struct):
    """XENMEM_{set,get}_pod_target: in target_pages, domid; out the rest (pages)."""

    target_pages: u64 = 0
    tot_pages: u64 = 0
    pod_cache_pages: u64 = 0
    pod_entries: u64 = 0
    domid: u16 = 0


class xen_mem_access_op(Struct):
    """XENMEM_access_op: in op, access (XENMEM_access_*), domid, nr (pages), pfn."""

    op: u8 = 0
    access: u8 = 0
    domid: u16 = 0
    nr: u32 = 0
    pfn: u64_aligned = 0
    pfn_list: handle = 0
    access_list: handle = 0


class xen_reserved_device_memory(Struct):
    """One range that XENMEM_reserved_device_memory_map returns."""

    start_pfn: xen_pfn = 0
    nr_pages: ulong = 0


class xen_reserved_device_memory_map(Struct):
    """XENMEM_reserved_device_memory_map: in flags (XENMEM_RDM_ALL), nr_entries, buffer."""

    flags: u32 = 0
    nr_entries: u32 = 0
    buffer: handle = 0
    dev: physdev_pci_device = physdev_pci_device()


class xen_mem_acquire_resource(Struct):
    """XENMEM_acquire_resource: map frames of a resource; nr_frames 0 asks for its size."""

    domid: u16 = 0
    type: u16 = 0  # XENMEM_resource_*
    id: u32 = 0
    nr_frames: u32 = 0
    pad: u32 = 0  # must be zero
    frame: u64 = 0
    frame_list: handle = 0  # array of xen_pfn


class xen_vmemrange(Struct):
    """One virtual NUMA memory range, in bytes of guest-physical address."""

    start: u64 = 0
    end: u64 = 0
    flags: u32 = 0
    nid: u32 = 0


class xen_vnuma_topology_info(Struct):
    """XENMEM_get_vnumainfo: in the counts of room; out the counts and the three arrays."""

    domid: u16 = 0
    pad: u16 = 0
    nr_vnodes: u32 = 0
    nr_vcpus: u32 = 0
    nr_vmemranges: u32 = 0
    vdistance: Annotated[bytes, UnionOf(handle, u64)] = b""
    vcpu_to_vnode: Annotated[bytes, UnionOf(handle, u64)] = b""
    vmemrange: Annotated[bytes, UnionOf(handle, u64)] = b""
