/*
 * gnttab_ops: grant_table_op but for mapping (gnttab_v1), version 1 and the change to version 2.
 *
 * Purpose: copies between frames and grants of the domain's own, hypercalls on a page that is mapped
 * read-only, swaps, the table's size and version, the layout and status words of version 2, and every refusal, as Xen 4.17 answers.
 * Blind spots: a granter in another domain; grants that lead through a third one.
 *
 * Variants: hvm64 hvm32pae hvm32
 */
#include "guest.h"

const char test_title[] = "grant_table_op";

#define NOBODY 4444
#define REF 20
#define PER_FRAME_V2 (PAGE_SIZE / sizeof(union grant_entry_v2))

static struct grant_entry_v1 *table;
static domid_t own;
static u8 *from, *to;
static ulong hole;

static ulong gfn_of(const void *page)
{
    return (ulong)page >> PAGE_SHIFT;
}

/* The frame of a page to map: by that it leaves its place for good. */
static ulong lost_page(void)
{
    return gfn_of(alloc_pages(1));
}

/* ---- copies -------------------------------------------------------------------------------- */

static struct gnttab_copy copy_op;

/* Bytes from one page to the other; a side by grant has its reference, else its frame. */
static int copy(u16 flags, ulong source, domid_t source_dom, ulong dest, domid_t dest_dom)
{
    copy_op.flags = flags;
    copy_op.source.domid = source_dom;
    copy_op.dest.domid = dest_dom;
    if (flags & GNTCOPY_source_gref)
        copy_op.source.u.ref = (grant_ref_t)source;
    else
        copy_op.source.u.gmfn = source;
    if (flags & GNTCOPY_dest_gref)
        copy_op.dest.u.ref = (grant_ref_t)dest;
    else
        copy_op.dest.u.gmfn = dest;
    copy_op.status = 99;
    if (grant_table_op(GNTTABOP_copy, &copy_op, 1))
        error("GNTTABOP_copy fails as a whole");
    return copy_op.status;
}

static void set_range(u16 source, u16 dest, u16 len)
{
    copy_op.source.offset = source;
    copy_op.dest.offset = dest;
    copy_op.len = len;
}

static void test_copy(void)
{
    ulong f = gfn_of(from), t = gfn_of(to);
    static struct gnttab_copy many[300];
    bool all = true;

    call("GNTTABOP_copy");
    for (unsigned int i = 0; i < PAGE_SIZE; i++)
        from[i] = (u8)(i + i / 256);
    set_range(0, 0, 4096);
    check_rc("gmfn to gmfn", copy(0, f, DOMID_SELF, t, DOMID_SELF), GNTST_okay);
    check_true("all of the page", !memcmp(from, to, PAGE_SIZE));
    memset(to, 0, PAGE_SIZE);

    grant_access(REF, own, f, false);
    grant_access(REF + 1, own, t, false);
    grant_access(REF + 2, own, t, true);
    set_range(100, 7, 500);
    check_rc("gnttab.copy.ref_ref", copy(GNTCOPY_source_gref | GNTCOPY_dest_gref, REF, own, REF + 1, own), 0);
    check_true("what was asked for", !memcmp(from + 100, to + 7, 500) && !to[6] && !to[507]);
    check_hex("the flags afterwards", table[REF].flags, GTF_permit_access);
    check_rc("by DOMID_SELF", copy(GNTCOPY_source_gref, REF, DOMID_SELF, t, DOMID_SELF), 0);
    check_rc("gnttab.copy.roref_gmfn", copy(GNTCOPY_source_gref, REF + 2, own, f, DOMID_SELF), 0);
    check_rc("gnttab.copy.gmfn_roref", copy(GNTCOPY_dest_gref, f, DOMID_SELF, REF + 2, own), GNTST_general_error);

    set_range(0, 0, 0);
    check_rc("gnttab.copy.len0", copy(0, f, DOMID_SELF, t, DOMID_SELF), GNTST_okay);
    set_range(0, 4090, 7);
    check_rc("gnttab.copy.cross_dst", copy(0, f, DOMID_SELF, t, DOMID_SELF), GNTST_bad_copy_arg);
    set_range(4090, 0, 7);
    check_rc("the same of the source", copy(0, f, DOMID_SELF, t, DOMID_SELF), GNTST_bad_copy_arg);
    set_range(4096, 0, 0);
    check_rc("gnttab.copy.off4096", copy(0, f, DOMID_SELF, t, DOMID_SELF), GNTST_okay);
    set_range(0, 0, 4097);
    check_rc("gnttab.copy.len_big", copy(0, f, DOMID_SELF, t, DOMID_SELF), GNTST_bad_copy_arg);
    set_range(0, 0, 4);
    check_rc("gnttab.copy.bad_ref", copy(GNTCOPY_source_gref, 1u << 20, own, t, DOMID_SELF), GNTST_bad_gntref);
    check_rc("a grant that is none", copy(GNTCOPY_source_gref, REF + 9, own, t, DOMID_SELF), GNTST_general_error);
    check_rc("gnttab.copy.bad_gmfn", copy(0, gfn_of((void *)hole), DOMID_SELF, t, DOMID_SELF), GNTST_bad_page);
    check_rc("gnttab.copy.bad_dst_gmfn", copy(0, f, DOMID_SELF, gfn_of((void *)hole), DOMID_SELF), GNTST_bad_page);
    check_rc("gnttab.copy.dom0_gmfn", copy(0, f, 0, t, DOMID_SELF), GNTST_permission_denied);
    check_rc("gnttab.copy.dom0_ref", copy(GNTCOPY_source_gref, 8, 0, t, DOMID_SELF), GNTST_general_error);
    check_rc("gnttab.copy.dom4444_ref", copy(GNTCOPY_source_gref, 8, NOBODY, t, DOMID_SELF), GNTST_bad_domain);
    check_rc("gnttab.copy.badflags", copy(0x8000, f, DOMID_SELF, t, DOMID_SELF), GNTST_okay);

    /* More than one slice; one of them is wrong, the others are done. */
    for (unsigned int i = 0; i < ARRAY_SIZE(many); i++) {
        many[i] = copy_op;
        many[i].flags = 0;
        many[i].source.offset = many[i].dest.offset = (u16)(4 * i);
        many[i].len = i == 280 ? 5000 : 4;
        many[i].status = 99;
    }
    memset(to, 0, PAGE_SIZE);
    check_rc("many", grant_table_op(GNTTABOP_copy, many, ARRAY_SIZE(many)), 0);
    for (unsigned int i = 0; i < ARRAY_SIZE(many); i++)
        all &= many[i].status == (i == 280 ? GNTST_bad_copy_arg : GNTST_okay) &&
               (i == 280 || !memcmp(from + 4 * i, to + 4 * i, 4));
    check_true("each has its status, and its bytes are there", all);
    check_rc("none", grant_table_op(GNTTABOP_copy, NULL, 0), 0);
    check_rc("a count that is too large", grant_table_op(GNTTABOP_copy, many, ~0u), -XEN_EINVAL);
}

