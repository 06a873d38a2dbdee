/*
 * hypercall_page: the two ways into Xen.
 *
 * Purpose: the page is filled as Xen fills it, its MSR reads zero, calls work through the page and
 * inlined, keep every register, answer -ENOSYS for numbers that do not exist, and are refused from
 * CPL 3. An inlined call works across a page boundary as well.
 * Blind spots: the instruction of the other CPU vendor; pages beyond the first; a page at a second
 * address.
 */
#include "guest.h"

const char test_title[] = "Hypercall page";

#define VERSION 0x00040011
#define IRET_SLOT 23

static void test_slots(void)
{
    const u8 tail[4] = {0x0f, 0x01, hypercall_vmmcall ? 0xd9 : 0xc1, 0xc3};
    unsigned int filled = 0;

    for (u32 nr = 0; nr < PAGE_SIZE / HYPERCALL_SLOT; nr++) {
        const u8 *slot = hypercall_page + nr * HYPERCALL_SLOT;
        const u8 head[5] = {0xb8, (u8)nr};

        if (nr == IRET_SLOT) {
            if (slot[0] != 0x0f || slot[1] != 0x0b)
                failure("slot of iret: 0x%02x 0x%02x, want ud2", slot[0], slot[1]);
        } else if (memcmp(slot, head, sizeof(head))) {
            failure("slot %u: does not load %u into EAX", nr, nr);
        } else if (memcmp(slot + sizeof(head), tail, sizeof(tail))) {
            failure("slot %u: 0x%02x 0x%02x 0x%02x 0x%02x after the MOV", nr, slot[5], slot[6], slot[7], slot[8]);
        } else {
            filled++;
        }
    }
    check_signed("hcpage.mov_eax", filled, 127);
}

static void test_msr(void)
{
    u32 msr = cpuid(xen_leaf + 2).ebx;
    u64 value = ~0ull;

    check_signed("hcpage.rdmsr trap", try_rdmsr(msr, &value), -1);
    check_hex("hcpage.rdmsr", value, 0);
}

/* In the order of regs_in and regs_out. */
#ifdef __x86_64__
#define REGS 15
#define LOAD(i, r) "mov regs_in+8*" #i ", %" #r "\n"
#define STORE(i, r) "mov %" #r ", regs_out+8*" #i "\n"
#define EACH(op)                                                                                     \
    op(0, rax) op(1, rdi) op(2, rsi) op(3, rdx) op(4, rcx) op(5, rbx) op(6, rbp) op(7, r8) op(8, r9) \
    op(9, r10) op(10, r11) op(11, r12) op(12, r13) op(13, r14) op(14, r15)
#define SAVE "push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
#define RESTORE "pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx\n"
#else
#define REGS 7
#define LOAD(i, r) "mov regs_in+4*" #i ", %" #r "\n"
#define STORE(i, r) "mov %" #r ", regs_out+4*" #i "\n"
#define EACH(op) op(0, eax) op(1, ebx) op(2, ecx) op(3, edx) op(4, esi) op(5, edi) op(6, ebp)
#define SAVE "push %ebx; push %ebp; push %esi; push %edi\n"
#define RESTORE "pop %edi; pop %esi; pop %ebp; pop %ebx\n"
#endif

/* XENVER_version is 0 and takes no argument, so all others are free to hold patterns. */
ulong regs_in[REGS], regs_out[REGS];
void call_by_page(void);
void call_by_vmcall(void);
void call_by_vmmcall(void);
asm(".text\n"
    "call_by_page:\n" SAVE EACH(LOAD) "call hypercall_page + 17 * 32\n" EACH(STORE) RESTORE "ret\n"
    "call_by_vmcall:\n" SAVE EACH(LOAD) "vmcall\n" EACH(STORE) RESTORE "ret\n"
    "call_by_vmmcall:\n" SAVE EACH(LOAD) "vmmcall\n" EACH(STORE) RESTORE "ret\n");

