/*
 * mem.*: memory_op. What belongs to the domain in the end is counted from the first answer on, so
 * pages that are given away here stay away.
 */
#include "answers.h"

static ulong gfn_of(const void *page)
{
    return (ulong)page >> PAGE_SHIFT;
}

static u32 *at(ulong gfn)
{
    return (u32 *)(gfn << PAGE_SHIFT);
}

static long reservation(domid_t dom)
{
    return memory_op(XENMEM_current_reservation, &dom);
}

static int remove_page(domid_t dom, ulong gfn)
{
    struct xen_remove_from_physmap op = {.domid = dom, .gpfn = gfn};

    return (int)memory_op(XENMEM_remove_from_physmap, &op);
}

static xen_pfn_t frames[2];

static long extents(unsigned int op, domid_t dom, ulong first, unsigned int count)
{
    struct xen_memory_reservation r = {.domid = dom, .nr_extents = count};

    frames[0] = first;
    frames[1] = first + 1;
    set_xen_guest_handle(r.extent_start, frames);
    return memory_op(op, &r);
}

static void ask_shared_info(void)
{
    u8 *page = alloc_pages(1);
    ulong hole = alloc_hole(1);

    answer_rc("mem.atp.shared_info.ram", add_to_physmap(XENMAPSPACE_shared_info, 0, gfn_of(page)));
    shared_info = (struct shared_info *)page;
    answer_read("mem.shared_info.tail", (u32 *)(page + PAGE_SIZE - 4));
    answer("mem.shared_info.mask_all_ones", "%s", yes_or_no(shared_info->evtchn_mask[0] == ~0ul));
    for (unsigned int i = 0; i < 3; i++)
        answer(name("mem.shared_info.vcpu%u.upcall_mask", i), "%u", shared_info->vcpu_info[i].evtchn_upcall_mask);
    answer("mem.shared_info.vcpu0.upcall_pending", "%u", shared_info->vcpu_info[0].evtchn_upcall_pending);
    answer("mem.shared_info.vcpu0.selector", "%s", zero_or_not(shared_info->vcpu_info[0].evtchn_pending_sel));
    answer_rc("mem.atp.shared_info.idx1", add_to_physmap(XENMAPSPACE_shared_info, 1, hole));
    answer_rc("mem.atp.shared_info.hole", add_to_physmap(XENMAPSPACE_shared_info, 0, hole));
    shared_info = (struct shared_info *)at(hole);
    for (unsigned int i = 0; i < 2; i++)
        vcpu_infos[i] = &shared_info->vcpu_info[i];
    /* The RAM that shared_info took the place of is gone, and so is shared_info from there. */
    answer("mem.atp.shared_info.left", "%s", *(u32 *)page == ~0u ? "ones" : "value");
    answer_rc("mem.populate.lost_page", extents(XENMEM_populate_physmap, DOMID_SELF, gfn_of(page), 1));
}

static void ask_batch(ulong grants)
{
    static xen_ulong_t idxs[3];
    static xen_pfn_t gpfns[3];
    static int errs[3];
    struct xen_add_to_physmap_batch b = {.domid = DOMID_SELF, .space = XENMAPSPACE_grant_table, .size = 3};

    for (unsigned int i = 0; i < 3; i++) {
        idxs[i] = i;
        gpfns[i] = grants + i;
        errs[i] = 99;
    }
    set_xen_guest_handle(b.idxs, idxs);
    set_xen_guest_handle(b.gpfns, gpfns);
    set_xen_guest_handle(b.errs, errs);
    answer_rc("mem.batch.grant", memory_op(XENMEM_add_to_physmap_batch, &b));
    answer("mem.batch.grant.errs", "%d,%d,%d", errs[0], errs[1], errs[2]);
    b.space = XENMAPSPACE_gmfn_foreign;
    b.size = 1;
    b.u.foreign_domid = 0;
    gpfns[0] = alloc_hole(1);
    answer_rc("mem.batch.foreign", memory_op(XENMEM_add_to_physmap_batch, &b));
    answer("mem.batch.foreign.err", "%d", errs[0]);
    b.space = XENMAPSPACE_gmfn_range;
    answer_rc("mem.batch.gmfn_range", memory_op(XENMEM_add_to_physmap_batch, &b));
    answer_rc("mem.batch.null", memory_op(XENMEM_add_to_physmap_batch, NULL));
}

