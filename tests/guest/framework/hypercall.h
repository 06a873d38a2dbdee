/*
 * Hypercalls by the hypercall page and inlined, for both register conventions.
 * Facts: xen/arch-x86/xen-x86_32.h and xen-x86_64.h.
 */
#ifndef GUEST_HYPERCALL_H
#define GUEST_HYPERCALL_H

#include "x86.h"

#include <xen/xen.h>

#define HYPERCALL_SLOT 32
extern u8 hypercall_page[4096];
/* True: VMMCALL. False: VMCALL. Follows the CPUID vendor, as an inlining kernel does. */
extern bool hypercall_vmmcall;

/*
 * The argument registers are in-out operands: Xen keeps them, but the interface allows it not to.
 */
#ifdef __x86_64__
#define HYPERCALL_ASM(insn, rax, ...)                                                      \
    ({                                                                                     \
        register ulong r10_ asm("r10") = a4;                                               \
        register ulong r8_ asm("r8") = a5;                                                 \
        asm volatile(insn                                                                  \
                     : "+a"(rax), "+D"(a1), "+S"(a2), "+d"(a3), "+r"(r10_), "+r"(r8_)      \
                     :                                                                     \
                     : "memory");                                                          \
        (long)rax;                                                                         \
    })
#define HYPERCALL_PAGE_INSN "call *%%rax"
#else
#define HYPERCALL_ASM(insn, rax, ...)                                                      \
    ({                                                                                     \
        asm volatile(insn                                                                  \
                     : "+a"(rax), "+b"(a1), "+c"(a2), "+d"(a3), "+S"(a4), "+D"(a5)         \
                     :                                                                     \
                     : "memory");                                                          \
        (long)rax;                                                                         \
    })
#define HYPERCALL_PAGE_INSN "call *%%eax"
#endif

static inline long hypercall5(u32 nr, ulong a1, ulong a2, ulong a3, ulong a4, ulong a5)
{
    ulong ax = (ulong)hypercall_page + nr * HYPERCALL_SLOT;
    return HYPERCALL_ASM(HYPERCALL_PAGE_INSN, ax);
}

static inline long hypercall_inline(ulong nr, ulong a1, ulong a2, ulong a3, ulong a4, ulong a5)
{
    ulong ax = nr;
    if (hypercall_vmmcall)
        return HYPERCALL_ASM("vmmcall", ax);
    return HYPERCALL_ASM("vmcall", ax);
}

#define hypercall0(nr) hypercall5(nr, 0, 0, 0, 0, 0)
#define hypercall1(nr, a) hypercall5(nr, (ulong)(a), 0, 0, 0, 0)
#define hypercall2(nr, a, b) hypercall5(nr, (ulong)(a), (ulong)(b), 0, 0, 0)
#define hypercall3(nr, a, b, c) hypercall5(nr, (ulong)(a), (ulong)(b), (ulong)(c), 0, 0)
#define hypercall4(nr, a, b, c, d) \
    hypercall5(nr, (ulong)(a), (ulong)(b), (ulong)(c), (ulong)(d), 0)

/* Each is the hypercall of that name in xen.h, without its __HYPERVISOR_ prefix. */
static inline long memory_op(unsigned int cmd, const volatile void *arg)
{
    return hypercall2(__HYPERVISOR_memory_op, cmd, arg);
}

static inline long xen_version(unsigned int cmd, const volatile void *arg)
{
    return hypercall2(__HYPERVISOR_xen_version, cmd, arg);
}

static inline long event_channel_op(unsigned int cmd, const volatile void *arg)
{
    return hypercall2(__HYPERVISOR_event_channel_op, cmd, arg);
}

static inline long sched_op(unsigned int cmd, const volatile void *arg)
{
    return hypercall2(__HYPERVISOR_sched_op, cmd, arg);
}

static inline long hvm_op(unsigned int cmd, const volatile void *arg)
{
    return hypercall2(__HYPERVISOR_hvm_op, cmd, arg);
}

static inline long physdev_op(unsigned int cmd, const volatile void *arg)
{
    return hypercall2(__HYPERVISOR_physdev_op, cmd, arg);
}

static inline long vcpu_op(unsigned int cmd, unsigned int vcpu, const volatile void *arg)
{
    return hypercall3(__HYPERVISOR_vcpu_op, cmd, vcpu, arg);
}

static inline long grant_table_op(unsigned int cmd, const volatile void *arg, unsigned int count)
{
    return hypercall3(__HYPERVISOR_grant_table_op, cmd, arg, count);
}

static inline long console_io(unsigned int cmd, unsigned int count, const volatile void *arg)
{
    return hypercall3(__HYPERVISOR_console_io, cmd, count, arg);
}

static inline long multicall(const volatile void *calls, unsigned int count)
{
    return hypercall2(__HYPERVISOR_multicall, calls, count);
}

static inline long vm_assist(unsigned int cmd, unsigned int type)
{
    return hypercall2(__HYPERVISOR_vm_assist, cmd, type);
}

/* A 64-bit argument takes two registers in a 32-bit guest. */
static inline long set_timer_op(u64 deadline)
{
#ifdef __x86_64__
    return hypercall1(__HYPERVISOR_set_timer_op, deadline);
#else
    return hypercall2(__HYPERVISOR_set_timer_op, (u32)deadline, (u32)(deadline >> 32));
#endif
}

#endif
