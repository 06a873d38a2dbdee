"""dm_op: what a device model asks of the hypervisor. Source: hvm/dm_op.h."""

from typing import Annotated

from hvmlite.abi.layout import Array, Struct, UnionOf, handle, u8, u16, u32, u64, u64_aligned, ulong

XEN_DMOP_create_ioreq_server = 1
XEN_DMOP_get_ioreq_server_info = 2
XEN_DMOP_map_io_range_to_ioreq_server = 3
XEN_DMOP_unmap_io_range_from_ioreq_server = 4
XEN_DMOP_set_ioreq_server_state = 5
XEN_DMOP_destroy_ioreq_server = 6
XEN_DMOP_track_dirty_vram = 7
XEN_DMOP_set_pci_intx_level = 8
XEN_DMOP_set_isa_irq_level = 9
XEN_DMOP_set_pci_link_route = 10
XEN_DMOP_modified_memory = 11
XEN_DMOP_set_mem_type = 12
XEN_DMOP_inject_event = 13
XEN_DMOP_inject_msi = 14
XEN_DMOP_map_mem_type_to_ioreq_server = 15
XEN_DMOP_remote_shutdown = 16
XEN_DMOP_relocate_memory = 17
XEN_DMOP_pin_memory_cacheattr = 18
XEN_DMOP_set_irq_level = 19
XEN_DMOP_nr_vcpus = 20

XEN_DMOP_no_gfns = 1 << 0

XEN_DMOP_IO_RANGE_PORT = 0
XEN_DMOP_IO_RANGE_MEMORY = 1
XEN_DMOP_IO_RANGE_PCI = 2

XEN_DMOP_EVENT_ext_int = 0
XEN_DMOP_EVENT_nmi = 2
XEN_DMOP_EVENT_hw_exc = 3
XEN_DMOP_EVENT_sw_int = 4
XEN_DMOP_EVENT_pri_sw_exc = 5
XEN_DMOP_EVENT_sw_exc = 6

XEN_DMOP_IOREQ_MEM_ACCESS_READ = 1 << 0
XEN_DMOP_IOREQ_MEM_ACCESS_WRITE = 1 << 1

XEN_DMOP_MEM_CACHEATTR_UC = 0
XEN_DMOP_MEM_CACHEATTR_WC = 1
XEN_DMOP_MEM_CACHEATTR_WT = 4
XEN_DMOP_MEM_CACHEATTR_WP = 5
XEN_DMOP_MEM_CACHEATTR_WB = 6
XEN_DMOP_MEM_CACHEATTR_UCM = 7
XEN_DMOP_DELETE_MEM_CACHEATTR = 0xFFFFFFFF


class xen_dm_op_create_ioreq_server(Struct):
    """In handle_bufioreq (HVM_IOREQSRV_BUFIOREQ_*); out id."""

    handle_bufioreq: u8 = 0
    pad: Annotated[tuple[int, ...], Array(u8, 3)] = ()
    id: u16 = 0


class xen_dm_op_get_ioreq_server_info(Struct):
    """In id, flags (XEN_DMOP_no_gfns); out bufioreq_port and the frames."""

    id: u16 = 0
    flags: u16 = 0
    bufioreq_port: u32 = 0
    ioreq_gfn: u64_aligned = 0
    bufioreq_gfn: u64_aligned = 0


class xen_dm_op_ioreq_server_range(Struct):
    """Map or unmap of a range, both ends included: in all."""

    id: u16 = 0
    pad: u16 = 0
    type: u32 = 0  # XEN_DMOP_IO_RANGE_*
    start: u64_aligned = 0
    end: u64_aligned = 0


class xen_dm_op_set_ioreq_server_state(Struct):
    """In id, enabled."""

    id: u16 = 0
    enabled: u8 = 0
    pad: u8 = 0


class xen_dm_op_destroy_ioreq_server(Struct):
    """In id."""

    id: u16 = 0
    pad: u16 = 0


class xen_dm_op_track_dirty_vram(Struct):
    """In nr (frames; 0: stop), first_pfn; the bitmap is buffer 1."""

    nr: u32 = 0
    pad: u32 = 0
    first_pfn: u64_aligned = 0


class xen_dm_op_set_pci_intx_level(Struct):
    """In all."""

    domain: u16 = 0
    bus: u8 = 0
    device: u8 = 0
    intx: u8 = 0
    level: u8 = 0


class xen_dm_op_set_isa_irq_level(Struct):
    """In isa_irq, level."""

    isa_irq: u8 = 0
    level: u8 = 0


class xen_dm_op_set_pci_link_route(Struct):
    """In link, isa_irq."""

    link: u8 = 0
    isa_irq: u8 = 0


class xen_dm_op_modified_memory(Struct):
    """In nr_extents; the extents are buffer 1; opaque is Xen's for a continuation."""

    nr_extents: u32 = 0
    opaque: u32 = 0


class xen_dm_op_modified_memory_extent(Struct):
    """One extent of frames."""

    nr: u32 = 0
    pad: u32 = 0
    first_pfn: u64_aligned = 0


class xen_dm_op_set_mem_type(Struct):
    """In nr (frames), mem_type (HVMMEM_*), first_pfn."""

    nr: u32 = 0
    mem_type: u16 = 0
    pad: u16 = 0
    first_pfn: u64_aligned = 0


class xen_dm_op_inject_event(Struct):
    """In all; type is XEN_DMOP_EVENT_*."""

    vcpuid: u32 = 0
    vector: u8 = 0
    type: u8 = 0
    insn_len: u8 = 0
    pad0: u8 = 0
    error_code: u32 = 0
    pad1: u32 = 0
    cr2: u64_aligned = 0


class xen_dm_op_inject_msi(Struct):
    """In data, addr, as a device would write them."""

    data: u32 = 0
    pad: u32 = 0
    addr: u64_aligned = 0


class xen_dm_op_map_mem_type_to_ioreq_server(Struct):
    """In id, type (HVMMEM_ioreq_server), flags (XEN_DMOP_IOREQ_MEM_ACCESS_*)."""

    id: u16 = 0
    type: u16 = 0
    flags: u32 = 0
    opaque: u64 = 0


class xen_dm_op_remote_shutdown(Struct):
    """In reason (SHUTDOWN_*)."""

    reason: u32 = 0


class xen_dm_op_relocate_memory(Struct):
    """In size (frames), src_gfn, dst_gfn."""

    size: u32 = 0
    pad: u32 = 0
    src_gfn: u64_aligned = 0
    dst_gfn: u64_aligned = 0


class xen_dm_op_pin_memory_cacheattr(Struct):
    """In start, end (frames, both included), type (XEN_DMOP_MEM_CACHEATTR_*)."""

    start: u64_aligned = 0
    end: u64_aligned = 0
    type: u32 = 0
    pad: u32 = 0


class xen_dm_op_set_irq_level(Struct):
    """In irq, level. Arm only."""

    irq: u32 = 0
    level: u8 = 0
    pad: Annotated[tuple[int, ...], Array(u8, 3)] = ()


class xen_dm_op_nr_vcpus(Struct):
    """Out vcpus: how many the domain may have."""

    vcpus: u32 = 0


class xen_dm_op(Struct):
    """Buffer 0 of a dm_op call: in op (XEN_DMOP_*); the operation's struct in `u`."""

    op: u32 = 0
    pad: u32 = 0
    u: Annotated[bytes, UnionOf(xen_dm_op_inject_event, xen_dm_op_ioreq_server_range)] = b""


class xen_dm_op_buf(Struct):
    """One buffer of a dm_op call; size in bytes."""

    h: handle = 0
    size: ulong = 0
