/*
 * fuzz: random hypercalls from a seed.
 *
 * Purpose: every hypercall with random numbers, sub-operations, registers and memory; of what the
 * registers point to most is made like the structures of the interface, so that calls get far. Ends
 * with the number of calls and a checksum of their results. By itself it proves only that a guest
 * survives it; tests/guest/test_fuzz.py looks at the host.
 * Blind spots: calls from CPL 3; pages of the console and the store; more than one vCPU that calls.
 *
 * The command line holds seed=, n= (calls) and wild=. With wild=0 the guest keeps away from what
 * ends or maims it by design; with wild=1 it does not, and may end in any way.
 * vCPU 1 is the rescuer: it wakes vCPU 0 when that has made no call for a while.
 *
 * Driven by: test_fuzz
 */
#include "guest.h"
#include "layout.h"
#include "random.h"

#include <xen/argo.h>
#include <xen/platform.h>

const char test_title[] = "Random hypercalls";

#define ARENA_PAGES 128u
#define FILLED 24u
#define BATCH 32u
#define HOLES 64u
#define RECENT 8u
#define SLOTS 0x4000u
/* Of sysctl and domctl in 4.17, whose headers are for tools only. */
#define INTERFACE_VERSION 0x15u
#define HEAL_EVERY 256u

/* What a call may be given: the topmost RAM, so that a list that is too long soon comes to its end. */
static ulong arena, arena_gfn;
/* Everything that must stay as it is lies from 1 MiB to here, and at the grant table's place. */
static ulong own_end;
static ulong holes, slots, next_slot;
static volatile void *table;
static ulong table_gfn;
static u32 table_version = 1;
static domid_t own;
static bool wild;

static volatile u32 progress;
static u64 now;
static u32 ports[RECENT], handles[RECENT], handle_slots[RECENT];

/* ---- random values ------------------------------------------------------------------------- */

static bool one_in(u32 n)
{
    return !random_below(n);
}

/* Whether a word could lead to what the guest lives on, taken as an address or as a frame. */
static bool deadly(u64 v)
{
    u64 address = v & 0xffffffffffffull;
    u32 low = (u32)v;

    return !wild && ((address >= 0xff000 && address < own_end) ||
                     (v >= 0x80 && v < own_end >> PAGE_SHIFT) || (low >= 0xff000 && low < own_end) ||
                     v == table_gfn || v >> PAGE_SHIFT == table_gfn);
}

static u64 safe(u64 v)
{
    return deadly(v) ? v ^ 0x90000000ull : v;
}

static const u64 edges[] = {
    0x7ff0, 0x7ff1, 0x7ff2, 0x7ff4, 0x7fef, 0xffff, 0x8000, 0x10000, 0x7fffffff, 0x80000000, 0xffffffff,
    0xfffffffe, 0xfffff000, 0x100000000ull, 0x7fffffffffffull, 0x800000000000ull, 0xffff800000000000ull,
    0x7fffffffffffffffull, 0x8000000000000000ull, ~0ull, ~0ull - 7, ~0xfffull, 63, 64, 127, 1023,
    1024, 4095, 4096, 131071, 131072, 0xfee00, 0xfee00000, 0xfeff8, 1ull << 36, (1ull << 36) - 1,
    1ull << 40, 1ull << 52,
};

static ulong arena_address(void)
{
    return arena + random_below(ARENA_PAGES * PAGE_SIZE);
}

static ulong gfn(void)
{
    switch (random_below(8)) {
    case 0:
        return holes + random_below(HOLES);
    case 1:
        return arena_gfn + ARENA_PAGES + random_below(64);
    default:
        return arena_gfn + random_below(ARENA_PAGES);
    }
}

static u64 value(void)
{
    switch (random_below(8)) {
    case 0:
    case 1:
        return random_below(16);
    case 2:
        return random_below(128);
    case 3:
        return safe(edges[random_below(ARRAY_SIZE(edges))]);
    case 4:
        return arena_address();
    case 5:
        return gfn();
    case 6:
        return safe(random_u64());
    default:
        return safe((u32)random_u64());
    }
}

/* test_fuzz runs two guests at a time; their numbers differ by one. */
static domid_t neighbour(void)
{
    return (domid_t)(own + (one_in(2) ? 1 : -1));
}

static domid_t domid(void)
{
    switch (random_below(16)) {
    case 0:
        return 0;
    case 1:
        return (domid_t)value();
    case 2:
    case 3:
        return own;
    case 4:
    case 5:
        return neighbour();
    default:
        return DOMID_SELF;
    }
}

static u32 port(void)
{
    return one_in(3) ? random_below(40) : ports[random_below(RECENT)];
}

static u32 vcpu(void)
{
    return one_in(16) ? (u32)value() : random_below(3);
}

static u64 moment(void)
{
    return one_in(4) ? value() : now + random_below(4000000);
}

