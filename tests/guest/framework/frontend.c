/*
 * What lying frontends of all kinds of devices have in common. See frontend.h.
 */
#include "frontend.h"

#include "random.h"

/* Small numbers, of which random words have many, lead to no page that somebody else lives on. */
#define FIRST_REF 64u
#define GRANT_FRAMES 4u
#define REFS (GRANT_FRAMES * PAGE_SIZE / sizeof(struct grant_entry_v1))
/* What the host says about one device at most. */
#define MESSAGES 10u
#define STRANGER 5
#define PATIENCE MILLISECONDS(20000)
/* Near what the store lets a guest's node hold. */
#define LONG_TEXT 2000u

static const struct frontend *front;
static u32 devid, said;
static char home[64], backend[64];
static struct grant_entry_v1 *table;
static grant_ref_t next_ref = FIRST_REF;
/* Grants that devices which look on have in use. */
static grant_ref_t first_own = FIRST_REF;
static char text_page[LONG_TEXT + 1];

void frontend_init(void)
{
    if (!xs_init())
        skip("no xenstore");
    shared_info_map();
    table = grant_table_map(GRANT_FRAMES);
    /* Those of the console's and the store's rings, which their backends have already. */
    grant_revoke(0);
    grant_revoke(1);
    memset(text_page, 'x', LONG_TEXT);
}

const char *long_text(void)
{
    return text_page;
}

/* ---- nodes and states ------------------------------------------------------------------------ */

static bool find(u32 number)
{
    char path[96];

    devid = number;
    said = 0;
    xs_format(home, sizeof(home), "device/%s/%u", front->kind, devid);
    xs_format(path, sizeof(path), "%s/backend", home);
    return xs_read(path, backend, sizeof(backend)) > 0;
}

void frontend_begin(const struct frontend *what)
{
    front = what;
    if (!find(front->devid))
        skip("no device %s", home);
}

void frontend_look_on(void)
{
    first_own = next_ref;
}

void frontend_next(void)
{
    if (!find(devid + front->step))
        error("more lies than devices: no %s", home);
}

void frontend_state(u32 state)
{
    xs_set(home, "state", state);
}

void frontend_set(const char *node, u32 value)
{
    xs_set(home, node, value);
}

static const char *in_home(const char *node)
{
    static char path[96];

    xs_format(path, sizeof(path), "%s/%s", home, node);
    return path;
}

void frontend_text(const char *node, const char *text)
{
    if (xs_write(in_home(node), text) < 0)
        error("cannot write %s/%s", home, node);
}

void frontend_remove(const char *node)
{
    xs_remove(in_home(node));
}

u32 frontend_offer(const char *node)
{
    return xs_number(backend, node);
}

static void begin_anew(const char *what)
{
    frontend_state(XenbusStateClosed);
    if (!xs_wait(backend, "state", XenbusStateClosed))
        failure("%s: the backend does not close", what);
    for (grant_ref_t ref = first_own; ref < next_ref; ref++)
        if (table[ref].flags & (GTF_reading | GTF_writing))
            failure("%s: grant %u is still in use", what, ref);
    frontend_state(XenbusStateInitialising);
    if (!xs_wait(backend, "state", XenbusStateInitWait))
        failure("%s: no way back", what);
}

void frontend_leave(void)
{
    begin_anew("leaving");
}

static void connect(const char *what)
{
    front->nodes();
    frontend_state(XenbusStateInitialised);
    if (!xs_wait(backend, "state", XenbusStateConnected))
        failure("%s: an honest driver is not served: the backend's state is %u", what,
                xs_number(backend, "state"));
}

void frontend_connect(void)
{
    connect(front->kind);
}

bool frontend_served(void)
{
    return xs_number(backend, "state") == XenbusStateConnected;
}

/* ---- lies ------------------------------------------------------------------------------------ */

void frontend_caught(const char *what, const char *reason)
{
    if (!xs_wait(backend, "state", XenbusStateClosing))
        failure("%s: the backend's state is %u", what, xs_number(backend, "state"));
    else
        printk("caught: %s %u: %s [%s]\n", front->kind, devid, what, reason);
    begin_anew(what);
    if (++said == MESSAGES)
        frontend_next();
}

