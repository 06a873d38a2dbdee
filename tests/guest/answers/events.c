/*
 * evtchn.* and upcall.*: event channels of the two-level ABI, and how they reach the CPU.
 */
#include "answers.h"

static evtchn_port_t first, second, timer;
static struct loop loop;

static void ask_alloc(void)
{
    evtchn_port_t port = 0;
    u64 console = 0;

    for (evtchn_port_t i = 0; i < 4; i++)
        answer_status(name("evtchn.initial.%u", i), DOMID_SELF, i);
    hvm_param_get(HVM_PARAM_CONSOLE_EVTCHN, &console);
    answer("evtchn.console.port", "%u", (u32)console);
    answer_rc("evtchn.alloc.self_dom0", evtchn_alloc_unbound(DOMID_SELF, 0, &first));
    answer("evtchn.alloc.first_port", "%u", first);
    answer_rc("evtchn.alloc.self_self", evtchn_alloc_unbound(DOMID_SELF, DOMID_SELF, &second));
    answer_rc("evtchn.alloc.second_minus_first", (long)second - (long)first);
    answer_status("evtchn.status.unbound_self", DOMID_SELF, second);
    answer_status("evtchn.status.unbound_dom0", DOMID_SELF, first);
    answer_rc("evtchn.alloc.owndomid", evtchn_alloc_unbound(own, 0, &port));
    evtchn_close(port);
    answer_rc("evtchn.alloc.dom0", evtchn_alloc_unbound(0, DOMID_SELF, &port));
    answer_rc("evtchn.alloc.dom4444", evtchn_alloc_unbound(NOBODY, 0, &port));
    answer_rc("evtchn.alloc.remote4444", evtchn_alloc_unbound(DOMID_SELF, NOBODY, &port));
    evtchn_close(port);
    answer_rc("evtchn.alloc.remote_io", evtchn_alloc_unbound(DOMID_SELF, DOMID_IO, &port));
    evtchn_close(port);
    answer_rc("evtchn.alloc.remote_ffff", evtchn_alloc_unbound(DOMID_SELF, 0xffff, &port));
    evtchn_close(port);
}

static void ask_interdomain(void)
{
    evtchn_port_t port = 0;

    evtchn_mask_all();
    loop.near = second;
    answer_rc("evtchn.inter.loop", evtchn_bind_interdomain(DOMID_SELF, loop.near, &loop.far));
    answer_rc("evtchn.inter.port_minus_b", (long)loop.far - (long)loop.near);
    answer_status("evtchn.status.inter_c", DOMID_SELF, loop.far);
    answer_status("evtchn.status.inter_b", DOMID_SELF, loop.near);
    answer_bits("evtchn.inter.bits_local", loop.far);
    answer_bits("evtchn.inter.bits_remote", loop.near);
    answer_rc("evtchn.inter.badport", evtchn_bind_interdomain(DOMID_SELF, 1000, &port));
    answer_rc("evtchn.inter.port0", evtchn_bind_interdomain(DOMID_SELF, 0, &port));
    answer_rc("evtchn.inter.dom0_port0", evtchn_bind_interdomain(0, 0, &port));
    answer_rc("evtchn.inter.dom0_port1", evtchn_bind_interdomain(0, 1, &port));
    answer_rc("evtchn.inter.dom4444", evtchn_bind_interdomain(NOBODY, 1, &port));
    answer_rc("evtchn.inter.bound", evtchn_bind_interdomain(DOMID_SELF, loop.near, &port));
    answer_rc("evtchn.inter.unbound_for_dom0", evtchn_bind_interdomain(DOMID_SELF, first, &port));
}

static void ask_send(void)
{
    evtchn_port_t near = loop.near, far = loop.far;

    calm(0);
    answer_rc("evtchn.unmask.pending", evtchn_unmask(far));
    answer_bits("evtchn.unmask.pending.bits", far);
    calm(0);
    evtchn_clear(far);
    answer_rc("evtchn.send.unmasked", evtchn_send(near));
    answer_bits("evtchn.send.unmasked.bits", far);
    answer("evtchn.send.selbit", "%s", zero_or_not(vcpu_infos[0]->evtchn_pending_sel >> far / 64 & 1));
    calm(0);
    answer_rc("evtchn.send.pending_sel_cleared", evtchn_send(near));
    answer_bits("evtchn.send.pending_sel_cleared.bits", far);
    evtchn_clear(far);
    calm(0);
    vcpu_infos[0]->evtchn_pending_sel = 1ul << far / 64;
    evtchn_send(near);
    answer_bits("evtchn.send.sel_already.bits", far);
    evtchn_clear(far);
    evtchn_mask(far);
    calm(0);
    answer_rc("evtchn.send.masked", evtchn_send(near));
    answer_bits("evtchn.send.masked.bits", far);
    evtchn_mask(near);
    evtchn_clear(near);
    answer_rc("evtchn.send.reverse", evtchn_send(far));
    answer_bits("evtchn.send.reverse.bits", near);
    evtchn_clear(near);
    evtchn_clear(far);
    answer_rc("evtchn.unmask.port0", evtchn_unmask(0));
    answer_rc("evtchn.unmask.closed", evtchn_unmask(40));
    answer_rc("evtchn.unmask.bad", evtchn_unmask(5000));
    answer_rc("evtchn.unmask.null", event_channel_op(EVTCHNOP_unmask, NULL));
    answer_rc("evtchn.send.unbound", evtchn_send(first));
    answer_rc("evtchn.send.closed", evtchn_send(40));
    answer_rc("evtchn.send.bad", evtchn_send(5000));
    answer_rc("evtchn.send.port0", evtchn_send(0));
    answer_rc("evtchn.send.null", event_channel_op(EVTCHNOP_send, NULL));
    answer_rc("evtchn.vcpu.inter", bind_vcpu(loop.far, 1));
    answer_status("evtchn.vcpu.inter.status", DOMID_SELF, loop.far);
    bind_vcpu(loop.far, 0);
    answer_rc("evtchn.vcpu.unbound", bind_vcpu(first, 1));
    answer_rc("evtchn.vcpu.badvcpu", bind_vcpu(loop.far, 2));
    answer_rc("evtchn.vcpu.hugevcpu", bind_vcpu(loop.far, ~0u));
    answer_rc("evtchn.vcpu.closed", bind_vcpu(40, 0));
    answer_rc("evtchn.vcpu.bad", bind_vcpu(5000, 0));
}

