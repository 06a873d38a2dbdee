"""Grant table entries of both versions, and the operations on them. Source: grant_table.h."""

from typing import Annotated

from hvmlite.abi.layout import Array, Struct, UnionOf, handle, s16, u16, u32, u64, xen_pfn

GNTTAB_NR_RESERVED_ENTRIES = 8  # granted by the toolstack before the guest starts
GNTTAB_RESERVED_CONSOLE = 0
GNTTAB_RESERVED_XENSTORE = 1

# grant entry flags: the type, then flags that depend on it
GTF_invalid = 0
GTF_permit_access = 1
GTF_accept_transfer = 2
GTF_transitive = 3  # version 2
GTF_type_mask = 3
GTF_readonly = 1 << 2
GTF_reading = 1 << 3
GTF_writing = 1 << 4
GTF_PWT = 1 << 5
GTF_PCD = 1 << 6
GTF_PAT = 1 << 7
GTF_sub_page = 1 << 8  # version 2
GTF_transfer_committed = 1 << 2  # of GTF_accept_transfer
GTF_transfer_completed = 1 << 3  # of GTF_accept_transfer

GNTTABOP_map_grant_ref = 0
GNTTABOP_unmap_grant_ref = 1
GNTTABOP_setup_table = 2
GNTTABOP_dump_table = 3
GNTTABOP_transfer = 4
GNTTABOP_copy = 5
GNTTABOP_query_size = 6
GNTTABOP_unmap_and_replace = 7
GNTTABOP_set_version = 8
GNTTABOP_get_status_frames = 9
GNTTABOP_get_version = 10
GNTTABOP_swap_grant_ref = 11
GNTTABOP_cache_flush = 12

# gnttab_map_grant_ref.flags
GNTMAP_device_map = 1 << 0
GNTMAP_host_map = 1 << 1
GNTMAP_readonly = 1 << 2
GNTMAP_application_map = 1 << 3
GNTMAP_contains_pte = 1 << 4
GNTMAP_guest_avail_mask = 0xFFFF0000

# gnttab_copy.flags: which side is a grant reference, not a frame
GNTCOPY_source_gref = 1 << 0
GNTCOPY_dest_gref = 1 << 1

# gnttab_cache_flush.op
GNTTAB_CACHE_CLEAN = 1 << 0
GNTTAB_CACHE_INVAL = 1 << 1
GNTTAB_CACHE_SOURCE_GREF = 1 << 31

# The status field of every operation.
GNTST_okay = 0
GNTST_general_error = -1
GNTST_bad_domain = -2
GNTST_bad_gntref = -3
GNTST_bad_handle = -4
GNTST_bad_virt_addr = -5
GNTST_bad_dev_addr = -6
GNTST_no_device_space = -7
GNTST_permission_denied = -8
GNTST_bad_page = -9
GNTST_bad_copy_arg = -10
GNTST_address_too_big = -11
GNTST_eagain = -12
GNTST_no_space = -13


class grant_entry_v1(Struct):
    """One version 1 entry: 8 bytes."""

    flags: u16 = 0  # GTF_*
    domid: u16 = 0  # who may use it
    frame: u32 = 0


class grant_entry_header(Struct):
    """The start of every version 2 entry."""

    flags: u16 = 0  # GTF_*
    domid: u16 = 0


class grant_entry_v2_full_page(Struct):
    """grant_entry_v2 for GTF_permit_access or GTF_accept_transfer."""

    hdr: grant_entry_header = grant_entry_header()
    pad0: u32 = 0
    frame: u64 = 0


class grant_entry_v2_sub_page(Struct):
    """grant_entry_v2 for GTF_permit_access with GTF_sub_page: a byte range of a frame."""

    hdr: grant_entry_header = grant_entry_header()
    page_off: u16 = 0
    length: u16 = 0
    frame: u64 = 0


class grant_entry_v2_transitive(Struct):
    """grant_entry_v2 for GTF_transitive: another domain's grant."""

    hdr: grant_entry_header = grant_entry_header()
    trans_domid: u16 = 0
    pad0: u16 = 0
    gref: u32 = 0


