/*
 * gnttab.*: the grant table, by a domain that maps and copies what it granted to itself.
 */
#include "answers.h"

#define REF 20
#define RO_REF 21

static struct grant_entry_v1 *table;
static ulong hole;
static u8 *src, *dst;

static void *page_of(u32 word)
{
    u32 *page = alloc_pages(1);

    *page = word;
    return page;
}

static void grant(const void *page, bool readonly)
{
    grant_access(REF, own, (ulong)page >> PAGE_SHIFT, readonly);
}

static struct gnttab_map_grant_ref map(domid_t dom, u32 flags, ulong address)
{
    struct gnttab_map_grant_ref op = {.host_addr = address, .flags = flags, .ref = REF, .dom = dom};

    if (grant_table_op(GNTTABOP_map_grant_ref, &op, 1))
        error("GNTTABOP_map_grant_ref");
    return op;
}

static int unmap(ulong address, grant_handle_t handle)
{
    struct gnttab_unmap_grant_ref op = {.host_addr = address, .handle = handle};

    if (grant_table_op(GNTTABOP_unmap_grant_ref, &op, 1))
        error("GNTTABOP_unmap_grant_ref");
    return op.status;
}

static void answer_entry(const char *question, int status)
{
    answer(question, "0 status=%d flags=%08x", status, READ_ONCE(table[REF].flags));
}

static void answer_mem_type(const char *question)
{
    struct xen_hvm_get_mem_type type = {.domid = DOMID_SELF, .pfn = hole >> PAGE_SHIFT};
    long rc = hvm_op(HVMOP_get_mem_type, &type);

    answer(question, "%ld:%u", rc, type.mem_type);
}

static void ask_table(void)
{
    static xen_pfn_t list[64];
    struct gnttab_query_size size = {.dom = DOMID_SELF};
    struct gnttab_get_version version = {.dom = DOMID_SELF};
    struct gnttab_set_version set = {.version = 2};
    struct gnttab_setup_table setup = {.dom = DOMID_SELF, .nr_frames = 64};
    long rc = grant_table_op(GNTTABOP_query_size, &size, 1);

    answer("gnttab.query_size", "%ld status=%d nr=%u max=%u", rc, size.status, size.nr_frames, size.max_nr_frames);
    size.dom = NOBODY;
    grant_table_op(GNTTABOP_query_size, &size, 1);
    answer("gnttab.query_size.dom4444", "%d", size.status);
    size.dom = 0;
    grant_table_op(GNTTABOP_query_size, &size, 1);
    answer("gnttab.query_size.dom0", "%d", size.status);
    rc = grant_table_op(GNTTABOP_get_version, &version, 1);
    answer("gnttab.get_version", "%ld version=%u", rc, version.version);
    version.dom = NOBODY;
    answer_rc("gnttab.get_version.dom4444", grant_table_op(GNTTABOP_get_version, &version, 1));
    rc = grant_table_op(GNTTABOP_set_version, &set, 1);
    answer("gnttab.set_version.2", "%ld version=%u", rc, set.version);
    set.version = 3;
    rc = grant_table_op(GNTTABOP_set_version, &set, 1);
    answer("gnttab.set_version.3", "%ld version=%u", rc, set.version);
    set.version = 1;
    rc = grant_table_op(GNTTABOP_set_version, &set, 1);
    answer("gnttab.set_version.back1", "%ld version=%u", rc, set.version);
    set_xen_guest_handle(setup.frame_list, list);
    answer_rc("gnttab.setup_table.64", grant_table_op(GNTTABOP_setup_table, &setup, 1));
    answer("gnttab.setup_table.64.status", "%d", setup.status);
    setup.nr_frames = 65;
    grant_table_op(GNTTABOP_setup_table, &setup, 1);
    answer("gnttab.setup_table.65.status", "%d", setup.status);
    for (u32 ref = 0; ref < 8; ref++)
        answer(name("gnttab.initial.%u", ref), "%08x.%x", table[ref].flags, ref < 2 ? 0 : table[ref].frame);
}

