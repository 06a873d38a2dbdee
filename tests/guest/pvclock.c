/*
 * pvclock: Xen system time by struct vcpu_time_info and wall-clock time.
 *
 * Purpose: the structure is well formed, time never runs backwards, agrees with HVMOP_get_time, and
 * a second of sleep is about a second.
 * Blind spots: all clocks here come from the same host clock, so a uniformly wrong rate shows only
 * if the harness times the run; other vCPUs; time across save and restore.
 */
#include "guest.h"

const char test_title[] = "Time";

static void test_fields(void)
{
    volatile struct vcpu_time_info *t = &shared_info->vcpu_info[0].time;

    check_hex("time.version.even", t->version & 1, 0);
    check_true("time.version set", t->version);
    check_true("time.tsc_timestamp", t->tsc_timestamp);
    check_true("time.mul", t->tsc_to_system_mul);
    check_hex("time.flags", t->flags, 0);
    check_hex("time.arch.max_pfn", shared_info->arch.max_pfn, 0);
    check_true("time.wc.version even", !(shared_info->wc_version & 1));
    /* 2020 to 2100. */
    check_true("time.wc.sec", shared_info->wc_sec > 1577836800u && shared_info->wc_sec < 4102444800u);
    check_true("time.wc.nsec", shared_info->wc_nsec < 1000000000u);
    check_hex("time.wc.sec_hi", shared_info->xen_wc_sec_hi, 0);
}

static void test_monotonic(void)
{
    u64 last = system_time();

    for (unsigned int i = 0; i < 100000; i++) {
        u64 now = system_time();

        if (now < last) {
            failure("time ran backwards by %llu ns", (unsigned long long)(last - now));
            return;
        }
        last = now;
    }
}

static void test_get_time(void)
{
    for (int i = 0; i < 20; i++) {
        struct xen_hvm_get_time op;
        u64 before = system_time(), after;
        long rc = hvm_op(HVMOP_get_time, &op);

        after = system_time();
        if (rc || op.now < before || op.now > after) {
            failure("time.get_time.between: %ld, %llu not in %llu to %llu", rc, (unsigned long long)op.now,
                    (unsigned long long)before, (unsigned long long)after);
            return;
        }
    }
}

static void test_sleep(void)
{
    struct sched_poll nothing = {.nr_ports = 0};
    u64 start = system_time(), tsc = rdtsc(), ns, khz;
    u32 leaf_khz = cpuid_count(xen_leaf + 3, 0).ecx;

    nothing.timeout = start + MILLISECONDS(1000);
    check_rc("sched.poll.none", sched_op(SCHEDOP_poll, &nothing), 0);
    ns = system_time() - start;
    khz = div_u64((rdtsc() - tsc) * 1000, (u32)div_u64(ns, 1000, NULL), NULL);
    printk("slept %llu ns, TSC at %llu kHz, leaf 3 says %u\n", (unsigned long long)ns, (unsigned long long)khz,
           leaf_khz);
    if (ns < MILLISECONDS(1000) || ns > MILLISECONDS(1500))
        failure("a sleep of a second took %llu ns", (unsigned long long)ns);
    if (khz < leaf_khz - leaf_khz / 50 || khz > leaf_khz + leaf_khz / 50)
        failure("the TSC ran at %llu kHz", (unsigned long long)khz);
}

void test_main(void)
{
    shared_info_map();
    evtchn_mask_all();
    test_fields();
    test_monotonic();
    test_get_time();
    test_sleep();
    success();
}