class grant_entry_v2(Struct):
    """One version 2 entry of any kind: 16 bytes."""

    u: Annotated[
        bytes,
        UnionOf(
            grant_entry_v2_full_page,
            grant_entry_v2_sub_page,
            grant_entry_v2_transitive,
            Array(u32, 4),
        ),
    ] = b""


class grant_status_t(Struct):
    """One version 2 status word: GTF_reading and GTF_writing live here."""

    status: u16 = 0


class gnttab_map_grant_ref(Struct):
    """GNTTABOP_map_grant_ref: in host_addr, flags (GNTMAP_*), ref, dom; out the rest."""

    host_addr: u64 = 0
    flags: u32 = 0
    ref: u32 = 0
    dom: u16 = 0
    status: s16 = 0
    handle: u32 = 0
    dev_bus_addr: u64 = 0


class gnttab_unmap_grant_ref(Struct):
    """GNTTABOP_unmap_grant_ref: in host_addr, dev_bus_addr, handle; out status."""

    host_addr: u64 = 0
    dev_bus_addr: u64 = 0
    handle: u32 = 0
    status: s16 = 0


class gnttab_setup_table(Struct):
    """GNTTABOP_setup_table: in dom, nr_frames; out status, and nr_frames at frame_list."""

    dom: u16 = 0
    nr_frames: u32 = 0
    status: s16 = 0
    frame_list: handle = 0  # array of xen_pfn


class gnttab_dump_table(Struct):
    """GNTTABOP_dump_table: in dom; out status."""

    dom: u16 = 0
    status: s16 = 0


class gnttab_transfer(Struct):
    """GNTTABOP_transfer: in mfn (frame), domid, ref; out status."""

    mfn: xen_pfn = 0
    domid: u16 = 0
    ref: u32 = 0
    status: s16 = 0


class gnttab_copy_ref(Struct):
    """gnttab_copy_ptr.u if GNTCOPY_{source,dest}_gref is set."""

    ref: u32 = 0


class gnttab_copy_gmfn(Struct):
    """gnttab_copy_ptr.u otherwise: a guest frame."""

    gmfn: xen_pfn = 0


class gnttab_copy_ptr(Struct):
    """One side of gnttab_copy; offset in bytes."""

    u: Annotated[bytes, UnionOf(gnttab_copy_ref, gnttab_copy_gmfn)] = b""
    domid: u16 = 0
    offset: u16 = 0


class gnttab_copy(Struct):
    """GNTTABOP_copy: in source, dest, len (bytes), flags (GNTCOPY_*); out status."""

    source: gnttab_copy_ptr = gnttab_copy_ptr()
    dest: gnttab_copy_ptr = gnttab_copy_ptr()
    len: u16 = 0
    flags: u16 = 0
    status: s16 = 0


class gnttab_query_size(Struct):
    """GNTTABOP_query_size: in dom; out nr_frames, max_nr_frames, status."""

    dom: u16 = 0
    nr_frames: u32 = 0
    max_nr_frames: u32 = 0
    status: s16 = 0


class gnttab_unmap_and_replace(Struct):
    """GNTTABOP_unmap_and_replace: in host_addr, new_addr, handle; out status."""

    host_addr: u64 = 0
    new_addr: u64 = 0
    handle: u32 = 0
    status: s16 = 0


class gnttab_set_version(Struct):
    """GNTTABOP_set_version: in version; out the version in force."""

    version: u32 = 0


class gnttab_get_status_frames(Struct):
    """GNTTABOP_get_status_frames: in nr_frames, dom; out status, frames at frame_list."""

    nr_frames: u32 = 0
    dom: u16 = 0
    status: s16 = 0
    frame_list: handle = 0  # array of u64


class gnttab_get_version(Struct):
    """GNTTABOP_get_version: in dom; out version."""

    dom: u16 = 0
    pad: u16 = 0
    version: u32 = 0


class gnttab_swap_grant_ref(Struct):
    """GNTTABOP_swap_grant_ref: in ref_a, ref_b; out status."""

    ref_a: u32 = 0
    ref_b: u32 = 0
    status: s16 = 0


class gnttab_cache_flush(Struct):
    """GNTTABOP_cache_flush: in all; `a` is a u64 address, or a u32 reference."""

    a: u64 = 0
    offset: u16 = 0
    length: u16 = 0
    op: u32 = 0  # GNTTAB_CACHE_*
