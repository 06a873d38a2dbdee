/*
 * cpuid_leaves: the hypervisor leaves at 0x40000000.
 *
 * Purpose: signature, version, hypercall page and time leaves hold what Xen 4.17 answers, unused
 * registers and leaves are zero, and time agrees with struct vcpu_time_info.
 * Blind spots: the ordinary leaves but for the hypervisor bit; leaves under Viridian; vCPUs other
 * than the first.
 */
#include "guest.h"

const char test_title[] = "Xen CPUID leaves";

static void check_leaf(u32 leaf, u32 subleaf, const char *which, u32 got, u32 want)
{
    if (got != want)
        failure("cpuid.%08x.%u.%s: got 0x%x, want 0x%x", leaf, subleaf, which, got, want);
}

static void check_zero(u32 leaf, u32 subleaf)
{
    struct cpuid c = cpuid_count(leaf, subleaf);

    check_leaf(leaf, subleaf, "eax", c.eax, 0);
    check_leaf(leaf, subleaf, "ebx", c.ebx, 0);
    check_leaf(leaf, subleaf, "ecx", c.ecx, 0);
    check_leaf(leaf, subleaf, "edx", c.edx, 0);
}

static void check_time(void)
{
    struct vcpu_time_info t = time_info(0);
    struct cpuid c = cpuid_count(0x40000003, 0);
    u64 khz_by_scale;

    check_leaf(0x40000003, 0, "eax reserved", c.eax & ~7u, 0);
    check_leaf(0x40000003, 0, "ebx", c.ebx, 0);
    check_true("time.khz.present", c.ecx);
    check_leaf(0x40000003, 0, "edx", c.edx, 1);

    khz_by_scale = (1000000ull << 32) / t.tsc_to_system_mul;
    if (t.tsc_shift < 0)
        khz_by_scale <<= -t.tsc_shift;
    else
        khz_by_scale >>= t.tsc_shift;
    if (khz_by_scale < c.ecx - c.ecx / 1000 || khz_by_scale > c.ecx + c.ecx / 1000)
        failure("cpuid.40000003.0.ecx: %u kHz, but vcpu_time_info scales by %llu kHz", c.ecx,
                (unsigned long long)khz_by_scale);

    /* Xen may refine its calibration at any time: compare what belongs together. */
    do {
        t = time_info(0);
        c = cpuid_count(0x40000003, 1);
    } while (t.version != time_info(0).version);
    check_leaf(0x40000003, 1, "ebx", c.ebx, 0);
    check_leaf(0x40000003, 1, "ecx (time.leaf3.mul_same)", c.ecx, t.tsc_to_system_mul);
    check_leaf(0x40000003, 1, "edx", c.edx, (u32)(s32)t.tsc_shift);

    c = cpuid_count(0x40000003, 2);
    check_true("cpuid.40000003.2.eax", c.eax);
    check_leaf(0x40000003, 2, "ebx", c.ebx, 0);
    check_leaf(0x40000003, 2, "ecx", c.ecx, 0);
    check_leaf(0x40000003, 2, "edx", c.edx, 0);
    check_zero(0x40000003, 3);
}

void test_main(void)
{
    struct cpuid c = cpuid(1);

    check_true("cpuid.1.ecx hypervisor bit", c.ecx >> 31);
    check_hex("first Xen leaf", xen_leaf, 0x40000000);

    c = cpuid(0x40000000);
    check_leaf(0x40000000, 0, "eax", c.eax, 0x40000005);
    check_leaf(0x40000000, 0, "ebx", c.ebx, XEN_CPUID_SIGNATURE_EBX);
    check_leaf(0x40000000, 0, "ecx", c.ecx, XEN_CPUID_SIGNATURE_ECX);
    check_leaf(0x40000000, 0, "edx", c.edx, XEN_CPUID_SIGNATURE_EDX);

    c = cpuid(0x40000001);
    check_leaf(0x40000001, 0, "eax", c.eax, 0x00040011);
    check_leaf(0x40000001, 0, "eax by XENVER_version", c.eax, (u32)xen_version(XENVER_version, NULL));
    check_leaf(0x40000001, 0, "ebx", c.ebx, 0);
    check_leaf(0x40000001, 0, "ecx", c.ecx, 0);
    check_leaf(0x40000001, 0, "edx", c.edx, 0);

    for (u32 sub = 0; sub < 4; sub++) {
        c = cpuid_count(0x40000002, sub);
        check_leaf(0x40000002, sub, "eax", c.eax, 1);
        check_leaf(0x40000002, sub, "ebx", c.ebx, 0x40000000);
        check_leaf(0x40000002, sub, "ecx", c.ecx, 0);
        check_leaf(0x40000002, sub, "edx", c.edx, 0);
    }
    check_time();

    c = cpuid(0x40000004);
    check_true("cpuid.40000004.0.eax has the vCPU id", c.eax & XEN_HVM_CPUID_VCPU_ID_PRESENT);
    check_leaf(0x40000004, 0, "eax never", c.eax & XEN_HVM_CPUID_EXT_DEST_ID, 0);
    check_leaf(0x40000004, 0, "eax reserved", c.eax & ~0x7fu, 0);
    check_leaf(0x40000004, 0, "ebx", c.ebx, 0);
    if (!(c.eax & XEN_HVM_CPUID_DOMID_PRESENT))
        check_leaf(0x40000004, 0, "ecx", c.ecx, 0);
    check_leaf(0x40000004, 0, "edx", c.edx, 0);

    for (u32 sub = 0; sub < 4; sub++)
        check_zero(0x40000005, sub);
    check_zero(0x40000006, 0);
    check_zero(0x40000007, 0);
    success();
}
