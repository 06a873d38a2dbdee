/*
 * Two-level event channels. Every word of shared_info changes by atomic instructions only.
 * Facts: xen/event_channel.h, xen/xen.h.
 */
#include "guest.h"
#include "layout.h"

#define BITS (8 * sizeof(ulong))

volatile u32 upcalls;
volatile u32 upcall_events[1024];

int evtchn_alloc_unbound(domid_t dom, domid_t remote, evtchn_port_t *port)
{
    struct evtchn_alloc_unbound op = {.dom = dom, .remote_dom = remote};
    int rc = (int)event_channel_op(EVTCHNOP_alloc_unbound, &op);

    *port = op.port;
    return rc;
}

int evtchn_bind_interdomain(domid_t remote, evtchn_port_t remote_port, evtchn_port_t *port)
{
    struct evtchn_bind_interdomain op = {.remote_dom = remote, .remote_port = remote_port};
    int rc = (int)event_channel_op(EVTCHNOP_bind_interdomain, &op);

    *port = op.local_port;
    return rc;
}

int evtchn_bind_virq(u32 virq, u32 vcpu, evtchn_port_t *port)
{
    struct evtchn_bind_virq op = {.virq = virq, .vcpu = vcpu};
    int rc = (int)event_channel_op(EVTCHNOP_bind_virq, &op);

    *port = op.port;
    return rc;
}

int evtchn_bind_ipi(u32 vcpu, evtchn_port_t *port)
{
    struct evtchn_bind_ipi op = {.vcpu = vcpu};
    int rc = (int)event_channel_op(EVTCHNOP_bind_ipi, &op);

    *port = op.port;
    return rc;
}

int evtchn_send(evtchn_port_t port)
{
    struct evtchn_send op = {.port = port};

    return (int)event_channel_op(EVTCHNOP_send, &op);
}

int evtchn_close(evtchn_port_t port)
{
    struct evtchn_close op = {.port = port};

    return (int)event_channel_op(EVTCHNOP_close, &op);
}

int evtchn_unmask(evtchn_port_t port)
{
    struct evtchn_unmask op = {.port = port};

    return (int)event_channel_op(EVTCHNOP_unmask, &op);
}

int evtchn_status(domid_t dom, evtchn_port_t port, struct evtchn_status *status)
{
    memset(status, 0, sizeof(*status));
    status->dom = dom;
    status->port = port;
    return (int)event_channel_op(EVTCHNOP_status, status);
}

domid_t own_domid(void)
{
    struct evtchn_status status;
    evtchn_port_t port;

    if (evtchn_alloc_unbound(DOMID_SELF, DOMID_SELF, &port) || evtchn_status(DOMID_SELF, port, &status))
        error("cannot find out the domain's own id");
    evtchn_close(port);
    return status.u.unbound.dom;
}

static bool test_port(const xen_ulong_t *words, evtchn_port_t port)
{
    return READ_ONCE(words[port / BITS]) >> (port % BITS) & 1;
}

bool evtchn_pending(evtchn_port_t port)
{
    return test_port(shared_info->evtchn_pending, port);
}

bool evtchn_masked(evtchn_port_t port)
{
    return test_port(shared_info->evtchn_mask, port);
}

void evtchn_clear(evtchn_port_t port)
{
    __atomic_and_fetch(&shared_info->evtchn_pending[port / BITS], ~(1ul << port % BITS), __ATOMIC_SEQ_CST);
}

void evtchn_mask(evtchn_port_t port)
{
    __atomic_or_fetch(&shared_info->evtchn_mask[port / BITS], 1ul << port % BITS, __ATOMIC_SEQ_CST);
}

void evtchn_mask_all(void)
{
    for (unsigned int i = 0; i < BITS; i++)
        __atomic_store_n(&shared_info->evtchn_mask[i], ~0ul, __ATOMIC_SEQ_CST);
}

void evtchn_unmask_bit(evtchn_port_t port)
{
    __atomic_and_fetch(&shared_info->evtchn_mask[port / BITS], ~(1ul << port % BITS), __ATOMIC_SEQ_CST);
}

int evtchn_poll(evtchn_port_t port, u64 deadline)
{
    struct sched_poll poll = {.nr_ports = 1, .timeout = deadline};

    set_xen_guest_handle(poll.ports, &port);
    return (int)sched_op(SCHEDOP_poll, &poll);
}

/* Vectors by HVM_PARAM_CALLBACK_IRQ need no EOI: lowering evtchn_upcall_pending ends them. */
static void upcall(struct regs *regs)
{
    struct vcpu_info *vi = &shared_info->vcpu_info[0];
    ulong selector;

    (void)regs;
    upcalls++;
    __atomic_store_n(&vi->evtchn_upcall_pending, 0, __ATOMIC_SEQ_CST);
    selector = __atomic_exchange_n(&vi->evtchn_pending_sel, 0, __ATOMIC_SEQ_CST);
    while (selector) {
        unsigned int word = (unsigned int)__builtin_ctzl(selector);
        ulong ready = READ_ONCE(shared_info->evtchn_pending[word]) & ~READ_ONCE(shared_info->evtchn_mask[word]);

        selector &= selector - 1;
        while (ready) {
            evtchn_port_t port = word * BITS + (unsigned int)__builtin_ctzl(ready);

            ready &= ready - 1;
            evtchn_clear(port);
            if (port < ARRAY_SIZE(upcall_events))
                upcall_events[port]++;
        }
    }
}

void upcall_enable(void)
{
    int rc;

    shared_info_map();
    set_handler(VECTOR_UPCALL, upcall);
    rc = hvm_param_set(HVM_PARAM_CALLBACK_IRQ,
                       ((u64)HVM_PARAM_CALLBACK_TYPE_VECTOR << 56) | VECTOR_UPCALL);
    if (rc)
        error("HVM_PARAM_CALLBACK_IRQ by vector: %d", rc);
}

void upcall_disable(void)
{
    hvm_param_set(HVM_PARAM_CALLBACK_IRQ, 0);
    set_handler(VECTOR_UPCALL, NULL);
}
