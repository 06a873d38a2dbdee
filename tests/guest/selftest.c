/*
 * selftest: the framework itself.
 *
 * Purpose: printing, allocation, exception table, expected exceptions, the way to CPL 3 and back,
 * and the 4 KiB window work in this variant. Asks nothing of Xen, so it also runs on bare QEMU.
 * Blind spots: takes the compiler and the CPU as given; the failure, error and crash verdicts have
 * guests of their own.
 */
#include "guest.h"
#include "layout.h"

const char test_title[] = "Framework self-test";
const bool test_bare = true;

static void check_text(const char *want, const char *fmt, ...)
{
    char buf[80];
    va_list args;

    va_start(args, fmt);
    vsnprintk(buf, sizeof(buf), fmt, args);
    va_end(args);
    if (strlen(buf) != strlen(want) || memcmp(buf, want, strlen(want)))
        failure("printed \"%s\", want \"%s\"", buf, want);
}

static void test_print(void)
{
    check_text("-5 5 ff 00ff", "%d %u %x %04x", -5, 5u, 255u, 255u);
    check_text("[  7][7  ][-7]", "[%3d][%-3d][%d]", 7, 7, -7);
    check_text("18446744073709551615", "%llu", ~0ull);
    check_text("-9223372036854775807", "%lld", -9223372036854775807ll);
    check_text("0xabc c text 100%", "%p %c %s 100%%", (void *)0xabc, 'c', "text");
    check_hex("div_u64", div_u64(0x123456789abcdef0ull, 10, NULL), 0x123456789abcdef0ull / 10);
    check_hex("mul_shift_32", mul_shift_32(0x100000000ull, 0x80000000u), 0x80000000u);
}

static void undefined(void *arg)
{
    (void)arg;
    asm volatile("ud2");
}

static void nested(void *arg)
{
    check_signed("trap inside a caught call", trap_of(undefined, NULL), X86_EXC_UD);
    asm volatile("ud2" ::"r"(arg));
}

static void nothing(void *arg)
{
    (void)arg;
}

static void test_traps(void)
{
    u64 msr;

    check_signed("no trap", trap_of(nothing, NULL), -1);
    check_signed("ud2", trap_of(undefined, NULL), X86_EXC_UD);
    check_signed("ud2 after a nested one", trap_of(nested, NULL), X86_EXC_UD);
    check_signed("exception table", TRAP_ASM("ud2", ::: "memory"), X86_EXC_UD);
    check_signed("exception table, none", TRAP_ASM("nop", ::: "memory"), -1);
    check_signed("known MSR", try_rdmsr(0x1b, &msr), -1);
}

static ulong user_level(ulong arg)
{
    ulong cs;

    asm volatile("mov %%cs, %0" : "=r"(cs));
    return (cs & 3) + arg;
}

static ulong user_privileged(ulong arg)
{
    asm volatile("mov %%cr0, %0" : "=r"(arg));
    return arg;
}

static void test_user(void)
{
    ulong result = 0;

    check_signed("CPL 3", user_call(user_level, 40, &result), -1);
    check_signed("CPL 3 result", (long)result, 43);
    check_signed("CPL 3 privileged", user_call(user_privileged, 0, NULL), X86_EXC_GP);
    check_signed("CPL 3 exception came from", last_trap.cs & 3, 3);
    check_signed("CPL 3 again", user_call(user_level, 50, &result), -1);
    check_signed("CPL 3 second result", (long)result, 53);
}

static void test_memory(void)
{
    volatile u32 *page = alloc_pages(2), *more = alloc_pages(1);

    check_hex("pages follow each other", (ulong)more, (ulong)page + 2 * PAGE_SIZE);
    page[0] = 1;
    page[1024] = 2;
#if HAVE_PAGING
    u32 value;
    volatile u32 *window;

    if (xen_present) {
        check_signed("NULL", try_read32(NULL, &value), X86_EXC_PF);
        check_hex("NULL cr2", last_trap.cr2, 0);
    }
    window = window_map(5, (ulong)page, PTE_PRESENT | PTE_WRITE | PTE_USER);
    check_hex("window", window[0], 1);
    window = window_map(5, (ulong)page + PAGE_SIZE, PTE_PRESENT);
    check_hex("window mapped anew", window[0], 2);
    check_signed("read-only window", try_write32(window, 3), X86_EXC_PF);
    check_hex("read-only window error", last_trap.error, 3);
    window = window_map(5, 0, 0);
    check_signed("window taken away", try_read32(window, &value), X86_EXC_PF);
    check_hex("window cr2", last_trap.cr2, (ulong)window);
#endif
}

void test_main(void)
{
    test_print();
    test_traps();
    test_user();
    test_memory();
    success();
}