/* A field: what it should be, or now and then anything at all. */
#define FIELD(good) (one_in(12) ? (__typeof__(good))value() : (good))

/* ---- memory -------------------------------------------------------------------------------- */

static bool is_ram(ulong address)
{
    volatile u32 *word = (volatile u32 *)(address & ~3ul);
    u32 old = *word;
    bool kept;

    *word = ~old;
    kept = *word == ~old;
    *word = old;
    return kept;
}

/* Pages that were found to be no RAM, until the next healing. */
static bool gone[ARENA_PAGES];

/* Brings back what earlier calls took away, as far as there is memory left. */
static void heal(void)
{
    struct gnttab_get_version version = {.dom = DOMID_SELF};
    struct xen_hvm_get_time time = {0};

    for (unsigned int i = 0; i < ARENA_PAGES; i++) {
        xen_pfn_t frame = arena_gfn + i;
        struct xen_memory_reservation r = {.nr_extents = 1, .domid = DOMID_SELF};

        set_xen_guest_handle(r.extent_start, &frame);
        gone[i] = !is_ram(arena + i * PAGE_SIZE) && memory_op(XENMEM_populate_physmap, &r) != 1;
    }
    add_to_physmap(XENMAPSPACE_grant_table, 0, table_gfn);
    if (!grant_table_op(GNTTABOP_get_version, &version, 1))
        table_version = version.version;
    hvm_op(HVMOP_get_time, &time);
    now = time.now;
}

/* A page of the arena that can be written without an exit for each word; NULL if none was found. */
static u8 *page(void)
{
    for (unsigned int i = 0; i < 8; i++) {
        u32 n = random_below(ARENA_PAGES);

        gone[n] = gone[n] || !is_ram(arena + n * PAGE_SIZE);
        if (!gone[n])
            return (u8 *)(arena + n * PAGE_SIZE);
    }
    return NULL;
}

/* Room at a random place, random words at its start; NULL if there is no memory for them. */
static void *buffer(size_t size)
{
    u8 *p = page();
    u32 *words;

    if (!p)
        return NULL;
    if (size < PAGE_SIZE)
        p += random_below((u32)(PAGE_SIZE - size) / 8 + 1) * 8;
    words = (u32 *)p;
    for (unsigned int i = 0; i < FILLED; i++)
        words[i] = one_in(3) ? (u32)value() : one_in(2) ? random_below(4) : 0x7ff07ff0u;
    return p;
}

static void *fresh(void)
{
    return buffer(256);
}

static ulong pointer(void)
{
    switch (random_below(16)) {
    case 0:
        return (ulong)value();
    case 1:
        return arena_address();
    case 2:
        return (holes << PAGE_SHIFT) + random_below(PAGE_SIZE);
    case 3:
        return 0;
    default:
        return (ulong)fresh();
    }
}

/* A list of frames, or of whatever has the size of a word. */
static void *frames(void)
{
    xen_ulong_t *list = fresh();

    for (unsigned int i = 0; list && i < 16; i++)
        list[i] = FIELD((xen_ulong_t)gfn());
    return list;
}

static void grant(u32 ref)
{
    u16 flags = one_in(3) ? (u16)value() : GTF_permit_access | (one_in(4) ? GTF_readonly : 0);
    u32 frame = (u32)gfn();
    domid_t to = domid();

    if (to == DOMID_SELF)
        to = own;
    if (table_version == 1) {
        grant_entry_v1_t *e = (grant_entry_v1_t *)table + ref % (PAGE_SIZE / sizeof(*e));

        e->domid = to;
        e->frame = frame;
        e->flags = flags;
    } else {
        grant_entry_v2_t *e = (grant_entry_v2_t *)table + ref % (PAGE_SIZE / sizeof(*e));

        e->hdr.domid = to;
        if (one_in(4)) {
            e->sub_page.page_off = (u16)random_below(4096);
            e->sub_page.length = (u16)random_below(4096);
            flags |= GTF_sub_page;
        }
        e->full_page.frame = frame;
        e->hdr.flags = flags;
    }
}

static u32 ref(void)
{
    u32 r = 8 + random_below(64);

    if (one_in(2))
        grant(r);
    return r;
}

/* ---- calls --------------------------------------------------------------------------------- */

struct call {
    ulong nr;
    ulong a[5];
};

/* Room of one structure, and a pointer to it. */
#define MAKE(type) type *op = (type *)p

static void make_reservation(void *p)
{
    MAKE(struct xen_memory_reservation);

    set_xen_guest_handle(op->extent_start, frames());
    op->nr_extents = FIELD((xen_ulong_t)random_below(5));
    op->extent_order = FIELD((unsigned int)(one_in(4) ? random_below(4) : 0));
    op->mem_flags = FIELD((unsigned int)0);
    op->domid = domid();
}

