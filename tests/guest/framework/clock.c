/*
 * Xen system time by struct vcpu_time_info. Facts: xen/xen.h.
 */
#include "guest.h"

struct vcpu_time_info time_info(unsigned int vcpu)
{
    volatile struct vcpu_time_info *src;
    struct vcpu_time_info t;

    shared_info_map();
    src = &shared_info->vcpu_info[vcpu].time;
    do {
        t.version = src->version & ~1u;
        barrier();
        t.tsc_timestamp = src->tsc_timestamp;
        t.system_time = src->system_time;
        t.tsc_to_system_mul = src->tsc_to_system_mul;
        t.tsc_shift = src->tsc_shift;
        t.flags = src->flags;
        barrier();
    } while (t.version != src->version);
    return t;
}

u64 tsc_to_ns(const struct vcpu_time_info *t, u64 tsc)
{
    u64 delta = tsc - t->tsc_timestamp;

    if (t->tsc_shift >= 0)
        delta <<= t->tsc_shift;
    else
        delta >>= -t->tsc_shift;
    return t->system_time + mul_shift_32(delta, t->tsc_to_system_mul);
}

u64 system_time(void)
{
    struct vcpu_time_info t = time_info(0);

    return tsc_to_ns(&t, rdtsc());
}
