/*
 * hcpage.*, port.*, the first of mem.* and lapic.*: what answers besides hypercalls.
 */
#include "answers.h"

static void ask_hypercall_page(void)
{
    unsigned int movs = 0;
    u64 value;
    int trap = try_rdmsr(0x40000000, &value);

    answer("hcpage.rdmsr", "%d:%s", trap, zero_or_not(value));
    for (u32 i = 0; i < PAGE_SIZE / HYPERCALL_SLOT; i++) {
        u32 immediate;

        memcpy(&immediate, hypercall_page + i * HYPERCALL_SLOT + 1, sizeof(immediate));
        movs += hypercall_page[i * HYPERCALL_SLOT] == 0xb8 && immediate == i;
    }
    answer("hcpage.mov_eax", "%u", movs);
    answer("hcpage.iret", "%02x%02x", hypercall_page[23 * HYPERCALL_SLOT], hypercall_page[23 * HYPERCALL_SLOT + 1]);
}

static void ask_ports(void)
{
    static const u16 bytes[] = {0x20, 0x21, 0x40, 0x42, 0x43, 0x60, 0x61, 0x64, 0x70, 0x71, 0x80, 0x92, 0xa0,
                                0xa1, 0xe9, 0x2f8, 0x2fd, 0x3f8, 0x3f9, 0x3fd, 0xcf8, 0xcf9, 0xcfc, 0xaf00,
                                0xaf01, 0xb000, 0xb004, 0x10, 0x604};
    static const u16 words[] = {0xb000, 0xb004, 0x604, 0x10};

    for (unsigned int i = 0; i < ARRAY_SIZE(bytes); i++)
        answer(name("port.b.%08x", bytes[i]), "%02x", inb(bytes[i]));
    for (unsigned int i = 0; i < ARRAY_SIZE(words); i++)
        answer(name("port.w.%08x", words[i]), "%08x", inw(words[i]));
    answer("port.l.00000cf8", "%08x", inl(0xcf8));
    answer("port.l.b008.pmtimer", "%s", inl(0xb008) == ~0u ? "ones" : "other");
}

static void jump(void *to)
{
    ((void (*)(void))to)();
}

void ask_machine(void)
{
    u32 *hole = (u32 *)(alloc_hole(1) << PAGE_SHIFT);
    u32 value;

    ask_hypercall_page();
    ask_ports();
    answer_read("mem.hole.read", hole);
    answer_rc("mem.hole.write", try_write32(hole, 0x1234));
    answer_read("mem.hole.reread", hole);
    answer_rc("mem.hole.exec", trap_of(jump, hole));
    answer_read("mem.a0000.read", (u32 *)0xa0000);
    answer_read("mem.f0000.read", (u32 *)0xf0000);
    answer_read("mem.fffffff0.read", (u32 *)0xfffffff0);
    answer_rc("mem.unmapped.trap", try_read32(unmapped(), &value));
    for (u32 reg = 0; reg <= 0x3f0; reg += 0x10)
        answer_read(name("lapic.%08x", reg), (u32 *)(0xfee00000ul + reg));
}
