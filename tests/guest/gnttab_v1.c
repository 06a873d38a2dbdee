/*
 * gnttab_v1: the grant table of version 1, by a domain that maps its own grants.
 *
 * Purpose: size, fresh entries, mapping and unmapping with the status and the flag bits that
 * Xen 4.17 leaves, and every refusal.
 * Blind spots: a granter in another domain; version 2; copy and transfer; more than one frame.
 */
#include "guest.h"

const char test_title[] = "Grant table, version 1";

#define REF 20

static struct grant_entry_v1 *table;
static domid_t own;
static ulong hole;
static volatile u32 *page;

static int map(domid_t dom, u32 ref, u32 flags, ulong address, grant_handle_t *handle)
{
    struct gnttab_map_grant_ref op = {.host_addr = address, .flags = flags, .ref = ref, .dom = dom};
    int rc = (int)grant_table_op(GNTTABOP_map_grant_ref, &op, 1);

    if (rc)
        error("GNTTABOP_map_grant_ref: %d", rc);
    if (handle)
        *handle = op.handle;
    return op.status;
}

static int unmap(ulong address, grant_handle_t handle)
{
    struct gnttab_unmap_grant_ref op = {.host_addr = address, .handle = handle};
    int rc = (int)grant_table_op(GNTTABOP_unmap_grant_ref, &op, 1);

    if (rc)
        error("GNTTABOP_unmap_grant_ref: %d", rc);
    return op.status;
}

static void check(const char *what, int status, int want_status, u32 want_flags)
{
    u32 flags = READ_ONCE(table[REF].flags);

    if (status != want_status || flags != want_flags)
        failure("%s: status=%d flags=%08x, want status=%d flags=%08x", what, status, flags, want_status, want_flags);
}

static void check_size(u32 frames)
{
    struct gnttab_query_size size = {.dom = DOMID_SELF};

    call("GNTTABOP_query_size");
    check_rc("gnttab.query_size", grant_table_op(GNTTABOP_query_size, &size, 1), 0);
    if (size.status || size.nr_frames != frames || size.max_nr_frames != 64)
        failure("gnttab.query_size: status=%d nr=%u max=%u, want 0, %u, 64", size.status, size.nr_frames,
                size.max_nr_frames, frames);
}

/* The table grows to reach the frame that is asked for. */
static void test_size(void)
{
    check_size(1);
    call("XENMEM_add_to_physmap");
    check_rc("mem.atp.grant.63", add_to_physmap(XENMAPSPACE_grant_table, 63, alloc_hole(1)), 0);
    check_size(64);
    call("XENMEM_add_to_physmap");
    check_rc("mem.atp.grant.10000", add_to_physmap(XENMAPSPACE_grant_table, 10000, hole >> PAGE_SHIFT), -XEN_EINVAL);
}

static void test_refused(void)
{
    u64 buf[8] = {0};

    call("GNTTABOP_map_grant_ref");
    grant_access(REF, own, (ulong)page >> PAGE_SHIFT, false);
    check("gnttab.map.domid_self", map(DOMID_SELF, REF, GNTMAP_host_map, hole, NULL), -2, 1);
    grant_access(REF, own + 1, (ulong)page >> PAGE_SHIFT, false);
    check("gnttab.map.wrong_domid", map(own, REF, GNTMAP_host_map, hole, NULL), -1, 1);
    check("gnttab.map.dom0", map(0, REF, GNTMAP_host_map, hole, NULL), -1, 1);
    grant_access(REF, own, (ulong)page >> PAGE_SHIFT, false);
    check("gnttab.map.noflags", map(own, REF, 0, hole, NULL), -3, 1);
    table[REF].flags = GTF_invalid;
    check("gnttab.map.invalid", map(own, REF, GNTMAP_host_map, hole, NULL), -1, 0);
    table[REF].flags = GTF_accept_transfer;
    check("gnttab.map.transfer_entry", map(own, REF, GNTMAP_host_map, hole, NULL), -1, 2);
    table[REF].flags = GTF_permit_access | GTF_sub_page;
    check("gnttab.map.sub_page", map(own, REF, GNTMAP_host_map, hole, NULL), -1, 0x101);
    table[REF].flags = GTF_permit_access;
    call("GNTTABOP_unmap_grant_ref");
    check("gnttab.unmap.badhandle", unmap(hole, 9999), -4, 1);
    call("GNTTABOP_map_grant_ref");
#if HAVE_PAGING
    check_rc("gnttab.map.null", grant_table_op(GNTTABOP_map_grant_ref, NULL, 1), -XEN_EFAULT);
#endif
    check_rc("gnttab.map.count0", grant_table_op(GNTTABOP_map_grant_ref, NULL, 0), 0);
    call("GNTTABOP_unmap_and_replace");
    check_rc("gnttab.unmap_and_replace", grant_table_op(GNTTABOP_unmap_and_replace, buf, 1), -XEN_ENOSYS);
    call("GNTTABOP_cache_flush");
    check_rc("gnttab.cache_flush", grant_table_op(GNTTABOP_cache_flush, buf, 1), -XEN_ENOSYS);
    call("GNTTABOP_dump_table");
    check_rc("gnttab.dump_table", grant_table_op(GNTTABOP_dump_table, buf, 1), -XEN_ENOSYS);
}

static void test_own(void)
{
    volatile u32 *mapped = (u32 *)hole;
    grant_handle_t first = 0, second = 0;

    call("GNTTABOP_map_grant_ref");
    page[0] = 0x12121212;
    grant_access(REF, own, (ulong)page >> PAGE_SHIFT, false);
    check("gnttab.map.own.rw", map(own, REF, GNTMAP_host_map, hole, &first), 0, 0x19);
    check_hex("gnttab.map.own.rw.read", mapped[0], 0x12121212);
    mapped[1] = 0x34343434;
    check_hex("what was written through it", mapped[1], 0x34343434);
    check("gnttab.map.own.rw.second", map(own, REF, GNTMAP_host_map, hole + PAGE_SIZE, &second), 0, 0x19);
    check_signed("gnttab.map.second.handle", (long)second - (long)first, 1);
    call("GNTTABOP_unmap_grant_ref");
    check("unmap of the first", unmap(hole, first), 0, 0x19);
    check("gnttab.unmap.own.rw", unmap(hole + PAGE_SIZE, second), 0, 1);
    check_hex("gnttab.unmap.read", mapped[0], 0xffffffff);
}

static void test_readonly(void)
{
    volatile u32 *other = alloc_pages(1);
    grant_handle_t handle = 0;

    call("GNTTABOP_map_grant_ref");
    other[0] = 0x56565656;
    grant_access(REF, own, (ulong)other >> PAGE_SHIFT, true);
    check("gnttab.map.own.ro.as_rw", map(own, REF, GNTMAP_host_map, hole, NULL), -1, 5);
    check("map read-only", map(own, REF, GNTMAP_host_map | GNTMAP_readonly, hole, &handle), 0, 0xd);
    check_hex("read through it", *(volatile u32 *)hole, 0x56565656);
    call("GNTTABOP_unmap_grant_ref");
    check("gnttab.unmap.ro", unmap(hole, handle), 0, 5);
}

void test_main(void)
{
    own = own_domid();
    table = grant_table_map(1);
    hole = alloc_hole(2) << PAGE_SHIFT;
    page = alloc_pages(1);
    for (u32 ref = 4; ref < 8; ref++)
        if (table[ref].flags || table[ref].frame)
            failure("gnttab.initial.%u: %08x.%x", ref, table[ref].flags, table[ref].frame);
    test_size();
    test_refused();
    test_own();
    test_readonly();
    success();
}
