/*
 * evtchn_fifo: event channels of the FIFO ABI, PIRQs, and the way back to two levels.
 *
 * Purpose: control blocks, the event array, priorities, the words and queues that each send leaves
 * behind, events by 4 vCPUs' queues, ports behind the first page of the array, upcalls, reset; each
 * errno as Xen 4.17 answers.
 * Blind spots: a peer in another domain; a guest that links and unlinks while Xen does (races).
 *
 * Variants: hvm64 hvm32pae hvm32
 * Options: --vcpus 4
 */
#include "guest.h"

const char test_title[] = "Event channels, FIFO";

#define PENDING (1u << EVTCHN_FIFO_PENDING)
#define MASKED (1u << EVTCHN_FIFO_MASKED)
#define LINKED (1u << EVTCHN_FIFO_LINKED)
#define WORDS_PER_PAGE 1024u
#define QUEUE_DEFAULT EVTCHN_FIFO_PRIORITY_DEFAULT
#define EVTCHNOP_reset_cont 14

static volatile u32 *words;
static volatile struct evtchn_fifo_control_block *control;

static ulong gfn_of(const volatile void *page)
{
    return (ulong)page >> PAGE_SHIFT;
}

static int init_control(u32 vcpu, ulong gfn, u32 offset, u8 *link_bits)
{
    struct evtchn_init_control op = {.control_gfn = gfn, .offset = offset, .vcpu = vcpu};
    int rc = (int)event_channel_op(EVTCHNOP_init_control, &op);

    if (link_bits)
        *link_bits = op.link_bits;
    return rc;
}

static int expand(ulong gfn)
{
    struct evtchn_expand_array op = {.array_gfn = gfn};

    return (int)event_channel_op(EVTCHNOP_expand_array, &op);
}

static int set_priority(evtchn_port_t port, u32 priority)
{
    struct evtchn_set_priority op = {.port = port, .priority = priority};

    return (int)event_channel_op(EVTCHNOP_set_priority, &op);
}

static int bind_pirq(u32 pirq, evtchn_port_t *port)
{
    struct evtchn_bind_pirq op = {.pirq = pirq};
    int rc = (int)event_channel_op(EVTCHNOP_bind_pirq, &op);

    *port = op.port;
    return rc;
}

static int reset(unsigned int cmd, domid_t dom)
{
    struct evtchn_reset op = {.dom = dom};

    return (int)event_channel_op(cmd, &op);
}

static u32 flags_of(evtchn_port_t port)
{
    return words[port] & (PENDING | MASKED | LINKED);
}

static u32 link_of(evtchn_port_t port)
{
    return words[port] & EVTCHN_FIFO_LINK_MASK;
}

/* Takes everything off the queues of a vCPU, as a guest does; returns how many events there were. */
static unsigned int consume(unsigned int vcpu)
{
    volatile struct evtchn_fifo_control_block *c = &control[vcpu];
    u32 ready = __atomic_exchange_n(&c->ready, 0, __ATOMIC_SEQ_CST);
    unsigned int n = 0;

    for (; ready; ready &= ready - 1) {
        unsigned int queue = (unsigned int)__builtin_ctz(ready);

        for (evtchn_port_t port = c->head[queue], next; port; port = next, n++) {
            next = link_of(port);
            __atomic_and_fetch(&words[port], ~(LINKED | PENDING | EVTCHN_FIFO_LINK_MASK), __ATOMIC_SEQ_CST);
        }
        c->head[queue] = 0;
    }
    shared_info->vcpu_info[vcpu].evtchn_upcall_pending = 0;
    return n;
}

static void test_pirq(void)
{
    evtchn_port_t port = 0, other;

    call("EVTCHNOP_bind_pirq");
    check_rc("evtchn.pirq.16", bind_pirq(16, &port), 0);
    check_rc("the same again", bind_pirq(16, &other), -XEN_EEXIST);
    check_rc("one that does not exist", bind_pirq(10000, &other), -XEN_EINVAL);
    check_rc("a send", evtchn_send(port), -XEN_EINVAL);
    check_rc("close", evtchn_close(port), 0);
    check_rc("and anew", bind_pirq(16, &port), 0);
    evtchn_close(port);
}

