/*
 * sched_ops: every sched_op command but the end that SCHEDOP_shutdown makes (shutdown.c).
 *
 * Purpose: waiting ends with an event, a port or the time, watchdogs are handed out and given back,
 * and each errno is the one that Xen 4.17 gives.
 * Blind spots: how late a wait ends; a watchdog that fires (shutdown.c).
 *
 * Variants: hvm64 hvm32pae hvm32
 */
#include "guest.h"

const char test_title[] = "sched_op";

#define NOBODY 4444

static evtchn_port_t timer;

static void arm(u64 ns)
{
    struct vcpu_set_singleshot_timer op = {.timeout_abs_ns = system_time() + ns};

    check_rc("set_singleshot_timer", vcpu_op(VCPUOP_set_singleshot_timer, 0, &op), 0);
}

static int poll(evtchn_port_t *ports, unsigned int n, u64 timeout)
{
    struct sched_poll op = {.nr_ports = n, .timeout = timeout};

    set_xen_guest_handle(op.ports, ports);
    return (int)sched_op(SCHEDOP_poll, &op);
}

static void test_block(void)
{
    u64 start = system_time();

    call("SCHEDOP_block");
    upcall_enable();
    evtchn_unmask(timer);
    arm(MILLISECONDS(10));
    /* It enables events by evtchn_upcall_mask, not interrupts: with those off nothing is delivered. */
    irq_enable();
    check_rc("block", sched_op(SCHEDOP_block, NULL), 0);
    irq_disable();
    check_signed("sched.block.timer.upcalls", upcall_events[timer], 1);
    check_true("sched.block.timer.waited", system_time() >= start + MILLISECONDS(10));
    upcall_disable();
    evtchn_mask(timer);
}

static void test_poll(void)
{
    evtchn_port_t ports[129] = {0}, port = 0;
    u64 start;

    call("SCHEDOP_poll");
    ports[0] = timer;
    evtchn_bind_ipi(0, &port);
    ports[1] = port;
    start = system_time();
    check_rc("sched.poll.timeout", poll(ports, 2, start + MILLISECONDS(5)), 0);
    check_true("it waited", system_time() >= start + MILLISECONDS(5));
    check_rc("sched.poll.none", poll(NULL, 0, system_time() + MILLISECONDS(2)), 0);
    check_rc("sched.poll.past", poll(ports, 1, 1), 0);
    check_rc("sched.poll.129", poll(ports, 129, 1), -XEN_EINVAL);
    check_rc("sched.poll.port0", poll(ports + 2, 1, system_time() + MILLISECONDS(2)), -XEN_EINVAL);

    arm(MILLISECONDS(5));
    check_rc("until the timer", poll(ports, 1, 0), 0);
    check_true("its port is pending", evtchn_pending(timer));
    evtchn_clear(timer);
    /* Of several ports any event ends it, also one that it did not ask for. */
    arm(MILLISECONDS(5));
    check_rc("until one of two", poll(ports, 2, 0), 0);
    evtchn_clear(timer);
    evtchn_send(port);
    check_rc("sched.poll.two", poll(ports, 2, 0), 0);
    evtchn_close(port);
}

static long watchdog(u32 id, u32 timeout)
{
    struct sched_watchdog op = {.id = id, .timeout = timeout};

    return sched_op(SCHEDOP_watchdog, &op);
}

static void test_watchdog(void)
{
    call("SCHEDOP_watchdog");
    check_rc("sched.watchdog.new", watchdog(0, 60), 1);
    check_rc("sched.watchdog.new2", watchdog(0, 60), 2);
#ifdef __x86_64__
    check_rc("sched.watchdog.new3", watchdog(0, 60), 4294967268);
#else
    check_rc("a third one", watchdog(0, 60), -XEN_ENOSPC);
#endif
    check_rc("sched.watchdog.poke", watchdog(1, 60), 0);
    check_rc("one that does not exist", watchdog(3, 60), -XEN_EINVAL);
    check_rc("sched.watchdog.destroy", watchdog(1, 0), 0);
    check_rc("sched.watchdog.destroy.again", watchdog(1, 0), -XEN_EINVAL);
    check_rc("sched.watchdog.poke_dead", watchdog(1, 60), -XEN_EINVAL);
    check_rc("its number is free", watchdog(0, 60), 1);
    check_rc("given back", watchdog(1, 0), 0);
    check_rc("sched.watchdog.destroy2", watchdog(2, 0), 0);
}

static int remote_shutdown(domid_t dom)
{
    struct sched_remote_shutdown op = {.domain_id = dom, .reason = SHUTDOWN_poweroff};

    return (int)sched_op(SCHEDOP_remote_shutdown, &op);
}

void test_main(void)
{
    struct sched_shutdown poweroff = {.reason = SHUTDOWN_poweroff};
    u64 none = 0;

    shared_info_map();
    evtchn_mask_all();
    if (evtchn_bind_virq(VIRQ_TIMER, 0, &timer))
        error("no VIRQ_TIMER");
    call("SCHEDOP_yield");
    check_rc("sched.yield", sched_op(SCHEDOP_yield, NULL), 0);
    test_block();
    test_poll();
    test_watchdog();

    call("SCHEDOP_remote_shutdown");
    check_rc("sched.remote_shutdown.self", remote_shutdown(DOMID_SELF), -XEN_ESRCH);
    check_rc("sched.remote_shutdown.own", remote_shutdown(own_domid()), -XEN_EPERM);
    check_rc("sched.remote_shutdown.dom0", remote_shutdown(0), -XEN_EPERM);
    check_rc("a domain that does not exist", remote_shutdown(NOBODY), -XEN_ESRCH);
    call("SCHEDOP_shutdown_code");
    check_rc("sched.shutdown_code.0", sched_op(SCHEDOP_shutdown_code, &poweroff), 0);
    call("SCHEDOP_pin_override");
    check_rc("pin_override", sched_op(SCHEDOP_pin_override, &none), -XEN_EPERM);
    call("SCHEDOP_shutdown");
    check_rc("a bad pointer", sched_op(SCHEDOP_shutdown, (void *)(alloc_hole(1) << PAGE_SHIFT)), -XEN_EFAULT);
    call(NULL);
    check_rc("sched.op.8", sched_op(8, &none), -XEN_ENOSYS);
    check_rc("sched.op.99", sched_op(99, &none), -XEN_ENOSYS);
    success();
}