static void ask_ipi(void)
{
    evtchn_port_t port = 0;

    answer_rc("evtchn.ipi", evtchn_bind_ipi(0, &port));
    answer_status("evtchn.status.ipi", DOMID_SELF, port);
    calm(0);
    answer_rc("evtchn.ipi.send", evtchn_send(port));
    answer_bits("evtchn.ipi.bits", port);
    answer_rc("evtchn.ipi.bind_vcpu", bind_vcpu(port, 1));
    evtchn_close(port);
    answer_rc("evtchn.ipi.vcpu1", evtchn_bind_ipi(1, &port));
    answer_status("evtchn.status.ipi1", DOMID_SELF, port);
    calm(0);
    calm(1);
    answer_rc("evtchn.ipi.vcpu1.send", evtchn_send(port));
    answer("evtchn.ipi.vcpu1.bits", "pend=%d sel0=%d up0=%d sel1=%d up1=%d", evtchn_pending(port),
           vcpu_infos[0]->evtchn_pending_sel != 0, vcpu_infos[0]->evtchn_upcall_pending,
           vcpu_infos[1]->evtchn_pending_sel != 0, vcpu_infos[1]->evtchn_upcall_pending);
    evtchn_close(port);
    answer_rc("evtchn.ipi.vcpu2", evtchn_bind_ipi(2, &port));
    answer_rc("evtchn.ipi.vcpu_max", evtchn_bind_ipi(~0u, &port));
}

static void ask_virq(void)
{
    evtchn_port_t port, other;

    answer_rc("evtchn.virq.timer", evtchn_bind_virq(VIRQ_TIMER, 0, &timer));
    answer_status("evtchn.status.virq", DOMID_SELF, timer);
    answer_rc("evtchn.virq.timer.again", evtchn_bind_virq(VIRQ_TIMER, 0, &port));
    answer_rc("evtchn.virq.timer.vcpu1", evtchn_bind_virq(VIRQ_TIMER, 1, &other));
    answer_status("evtchn.status.virq1", DOMID_SELF, other);
    evtchn_close(other);
    answer_rc("evtchn.virq.send", evtchn_send(timer));
    answer_rc("evtchn.virq.timer.bind_vcpu", bind_vcpu(timer, 1));
    answer_rc("evtchn.virq.debug", evtchn_bind_virq(VIRQ_DEBUG, 0, &port));
    answer_rc("evtchn.virq.debug.bind_vcpu", bind_vcpu(port, 1));
    evtchn_close(port);
    for (u32 virq = 1; virq <= NR_VIRQS; virq++) {
        int rc = evtchn_bind_virq(virq, 0, &port);

        answer_rc(name("evtchn.virq.%u.vcpu0", virq), rc);
        if (!rc) {
            answer_rc(name("evtchn.virq.%u.bind_vcpu1", virq), bind_vcpu(port, 1));
            evtchn_close(port);
        }
        rc = evtchn_bind_virq(virq, 1, &port);
        answer_rc(name("evtchn.virq.%u.vcpu1", virq), rc);
        if (!rc)
            evtchn_close(port);
    }
    answer_rc("evtchn.virq.vcpu2", evtchn_bind_virq(VIRQ_DEBUG, 2, &port));
}

static void ask_pirq(void)
{
    static const u32 pirqs[] = {1, 16, 0, 100000};

    for (unsigned int i = 0; i < ARRAY_SIZE(pirqs); i++) {
        struct evtchn_bind_pirq op = {.pirq = pirqs[i]};
        long rc = event_channel_op(EVTCHNOP_bind_pirq, &op);

        answer_rc(name("evtchn.pirq.%u", pirqs[i]), rc);
        if (!rc)
            evtchn_close(op.port);
    }
}

