/*
 * fifo.* and reset.*: the FIFO ABI of event channels, and the way back to two levels.
 */
#include "answers.h"

#define PENDING (1u << EVTCHN_FIFO_PENDING)
#define MASKED (1u << EVTCHN_FIFO_MASKED)
#define LINKED (1u << EVTCHN_FIFO_LINKED)
#define BUSY (1u << EVTCHN_FIFO_BUSY)
#define PORTS 8

static volatile u32 *words;
static volatile struct evtchn_fifo_control_block *control;
static evtchn_port_t ports[PORTS];

static ulong gfn_of(volatile void *page)
{
    return (ulong)page >> PAGE_SHIFT;
}

static long init_control(u32 vcpu, ulong gfn, u32 offset)
{
    struct evtchn_init_control op = {.control_gfn = gfn, .offset = offset, .vcpu = vcpu};

    return event_channel_op(EVTCHNOP_init_control, &op);
}

static long expand(ulong gfn)
{
    struct evtchn_expand_array op = {.array_gfn = gfn};

    return event_channel_op(EVTCHNOP_expand_array, &op);
}

static long set_priority(evtchn_port_t port, u32 priority)
{
    struct evtchn_set_priority op = {.port = port, .priority = priority};

    return event_channel_op(EVTCHNOP_set_priority, &op);
}

static u32 link_of(evtchn_port_t port)
{
    return words[port] & EVTCHN_FIFO_LINK_MASK;
}

static void answer_word(const char *question, evtchn_port_t port)
{
    u32 word = words[port];

    answer(question, "P=%d M=%d L=%d B=%d link=%s up=%d", !!(word & PENDING), !!(word & MASKED), !!(word & LINKED),
           !!(word & BUSY), word & EVTCHN_FIFO_LINK_MASK ? "set" : "0", vcpu_infos[0]->evtchn_upcall_pending);
}

/* Takes everything off the queues, as a guest does. */
static void consume(void)
{
    u32 ready = __atomic_exchange_n(&control->ready, 0, __ATOMIC_SEQ_CST);

    for (; ready; ready &= ready - 1) {
        unsigned int queue = (unsigned int)__builtin_ctz(ready);
        evtchn_port_t port = control->head[queue];

        while (port) {
            evtchn_port_t next = link_of(port);

            __atomic_and_fetch(&words[port], ~(LINKED | PENDING | EVTCHN_FIFO_LINK_MASK), __ATOMIC_SEQ_CST);
            port = next;
        }
        control->head[queue] = 0;
    }
    calm(0);
}

static void ask_setup(void)
{
    struct loop l = make_loop();
    evtchn_port_t port = 0;

    control = alloc_pages(1);
    words = alloc_pages(3);
    for (unsigned int i = 0; i < 3 * 1024; i++)
        words[i] = MASKED;
    answer_rc("fifo.init.vcpu2", init_control(2, gfn_of(control), 0));
    answer_rc("fifo.init.off8192", init_control(0, gfn_of(control), 8192));
    answer_rc("fifo.init.off4", init_control(0, gfn_of(control), 4));
    answer_rc("fifo.init.hole", init_control(0, alloc_hole(1), 0));
    answer_rc("fifo.init.null", event_channel_op(EVTCHNOP_init_control, NULL));
    evtchn_mask(l.far);
    evtchn_clear(l.far);
    calm(0);
    evtchn_send(l.near);
    answer_bits("fifo.before.2l", l.far);
    answer_rc("fifo.init.0", init_control(0, gfn_of(control), 0));
    answer_rc("fifo.init.0.again", init_control(0, gfn_of(control), 0));
    answer_rc("fifo.init.1", init_control(1, gfn_of(control), 128));
    answer_rc("fifo.noarray.send", evtchn_send(l.near));
    answer_rc("fifo.noarray.unmask", evtchn_unmask(l.far));
    answer_rc("fifo.noarray.alloc", evtchn_alloc_unbound(DOMID_SELF, 0, &port));
    answer_rc("fifo.expand.hole", expand(alloc_hole(1)));
    answer_rc("fifo.expand.null", event_channel_op(EVTCHNOP_expand_array, NULL));
    answer_rc("fifo.expand.0", expand(gfn_of(words)));
    answer_word("fifo.migrated.word", l.far);
    answer("fifo.migrated.ready", "%08x", control->ready);
    answer_rc("fifo.expand.1", expand(gfn_of(words) + 1));
    answer_rc("fifo.expand.2", expand(gfn_of(words) + 2));
    evtchn_close(l.far);
    answer_word("fifo.close.pending_masked", l.far);
}

static void ask_default_queue(void)
{
    bool consecutive = true;

    for (unsigned int i = 0; i < PORTS; i++) {
        if (evtchn_bind_ipi(0, &ports[i]))
            error("no IPI port");
        consecutive &= !i || ports[i] == ports[i - 1] + 1;
    }
    answer("fifo.ports.consecutive", "%s", yes_or_no(consecutive));
    answer_word("fifo.fresh", ports[0]);
    for (unsigned int i = 0; i < PORTS; i++)
        evtchn_unmask(ports[i]);
    answer_word("fifo.unmask.idle", ports[0]);
    answer_rc("fifo.send.default", evtchn_send(ports[0]));
    answer_word("fifo.send.default.word", ports[0]);
    answer("fifo.send.default.ready", "%08x", control->ready);
    answer("fifo.send.default.head7", "%s", yes_or_no(control->head[7] == ports[0]));
    answer_rc("fifo.send.again", evtchn_send(ports[0]));
    evtchn_send(ports[1]);
    evtchn_send(ports[2]);
    answer_word("fifo.three.first", ports[0]);
    answer_word("fifo.three.third", ports[2]);
    answer("fifo.three.order", "%s",
           yes_or_no(control->head[7] == ports[0] && link_of(ports[0]) == ports[1] && link_of(ports[1]) == ports[2]));
    consume();
}