static void make_add_to_physmap(void *p)
{
    MAKE(struct xen_add_to_physmap);

    op->domid = domid();
    op->size = FIELD((u16)random_below(8));
    op->space = FIELD((unsigned int)random_below(6));
    op->idx = FIELD((xen_ulong_t)(op->space < 2 ? random_below(4) : gfn()));
    op->gpfn = FIELD((xen_pfn_t)gfn());
}

static void make_batch(void *p)
{
    MAKE(struct xen_add_to_physmap_batch);

    op->domid = domid();
    op->space = FIELD((u16)random_below(6));
    op->size = FIELD((u16)random_below(8));
    op->u.foreign_domid = domid();
    set_xen_guest_handle(op->idxs, frames());
    set_xen_guest_handle(op->gpfns, frames());
    set_xen_guest_handle(op->errs, fresh());
}

static void make_exchange(void *p)
{
    MAKE(struct xen_memory_exchange);

    make_reservation(&op->in);
    op->out = op->in;
    set_xen_guest_handle(op->out.extent_start, frames());
    op->nr_exchanged = FIELD((xen_ulong_t)0);
}

static void make_memory_map(void *p)
{
    MAKE(struct xen_memory_map);

    op->nr_entries = FIELD(random_below(16));
    set_xen_guest_handle(op->buffer, fresh());
}

static void make_memory(u32 cmd, void *p)
{
    switch (cmd) {
    case XENMEM_increase_reservation:
    case XENMEM_decrease_reservation:
    case XENMEM_populate_physmap:
        make_reservation(p);
        break;
    case XENMEM_add_to_physmap:
        make_add_to_physmap(p);
        break;
    case XENMEM_add_to_physmap_batch:
        make_batch(p);
        break;
    case XENMEM_exchange:
        make_exchange(p);
        break;
    case XENMEM_memory_map:
        make_memory_map(p);
        break;
    case XENMEM_set_memory_map:
        *(domid_t *)p = domid();
        make_memory_map(&((struct xen_foreign_memory_map *)p)->map);
        break;
    case XENMEM_remove_from_physmap: {
        MAKE(struct xen_remove_from_physmap);

        op->domid = domid();
        op->gpfn = FIELD((xen_pfn_t)gfn());
        break;
    }
    case XENMEM_machphys_mfn_list: {
        MAKE(struct xen_machphys_mfn_list);

        op->max_extents = FIELD(random_below(8));
        set_xen_guest_handle(op->extent_start, frames());
        break;
    }
    case XENMEM_acquire_resource: {
        MAKE(struct xen_mem_acquire_resource);

        op->domid = domid();
        op->type = FIELD((u16)random_below(3));
        op->id = FIELD(random_below(2));
        op->nr_frames = FIELD(random_below(4));
        op->pad = FIELD(0u);
        op->frame = FIELD((u64)random_below(4));
        set_xen_guest_handle(op->frame_list, frames());
        break;
    }
    default:
        *(domid_t *)p = domid();
    }
}

static size_t grant_size(u32 cmd)
{
    switch (cmd) {
    case GNTTABOP_map_grant_ref:
        return sizeof(struct gnttab_map_grant_ref);
    case GNTTABOP_unmap_grant_ref:
        return sizeof(struct gnttab_unmap_grant_ref);
    case GNTTABOP_copy:
        return sizeof(struct gnttab_copy);
    case GNTTABOP_swap_grant_ref:
        return sizeof(struct gnttab_swap_grant_ref);
    default:
        return sizeof(u64);
    }
}

static void make_copy_side(struct gnttab_copy *op, bool to)
{
    struct gnttab_copy_ptr {
        union {
            grant_ref_t ref;
            xen_pfn_t gmfn;
        } u;
        domid_t domid;
        u16 offset;
    } *side = to ? (void *)&op->dest : (void *)&op->source;
    bool by_ref = one_in(2);

    if (by_ref)
        side->u.ref = FIELD(ref());
    else
        side->u.gmfn = FIELD((xen_pfn_t)gfn());
    side->domid = domid();
    side->offset = FIELD((u16)random_below(4096));
    op->flags |= by_ref ? (to ? GNTCOPY_dest_gref : GNTCOPY_source_gref) : 0;
}

