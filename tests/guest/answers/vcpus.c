/*
 * vcpu.*, timer.* and sched.*: vCPUs, their timers, waiting and watchdogs.
 */
#include "answers.h"

volatile struct vcpu_time_info time_area __attribute__((aligned(64)));

static evtchn_port_t timer;
static struct vcpu_runstate_info area __attribute__((aligned(64))), area1 __attribute__((aligned(64)));
static volatile u32 nmis, ran;

static void on_nmi(struct regs *regs)
{
    (void)regs;
    nmis++;
}

static void ask_ops(void)
{
    static const unsigned int vcpus[] = {0, 1, 9};

    set_handler(2, on_nmi);
    answer_rc("vcpu.is_up.1", vcpu_op(VCPUOP_is_up, 1, NULL));
    answer_rc("vcpu.is_up.99", vcpu_op(VCPUOP_is_up, 99, NULL));
    for (unsigned int op = 0; op < 18; op++)
        for (unsigned int i = 0; i < ARRAY_SIZE(vcpus); i++) {
            unsigned int vcpu = vcpus[i];

            /* The first vCPU has to go on, and the second has no handler for an NMI. */
            if ((op == VCPUOP_down && !vcpu) || (op == VCPUOP_send_nmi && vcpu == 1))
                continue;
            answer_rc(name("vcpu.op.%u.vcpu%u.null", op, vcpu), vcpu_op(op, vcpu, NULL));
        }
    answer("vcpu.nmi.count", "%u", nmis);
    answer_rc("vcpu.op.99", vcpu_op(99, 0, NULL));
}

static long register_area(unsigned int op, unsigned int vcpu, volatile void *where)
{
    struct vcpu_register_runstate_memory_area a = {.addr.p = (ulong)where};

    return vcpu_op(op, vcpu, &a);
}

static void ask_areas(void)
{
    struct vcpu_runstate_info state;
    struct vcpu_get_physid physid;
    u64 sum = 0;
    long rc = vcpu_op(VCPUOP_get_runstate_info, 0, &state);

    for (unsigned int i = 0; i < 4; i++)
        sum += state.time[i];
    answer("vcpu.runstate.0", "%ld state=%d sane=%s", rc, state.state,
           yes_or_no(sum && state.state_entry_time <= now() && state.time[RUNSTATE_running]));
    rc = vcpu_op(VCPUOP_get_runstate_info, 1, &state);
    answer("vcpu.runstate.1", "%ld state=%d running=%s", rc, state.state, zero_or_not(state.time[RUNSTATE_running]));

    answer_rc("vcpu.runstate.register", register_area(VCPUOP_register_runstate_memory_area, 0, &area));
    sched_op(SCHEDOP_yield, NULL);
    sum = area.time[0] + area.time[1] + area.time[2] + area.time[3];
    answer("vcpu.runstate.area", "state=%d updbit=%u sum=%s", area.state, (u32)(area.state_entry_time >> 63),
           zero_or_not(sum));
    answer_rc("vcpu.runstate.register.unmapped", register_area(VCPUOP_register_runstate_memory_area, 0, unmapped()));
    answer_rc("vcpu.runstate.register.null", register_area(VCPUOP_register_runstate_memory_area, 0, NULL));
    answer_rc("vcpu.runstate.register.vcpu1", register_area(VCPUOP_register_runstate_memory_area, 1, &area1));
    answer_rc("vcpu.runstate.register.again", register_area(VCPUOP_register_runstate_memory_area, 0, &area));
    answer_rc("vcpu.time_area.register", register_area(VCPUOP_register_vcpu_time_memory_area, 0, &time_area));
    answer_rc("vcpu.physid.0", vcpu_op(VCPUOP_get_physid, 0, &physid));
    answer_rc("vcpu.physid.1", vcpu_op(VCPUOP_get_physid, 1, &physid));
}

static long singleshot(u64 deadline, u32 flags)
{
    struct vcpu_set_singleshot_timer op = {.timeout_abs_ns = deadline, .flags = flags};

    return vcpu_op(VCPUOP_set_singleshot_timer, 0, &op);
}

static long periodic(u64 period)
{
    struct vcpu_set_periodic_timer op = {.period_ns = period};

    return vcpu_op(VCPUOP_set_periodic_timer, 0, &op);
}

static long poll_timer(u64 ns)
{
    return evtchn_poll(timer, now() + ns);
}

/* Without sleep: Xen keeps back the periodic ticks of a vCPU that waits. */
static bool spin(u64 ns)
{
    for (u64 end = now() + ns; now() < end;)
        if (evtchn_pending(timer))
            return true;
    return evtchn_pending(timer);
}

