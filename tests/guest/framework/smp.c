/*
 * Further vCPUs, by VCPUOP_initialise and VCPUOP_up or by INIT and SIPI through the local APIC.
 * Facts: xen/vcpu.h, xen/hvm/hvm_vcpu.h; the architecture manuals for INIT and SIPI.
 */
#include "guest.h"
#include "layout.h"

#define MSR_APIC_BASE 0x1b
#define MSR_X2APIC_ICR 0x830
#define XAPIC_ICR 0xfee00300ul
#define ICR_INIT 0x4500
#define ICR_STARTUP 0x4600

/* Where the real-mode trampoline is copied: any free page below 1 MiB. */
#define TRAMPOLINE 0x8000ul

extern const u8 trampoline_start[], trampoline_end[], secondary_start[], secondary_start64[];

/* Read by smp_entry.S once the stack is set up. */
void (*secondary_fn)(void);
ulong secondary_stack;
void secondary_main(void);

u8 secondary_stacks[MAX_VCPUS][SECONDARY_STACK] __attribute__((aligned(16)));
static volatile bool taken;

void secondary_main(void)
{
    void (*fn)(void) = secondary_fn;

    traps_load();
    taken = true;
    fn();
    failure("a secondary vCPU's function returned");
    guest_crash();
}

static void prepare(unsigned int vcpu, void (*fn)(void))
{
    if (!vcpu || vcpu >= MAX_VCPUS)
        error("no stack for vCPU %u", vcpu);
    secondary_fn = fn;
    secondary_stack = (ulong)secondary_stacks[vcpu + 1];
    taken = false;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

/* The stack and the function travel in two shared words: one vCPU at a time. */
static void wait_taken(void)
{
    while (!taken)
        cpu_relax();
}

static void protected_context(struct vcpu_hvm_context *context)
{
    context->mode = VCPU_HVM_MODE_32B;
    context->cpu_regs.x86_32 = (struct vcpu_hvm_x86_32){
        .eip = (u32)(ulong)secondary_start,
        .cr0 = CR0_PE | CR0_ET,
        .cs_limit = ~0u,
        .ds_limit = ~0u,
        .ss_limit = ~0u,
        .es_limit = ~0u,
        .tr_limit = 0x67,
        .cs_ar = 0xc9b,
        .ds_ar = 0xc93,
        .ss_ar = 0xc93,
        .es_ar = 0xc93,
        .tr_ar = 0x8b,
    };
}

int vcpu_initialise(unsigned int vcpu, void (*fn)(void))
{
    struct vcpu_hvm_context context = {0};

    protected_context(&context);
    prepare(vcpu, fn);
    return (int)vcpu_op(VCPUOP_initialise, vcpu, &context);
}

/* As after a start-up message: CS at the trampoline, everything else at 0, 64 KiB each. */
static void real_context(struct vcpu_hvm_context *context)
{
    memcpy((void *)TRAMPOLINE, trampoline_start, (size_t)(trampoline_end - trampoline_start));
    context->mode = VCPU_HVM_MODE_32B;
    context->cpu_regs.x86_32 = (struct vcpu_hvm_x86_32){
        .cr0 = CR0_ET,
        .cs_base = TRAMPOLINE,
        .cs_limit = 0xffff,
        .ds_limit = 0xffff,
        .ss_limit = 0xffff,
        .es_limit = 0xffff,
        .tr_limit = 0xffff,
        .cs_ar = 0x9b,
        .ds_ar = 0x93,
        .ss_ar = 0x93,
        .es_ar = 0x93,
        .tr_ar = 0x8b,
    };
}

#ifdef __x86_64__
static void long_context(struct vcpu_hvm_context *context)
{
    context->mode = VCPU_HVM_MODE_64B;
    context->cpu_regs.x86_64 = (struct vcpu_hvm_x86_64){
        .rip = (ulong)secondary_start64,
        .rsp = secondary_stack,
        .cr0 = read_cr0(),
        .cr3 = read_cr3(),
        .cr4 = read_cr4(),
        .efer = rdmsr(0xc0000080),
    };
}
#endif

int vcpu_start_in(enum vcpu_mode mode, unsigned int vcpu, void (*fn)(void))
{
    struct vcpu_hvm_context context = {.pad = 0};
    int rc;

    prepare(vcpu, fn);
    if (mode == VCPU_REAL)
        real_context(&context);
    else
        protected_context(&context);
#ifdef __x86_64__
    if (mode == VCPU_LONG)
        long_context(&context);
#endif
    rc = (int)vcpu_op(VCPUOP_initialise, vcpu, &context);
    if (!rc)
        rc = (int)vcpu_op(VCPUOP_up, vcpu, NULL);
    if (!rc)
        wait_taken();
    return rc;
}

int vcpu_start(unsigned int vcpu, void (*fn)(void))
{
    return vcpu_start_in(VCPU_PROTECTED, vcpu, fn);
}

/* By the x2APIC where there is one, else by the xAPIC's registers in memory. */
static void send_ipi(u32 apic_id, u32 command)
{
    if (cpuid(1).ecx & 1u << 21) {
        wrmsr(MSR_APIC_BASE, rdmsr(MSR_APIC_BASE) | 0xc00);
        wrmsr(MSR_X2APIC_ICR, (u64)apic_id << 32 | command);
    } else {
        *(volatile u32 *)(XAPIC_ICR + 0x10) = apic_id << 24;
        *(volatile u32 *)XAPIC_ICR = command;
    }
}

void vcpu_start_sipi(unsigned int vcpu, u32 apic_id, void (*fn)(void))
{
    prepare(vcpu, fn);
    memcpy((void *)TRAMPOLINE, trampoline_start, (size_t)(trampoline_end - trampoline_start));
    send_ipi(apic_id, ICR_INIT);
    send_ipi(apic_id, ICR_STARTUP | (TRAMPOLINE >> PAGE_SHIFT));
    wait_taken();
}
