/*
 * races: two vCPUs that do to the same thing what does not go together.
 *
 * Purpose: no event is lost between a send and an unmask, nor between a send and a guest that takes
 * events off a FIFO queue; a port can be closed under a sender; once a page is unmapped, given back
 * or replaced, no write through the old mapping arrives any more.
 * Blind spots: races that need more vCPUs or another domain; a loss that is rarer than one in some
 * hundred.
 *
 * Variants: hvm64 hvm32pae hvm32
 * Options: --vcpus 2
 */
#include "guest.h"

const char test_title[] = "Races of two vCPUs";

#define EVENTS 600u
#define ROUNDS 12u
/* Where the machine is busy a test ends sooner, but not with less than this share of it done. */
#define BUDGET MILLISECONDS(800)
#define LEAST(n) ((n) / 6)
#define PATIENCE MILLISECONDS(6000)
#define FIFO_PORTS 6u
#define PENDING (1u << EVTCHN_FIFO_PENDING)
#define MASKED (1u << EVTCHN_FIFO_MASKED)
#define LINKED (1u << EVTCHN_FIFO_LINKED)

static u64 test_end;

static void start_test(void)
{
    test_end = system_time() + BUDGET;
}

static bool go_on(u32 done_so_far, u32 all)
{
    return done_so_far < all && (done_so_far < LEAST(all) || system_time() < test_end);
}

/* What vCPU 1 does; it begins anew whenever this changes. */
static void (*volatile job)(void);
static volatile u32 done;

static void second(void)
{
    for (;;) {
        void (*now)(void) = job;

        if (!now) {
            cpu_relax();
            continue;
        }
        now();
        job = NULL;
        __atomic_add_fetch(&done, 1, __ATOMIC_SEQ_CST);
    }
}

static u32 begin(void (*fn)(void))
{
    u32 before = done;

    job = fn;
    return before;
}

static bool ended(u32 before)
{
    return done != before;
}

static void wait_end(const char *what, u32 before)
{
    for (u64 end = system_time() + PATIENCE; !ended(before);)
        if (system_time() > end)
            error("%s: vCPU 1 does not come to an end", what);
}

/* ---- send against unmask ------------------------------------------------------------------- */

static evtchn_port_t target;
static volatile u32 sent, lost;

/* Sends the next event when the last one has been taken. */
static void send_and_wait(void)
{
    for (sent = 0; go_on(sent, EVENTS) && !lost; sent++) {
        u64 end = 0;

        evtchn_send(target);
        for (unsigned int spins = 0; upcall_events[target] <= sent; spins++) {
            if (spins % 1024 != 1023)
                continue;
            if (!end)
                end = system_time() + PATIENCE;
            else if (system_time() > end) {
                lost++;
                break;
            }
        }
    }
}

static void test_send_unmask(void)
{
    u32 before;

    call("EVTCHNOP_unmask");
    if (evtchn_bind_ipi(0, &target))
        error("no IPI port");
    upcall_enable();
    upcall_events[target] = 0;
    lost = 0;
    evtchn_mask(target);
    start_test();
    before = begin(send_and_wait);
    while (!ended(before)) {
        /* Interrupts go off so that the mask and the event can cross anywhere. */
        irq_disable();
        evtchn_mask(target);
        irq_enable();
        evtchn_unmask(target);
    }
    irq_disable();
    if (lost)
        failure("send against unmask: the event behind %u others is lost", sent - 1);
    check_signed("events", (long)upcall_events[target], sent);
    upcall_disable();
    evtchn_mask(target);
    evtchn_close(target);
}

/* ---- close against send -------------------------------------------------------------------- */

static volatile bool stop;
static volatile u32 sends, odd;

static void send_on(void)
{
    while (!stop) {
        int rc = evtchn_send(target);

        sends++;
        if (rc && rc != -XEN_EINVAL)
            odd++;
    }
}