/* ---- pages that are read-only -------------------------------------------------------------- */

/* What a hypercall would write to a read-only mapping is lost without a word; reading works. */
static void test_readonly(void)
{
    u32 *page = alloc_pages(1);
    struct gnttab_map_grant_ref map = {
        .host_addr = hole, .flags = GNTMAP_host_map | GNTMAP_readonly, .ref = REF, .dom = own};
    struct gnttab_unmap_grant_ref unmap = {.host_addr = hole};
    struct evtchn_alloc_unbound *alloc = (void *)hole;

    call("GNTTABOP_map_grant_ref");
    page[0] = DOMID_SELF;
    page[1] = 0x3333;
    grant_access(REF, own, gfn_of(page), true);
    if (grant_table_op(GNTTABOP_map_grant_ref, &map, 1) || map.status)
        error("cannot map a grant");
    check_rc("a result that cannot be written", event_channel_op(EVTCHNOP_alloc_unbound, alloc), 0);
    check_hex("is lost", alloc->port, 0x3333);
    check_rc("a string", xen_version(XENVER_extraversion, alloc), 0);
    check_hex("is lost, too", alloc->port, 0x3333);
    check_rc("a list in it", grant_table_op(GNTTABOP_get_version, alloc, 1), 0);
    unmap.handle = map.handle;
    check_rc("unmap", grant_table_op(GNTTABOP_unmap_grant_ref, &unmap, 1), 0);
    check_rc("its status", unmap.status, GNTST_okay);
}

/* ---- swaps --------------------------------------------------------------------------------- */

static int swap(grant_ref_t a, grant_ref_t b)
{
    struct gnttab_swap_grant_ref op = {.ref_a = a, .ref_b = b, .status = 99};

    check_rc("swap as a whole", grant_table_op(GNTTABOP_swap_grant_ref, &op, 1), 0);
    return op.status;
}