static void ask_singleshot(void)
{
    u64 at = now() + MILLISECONDS(20);
    s64 late;

    answer_rc("timer.single.set", singleshot(at, 0));
    answer_rc("timer.single.poll", poll_timer(MILLISECONDS(1000)));
    late = (s64)(now() - at);
    answer("timer.single.pending", "%d", evtchn_pending(timer));
    answer("timer.single.on_time", "%s", yes_or_no(late >= 0 && late < (s64)MILLISECONDS(500)));
    evtchn_clear(timer);
    answer_rc("timer.single.past", singleshot(now() - MILLISECONDS(10), 0));
    poll_timer(MILLISECONDS(100));
    answer("timer.single.past.pending", "%d", evtchn_pending(timer));
    evtchn_clear(timer);
    answer_rc("timer.single.past.future_flag", singleshot(now() - MILLISECONDS(10), VCPU_SSHOTTMR_future));
    poll_timer(MILLISECONDS(100));
    answer("timer.single.past.future_flag.pending", "%d", evtchn_pending(timer));
    evtchn_clear(timer);
    answer_rc("timer.single.future.future_flag", singleshot(now() + MILLISECONDS(5), VCPU_SSHOTTMR_future));
    poll_timer(MILLISECONDS(100));
    answer("timer.single.future.future_flag.pending", "%d", evtchn_pending(timer));
    evtchn_clear(timer);
    answer_rc("timer.single.zero", singleshot(0, 0));
    poll_timer(MILLISECONDS(100));
    answer("timer.single.zero.pending", "%d", evtchn_pending(timer));
    evtchn_clear(timer);
    answer_rc("timer.single.max", singleshot(~0ull, 0));
    poll_timer(MILLISECONDS(20));
    answer("timer.single.max.pending", "%d", evtchn_pending(timer));
    vcpu_op(VCPUOP_stop_singleshot_timer, 0, NULL);
    evtchn_clear(timer);
    singleshot(now() + MILLISECONDS(10), 0);
    answer_rc("timer.single.stop", vcpu_op(VCPUOP_stop_singleshot_timer, 0, NULL));
    poll_timer(MILLISECONDS(30));
    answer("timer.single.stopped.pending", "%d", evtchn_pending(timer));
    evtchn_clear(timer);
    answer_rc("timer.single.vcpu1", vcpu_op(VCPUOP_set_singleshot_timer, 1, &(struct vcpu_set_singleshot_timer){0}));
}

static void ask_periodic(void)
{
    unsigned int ticks = 0;

    answer_rc("timer.periodic.set", periodic(MILLISECONDS(10)));
    for (; ticks < 3 && spin(MILLISECONDS(1000)); ticks++)
        evtchn_clear(timer);
    answer("timer.periodic.ticks_of_3", "%u", ticks);
    answer_rc("timer.periodic.stop", vcpu_op(VCPUOP_stop_periodic_timer, 0, NULL));
    evtchn_clear(timer);
    spin(MILLISECONDS(30));
    answer("timer.periodic.stopped.pending", "%d", evtchn_pending(timer));
    evtchn_clear(timer);
    answer_rc("timer.periodic.0.5ms", periodic(500000));
    answer_rc("timer.periodic.1ms", periodic(1000000));
    vcpu_op(VCPUOP_stop_periodic_timer, 0, NULL);
    answer_rc("timer.periodic.0", periodic(0));
    answer_rc("timer.periodic.max", periodic(~0ull));
    evtchn_clear(timer);
}

static void ask_timers(void)
{
    evtchn_mask(timer);
    ask_singleshot();
    ask_periodic();
    answer_rc("timer.op", set_timer_op(now() + MILLISECONDS(5)));
    poll_timer(MILLISECONDS(100));
    answer("timer.op.pending", "%d", evtchn_pending(timer));
    evtchn_clear(timer);
    answer_rc("timer.op.past", set_timer_op(now() - MILLISECONDS(10)));
    poll_timer(MILLISECONDS(100));
    answer("timer.op.past.pending", "%d", evtchn_pending(timer));
    evtchn_clear(timer);
    set_timer_op(now() + MILLISECONDS(5));
    answer_rc("timer.op.zero", set_timer_op(0));
    poll_timer(MILLISECONDS(20));
    answer("timer.op.zero.pending", "%d", evtchn_pending(timer));
    evtchn_clear(timer);
}

static long poll_ports(evtchn_port_t *ports, unsigned int count, u64 timeout)
{
    struct sched_poll poll = {.nr_ports = count, .timeout = timeout};

    set_xen_guest_handle(poll.ports, ports);
    return sched_op(SCHEDOP_poll, &poll);
}