static void test_setup(void)
{
    evtchn_port_t port = 0;
    u8 link_bits = 0;

    control = alloc_pages(1);
    words = alloc_pages(2);
    for (unsigned int i = 0; i < 2 * WORDS_PER_PAGE; i++)
        words[i] = MASKED;
    call("EVTCHNOP_expand_array");
    check_rc("without a control block", expand(gfn_of(words)), -XEN_EOPNOTSUPP);
    call("EVTCHNOP_set_priority");
    check_rc("without a control block", set_priority(1, 7), -XEN_ENOSYS);

    call("EVTCHNOP_init_control");
    check_rc("a vCPU that does not exist", init_control(4, gfn_of(control), 0, NULL), -XEN_ENOENT);
    check_rc("fifo.init.off8192", init_control(0, gfn_of(control), 8192, NULL), -XEN_EINVAL);
    check_rc("it must be aligned", init_control(0, gfn_of(control), 4, NULL), -XEN_EINVAL);
    check_rc("it must be in one page", init_control(0, gfn_of(control), PAGE_SIZE - 64, NULL), -XEN_EINVAL);
    check_rc("fifo.init.hole", init_control(0, alloc_hole(1), 0, NULL), -XEN_EINVAL);
    evtchn_mask_all();
    check_rc("a port", evtchn_bind_ipi(0, &port), 0);
    evtchn_send(port);
    check_rc("fifo.init.0", init_control(0, gfn_of(control), 0, &link_bits), 0);
    check_signed("link bits", link_bits, EVTCHN_FIFO_LINK_BITS);
    check_rc("fifo.init.0.again", init_control(0, gfn_of(control), 0, NULL), -XEN_EINVAL);
    for (u32 i = 1; i < 4; i++)
        check_rc("of the other vCPUs", init_control(i, gfn_of(control), i * sizeof(*control), NULL), 0);

    call("EVTCHNOP_expand_array");
    check_rc("fifo.noarray.unmask", evtchn_unmask(port), 0);
    check_rc("fifo.expand.hole", expand(alloc_hole(1)), -XEN_EINVAL);
    check_rc("fifo.expand.0", expand(gfn_of(words)), 0);
    check_hex("what was pending is so in the array", flags_of(port), PENDING | MASKED);
    check_hex("fifo.migrated.ready", control->ready, 0);
    check_rc("fifo.expand.1", expand(gfn_of(words) + 1), 0);
    call("EVTCHNOP_close");
    check_rc("close", evtchn_close(port), 0);
    check_hex("fifo.close.pending_masked", flags_of(port), MASKED);
}

static void test_queue(void)
{
    evtchn_port_t p[3];

    call("EVTCHNOP_send");
    for (unsigned int i = 0; i < 3; i++) {
        if (evtchn_bind_ipi(0, &p[i]))
            error("no IPI port");
        check_hex("fifo.fresh", flags_of(p[i]), MASKED);
        evtchn_unmask(p[i]);
    }
    check_rc("fifo.send.default", evtchn_send(p[0]), 0);
    check_hex("fifo.send.default.word", flags_of(p[0]), PENDING | LINKED);
    check_hex("fifo.send.default.ready", control->ready, 1u << QUEUE_DEFAULT);
    check_signed("fifo.send.default.head7", control->head[QUEUE_DEFAULT], p[0]);
    check_signed("the upcall", shared_info->vcpu_info[0].evtchn_upcall_pending, 1);
    evtchn_send(p[1]);
    evtchn_send(p[2]);
    evtchn_send(p[0]);
    check_true("fifo.three.order", link_of(p[0]) == p[1] && link_of(p[1]) == p[2] && !link_of(p[2]));
    check_signed("events", consume(0), 3);

    __atomic_or_fetch(&words[p[0]], MASKED, __ATOMIC_SEQ_CST);
    check_rc("fifo.masked.send", evtchn_send(p[0]), 0);
    check_hex("fifo.masked.word", flags_of(p[0]), PENDING | MASKED);
    check_hex("fifo.masked.ready", control->ready, 0);
    call("EVTCHNOP_unmask");
    check_rc("unmask", evtchn_unmask(p[0]), 0);
    check_hex("its word", flags_of(p[0]), PENDING | LINKED);
    check_hex("fifo.unmasked.ready", control->ready, 1u << QUEUE_DEFAULT);
    check_signed("events", consume(0), 1);

    call("EVTCHNOP_bind_vcpu");
    for (unsigned int i = 0; i < 3; i++)
        evtchn_close(p[i]);
    evtchn_alloc_unbound(DOMID_SELF, DOMID_SELF, &p[0]);
    evtchn_bind_interdomain(DOMID_SELF, p[0], &p[1]);
    consume(0);
    for (u32 vcpu = 0; vcpu < 4; vcpu++) {
        struct evtchn_bind_vcpu op = {.port = p[1], .vcpu = vcpu};

        check_rc("bind_vcpu", event_channel_op(EVTCHNOP_bind_vcpu, &op), 0);
        evtchn_unmask(p[1]);
        evtchn_send(p[0]);
        check_signed("the event is that vCPU's", consume(vcpu), 1);
        check_signed("and nobody else's", consume((vcpu + 1) % 4), 0);
    }
    evtchn_close(p[0]);
    evtchn_close(p[1]);
}