static void make_grant(u32 cmd, void *p)
{
    unsigned int i;

    switch (cmd) {
    case GNTTABOP_map_grant_ref: {
        MAKE(struct gnttab_map_grant_ref);

        op->host_addr = slots << PAGE_SHIFT;
        op->flags = FIELD((u32)(GNTMAP_host_map | (one_in(3) ? GNTMAP_readonly : 0)));
        op->ref = FIELD(ref());
        op->dom = one_in(3) ? domid() : own;
        break;
    }
    case GNTTABOP_unmap_grant_ref: {
        MAKE(struct gnttab_unmap_grant_ref);

        i = random_below(RECENT);
        op->host_addr = FIELD((u64)(slots + handle_slots[i]) << PAGE_SHIFT);
        op->dev_bus_addr = FIELD((u64)0);
        op->handle = FIELD(handles[i]);
        break;
    }
    case GNTTABOP_copy: {
        MAKE(struct gnttab_copy);

        op->flags = FIELD((u16)0);
        make_copy_side(op, false);
        make_copy_side(op, true);
        op->len = FIELD((u16)random_below(600));
        break;
    }
    case GNTTABOP_swap_grant_ref: {
        MAKE(struct gnttab_swap_grant_ref);

        op->ref_a = FIELD(ref());
        op->ref_b = FIELD(ref());
        break;
    }
    case GNTTABOP_setup_table: {
        MAKE(struct gnttab_setup_table);

        op->dom = domid();
        op->nr_frames = FIELD(random_below(66));
        set_xen_guest_handle(op->frame_list, frames());
        break;
    }
    case GNTTABOP_set_version:
        *(u32 *)p = FIELD(1 + random_below(2));
        break;
    default:
        *(domid_t *)p = domid();
    }
}

static void make_evtchn(u32 cmd, void *p)
{
    switch (cmd) {
    case EVTCHNOP_bind_interdomain: {
        MAKE(struct evtchn_bind_interdomain);

        op->remote_dom = domid();
        op->remote_port = FIELD(port());
        break;
    }
    case EVTCHNOP_bind_virq: {
        MAKE(struct evtchn_bind_virq);

        op->virq = FIELD(random_below(24));
        op->vcpu = vcpu();
        break;
    }
    case EVTCHNOP_bind_pirq: {
        MAKE(struct evtchn_bind_pirq);

        op->pirq = FIELD(random_below(60));
        break;
    }
    case EVTCHNOP_status: {
        MAKE(struct evtchn_status);

        op->dom = domid();
        op->port = FIELD(port());
        break;
    }
    case EVTCHNOP_alloc_unbound: {
        MAKE(struct evtchn_alloc_unbound);

        op->dom = domid();
        op->remote_dom = domid();
        break;
    }
    case EVTCHNOP_bind_ipi:
        *(u32 *)p = vcpu();
        break;
    case EVTCHNOP_bind_vcpu:
    case EVTCHNOP_set_priority: {
        MAKE(struct evtchn_bind_vcpu);

        op->port = FIELD(port());
        op->vcpu = cmd == EVTCHNOP_set_priority ? FIELD(random_below(17)) : vcpu();
        break;
    }
    case EVTCHNOP_init_control: {
        MAKE(struct evtchn_init_control);

        op->control_gfn = FIELD((u64)gfn());
        op->offset = FIELD(random_below(500) * 8);
        op->vcpu = vcpu();
        break;
    }
    case EVTCHNOP_expand_array:
        ((struct evtchn_expand_array *)p)->array_gfn = FIELD((u64)gfn());
        break;
    case EVTCHNOP_reset:
        *(domid_t *)p = domid();
        break;
    default:
        *(u32 *)p = FIELD(port());
    }
}

static void make_vcpu(u32 cmd, void *p)
{
    switch (cmd) {
    case VCPUOP_register_vcpu_info: {
        MAKE(struct vcpu_register_vcpu_info);

        op->mfn = FIELD((u64)gfn());
        op->offset = FIELD(random_below(500) * 8);
        break;
    }
    case VCPUOP_set_periodic_timer:
        *(u64 *)p = FIELD((u64)1000000 + random_below(100000000));
        break;
    case VCPUOP_set_singleshot_timer: {
        MAKE(struct vcpu_set_singleshot_timer);

        op->timeout_abs_ns = moment();
        op->flags = FIELD(random_below(2));
        break;
    }
    case VCPUOP_initialise:
        memset(p, 0, sizeof(struct vcpu_hvm_context));
        *(u32 *)p = random_below(5);
        break;
    default:
        *(ulong *)p = arena_address() & ~7ul;
    }
}

static void make_sched(u32 cmd, void *p)
{
    switch (cmd) {
    case SCHEDOP_poll: {
        MAKE(struct sched_poll);
        u32 *list = fresh();

        for (unsigned int i = 0; list && i < 4; i++)
            list[i] = FIELD(port());
        set_xen_guest_handle(op->ports, list);
        op->nr_ports = FIELD(random_below(5));
        op->timeout = moment();
        break;
    }
    case SCHEDOP_watchdog: {
        MAKE(struct sched_watchdog);

        op->id = FIELD(random_below(4));
        op->timeout = FIELD(random_below(3) * 0x10000);
        break;
    }
    case SCHEDOP_remote_shutdown:
        *(domid_t *)p = domid();
        break;
    default:
        *(u32 *)p = FIELD(random_below(7));
    }
}