static void ask_poll(void)
{
    evtchn_port_t ports[2] = {timer, timer}, bad = 5000, closed = 40, zero = 0;

    answer_rc("sched.yield", sched_op(SCHEDOP_yield, NULL));
    answer_rc("sched.poll.timeout", poll_timer(MILLISECONDS(10)));
    answer_rc("sched.poll.past", poll_ports(&timer, 1, 1));
    answer_rc("sched.poll.badport", poll_ports(&bad, 1, now() + MILLISECONDS(10)));
    answer_rc("sched.poll.closed", poll_ports(&closed, 1, now() + MILLISECONDS(10)));
    answer_rc("sched.poll.none", poll_ports(NULL, 0, now() + MILLISECONDS(10)));
    answer_rc("sched.poll.129", poll_ports(&timer, 129, now() + MILLISECONDS(10)));
    answer_rc("sched.poll.unmapped", poll_ports(unmapped(), 1, now() + MILLISECONDS(10)));
    answer_rc("sched.poll.two", poll_ports(ports, 2, now() + MILLISECONDS(10)));
    answer_rc("sched.poll.port0", poll_ports(&zero, 1, now() + MILLISECONDS(10)));
    answer_rc("sched.poll.null", sched_op(SCHEDOP_poll, NULL));
}

/* A timer that fires before SCHEDOP_block is reached would leave the guest asleep. */
#define AMPLE MILLISECONDS(60)

static void ask_block(void)
{
    struct loop l = make_loop();
    u64 at;
    long rc;

    set_callback_vector(UPCALL_VECTOR);
    count_upcalls(UPCALL_VECTOR);
    evtchn_clear(l.far);
    evtchn_unmask_bit(l.far);
    evtchn_clear(timer);
    evtchn_unmask_bit(timer);
    calm(0);
    at = now() + AMPLE;
    singleshot(at, 0);
    irq_enable();
    rc = sched_op(SCHEDOP_block, NULL);
    irq_disable();
    answer_rc("sched.block.timer", rc);
    answer("sched.block.timer.upcalls", "%u", upcall_count);
    answer("sched.block.timer.waited", "%s", yes_or_no(now() >= at));

    upcall_count = 0;
    at = now() + AMPLE;
    irq_enable();
    evtchn_send(l.near);
    singleshot(at, 0);
    sched_op(SCHEDOP_block, NULL);
    irq_disable();
    answer("sched.block.after_delivery.returned", "%s", now() >= at ? "with the timer" : "early");
    answer("sched.block.after_delivery.upcalls", "%u", upcall_count);

    upcall_count = 0;
    singleshot(now() + MILLISECONDS(10), 0);
    irq_wait();
    answer("sched.hlt.upcalls", "%u", upcall_count);
    evtchn_mask(l.far);
    evtchn_mask(timer);
    close_loop(l);
}

static long watchdog(u32 id, u32 timeout)
{
    struct sched_watchdog op = {.id = id, .timeout = timeout};

    return sched_op(SCHEDOP_watchdog, &op);
}

static void ask_watchdog(void)
{
    answer_rc("sched.watchdog.new", watchdog(0, 60));
    answer_rc("sched.watchdog.new2", watchdog(0, 60));
    answer_rc("sched.watchdog.new3", watchdog(0, 60));
    answer_rc("sched.watchdog.poke", watchdog(1, 60));
    answer_rc("sched.watchdog.bad", watchdog(3, 60));
    answer_rc("sched.watchdog.destroy", watchdog(1, 0));
    answer_rc("sched.watchdog.destroy.again", watchdog(1, 0));
    answer_rc("sched.watchdog.poke_dead", watchdog(1, 60));
    answer_rc("sched.watchdog.destroy2", watchdog(2, 0));
    answer_rc("sched.watchdog.null", sched_op(SCHEDOP_watchdog, NULL));
}

static long remote_shutdown(domid_t dom)
{
    struct sched_remote_shutdown op = {.domain_id = dom, .reason = SHUTDOWN_poweroff};

    return sched_op(SCHEDOP_remote_shutdown, &op);
}

