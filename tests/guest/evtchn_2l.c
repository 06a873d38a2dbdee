/*
 * evtchn_2l: event channels of the two-level ABI.
 *
 * Purpose: allocation, loops of a domain to itself, the pending, mask and selector bits that each
 * send leaves behind, IPIs, VIRQs, binding to vCPUs, closing, the port limit, and delivery by
 * callback vector. Every errno and bit is the one that Xen 4.17 answered.
 * Blind spots: a peer in another domain; delivery to the second vCPU, which never runs; upcalls by
 * local APIC vector; FIFO.
 *
 * Options: --vcpus 2
 */
#include "guest.h"

const char test_title[] = "Event channels, two-level";

static domid_t own;

static struct vcpu_info *vcpu_info(unsigned int vcpu)
{
    return &shared_info->vcpu_info[vcpu];
}

/* A state with nothing raised and one port's bits as given. */
static void set_bits(evtchn_port_t port, bool masked, ulong selector)
{
    evtchn_clear(port);
    if (masked)
        evtchn_mask(port);
    else
        evtchn_unmask_bit(port);
    for (unsigned int i = 0; i < 2; i++) {
        __atomic_store_n(&vcpu_info(i)->evtchn_pending_sel, selector, __ATOMIC_SEQ_CST);
        __atomic_store_n(&vcpu_info(i)->evtchn_upcall_pending, 0, __ATOMIC_SEQ_CST);
    }
}

static void check_bits(const char *what, evtchn_port_t port, int pend, int mask, int sel, int up)
{
    int got[4] = {evtchn_pending(port), evtchn_masked(port), vcpu_info(0)->evtchn_pending_sel != 0,
                  vcpu_info(0)->evtchn_upcall_pending};

    if (got[0] != pend || got[1] != mask || got[2] != sel || got[3] != up)
        failure("%s: pend=%d mask=%d sel=%d up=%d, want pend=%d mask=%d sel=%d up=%d", what, got[0],
                got[1], got[2], got[3], pend, mask, sel, up);
}

static struct evtchn_status check_status(const char *what, evtchn_port_t port, u32 status, u32 vcpu)
{
    struct evtchn_status s;
    int rc = evtchn_status(DOMID_SELF, port, &s);

    if (rc || s.status != status || s.vcpu != vcpu)
        failure("%s: %d status=%u vcpu=%u, want 0 status=%u vcpu=%u", what, rc, s.status, s.vcpu, status, vcpu);
    return s;
}

static int bind_vcpu(evtchn_port_t port, u32 vcpu)
{
    struct evtchn_bind_vcpu op = {.port = port, .vcpu = vcpu};

    return (int)event_channel_op(EVTCHNOP_bind_vcpu, &op);
}

static void test_initial(void)
{
    struct evtchn_status s;

    call("EVTCHNOP_status");
    check_status("evtchn.initial.0", 0, EVTCHNSTAT_closed, 0);
    for (evtchn_port_t port = 1; port <= 2; port++) {
        s = check_status("evtchn.initial.1 and 2", port, EVTCHNSTAT_interdomain, 0);
        if (s.u.interdomain.dom || !s.u.interdomain.port)
            failure("evtchn.initial.%u: dom=%u port=%u", port, s.u.interdomain.dom, s.u.interdomain.port);
    }
    check_status("evtchn.initial.3", 3, EVTCHNSTAT_closed, 0);
}