static void ask_mapping(void)
{
    ulong hole = alloc_hole(8);
    u32 *moved = alloc_pages(1), *removed = alloc_pages(1);

    answer_rc("mem.atp.grant.63", add_to_physmap(XENMAPSPACE_grant_table, 63, hole));
    answer_rc("mem.atp.grant.64", add_to_physmap(XENMAPSPACE_grant_table, 64, hole + 7));
    answer_rc("mem.atp.grant.10000", add_to_physmap(XENMAPSPACE_grant_table, 10000, hole + 7));
    answer_rc("mem.atp.grant.status0",
              add_to_physmap(XENMAPSPACE_grant_table, XENMAPIDX_grant_table_status, hole + 7));
    answer_rc("mem.atp.dev_mmio", add_to_physmap(XENMAPSPACE_dev_mmio, 0xfee00, hole + 7));
    answer_rc("mem.atp.foreign", add_to_physmap(XENMAPSPACE_gmfn_foreign, 1, hole + 7));
    answer_rc("mem.atp.space99", add_to_physmap(99, 0, hole + 7));
    *moved = 0xabcd1234;
    answer_rc("mem.gmfn.moved", add_to_physmap(XENMAPSPACE_gmfn, gfn_of(moved), hole + 1));
    answer("mem.gmfn.moved.read", "-1:%s", *at(hole + 1) == 0xabcd1234 ? "value" : "other");
    answer("mem.gmfn.left.read", "-1:%s", *moved == ~0u ? "ones" : "other");
    answer_rc("mem.gmfn.hole", add_to_physmap(XENMAPSPACE_gmfn, hole + 6, hole + 7));
    ask_batch(hole + 2);
    answer_rc("mem.remove.ram", remove_page(DOMID_SELF, gfn_of(removed)));
    answer("mem.remove.ram.read", "-1:%s", *removed == ~0u ? "ones" : "other");
    answer_rc("mem.remove.again", remove_page(DOMID_SELF, gfn_of(removed)));
    answer_rc("mem.remove.grant", remove_page(DOMID_SELF, hole + 4));
    answer_rc("mem.remove.hole", remove_page(DOMID_SELF, hole + 7));
    answer_rc("mem.remove.dom0", remove_page(0, 1));
    answer_rc("mem.remove.nobody", remove_page(NOBODY, 1));
}

static void ask_reservation(void)
{
    long before = reservation(DOMID_SELF), most;
    ulong pages = gfn_of(alloc_pages(2)), hole = alloc_hole(2);
    domid_t self = DOMID_SELF;
    int trap;
    u32 value;

    most = memory_op(XENMEM_maximum_reservation, &self);
    answer("mem.current_reservation", "%s", before > 0 ? "positive" : "other");
    answer_rc("mem.current_reservation.pages", before);
    answer("mem.maximum_reservation", "%s", most > 0 ? "positive" : "other");
    answer("mem.maximum_reservation.above", "%s", yes_or_no(most > before));
    answer_rc("mem.decrease.2", extents(XENMEM_decrease_reservation, DOMID_SELF, pages, 2));
    answer_rc("mem.decrease.2.delta", reservation(DOMID_SELF) - before);
    answer_read("mem.decrease.read", at(pages));
    answer_rc("mem.decrease.again", extents(XENMEM_decrease_reservation, DOMID_SELF, pages, 2));
    answer_rc("mem.populate.2", extents(XENMEM_populate_physmap, DOMID_SELF, pages, 2));
    answer_rc("mem.populate.2.delta", reservation(DOMID_SELF) - before);
    answer_read("mem.populate.read", at(pages));
    answer_rc("mem.populate.present", extents(XENMEM_populate_physmap, DOMID_SELF, pages, 2));
    answer_rc("mem.populate.hole", extents(XENMEM_populate_physmap, DOMID_SELF, hole, 2));
    trap = try_write32(at(hole), 0x1234);
    if (trap == -1)
        trap = try_read32(at(hole), &value);
    answer("mem.populate.hole.rw", "%d:%08x", trap, value);
    answer_rc("mem.decrease.hole", extents(XENMEM_decrease_reservation, DOMID_SELF, hole, 2));
    answer_rc("mem.increase.1", extents(XENMEM_increase_reservation, DOMID_SELF, 0, 1));
    answer_rc("mem.increase.delta", reservation(DOMID_SELF) - before);
    answer_rc("mem.increase.0", extents(XENMEM_increase_reservation, DOMID_SELF, 0, 0));
    answer_rc("mem.populate.0", extents(XENMEM_populate_physmap, DOMID_SELF, 0, 0));
    answer_rc("mem.populate.dom4444", extents(XENMEM_populate_physmap, NOBODY, hole, 1));
    answer_rc("mem.decrease.dom4444", extents(XENMEM_decrease_reservation, NOBODY, hole, 1));
    answer_rc("mem.populate.dom0", extents(XENMEM_populate_physmap, 0, hole, 1));
    answer_rc("mem.populate.owndomid", extents(XENMEM_populate_physmap, own, hole, 1));
    answer_rc("mem.decrease.owndomid", extents(XENMEM_decrease_reservation, own, hole, 1));
    answer("mem.maximum_gpfn.value", "%08lx", memory_op(XENMEM_maximum_gpfn, &self));
    answer_rc("mem.current_reservation.dom4444", reservation(NOBODY));
    answer_rc("mem.current_reservation.dom0", reservation(0));
    answer("mem.maximum_ram_page", "%s", memory_op(XENMEM_maximum_ram_page, NULL) > 0 ? "positive" : "other");
    answer("mem.current_reservation.owndomid", "%s", reservation(own) > 0 ? "positive" : "other");
}