static void make_hvm(u32 cmd, void *p)
{
    switch (cmd) {
    case HVMOP_set_param:
    case HVMOP_get_param: {
        MAKE(struct xen_hvm_param);

        op->domid = domid();
        op->index = FIELD(random_below(42));
        op->value = one_in(3) ? (u64)HVM_PARAM_CALLBACK_TYPE_VECTOR << 56 | random_below(256) : value();
        break;
    }
    case HVMOP_set_evtchn_upcall_vector: {
        MAKE(struct xen_hvm_evtchn_upcall_vector);

        op->vcpu = vcpu();
        op->vector = FIELD((u8)random_below(256));
        break;
    }
    case HVMOP_get_mem_type: {
        MAKE(struct xen_hvm_get_mem_type);

        op->domid = domid();
        op->pfn = FIELD((u64)gfn());
        break;
    }
    default:
        *(domid_t *)p = domid();
    }
}

static void make_argo(struct call *c, void *p)
{
    c->a[2] = c->a[3] = c->a[4] = 0;
    switch (c->a[0]) {
    case XEN_ARGO_OP_register_ring: {
        MAKE(xen_argo_register_ring_t);
        u64 *list = fresh();

        op->aport = FIELD(random_below(4));
        op->partner_id = one_in(2) ? domid() : XEN_ARGO_DOMID_ANY;
        op->pad = 0;
        op->len = FIELD((one_in(8) ? random_below(3000) : 4 + random_below(16)) * XEN_ARGO_MSG_SLOT_SIZE);
        for (unsigned int i = 0; list && i < 12; i++)
            list[i] = FIELD((u64)gfn());
        c->a[2] = (ulong)list;
        c->a[3] = FIELD((ulong)(op->len + sizeof(xen_argo_ring_t) + PAGE_SIZE - 1) >> PAGE_SHIFT);
        c->a[4] = one_in(4);
        break;
    }
    case XEN_ARGO_OP_unregister_ring: {
        MAKE(xen_argo_unregister_ring_t);

        op->aport = FIELD(random_below(4));
        op->partner_id = one_in(2) ? domid() : XEN_ARGO_DOMID_ANY;
        op->pad = FIELD((u16)0);
        break;
    }
    case XEN_ARGO_OP_sendv: {
        MAKE(xen_argo_send_addr_t);
        xen_argo_iov_t *iov = fresh();

        op->src = (xen_argo_addr_t){.aport = random_below(4), .domain_id = own};
        op->dst = (xen_argo_addr_t){.aport = FIELD(random_below(4)), .domain_id = one_in(2) ? domid() : own};
        for (unsigned int i = 0; iov && i < 4; i++) {
            set_xen_guest_handle(iov[i].iov_hnd, (u8 *)arena_address());
            iov[i].iov_len = FIELD(random_below(100));
            iov[i].pad = 0;
        }
        c->a[2] = (ulong)iov;
        c->a[3] = FIELD((ulong)random_below(5));
        c->a[4] = (ulong)(u32)random_u64();
        break;
    }
    case XEN_ARGO_OP_notify: {
        xen_argo_ring_data_ent_t *entry = (void *)((u8 *)p + 8);

        *(u32 *)p = FIELD(random_below(4));
        for (unsigned int i = 0; i < 4; i++) {
            entry[i].ring = (xen_argo_addr_t){.aport = FIELD(random_below(4)), .domain_id = domid()};
            entry[i].space_required = FIELD(random_below(4000));
        }
        break;
    }
    }
}

static const struct {
    u8 nr, weight, commands;
} families[] = {
    {__HYPERVISOR_memory_op, 24, 34},       {__HYPERVISOR_grant_table_op, 24, 14},
    {__HYPERVISOR_event_channel_op, 32, 16}, {__HYPERVISOR_vcpu_op, 14, 18},
    {__HYPERVISOR_sched_op, 8, 9},          {__HYPERVISOR_hvm_op, 12, 28},
    {__HYPERVISOR_xen_version, 4, 17},      {__HYPERVISOR_multicall, 6, 1},
    {__HYPERVISOR_set_timer_op, 2, 1},      {__HYPERVISOR_vm_assist, 2, 6},
    {__HYPERVISOR_physdev_op, 2, 34},       {__HYPERVISOR_console_io, 1, 4},
    {__HYPERVISOR_sysctl, 1, 30},           {__HYPERVISOR_domctl, 1, 90},
    {__HYPERVISOR_platform_op, 1, 70},      {__HYPERVISOR_dm_op, 1, 4},
    {__HYPERVISOR_mmuext_op, 1, 4},         {__HYPERVISOR_argo_op, 8, 6},
    {__HYPERVISOR_xenpmu_op, 1, 8},         {__HYPERVISOR_xsm_op, 1, 4},
    {__HYPERVISOR_arch_1, 1, 4},            {__HYPERVISOR_hypfs_op, 1, 6},
};
#define WEIGHTS 148u

static void random_call(struct call *c, bool nested);