static void test_alloc(void)
{
    evtchn_port_t first = 0, second = 0, port = 0;
    struct evtchn_status s;

    call("EVTCHNOP_alloc_unbound");
    check_rc("evtchn.alloc.self_dom0", evtchn_alloc_unbound(DOMID_SELF, 0, &first), 0);
    check_signed("evtchn.alloc.first_port", first, 3);
    check_rc("evtchn.alloc.self_self", evtchn_alloc_unbound(DOMID_SELF, DOMID_SELF, &second), 0);
    check_signed("evtchn.alloc.second_minus_first", (long)second - (long)first, 1);
    s = check_status("evtchn.status.unbound_self", second, EVTCHNSTAT_unbound, 0);
    own = s.u.unbound.dom;
    if (!own || own >= DOMID_FIRST_RESERVED)
        failure("evtchn.status.unbound_self: dom=%u is no domain's id", own);

    check_rc("evtchn.alloc.owndomid", evtchn_alloc_unbound(own, 0, &port), 0);
    evtchn_close(port);
    check_rc("evtchn.alloc.dom4444", evtchn_alloc_unbound(4444, 0, &port), -XEN_ESRCH);
    check_rc("evtchn.alloc.remote4444", evtchn_alloc_unbound(DOMID_SELF, 4444, &port), 0);
    evtchn_close(port);
    check_rc("evtchn.alloc.remote_io", evtchn_alloc_unbound(DOMID_SELF, DOMID_IO, &port), 0);
    evtchn_close(port);
    check_rc("evtchn.alloc.remote_ffff", evtchn_alloc_unbound(DOMID_SELF, 0xffff, &port), 0);
    evtchn_close(port);

    call("EVTCHNOP_bind_interdomain");
    check_rc("evtchn.inter.badport", evtchn_bind_interdomain(DOMID_SELF, 1000, &port), -XEN_EINVAL);
    check_rc("evtchn.inter.port0", evtchn_bind_interdomain(DOMID_SELF, 0, &port), -XEN_EINVAL);
    check_rc("evtchn.inter.dom0_port0", evtchn_bind_interdomain(0, 0, &port), -XEN_EINVAL);
    check_rc("evtchn.inter.dom0_port1", evtchn_bind_interdomain(0, 1, &port), -XEN_EINVAL);
    check_rc("evtchn.inter.unbound_for_dom0", evtchn_bind_interdomain(DOMID_SELF, first, &port), -XEN_EINVAL);

    call("EVTCHNOP_close");
    evtchn_close(first);
    check_rc("evtchn.reuse.order", evtchn_alloc_unbound(DOMID_SELF, DOMID_SELF, &port), 0);
    check_signed("evtchn.reuse.order: lowest first", port, first);
    evtchn_close(port);
    evtchn_close(second);
}

static void check_loop_status(const char *what, evtchn_port_t port, evtchn_port_t peer)
{
    struct evtchn_status s = check_status(what, port, EVTCHNSTAT_interdomain, 0);

    if (s.u.interdomain.dom != own || s.u.interdomain.port != peer)
        failure("%s: dom=%u port=%u, want dom=%u port=%u", what, s.u.interdomain.dom, s.u.interdomain.port,
                own, peer);
}

static void test_loop(void)
{
    evtchn_port_t b = 0, c = 0;
    struct evtchn_status s;

    evtchn_alloc_unbound(DOMID_SELF, DOMID_SELF, &b);
    evtchn_mask_all();
    call("EVTCHNOP_bind_interdomain");
    check_rc("evtchn.inter.loop", evtchn_bind_interdomain(DOMID_SELF, b, &c), 0);
    check_signed("evtchn.inter.port_minus_b", (long)c - (long)b, 1);
    check_loop_status("evtchn.status.inter_c", c, b);
    check_loop_status("evtchn.status.inter_b", b, c);
    check_true("evtchn.inter.bits_local: a fresh binding is pending", evtchn_pending(c));

    call("EVTCHNOP_send");
    set_bits(c, true, 0);
    evtchn_send(b);
    check_bits("evtchn.send.reverse.bits", c, 1, 1, 0, 0);
    call("EVTCHNOP_unmask");
    check_rc("evtchn.unmask.pending", evtchn_unmask(c), 0);
    check_bits("unmasking delivers", c, 1, 0, 1, 1);

    call("EVTCHNOP_send");
    set_bits(c, false, 0);
    check_rc("evtchn.send.unmasked", evtchn_send(b), 0);
    check_bits("evtchn.send.unmasked.bits", c, 1, 0, 1, 1);
    check_hex("evtchn.send.selbit", vcpu_info(0)->evtchn_pending_sel, 1ul << c / (8 * sizeof(ulong)));

    /* A port that is pending already is not raised again. */
    vcpu_info(0)->evtchn_pending_sel = 0;
    vcpu_info(0)->evtchn_upcall_pending = 0;
    check_rc("evtchn.send.pending_sel_cleared", evtchn_send(b), 0);
    check_bits("sent while pending", c, 1, 0, 0, 0);

    /* Nor is the upcall, if the selector says that one is on its way. */
    set_bits(c, false, 1ul << c / (8 * sizeof(ulong)));
    evtchn_send(b);
    check_bits("evtchn.send.sel_already.bits", c, 1, 0, 1, 0);

    set_bits(b, false, 0);
    evtchn_send(c);
    check_bits("the other way", b, 1, 0, 1, 1);
    evtchn_mask(b);

    call("EVTCHNOP_bind_vcpu");
    check_rc("bind_vcpu 1", bind_vcpu(c, 1), 0);
    check_status("evtchn.vcpu.inter.status", c, EVTCHNSTAT_interdomain, 1);
    set_bits(c, false, 0);
    evtchn_send(b);
    check_bits("bound to vCPU 1: nothing for vCPU 0", c, 1, 0, 0, 0);
    check_signed("bound to vCPU 1: upcall", vcpu_info(1)->evtchn_upcall_pending, 1);
    check_rc("bind_vcpu 0", bind_vcpu(c, 0), 0);
    check_rc("evtchn.vcpu.badvcpu", bind_vcpu(c, 2), -XEN_ENOENT);
    check_rc("evtchn.vcpu.hugevcpu", bind_vcpu(c, ~0u), -XEN_ENOENT);

    call("EVTCHNOP_close");
    set_bits(c, false, 0);
    evtchn_send(b);
    check_rc("evtchn.close.pending", evtchn_close(c), 0);
    check_true("evtchn.close.pending.bits", !evtchn_pending(c));
    check_status("evtchn.status.closed", c, EVTCHNSTAT_closed, 0);
    s = check_status("evtchn.status.peer_closed", b, EVTCHNSTAT_unbound, 0);
    check_hex("evtchn.status.peer_closed dom", s.u.unbound.dom, own);
    call("EVTCHNOP_bind_vcpu");
    check_rc("evtchn.vcpu.closed", bind_vcpu(c, 0), -XEN_EINVAL);
    call("EVTCHNOP_close");
    check_rc("evtchn.close.a", evtchn_close(b), 0);
    evtchn_mask_all();
}