static void check(const char *what)
{
    connect(what);
    front->check();
    begin_anew(what);
}

void frontend_tell_nodes(const struct lie *lies, u32 count)
{
    for (const struct lie *lie = lies; lie < lies + count; lie++) {
        front->nodes();
        lie->tell();
        frontend_state(XenbusStateInitialised);
        frontend_caught(lie->what, lie->reason);
        check(lie->what);
    }
}

void frontend_tell(const struct lie *lies, u32 count)
{
    for (const struct lie *lie = lies; lie < lies + count; lie++) {
        connect(lie->what);
        lie->tell();
        if (lie->reason) {
            frontend_caught(lie->what, lie->reason);
        } else {
            if (!frontend_served())
                failure("%s: the backend's state is %u", lie->what, xs_number(backend, "state"));
            else
                printk("answered: %s %u: %s\n", front->kind, devid, lie->what);
            begin_anew(lie->what);
        }
        check(lie->what);
    }
}

static void expect(const char *what, u32 state)
{
    u32 now = xs_number(backend, "state");

    if (now != state)
        failure("%s: the backend's state is %u, not %u", what, now, state);
}

void frontend_tell_states(void)
{
    static const char *const garbage[] = {
        "", "0", "8", "9", "255", "4294967299", "99999999999999999999", "-1", "3.0", "Connected", "\x80\xff",
    };

    for (u32 i = 0; i < 2; i++) {
        for (u32 j = 0; j < ARRAY_SIZE(garbage); j++) {
            frontend_text("state", garbage[j]);
            expect(garbage[j], i ? XenbusStateConnected : XenbusStateInitWait);
        }
        frontend_text("state", long_text());
        frontend_remove("state");
        expect("no state", i ? XenbusStateConnected : XenbusStateInitWait);
        if (!i)
            connect("states that are none");
    }
    front->check();
    printk("answered: %s %u: states that are none\n", front->kind, devid);
    for (u32 i = 0; i < 3; i++) {
        /* A driver that begins anew in the middle of it, as after kexec. */
        frontend_state(XenbusStateInitialising);
        expect("Initialising while connected", XenbusStateInitWait);
        connect("Initialising while connected");
        front->check();
    }
    printk("answered: %s %u: Initialising while connected\n", front->kind, devid);
    begin_anew("Closed while connected");
    frontend_state(XenbusStateClosing);
    frontend_state(XenbusStateConnected);
    frontend_state(XenbusStateClosed);
    frontend_state(XenbusStateInitialised);
    frontend_state(XenbusStateReconfiguring);
    begin_anew("states in no order");
    /* Without the state Initialised. */
    front->nodes();
    frontend_state(XenbusStateConnected);
    expect("Connected without Initialised", XenbusStateConnected);
    front->check();
    begin_anew("Connected without Initialised");
    printk("answered: %s %u: states in no order\n", front->kind, devid);
}

void frontend_vanish(void)
{
    connect("no nodes at all");
    xs_remove(home);
    expect("no nodes at all", XenbusStateConnected);
    front->check();
    printk("answered: %s %u: no nodes at all\n", front->kind, devid);
}

/* Where all rings have their indexes. */
#define INDEXES 64u

static void scribble(u32 *page)
{
    /* All of it, or a few words of what was honest; and mostly with indexes that lead somewhere. */
    bool all = random_below(2);

    for (u32 at = random_below(16) ? INDEXES / 4 : 0; at < PAGE_SIZE / 4; at++)
        if (all || !random_below(64))
            WRITE_ONCE(page[at], (u32)(random_below(2) ? random_u64() : random_below(64)));
}