static void test_swap(void)
{
    struct gnttab_map_grant_ref map = {.host_addr = hole, .flags = GNTMAP_host_map, .ref = REF, .dom = own};
    struct gnttab_unmap_grant_ref unmap = {.host_addr = hole};

    grant_access(REF, own, 0x111, false);
    grant_access(REF + 1, NOBODY, 0x222, true);
    call("GNTTABOP_swap_grant_ref");
    check_rc("swap", swap(REF, REF + 1), GNTST_okay);
    check_true("both are exchanged",
               table[REF].frame == 0x222 && table[REF].domid == NOBODY && (table[REF].flags & GTF_readonly) &&
                   table[REF + 1].frame == 0x111 && table[REF + 1].domid == own);
    check_rc("gnttab.swap.same", swap(REF, REF), GNTST_okay);
    check_rc("gnttab.swap.bad", swap(REF, 1u << 20), GNTST_bad_gntref);
    grant_access(REF, own, lost_page(), false);
    if (grant_table_op(GNTTABOP_map_grant_ref, &map, 1) || map.status)
        error("cannot map a grant");
    check_rc("one that is in use", swap(REF, REF + 1), GNTST_eagain);
    unmap.handle = map.handle;
    grant_table_op(GNTTABOP_unmap_grant_ref, &unmap, 1);
    check_rc("unmapped again", swap(REF, REF + 1), GNTST_okay);
}

/* ---- size and version ---------------------------------------------------------------------- */

static xen_pfn_t frame_list[65];

static int setup(domid_t dom, u32 frames)
{
    struct gnttab_setup_table op = {.dom = dom, .nr_frames = frames, .status = 99};

    set_xen_guest_handle(op.frame_list, frame_list);
    check_rc("setup_table as a whole", grant_table_op(GNTTABOP_setup_table, &op, 1), 0);
    return op.status;
}

static void test_setup(void)
{
    struct gnttab_setup_table op = {.dom = DOMID_SELF, .nr_frames = 2, .status = 99};

    call("GNTTABOP_setup_table");
    check_rc("two frames", setup(DOMID_SELF, 2), GNTST_okay);
    check_hex("the first is where it was mapped", frame_list[0], gfn_of(table));
    check_hex("the second is nowhere", (xen_pfn_t)frame_list[1], (xen_pfn_t)~0ul);
    check_rc("gnttab.setup_table.64.status", setup(own, 64), GNTST_okay);
    check_rc("more than there may be", setup(DOMID_SELF, 65), GNTST_general_error);
    check_rc("of dom0", setup(0, 1), GNTST_permission_denied);
    check_rc("of a domain that does not exist", setup(NOBODY, 1), GNTST_bad_domain);
    set_xen_guest_handle(op.frame_list, (xen_pfn_t *)hole);
    check_rc("a list that is not there", grant_table_op(GNTTABOP_setup_table, &op, 1), 0);
    check_rc("its status", op.status, GNTST_bad_virt_addr);
    check_rc("two at a time", grant_table_op(GNTTABOP_setup_table, &op, 2), -XEN_EINVAL);
#ifdef __x86_64__
    check_rc("gnttab.op.2.count0", grant_table_op(GNTTABOP_setup_table, &op, 0), -XEN_EINVAL);
#else
    check_rc("none", grant_table_op(GNTTABOP_setup_table, &op, 0), 0);
#endif
}

static int set_version(u32 version, u32 *now)
{
    struct gnttab_set_version op = {.version = version};
    int rc = (int)grant_table_op(GNTTABOP_set_version, &op, 1);

    *now = op.version;
    return rc;
}

static u32 get_version(void)
{
    struct gnttab_get_version op = {.dom = DOMID_SELF, .version = 99};

    check_rc("get_version", grant_table_op(GNTTABOP_get_version, &op, 1), 0);
    return op.version;
}

static void test_version2(union grant_entry_v2 *entries, grant_status_t *status)
{
    struct gnttab_map_grant_ref map = {.host_addr = hole, .flags = GNTMAP_host_map, .ref = REF, .dom = own};
    struct gnttab_unmap_grant_ref unmap = {.host_addr = hole};
    union grant_entry_v2 *e = &entries[REF];

    call("GNTTABOP_map_grant_ref");
    e->full_page.frame = lost_page();
    e->hdr.domid = own;
    WRITE_ONCE(e->hdr.flags, GTF_permit_access);
    check_rc("v2: map", grant_table_op(GNTTABOP_map_grant_ref, &map, 1), 0);
    check_rc("v2: its status", map.status, GNTST_okay);
    check_hex("v2: the status word", status[REF], GTF_reading | GTF_writing);
    check_hex("v2: the flags stay", e->hdr.flags, GTF_permit_access);
    call("GNTTABOP_unmap_grant_ref");
    unmap.handle = map.handle;
    check_rc("v2: unmap", grant_table_op(GNTTABOP_unmap_grant_ref, &unmap, 1), 0);
    check_hex("v2: the status word afterwards", status[REF], 0);

    call("GNTTABOP_copy");
    e->sub_page.page_off = 256;
    e->sub_page.length = 64;
    e->sub_page.frame = gfn_of(from);
    WRITE_ONCE(e->hdr.flags, GTF_permit_access | GTF_sub_page);
    set_range(256, 0, 64);
    check_rc("v2: what is granted of the page", copy(GNTCOPY_source_gref, REF, own, gfn_of(to), DOMID_SELF), 0);
    check_true("v2: its bytes", !memcmp(from + 256, to, 64));
    set_range(255, 0, 64);
    check_rc("v2: a byte before it", copy(GNTCOPY_source_gref, REF, own, gfn_of(to), DOMID_SELF), GNTST_general_error);
    set_range(256, 0, 65);
    check_rc("v2: a byte after it", copy(GNTCOPY_source_gref, REF, own, gfn_of(to), DOMID_SELF), GNTST_general_error);
    call("GNTTABOP_map_grant_ref");
    grant_table_op(GNTTABOP_map_grant_ref, &map, 1);
    check_rc("v2: a part of a page cannot be mapped", map.status, GNTST_general_error);
    WRITE_ONCE(e->hdr.flags, 0);

    call("GNTTABOP_swap_grant_ref");
    entries[REF + 1].full_page.frame = 0x333;
    check_rc("v2: swap", swap(REF, REF + 1), GNTST_okay);
    check_hex("v2: swapped", entries[REF].full_page.frame, 0x333);
}