static void test_priorities(void)
{
    static const u8 priorities[] = {15, 0, 3, 3, 7, 15};
    evtchn_port_t p[ARRAY_SIZE(priorities)];

    call("EVTCHNOP_set_priority");
    for (unsigned int i = 0; i < ARRAY_SIZE(priorities); i++) {
        if (evtchn_bind_ipi(0, &p[i]))
            error("no IPI port");
        check_rc("set_priority", set_priority(p[i], priorities[i]), 0);
        evtchn_unmask(p[i]);
        evtchn_send(p[i]);
    }
    check_hex("ready", control->ready, 1u << 0 | 1u << 3 | 1u << 7 | 1u << 15);
    check_true("fifo.prio.head0", control->head[0] == p[1]);
    check_true("fifo.prio.head3 and link", control->head[3] == p[2] && link_of(p[2]) == p[3]);
    check_true("fifo.prio.head15 and link", control->head[15] == p[0] && link_of(p[0]) == p[5]);
    check_signed("events", consume(0), ARRAY_SIZE(priorities));

    /* A linked event stays in its queue; the next one goes to the new. */
    evtchn_send(p[0]);
    set_priority(p[0], 1);
    check_hex("moved while linked", control->ready, 1u << 15);
    consume(0);
    evtchn_send(p[0]);
    check_hex("and from then on", control->ready, 1u << 1);
    consume(0);
    check_rc("fifo.priority.16", set_priority(p[0], 16), -XEN_EINVAL);
    check_rc("fifo.priority.badport", set_priority(1u << 20, 3), -XEN_EINVAL);
    check_rc("fifo.priority.port0", set_priority(0, 3), -XEN_EACCES);

    call("EVTCHNOP_close");
    evtchn_send(p[0]);
    check_rc("fifo.close.linked", evtchn_close(p[0]), 0);
    check_hex("fifo.close.linked.word", flags_of(p[0]), LINKED);
    consume(0);
    for (unsigned int i = 1; i < ARRAY_SIZE(priorities); i++)
        evtchn_close(p[i]);
}

/* Up to the last port that the domain may have, and back. */
static void test_limit(void)
{
    evtchn_port_t port = 0, last = 0;
    int rc;

    call("EVTCHNOP_bind_ipi");
    while (!(rc = evtchn_bind_ipi(0, &port)))
        last = port;
    check_rc("fifo.limit.errno", rc, -XEN_ENOSPC);
    check_signed("the last port", last, 1023);
    evtchn_unmask(last);
    evtchn_send(last);
    check_signed("its event", control->head[QUEUE_DEFAULT], last);
    check_signed("events", consume(0), 1);
    for (port = 3; port <= last; port++)
        evtchn_close(port);
}

static volatile u32 fifo_upcalls, fifo_events;

static void on_upcall(struct regs *regs)
{
    (void)regs;
    fifo_upcalls++;
    fifo_events += consume(0);
}

static void test_upcall(void)
{
    evtchn_port_t port;

    call("EVTCHNOP_send");
    evtchn_bind_ipi(0, &port);
    evtchn_unmask(port);
    consume(0);
    upcall_enable();
    set_handler(0xf3, on_upcall);
    irq_enable();
    fifo_upcalls = 0;
    for (int i = 0; i < 100; i++)
        evtchn_send(port);
    irq_disable();
    upcall_disable();
    check_signed("fifo.upcall", fifo_upcalls, 100);
    check_signed("one event each", fifo_events, 100);
    evtchn_close(port);
}

static void test_reset(void)
{
    struct evtchn_status status;
    evtchn_port_t port = 0;

    call("EVTCHNOP_reset");
    check_rc("reset.dom0", reset(EVTCHNOP_reset, 0), -XEN_EPERM);
    check_rc("of a domain that does not exist", reset(EVTCHNOP_reset, 4444), -XEN_ESRCH);
    call("EVTCHNOP_reset_cont");
    check_rc("there is none to go on with", reset(EVTCHNOP_reset_cont, DOMID_SELF), -XEN_EBUSY);
    call("EVTCHNOP_reset");
    evtchn_alloc_unbound(DOMID_SELF, DOMID_SELF, &port);
    /* From here on the console has no port: the rest goes by the debug port. */
    for (unsigned int i = 0; i < 1000 && !console_drained(); i++)
        sched_op(SCHEDOP_yield, NULL);
    console_ring = NULL;
    check_rc("reset.self", reset(EVTCHNOP_reset, DOMID_SELF), 0);
    check_rc("reset.store.status", evtchn_status(DOMID_SELF, 1, &status), 0);
    check_signed("reset.store.status", status.status, EVTCHNSTAT_closed);
    check_rc("the two-level ABI is back", expand(gfn_of(words)), -XEN_EOPNOTSUPP);
    check_rc("and a port", evtchn_bind_ipi(0, &port), 0);
    check_signed("reset.rebind.port", port, 1);
    evtchn_unmask_bit(port);
    check_rc("reset.2l.send", evtchn_send(port), 0);
    check_true("reset.2l.bits", evtchn_pending(port));
    check_rc("FIFO can be had again", init_control(0, gfn_of(control), 0, NULL), 0);
    check_rc("and left again", reset(EVTCHNOP_reset, DOMID_SELF), 0);
}

void test_main(void)
{
    if (vcpu_count() < 4)
        skip("needs four vCPUs");
    shared_info_map();
    test_pirq();
    test_setup();
    test_queue();
    test_priorities();
    test_limit();
    test_upcall();
    test_reset();
    success();
}
