/*
 * ports: I/O ports of a domain without devices.
 *
 * Purpose: every port reads all ones in each width and swallows writes, those included that reset
 * or power off a PC; string instructions work on them as well.
 * Blind spots: port 0xe9's output; accesses across their natural boundary (ports_unaligned); ports
 * that devices of a richer platform would claim.
 */
#include "guest.h"

const char test_title[] = "I/O ports";

/* The first sixteen are port.b.* of the recorded answers. */
static const u16 ports[] = {
    0x64, 0x70, 0x71, 0x92, 0xa0,  0xa1,  0xe9,  0x2fd,  0x3f8, 0x3f9, 0xcf9, 0xaf00, 0xaf01, 0xb000,
    0x10, 0x604, 0x20, 0x21, 0x40, 0x42,  0x43,  0x60,   0x61,  0x80,  0x3fd, 0x510,  0xcf8,  0xcfc,
    0xb004, 0xb008, 0xffff,
};

static void test_read(void)
{
    for (unsigned int i = 0; i < ARRAY_SIZE(ports); i++) {
        u16 port = ports[i], w = port & 1 ? 0xffff : inw(port);
        u8 b = inb(port);
        u32 l = port & 3 ? 0xffffffff : inl(port);

        if (b != 0xff || w != 0xffff || l != 0xffffffff)
            failure("port 0x%x: 0x%x, 0x%x, 0x%x", port, b, w, l);
    }
}

static void test_registers(void)
{
    ulong ax = ~0ul / 3;

    asm volatile("inb $0x10, %%al" : "+a"(ax));
    check_hex("inb changes AL only", ax, (~0ul / 3 & ~0xfful) | 0xff);
    ax = ~0ul / 3;
    asm volatile("inw $0x10, %%ax" : "+a"(ax));
    check_hex("inw changes AX only", ax, (~0ul / 3 & ~0xfffful) | 0xffff);
    ax = 0;
    asm volatile("inl $0x10, %%eax" : "+a"(ax));
    check_hex("inl zero-extends", ax, 0xffffffff);
}

static void test_write(void)
{
    /* 0x64 and 0xcf9 reset a PC, 0x604 and 0xb004 power off virtual ones. */
    outb(0x64, 0xfe);
    outb(0xcf9, 0x06);
    outb(0x92, 0x01);
    outw(0x604, 0x2000);
    outw(0xb004, 0x2000);
    outl(0xcf8, 0x80000000);
    outb(0x80, 0);
    check_hex("written port reads back", inl(0xcf8), 0xffffffff);
}

static void test_string(void)
{
    static u32 buf[16];
    void *p = buf;
    const void *q = buf;
    ulong n = 8;

    asm volatile("rep insl" : "+D"(p), "+c"(n) : "d"(0x10) : "memory");
    check_hex("rep insl: count left", n, 0);
    check_hex("rep insl: pointer", (ulong)p - (ulong)buf, 32);
    for (unsigned int i = 0; i < 16; i++)
        if (buf[i] != (i < 8 ? ~0u : 0))
            failure("rep insl: word %u is 0x%x", i, buf[i]);
    n = 5;
    asm volatile("rep outsb" : "+S"(q), "+c"(n) : "d"(0x10) : "memory");
    check_hex("rep outsb: count left", n, 0);
    check_hex("rep outsb: pointer", (ulong)q - (ulong)buf, 5);
}

void test_main(void)
{
    test_read();
    test_registers();
    test_write();
    test_string();
    success();
}