static void ask_map(void)
{
    struct gnttab_map_grant_ref one, two;
    u8 *page = page_of(0x12121212);

    grant(page, false);
    answer_entry("gnttab.map.domid_self", map(DOMID_SELF, GNTMAP_host_map, hole).status);
    one = map(own, GNTMAP_host_map, hole);
    answer_entry("gnttab.map.own.rw", one.status);
    answer("gnttab.map.own.rw.handle", "%u", one.handle);
    answer_read("gnttab.map.own.rw.read", (u32 *)hole);
    answer_mem_type("gnttab.map.own.rw.mem_type");
    answer("gnttab.map.own.left", "%s", *(u32 *)page == ~0u ? "ones" : "value");
    two = map(own, GNTMAP_host_map, hole + PAGE_SIZE);
    answer_entry("gnttab.map.own.rw.second", two.status);
    answer("gnttab.map.second.handle", "%u", two.handle);
    answer_entry("gnttab.unmap.second", unmap(hole + PAGE_SIZE, two.handle));
    answer_entry("gnttab.unmap.own.rw", unmap(hole, one.handle));
    answer_read("gnttab.unmap.read", (u32 *)hole);
    answer_entry("gnttab.unmap.again", unmap(hole, one.handle));

    grant(page_of(0), false);
    one = map(own, GNTMAP_host_map | GNTMAP_readonly, hole);
    answer_entry("gnttab.map.as_ro", one.status);
    answer_entry("gnttab.unmap.as_ro", unmap(hole, one.handle));

    grant(page_of(0x56565656), true);
    answer_entry("gnttab.map.own.ro.as_rw", map(own, GNTMAP_host_map, hole).status);
    one = map(own, GNTMAP_host_map | GNTMAP_readonly, hole);
    answer_entry("gnttab.map.own.ro", one.status);
    answer_mem_type("gnttab.map.own.ro.mem_type");
    answer_read("gnttab.map.own.ro.read", (u32 *)hole);
    answer_rc("gnttab.map.own.ro.write", try_write32((u32 *)hole, 0x1111));
    answer_read("gnttab.map.own.ro.reread", (u32 *)hole);
    answer_entry("gnttab.unmap.ro", unmap(hole, one.handle));
}

static void ask_refusals(void)
{
    u8 *page = page_of(0);
    u32 *under = page_of(0x78787878);
    struct gnttab_map_grant_ref one;

    grant_access(REF, own + 1, (ulong)page >> PAGE_SHIFT, false);
    answer_entry("gnttab.map.wrong_domid", map(own, GNTMAP_host_map, hole).status);
    grant(page, false);
    table[REF].flags = GTF_invalid;
    answer_entry("gnttab.map.invalid", map(own, GNTMAP_host_map, hole).status);
    table[REF].flags = GTF_accept_transfer;
    answer_entry("gnttab.map.transfer_entry", map(own, GNTMAP_host_map, hole).status);
    table[REF].flags = GTF_permit_access | GTF_sub_page;
    answer_entry("gnttab.map.sub_page", map(own, GNTMAP_host_map, hole).status);
    table[REF].flags = GTF_permit_access;
    answer_entry("gnttab.map.dom4444", map(NOBODY, GNTMAP_host_map, hole).status);
    answer_entry("gnttab.map.dom0", map(0, GNTMAP_host_map, hole).status);
    answer_entry("gnttab.map.noflags", map(own, 0, hole).status);
    answer_entry("gnttab.map.device", map(own, GNTMAP_device_map, hole).status);
    answer_entry("gnttab.map.pte", map(own, GNTMAP_host_map | GNTMAP_contains_pte, hole).status);
    one = map(own, GNTMAP_host_map, (ulong)under);
    answer_entry("gnttab.map.over_ram", one.status);
    answer_entry("gnttab.unmap.over_ram", unmap((ulong)under, one.handle));
    answer("gnttab.over_ram.read", "-1:%s", *under == ~0u ? "ones" : "other");
    grant(page_of(0), false);
    one = map(own, GNTMAP_host_map, hole + 0x123);
    answer_entry("gnttab.map.unaligned", one.status);
    answer_entry("gnttab.unmap.unaligned", unmap(hole + 0x123, one.handle));
    answer_entry("gnttab.unmap.badhandle", unmap(hole, 9999));
    answer_rc("gnttab.map.null", grant_table_op(GNTTABOP_map_grant_ref, NULL, 1));
    answer_rc("gnttab.map.count0", grant_table_op(GNTTABOP_map_grant_ref, NULL, 0));
    struct gnttab_unmap_and_replace replace = {.status = 0};
    long rc = grant_table_op(GNTTABOP_unmap_and_replace, &replace, 1);
    answer("gnttab.unmap_and_replace", "%ld status=%d", rc, replace.status);
}

static struct gnttab_copy copy_of(void)
{
    return (struct gnttab_copy){
        .source = {.domid = DOMID_SELF, .u.gmfn = (ulong)src >> PAGE_SHIFT},
        .dest = {.domid = DOMID_SELF, .u.gmfn = (ulong)dst >> PAGE_SHIFT},
        .len = 16,
    };
}