struct e820 {
    u64 addr, size;
    u32 type;
} __attribute__((packed));

static void ask_map(void)
{
    static struct e820 e820[16];
    struct xen_memory_map map = {.nr_entries = ARRAY_SIZE(e820)};
    struct xen_foreign_memory_map foreign = {.domid = DOMID_SELF};
    u32 entries;

    set_xen_guest_handle(map.buffer, e820);
    answer_rc("mem.memory_map", memory_op(XENMEM_memory_map, &map));
    entries = map.nr_entries;
    answer("mem.memory_map.entries", "%u", entries);
    for (u32 i = 0; i < entries; i++)
        answer(name("mem.memory_map.%u", i), "%016llx+%016llx:%u", (unsigned long long)e820[i].addr,
               (unsigned long long)e820[i].size, e820[i].type);
    foreign.map = map;
    map.nr_entries = 1;
    answer_rc("mem.memory_map.short", memory_op(XENMEM_memory_map, &map));
    answer("mem.memory_map.short.entries", "%u", map.nr_entries);
    answer_rc("mem.machine_memory_map", memory_op(XENMEM_machine_memory_map, &map));
    answer_rc("mem.set_memory_map.self", memory_op(XENMEM_set_memory_map, &foreign));
    foreign.domid = 0;
    answer_rc("mem.set_memory_map.dom0", memory_op(XENMEM_set_memory_map, &foreign));
    foreign.domid = NOBODY;
    answer_rc("mem.set_memory_map.nobody", memory_op(XENMEM_set_memory_map, &foreign));
}

static void ask_exchange(void)
{
    static xen_pfn_t in[2], out[2];
    struct xen_memory_exchange e = {.in = {.nr_extents = 1, .domid = DOMID_SELF},
                                    .out = {.nr_extents = 1, .domid = DOMID_SELF}};

    in[0] = out[0] = gfn_of(alloc_pages(1));
    set_xen_guest_handle(e.in.extent_start, in);
    set_xen_guest_handle(e.out.extent_start, out);
    answer_rc("mem.exchange", memory_op(XENMEM_exchange, &e));
    answer("mem.exchange.nr_exchanged", "%lu", e.nr_exchanged);
    e.out.nr_extents = 2;
    answer_rc("mem.exchange.mismatch", memory_op(XENMEM_exchange, &e));
}

static long acquire(domid_t dom, u16 type, u32 *count, xen_pfn_t *list)
{
    struct xen_mem_acquire_resource r = {.domid = dom, .type = type, .nr_frames = *count};
    long rc;

    set_xen_guest_handle(r.frame_list, list);
    rc = memory_op(XENMEM_acquire_resource, &r);
    *count = r.nr_frames;
    return rc;
}

static void ask_acquire(void)
{
    static xen_pfn_t list[1];
    u32 one = 1, none = 0;

    list[0] = alloc_hole(1);
    answer_rc("mem.acquire.grant", acquire(DOMID_SELF, XENMEM_resource_grant_table, &one, list));
    answer_rc("mem.acquire.grant.size", acquire(DOMID_SELF, XENMEM_resource_grant_table, &none, NULL));
    answer("mem.acquire.grant.size.n", "%u", none);
    answer_rc("mem.acquire.ioreq", acquire(DOMID_SELF, XENMEM_resource_ioreq_server, &one, list));
    answer_rc("mem.acquire.type77", acquire(DOMID_SELF, 77, &one, list));
    answer_rc("mem.acquire.owndomid", acquire(own, XENMEM_resource_grant_table, &one, list));
}

/* A positive result is the host's own. */
static long op_rc(unsigned long cmd, const void *arg)
{
    long rc = hypercall2(__HYPERVISOR_memory_op, cmd, arg);

    return rc > 0 ? 1 : rc;
}

static void ask_pointers(void)
{
    struct xen_pod_target pod = {.domid = DOMID_SELF, .target_pages = 1000};

    answer_rc("mem.get_pod_target", memory_op(XENMEM_get_pod_target, &pod));
    answer_rc("mem.set_pod_target", memory_op(XENMEM_set_pod_target, &pod));
    for (unsigned int op = 0; op <= 32; op++)
        answer_rc(name("mem.op.%u.null", op), op_rc(op, NULL));
    for (unsigned int op = 0; op <= 32; op++)
        answer_rc(name("mem.op.%u.unmapped", op), op_rc(op, unmapped()));
    answer_rc("mem.op.63", op_rc(63, NULL));
    answer_rc("mem.op.start_extent", hypercall2(__HYPERVISOR_memory_op, XENMEM_populate_physmap | 5 << 6, NULL));
    answer_rc("mem.op.-1", op_rc(~0ul, NULL));
}

void ask_memory(void)
{
    ask_shared_info();
    ask_mapping();
    ask_reservation();
    ask_map();
    ask_exchange();
    ask_acquire();
    ask_pointers();
}