static void test_refused(void)
{
    struct evtchn_status s;
    struct evtchn_expand_array expand = {.array_gfn = 0};

    call("EVTCHNOP_unmask");
    check_rc("evtchn.unmask.port0", evtchn_unmask(0), 0);
    call("EVTCHNOP_send");
    check_rc("evtchn.send.port0", evtchn_send(0), -XEN_EINVAL);
    call("EVTCHNOP_close");
    check_rc("evtchn.close.bad", evtchn_close(1000), -XEN_EINVAL);
    call("EVTCHNOP_bind_vcpu");
    check_rc("evtchn.vcpu.bad", bind_vcpu(1000, 0), -XEN_EINVAL);
    call("EVTCHNOP_status");
    check_rc("evtchn.status.dom4444", evtchn_status(4444, 1, &s), -XEN_ESRCH);
    call("EVTCHNOP_expand_array");
    check_rc("evtchn.2l.expand_array", event_channel_op(EVTCHNOP_expand_array, &expand), -XEN_EOPNOTSUPP);
}

static void test_ipi(void)
{
    evtchn_port_t port = 0;

    call("EVTCHNOP_bind_ipi");
    check_rc("bind_ipi", evtchn_bind_ipi(0, &port), 0);
    set_bits(port, true, 0);
    check_rc("evtchn.ipi.send", evtchn_send(port), 0);
    check_bits("evtchn.ipi.bits", port, 1, 1, 0, 0);
    check_rc("evtchn.ipi.bind_vcpu", bind_vcpu(port, 1), -XEN_EINVAL);
    evtchn_close(port);

    check_rc("bind_ipi to vCPU 1", evtchn_bind_ipi(1, &port), 0);
    check_status("evtchn.status.ipi1", port, EVTCHNSTAT_ipi, 1);
    set_bits(port, true, 0);
    check_rc("evtchn.ipi.vcpu1.send", evtchn_send(port), 0);
    check_bits("evtchn.ipi.vcpu1.bits", port, 1, 1, 0, 0);
    check_signed("evtchn.ipi.vcpu1.bits up1", vcpu_info(1)->evtchn_upcall_pending, 0);
    evtchn_close(port);
    check_rc("evtchn.ipi.vcpu_max", evtchn_bind_ipi(~0u, &port), -XEN_ENOENT);
}

/* A VIRQ on vCPU 0, moved to vCPU 1, and bound anew on vCPU 1 (1: not asked of Xen). */
static const struct {
    u32 virq;
    int vcpu0, bind_vcpu1, vcpu1;
} virqs[] = {
    {VIRQ_TIMER, 0, -22, 0},
    {VIRQ_DEBUG, 0, -22, 0},
    {3, 1, 0, 1},
    {5, 1, 0, 1},
    {6, 0, 0, -22},
    {VIRQ_XENOPROF, 0, 1, 0},
    {8, 1, 0, 1},
    {10, 1, 0, 1},
    {12, 0, 1, -22},
    {VIRQ_XENPMU, 0, -22, 0},
    {14, 0, 1, -22},
    {15, 0, 0, -22},
    {VIRQ_ARCH_0, 1, 0, 1},
    {18, 0, 0, -22},
    {19, 0, 1, -22},
    {20, 0, 0, -22},
    {21, 0, 1, -22},
    {23, 1, 0, 1},
};

static void check_virq(const char *what, u32 virq, int got, int want)
{
    if (want <= 0 && got != want)
        failure("evtchn.virq.%u.%s: got %d, want %d", virq, what, got, want);
}

