/*
 * memory_ops: every memory_op command of a domU.
 *
 * Purpose: reservations and the physmap change as asked, lists longer than one slice too, and each
 * command's errno is the one that Xen 4.17 gives; what a domU may not do is refused.
 * Blind spots: other domains than oneself, dom0 and one that does not exist; bad pointers, but for a
 * list's (wild_pointers has the rest).
 *
 * Variants: hvm64 hvm32pae hvm32
 */
#include "guest.h"

const char test_title[] = "memory_op";

#define NOBODY 4444
#define MANY 1500u

/* Of the part of the header that is for tools. */
#define XENMEM_get_sharing_freed_pages 18
#define XENMEM_get_sharing_shared_pages 19
#define XENMEM_paging_op 20
#define XENMEM_access_op 21
#define XENMEM_sharing_op 22
#define XENMEM_claim_pages 24
#define XENMEM_reserved_device_memory_map 27

static domid_t own;
/* MANY frames of RAM at its end, which nothing else uses, and their list. */
static ulong spare;
static xen_pfn_t *list;

static volatile u32 *at(ulong gfn)
{
    return (volatile u32 *)(gfn << PAGE_SHIFT);
}

static bool is_ram(ulong gfn)
{
    *at(gfn) = 0x1234;
    return *at(gfn) == 0x1234;
}

static long domain_op(unsigned int cmd, domid_t dom)
{
    return memory_op(cmd, &dom);
}

static long reservation(void)
{
    return domain_op(XENMEM_current_reservation, DOMID_SELF);
}

static long extents(unsigned int cmd, xen_pfn_t *frames, ulong count, unsigned int order, domid_t dom)
{
    struct xen_memory_reservation r = {.nr_extents = count, .extent_order = order, .domid = dom};

    set_xen_guest_handle(r.extent_start, frames);
    return memory_op(cmd, &r);
}

static void find_spare(void)
{
    u32 entries;
    const struct hvm_memmap_table_entry *map = memmap(&entries);

    list = alloc_pages((MANY * sizeof(*list) + PAGE_SIZE - 1) / PAGE_SIZE);
    for (u32 i = 0; i < entries; i++)
        if (map[i].type == XEN_HVM_MEMMAP_TYPE_RAM && map[i].addr <= (ulong)list)
            spare = (ulong)((map[i].addr + map[i].size) >> PAGE_SHIFT) - MANY;
    for (unsigned int i = 0; i < MANY; i++)
        list[i] = spare + i;
}

static void test_questions(void)
{
    call("XENMEM_current_reservation");
    check_true("current_reservation", reservation() > 0);
    check_signed("by number", domain_op(XENMEM_current_reservation, own), reservation());
    check_rc("mem.current_reservation.dom4444", domain_op(XENMEM_current_reservation, NOBODY), -XEN_ESRCH);
    check_rc("of dom0", domain_op(XENMEM_current_reservation, 0), -XEN_EPERM);

    call("XENMEM_maximum_reservation");
    check_true("maximum_reservation", domain_op(XENMEM_maximum_reservation, DOMID_SELF) >= reservation());
    check_rc("of a domain that does not exist", domain_op(XENMEM_maximum_reservation, NOBODY), -XEN_ESRCH);
    check_rc("of dom0", domain_op(XENMEM_maximum_reservation, 0), -XEN_EPERM);

    call("XENMEM_maximum_ram_page");
    check_true("maximum_ram_page", memory_op(XENMEM_maximum_ram_page, NULL) > 0);
    check_rc("with a start extent", memory_op(XENMEM_maximum_ram_page | 1 << 6, NULL), -XEN_EINVAL);

    call("XENMEM_maximum_gpfn");
    check_hex("mem.maximum_gpfn.value", (u64)domain_op(XENMEM_maximum_gpfn, DOMID_SELF), 0xfefff);
    check_rc("of a domain that does not exist", domain_op(XENMEM_maximum_gpfn, NOBODY), -XEN_ESRCH);
}