static void ask_close(void)
{
    struct loop other = make_loop();
    evtchn_port_t ports[3], again = 0;

    answer_rc("evtchn.close.a", evtchn_close(first));
    answer_status("evtchn.status.closed", DOMID_SELF, first);
    answer_rc("evtchn.close.again", evtchn_close(first));
    answer_rc("evtchn.close.port0", evtchn_close(0));
    answer_rc("evtchn.close.bad", evtchn_close(5000));
    answer_rc("evtchn.close.null", event_channel_op(EVTCHNOP_close, NULL));
    answer_rc("evtchn.close.inter_c", evtchn_close(loop.far));
    answer_status("evtchn.status.peer_closed", DOMID_SELF, loop.near);
    evtchn_close(loop.near);
    evtchn_clear(other.far);
    evtchn_unmask_bit(other.far);
    calm(0);
    evtchn_send(other.near);
    answer_rc("evtchn.close.pending", evtchn_close(other.far));
    answer_bits("evtchn.close.pending.bits", other.far);
    evtchn_mask(other.far);
    evtchn_close(other.near);
    for (unsigned int i = 0; i < 3; i++)
        evtchn_alloc_unbound(DOMID_SELF, 0, &ports[i]);
    evtchn_close(ports[1]);
    evtchn_close(ports[0]);
    evtchn_alloc_unbound(DOMID_SELF, 0, &again);
    answer("evtchn.reuse.order", "%s", again == ports[0] ? "lowest-first" : "other");
    evtchn_close(again);
    evtchn_close(ports[2]);
}

static void ask_limits(void)
{
    struct evtchn_expand_array expand = {.array_gfn = 0};
    evtchn_port_t port = 0, last = 0;
    u64 used[16] = {0};
    int rc;

    answer_status("evtchn.status.bad", DOMID_SELF, 5000);
    answer_status("evtchn.status.dom0", 0, 1);
    answer_status("evtchn.status.dom4444", NOBODY, 1);
    answer_rc("evtchn.status.null", event_channel_op(EVTCHNOP_status, NULL));
    for (unsigned int op = 0; op < 16; op++)
        answer_rc(name("evtchn.op.%u.null", op), event_channel_op(op, NULL));
    answer_rc("evtchn.op.99", event_channel_op(99, NULL));
    while (!(rc = evtchn_alloc_unbound(DOMID_SELF, DOMID_SELF, &port)) && port < 1024) {
        last = port;
        used[port / 64] |= 1ull << port % 64;
    }
    answer_rc("evtchn.limit.errno", rc);
    answer("evtchn.limit.last_port", "%u", last);
    answer_rc("evtchn.limit.inter", evtchn_bind_interdomain(DOMID_SELF, last, &port));
    for (port = 0; port < 1024; port++)
        if (used[port / 64] >> port % 64 & 1)
            evtchn_close(port);
    answer_rc("evtchn.2l.expand_array", event_channel_op(EVTCHNOP_expand_array, &expand));
    answer_rc("evtchn.2l.set_priority", event_channel_op(EVTCHNOP_set_priority, &(struct evtchn_set_priority){.port = 1}));
}

static u32 counted(int (*deliver)(evtchn_port_t port), evtchn_port_t port)
{
    upcall_count = 0;
    irq_enable();
    deliver(port);
    irq_disable();
    interrupt_window();
    return upcall_count;
}

static int by_hand(evtchn_port_t port)
{
    set_pending(port);
    return (int)sched_op(SCHEDOP_yield, NULL);
}

static void ask_upcalls(void)
{
    struct loop l = make_loop();

    evtchn_clear(l.far);
    evtchn_unmask_bit(l.far);
    calm(0);
    /* hvm.callback.* last set vector 0x10; what came after it was no vector and changed nothing. */
    count_upcalls(0x10);
    answer("upcall.novector.count", "%u", counted(evtchn_send, l.near));
    count_upcalls(UPCALL_VECTOR);
    set_callback_vector(UPCALL_VECTOR);
    answer("upcall.callback.once", "%u", counted(evtchn_send, l.near));
    evtchn_mask(l.far);
    answer("upcall.callback.by_hand", "%u", counted(by_hand, l.far));
    answer("upcall.callback.upcall_unmask", "%u", counted(evtchn_unmask, l.far));
    evtchn_mask(l.far);
    answer("upcall.callback.masked", "%u", counted(evtchn_send, l.near));
    answer("upcall.callback.unmasked", "%u", counted(evtchn_unmask, l.far));
    vcpu_infos[0]->evtchn_upcall_mask = 1;
    answer("upcall.callback.upcall_mask", "%u", counted(evtchn_send, l.near));
    vcpu_infos[0]->evtchn_upcall_mask = 0;
    evtchn_mask(l.far);
    close_loop(l);
    set_handler(0x10, NULL);
}

void ask_events(void)
{
    ask_alloc();
    ask_interdomain();
    ask_send();
    ask_ipi();
    ask_virq();
    ask_pirq();
    ask_close();
    ask_limits();
    ask_upcalls();
    answer_rc("evtchn.close.timer", evtchn_close(timer));
}
