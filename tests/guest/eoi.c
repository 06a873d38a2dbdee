/*
 * eoi: upcalls by a vector of the vCPU's own and the end of each, written to the x2APIC.
 *
 * Purpose: a vCPU that writes its EOIs with interrupts disabled gets every event, one sent from the
 * handler too, whether or not the hypervisor sees the EOI; one that enables interrupts before its
 * EOI is never interrupted there by the same vector, which is in service until then. In
 * xAPIC mode the MSR of the EOI does not exist.
 * Blind spots: a guest that changes its habit while it runs (docs/limits.md).
 *
 * Options: --vcpus 2
 */
#include "guest.h"

const char test_title[] = "End of interrupt";

#define VECTOR 0xe3
#define X2APIC_EOI 0x80b
#define X2APIC_SPIV 0x80f
#define X2APIC_ISR_E0 0x817
#define APIC_BASE 0x1b
#define APIC_BASE_X2APIC (1u << 10)
#define ROUNDS 400

static struct {
    volatile u32 taken, depth, deepest, in_service;
    volatile bool nest, again;
    evtchn_port_t port;
} state[2];
static volatile bool finished;

static void handler(struct regs *regs)
{
    unsigned int vcpu = this_vcpu();
    typeof(&state[0]) s = &state[vcpu];
    struct vcpu_info *vi = &shared_info->vcpu_info[vcpu];

    (void)regs;
    s->taken++;
    if (++s->depth > s->deepest)
        s->deepest = s->depth;
    __atomic_store_n(&vi->evtchn_upcall_pending, 0, __ATOMIC_SEQ_CST);
    __atomic_store_n(&vi->evtchn_pending_sel, 0, __ATOMIC_SEQ_CST);
    evtchn_clear(s->port);
    if (s->again) {
        s->again = false;
        evtchn_send(s->port);
    }
    if (s->nest) {
        irq_enable();
        s->in_service += rdmsr(X2APIC_ISR_E0) >> (VECTOR & 31) & 1;
        irq_disable();
    }
    wrmsr(X2APIC_EOI, 0);
    s->depth--;
}

/* Sends events to itself, each of which has one more sent from its handler if `twice`. */
static void rounds(const char *habit, bool twice)
{
    typeof(&state[0]) s = &state[this_vcpu()];

    s->taken = s->deepest = s->in_service = 0;
    for (u32 i = 1; i <= ROUNDS; i++) {
        u32 wanted = twice ? 2 * i : i;

        s->again = twice;
        evtchn_send(s->port);
        irq_enable();
        for (u64 spins = 0; s->taken < wanted; spins++) {
            if (spins > 1000000000ull)
                error("%s: upcall %u does not come", habit, s->taken + 1);
            cpu_relax();
        }
        irq_disable();
        if (s->taken != wanted)
            failure("%s: %u upcalls in round %u", habit, s->taken, i);
    }
    if (s->deepest != 1)
        failure("%s: upcalls %u deep", habit, s->deepest);
    if (s->nest && s->in_service != s->taken)
        failure("%s: in service %u times of %u", habit, s->in_service, s->taken);
    printk("%s: %u upcalls\n", habit, s->taken);
}

static void enter_x2apic(void)
{
    wrmsr(APIC_BASE, rdmsr(APIC_BASE) | APIC_BASE_X2APIC);
    wrmsr(X2APIC_SPIV, 0x1ff);
}

static void second(void)
{
    enter_x2apic();
    state[1].nest = true;
    rounds("enabled before the EOI", false);
    rounds("enabled before the EOI, and an event from the handler", true);
    finished = true;
    for (;;)
        cpu_relax();
}

void test_main(void)
{
    u64 base;

    if (!xen_present || !(cpuid(1).ecx & 1u << 21))
        skip("no x2APIC");
    shared_info_map();
    set_handler(VECTOR, handler);
    enter_x2apic();
    for (u32 i = 0; i < 2; i++) {
        struct xen_hvm_evtchn_upcall_vector v = {.vcpu = i, .vector = VECTOR};

        check_rc("port", evtchn_bind_ipi(i, &state[i].port), 0);
        evtchn_unmask_bit(state[i].port);
        check_rc("vector", (int)hvm_op(HVMOP_set_evtchn_upcall_vector, &v), 0);
    }
    /* Upcalls that setting the vector may have asked for. */
    irq_enable();
    irq_disable();
    rounds("disabled until the EOI", false);
    rounds("disabled, and an event from the handler", true);

    vcpu_start_sipi(1, 2, second);
    for (u64 spins = 0; !finished; spins++) {
        if (spins > 20000000000ull)
            error("vCPU 1 does not finish");
        cpu_relax();
    }

    base = rdmsr(APIC_BASE);
    wrmsr(APIC_BASE, base & ~(3ul << 10));
    wrmsr(APIC_BASE, base & ~(u64)APIC_BASE_X2APIC);
    check_signed("EOI in xAPIC mode", try_wrmsr(X2APIC_EOI, 0), X86_EXC_GP);
    success();
}
