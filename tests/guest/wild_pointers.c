/*
 * wild_pointers: hypercalls with pointers that lead nowhere.
 *
 * Purpose: NULL, unmapped, non-RAM, read-only and page-crossing pointers give the errno that
 * Xen 4.17 gives, never a guest fault; a non-canonical pointer is walked by its low 48 bits, as
 * Xen does; and the host survives a sweep of every hypercall and command with such pointers.
 * Blind spots: pointers inside structures, but for SCHEDOP_poll; the sweep leaves out commands that
 * stop the guest by design and looks at no answer.
 *
 * Options: --vcpus 2
 */
#include "guest.h"

const char test_title[] = "Wild pointers";

/* The answer if the argument at position `arg` (2 or 3) is the wild pointer. */
struct question {
    const char *what;
    u32 nr, cmd;
    int arg, other;
    int want;
};

#define VERSION(op, want) {"version.op." #op, __HYPERVISOR_xen_version, op, 2, 0, want}
#define HVM(op, want) {"hvm.op." #op, __HYPERVISOR_hvm_op, op, 2, 0, want}
#define MEM(op, want) {"mem.op." #op, __HYPERVISOR_memory_op, op, 2, 0, want}
#define EVTCHN(op, want) {"evtchn.op." #op, __HYPERVISOR_event_channel_op, op, 2, 0, want}
#define GNTTAB(op, want) {"gnttab.op." #op, __HYPERVISOR_grant_table_op, op, 2, 1, want}
#define VCPU(op, vcpu, want) {"vcpu.op." #op ".vcpu" #vcpu, __HYPERVISOR_vcpu_op, op, 3, vcpu, want}
#define SCHED(op, want) {"sched.op." #op, __HYPERVISOR_sched_op, op, 2, 0, want}

/* Xen's layer for 32-bit guests refuses these two before it looks at the pointer. */
#ifdef __x86_64__
#define MACHPHYS_MFN_LIST -14
#define CLAIM_PAGES -14
#else
#define MACHPHYS_MFN_LIST -95
#define CLAIM_PAGES -38
#endif

/* Answers that are the same for each kind of wild pointer. */
static const struct question any[] = {
    VERSION(1, -14), VERSION(2, -14), VERSION(3, -14), VERSION(4, -14), VERSION(5, -14),
    VERSION(6, -14), VERSION(8, -14), VERSION(9, -14), VERSION(11, -38), VERSION(12, -38),
    VERSION(13, -38),
    HVM(0, -14), HVM(1, -14), HVM(10, -14), HVM(15, -14), HVM(23, -14),
    MEM(5, MACHPHYS_MFN_LIST), MEM(7, -14), MEM(8, -38), MEM(9, -14), MEM(10, -38), MEM(12, -38), MEM(13, -14),
    MEM(14, -14), MEM(16, -14), MEM(17, -14), MEM(20, -38), MEM(21, -14), MEM(22, -38), MEM(24, CLAIM_PAGES),
    MEM(25, -95), MEM(26, -14), MEM(28, -13), MEM(29, -38), MEM(30, -38), MEM(31, -38), MEM(32, -38),
    EVTCHN(0, -14), EVTCHN(1, -14), EVTCHN(2, -14), EVTCHN(3, -14), EVTCHN(4, -14), EVTCHN(5, -14),
    EVTCHN(6, -14), EVTCHN(7, -14), EVTCHN(8, -14), EVTCHN(9, -14), EVTCHN(10, -14), EVTCHN(11, -14),
    EVTCHN(13, -14), EVTCHN(99, -38),
    GNTTAB(1, -14), GNTTAB(2, -14), GNTTAB(5, -14), GNTTAB(6, -14), GNTTAB(8, -14), GNTTAB(11, -14),
    GNTTAB(12, -38), GNTTAB(15, -38), GNTTAB(99, -38),
    VCPU(0, 0, -14), VCPU(4, 1, -14), VCPU(5, 0, -14), VCPU(6, 0, -14), VCPU(12, 0, -22),
    VCPU(0, 9, -2), VCPU(5, 9, -2), VCPU(6, 9, -2), VCPU(8, 0, -14), VCPU(8, 9, -2), VCPU(10, 1, -14),
    VCPU(12, 9, -2), VCPU(13, 1, -14), VCPU(14, 0, -38), VCPU(15, 1, -38), VCPU(16, 1, -38), VCPU(99, 0, -38),
    SCHED(2, -14), SCHED(3, -14), SCHED(8, -38), SCHED(99, -38),
};