static void make_multicall(struct call *c)
{
    multicall_entry_t *list = buffer(1024);
    unsigned int n = random_below(6);

    for (unsigned int i = 0; list && i < n; i++) {
        struct call inner;

        random_call(&inner, true);
        list[i].op = inner.nr;
        for (unsigned int k = 0; k < 5; k++)
            list[i].args[k] = inner.a[k];
    }
    c->a[0] = (ulong)list;
    c->a[1] = FIELD((ulong)n);
}

static unsigned int pick_family(void)
{
    u32 at = random_below(WEIGHTS);
    unsigned int i = 0;

    while (i < ARRAY_SIZE(families) - 1 && at >= families[i].weight)
        at -= families[i++].weight;
    return i;
}

/* All five registers, the number and the sub-operation are anything; then most are made to fit. */
static void random_call(struct call *c, bool nested)
{
    unsigned int f = pick_family();
    u32 cmd = random_below(families[f].commands);
    void *p;

    for (unsigned int i = 0; i < 5; i++)
        c->a[i] = (ulong)(one_in(3) ? pointer() : value());
    if (one_in(24)) {
        c->nr = one_in(4) ? (ulong)value() : random_below(64);
        return;
    }
    c->nr = families[f].nr;
    if (c->nr == __HYPERVISOR_multicall) {
        if (!nested)
            make_multicall(c);
        return;
    }
    c->a[0] = one_in(40) ? (ulong)value() : cmd;
    if (one_in(8))
        return;
    p = buffer(1024);
    if (!p)
        return;
    c->a[1] = (ulong)p;
    switch (c->nr) {
    case __HYPERVISOR_memory_op:
        make_memory(cmd, p);
        break;
    case __HYPERVISOR_grant_table_op:
        c->a[2] = one_in(300) ? (ulong)value() : one_in(4) ? random_below(8) : 1;
        for (u32 i = 0; i < 8 && i < c->a[2]; i++)
            make_grant(cmd, (u8 *)p + i * grant_size(cmd));
        break;
    case __HYPERVISOR_event_channel_op:
        make_evtchn(cmd, p);
        break;
    case __HYPERVISOR_vcpu_op:
        c->a[1] = vcpu();
        c->a[2] = one_in(8) ? 0 : (ulong)p;
        make_vcpu(cmd, p);
        break;
    case __HYPERVISOR_sched_op:
        make_sched(cmd, p);
        break;
    case __HYPERVISOR_hvm_op:
        make_hvm(cmd, p);
        break;
    case __HYPERVISOR_argo_op:
        make_argo(c, p);
        break;
    case __HYPERVISOR_vm_assist:
        c->a[1] = FIELD((ulong)random_below(8));
        break;
    case __HYPERVISOR_sysctl:
    case __HYPERVISOR_domctl:
    case __HYPERVISOR_arch_1:
    case __HYPERVISOR_platform_op: {
        struct {
            u32 cmd, version;
            domid_t domain;
        } *op = p;

        op->cmd = cmd;
        op->version = FIELD(INTERFACE_VERSION + random_below(3));
        if (c->nr == __HYPERVISOR_platform_op)
            op->version = XENPF_INTERFACE_VERSION;
        op->domain = domid();
        c->a[0] = (ulong)p;
        break;
    }
    case __HYPERVISOR_dm_op:
        c->a[0] = domid();
        c->a[1] = FIELD((ulong)random_below(4));
        c->a[2] = (ulong)p;
        break;
    case __HYPERVISOR_mmuext_op:
        c->a[0] = (ulong)p;
        c->a[1] = FIELD((ulong)random_below(3));
        c->a[3] = domid();
        break;
    default:
        break;
    }
}

/* ---- what must not be done ------------------------------------------------------------------ */

/* The structure behind a pointer of the arena, if there is memory for all of it. */
static void *at(ulong p, size_t size)
{
    if (p < arena || p > arena + ARENA_PAGES * PAGE_SIZE - size)
        return NULL;
    return is_ram(p) && is_ram(p + size - 1) ? (void *)p : NULL;
}

static void guard_memory(struct call *c)
{
    void *p;

    switch (c->a[0] & 63) {
    case XENMEM_increase_reservation:
    case XENMEM_decrease_reservation:
    case XENMEM_populate_physmap: {
        struct xen_memory_reservation *op = at(c->a[1], sizeof(*op));

        if (op && op->extent_order < 10)
            op->extent_order &= 3;
        if (op)
            op->nr_extents &= 0xfff;
        break;
    }
    case XENMEM_add_to_physmap:
        p = at(c->a[1], sizeof(struct xen_add_to_physmap));
        if (p)
            ((struct xen_add_to_physmap *)p)->size &= 63;
        break;
    case XENMEM_add_to_physmap_batch:
        p = at(c->a[1], sizeof(struct xen_add_to_physmap_batch));
        if (p)
            ((struct xen_add_to_physmap_batch *)p)->size &= 63;
        break;
    }
}

