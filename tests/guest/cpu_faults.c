/*
 * cpu_faults: exceptions that are the guest's own affair.
 *
 * Purpose: each reaches the guest's handler once, with vector, error code, CR2 and instruction
 * pointer as the architecture has them, from CPL 0 and CPL 3; also for #UD, which an engine may
 * intercept to find hypercalls, at the very end of a page.
 * Blind spots: what emulated CPUs are known to get wrong (which of #SS and #GP, the error code of a
 * refused INT, non-canonical values in MSRs); machine checks; double faults; FPU and vector
 * exceptions.
 */
#include "guest.h"
#include "layout.h"

const char test_title[] = "CPU exceptions";
const bool test_bare = true;

/* Runs instructions of which the one at label 1 faults with that vector. */
#define CHECK_FAULT(what, vec, err, before, insn, ...)                                            \
    do {                                                                                          \
        ulong ip_;                                                                                \
        last_trap.vector = -1;                                                                    \
        asm volatile(before "\n773: " insn "\n774:\n" EX_TABLE("773b", "774b") __VA_ARGS__);      \
        asm volatile("mov $773b, %0" : "=r"(ip_));                                                \
        check_trap(what, vec, err, ip_);                                                          \
    } while (0)

static void check_trap(const char *what, int vector, u32 error, ulong ip)
{
    if (last_trap.vector != vector || last_trap.error != error || last_trap.ip != ip)
        failure("%s: vector %d error 0x%x ip 0x%lx, want vector %d error 0x%x ip 0x%lx", what,
                last_trap.vector, last_trap.error, last_trap.ip, vector, error, ip);
}

static volatile unsigned int seen;
static volatile ulong seen_ip, seen_dr6;

static void count_trap(struct regs *regs)
{
    seen++;
    seen_ip = regs->ip;
    if (regs->vector == X86_EXC_DB) {
        asm volatile("mov %%db6, %0" : "=r"(seen_dr6));
        regs->flags &= ~(ulong)EFLAGS_TF;
    }
}

static void test_faults(void)
{
    CHECK_FAULT("ud2", X86_EXC_UD, 0, "", "ud2", ::: "memory");
    CHECK_FAULT("#UD by LOCK", X86_EXC_UD, 0, "", ".byte 0xf0, 0x90", ::: "memory");
    CHECK_FAULT("#DE by zero", X86_EXC_DE, 0, "xor %%edx, %%edx; xor %%ecx, %%ecx; mov $1, %%eax",
                "div %%ecx", ::: "eax", "ecx", "edx", "memory");
    CHECK_FAULT("#DE by overflow", X86_EXC_DE, 0, "mov $1, %%edx; mov $1, %%ecx; xor %%eax, %%eax",
                "div %%ecx", ::: "eax", "ecx", "edx", "memory");
    CHECK_FAULT("#GP by a selector", X86_EXC_GP, 0x1230, "mov $0x1230, %%eax", "mov %%eax, %%es", ::
                : "eax", "memory");
    CHECK_FAULT("#GP by a TSS as data", X86_EXC_GP, SEL_TSS, "mov $0x38, %%eax", "mov %%eax, %%es", ::
                : "eax", "memory");
#ifdef __x86_64__
    CHECK_FAULT("#GP by a non-canonical address", X86_EXC_GP, 0, "", "mov (%0), %%al", ::"r"(1ul << 47)
                : "eax", "memory");
#endif
}

static void test_traps(void)
{
    ulong next;

    seen = 0;
    set_handler(X86_EXC_BP, count_trap);
    asm volatile("int3\n1: mov $1b, %0" : "=r"(next)::"memory");
    check_hex("#BP: once", seen, 1);
    check_hex("#BP: ip behind it", seen_ip, next);

    seen = 0;
    set_handler(X86_EXC_DB, count_trap);
    asm volatile("push %1; popf\n nop\n1: mov $1b, %0" : "=r"(next) : "r"(read_flags() | EFLAGS_TF) : "memory", "cc");
    check_hex("#DB by TF: once", seen, 1);
    check_hex("#DB by TF: ip", seen_ip, next);
    check_hex("#DB by TF: DR6.BS", seen_dr6 >> 14 & 1, 1);
    set_handler(X86_EXC_DB, NULL);

    seen = 0;
    set_handler(0x42, count_trap);
    asm volatile("int $0x42\n1: mov $1b, %0" : "=r"(next)::"memory");
    check_hex("int 0x42: once", seen, 1);
    check_hex("int 0x42: ip behind it", seen_ip, next);
}

