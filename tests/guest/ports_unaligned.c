/*
 * ports_unaligned: reads of absent I/O ports across their natural boundary.
 *
 * Purpose: they read all ones as aligned ones do (ports). Apart, because an engine that lets absent
 * ports through to an emulator of its own gets zeros from it here.
 * Blind spots: writes; 0xcf8 to 0xcff, which reach the emulator (docs/limits.md).
 */
#include "guest.h"

const char test_title[] = "Unaligned I/O ports";

static const u16 ports[] = {0x11, 0x21, 0x43, 0x61, 0x71, 0xa1, 0x2fd, 0x3f9, 0x605, 0xaf01, 0xb001};

void test_main(void)
{
    for (unsigned int i = 0; i < ARRAY_SIZE(ports); i++) {
        u16 w = inw(ports[i]);
        u32 l = inl(ports[i]);

        if (w != 0xffff || l != 0xffffffff)
            failure("port 0x%x: 0x%x, 0x%x", ports[i], w, l);
    }
    success();
}
