/*
 * vcpu_ops: vcpu_op but for the timers (timer_singleshot), and vm_assist.
 *
 * Purpose: vCPUs start in each mode that a vcpu_hvm_context can name, down and up again; where Xen
 * writes run state, time and vcpu_info is where the guest said; NMIs arrive on the vCPU meant; and
 * each errno is the one that Xen 4.17 gives.
 * Blind spots: most of the checks on a context's segments (unit tests have them); areas by physical
 * address (new_releases).
 *
 * Variants: hvm64 hvm32pae hvm32
 * Options: --vcpus 4
 */
#include "guest.h"

const char test_title[] = "vcpu_op";

static volatile u32 ran, nmis[4], sum[4];
/* A port that nothing comes to. */
static evtchn_port_t quiet;

static void on_nmi(struct regs *regs)
{
    (void)regs;
    nmis[this_vcpu()]++;
}

static void count(void)
{
    ran++;
    for (;;)
        sum[this_vcpu()]++;
}

static bool comes_true(volatile u32 *word, u32 from)
{
    for (u64 end = system_time() + MILLISECONDS(2000); system_time() < end;)
        if (*word != from)
            return true;
    return false;
}

/* Whether a word is the same for 3 ms, within two seconds: a kick takes a while on a busy host. */
static bool stops(volatile u32 *word)
{
    u64 now = system_time(), since = now, end = now + MILLISECONDS(2000);
    u32 last = *word;

    for (; now < end && now < since + MILLISECONDS(3); now = system_time()) {
        if (*word != last)
            since = now;
        last = *word;
    }
    return now < end;
}

static void test_start(void)
{
    static const enum vcpu_mode modes[] = {
        VCPU_PROTECTED,
        VCPU_REAL,
#ifdef __x86_64__
        VCPU_LONG,
#endif
    };
    struct vcpu_hvm_context context = {.mode = 2};

    call("VCPUOP_initialise");
    check_rc("a mode that does not exist", vcpu_op(VCPUOP_initialise, 1, &context), -XEN_EINVAL);
    check_rc("a vCPU that does not exist", vcpu_op(VCPUOP_initialise, 99, &context), -XEN_ENOENT);
    context.mode = VCPU_HVM_MODE_64B;
    check_rc("64-bit mode without paging", vcpu_op(VCPUOP_initialise, 1, &context), -XEN_EINVAL);
    check_rc("oneself", vcpu_op(VCPUOP_initialise, 0, &context), -XEN_EEXIST);
    call("VCPUOP_up");
    check_rc("before it is initialised", vcpu_op(VCPUOP_up, 1, NULL), -XEN_EINVAL);
    call("VCPUOP_initialise");
    for (unsigned int i = 0; i < ARRAY_SIZE(modes); i++) {
        check_rc("vcpu_start_in", vcpu_start_in(modes[i], i + 1, count), 0);
        check_true("it runs", comes_true(&sum[i + 1], 0));
    }
    check_signed("all have started", (long)ran, ARRAY_SIZE(modes));
    check_rc("one that is up", vcpu_op(VCPUOP_initialise, 1, &context), -XEN_EEXIST);
}

static void test_down(void)
{
    u32 before;

    call("VCPUOP_down");
    check_rc("down", vcpu_op(VCPUOP_down, 1, NULL), 0);
    check_true("it comes to a stop", stops(&sum[1]));
    check_rc("once more", vcpu_op(VCPUOP_down, 1, NULL), 0);
    check_rc("a vCPU that does not exist", vcpu_op(VCPUOP_down, 99, NULL), -XEN_ENOENT);
    call("VCPUOP_is_up");
    check_rc("is_up", vcpu_op(VCPUOP_is_up, 1, NULL), 0);
    call("VCPUOP_up");
    before = sum[1];
    check_rc("up", vcpu_op(VCPUOP_up, 1, NULL), 0);
    check_true("it goes on", comes_true(&sum[1], before));
    call("VCPUOP_is_up");
    check_rc("is_up", vcpu_op(VCPUOP_is_up, 1, NULL), 1);
}