static void copy(const char *question, struct gnttab_copy op)
{
    long rc;

    op.status = 99;
    rc = grant_table_op(GNTTABOP_copy, &op, 1);
    answer(question, "%ld status=%d check=%08x flags=%08x", rc, op.status, *(u32 *)dst, READ_ONCE(table[REF].flags));
}

#define COPY(question, ...)             \
    do {                                \
        struct gnttab_copy c = copy_of(); \
        __VA_ARGS__;                    \
        copy("gnttab.copy." question, c); \
    } while (0)
#define FROM_REF(dom, number) c.flags |= GNTCOPY_source_gref, c.source.domid = (dom), c.source.u.ref = (number)
#define TO_REF(dom, number) c.flags |= GNTCOPY_dest_gref, c.dest.domid = (dom), c.dest.u.ref = (number)

static void ask_copy(void)
{
    ulong nothing = hole >> PAGE_SHIFT;

    src = alloc_pages(1);
    dst = alloc_pages(1);
    for (unsigned int i = 0; i < 256; i++)
        src[i] = (u8)i;
    grant(dst, false);
    grant_access(RO_REF, own, (ulong)alloc_pages(1) >> PAGE_SHIFT, true);
    COPY("gmfn_roref", TO_REF(DOMID_SELF, RO_REF));
    COPY("roref_gmfn", FROM_REF(DOMID_SELF, RO_REF));
    COPY("len0", c.len = 0);
    COPY("gmfn_gmfn", );
    COPY("cross_src", c.source.offset = PAGE_SIZE - 4);
    COPY("cross_dst", c.dest.offset = PAGE_SIZE - 4);
    COPY("off4096", c.source.offset = PAGE_SIZE, c.len = 0);
    COPY("off4096len1", c.source.offset = PAGE_SIZE, c.len = 1);
    COPY("len_big", c.len = PAGE_SIZE + 1);
    COPY("offsets", c.dest.offset = 2, c.len = 2);
    COPY("bad_ref", FROM_REF(DOMID_SELF, 1000000));
    COPY("unused_ref", FROM_REF(DOMID_SELF, 100));
    COPY("bad_gmfn", c.source.u.gmfn = nothing);
    COPY("bad_dst_gmfn", c.dest.u.gmfn = nothing);
    COPY("dom0_gmfn", c.source.domid = 0);
    COPY("own_gmfn", c.source.domid = own);
    COPY("dom0_ref", FROM_REF(0, 8));
    COPY("dom4444_ref", FROM_REF(NOBODY, 8));
    grant_access(RO_REF, own, (ulong)src >> PAGE_SHIFT, true);
    COPY("ref_ref", FROM_REF(own, RO_REF), TO_REF(own, REF));
    COPY("badflags", c.flags = 0xfffc);
    answer_rc("gnttab.copy.null", grant_table_op(GNTTABOP_copy, NULL, 1));
}

static void swap(const char *question, u32 a, u32 b)
{
    struct gnttab_swap_grant_ref op = {.ref_a = a, .ref_b = b, .status = 99};
    long rc = grant_table_op(GNTTABOP_swap_grant_ref, &op, 1);

    answer(question, "%ld status=%d", rc, op.status);
}

static void ask_rest(void)
{
    static u64 buf[16];
    struct gnttab_dump_table dump = {.dom = DOMID_SELF, .status = 99};
    long rc;

    swap("gnttab.swap", REF, RO_REF);
    swap("gnttab.swap.same", REF, REF);
    swap("gnttab.swap.bad", REF, 1000000);
    answer_rc("gnttab.cache_flush", grant_table_op(GNTTABOP_cache_flush, buf, 1));
    rc = grant_table_op(GNTTABOP_dump_table, &dump, 1);
    answer("gnttab.dump_table", "%ld status=%d", rc, dump.status);
    for (unsigned int op = 0; op < 16; op++) {
        answer_rc(name("gnttab.op.%u.null", op), grant_table_op(op, NULL, 1));
        memset(buf, 0, sizeof(buf));
        answer_rc(name("gnttab.op.%u.count0", op), grant_table_op(op, buf, 0));
    }
    answer_rc("gnttab.op.99", grant_table_op(99, buf, 1));
    answer_rc("gnttab.count.-1", grant_table_op(GNTTABOP_map_grant_ref, buf, ~0u));
}

void ask_grants(void)
{
    hole = alloc_hole(2) << PAGE_SHIFT;
    table = grant_table_map(1);
    ask_table();
    ask_map();
    ask_refusals();
    ask_copy();
    ask_rest();
}