static void ask_priorities(void)
{
    answer_rc("fifo.priority.set.0", set_priority(ports[0], 0));
    answer_rc("fifo.priority.set.3", set_priority(ports[1], 3));
    answer_rc("fifo.priority.set.15", set_priority(ports[2], 15));
    answer_rc("fifo.priority.set.3.b", set_priority(ports[3], 3));
    answer_rc("fifo.priority.16", set_priority(ports[4], 16));
    answer_rc("fifo.priority.max", set_priority(ports[4], ~0u));
    answer_rc("fifo.priority.badport", set_priority(5000, 3));
    answer_rc("fifo.priority.closed", set_priority(60, 3));
    answer_rc("fifo.priority.port0", set_priority(0, 3));
    answer_rc("fifo.priority.null", event_channel_op(EVTCHNOP_set_priority, NULL));
    for (unsigned int i = 0; i < 7; i++)
        evtchn_send(ports[i]);
    answer("fifo.prio.ready", "%08x", control->ready);
    answer("fifo.prio.head0", "%s", yes_or_no(control->head[0] == ports[0]));
    answer("fifo.prio.link0", "%s", yes_or_no(!link_of(ports[0])));
    answer("fifo.prio.head3", "%s", yes_or_no(control->head[3] == ports[1]));
    answer("fifo.prio.link3", "%s", yes_or_no(link_of(ports[1]) == ports[3]));
    answer("fifo.prio.head15", "%s", yes_or_no(control->head[15] == ports[2]));
    for (unsigned int i = 0; i < 7; i++)
        answer_word(name("fifo.prio.word.%u", i), ports[i]);
    consume();
}

static void ask_states(void)
{
    evtchn_port_t port = ports[5];

    __atomic_or_fetch(&words[port], MASKED, __ATOMIC_SEQ_CST);
    answer_rc("fifo.masked.send", evtchn_send(port));
    answer_word("fifo.masked.word", port);
    answer("fifo.masked.ready", "%08x", control->ready);
    answer_rc("fifo.unmasked", evtchn_unmask(port));
    answer_word("fifo.unmasked.word", port);
    answer("fifo.unmasked.ready", "%08x", control->ready);
    /* Handled, but not taken off its queue yet. */
    __atomic_and_fetch(&words[port], ~PENDING, __ATOMIC_SEQ_CST);
    calm(0);
    answer_rc("fifo.linked.resend", evtchn_send(port));
    answer_word("fifo.linked.resend.word", port);
    consume();

    set_callback_vector(UPCALL_VECTOR);
    count_upcalls_only(UPCALL_VECTOR);
    irq_enable();
    evtchn_send(ports[6]);
    irq_disable();
    answer("fifo.upcall", "%u", upcall_count);
    irq_enable();
    evtchn_send(ports[6]);
    irq_disable();
    answer("fifo.upcall.once", "%u", upcall_count);
    answer_rc("fifo.poll", evtchn_poll(ports[6], now() + MILLISECONDS(100)));
    consume();
    evtchn_send(ports[4]);
    answer_rc("fifo.close.linked", evtchn_close(ports[4]));
    answer_word("fifo.close.linked.word", ports[4]);
    answer_status("fifo.status.closed", DOMID_SELF, ports[4]);
}

static void ask_limit(void)
{
    evtchn_port_t port, last = 0;
    int rc;

    while (!(rc = evtchn_bind_ipi(0, &port)) && port < 4096)
        last = port;
    answer_rc("fifo.limit.errno", rc);
    answer("fifo.limit.last_port", "%u", last);
    answer_rc("fifo.priority.of_last", set_priority(last, 1));
    answer_rc("fifo.send.last", evtchn_send(last));
    consume();
}

static void ask_reset(void)
{
    struct evtchn_reset reset = {.dom = 0};
    struct evtchn_status console = {.dom = DOMID_SELF, .port = console_port};
    struct loop l;
    evtchn_port_t port = 0;

    event_channel_op(EVTCHNOP_status, &console);
    answer_rc("reset.dom0", event_channel_op(EVTCHNOP_reset, &reset));
    reset.dom = NOBODY;
    answer_rc("reset.nobody", event_channel_op(EVTCHNOP_reset, &reset));
    answer_rc("reset.null", event_channel_op(EVTCHNOP_reset, NULL));
    reset.dom = DOMID_SELF;
    answer_rc("reset.self", event_channel_op(EVTCHNOP_reset, &reset));
    answer_status("reset.store.status", DOMID_SELF, 1);
    answer_rc("reset.rebind.console", evtchn_bind_interdomain(0, console.u.interdomain.port, &port));
    answer("reset.rebind.port", "%u", port);
    console_port = port;
    evtchn_mask_all();
    l = make_loop();
    evtchn_clear(l.far);
    evtchn_unmask_bit(l.far);
    calm(0);
    answer_rc("reset.2l.send", evtchn_send(l.near));
    answer_bits("reset.2l.bits", l.far);
    evtchn_mask(l.far);
    close_loop(l);
    calm(0);
}

void ask_fifo(void)
{
    ask_setup();
    ask_default_queue();
    ask_priorities();
    ask_states();
    ask_limit();
    ask_reset();
}
