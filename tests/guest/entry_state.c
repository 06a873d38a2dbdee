/*
 * entry_state: registers at the PVH entry point, recorded by boot.S before anything changes.
 *
 * Purpose: the state that the x86/HVM direct boot ABI promises, and what Xen 4.17 puts where the
 * document is silent. boot.S itself proves flat segments: it reads near 4 GiB through CS, DS, ES
 * and SS and pushes on its stack.
 * Blind spots: the hidden parts of TR (base, limit 0x67, type) and of LDTR cannot be read; FPU,
 * MTRR and debug state other than DR6 and DR7 are not looked at.
 */
#include "guest.h"

const char test_title[] = "PVH entry state";

extern const u8 _start[];

void test_main(void)
{
    const struct entry_state *e = &entry_state;

    check_hex("entry.eip", e->eip, (ulong)_start);
    check_hex("entry.ebx magic", *(const u32 *)(ulong)e->ebx, XEN_HVM_START_MAGIC_VALUE);
    check_hex("entry.eax", e->eax, 0);
    check_hex("entry.ecx", e->ecx, 0);
    check_hex("entry.edx", e->edx, 0);
    check_hex("entry.esi", e->esi, 0);
    check_hex("entry.edi", e->edi, 0);
    check_hex("entry.ebp", e->ebp, 0);
    check_hex("entry.esp", e->esp, 0);

    check_hex("entry.eflags VM, IF, TF", e->eflags & (EFLAGS_VM | EFLAGS_IF | EFLAGS_TF), 0);
    check_hex("entry.eflags", e->eflags, 0x00000002);
    check_hex("entry.cr0", e->cr0, CR0_PE | CR0_ET);
    check_hex("entry.cr2", e->cr2, 0);
    check_hex("entry.cr3", e->cr3, 0);
    check_hex("entry.cr4", e->cr4, 0);
    check_hex("entry.dr6", e->dr6, 0xffff0ff0);
    check_hex("entry.dr7", e->dr7, 0x00000400);
    check_hex("entry.efer", e->efer, 0);

    for (int seg = SEG_CS; seg <= SEG_TR; seg++) {
        static const char *const name[] = {"cs", "ds", "es", "ss", "fs", "gs", "tr"};

        if (e->sel[seg] || e->lar[seg] != ~0u || e->lsl[seg] != ~0u)
            failure("entry.sel.%s: selector 0x%x, lar 0x%x, lsl 0x%x; want a null selector", name[seg],
                    e->sel[seg], e->lar[seg], e->lsl[seg]);
    }
    check_hex("entry.gdtr.base", e->gdtr_base, 0);
    check_hex("entry.idtr.limit", e->idtr_limit, 0);
    check_hex("entry.idtr.base", e->idtr_base, 0);
    success();
}
