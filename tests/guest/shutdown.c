/*
 * shutdown: the ways in which a guest ends by itself.
 *
 * Purpose: SCHEDOP_shutdown with each reason, the reason that SCHEDOP_shutdown_code announced
 * before, a watchdog that runs out, and the last vCPU going down. The host looks at what it was
 * told; the guest sees nothing of it.
 * Blind spots: what the toolstack does then.
 *
 * The command line holds how=: a reason, or a number from 100 on.
 *
 * Variants: hvm64 hvm32pae hvm32
 * Driven by: test_calls
 */
#include "guest.h"

const char test_title[] = "Ways to end";

enum { ANNOUNCED = 100, WATCHDOG, DOWN, HALT };

void test_main(void)
{
    struct sched_shutdown code = {.reason = SHUTDOWN_reboot};
    struct sched_watchdog watchdog = {.timeout = 1};
    ulong how = cmdline_number("how", SHUTDOWN_poweroff);

    switch (how) {
    case ANNOUNCED:
        check_rc("shutdown_code", sched_op(SCHEDOP_shutdown_code, &code), 0);
        sched_shutdown(SHUTDOWN_poweroff);
    case WATCHDOG:
        check_rc("watchdog", sched_op(SCHEDOP_watchdog, &watchdog), 1);
        for (;;)
            sched_op(SCHEDOP_yield, NULL);
    case DOWN:
        vcpu_op(VCPUOP_down, 0, NULL);
        break;
    case HALT:
        asm volatile("cli; hlt");
        break;
    default:
        sched_shutdown((unsigned int)how);
    }
    failure("still there");
}