static void test_reservations(void)
{
    long before = reservation(), maximum = domain_op(XENMEM_maximum_reservation, DOMID_SELF);

    call("XENMEM_decrease_reservation");
    check_rc("mem.decrease.2", extents(XENMEM_decrease_reservation, list, 2, 0, DOMID_SELF), 2);
    check_signed("mem.decrease.2.delta", reservation() - before, -2);
    check_hex("mem.decrease.read", *at(spare), ~0u);
    check_rc("a hole ends it", extents(XENMEM_decrease_reservation, list + 1, 3, 0, DOMID_SELF), 0);
    check_rc("mem.decrease.dom4444", extents(XENMEM_decrease_reservation, list + 2, 1, 0, NOBODY), 0);
    check_rc("an order that is too large", extents(XENMEM_decrease_reservation, list + 2, 1, 10, DOMID_SELF), 0);

    call("XENMEM_populate_physmap");
    check_rc("mem.populate.2", extents(XENMEM_populate_physmap, list, 2, 0, DOMID_SELF), 2);
    check_signed("mem.populate.2.delta", reservation() - before, 0);
    check_true("populated", is_ram(spare) && is_ram(spare + 1));
    check_rc("mem.populate.0", extents(XENMEM_populate_physmap, list, 0, 0, DOMID_SELF), 0);
    check_rc("mem.populate.dom4444", extents(XENMEM_populate_physmap, list, 1, 0, NOBODY), 0);
    if (maximum - before < 512)
        check_rc("more than may be", extents(XENMEM_populate_physmap, list, 1, 9, DOMID_SELF), 0);
    check_rc("a list that is not there",
             extents(XENMEM_populate_physmap, (void *)(alloc_hole(1) << PAGE_SHIFT), 1, 0, DOMID_SELF), 0);
    check_rc("mem.op.start_extent", memory_op(XENMEM_populate_physmap | 5 << 6, NULL), 5);

    /* More than one slice: the guest issues the call anew by itself. */
    call("XENMEM_decrease_reservation");
    check_rc("many", extents(XENMEM_decrease_reservation, list, MANY, 0, DOMID_SELF), MANY);
    check_signed("many: delta", reservation() - before, -(long)MANY);
    call("XENMEM_populate_physmap");
    check_rc("many", extents(XENMEM_populate_physmap, list, MANY, 0, DOMID_SELF), MANY);
    check_signed("many: delta", reservation() - before, 0);
    check_true("the first and the last", is_ram(spare) && is_ram(spare + MANY - 1));

    call("XENMEM_decrease_reservation");
    check_rc("an extent of two", extents(XENMEM_decrease_reservation, list, 1, 1, DOMID_SELF), 1);
    call("XENMEM_populate_physmap");
    check_rc("an extent of two", extents(XENMEM_populate_physmap, list, 1, 1, DOMID_SELF), 1);
    check_true("both are there", is_ram(spare) && is_ram(spare + 1));

    call("XENMEM_increase_reservation");
    before = reservation();
    check_rc("mem.increase.1", extents(XENMEM_increase_reservation, NULL, 1, 0, DOMID_SELF), 1);
    check_signed("delta", reservation() - before, 1);
    check_rc("mem.increase.0", extents(XENMEM_increase_reservation, NULL, 0, 0, DOMID_SELF), 0);
    check_rc("of a domain that does not exist", extents(XENMEM_increase_reservation, NULL, 1, 0, NOBODY), 0);
}

static int place(domid_t dom, unsigned int space, ulong index, ulong gfn, u16 size)
{
    struct xen_add_to_physmap op = {.domid = dom, .size = size, .space = space, .idx = index, .gpfn = gfn};

    return (int)memory_op(XENMEM_add_to_physmap, &op);
}