static void test_version(void)
{
    struct gnttab_get_version get = {.dom = NOBODY};
    struct gnttab_map_grant_ref map = {.host_addr = hole, .flags = GNTMAP_host_map, .ref = REF, .dom = own};
    struct gnttab_unmap_grant_ref unmap = {.host_addr = hole};
    ulong status_gfn = alloc_hole(1), table_gfn = gfn_of(table);
    u32 now;

    call("GNTTABOP_get_version");
    check_signed("it starts with version 1", get_version(), 1);
    check_rc("gnttab.get_version.dom4444", grant_table_op(GNTTABOP_get_version, &get, 1), -XEN_ESRCH);
    get.dom = 0;
    check_rc("of dom0", grant_table_op(GNTTABOP_get_version, &get, 1), -XEN_EPERM);

    call("GNTTABOP_set_version");
    check_rc("version 0", set_version(0, &now), -XEN_EINVAL);
    check_rc("version 3", set_version(3, &now), -XEN_EINVAL);
    check_signed("the version it is", now, 1);
    grant_access(REF, own, lost_page(), false);
    if (grant_table_op(GNTTABOP_map_grant_ref, &map, 1) || map.status)
        error("cannot map a grant");
    check_rc("while a grant is in use", set_version(2, &now), -XEN_EBUSY);
    unmap.handle = map.handle;
    grant_table_op(GNTTABOP_unmap_grant_ref, &unmap, 1);
    check_rc("version 2", set_version(2, &now), 0);
    check_signed("the version it is", now, 2);
    check_signed("and get_version's", get_version(), 2);
    check_rc("the first status frame",
             add_to_physmap(XENMAPSPACE_grant_table, XENMAPIDX_grant_table_status, status_gfn), 0);
    test_version2((void *)table, (void *)(status_gfn << PAGE_SHIFT));
    call("GNTTABOP_set_version");
    check_rc("gnttab.set_version.back1", set_version(1, &now), 0);
    check_signed("gnttab.set_version.back1", now, 1);
    check_hex("the status frame is gone", *(volatile u32 *)(status_gfn << PAGE_SHIFT), ~0u);
    check_hex("the table is where it was", gfn_of(table), table_gfn);
    check_hex("and empty", table[REF].flags | table[REF + 1].frame, 0);
}

static void test_refused(void)
{
    static u64 buf[16];

    call("GNTTABOP_transfer");
    check_rc("transfer", grant_table_op(GNTTABOP_transfer, buf, 1), -XEN_ENOSYS);
    call("GNTTABOP_get_status_frames");
    check_rc("get_status_frames", grant_table_op(GNTTABOP_get_status_frames, buf, 1), -XEN_ENOSYS);
    call("GNTTABOP_unmap_and_replace");
    check_rc("unmap_and_replace", grant_table_op(GNTTABOP_unmap_and_replace, buf, 1), -XEN_ENOSYS);
    call("GNTTABOP_query_size");
    ((domid_t *)buf)[0] = NOBODY;
    check_rc("of a domain that does not exist", grant_table_op(GNTTABOP_query_size, buf, 1), 0);
    check_rc("gnttab.query_size.dom4444", ((struct gnttab_query_size *)buf)->status, GNTST_bad_domain);
    check_rc("gnttab.op.6.count0", grant_table_op(GNTTABOP_query_size, buf, 0), -XEN_EINVAL);
    call(NULL);
    check_rc("gnttab.op.99", grant_table_op(99, buf, 1), -XEN_ENOSYS);
}

void test_main(void)
{
    own = own_domid();
    table = grant_table_map(1);
    from = alloc_pages(1);
    to = alloc_pages(1);
    hole = alloc_hole(1) << PAGE_SHIFT;
    test_copy();
    test_readonly();
    test_swap();
    test_setup();
    test_version();
    test_refused();
    success();
}