/* A grant that is mapped where another mapping is ends the domain: each gets a place of its own. */
static void guard_map(struct call *c)
{
    struct gnttab_map_grant_ref *op;
    u32 n = (u32)c->a[2];

    if (n > 8)
        n = 8;
    op = at(c->a[1], n * sizeof(*op));
    if (!op)
        c->a[1] = holes << PAGE_SHIFT;
    c->a[2] = n;
    for (u32 i = 0; op && i < n; i++) {
        op[i].host_addr = (u64)(slots + next_slot % SLOTS) << PAGE_SHIFT;
        next_slot++;
    }
}

static void guard_sched(struct call *c, bool nested)
{
    /* What its structure holds may be changed by the calls before it. */
    if (nested && (u32)c->a[0] == SCHEDOP_watchdog)
        c->a[0] = SCHEDOP_yield;
    if (!at(c->a[1], 16))
        c->a[1] = holes << PAGE_SHIFT;
    switch ((u32)c->a[0]) {
    case SCHEDOP_block:
        if (!one_in(16))
            c->a[0] = SCHEDOP_yield;
        break;
    case SCHEDOP_shutdown:
        c->a[0] = SCHEDOP_yield;
        break;
    case SCHEDOP_poll: {
        struct sched_poll *op = at(c->a[1], sizeof(*op));

        if (op && (!op->timeout || op->timeout > now + 10000000) && !one_in(16))
            op->timeout = now + 1000000;
        break;
    }
    case SCHEDOP_shutdown_code: {
        u32 *reason = at(c->a[1], sizeof(*reason));

        if (reason)
            *reason = SHUTDOWN_poweroff;
        break;
    }
    case SCHEDOP_watchdog: {
        struct sched_watchdog *op = at(c->a[1], sizeof(*op));

        if (op && (op->timeout || op->id == 0))
            op->timeout = 0x10000;
        break;
    }
    }
}

static void guard(struct call *c, bool nested)
{
    switch ((u32)c->nr) {
    case __HYPERVISOR_memory_op:
        guard_memory(c);
        break;
    case __HYPERVISOR_grant_table_op:
        if ((u32)c->a[0] == GNTTABOP_map_grant_ref)
            guard_map(c);
        if (c->a[1] < arena)
            c->a[2] = (u32)c->a[2] & 7;
        break;
    case __HYPERVISOR_sched_op:
        guard_sched(c, nested);
        break;
    case __HYPERVISOR_hvm_op:
        if (c->a[0] == HVMOP_set_param) {
            struct xen_hvm_param *op = at(c->a[1], sizeof(*op));

            if (op && (op->index == HVM_PARAM_VM86_TSS_SIZED || op->index == HVM_PARAM_VM86_TSS))
                op->index = HVM_PARAM_X87_FIP_WIDTH;
        }
        break;
    case __HYPERVISOR_vcpu_op:
        if ((u32)c->a[0] == VCPUOP_initialise && (u32)c->a[1] > 1)
            c->a[1] = 0;
        /* Whoever stops the rescuer must see to it that it goes on: not in a multicall. */
        if ((u32)c->a[0] == VCPUOP_down && nested)
            c->a[0] = VCPUOP_is_up;
        else if ((u32)c->a[0] == VCPUOP_down && !one_in(16))
            c->a[1] = 1;
        break;
    case __HYPERVISOR_multicall: {
        multicall_entry_t *e = at(c->a[0], BATCH * sizeof(*e));

        if (!e || c->a[1] > BATCH) {
            c->a[1] = c->a[1] > BATCH ? 1 : c->a[1];
            c->a[0] = e ? c->a[0] : holes << PAGE_SHIFT;
        }
        for (u32 i = 0; e && i < (u32)c->a[1]; i++) {
            struct call inner = {.nr = (ulong)e[i].op};

            if ((u32)inner.nr == __HYPERVISOR_multicall)
                continue;
            for (unsigned int k = 0; k < 5; k++)
                inner.a[k] = (ulong)e[i].args[k];
            guard(&inner, true);
            e[i].op = inner.nr;
            for (unsigned int k = 0; k < 5; k++)
                e[i].args[k] = inner.a[k];
        }
        break;
    }
    }
}

/* ---- what came of it ------------------------------------------------------------------------ */