static void test_registers(void (*call)(void), const char *how)
{
    regs_in[0] = __HYPERVISOR_xen_version;
    regs_in[1] = XENVER_version;
    regs_in[2] = 0;
    for (unsigned int i = 3; i < REGS; i++)
        regs_in[i] = (ulong)0xfedcba9876543210ull + i * 0x01010101ul;
    memset(regs_out, 0x55, sizeof(regs_out));
    call();
    check_hex(how, regs_out[0], VERSION);
    for (unsigned int i = 1; i < REGS; i++)
        if (regs_out[i] != regs_in[i])
            failure("hc.regs.kept (%s): register %u became 0x%lx", how, i, regs_out[i]);
}

static void test_numbers(void)
{
    static const u32 absent[] = {64, 127, 0x3fffffff, 0x40000000};
    static const u32 absent_slots[] = {2, 3, 4, 5, 8, 9, 10, 11, 16, 64, 127};

    for (unsigned int i = 0; i < ARRAY_SIZE(absent); i++)
        if (hypercall_inline(absent[i], 0, 0, 0, 0, 0) != -XEN_ENOSYS)
            failure("hc.nr.%x inlined: not -ENOSYS", absent[i]);
    for (unsigned int i = 0; i < ARRAY_SIZE(absent_slots); i++)
        if (hypercall0(absent_slots[i]) != -XEN_ENOSYS)
            failure("hc.nr.%x by the page: not -ENOSYS", absent_slots[i]);
#ifdef __x86_64__
    /* All of RAX is the number. */
    ulong rax = 0xdead000000000000ul | __HYPERVISOR_xen_version;
    if (hypercall_vmmcall)
        asm volatile("vmmcall" : "+a"(rax) : "D"(XENVER_version), "S"(0) : "memory");
    else
        asm volatile("vmcall" : "+a"(rax) : "D"(XENVER_version), "S"(0) : "memory");
    check_signed("number with high bits", (long)rax, -XEN_ENOSYS);
#endif
}

static ulong user_by_page(ulong cmd)
{
    return (ulong)xen_version((u32)cmd, NULL);
}

static ulong user_inline(ulong cmd)
{
    return (ulong)hypercall_inline(__HYPERVISOR_xen_version, cmd, 0, 0, 0, 0);
}

static void test_user(void)
{
    ulong result = 0;

    check_signed("by the page from CPL 3: trap", user_call(user_by_page, XENVER_version, &result), -1);
    check_signed("by the page from CPL 3", (long)result, -1);
    check_signed("inlined from CPL 3: trap", user_call(user_inline, XENVER_version, &result), -1);
    check_signed("inlined from CPL 3", (long)result, -1);
}

#if HAVE_PAGING
/* The instruction's first byte ends one page, the rest begins another that lies elsewhere. */
static void test_straddle(void)
{
    u8 *pages = alloc_pages(3);
    u8 *va = window_map(0, (ulong)pages, PTE_PRESENT | PTE_WRITE);
    ulong ax = __HYPERVISOR_xen_version;

    window_map(1, (ulong)pages + 2 * PAGE_SIZE, PTE_PRESENT | PTE_WRITE);
    va[4095] = 0x0f;
    va[4096] = 0x01;
    va[4097] = hypercall_vmmcall ? 0xd9 : 0xc1;
    va[4098] = 0xc3;
#ifdef __x86_64__
    asm volatile("call *%1" : "+a"(ax) : "r"(va + 4095), "D"(XENVER_version), "S"(0) : "memory");
#else
    asm volatile("call *%1" : "+a"(ax) : "r"(va + 4095), "b"(XENVER_version), "c"(0) : "memory");
#endif
    check_hex("inlined across a page boundary", ax, VERSION);
}
#endif

void test_main(void)
{
    test_slots();
    test_msr();
    check_hex("null call by the page", (ulong)xen_version(XENVER_version, NULL), VERSION);
    check_hex("null call inlined",
              (ulong)hypercall_inline(__HYPERVISOR_xen_version, XENVER_version, 0, 0, 0, 0), VERSION);
    test_registers(call_by_page, "by the page");
    test_registers(hypercall_vmmcall ? call_by_vmmcall : call_by_vmcall, "inlined");
    test_numbers();
    test_user();
#if HAVE_PAGING
    test_straddle();
#endif
    success();
}