static void test_close_send(void)
{
    evtchn_port_t a = 0, b = 0, first = 0;
    u32 before;

    call("EVTCHNOP_close");
    evtchn_alloc_unbound(DOMID_SELF, DOMID_SELF, &first);
    target = first;
    stop = false;
    before = begin(send_on);
    evtchn_close(first);
    start_test();
    for (unsigned int i = 0; go_on(i, 4 * ROUNDS); i++) {
        evtchn_alloc_unbound(DOMID_SELF, DOMID_SELF, &a);
        if (evtchn_bind_interdomain(DOMID_SELF, a, &b))
            failure("bind_interdomain");
        if (evtchn_close(i % 2 ? a : b) || evtchn_close(i % 2 ? b : a))
            failure("close");
        if (a != first)
            failure("port %u is handed out, but %u is free", a, first);
    }
    while (sends < 10)
        cpu_relax();
    stop = true;
    wait_end("close against send", before);
    check_signed("sends with another answer than 0 and -EINVAL", (long)odd, 0);
    evtchn_alloc_unbound(DOMID_SELF, DOMID_SELF, &a);
    check_true("a port that was closed is not pending", !evtchn_pending(a));
    evtchn_close(a);
}

/* ---- unmap against use --------------------------------------------------------------------- */

static volatile u32 *place;
static volatile u32 value;

/* Reads come between, so that a page that is gone costs an exit now and then and no more. */
static void write_on(void)
{
    while (!stop) {
        *place = ++value;
        if (*place == ~0u)
            sched_op(SCHEDOP_yield, NULL);
    }
}

static void until_written(volatile u32 *word, u32 from)
{
    for (u64 end = system_time() + PATIENCE; *word == from;)
        if (system_time() > end)
            error("vCPU 1 does not write");
}

static void check_still(const char *what, volatile u32 *word)
{
    u32 seen = *word, written = value;

    for (u64 end = system_time() + MILLISECONDS(2000); value - written < 20 && system_time() < end;)
        cpu_relax();
    if (*word != seen)
        failure("%s: a write still arrives", what);
}

static void test_unmap_use(void)
{
    static struct grant_entry_v1 *table;
    ulong gfn = alloc_hole(2);
    domid_t own = own_domid();
    u32 before;

    call("GNTTABOP_unmap_grant_ref");
    table = grant_table_map(1);
    place = (volatile u32 *)(gfn << PAGE_SHIFT);
    start_test();
    for (unsigned int i = 0; go_on(i, ROUNDS); i++) {
        /* A page of one's own leaves its place when it is mapped. */
        ulong granted = (ulong)alloc_pages(1) >> PAGE_SHIFT;
        struct gnttab_map_grant_ref map[2] = {
            {.host_addr = gfn << PAGE_SHIFT, .flags = GNTMAP_host_map, .ref = 20, .dom = own},
            {.host_addr = (gfn + 1) << PAGE_SHIFT, .flags = GNTMAP_host_map, .ref = 20, .dom = own},
        };
        struct gnttab_unmap_grant_ref unmap[2] = {
            {.host_addr = gfn << PAGE_SHIFT},
            {.host_addr = (gfn + 1) << PAGE_SHIFT},
        };
        volatile u32 *other = (volatile u32 *)((gfn + 1) << PAGE_SHIFT);

        grant_access(20, own, granted, false);
        if (grant_table_op(GNTTABOP_map_grant_ref, map, 2) || map[0].status || map[1].status)
            error("cannot map a grant: %d %d", map[0].status, map[1].status);
        stop = false;
        before = begin(write_on);
        until_written(other, *other);
        unmap[0].handle = map[0].handle;
        unmap[1].handle = map[1].handle;
        check_rc("unmap", grant_table_op(GNTTABOP_unmap_grant_ref, unmap, 1), 0);
        check_still("unmap against use", other);
        stop = true;
        wait_end("unmap against use", before);
        grant_table_op(GNTTABOP_unmap_grant_ref, unmap + 1, 1);
        if (unmap[0].status || unmap[1].status || table[20].flags != GTF_permit_access)
            failure("unmap: %d %d flags %x", unmap[0].status, unmap[1].status, table[20].flags);
    }
}

