/*
 * Exceptions and interrupts: what a test does when it expects one.
 */
#ifndef GUEST_TRAPS_H
#define GUEST_TRAPS_H

#include "x86.h"

/* The registers at an interruption. In 32-bit guests sp and ss are there only if cs has RPL 3. */
struct regs {
#ifdef __x86_64__
    ulong r15, r14, r13, r12, r11, r10, r9, r8;
#endif
    ulong di, si, bp, bx, dx, cx, ax;
    ulong vector, error;
    ulong ip, cs, flags, sp, ss;
};

/* A vCPU is known by its stack. One that the framework did not start counts as the first. */
#define MAX_VCPUS 8
#define SECONDARY_STACK 8192
extern u8 secondary_stacks[MAX_VCPUS][SECONDARY_STACK];
static inline unsigned int this_vcpu(void)
{
    ulong at = (ulong)__builtin_frame_address(0) - (ulong)secondary_stacks;

    return at < sizeof(secondary_stacks) ? (unsigned int)(at / SECONDARY_STACK) : 0;
}

/* The last exception that this vCPU expected; vector is -1 if there was none. */
struct trap {
    int vector;
    u32 error;
    ulong ip, cr2;
    u16 cs;
};
extern struct trap last_traps[MAX_VCPUS];
#define last_trap (last_traps[this_vcpu()])

/*
 * An entry for the exception table: a fault at label `from` resumes at label `to`, with last_trap
 * set. For use inside an asm statement that clobbers memory, after last_trap.vector = -1.
 */
#define EX_TABLE(from, to)                   \
    ".pushsection .ex_table, \"a\", @progbits\n" \
    ".long " from ", " to "\n"               \
    ".popsection\n"

/* Runs one instruction that may fault; operands as in asm. The value is the vector or -1. */
#define TRAP_ASM(insn, ...)                                                                        \
    ({                                                                                             \
        last_trap.vector = -1;                                                                     \
        asm volatile("771: " insn "\n772:\n" EX_TABLE("771b", "772b") __VA_ARGS__);                \
        barrier();                                                                                 \
        READ_ONCE(last_trap.vector);                                                               \
    })

int try_read8(const volatile void *p, u8 *v);
int try_read32(const volatile void *p, u32 *v);
int try_write32(volatile void *p, u32 v);
int try_rdmsr(u32 msr, u64 *v);
int try_wrmsr(u32 msr, u64 v);

/* Calls fn(arg); an exception anywhere inside ends the call. The value is the vector or -1. */
int trap_of(void (*fn)(void *), void *arg);

/* Runs fn(arg) at CPL 3 on the first vCPU and stores its result. The value is -1, or the vector that ended it. */
int user_call(ulong (*fn)(ulong), ulong arg, ulong *result);

/* Takes over a vector; NULL gives it back. The handler runs with interrupts off. */
typedef void (*trap_handler)(struct regs *regs);
void set_handler(unsigned int vector, trap_handler handler);

void traps_init(void);
void traps_load(void);

#endif
