/*
 * verdicts: gives the verdict that its command line names (verdict=0 to 7, in the order below).
 *
 * Purpose: the harness tells the five verdicts apart, and a guest that never ends from one that
 * crashes.
 * Blind spots: crashes other than an exception, a triple fault and silence.
 *
 * Driven by: test_guests.py
 */
#include "guest.h"

const char test_title[] = "Verdicts";
const bool test_bare = true;

static void triple_fault(void)
{
    static const struct {
        u16 limit;
        ulong base;
    } __attribute__((packed)) no_idt;

    asm volatile("lidt %0; ud2" ::"m"(no_idt));
}

void test_main(void)
{
    switch (cmdline_number("verdict", 0)) {
    case 0:
        success();
        break;
    case 1:
        skip("a reason to %s", "skip");
    case 2:
        error("something in the test's way");
    case 3:
        failure("first wrong answer");
        success();
        failure("second wrong answer");
        break;
    case 4:
        asm volatile("ud2");
        break;
    case 5:
        triple_fault();
        break;
    case 6:
        break;
    default:
        for (;;)
            cpu_relax();
    }
}