static void test_decrease_use(void)
{
    u32 *page = alloc_pages(1);
    xen_pfn_t gfn = (ulong)page >> PAGE_SHIFT, elsewhere = alloc_hole(1);
    struct xen_memory_reservation r = {.nr_extents = 1, .domid = DOMID_SELF};
    u32 before;

    call("XENMEM_decrease_reservation");
    place = page;
    start_test();
    for (unsigned int i = 0; go_on(i, ROUNDS); i++) {
        volatile u32 *fresh = (volatile u32 *)(elsewhere << PAGE_SHIFT);

        stop = false;
        before = begin(write_on);
        until_written(page, *page);
        set_xen_guest_handle(r.extent_start, &gfn);
        check_rc("decrease", memory_op(XENMEM_decrease_reservation, &r), 1);
        /* Most likely this is the same page of memory. */
        set_xen_guest_handle(r.extent_start, &elsewhere);
        check_rc("populate", memory_op(XENMEM_populate_physmap, &r), 1);
        check_still("decrease against use", fresh);
        check_hex("a fresh page is empty", *fresh, 0);
        stop = true;
        wait_end("decrease against use", before);
        check_rc("decrease", memory_op(XENMEM_decrease_reservation, &r), 1);
        set_xen_guest_handle(r.extent_start, &gfn);
        check_rc("populate", memory_op(XENMEM_populate_physmap, &r), 1);
    }
}

/* ---- FIFO: send against a guest that unlinks ------------------------------------------------ */

static volatile u32 *words;
static volatile struct evtchn_fifo_control_block *control;
static evtchn_port_t fifo_ports[FIFO_PORTS];
static volatile u32 taken[FIFO_PORTS];

static void fifo_send(void)
{
    u32 count[FIFO_PORTS] = {0};
    u64 end = system_time() + PATIENCE;

    for (sent = 0; go_on(sent, EVENTS) && !lost;) {
        bool any = false;

        for (unsigned int i = 0; i < FIFO_PORTS; i++) {
            if (taken[i] != count[i])
                continue;
            count[i]++;
            evtchn_send(fifo_ports[i]);
            sent++;
            any = true;
        }
        if (any)
            end = system_time() + PATIENCE;
        else if (system_time() > end)
            lost++;
    }
    for (unsigned int i = 0; i < FIFO_PORTS; i++)
        while (taken[i] != count[i] && !lost)
            if (system_time() > end)
                lost++;
}

/* As the design of the FIFO ABI has it: unlink, then look at PENDING. */
static void fifo_take(void)
{
    for (u32 ready = __atomic_exchange_n(&control->ready, 0, __ATOMIC_SEQ_CST); ready; ready &= ready - 1) {
        unsigned int queue = (unsigned int)__builtin_ctz(ready);
        evtchn_port_t port = control->head[queue];

        while (port) {
            u32 old = words[port], new;

            do
                new = old & ~(LINKED | EVTCHN_FIFO_LINK_MASK);
            while (!__atomic_compare_exchange_n(&words[port], &old, new, false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
            if (__atomic_fetch_and(&words[port], ~PENDING, __ATOMIC_SEQ_CST) & PENDING)
                for (unsigned int i = 0; i < FIFO_PORTS; i++)
                    if (fifo_ports[i] == port)
                        taken[i]++;
            port = old & EVTCHN_FIFO_LINK_MASK;
        }
    }
}

static void test_fifo(void)
{
    struct evtchn_init_control init = {.vcpu = 0};
    struct evtchn_expand_array expand;
    u32 before;

    call("EVTCHNOP_send");
    control = alloc_pages(1);
    words = alloc_pages(1);
    for (unsigned int i = 0; i < PAGE_SIZE / sizeof(*words); i++)
        words[i] = MASKED;
    init.control_gfn = (ulong)control >> PAGE_SHIFT;
    expand.array_gfn = (ulong)words >> PAGE_SHIFT;
    if (event_channel_op(EVTCHNOP_init_control, &init) || event_channel_op(EVTCHNOP_expand_array, &expand))
        error("no FIFO event channels");
    for (unsigned int i = 0; i < FIFO_PORTS; i++) {
        if (evtchn_bind_ipi(0, &fifo_ports[i]))
            error("no IPI port");
        evtchn_unmask(fifo_ports[i]);
    }
    lost = 0;
    start_test();
    before = begin(fifo_send);
    while (!ended(before))
        fifo_take();
    if (lost)
        failure("FIFO: an event among the first %u is lost", sent);
}

void test_main(void)
{
    if (vcpu_count() < 2)
        skip("needs two vCPUs");
    shared_info_map();
    evtchn_mask_all();
    if (vcpu_start(1, second))
        error("no second vCPU");
    test_send_unmask();
    test_close_send();
    test_unmap_use();
    test_decrease_use();
    test_fifo();
    success();
}