static void ask_shutdown(void)
{
    struct sched_shutdown code = {.reason = SHUTDOWN_poweroff};
    struct sched_pin_override pin = {.pcpu = 0};

    answer_rc("sched.remote_shutdown.self", remote_shutdown(DOMID_SELF));
    answer_rc("sched.remote_shutdown.dom0", remote_shutdown(0));
    answer_rc("sched.remote_shutdown.own", remote_shutdown(own));
    answer_rc("sched.remote_shutdown.nobody", remote_shutdown(NOBODY));
    answer_rc("sched.remote_shutdown.null", sched_op(SCHEDOP_remote_shutdown, NULL));
    answer_rc("sched.shutdown_code.0", sched_op(SCHEDOP_shutdown_code, &code));
    answer_rc("sched.shutdown_code.null", sched_op(SCHEDOP_shutdown_code, NULL));
    answer_rc("sched.shutdown.null", sched_op(SCHEDOP_shutdown, NULL));
    answer_rc("sched.pin_override", sched_op(SCHEDOP_pin_override, &pin));
    answer_rc("sched.op.8", sched_op(8, NULL));
    answer_rc("sched.op.99", sched_op(99, NULL));
}

static void second(void)
{
    ran++;
    for (;;)
        asm volatile("cli; hlt" ::: "memory");
}

static void ask_second(void)
{
    static struct vcpu_hvm_context zero = {.mode = VCPU_HVM_MODE_32B};
    struct vcpu_runstate_info state;
    u64 end;
    long rc;

    answer_rc("vcpu.init.zero32", vcpu_op(VCPUOP_initialise, 1, &zero));
    zero.mode = 7;
    answer_rc("vcpu.init.mode7", vcpu_op(VCPUOP_initialise, 1, &zero));
    answer_rc("vcpu.init.1", vcpu_initialise(1, second));
    answer_rc("vcpu.is_up.1.init", vcpu_op(VCPUOP_is_up, 1, NULL));
    answer_rc("vcpu.up.1", vcpu_op(VCPUOP_up, 1, NULL));
    answer_rc("vcpu.up.1.again", vcpu_op(VCPUOP_up, 1, NULL));
    for (end = now() + MILLISECONDS(2000); !ran && now() < end;)
        cpu_relax();
    answer("vcpu.1.ran", "%u", ran);
    /* HLT with interrupts off takes it down. */
    for (end = now() + MILLISECONDS(2000); vcpu_op(VCPUOP_is_up, 1, NULL) && now() < end;)
        sched_op(SCHEDOP_yield, NULL);
    rc = vcpu_op(VCPUOP_get_runstate_info, 1, &state);
    answer("vcpu.1.runstate", "%ld state=%d", rc, state.state);
    answer_rc("vcpu.down.1", vcpu_op(VCPUOP_down, 1, NULL));
    zero.mode = VCPU_HVM_MODE_32B;
    answer_rc("vcpu.init.after_down", vcpu_op(VCPUOP_initialise, 1, &zero));
}

static long register_info(unsigned int vcpu, ulong gfn, u32 offset)
{
    struct vcpu_register_vcpu_info op = {.mfn = gfn, .offset = offset};

    return vcpu_op(VCPUOP_register_vcpu_info, vcpu, &op);
}

static void ask_vcpu_info(void)
{
    u8 *page = alloc_pages(1), *other = alloc_pages(1);
    ulong gfn = (ulong)page >> PAGE_SHIFT;
    u64 before;

    answer_rc("vcpu.info.crossing", register_info(0, gfn, PAGE_SIZE - 32));
    answer_rc("vcpu.info.unaligned4", register_info(0, gfn, 4));
    answer_rc("vcpu.info.hole", register_info(0, alloc_hole(1), 0));
    answer_rc("vcpu.info.0", register_info(0, gfn, 256));
    vcpu_infos[0] = (struct vcpu_info *)(page + 256);
    answer("vcpu.info.0.upcall_pending", "%u", vcpu_infos[0]->evtchn_upcall_pending);
    answer("vcpu.info.0.selector", "%016lx", vcpu_infos[0]->evtchn_pending_sel);
    answer_rc("vcpu.info.0.again", register_info(0, gfn, 256));
    answer_rc("vcpu.info.0.other", register_info(0, (ulong)other >> PAGE_SHIFT, 0));
    sched_op(SCHEDOP_yield, NULL);
    before = now();
    for (unsigned int i = 0; i < 1000; i++)
        cpu_relax();
    answer("vcpu.info.0.time_works", "%s", yes_or_no(before > MILLISECONDS(1) && now() > before));
    answer_rc("vcpu.info.null", vcpu_op(VCPUOP_register_vcpu_info, 0, NULL));
    calm(0);
}

void ask_vcpus(void)
{
    ask_ops();
    ask_areas();
    if (evtchn_bind_virq(VIRQ_TIMER, 0, &timer))
        error("no VIRQ_TIMER");
    ask_timers();
    ask_poll();
    ask_block();
    ask_watchdog();
    ask_shutdown();
    ask_second();
    ask_vcpu_info();
    evtchn_close(timer);
}
