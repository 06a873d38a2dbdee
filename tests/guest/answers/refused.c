/*
 * vm_assist.* to sched_op_compat.*: the hypercalls that a domU is mostly refused, and multicall.
 */
#include "answers.h"

/* Interface versions of 4.17. */
#define SYSCTL_VERSION 0x15
#define DOMCTL_VERSION 0x15

static void ask_assist(void)
{
    static const unsigned int types[] = {0, 1, 2, 3, 4, 5, 6, 31, 32, 63, 64};

    for (unsigned int i = 0; i < ARRAY_SIZE(types); i++) {
        answer_rc(name("vm_assist.enable.%u", types[i]), vm_assist(VMASST_CMD_enable, types[i]));
        answer_rc(name("vm_assist.disable.%u", types[i]), vm_assist(VMASST_CMD_disable, types[i]));
    }
    answer_rc("vm_assist.cmd2", vm_assist(2, VMASST_TYPE_runstate_update_flag));
}

static void ask_multicall(void)
{
    static struct multicall_entry calls[4];
    struct multicall_entry *last;
    long rc;

    calls[0] = (struct multicall_entry){.op = __HYPERVISOR_xen_version};
    calls[1] = (struct multicall_entry){.op = 63};
    calls[2] = (struct multicall_entry){.op = __HYPERVISOR_sched_op};
    calls[3] = (struct multicall_entry){.op = __HYPERVISOR_event_channel_op, .args = {EVTCHNOP_send}};
    rc = multicall(calls, 4);
    answer("multicall.mixed", "%ld results=%08x,%ld,%ld,%ld", rc, (u32)calls[0].result, (long)calls[1].result,
           (long)calls[2].result, (long)calls[3].result);
    calls[0] = (struct multicall_entry){.op = __HYPERVISOR_multicall};
    rc = multicall(calls, 1);
    answer("multicall.nested", "%ld result=%ld", rc, (long)calls[0].result);
    answer_rc("multicall.0", multicall(NULL, 0));
    answer_rc("multicall.null", multicall(NULL, 1));
    /* The list goes on into a page that is not there. */
    last = (struct multicall_entry *)((u8 *)window_map(0, (ulong)alloc_pages(1), PTE_PRESENT | PTE_WRITE) + PAGE_SIZE) - 1;
    window_map(1, 0, 0);
    *last = (struct multicall_entry){.op = __HYPERVISOR_xen_version};
    answer_rc("multicall.neg", multicall(last, ~0u));
    answer("multicall.neg.first", "%08x", (u32)last->result);
}

static void ask_control(void)
{
    static u64 op[64];
    u32 *word = (u32 *)op;

    answer_rc("sysctl.zero", hypercall1(__HYPERVISOR_sysctl, op));
    word[0] = 3;
    word[1] = SYSCTL_VERSION;
    answer_rc("sysctl.physinfo.15", hypercall1(__HYPERVISOR_sysctl, op));
    word[1] = SYSCTL_VERSION + 1;
    answer_rc("sysctl.physinfo.16", hypercall1(__HYPERVISOR_sysctl, op));
    memset(op, 0, sizeof(op));
    answer_rc("domctl.zero", hypercall1(__HYPERVISOR_domctl, op));
    word[0] = 5;
    word[1] = DOMCTL_VERSION;
    word[2] = own;
    answer_rc("domctl.getdomaininfo", hypercall1(__HYPERVISOR_domctl, op));
    memset(op, 0, sizeof(op));
    answer_rc("platform_op.zero", hypercall1(__HYPERVISOR_platform_op, op));
    word[0] = 17;
    answer_rc("platform_op.settime", hypercall1(__HYPERVISOR_platform_op, op));
    word[1] = 0x03000000;
    answer_rc("platform_op.settime.version", hypercall1(__HYPERVISOR_platform_op, op));
}

void ask_refused(void)
{
    static u64 buf[16];
    struct physdev_map_pirq pirq = {.domid = DOMID_SELF, .type = MAP_PIRQ_TYPE_GSI, .index = 16, .pirq = -1};

    ask_assist();
    answer_rc("console_io.write.6", console_io(CONSOLEIO_write, 6, "hello\n"));
    answer_rc("console_io.read", console_io(CONSOLEIO_read, 8, buf));
    answer_rc("console_io.op2", console_io(2, 0, NULL));
    ask_multicall();
    answer_rc("xsm_op.zero", hypercall1(__HYPERVISOR_xsm_op, buf));
    for (unsigned int op = 0; op < 8; op++)
        answer_rc(name("argo_op.%u", op), hypercall5(__HYPERVISOR_argo_op, op, (ulong)buf, 0, 0, 0));
    ask_control();
    memset(buf, 0, sizeof(buf));
    for (unsigned int op = 0; op < 36; op++)
        answer_rc(name("physdev.%u", op), physdev_op(op, buf));
    answer_rc("physdev.map_pirq.gsi16", physdev_op(PHYSDEVOP_map_pirq, &pirq));
    answer_rc("physdev.99", physdev_op(99, buf));
    memset(buf, 0, sizeof(buf));
    answer_rc("tmem.0", hypercall1(__HYPERVISOR_tmem_op, buf));
    answer_rc("kexec.0", hypercall2(__HYPERVISOR_kexec_op, 0, buf));
    answer_rc("kexec.1", hypercall2(__HYPERVISOR_kexec_op, 1, buf));
    answer_rc("nmi_op.0", hypercall2(__HYPERVISOR_nmi_op, 0, buf));
    answer_rc("nmi_op.1", hypercall2(__HYPERVISOR_nmi_op, 1, buf));
    answer_rc("xenpmu.0", hypercall2(__HYPERVISOR_xenpmu_op, 0, buf));
    answer_rc("dm_op.dom0", hypercall3(__HYPERVISOR_dm_op, 0, 0, NULL));
    answer_rc("dm_op.self", hypercall3(__HYPERVISOR_dm_op, DOMID_SELF, 1, buf));
    answer_rc("callback_op.register", hypercall2(__HYPERVISOR_callback_op, 0, buf));
    answer_rc("callback_op.unregister", hypercall2(__HYPERVISOR_callback_op, 1, buf));
    answer_rc("mmu_update", hypercall4(__HYPERVISOR_mmu_update, buf, 1, NULL, DOMID_SELF));
    answer_rc("mmuext_op.0", hypercall4(__HYPERVISOR_mmuext_op, buf, 0, NULL, DOMID_SELF));
    answer_rc("mmuext_op.1", hypercall4(__HYPERVISOR_mmuext_op, buf, 1, NULL, DOMID_SELF));
    answer_rc("update_va_mapping", hypercall3(__HYPERVISOR_update_va_mapping, buf, 0, 0));
    answer_rc("set_callbacks", hypercall3(__HYPERVISOR_set_callbacks, buf, buf, buf));
    answer_rc("fpu_taskswitch", hypercall1(__HYPERVISOR_fpu_taskswitch, 1));
    answer_rc("hypfs_op", hypercall5(__HYPERVISOR_hypfs_op, 0, 0, 0, 0, 0));
    answer_rc("event_channel_op_compat", hypercall1(__HYPERVISOR_event_channel_op_compat, buf));
    answer_rc("physdev_op_compat", hypercall1(__HYPERVISOR_physdev_op_compat, buf));
    answer_rc("sched_op_compat.yield", hypercall2(__HYPERVISOR_sched_op_compat, 0, 0));
}