#if HAVE_PAGING
static const struct question only_null[] = {
    VERSION(7, 4096), {"hvm.flush_tlbs", __HYPERVISOR_hvm_op, HVMOP_flush_tlbs, 2, 0, 0},
};
#endif

static const struct question only_bad[] = {
    VERSION(7, -22), {"hvm.flush_tlbs.ptr", __HYPERVISOR_hvm_op, HVMOP_flush_tlbs, 2, 0, -22},
};

static long ask(const struct question *q, ulong pointer)
{
    if (q->arg == 3)
        return hypercall3(q->nr, q->cmd, q->other, pointer);
    return hypercall3(q->nr, q->cmd, pointer, q->other);
}

static void check_answers(const char *kind, const struct question *q, unsigned int n, ulong pointer)
{
    for (; n; n--, q++) {
        long got = ask(q, pointer);

        if (got != q->want)
            failure("%s.%s: got %ld, want %d", q->what, kind, got, q->want);
    }
}

/* The hypercalls that look at their arguments. set_timer_op has no pointer; multicall is below. */
static const u32 swept[] = {
    __HYPERVISOR_platform_op,      __HYPERVISOR_memory_op,    __HYPERVISOR_xen_version,
    __HYPERVISOR_console_io,       __HYPERVISOR_physdev_op_compat, __HYPERVISOR_grant_table_op,
    __HYPERVISOR_vm_assist,        __HYPERVISOR_vcpu_op,      __HYPERVISOR_mmuext_op,
    __HYPERVISOR_xsm_op,           __HYPERVISOR_nmi_op,       __HYPERVISOR_sched_op,
    __HYPERVISOR_callback_op,      __HYPERVISOR_xenoprof_op,  __HYPERVISOR_event_channel_op,
    __HYPERVISOR_physdev_op,       __HYPERVISOR_hvm_op,       __HYPERVISOR_sysctl,
    __HYPERVISOR_domctl,           __HYPERVISOR_kexec_op,     __HYPERVISOR_tmem_op,
    __HYPERVISOR_argo_op,          __HYPERVISOR_xenpmu_op,    __HYPERVISOR_dm_op,
    __HYPERVISOR_hypfs_op,
};

/* These two stop the vCPU by design. */
static bool stops(u32 nr, u32 cmd)
{
    return (nr == __HYPERVISOR_sched_op && cmd == SCHEDOP_block) ||
           (nr == __HYPERVISOR_vcpu_op && cmd == VCPUOP_down);
}

static void sweep(ulong pointer)
{
    for (unsigned int i = 0; i < ARRAY_SIZE(swept); i++) {
        for (u32 cmd = 0; cmd < 36; cmd++) {
            if (stops(swept[i], cmd))
                continue;
            hypercall5(swept[i], cmd, pointer, pointer, pointer, pointer);
#if HAVE_PAGING
            /* Without paging the 1 would be a good pointer, and for some a deadly one. */
            hypercall5(swept[i], cmd, pointer, 1, 0, 0);
            hypercall5(swept[i], cmd, 1, pointer, 1, 0);
#endif
        }
    }
    for (u32 nr = 0; nr < 64; nr++)
        if (nr != __HYPERVISOR_iret)
            hypercall5(nr, pointer, pointer, pointer, pointer, pointer);
    check_rc("multicall", multicall((void *)pointer, 4), -XEN_EFAULT);
    check_hex("alive after a sweep", (ulong)xen_version(XENVER_version, NULL), 0x00040011);
}

