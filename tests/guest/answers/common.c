/*
 * Printing answers, and the helpers that several sections use.
 */
#include "answers.h"

domid_t own;
struct vcpu_info *vcpu_infos[2];
volatile u32 upcall_count;

const char *name(const char *fmt, ...)
{
    static char text[80];
    va_list args;

    va_start(args, fmt);
    vsnprintk(text, sizeof(text), fmt, args);
    va_end(args);
    return text;
}

void answer(const char *question, const char *fmt, ...)
{
    char text[200];
    va_list args;

    va_start(args, fmt);
    vsnprintk(text, sizeof(text), fmt, args);
    va_end(args);
    printk("%s\t%s\n", question, text);
}

void answer_read(const char *question, const volatile void *address)
{
    u32 value = 0;
    int trap = try_read32(address, &value);

    answer(question, "%d:%08x", trap, value);
}

void *unmapped(void)
{
    return window_map(WINDOW_PAGES - 1, 0, 0);
}

void *noram(void)
{
    static ulong gfn;

    if (!gfn)
        gfn = alloc_hole(1);
    return window_map(WINDOW_PAGES - 3, gfn << PAGE_SHIFT, PTE_PRESENT | PTE_WRITE);
}

u64 now(void)
{
    volatile struct vcpu_time_info *src = &vcpu_infos[0]->time;
    struct vcpu_time_info t;

    do {
        t.version = src->version & ~1u;
        barrier();
        t.tsc_timestamp = src->tsc_timestamp;
        t.system_time = src->system_time;
        t.tsc_to_system_mul = src->tsc_to_system_mul;
        t.tsc_shift = src->tsc_shift;
        barrier();
    } while (t.version != src->version);
    return tsc_to_ns(&t, rdtsc());
}

void calm(unsigned int vcpu)
{
    __atomic_store_n(&vcpu_infos[vcpu]->evtchn_pending_sel, 0, __ATOMIC_SEQ_CST);
    __atomic_store_n(&vcpu_infos[vcpu]->evtchn_upcall_pending, 0, __ATOMIC_SEQ_CST);
}

int bind_vcpu(evtchn_port_t port, u32 vcpu)
{
    struct evtchn_bind_vcpu op = {.port = port, .vcpu = vcpu};

    return (int)event_channel_op(EVTCHNOP_bind_vcpu, &op);
}

static const char *domain_name(domid_t dom)
{
    return dom == own ? "own" : dom ? "other" : "0";
}

void answer_status(const char *question, domid_t dom, evtchn_port_t port)
{
    struct evtchn_status s;
    int rc = evtchn_status(dom, port, &s);

    if (rc) {
        answer_rc(question, rc);
        return;
    }
    switch (s.status) {
    case EVTCHNSTAT_unbound:
        answer(question, "0 status=1 vcpu=%u dom=%s", s.vcpu, domain_name(s.u.unbound.dom));
        break;
    case EVTCHNSTAT_interdomain:
        answer(question, "0 status=2 vcpu=%u dom=%s port=%s", s.vcpu, domain_name(s.u.interdomain.dom),
               zero_or_not(s.u.interdomain.port));
        break;
    case EVTCHNSTAT_pirq:
        answer(question, "0 status=3 vcpu=%u pirq=%u", s.vcpu, s.u.pirq);
        break;
    case EVTCHNSTAT_virq:
        answer(question, "0 status=4 vcpu=%u virq=%u", s.vcpu, s.u.virq);
        break;
    default:
        answer(question, "0 status=%u vcpu=%u", s.status, s.vcpu);
        break;
    }
}

void answer_bits(const char *question, evtchn_port_t port)
{
    answer(question, "pend=%d mask=%d sel=%d up=%d", evtchn_pending(port), evtchn_masked(port),
           vcpu_infos[0]->evtchn_pending_sel != 0, vcpu_infos[0]->evtchn_upcall_pending);
}

struct loop make_loop(void)
{
    struct loop loop = {0, 0};

    if (evtchn_alloc_unbound(DOMID_SELF, DOMID_SELF, &loop.near) ||
        evtchn_bind_interdomain(DOMID_SELF, loop.near, &loop.far))
        error("no loop of two ports");
    return loop;
}

void close_loop(struct loop loop)
{
    evtchn_close(loop.far);
    evtchn_close(loop.near);
}

void set_pending(evtchn_port_t port)
{
    __atomic_or_fetch(&shared_info->evtchn_pending[port / 64], 1ul << port % 64, __ATOMIC_SEQ_CST);
}

static void on_upcall(struct regs *regs)
{
    ulong selector;

    (void)regs;
    upcall_count++;
    __atomic_store_n(&vcpu_infos[0]->evtchn_upcall_pending, 0, __ATOMIC_SEQ_CST);
    selector = __atomic_exchange_n(&vcpu_infos[0]->evtchn_pending_sel, 0, __ATOMIC_SEQ_CST);
    for (; selector; selector &= selector - 1) {
        unsigned int word = (unsigned int)__builtin_ctzl(selector);
        ulong open = ~READ_ONCE(shared_info->evtchn_mask[word]);

        __atomic_and_fetch(&shared_info->evtchn_pending[word], ~open, __ATOMIC_SEQ_CST);
    }
}

static void on_upcall_only(struct regs *regs)
{
    (void)regs;
    upcall_count++;
    __atomic_store_n(&vcpu_infos[0]->evtchn_upcall_pending, 0, __ATOMIC_SEQ_CST);
}

void count_upcalls(unsigned int vector)
{
    upcall_count = 0;
    set_handler(vector, on_upcall);
}

void count_upcalls_only(unsigned int vector)
{
    upcall_count = 0;
    set_handler(vector, on_upcall_only);
}

void set_callback_vector(u8 vector)
{
    if (hvm_param_set(HVM_PARAM_CALLBACK_IRQ, (u64)HVM_PARAM_CALLBACK_TYPE_VECTOR << 56 | vector))
        error("no callback by vector");
}

void interrupt_window(void)
{
    irq_enable();
    asm volatile("nop; nop" ::: "memory");
    irq_disable();
}