static void test_nmi(void)
{
    call("VCPUOP_send_nmi");
    set_handler(2, on_nmi);
    check_rc("to oneself", vcpu_op(VCPUOP_send_nmi, 0, NULL), 0);
    check_true("it arrives", comes_true(&nmis[0], 0));
    check_rc("to vCPU 1", vcpu_op(VCPUOP_send_nmi, 1, NULL), 0);
    check_true("it arrives there", comes_true(&nmis[1], 0));
    check_signed("once", (long)nmis[0], 1);
    check_rc("vcpu.op.11: with a pointer", vcpu_op(VCPUOP_send_nmi, 0, &ran), -XEN_EINVAL);
    check_rc("a vCPU that does not exist", vcpu_op(VCPUOP_send_nmi, 99, NULL), -XEN_ENOENT);
}

static struct vcpu_runstate_info area[2] __attribute__((aligned(64)));

static int register_runstate(u32 vcpu, void *where)
{
    struct vcpu_register_runstate_memory_area op = {.addr.p = 0};

    op.addr.v = where;
    return (int)vcpu_op(VCPUOP_register_runstate_memory_area, vcpu, &op);
}

static void test_runstate(void)
{
    struct vcpu_runstate_info info;
    u64 start;

    call("VCPUOP_get_runstate_info");
    check_rc("vcpu.runstate.0", vcpu_op(VCPUOP_get_runstate_info, 0, &info), 0);
    check_signed("oneself runs", info.state, RUNSTATE_running);
    check_true("for some time by now", info.time[RUNSTATE_running]);
    check_rc("of vCPU 3", vcpu_op(VCPUOP_get_runstate_info, 3, &info), 0);
#ifndef __x86_64__
    check_signed("one that was never up", info.state, RUNSTATE_offline);
#endif
    check_rc("a vCPU that does not exist", vcpu_op(VCPUOP_get_runstate_info, 99, &info), -XEN_ENOENT);

    call("VCPUOP_register_runstate_memory_area");
    memset(area, 0xff, sizeof(area));
    check_rc("runstate area", register_runstate(0, &area[0]), 0);
    check_signed("vcpu.runstate.area", area[0].state, RUNSTATE_running);
    check_rc("vcpu.runstate.register.vcpu1", register_runstate(1, &area[1]), 0);
    check_signed("written at once", area[1].state, RUNSTATE_running);
    check_rc("vcpu.runstate.register.unmapped", register_runstate(2, (void *)(alloc_hole(1) << PAGE_SHIFT)), 0);
    check_rc("a vCPU that does not exist", register_runstate(99, area), -XEN_ENOENT);
    start = system_time();
    /* How long one wait is depends on how busy the host is. */
    for (unsigned int i = 0; i < 20 && area[0].time[RUNSTATE_blocked] < MILLISECONDS(4); i++)
        evtchn_poll(quiet, system_time() + MILLISECONDS(5));
    check_true("it counts the time that was waited", area[0].time[RUNSTATE_blocked] >= MILLISECONDS(4));
    check_true("the last change is at its end", area[0].state_entry_time >= start + MILLISECONDS(4));
    vcpu_op(VCPUOP_down, 1, NULL);
    check_rc("of vCPU 1, down", vcpu_op(VCPUOP_get_runstate_info, 1, &info), 0);
    check_signed("it is offline", info.state, RUNSTATE_offline);
    vcpu_op(VCPUOP_up, 1, NULL);

    call("vm_assist");
    check_rc("vm_assist.enable.0", vm_assist(VMASST_CMD_enable, VMASST_TYPE_4gb_segments), -XEN_EINVAL);
    check_rc("vm_assist.enable.63", vm_assist(VMASST_CMD_enable, 63), -XEN_EINVAL);
    check_rc("a command that does not exist", vm_assist(2, VMASST_TYPE_runstate_update_flag), -XEN_ENOSYS);
    check_rc("enable", vm_assist(VMASST_CMD_enable, VMASST_TYPE_runstate_update_flag), 0);
    evtchn_poll(quiet, system_time() + MILLISECONDS(2));
    check_true("the flag is clear after an update", !(area[0].state_entry_time & XEN_RUNSTATE_UPDATE));
    check_rc("disable", vm_assist(VMASST_CMD_disable, VMASST_TYPE_runstate_update_flag), 0);
    call("VCPUOP_register_runstate_memory_area");
    check_rc("vcpu.runstate.register.null", register_runstate(0, NULL), 0);
    check_rc("and of vCPU 1", register_runstate(1, NULL), 0);
    memset(area, 0, sizeof(area));
    evtchn_poll(quiet, system_time() + MILLISECONDS(2));
    check_true("nothing is written any more", !area[0].state_entry_time);
}