static void test_add_to_physmap(ulong holes)
{
    ulong end = spare + MANY;

    call("XENMEM_add_to_physmap");
    check_rc("shared_info", place(DOMID_SELF, XENMAPSPACE_shared_info, 0, holes, 0), 0);
    check_rc("shared_info: there is one", place(DOMID_SELF, XENMAPSPACE_shared_info, 1, holes, 0), -XEN_EINVAL);
    check_rc("grant table", place(DOMID_SELF, XENMAPSPACE_grant_table, 0, holes + 1, 0), 0);
    check_rc("mem.atp.grant.10000", place(DOMID_SELF, XENMAPSPACE_grant_table, 10000, holes + 2, 0), -XEN_EINVAL);
    check_rc("mem.atp.grant.status0",
             place(DOMID_SELF, XENMAPSPACE_grant_table, XENMAPIDX_grant_table_status, holes + 2, 0), -XEN_EINVAL);
    check_rc("mem.atp.dev_mmio", place(DOMID_SELF, XENMAPSPACE_dev_mmio, 0xfee00, holes + 2, 0), -XEN_EACCES);
    check_rc("foreign", place(DOMID_SELF, XENMAPSPACE_gmfn_foreign, 0, holes + 2, 0), -XEN_ENOSYS);
    check_rc("a space that does not exist", place(DOMID_SELF, 99, 0, holes + 2, 0), -XEN_EINVAL);
    check_rc("of dom0", place(0, XENMAPSPACE_shared_info, 0, holes + 2, 0), -XEN_EACCES);
    check_rc("of a domain that does not exist", place(NOBODY, XENMAPSPACE_shared_info, 0, holes + 2, 0), -XEN_ESRCH);
    *at(spare) = 0x5151;
    check_rc("gmfn", place(DOMID_SELF, XENMAPSPACE_gmfn, spare, holes + 2, 0), 0);
    check_hex("mem.gmfn.moved.read", *at(holes + 2), 0x5151);
    check_hex("where it was", *at(spare), ~0u);
    check_rc("and back", place(own, XENMAPSPACE_gmfn, holes + 2, spare, 0), 0);
    check_hex("moved back", *at(spare), 0x5151);
    check_rc("gmfn of a hole", place(DOMID_SELF, XENMAPSPACE_gmfn, holes + 9, holes + 2, 0), -XEN_EINVAL);

    /* More than one slice. */
    *at(end - 1) = 0x6161;
    check_rc("gmfn_range", place(DOMID_SELF, XENMAPSPACE_gmfn_range, spare, holes + 16, MANY), 0);
    check_hex("the first", *at(holes + 16), 0x5151);
    check_hex("the last", *at(holes + 16 + MANY - 1), 0x6161);
    check_rc("and back", place(DOMID_SELF, XENMAPSPACE_gmfn_range, holes + 16, spare, MANY), 0);
    check_hex("the last is back", *at(end - 1), 0x6161);
    check_rc("a range with a hole", place(DOMID_SELF, XENMAPSPACE_gmfn_range, holes + 9, holes + 16, 2), -XEN_EINVAL);
}

static void test_batch(ulong holes)
{
    static xen_ulong_t idxs[3] = {0, 1, 1ul << 20};
    static xen_pfn_t gpfns[3];
    static int errs[3];
    struct xen_add_to_physmap_batch b = {.domid = DOMID_SELF, .space = XENMAPSPACE_grant_table, .size = 3};

    for (unsigned int i = 0; i < 3; i++)
        gpfns[i] = holes + 3 + i;
    set_xen_guest_handle(b.idxs, idxs);
    set_xen_guest_handle(b.gpfns, gpfns);
    set_xen_guest_handle(b.errs, errs);
    call("XENMEM_add_to_physmap_batch");
    check_rc("grant frames", memory_op(XENMEM_add_to_physmap_batch, &b), 0);
    if (errs[0] || errs[1] || errs[2] != -XEN_EINVAL)
        failure("errs: %d %d %d, want 0 0 %d", errs[0], errs[1], errs[2], -XEN_EINVAL);
    b.size = 0;
    check_rc("an empty one", memory_op(XENMEM_add_to_physmap_batch, &b), 0);
    b.size = 1;
    b.space = XENMAPSPACE_gmfn_foreign;
    check_rc("foreign", memory_op(XENMEM_add_to_physmap_batch, &b), 0);
    check_rc("mem.batch.foreign.err", errs[0], -XEN_EPERM);
    b.space = XENMAPSPACE_gmfn_range;
    check_rc("mem.batch.gmfn_range", memory_op(XENMEM_add_to_physmap_batch, &b), -XEN_EOPNOTSUPP);
    b.space = XENMAPSPACE_grant_table;
    b.domid = NOBODY;
    check_rc("of a domain that does not exist", memory_op(XENMEM_add_to_physmap_batch, &b), -XEN_ESRCH);
    b.domid = DOMID_SELF;
    set_xen_guest_handle(b.errs, (int *)((holes + 9) << PAGE_SHIFT));
    check_rc("no room for errnos", memory_op(XENMEM_add_to_physmap_batch, &b), -XEN_EFAULT);
}

static int take(domid_t dom, ulong gfn)
{
    struct xen_remove_from_physmap op = {.domid = dom, .gpfn = gfn};

    return (int)memory_op(XENMEM_remove_from_physmap, &op);
}

static void test_remove(ulong holes)
{
    long before = reservation();

    call("XENMEM_remove_from_physmap");
    check_rc("mem.remove.grant", take(DOMID_SELF, holes + 4), 0);
    check_rc("mem.remove.ram", take(own, spare), 0);
    check_hex("mem.remove.ram.read", *at(spare), ~0u);
    check_signed("the page stays the domain's", reservation() - before, 0);
    check_rc("mem.remove.again", take(DOMID_SELF, spare), -XEN_ENOENT);
    check_rc("mem.remove.hole", take(DOMID_SELF, holes + 9), -XEN_ENOENT);
    check_rc("mem.remove.dom0", take(0, 1), -XEN_EACCES);
    check_rc("of a domain that does not exist", take(NOBODY, 1), -XEN_ESRCH);
}

