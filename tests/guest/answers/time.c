/*
 * time.*: the time records, the wall clock and how they agree with CPUID.
 */
#include "answers.h"

void ask_time(void)
{
    struct cpuid leaf0 = cpuid_count(0x40000003, 0), leaf1 = cpuid_count(0x40000003, 1);
    struct vcpu_time_info *t = &vcpu_infos[0]->time;
    struct xen_hvm_get_time get;
    u64 before, after;
    long rc;

    answer("time.version.even", "%s", yes_or_no(!(t->version & 1)));
    answer("time.tsc_timestamp", "%s", zero_or_not(t->tsc_timestamp));
    answer("time.system_time", "%s", zero_or_not(t->system_time));
    answer("time.mul", "%s", zero_or_not(t->tsc_to_system_mul));
    answer("time.flags", "%02x", t->flags);
    answer("time.leaf3.mul_same", "%s", yes_or_no(leaf1.ecx == t->tsc_to_system_mul));
    answer("time.leaf3.shift_same", "%s", yes_or_no(leaf1.edx == (u32)(s32)t->tsc_shift));
    answer("time.khz.present", "%s", yes_or_no(leaf0.ecx));
    answer("time.mode", "%u", leaf0.ebx);
    answer("time.incarnation", "%u", leaf0.edx);
    before = now();
    rc = hvm_op(HVMOP_get_time, &get);
    after = now();
    answer("time.get_time.between", "%s", yes_or_no(!rc && before <= get.now && get.now <= after));
    answer("time.wc.version.even", "%s", yes_or_no(!(shared_info->wc_version & 1)));
    /* 2020 to 2100. */
    answer("time.wc.sec", "%s",
           shared_info->wc_sec > 1577836800u && shared_info->wc_sec < 4102444800u ? "plausible" : "other");
    answer("time.wc.sec_hi", "%u", shared_info->xen_wc_sec_hi);
    answer("time.area", "%s", time_area.version && !(time_area.version & 1) ? "even" : "other");
    answer("time.area.mul", "%s", time_area.tsc_to_system_mul == t->tsc_to_system_mul ? "same" : "other");
    /* Whether it was written at all: the second vCPU has run. */
    answer("time.vcpu1.version", "%d", vcpu_infos[1]->time.version != 0);
    answer("time.arch.max_pfn", "%08lx", shared_info->arch.max_pfn);
}