static struct vcpu_time_info time_area __attribute__((aligned(64)));

static void test_time(void)
{
    struct vcpu_register_time_memory_area op = {.addr.p = 0};

    call("VCPUOP_register_vcpu_time_memory_area");
    op.addr.v = &time_area;
    check_rc("vcpu.time_area.register", vcpu_op(VCPUOP_register_vcpu_time_memory_area, 0, &op), 0);
    sched_op(SCHEDOP_yield, NULL);
    check_true("time.area", time_area.version && !(time_area.version & 1));
    check_hex("time.area.mul", time_area.tsc_to_system_mul, shared_info->vcpu_info[0].time.tsc_to_system_mul);
    check_rc("a vCPU that does not exist", vcpu_op(VCPUOP_register_vcpu_time_memory_area, 99, &op), -XEN_ENOENT);
    op.addr.v = NULL;
    check_rc("taken away", vcpu_op(VCPUOP_register_vcpu_time_memory_area, 0, &op), 0);
}

static int register_info(u32 vcpu, ulong gfn, u32 offset)
{
    struct vcpu_register_vcpu_info op = {.mfn = gfn, .offset = offset};

    return (int)vcpu_op(VCPUOP_register_vcpu_info, vcpu, &op);
}

static void test_vcpu_info(void)
{
    u8 *page = alloc_pages(1);
    struct vcpu_info *info = (struct vcpu_info *)(page + 512);
    ulong gfn = (ulong)page >> PAGE_SHIFT;
    evtchn_port_t port = 0;
    u32 old_version = shared_info->vcpu_info[0].time.version;

    call("VCPUOP_register_vcpu_info");
    check_rc("vcpu.info.crossing", register_info(0, gfn, PAGE_SIZE - 32), -XEN_ENXIO);
    check_rc("unaligned", register_info(0, gfn, 2), -XEN_ENXIO);
    check_rc("vcpu.info.hole", register_info(0, alloc_hole(1), 0), -XEN_EINVAL);
    check_rc("of a vCPU that runs", register_info(1, gfn, 0), -XEN_EINVAL);
    check_rc("a vCPU that does not exist", register_info(99, gfn, 0), -XEN_ENOENT);
    check_rc("register_vcpu_info", register_info(0, gfn, 512), 0);
    check_rc("vcpu.info.0.again", register_info(0, gfn, 512), -XEN_EINVAL);
    check_rc("vcpu.info.0.other", register_info(0, gfn, 1024), -XEN_EINVAL);
    check_true("what was there came along", info->time.version >= old_version);
    check_signed("events may be waiting", info->evtchn_upcall_pending, 1);
    info->evtchn_upcall_pending = 0;
    info->evtchn_pending_sel = 0;
    evtchn_bind_ipi(0, &port);
    evtchn_unmask_bit(port);
    evtchn_send(port);
    check_signed("an event is told there", info->evtchn_upcall_pending, 1);
    check_hex("and its selector", info->evtchn_pending_sel, 1);
    check_true("time goes on there", !(info->time.version & 1) && info->time.tsc_to_system_mul);
    evtchn_close(port);
}

void test_main(void)
{
    if (vcpu_count() < 4)
        skip("needs four vCPUs");
    shared_info_map();
    evtchn_mask_all();
    if (evtchn_bind_ipi(0, &quiet))
        error("no IPI port");
    test_start();
    test_down();
    test_nmi();
    test_runstate();
    test_time();
    test_vcpu_info();
    call("VCPUOP_get_physid");
    check_rc("vcpu.physid.0", vcpu_op(VCPUOP_get_physid, 0, &time_area), -XEN_EINVAL);
    call(NULL);
    check_rc("vcpu.op.99", vcpu_op(99, 0, NULL), -XEN_ENOSYS);
    success();
}
