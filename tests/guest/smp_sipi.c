/*
 * smp_sipi: a second vCPU by INIT and SIPI, as operating systems do it; by the x2APIC if there is one.
 *
 * Purpose: the vCPU begins in real mode at the page that the SIPI names, reaches the variant's mode
 * and runs at the same time as the first.
 * Blind spots: the other kind of APIC; INIT to a vCPU that runs.
 *
 * Options: --vcpus 2
 */
#include "guest.h"

const char test_title[] = "Second vCPU by INIT and SIPI";
const bool test_bare = true;

static volatile u32 echo, ask;

static void second(void)
{
    for (;;)
        echo = ask;
}

void test_main(void)
{
    /* Xen numbers local APICs by twos. */
    u32 apic_id = xen_present ? 2 : 1;

    if (!(cpuid(1).edx & 1u << 9))
        skip("no local APIC");
    if (xen_present && vcpu_count() < 2)
        skip("needs two vCPUs");
    vcpu_start_sipi(1, apic_id, second);
    for (u32 i = 1; i <= 100; i++) {
        ask = i;
        for (u64 spins = 0; echo != i; spins++) {
            if (spins > 2000000000ull)
                error("vCPU 1 stopped at question %u", i);
            cpu_relax();
        }
    }
    success();
}
