/*
 * multicall: several hypercalls in one.
 *
 * Purpose: each entry has its own result, in the caller's layout; long lists and long calls inside
 * them are carried out whole; a list that leads nowhere ends with -EFAULT and what came before it
 * is done; waiting inside works.
 * Blind spots: what is in the entry of a long call while it is not done.
 *
 * Variants: hvm64 hvm32pae hvm32
 */
#include "guest.h"

const char test_title[] = "multicall";

#define MANY 200u

static multicall_entry_t entries[MANY];

static void set(unsigned int i, u32 nr, ulong a, ulong b, ulong c)
{
    entries[i] = (multicall_entry_t){.op = nr, .args = {a, b, c}};
    entries[i].result = 0x77777777;
}

static void check_result(const char *what, unsigned int i, long want)
{
    check_signed(what, (long)entries[i].result, want);
}

static void test_mixed(void)
{
    struct evtchn_close close = {.port = 1000};
    struct xen_memory_domain self = {.domid = DOMID_SELF};

    call("multicall");
    set(0, __HYPERVISOR_xen_version, XENVER_version, 0, 0);
    set(1, __HYPERVISOR_iret, 0, 0, 0);
    set(2, __HYPERVISOR_sched_op, SCHEDOP_yield, 0, 0);
    set(3, __HYPERVISOR_xen_version, XENVER_changeset, alloc_hole(1) << PAGE_SHIFT, 0);
    set(4, __HYPERVISOR_event_channel_op, EVTCHNOP_close, (ulong)&close, 0);
    set(5, 1000, 0, 0, 0);
    set(6, __HYPERVISOR_multicall, (ulong)entries, 1, 0);
    set(7, __HYPERVISOR_memory_op, XENMEM_current_reservation, (ulong)&self, 0);
    check_rc("multicall.mixed", multicall(entries, 8), 0);
    check_result("a result", 0, 0x00040011);
    check_result("a call that does not exist", 1, -XEN_ENOSYS);
    check_result("yield", 2, 0);
    check_result("a bad pointer", 3, -XEN_EFAULT);
    check_result("an error", 4, -XEN_EINVAL);
    check_result("a number that does not exist", 5, -XEN_ENOSYS);
    check_result("one inside another", 6, -XEN_EINVAL);
    check_result("a number of pages", 7, memory_op(XENMEM_current_reservation, &self));
    check_rc("an empty one", multicall(entries, 0), 0);
}

/* The list of frames of a decrease and an increase that are longer than a slice. */
#define FRAMES 1200u
static xen_pfn_t frames[FRAMES];

static void test_long(void)
{
    static struct evtchn_alloc_unbound alloc[MANY];
    struct xen_memory_reservation r = {.nr_extents = FRAMES, .domid = DOMID_SELF};
    u32 map_entries;
    const struct hvm_memmap_table_entry *map = memmap(&map_entries);
    bool all = true;

    for (unsigned int i = 0; i < MANY; i++) {
        alloc[i].dom = alloc[i].remote_dom = DOMID_SELF;
        set(i, __HYPERVISOR_event_channel_op, EVTCHNOP_alloc_unbound, (ulong)&alloc[i], 0);
    }
    check_rc("many", multicall(entries, MANY), 0);
    for (unsigned int i = 0; i < MANY; i++)
        all &= !entries[i].result && alloc[i].port == alloc[0].port + i;
    check_true("each is done once, and in order", all);
    for (unsigned int i = 0; i < MANY; i++)
        evtchn_close(alloc[i].port);

    for (unsigned int i = 0; i < FRAMES; i++)
        frames[i] = (ulong)(map[0].size >> PAGE_SHIFT) - FRAMES + i;
    set_xen_guest_handle(r.extent_start, frames);
    set(0, __HYPERVISOR_memory_op, XENMEM_decrease_reservation, (ulong)&r, 0);
    set(1, __HYPERVISOR_memory_op, XENMEM_populate_physmap, (ulong)&r, 0);
    check_rc("long calls", multicall(entries, 2), 0);
    check_result("all pages given back", 0, FRAMES);
    check_result("and had again", 1, FRAMES);
}

/* Several slices of a batch, before and behind other calls. */
#define COPIES 1500u
static struct gnttab_copy copies[COPIES];

static void test_long_batch(void)
{
    u32 *from = alloc_pages(2), *to = alloc_pages(2);
    bool all = true;

    for (unsigned int i = 0; i < COPIES; i++) {
        unsigned int page = i / 1000;
        struct gnttab_copy *op = &copies[i];

        from[i + page * 24] = 0x1000 + i;
        op->source.u.gmfn = ((ulong)from >> PAGE_SHIFT) + page;
        op->dest.u.gmfn = ((ulong)to >> PAGE_SHIFT) + page;
        op->source.domid = op->dest.domid = DOMID_SELF;
        op->source.offset = op->dest.offset = (u16)(4 * (i % 1000));
        op->len = 4;
        op->status = 99;
    }
    set(0, __HYPERVISOR_xen_version, XENVER_version, 0, 0);
    set(1, __HYPERVISOR_grant_table_op, GNTTABOP_copy, (ulong)copies, COPIES);
    set(2, __HYPERVISOR_xen_version, XENVER_pagesize, 0, 0);
    check_rc("a long batch", multicall(entries, 3), 0);
    check_result("what is before it", 0, 0x00040011);
    check_result("its result", 1, 0);
    check_result("what is behind it", 2, PAGE_SIZE);
    for (unsigned int i = 0; i < COPIES; i++)
        all &= !copies[i].status && to[i + i / 1000 * 24] == 0x1000 + i;
    check_true("each of it is done", all);
}

static void test_wait(void)
{
    struct sched_poll poll = {.nr_ports = 1};
    evtchn_port_t port = 0;
    u64 start = system_time();

    evtchn_bind_ipi(0, &port);
    set_xen_guest_handle(poll.ports, &port);
    poll.timeout = start + MILLISECONDS(5);
    set(0, __HYPERVISOR_sched_op, SCHEDOP_poll, (ulong)&poll, 0);
    set(1, __HYPERVISOR_xen_version, XENVER_version, 0, 0);
    check_rc("a wait", multicall(entries, 2), 0);
    check_result("its result", 0, 0);
    check_result("and of what is behind it", 1, 0x00040011);
    check_true("it waited", system_time() >= start + MILLISECONDS(5));
    evtchn_close(port);
}

static void test_bad(void)
{
#if HAVE_PAGING
    u8 *last = window_map(4, (ulong)alloc_pages(1), PTE_PRESENT | PTE_WRITE);
    multicall_entry_t *e = (multicall_entry_t *)(last + PAGE_SIZE) - 1;

    window_map(5, 0, 0);
    *e = (multicall_entry_t){.op = __HYPERVISOR_xen_version, .args = {XENVER_version}};
    check_rc("it leads into nothing", multicall(e, 2), -XEN_EFAULT);
    check_signed("what was before that is done", (long)e->result, 0x00040011);
    check_rc("multicall.null", multicall(NULL, 1), -XEN_EFAULT);
#endif
    check_rc("multicall.neg", multicall((void *)(alloc_hole(1) << PAGE_SHIFT), ~0u), -XEN_EFAULT);
}

void test_main(void)
{
    shared_info_map();
    evtchn_mask_all();
    test_mixed();
    test_long();
    test_long_batch();
    test_wait();
    test_bad();
    success();
}
