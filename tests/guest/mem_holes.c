/*
 * mem_holes: guest-physical addresses without RAM, and RAM where a PC has none.
 *
 * Purpose: holes read all ones and swallow writes, by every common form of access; the page at
 * 0xf0000 is plain zeroed RAM; an address that the guest itself does not map faults in the guest.
 * Blind spots: accesses by vector registers; instruction fetches from a hole; a page removed while
 * in use.
 */
#include "guest.h"

const char test_title[] = "Holes in memory";

static void check_ones(const char *what, ulong address)
{
    u32 value = 0;
    int trap = try_read32((void *)address, &value);

    if (trap != -1 || value != 0xffffffff)
        failure("%s: trap %d, 0x%x", what, trap, value);
}

static void test_forms(ulong hole)
{
    volatile u8 *b = (u8 *)hole;
    volatile u16 *w = (u16 *)hole;
    static u32 buf[8];
    void *p = buf;
    const void *q = (const void *)hole;
    ulong v, n = sizeof(buf);
    u8 equal;

    check_hex("byte", *b, 0xff);
    check_hex("word", *w, 0xffff);
    asm volatile("movzbl %1, %k0" : "=r"(v) : "m"(*b));
    check_hex("movzx", (u32)v, 0xff);
    asm volatile("movsbl %1, %k0" : "=r"(v) : "m"(*b));
    check_hex("movsx", (u32)v, 0xffffffff);
#ifdef __x86_64__
    check_hex("quadword", *(volatile u64 *)hole, ~0ull);
#endif
    *b = 1;
    *w = 2;
    asm volatile("movl $3, (%0)" ::"r"(hole) : "memory");
    asm volatile("cmpl $-1, (%1); sete %0" : "=q"(equal) : "r"(hole) : "memory", "cc");
    check_hex("cmp", equal, 1);
    asm volatile("testl $1, (%1); setnz %0" : "=q"(equal) : "r"(hole) : "memory", "cc");
    check_hex("test", equal, 1);
    v = 5;
    asm volatile("xchgl %k0, (%1)" : "+r"(v) : "r"(hole) : "memory");
    check_hex("xchg", (u32)v, 0xffffffff);
    v = 0xf0;
    asm volatile("andl (%1), %k0" : "+r"(v) : "r"(hole) : "memory", "cc");
    check_hex("and from memory", (u32)v, 0xf0);
    asm volatile("orl $1, (%0)" ::"r"(hole) : "memory", "cc");
    asm volatile("rep movsb" : "+D"(p), "+S"(q), "+c"(n)::"memory");
    check_hex("rep movsb: count left", n, 0);
    for (unsigned int i = 0; i < 8; i++)
        check_hex("rep movsb", buf[i], 0xffffffff);
    p = (void *)hole;
    n = 4;
    asm volatile("rep stosl" : "+D"(p), "+c"(n) : "a"(0) : "memory");
    check_hex("rep stosl: pointer", (ulong)p, hole + 16);
    check_ones("after all of them", hole);
    check_ones("last word of the page", hole + PAGE_SIZE - 4);
    check_ones("across two pages of the hole", hole + PAGE_SIZE - 2);
}

void test_main(void)
{
    ulong hole = alloc_hole(2) << PAGE_SHIFT;
    u32 entries, value = 1;
    const struct hvm_memmap_table_entry *ram = memmap(&entries);
    ulong ram_end = (ulong)(ram->addr + ram->size);

    check_ones("mem.hole", hole);
    check_signed("mem.hole.write", try_write32((void *)hole, 0x1234), -1);
    check_ones("mem.hole.reread", hole);
    check_signed("mem.f0000.read trap", try_read32((void *)0xf0000, &value), -1);
    check_hex("mem.f0000.read", value, 0);
    *(volatile u32 *)0xf0000 = 0x55aa;
    check_hex("0xf0000 keeps what is written", *(volatile u32 *)0xf0000, 0x55aa);
    *(volatile u32 *)0xf0000 = 0;
    check_ones("mem.fffffff0.read", 0xfffffff0);
    check_ones("behind the end of RAM", ram_end);
    check_signed("last word of RAM", try_read32((void *)(ram_end - 4), &value), -1);
    check_hex("last word of RAM", value, 0);
    test_forms(hole);
#if HAVE_PAGING
    void *va = window_map(0, 0, 0);

    check_signed("mem.unmapped.trap", try_read32(va, &value), X86_EXC_PF);
#if CONFIG_PAGING >= 3
    va = window_map(0, 0x800000000ull, PTE_PRESENT | PTE_WRITE);
    check_ones("32 GiB", (ulong)va);
#endif
#endif
    success();
}