struct e820 {
    u64 addr, size;
    u32 type;
} __attribute__((packed));

static long map_op(unsigned int cmd, domid_t dom, struct e820 *entries, unsigned int *n)
{
    struct xen_foreign_memory_map op = {.domid = dom, .map = {.nr_entries = *n}};
    long rc;

    set_xen_guest_handle(op.map.buffer, entries);
    rc = memory_op(cmd, cmd == XENMEM_set_memory_map ? (void *)&op : (void *)&op.map);
    *n = op.map.nr_entries;
    return rc;
}

static void test_memory_map(void)
{
    static struct e820 map[32], back[32];
    unsigned int all = ARRAY_SIZE(map), n = 1;
    ulong nowhere = alloc_hole(1) << PAGE_SHIFT;

    call("XENMEM_memory_map");
    check_rc("memory_map", map_op(XENMEM_memory_map, 0, map, &all), 0);
    check_true("the first entry is RAM", all >= 2 && map[0].type == 1 && !map[0].addr && map[0].size);
    check_rc("mem.memory_map.short", map_op(XENMEM_memory_map, 0, back, &n), 0);
    check_signed("mem.memory_map.short.entries", n, 1);
    n = 1;
    check_rc("a buffer that is not there", map_op(XENMEM_memory_map, 0, (void *)nowhere, &n), -XEN_EFAULT);

    call("XENMEM_set_memory_map");
    n = 2;
    map[1].size = 0x7000;
    check_rc("mem.set_memory_map.self", map_op(XENMEM_set_memory_map, DOMID_SELF, map, &n), 0);
    n = ARRAY_SIZE(back);
    check_rc("it is the map now", map_op(XENMEM_memory_map, 0, back, &n), 0);
    check_true("as it was set", n == 2 && !memcmp(map, back, 2 * sizeof(*map)));
    n = 1025;
    check_rc("more entries than can be", map_op(XENMEM_set_memory_map, DOMID_SELF, map, &n), -XEN_EINVAL);
    n = 1;
    check_rc("mem.set_memory_map.dom0", map_op(XENMEM_set_memory_map, 0, map, &n), -XEN_EPERM);
    n = 1;
    check_rc("of a domain that does not exist", map_op(XENMEM_set_memory_map, NOBODY, map, &n), -XEN_ESRCH);
    n = 1;
    check_rc("a list that is not there", map_op(XENMEM_set_memory_map, DOMID_SELF, (void *)nowhere, &n), -XEN_EFAULT);

    call("XENMEM_machine_memory_map");
    check_rc("mem.machine_memory_map", map_op(XENMEM_machine_memory_map, 0, back, &n), -XEN_ENOSYS);
}

static void test_machine(void)
{
    static xen_pfn_t extents[64];
    struct xen_machphys_mfn_list mfns = {.max_extents = ARRAY_SIZE(extents)};

    set_xen_guest_handle(mfns.extent_start, extents);
    call("XENMEM_machphys_mfn_list");
#ifdef __x86_64__
    check_rc("machphys_mfn_list", memory_op(XENMEM_machphys_mfn_list, &mfns), 0);
    check_true("there are some extents", mfns.nr_extents && mfns.nr_extents <= ARRAY_SIZE(extents));
#else
    check_rc("machphys_mfn_list", memory_op(XENMEM_machphys_mfn_list, &mfns), -XEN_EOPNOTSUPP);
#endif
    call("XENMEM_machphys_compat_mfn_list");
    check_rc("machphys_compat_mfn_list", memory_op(XENMEM_machphys_compat_mfn_list, &mfns), -XEN_EOPNOTSUPP);
    call("XENMEM_machphys_mapping");
    check_rc("machphys_mapping", memory_op(XENMEM_machphys_mapping, extents), -XEN_ENOSYS);
}

static void test_exchange(void)
{
    static xen_pfn_t out[1];
    struct xen_memory_exchange x = {
        .in = {.nr_extents = 1, .domid = DOMID_SELF},
        .out = {.nr_extents = 1, .domid = DOMID_SELF},
    };

    call("XENMEM_exchange");
    set_xen_guest_handle(x.in.extent_start, list + 1);
    set_xen_guest_handle(x.out.extent_start, out);
    check_rc("mem.exchange", memory_op(XENMEM_exchange, &x), -XEN_EOPNOTSUPP);
    check_signed("mem.exchange.nr_exchanged", (long)x.nr_exchanged, 0);
    x.out.nr_extents = 2;
    check_rc("mem.exchange.mismatch", memory_op(XENMEM_exchange, &x), -XEN_EINVAL);
    x.out.nr_extents = 1;
    x.in.extent_order = x.out.extent_order = 10;
    check_rc("an order that is too large", memory_op(XENMEM_exchange, &x), -XEN_EPERM);
}