void frontend_scribble(void *const *pages, u32 count, void (*shake)(void))
{
    u32 rounds = (u32)cmdline_number("rounds", 30), ended = 0;

    random_seed(cmdline_number("seed", 1));
    for (u32 round = 0; round < rounds; round++) {
        connect("random words");
        for (u32 i = 0; i < 4 && frontend_served(); i++) {
            scribble(pages[random_below(count)]);
            shake();
        }
        ended += !frontend_served();
        begin_anew("random words");
    }
    printk("random: %s %u: %u rounds, cut off in %u\n", front->kind, devid, rounds, ended);
    connect("random words");
    begin_anew("random words");
}

/* ---- pages and ports -------------------------------------------------------------------------- */

static grant_ref_t grant(const void *page, domid_t domid, bool readonly)
{
    if (next_ref == REFS)
        error("out of grant references");
    grant_access(next_ref, domid, (ulong)page >> PAGE_SHIFT, readonly);
    return next_ref++;
}

grant_ref_t grant_page(const void *page)
{
    return grant(page, 0, false);
}

grant_ref_t grant_readonly(const void *page)
{
    return grant(page, 0, true);
}

grant_ref_t grant_elsewhere(const void *page)
{
    return grant(page, STRANGER, false);
}

void grant_revoke(grant_ref_t ref)
{
    WRITE_ONCE(table[ref].flags, 0);
}

void balloon_out(const void *page)
{
    struct xen_memory_reservation op = {.nr_extents = 1, .domid = DOMID_SELF};
    xen_pfn_t frame = (ulong)page >> PAGE_SHIFT;

    set_xen_guest_handle(op.extent_start, &frame);
    if (memory_op(XENMEM_decrease_reservation, &op) != 1)
        error("a page cannot be given back");
}

grant_ref_t grant_gone(void)
{
    void *page = alloc_pages(1);

    balloon_out(page);
    return grant_page(page);
}

evtchn_port_t new_port(void)
{
    evtchn_port_t port;

    if (evtchn_alloc_unbound(DOMID_SELF, 0, &port))
        error("no event channel");
    return port;
}

/* ---- rings ------------------------------------------------------------------------------------ */

#define RING_HEADER 64u

void ring_init(struct ring *ring, void *pages, u32 count, u32 entry, evtchn_port_t port)
{
    u32 room = (count * (u32)PAGE_SIZE - RING_HEADER) / entry;

    ring->shared = pages;
    ring->entry = entry;
    for (ring->size = 1; ring->size * 2 <= room;)
        ring->size *= 2;
    ring->port = port;
    ring->produced = ring->consumed = 0;
    memset(pages, 0, count * PAGE_SIZE);
    ring->shared[REQ_EVENT] = ring->shared[RSP_EVENT] = 1;
}

static void *entry_at(struct ring *ring, u32 index)
{
    return (u8 *)ring->shared + RING_HEADER + (index & (ring->size - 1)) * ring->entry;
}

void *ring_put(struct ring *ring)
{
    void *entry = entry_at(ring, ring->produced++);

    memset(entry, 0, ring->entry);
    return entry;
}

void ring_push(struct ring *ring)
{
    ring_lie(ring, ring->produced);
}

void ring_lie(struct ring *ring, u32 produced)
{
    barrier();
    WRITE_ONCE(ring->shared[REQ_PROD], produced);
    evtchn_send(ring->port);
}

void *ring_take(struct ring *ring)
{
    if (READ_ONCE(ring->shared[RSP_PROD]) == ring->consumed)
        return NULL;
    barrier();
    return entry_at(ring, ring->consumed++);
}

void *ring_answer(struct ring *ring)
{
    u64 end = system_time() + PATIENCE;

    WRITE_ONCE(ring->shared[RSP_EVENT], ring->consumed + 1);
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    while (READ_ONCE(ring->shared[RSP_PROD]) == ring->consumed) {
        u64 now = system_time();

        /* One that is cut off gets no answer. */
        if (now > end || !frontend_served())
            return NULL;
        evtchn_clear(ring->port);
        if (READ_ONCE(ring->shared[RSP_PROD]) == ring->consumed)
            evtchn_poll(ring->port, now + MILLISECONDS(50));
    }
    return ring_take(ring);
}
