/*
 * timer_singleshot: the per-vCPU timers behind VIRQ_TIMER.
 *
 * Purpose: the singleshot timer fires on time and not before, a past time fires at once whatever
 * the flag says, a stopped one never fires; the periodic timer and set_timer_op; SCHEDOP_poll and
 * HLT wake up for them.
 * Blind spots: accuracy better than half a second at the late end (the host may be busy); timers of
 * other vCPUs.
 */
#include "guest.h"

const char test_title[] = "Timers";

#define LATE MILLISECONDS(500)

static evtchn_port_t timer;

static int set_singleshot(u64 deadline, u32 flags)
{
    struct vcpu_set_singleshot_timer op = {.timeout_abs_ns = deadline, .flags = flags};

    return (int)vcpu_op(VCPUOP_set_singleshot_timer, 0, &op);
}

static int set_periodic(u64 period)
{
    struct vcpu_set_periodic_timer op = {.period_ns = period};

    return (int)vcpu_op(VCPUOP_set_periodic_timer, 0, &op);
}

/* Waits up to a second for the timer, takes the event, and tells whether there was one. */
static bool fired(void)
{
    bool pending;

    check_rc("timer.single.poll", evtchn_poll(timer, system_time() + MILLISECONDS(1000)), 0);
    pending = evtchn_pending(timer);
    evtchn_clear(timer);
    return pending;
}

/* Xen keeps back the periodic ticks of a vCPU that is blocked, so this one does not sleep. */
static bool ticked(void)
{
    u64 end = system_time() + MILLISECONDS(1000);
    bool pending;

    do
        pending = evtchn_pending(timer);
    while (!pending && system_time() < end);
    evtchn_clear(timer);
    return pending;
}

static bool stays_silent(u64 ns)
{
    evtchn_poll(timer, system_time() + ns);
    return !evtchn_pending(timer);
}

static void check_window(const char *what, u64 from, u64 now)
{
    if (now < from)
        failure("%s: %llu ns early", what, (unsigned long long)(from - now));
    else if (now > from + LATE)
        failure("%s: %llu ns late", what, (unsigned long long)(now - from));
}

static void test_singleshot(void)
{
    u64 at = system_time() + MILLISECONDS(20);

    check_rc("set_singleshot_timer", set_singleshot(at, 0), 0);
    check_true("timer.single.pending", fired());
    check_window("timer.single.on_time", at, system_time());

    check_rc("timer.single.past", set_singleshot(system_time() - MILLISECONDS(10), 0), 0);
    check_true("timer.single.past pending", fired());
    check_rc("timer.single.past.future_flag",
             set_singleshot(system_time() - MILLISECONDS(10), VCPU_SSHOTTMR_future), 0);
    check_true("timer.single.past.future_flag pending", fired());
    at = system_time() + MILLISECONDS(10);
    check_rc("timer.single.future.future_flag", set_singleshot(at, VCPU_SSHOTTMR_future), 0);
    check_true("timer.single.future.future_flag pending", fired());
    check_window("timer.single.future.future_flag", at, system_time());
    check_rc("timer.single.zero", set_singleshot(0, 0), 0);
    check_true("timer.single.zero.pending", fired());
    check_rc("timer.single.max", set_singleshot(~0ull, 0), 0);
    check_rc("stop_singleshot_timer", vcpu_op(VCPUOP_stop_singleshot_timer, 0, NULL), 0);
    evtchn_clear(timer);

    call("VCPUOP_stop_singleshot_timer");
    check_rc("set, then stop", set_singleshot(system_time() + MILLISECONDS(10), 0), 0);
    check_rc("stop_singleshot_timer", vcpu_op(VCPUOP_stop_singleshot_timer, 0, NULL), 0);
    check_true("timer.single.stopped.pending", stays_silent(MILLISECONDS(40)));
    check_rc("stop_singleshot_timer of vCPU 1", vcpu_op(VCPUOP_stop_singleshot_timer, 1, NULL),
             vcpu_count() > 1 ? -XEN_EINVAL : -XEN_ENOENT);

    call("VCPUOP_set_singleshot_timer");
    /* A later setting replaces an earlier one. */
    set_singleshot(system_time() + MILLISECONDS(10), 0);
    at = system_time() + MILLISECONDS(60);
    set_singleshot(at, 0);
    check_true("replaced: pending", fired());
    check_window("replaced", at, system_time());
}

static void test_periodic(void)
{
    u64 start = system_time();
    unsigned int ticks = 0;

    check_rc("set_periodic_timer", set_periodic(MILLISECONDS(10)), 0);
    while (ticks < 3 && ticked())
        ticks++;
    check_signed("timer.periodic.ticks_of_3", ticks, 3);
    /* Xen gives the first tick at once. */
    check_window("third tick", start + MILLISECONDS(20), system_time());
    call("VCPUOP_stop_periodic_timer");
    check_rc("stop_periodic_timer", vcpu_op(VCPUOP_stop_periodic_timer, 0, NULL), 0);
    evtchn_clear(timer);
    check_true("timer.periodic.stopped.pending", stays_silent(MILLISECONDS(40)));
    call("VCPUOP_set_periodic_timer");
    check_rc("timer.periodic.0.5ms", set_periodic(500000), -XEN_EINVAL);
    check_rc("timer.periodic.0", set_periodic(0), -XEN_EINVAL);
}

static void test_set_timer_op(void)
{
    u64 at = system_time() + MILLISECONDS(20);

    check_rc("set_timer_op", set_timer_op(at), 0);
    check_true("set_timer_op pending", fired());
    check_window("set_timer_op", at, system_time());
    check_rc("timer.op.past", set_timer_op(system_time() - MILLISECONDS(10)), 0);
    check_true("timer.op.past pending", fired());
    set_timer_op(system_time() + MILLISECONDS(10));
    check_rc("timer.op.zero", set_timer_op(0), 0);
    check_true("timer.op.zero.pending", stays_silent(MILLISECONDS(40)));
}

static void test_halt(void)
{
    u64 at;
    u32 before;

    upcall_enable();
    evtchn_unmask(timer);
    before = upcall_events[timer];
    at = system_time() + MILLISECONDS(20);
    set_singleshot(at, 0);
    while (upcall_events[timer] == before)
        irq_wait();
    check_window("sched.hlt.upcalls", at, system_time());
    check_signed("sched.hlt.upcalls", upcall_events[timer] - before, 1);
    upcall_disable();
    evtchn_mask(timer);
}

void test_main(void)
{
    u64 start;

    shared_info_map();
    evtchn_mask_all();
    check_rc("evtchn.virq.timer", evtchn_bind_virq(VIRQ_TIMER, 0, &timer), 0);
    call("SCHEDOP_poll");
    start = system_time();
    check_rc("sched.poll.timeout", evtchn_poll(timer, start + MILLISECONDS(20)), 0);
    check_window("sched.poll.timeout", start + MILLISECONDS(20), system_time());
    check_rc("sched.poll.past", evtchn_poll(timer, 1), 0);
    check_rc("sched.poll.badport", evtchn_poll(4095, system_time() + MILLISECONDS(20)), -XEN_EINVAL);
    call("VCPUOP_set_singleshot_timer");
    test_singleshot();
    call("VCPUOP_set_periodic_timer");
    test_periodic();
    call("set_timer_op");
    test_set_timer_op();
    call(NULL);
    test_halt();
    success();
}