static void test_tools(void)
{
    struct xen_pod_target pod = {.domid = DOMID_SELF};
    struct xen_mem_acquire_resource resource = {.domid = DOMID_SELF, .type = XENMEM_resource_grant_table};
    struct xen_vnuma_topology_info vnuma = {.domid = DOMID_SELF};
    static u64 buf[16];

    call("XENMEM_set_pod_target");
    check_rc("mem.set_pod_target", memory_op(XENMEM_set_pod_target, &pod), -XEN_EPERM);
    call("XENMEM_get_pod_target");
    check_rc("get_pod_target", memory_op(XENMEM_get_pod_target, &pod), -XEN_EPERM);
    pod.domid = NOBODY;
    check_rc("of a domain that does not exist", memory_op(XENMEM_get_pod_target, &pod), -XEN_ESRCH);

    call("XENMEM_get_sharing_freed_pages");
    check_rc("get_sharing_freed_pages", memory_op(XENMEM_get_sharing_freed_pages, NULL), 0);
    call("XENMEM_get_sharing_shared_pages");
    check_rc("get_sharing_shared_pages", memory_op(XENMEM_get_sharing_shared_pages, NULL), 0);
    call("XENMEM_paging_op");
    check_rc("paging_op", memory_op(XENMEM_paging_op, buf), -XEN_ENOSYS);
    call("XENMEM_sharing_op");
    check_rc("sharing_op", memory_op(XENMEM_sharing_op, buf), -XEN_ENOSYS);

    call("XENMEM_access_op");
    /* struct xen_mem_access_op: two bytes, then the domain. */
    ((domid_t *)buf)[1] = own;
    check_rc("access_op on oneself", memory_op(XENMEM_access_op, buf), -XEN_EPERM);
    ((domid_t *)buf)[1] = NOBODY;
    check_rc("of a domain that does not exist", memory_op(XENMEM_access_op, buf), -XEN_ESRCH);

    call("XENMEM_claim_pages");
#ifdef __x86_64__
    check_rc("claim_pages", extents(XENMEM_claim_pages, NULL, 1, 0, own), -XEN_EPERM);
    check_rc("with an order", extents(XENMEM_claim_pages, NULL, 1, 1, own), -XEN_EINVAL);
#else
    check_rc("claim_pages", extents(XENMEM_claim_pages, NULL, 1, 0, own), -XEN_ENOSYS);
#endif

    call("XENMEM_get_vnumainfo");
    check_rc("get_vnumainfo", memory_op(XENMEM_get_vnumainfo, &vnuma), -XEN_EOPNOTSUPP);
    vnuma.pad = 1;
    check_rc("with a pad", memory_op(XENMEM_get_vnumainfo, &vnuma), -XEN_EINVAL);

    call("XENMEM_reserved_device_memory_map");
    /* struct xen_reserved_device_memory_map: flags, then the number of entries. */
    memset(buf, 0, sizeof(buf));
    ((u32 *)buf)[1] = 5;
    check_rc("reserved_device_memory_map", memory_op(XENMEM_reserved_device_memory_map, buf), 0);
    check_signed("there is none", ((u32 *)buf)[1], 0);
    ((u32 *)buf)[0] = 2;
    check_rc("flags that do not exist", memory_op(XENMEM_reserved_device_memory_map, buf), -XEN_EINVAL);

    call("XENMEM_acquire_resource");
    check_rc("mem.acquire.grant", memory_op(XENMEM_acquire_resource, &resource), -XEN_EACCES);

    call(NULL);
    check_rc("mem.op.63", memory_op(63, buf), -XEN_ENOSYS);
    check_rc("mem.op.-1", memory_op(~0u, buf), -XEN_ENOSYS);
}

void test_main(void)
{
    ulong holes;

    own = own_domid();
    find_spare();
    test_questions();
    holes = alloc_hole(16 + MANY);
    test_reservations();
    test_add_to_physmap(holes);
    test_batch(holes);
    test_remove(holes);
    test_memory_map();
    test_machine();
    test_exchange();
    test_tools();
    success();
}