static ulong user_port(ulong port)
{
    return inb((u16)port);
}

static ulong user_halt(ulong arg)
{
    asm volatile("hlt");
    return arg;
}

static ulong user_undefined(ulong arg)
{
    asm volatile("ud2");
    return arg;
}

static ulong user_interrupt(ulong arg)
{
    asm volatile("int $0x43");
    return arg;
}

static void check_user(const char *what, ulong (*fn)(ulong), ulong arg, int vector, u32 error)
{
    int got = user_call(fn, arg, NULL);

    if (got != vector || (got != -1 && last_trap.error != error))
        failure("%s: vector %d error 0x%x, want vector %d error 0x%x", what, got, last_trap.error, vector, error);
}

static void test_user(void)
{
    check_user("CPL 3 IN", user_port, 0x10, X86_EXC_GP, 0);
    check_user("CPL 3 HLT", user_halt, 0, X86_EXC_GP, 0);
    check_user("CPL 3 ud2", user_undefined, 0, X86_EXC_UD, 0);
    check_signed("CPL 3 INT", user_call(user_interrupt, 0, NULL), X86_EXC_GP);
}

#if HAVE_PAGING
static void check_page_fault(const char *what, int trap, u32 error, const volatile void *address)
{
    if (trap != X86_EXC_PF || last_trap.error != error || last_trap.cr2 != (ulong)address)
        failure("%s: vector %d error 0x%x cr2 0x%lx, want error 0x%x cr2 0x%lx", what, trap,
                last_trap.error, last_trap.cr2, error, (ulong)address);
}

static ulong user_read(ulong address)
{
    return *(volatile u32 *)address;
}

static void jump_to(void *to)
{
    asm volatile("call *%0" ::"r"(to) : "memory");
}

static void test_page_faults(void)
{
    u8 *page = alloc_pages(1);
    volatile u32 *va = window_map(0, 0, 0);
    u32 value;

    check_page_fault("#PF read", try_read32(va + 5, &value), 0, va + 5);
    check_page_fault("#PF write", try_write32(va + 6, 0), 2, va + 6);
    window_map(0, (ulong)page, PTE_PRESENT);
    check_page_fault("#PF write to read-only", try_write32(va, 0), 3, va);
    check_signed("read of read-only", try_read32(va, &value), -1);
    check_page_fault("#PF user", user_call(user_read, (ulong)va, NULL), 5, va);
    window_map(0, (ulong)page, PTE_PRESENT | PTE_USER);
    check_signed("user read", user_call(user_read, (ulong)va, NULL), -1);

    window_map(0, 0, 0);
    /* With NX in force the error code tells a fetch (bit 4) from a read. */
    check_page_fault("#PF fetch", trap_of(jump_to, (void *)va), CONFIG_PAGING >= 3 ? 0x10 : 0, va);
    check_hex("#PF fetch: ip", last_trap.ip, (ulong)va);
#if CONFIG_PAGING >= 3
    page[0] = 0xc3;
    window_map(0, (ulong)page | 1ull << 63, PTE_PRESENT);
    check_page_fault("#PF fetch of a no-execute page", trap_of(jump_to, (void *)va), 0x11, va);
#endif
}

/* Two bytes that are an undefined instruction, at the end of the last mapped page. */
static void test_page_end(void)
{
    u8 *page = alloc_pages(1);
    u8 *va = window_map(16, (ulong)page, PTE_PRESENT | PTE_WRITE);

    window_map(17, 0, 0);
    page[4094] = 0x0f;
    page[4095] = 0x0b;
    check_signed("ud2 at the end of a page", trap_of(jump_to, va + 4094), X86_EXC_UD);
    check_hex("ud2 at the end of a page: ip", last_trap.ip, (ulong)va + 4094);
    /* The first half of a VMCALL or VMMCALL: the fetch of the rest faults. */
    page[4095] = 0x01;
    check_page_fault("half a hypercall", trap_of(jump_to, va + 4094), CONFIG_PAGING >= 3 ? 0x10 : 0, va + 4096);
    check_hex("half a hypercall: ip", last_trap.ip, (ulong)va + 4094);
}
#endif

void test_main(void)
{
    test_faults();
    test_traps();
    test_user();
#if HAVE_PAGING
    test_page_faults();
    test_page_end();
#endif
    success();
}
