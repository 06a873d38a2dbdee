/*
 * hello: the smallest useful guest.
 *
 * Purpose: one line by the PV console and an orderly shutdown; its run is also the measure of
 * start-up time, so it must stay this small.
 * Blind spots: everything else.
 *
 * Expect: Hello from a PVH guest
 */
#include "guest.h"

const char test_title[] = "Hello";

void test_main(void)
{
    printk("Hello from a PVH guest\n");
    success();
}
