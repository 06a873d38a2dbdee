/*
 * tsc_modes: the time stamp counter in the mode that the command line names (mode=0 to 2).
 *
 * Purpose: leaf 0x40000003 says the mode, RDTSC, RDTSCP with TSC_AUX and RDMSR read one counter that
 * only grows, at the rate of the leaf, also with prefixes, and struct vcpu_time_info scales it.
 * Blind spots: whether a read left the guest; CR4.TSD; more than one vCPU.
 *
 * Driven by: test_tsc.py
 */
#include "guest.h"

const char test_title[] = "TSC modes";

#define MODE_EMULATE 1
#define MSR_TSC 0x10
#define MSR_TSC_AUX 0xc0000103
#define AUX 0x89abcdefu
#define READS 500

static ulong mode;

static void test_leaf(void)
{
    struct cpuid main = cpuid_count(xen_leaf + 3, 0), scale = cpuid_count(xen_leaf + 3, 1);
    struct cpuid host = cpuid_count(xen_leaf + 3, 2);
    volatile struct vcpu_time_info *t = &shared_info->vcpu_info[0].time;

    check_hex("leaf 3 features", main.eax, 6 | (mode == MODE_EMULATE));
    check_hex("leaf 3 mode", main.ebx, mode);
    check_hex("leaf 3 incarnation", main.edx, 1);
    check_true("leaf 3 kHz", main.ecx > 100000);
    check_hex("leaf 3 host kHz", host.eax, main.ecx);
    check_hex("leaf 3 offset", scale.eax | scale.ebx, 0);
    if (mode == MODE_EMULATE) {
        check_hex("leaf 3 mul", scale.ecx, t->tsc_to_system_mul);
        check_hex("leaf 3 shift", scale.edx, (u32)(s32)t->tsc_shift);
        check_true("the counter began with the domain", rdtsc() >> 42 == 0);
    }
    check_hex("flags", t->flags, 0);
}

#define READ_TSC(name, code)                                                                      \
    static u64 name(u32 *aux)                                                                     \
    {                                                                                             \
        ulong a = ~0ul, d = ~0ul, c = 0x55555555;                                                 \
        asm volatile(code : "+a"(a), "+d"(d), "+c"(c)::"memory");                                 \
        if ((u64)a >> 32 || (u64)d >> 32)                                                         \
            failure(#name " leaves upper halves");                                                \
        *aux = c;                                                                                 \
        return (u64)d << 32 | (u32)a;                                                             \
    }

READ_TSC(plain, "rdtsc")
READ_TSC(with_aux, "rdtscp")
READ_TSC(prefixed, ".byte 0x66, 0x3e; rdtsc")
READ_TSC(prefixed_with_aux, ".byte 0x65, 0x67; rdtscp")
#ifdef __x86_64__
READ_TSC(rex, ".byte 0x48; rdtsc")
#endif

static u64 by_msr(u32 *aux)
{
    *aux = 0x55555555;
    return rdmsr(MSR_TSC);
}

static const struct {
    const char *name;
    u64 (*read)(u32 *aux);
    u32 aux;
} ways[] = {
    {"rdtsc", plain, 0x55555555},
    {"rdtscp", with_aux, AUX},
    {"rdtsc with prefixes", prefixed, 0x55555555},
    {"rdtscp with prefixes", prefixed_with_aux, AUX},
#ifdef __x86_64__
    {"rdtsc with REX", rex, 0x55555555},
#endif
    {"rdmsr", by_msr, 0x55555555},
};

static void test_ways(void)
{
    u64 last = 0;

    wrmsr(MSR_TSC_AUX, AUX);
    for (unsigned int i = 0; i < READS; i++) {
        unsigned int way = i % ARRAY_SIZE(ways);
        u32 aux;
        u64 now = ways[way].read(&aux);

        if (now <= last) {
            failure("%s: %llx after %llx", ways[way].name, (unsigned long long)now, (unsigned long long)last);
            return;
        }
        if (aux != ways[way].aux) {
            failure("%s: ecx is %x", ways[way].name, aux);
            return;
        }
        last = now;
    }
}

static void test_scale(void)
{
    u64 last = 0;

    for (unsigned int i = 0; i < READS; i++) {
        struct xen_hvm_get_time op;
        u64 before = system_time(), after;
        long rc = hvm_op(HVMOP_get_time, &op);

        after = system_time();
        if (rc || op.now < before || op.now > after || before < last) {
            failure("HVMOP_get_time: %ld, %llu, %llu, %llu, %llu", rc, (unsigned long long)last,
                    (unsigned long long)before, (unsigned long long)op.now, (unsigned long long)after);
            return;
        }
        last = after;
    }
}

static void test_rate(void)
{
    struct sched_poll nothing = {.nr_ports = 0};
    u64 start = system_time(), tsc = rdtsc(), ns, khz;
    u32 leaf = cpuid_count(xen_leaf + 3, 0).ecx;

    nothing.timeout = start + MILLISECONDS(300);
    check_rc("sched.poll", sched_op(SCHEDOP_poll, &nothing), 0);
    ns = system_time() - start;
    khz = div_u64((rdtsc() - tsc) * 1000, (u32)div_u64(ns, 1000, NULL), NULL);
    printk("%llu kHz, leaf 3 says %u\n", (unsigned long long)khz, leaf);
    check_true("the rate is that of the leaf", khz > leaf - leaf / 100 && khz < leaf + leaf / 100);
}

void test_main(void)
{
    mode = cmdline_number("mode", 0);
    shared_info_map();
    evtchn_mask_all();
    test_leaf();
    test_ways();
    test_scale();
    test_rate();
    success();
}
