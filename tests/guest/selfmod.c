/*
 * selfmod: a guest that rewrites its own code.
 *
 * Purpose: after a store to code by the guest itself the new code runs: in the page that executes,
 * in another page, through a second mapping of the page, over a page boundary, and by string
 * instructions.
 * Blind spots: writes from outside the guest (stalecode); another vCPU's writes; code that changes
 * under a second vCPU.
 */
#include "guest.h"

const char test_title[] = "Self-modifying code";
const bool test_bare = true;

#define ROUNDS 1000

/* mov $value, %eax; ret */
static void put_function(u8 *to, u32 value)
{
    to[0] = 0xb8;
    memcpy(to + 1, &value, sizeof(value));
    to[5] = 0xc3;
}

static u32 run_code(const void *code)
{
    u32 eax;

    asm volatile("call *%1" : "=a"(eax) : "r"(code) : "memory");
    return eax;
}

static void check_round(const char *what, u32 round, u32 got, u32 want)
{
    if (got != want)
        error("%s, round %u: 0x%x ran, not 0x%x", what, round, got, want);
}

/* The store and the patched instruction are in one page, and in one straight line. */
u32 patch_and_run(u32 value);
asm(".text\n"
    ".balign 64\n"
    "patch_and_run:\n"
#ifdef __x86_64__
    "mov %edi, patched + 1\n"
#else
    "mov 4(%esp), %eax\n"
    "mov %eax, patched + 1\n"
#endif
    "jmp patched\n"
    "patched: mov $0x11111111, %eax\n"
    "ret\n");

static void test_same_page(void)
{
    for (u32 i = 0; i < ROUNDS; i++)
        check_round("same page", i, patch_and_run(i * 0x01000193u), i * 0x01000193u);
}

static void test_other_page(u8 *page)
{
    for (u32 i = 0; i < ROUNDS; i++) {
        put_function(page + 64, i ^ 0x5a5a);
        check_round("other page", i, run_code(page + 64), i ^ 0x5a5a);
    }
    /* Code at two places of the page, of which only one changes. */
    put_function(page + 2048, 7);
    for (u32 i = 0; i < ROUNDS; i++) {
        put_function(page + 64, i);
        check_round("untouched neighbour", i, run_code(page + 2048), 7);
        check_round("changed neighbour", i, run_code(page + 64), i);
    }
}

static void test_page_boundary(u8 *pages)
{
    u8 *code = pages + PAGE_SIZE - 3;

    for (u32 i = 0; i < ROUNDS; i++) {
        put_function(code, i * 0x01000193u);
        check_round("page boundary", i, run_code(code), i * 0x01000193u);
        /* Only the half in the second page changes. */
        pages[PAGE_SIZE + 1] = (u8)~(i >> 8);
        run_code(code);
    }
}

static void test_string_store(u8 *page)
{
    u8 copy[64];

    memset(copy, 0x90, sizeof(copy));
    for (u32 i = 0; i < ROUNDS; i++) {
        put_function(copy + 32, i);
        memcpy(page + 128, copy, sizeof(copy));
        check_round("string store", i, run_code(page + 128), i);
    }
}

static void test_atomic_store(u8 *page)
{
    put_function(page + 256, 0);
    for (u32 i = 1; i < ROUNDS; i++) {
        asm volatile("lock addl $1, (%0)" ::"r"(page + 257) : "memory");
        check_round("locked add", i, run_code(page + 256), i);
    }
}

#if HAVE_PAGING
static void test_alias(u8 *page)
{
    u8 *writable = window_map(0, (ulong)page, PTE_PRESENT | PTE_WRITE);
    const u8 *other = window_map(1, (ulong)page, PTE_PRESENT);

    for (u32 i = 0; i < ROUNDS; i++) {
        put_function(writable + 512, i);
        check_round("alias, identity", i, run_code(page + 512), i);
        check_round("alias, read-only", i, run_code(other + 512), i);
        check_round("alias, writable", i, run_code(writable + 512), i);
    }
}

/* Another page behind the same address. */
static void test_remap(void)
{
    u8 *a = alloc_pages(1), *b = alloc_pages(1);

    put_function(a, 1);
    put_function(b, 2);
    for (u32 i = 0; i < ROUNDS; i++) {
        u8 *va = window_map(2, (ulong)(i & 1 ? b : a), PTE_PRESENT);
        check_round("remapped", i, run_code(va), 1 + (i & 1));
    }
}
#endif

void test_main(void)
{
    u8 *pages = alloc_pages(2);

    test_same_page();
    test_other_page(pages);
    test_page_boundary(pages);
    test_string_store(pages);
    test_atomic_store(pages);
#if HAVE_PAGING
    test_alias(pages);
    test_remap();
#endif
    success();
}
