/*
 * IDT, TSS, exception table and expected exceptions.
 */
#include "guest.h"
#include "layout.h"

struct ex_entry {
    u32 from, to;
};
extern const struct ex_entry ex_table_start[], ex_table_end[];
extern const u8 trap_stubs[];
extern u64 gdt[];

/* Filled by context_save(): the callee-saved registers, stack, return address and flags. */
struct context {
    ulong slot[9];
};
int context_save(struct context *c) __attribute__((returns_twice));
void context_restore(struct context *c, int value) NORETURN;
void enter_user(ulong (*fn)(ulong), ulong arg, ulong stack_top);
void trap_dispatch(struct regs *regs);

struct trap last_traps[MAX_VCPUS];

static trap_handler handlers[256];
static struct context *catchers[MAX_VCPUS];
#define catcher (catchers[this_vcpu()])
static ulong user_result;

static u8 user_stack[8192] __attribute__((aligned(16)));
static u8 trap_stack[8192] __attribute__((aligned(16)));

#ifdef __x86_64__
static u8 double_fault_stack[4096] __attribute__((aligned(16)));

struct gate {
    u16 offset_low, selector;
    u8 ist, type;
    u16 offset_mid;
    u32 offset_high, zero;
};

static struct {
    u32 zero;
    u64 rsp[3];
    u64 zero2;
    u64 ist[7];
    u64 zero3;
    u16 zero4, io_map;
} __attribute__((packed)) tss;
#else
struct gate {
    u16 offset_low, selector;
    u8 ist, type;
    u16 offset_mid;
};

static struct {
    u32 link, esp0, ss0;
    u32 rest[22];
    u16 trap, io_map;
} tss;
#endif

static struct gate idt[256] __attribute__((aligned(16)));
static struct {
    u16 limit;
    ulong base;
} __attribute__((packed)) idt_descriptor;

static void report_registers(const struct regs *r)
{
    printk("Unexpected %s: vector %lu error 0x%lx at 0x%04lx:0x%lx flags 0x%lx\n",
           r->vector < 32 ? "exception" : "interrupt", r->vector, r->error, r->cs, r->ip, r->flags);
    printk("  ax 0x%lx bx 0x%lx cx 0x%lx dx 0x%lx\n", r->ax, r->bx, r->cx, r->dx);
    printk("  si 0x%lx di 0x%lx bp 0x%lx sp 0x%lx\n", r->si, r->di, r->bp,
           r->cs & 3 || sizeof(ulong) == 8 ? r->sp : (ulong)&r->sp);
#ifdef __x86_64__
    printk("  r8 0x%lx r9 0x%lx r10 0x%lx r11 0x%lx\n", r->r8, r->r9, r->r10, r->r11);
    printk("  r12 0x%lx r13 0x%lx r14 0x%lx r15 0x%lx\n", r->r12, r->r13, r->r14, r->r15);
#endif
    printk("  cr0 0x%lx cr2 0x%lx cr3 0x%lx cr4 0x%lx\n", read_cr0(), read_cr2(), read_cr3(), read_cr4());
}

void trap_dispatch(struct regs *regs)
{
    if (handlers[regs->vector]) {
        handlers[regs->vector](regs);
        return;
    }
    if (regs->vector == VECTOR_USER_RETURN && (regs->cs & 3) && catcher) {
        user_result = regs->ax;
        context_restore(catcher, 2);
    }
    if (regs->vector < 32) {
        struct trap t = {
            .vector = (int)regs->vector,
            .error = (u32)regs->error,
            .ip = regs->ip,
            .cr2 = read_cr2(),
            .cs = (u16)regs->cs,
        };
        for (const struct ex_entry *e = ex_table_start; e < ex_table_end; e++) {
            if (e->from == regs->ip) {
                last_trap = t;
                regs->ip = e->to;
                return;
            }
        }
        if (catcher) {
            last_trap = t;
            context_restore(catcher, 1);
        }
    }
    report_registers(regs);
    guest_crash();
}

int trap_of(void (*fn)(void *), void *arg)
{
    struct context c, *outer = catcher;

    last_trap.vector = -1;
    if (context_save(&c) == 0) {
        catcher = &c;
        fn(arg);
    }
    catcher = outer;
    return last_trap.vector;
}

int user_call(ulong (*fn)(ulong), ulong arg, ulong *result)
{
    struct context c, *outer = catcher;

    last_trap.vector = -1;
    if (context_save(&c) == 0) {
        catcher = &c;
        enter_user(fn, arg, (ulong)(user_stack + sizeof(user_stack)));
    }
    catcher = outer;
#ifndef __x86_64__
    asm volatile("mov %0, %%ds; mov %0, %%es" ::"r"(SEL_DATA) : "memory");
#endif
    if (result)
        *result = user_result;
    return last_trap.vector;
}

void set_handler(unsigned int vector, trap_handler handler)
{
    handlers[vector] = handler;
}

int try_read8(const volatile void *p, u8 *v)
{
    u8 got = 0;
    int trap = TRAP_ASM("movb (%1), %0", : "+q"(got) : "r"(p) : "memory");
    *v = got;
    return trap;
}

int try_read32(const volatile void *p, u32 *v)
{
    u32 got = 0;
    int trap = TRAP_ASM("movl (%1), %0", : "+r"(got) : "r"(p) : "memory");
    *v = got;
    return trap;
}

int try_write32(volatile void *p, u32 v)
{
    return TRAP_ASM("movl %0, (%1)", ::"r"(v), "r"(p) : "memory");
}

int try_rdmsr(u32 msr, u64 *v)
{
    u32 lo = 0, hi = 0;
    int trap = TRAP_ASM("rdmsr", : "+a"(lo), "+d"(hi) : "c"(msr) : "memory");
    *v = ((u64)hi << 32) | lo;
    return trap;
}

int try_wrmsr(u32 msr, u64 v)
{
    return TRAP_ASM("wrmsr", ::"c"(msr), "a"((u32)v), "d"((u32)(v >> 32)) : "memory");
}

void traps_load(void)
{
    asm volatile("lidt %0" ::"m"(idt_descriptor));
}

void traps_init(void)
{
    ulong base = (ulong)&tss;

    for (unsigned int i = 0; i < 256; i++) {
        ulong stub = (ulong)trap_stubs + 16 * i;
        idt[i].offset_low = (u16)stub;
        idt[i].offset_mid = (u16)(stub >> 16);
        idt[i].selector = SEL_CODE;
        /* #BP and #OF come from CPL 3 by INT3 and INTO, so their gates are open to it. */
        idt[i].type = i == VECTOR_USER_RETURN || i == X86_EXC_BP || i == X86_EXC_OF ? 0xee : 0x8e;
    }
#ifdef __x86_64__
    idt[X86_EXC_DF].ist = 1;
    tss.rsp[0] = (ulong)(trap_stack + sizeof(trap_stack));
    tss.ist[0] = (ulong)(double_fault_stack + sizeof(double_fault_stack));
#else
    tss.esp0 = (ulong)(trap_stack + sizeof(trap_stack));
    tss.ss0 = SEL_DATA;
#endif
    tss.io_map = sizeof(tss);
    gdt[SEL_TSS / 8] = (sizeof(tss) - 1) | ((u64)(base & 0xffffff) << 16) | ((u64)0x89 << 40) |
                       ((u64)(base >> 24) << 56);
    idt_descriptor.limit = sizeof(idt) - 1;
    idt_descriptor.base = (ulong)idt;
    traps_load();
    asm volatile("ltr %w0" ::"r"(SEL_TSS));
}
