/*
 * console_ring: the PV console's output ring.
 *
 * Purpose: the ring's page and port are given, the backend empties it each time it is told, over
 * many turns of the ring, and nothing is lost or doubled (the harness compares the text).
 * Blind spots: input; indexes that pass 2^32; a backend that goes away; what becomes of a guest that
 * corrupts its own indexes.
 *
 * Expect: a{3000}b{17}c
 * Expect: line 299 of 300: 0123456789abcdefghijklmnopqrstuvwxyz
 */
#include "guest.h"

const char test_title[] = "Console ring";

static void write_many(char c, unsigned int count)
{
    for (unsigned int i = 0; i < count; i++)
        console_write(&c, 1);
}

void test_main(void)
{
    u64 start, pfn = 0, port = 0;

    if (hvm_param_get(HVM_PARAM_CONSOLE_PFN, &pfn) || hvm_param_get(HVM_PARAM_CONSOLE_EVTCHN, &port) || !pfn)
        skip("no PV console");
    check_hex("console page", pfn, 0xfefff);
    check_signed("evtchn.console.port", (long)port, 2);

    start = console_ring->out_prod;
    write_many('a', 3000);
    write_many('b', 17);
    console_write("c\n", 2);
    if (!console_ring)
        error("the backend stopped emptying the ring");
    check_signed("bytes produced", (long)(u32)(console_ring->out_prod - start), 3019);

    for (int i = 0; i < 300; i++)
        printk("line %d of 300: 0123456789abcdefghijklmnopqrstuvwxyz\n", i);
    for (unsigned int i = 0; i < 20000 && !console_drained(); i++)
        sched_op(SCHEDOP_yield, NULL);
    if (!console_ring || !console_drained())
        failure("the backend left the ring full");
    check_hex("nothing was typed", console_ring->in_prod - console_ring->in_cons, 0);
    success();
}
