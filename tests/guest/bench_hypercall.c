/*
 * bench_hypercall: what a null hypercall costs.
 *
 * Purpose: measures XENVER_version by the TSC and prints one line for the benchmark to read:
 *   bench_hypercall: n=10000 cycles=C ns=N
 * with C and N the mean for one call, N by the TSC frequency of CPUID leaf 3. The command line may
 * hold n=COUNT and inline=1 (VMCALL or VMMCALL instead of the hypercall page).
 * Blind spots: the mean hides outliers; the guest's clock is taken as true.
 *
 * Expect: bench_hypercall: n=\d+ cycles=\d+ ns=\d+
 * Options: --cmdline n=200
 */
#include "guest.h"

const char test_title[] = "Null hypercall";

void test_main(void)
{
    ulong n = cmdline_number("n", 10000), by_vmcall = cmdline_number("inline", 0);
    u32 khz = cpuid_count(xen_leaf + 3, 0).ecx, cycles;
    u64 start;

    if (!n || n > 100000000)
        error("n=%lu is not between 1 and 100000000", n);
    /* The first calls warm up whatever translates or caches. */
    for (ulong i = 0; i < 50; i++)
        xen_version(XENVER_version, NULL);

    start = rdtsc();
    if (by_vmcall) {
        for (ulong i = 0; i < n; i++)
            hypercall_inline(__HYPERVISOR_xen_version, XENVER_version, 0, 0, 0, 0);
    } else {
        for (ulong i = 0; i < n; i++)
            xen_version(XENVER_version, NULL);
    }
    cycles = (u32)div_u64(rdtsc() - start, (u32)n, NULL);
    printk("bench_hypercall: n=%lu cycles=%u ns=%u\n", n, cycles,
           khz ? (u32)div_u64(cycles * 1000000ull, khz, NULL) : 0);
    success();
}