static void test_virq(void)
{
    evtchn_port_t port, port1;
    struct evtchn_status s;

    call("EVTCHNOP_bind_virq");
    for (unsigned int i = 0; i < ARRAY_SIZE(virqs); i++) {
        u32 virq = virqs[i].virq;
        int rc = evtchn_bind_virq(virq, 0, &port);

        check_virq("vcpu0", virq, rc, virqs[i].vcpu0);
        if (!rc)
            check_virq("bind_vcpu1", virq, bind_vcpu(port, 1), virqs[i].bind_vcpu1);
        if (!rc)
            evtchn_close(port);
        rc = evtchn_bind_virq(virq, 1, &port1);
        check_virq("vcpu1", virq, rc, virqs[i].vcpu1);
        if (!rc)
            evtchn_close(port1);
    }

    check_rc("evtchn.virq.timer", evtchn_bind_virq(VIRQ_TIMER, 0, &port), 0);
    s = check_status("evtchn.status.virq", port, EVTCHNSTAT_virq, 0);
    check_signed("evtchn.status.virq virq", s.u.virq, VIRQ_TIMER);
    check_rc("evtchn.virq.send", evtchn_send(port), -XEN_EINVAL);
    check_rc("VIRQ_TIMER of vCPU 1", evtchn_bind_virq(VIRQ_TIMER, 1, &port1), 0);
    check_status("evtchn.status.virq1", port1, EVTCHNSTAT_virq, 1);
    evtchn_close(port1);
    check_rc("evtchn.close.timer", evtchn_close(port), 0);
    check_rc("a VIRQ that does not exist", evtchn_bind_virq(NR_VIRQS, 0, &port), -XEN_EINVAL);
}

static void test_limit(void)
{
    evtchn_port_t port = 0, last = 0, unused;
    int rc;

    call("EVTCHNOP_alloc_unbound");
    while (!(rc = evtchn_alloc_unbound(DOMID_SELF, DOMID_SELF, &port)))
        last = port;
    check_rc("evtchn.limit.errno", rc, -XEN_ENOSPC);
    check_signed("evtchn.limit.last_port", last, 1023);
    check_rc("evtchn.limit.inter", evtchn_bind_interdomain(DOMID_SELF, last, &unused), -XEN_ENOSPC);
    for (port = 3; port <= last; port++)
        if (evtchn_close(port))
            failure("port %u does not close", port);
}

static void test_upcall(void)
{
    evtchn_port_t b = 0, c = 0;
    u32 before;

    call("EVTCHNOP_send");
    evtchn_alloc_unbound(DOMID_SELF, DOMID_SELF, &b);
    evtchn_bind_interdomain(DOMID_SELF, b, &c);
    set_bits(c, false, 0);
    upcall_enable();
    irq_enable();

    before = upcalls;
    evtchn_send(b);
    check_signed("upcall.callback.once", upcalls - before, 1);
    check_signed("events of the port", upcall_events[c], 1);
    check_true("the handler cleared it", !evtchn_pending(c));

    evtchn_mask(c);
    before = upcalls;
    evtchn_send(b);
    check_signed("upcall.callback.masked", upcalls - before, 0);
    evtchn_unmask(c);
    check_signed("upcall.callback.unmasked", upcalls - before, 1);

    /* A bit that the guest sets by itself tells Xen nothing. */
    before = upcalls;
    __atomic_or_fetch(&shared_info->evtchn_pending[c / (8 * sizeof(ulong))], 1ul << c % (8 * sizeof(ulong)),
                      __ATOMIC_SEQ_CST);
    sched_op(SCHEDOP_yield, NULL);
    check_signed("upcall.callback.by_hand", upcalls - before, 0);
    evtchn_clear(c);

    irq_disable();
    before = upcalls;
    for (int i = 0; i < 3; i++)
        evtchn_send(b);
    check_signed("no upcall with interrupts off", upcalls - before, 0);
    irq_enable();
    for (int i = 0; i < 10 && upcalls == before; i++)
        sched_op(SCHEDOP_yield, NULL);
    check_signed("one upcall for three sends", upcalls - before, 1);

    before = upcalls;
    for (int i = 0; i < 200; i++)
        evtchn_send(b);
    check_signed("an upcall for each of 200 sends", upcalls - before, 200);

    irq_disable();
    upcall_disable();
    evtchn_close(c);
    evtchn_close(b);
}

void test_main(void)
{
    if (vcpu_count() < 2)
        skip("needs two vCPUs");
    shared_info_map();
    check_hex("mem.shared_info.mask_all_ones", shared_info->evtchn_mask[0], 0);
    check_signed("mem.shared_info.vcpu1.upcall_mask", vcpu_info(1)->evtchn_upcall_mask, 0);
    evtchn_mask_all();
    test_initial();
    test_alloc();
    test_loop();
    test_refused();
    test_ipi();
    test_virq();
    test_limit();
    test_upcall();
    success();
}