/* VCPUOP_send_nmi needs no pointer: the sweep does send some. */
static void ignore_nmi(struct regs *regs)
{
    (void)regs;
}

static void test_poll_ports(ulong pointer)
{
    struct sched_poll poll = {.nr_ports = 1, .timeout = 1};

    set_xen_guest_handle(poll.ports, (evtchn_port_t *)pointer);
    check_rc("sched.poll.unmapped", sched_op(SCHEDOP_poll, &poll), -XEN_EFAULT);
}

#if HAVE_PAGING
static void test_partial(void)
{
    u8 *page = alloc_pages(1);
    u8 *va = window_map(8, (ulong)page, PTE_PRESENT | PTE_WRITE);
    struct xen_hvm_param p = {.domid = DOMID_SELF, .index = HVM_PARAM_STORE_EVTCHN};
    u8 *tail = va + PAGE_SIZE - 8;

    check_rc("result crosses into an unmapped page", xen_version(XENVER_extraversion, tail), -XEN_EFAULT);
    memcpy(tail, &p, 8);
    check_rc("argument crosses into an unmapped page", hvm_op(HVMOP_get_param, tail), -XEN_EFAULT);

    /* Two pages that are neighbours only by their virtual addresses. */
    window_map(9, (ulong)alloc_pages(2) + PAGE_SIZE, PTE_PRESENT | PTE_WRITE);
    memcpy(tail, &p, sizeof(p));
    check_rc("argument crosses into a mapped page", hvm_op(HVMOP_get_param, tail), 0);
    memcpy(&p, tail, sizeof(p));
    check_hex("value across pages", p.value, 1);

    /* CR0.WP is set, so a supervisor write to a read-only page is refused. */
    window_map(8, (ulong)page, PTE_PRESENT);
    check_rc("result to a read-only page", xen_version(XENVER_extraversion, va), -XEN_EFAULT);
}
#endif

#ifdef __x86_64__
static void test_noncanonical(void)
{
    static char text[16];
    const char *alias = (const char *)((ulong)text | 1ul << 63);

    check_rc("version.noncanonical", xen_version(XENVER_extraversion, alias), 0);
    if (memcmp(text, ".7", 3))
        failure("version.noncanonical: nothing was written");
    check_answers("noncanonical", any, ARRAY_SIZE(any), 0x0000800000000000ul);
    sweep(0x0000800000000000ul);
}
#endif

void test_main(void)
{
    ulong hole = alloc_hole(1) << PAGE_SHIFT;

    shared_info_map();
    evtchn_mask_all();
    set_handler(2, ignore_nmi);
    check_answers("noram", any, ARRAY_SIZE(any), hole);
    check_answers("noram", only_bad, ARRAY_SIZE(only_bad), hole);
    test_poll_ports(hole);
#if HAVE_PAGING
    ulong unmapped = (ulong)window_map(3, 0, 0);

    check_answers("null", any, ARRAY_SIZE(any), 0);
    check_answers("null", only_null, ARRAY_SIZE(only_null), 0);
    check_answers("unmapped", any, ARRAY_SIZE(any), unmapped);
    check_answers("unmapped", only_bad, ARRAY_SIZE(only_bad), unmapped);
    check_rc("mem.op.0.unmapped", memory_op(0, (void *)unmapped), 0);
    check_rc("mem.op.1.unmapped", memory_op(1, (void *)unmapped), 0);
    check_rc("multicall.null", multicall(NULL, 1), -XEN_EFAULT);
    test_poll_ports(unmapped);
    test_partial();
    sweep(unmapped);
#endif
#ifdef __x86_64__
    test_noncanonical();
#endif
    sweep(hole + PAGE_SIZE - 1);
    sweep(~0ul - 3);
    success();
}
