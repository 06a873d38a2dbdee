/*
 * long_mode_order: EFER.LME set before CR4.PAE, and exits in between.
 *
 * Purpose: the manuals let the two be set in either order before paging is turned on. QEMU 7.2's
 * nested virtualization does not survive an exit in that state if the guest's EFER is in force, so
 * an engine on top of it must keep LME back.
 * Blind spots: goes no further than the switch; the hvm64 variant of every guest does that.
 *
 * Variants: hvm32
 */
#include "guest.h"

const char test_title[] = "EFER.LME before CR4.PAE";

#define MSR_EFER 0xc0000080
#define EFER_LME 0x100
#define EFER_LMA 0x400
#define CR4_PAE 0x20

static void exits(const char *when)
{
    for (int i = 0; i < 20; i++) {
        check_hex(when, (ulong)xen_version(XENVER_version, NULL), 0x00040011);
        cpuid(xen_leaf);
    }
    check_hex(when, rdmsr(MSR_EFER) & (EFER_LME | EFER_LMA), EFER_LME);
}

void test_main(void)
{
    ulong cr4 = read_cr4();

    wrmsr(MSR_EFER, rdmsr(MSR_EFER) | EFER_LME);
    exits("with LME, without PAE");
    asm volatile("mov %0, %%cr4" ::"r"(cr4 | CR4_PAE) : "memory");
    exits("with LME and PAE");
    asm volatile("mov %0, %%cr4" ::"r"(cr4) : "memory");
    exits("with LME, PAE taken back");
    wrmsr(MSR_EFER, rdmsr(MSR_EFER) & ~(u64)EFER_LME);
    check_hex("without LME", rdmsr(MSR_EFER) & EFER_LME, 0);
    success();
}
