/*
 * upcall.lapic.* and x2apic.*: upcalls through the local APIC, and its registers by MSR.
 */
#include "answers.h"

#define APIC 0xfee00000ul
#define APIC_EOI 0xb0
#define APIC_SPIV 0xf0
#define APIC_IRR 0x200
#define LAPIC_UPCALL 0xf5
#define SELF_IPI 0xf6
#define MSR_APIC_BASE 0x1b
#define MSR_X2APIC 0x800

static volatile u32 self_ipis, lapic_upcalls;

static void end_interrupt(void)
{
    if (rdmsr(MSR_APIC_BASE) & 0x400)
        wrmsr(MSR_X2APIC + (APIC_EOI >> 4), 0);
    else
        *(volatile u32 *)(APIC + APIC_EOI) = 0;
}

static void on_upcall(struct regs *regs)
{
    (void)regs;
    lapic_upcalls++;
    vcpu_infos[0]->evtchn_upcall_pending = 0;
    end_interrupt();
}

static void on_self_ipi(struct regs *regs)
{
    (void)regs;
    self_ipis++;
    end_interrupt();
}

static u32 latched(void)
{
    return *(volatile u32 *)(APIC + APIC_IRR + LAPIC_UPCALL / 32 * 16) >> LAPIC_UPCALL % 32 & 1;
}

static void ask_upcall_vector(void)
{
    struct xen_hvm_evtchn_upcall_vector op = {.vcpu = 0, .vector = LAPIC_UPCALL};
    struct loop l = make_loop();

    set_handler(LAPIC_UPCALL, on_upcall);
    answer_rc("upcall.lapic.disabled.set", hvm_op(HVMOP_set_evtchn_upcall_vector, &op));
    answer("upcall.lapic.disabled.latched", "%u", latched());
    *(volatile u32 *)(APIC + APIC_SPIV) = 0x1ff;
    evtchn_clear(l.far);
    evtchn_unmask_bit(l.far);
    calm(0);
    answer_rc("upcall.lapic.set", hvm_op(HVMOP_set_evtchn_upcall_vector, &op));
    evtchn_send(l.near);
    answer("upcall.lapic.latched", "%u", latched());
    /* The callback of the whole domain comes first, this vCPU's own vector after it. */
    interrupt_window();
    sched_op(SCHEDOP_yield, NULL);
    interrupt_window();
    answer("upcall.lapic.count", "%u", lapic_upcalls);
    evtchn_mask(l.far);
    close_loop(l);
    calm(0);
}

static void ask_msr(u32 msr)
{
    u64 value = 0;
    int trap = try_rdmsr(msr, &value);

    answer(name("x2apic.%08x", msr), "%d:%016llx", trap, (unsigned long long)value);
}

void ask_apic(void)
{
    u64 base = rdmsr(MSR_APIC_BASE);

    ask_upcall_vector();
    answer_rc("x2apic.enable", try_wrmsr(MSR_APIC_BASE, base | 0xc00));
    for (u32 msr = MSR_X2APIC; msr < MSR_X2APIC + 0x40; msr++)
        ask_msr(msr);
    ask_msr(MSR_X2APIC + 0xff);
    set_handler(SELF_IPI, on_self_ipi);
    wrmsr(MSR_X2APIC + 0x3f, SELF_IPI);
    interrupt_window();
    answer("x2apic.selfipi", "%u", self_ipis);
    answer_rc("x2apic.eoi.bad", try_wrmsr(MSR_X2APIC + (APIC_EOI >> 4), 1));
    answer_rc("x2apic.back_to_xapic", try_wrmsr(MSR_APIC_BASE, base));
}