static void remember(const struct call *c, long result)
{
    u32 cmd = (u32)c->a[0];

    if (c->nr == __HYPERVISOR_event_channel_op && !result) {
        u32 i = random_below(RECENT);

        if (cmd == EVTCHNOP_alloc_unbound)
            ports[i] = ((struct evtchn_alloc_unbound *)c->a[1])->port;
        else if (cmd == EVTCHNOP_bind_interdomain)
            ports[i] = ((struct evtchn_bind_interdomain *)c->a[1])->local_port;
        else if (cmd == EVTCHNOP_bind_ipi)
            ports[i] = ((struct evtchn_bind_ipi *)c->a[1])->port;
        else if (cmd == EVTCHNOP_bind_virq)
            ports[i] = ((struct evtchn_bind_virq *)c->a[1])->port;
    }
    if (c->nr == __HYPERVISOR_grant_table_op && cmd == GNTTABOP_map_grant_ref && !result && c->a[2]) {
        struct gnttab_map_grant_ref *op = (void *)c->a[1];

        if (op->status == GNTST_okay && op->host_addr >> PAGE_SHIFT >= slots) {
            u32 i = random_below(RECENT);

            handles[i] = op->handle;
            handle_slots[i] = (u32)((op->host_addr >> PAGE_SHIFT) - slots);
        }
    }
    if (!wild && (c->nr == __HYPERVISOR_vcpu_op || c->nr == __HYPERVISOR_multicall))
        vcpu_op(VCPUOP_up, 1, NULL);
}

/* ---- interrupts ----------------------------------------------------------------------------- */

#define XAPIC_EOI 0xfee000b0ul

static void take(struct regs *regs)
{
    *(volatile u32 *)XAPIC_EOI = 0;
    regs->flags &= ~(ulong)EFLAGS_IF;
}

static void take_nmi(struct regs *regs)
{
    (void)regs;
}

/* Interrupts may have any vector from 16 on, also those with which the CPU pushes an error code. */
static void take_all(void)
{
    static const u8 with_error[] = {17, 21, 29, 30};
    struct {
        u16 limit;
        ulong base;
    } __attribute__((packed)) idt;
    size_t size = 2 * sizeof(ulong);

    set_handler(2, take_nmi);
    for (unsigned int i = 16; i < 256; i++)
        if (i != VECTOR_USER_RETURN)
            set_handler(i, take);
    asm volatile("sidt %0" : "=m"(idt));
    for (unsigned int i = 0; i < ARRAY_SIZE(with_error); i++)
        memcpy((void *)(idt.base + with_error[i] * size), (void *)(idt.base + 0xf0 * size), size);
}

static void let_interrupts_in(void)
{
    hvm_param_set(HVM_PARAM_CALLBACK_IRQ, (u64)HVM_PARAM_CALLBACK_TYPE_VECTOR << 56 | VECTOR_UPCALL);
    asm volatile("sti; nop; nop; cli" ::: "memory");
}

/* ---- vCPU 1 --------------------------------------------------------------------------------- */

static void rescuer(void)
{
    u32 seen = 0;

    for (;;) {
        struct xen_hvm_get_time time = {0};
        struct sched_poll poll = {.nr_ports = 0};

        hvm_op(HVMOP_get_time, &time);
        poll.timeout = time.now + MILLISECONDS(4);
        sched_op(SCHEDOP_poll, &poll);
        if (progress == seen) {
            vcpu_op(VCPUOP_up, 0, NULL);
            vcpu_op(VCPUOP_send_nmi, 0, NULL);
        }
        seen = progress;
    }
}

static void find_arena(void)
{
    u32 entries;
    const struct hvm_memmap_table_entry *map = memmap(&entries);

    own_end = (ulong)alloc_pages(1) + PAGE_SIZE;
    for (u32 i = 0; i < entries; i++)
        if (map[i].type == XEN_HVM_MEMMAP_TYPE_RAM && map[i].addr <= own_end &&
            map[i].addr + map[i].size > own_end)
            arena = (ulong)(map[i].addr + map[i].size) - ARENA_PAGES * PAGE_SIZE;
    if (arena < own_end)
        error("no room for an arena");
    arena_gfn = arena >> PAGE_SHIFT;
    holes = alloc_hole(HOLES);
    slots = alloc_hole(SLOTS);
}

void test_main(void)
{
    ulong seed = cmdline_number("seed", 1), n = cmdline_number("n", 1000);
    u64 sum = 0;

    wild = cmdline_number("wild", 0);
    random_seed(seed);
    /* Not by the ring: calls may close its port. */
    console_ring = NULL;
    own = own_domid();
    find_arena();
    table = grant_table_map(1);
    table_gfn = (ulong)table >> PAGE_SHIFT;
    take_all();
    if (vcpu_start(1, rescuer))
        error("no vCPU for the rescuer");
    for (ulong i = 0; i < n; i++) {
        struct call c;
        long result;

        if (i % HEAL_EVERY == 0)
            heal();
        random_call(&c, false);
        if (!wild)
            guard(&c, false);
        result = hypercall_inline(c.nr, c.a[0], c.a[1], c.a[2], c.a[3], c.a[4]);
        remember(&c, result);
        sum = (sum << 1 | sum >> 63) ^ (u64)result;
        progress++;
        if (i % 64 == 63)
            let_interrupts_in();
        if (i % 1000 == 999)
            printk("calls: %lu\n", i + 1);
    }
    printk("calls: %lu checksum: %016llx\n", n, (unsigned long long)sum);
    success();
}
