/*
 * refused: the hypercalls that a PVH domU may not make.
 *
 * Purpose: each gives the errno that Xen 4.17 gives, also where that depends on the arguments, with
 * the hypercall's number in rax as in eax.
 * Blind spots: the commands of sysctl, domctl and platform_op one by one.
 *
 * Variants: hvm64 hvm32pae hvm32
 */
#include "guest.h"

#include <xen/platform.h>

const char test_title[] = "Refused hypercalls";

#define NOBODY 4444
/* Of sysctl and domctl in 4.17, whose headers are for tools only. */
#define INTERFACE_VERSION 0x15u

static domid_t own;

/* How all three of them begin. */
static union {
    struct {
        u32 cmd, version;
        domid_t domain;
    };
    u64 room[40];
} op;

static void refused(const char *name, u32 nr, long want)
{
    call(name);
    check_rc("with zeros", hypercall_inline(nr, 0, 0, 0, 0, 0), want);
    check_rc("with ones", hypercall_inline(nr, ~0ul, ~0ul, ~0ul, ~0ul, ~0ul), want);
    check_rc("with a good pointer", hypercall_inline(nr, (ulong)&op, (ulong)&op, (ulong)&op, 0, 0), want);
}

static long with_op(u32 nr, u32 cmd, u32 version, domid_t domain)
{
    op.cmd = cmd;
    op.version = version;
    op.domain = domain;
    return hypercall1(nr, &op);
}

static void test_control(void)
{
    call("sysctl");
    check_rc("sysctl.zero", with_op(__HYPERVISOR_sysctl, 0, 0, 0), -XEN_EACCES);
    check_rc("sysctl.physinfo.15", with_op(__HYPERVISOR_sysctl, 3, INTERFACE_VERSION, 0), -XEN_EPERM);
    call("domctl");
    check_rc("domctl.zero", with_op(__HYPERVISOR_domctl, 0, 0, 0), -XEN_EACCES);
    check_rc("createdomain", with_op(__HYPERVISOR_domctl, 1, INTERFACE_VERSION, NOBODY), -XEN_EPERM);
    check_rc("pausedomain of oneself", with_op(__HYPERVISOR_domctl, 3, INTERFACE_VERSION, own), -XEN_EPERM);
    check_rc("of dom0", with_op(__HYPERVISOR_domctl, 3, INTERFACE_VERSION, 0), -XEN_EPERM);
    check_rc("of a domain that does not exist", with_op(__HYPERVISOR_domctl, 3, INTERFACE_VERSION, NOBODY),
             -XEN_ESRCH);
    check_rc("of DOMID_SELF", with_op(__HYPERVISOR_domctl, 3, INTERFACE_VERSION, DOMID_SELF), -XEN_ESRCH);
    call("paging_domctl_cont");
    check_rc("paging_domctl_cont", with_op(__HYPERVISOR_arch_1, 0, 0, 0), -XEN_EACCES);
    check_rc("of oneself", with_op(__HYPERVISOR_arch_1, 10, INTERFACE_VERSION, own), -XEN_EPERM);
    call("platform_op");
    check_rc("platform_op.zero", with_op(__HYPERVISOR_platform_op, 0, 0, 0), -XEN_EACCES);
    check_rc("platform_op", with_op(__HYPERVISOR_platform_op, 17, XENPF_INTERFACE_VERSION, 0), -XEN_EPERM);
}

static void test_devices(void)
{
    static u64 bufs[8];

    call("dm_op");
    check_rc("dm_op.dom0", hypercall3(__HYPERVISOR_dm_op, 0, 0, 0), -XEN_ENODATA);
    check_rc("more buffers than can be", hypercall3(__HYPERVISOR_dm_op, 0, 3, bufs), -XEN_E2BIG);
    check_rc("on dom0", hypercall3(__HYPERVISOR_dm_op, 0, 1, bufs), -XEN_EINVAL);
    check_rc("on oneself", hypercall3(__HYPERVISOR_dm_op, own, 1, bufs), -XEN_EPERM);
    check_rc("on a domain that does not exist", hypercall3(__HYPERVISOR_dm_op, NOBODY, 1, bufs), -XEN_ESRCH);

    call("mmuext_op");
    check_rc("mmuext_op.1", hypercall4(__HYPERVISOR_mmuext_op, bufs, 1, 0, DOMID_SELF), -XEN_EINVAL);
    check_rc("on a domain that does not exist", hypercall4(__HYPERVISOR_mmuext_op, bufs, 1, 0, NOBODY), -XEN_ESRCH);

    call("console_io");
    check_rc("console_io.write.6", console_io(CONSOLEIO_write, 6, "hello\n"), -XEN_EPERM);
    check_rc("read", console_io(CONSOLEIO_read, 6, bufs), -XEN_EPERM);
    check_rc("console_io.op2", console_io(2, 0, bufs), -XEN_EPERM);

    call("PHYSDEVOP_map_pirq");
    check_rc("physdev.map_pirq", physdev_op(PHYSDEVOP_map_pirq, bufs), -XEN_ENOSYS);
    call("PHYSDEVOP_unmap_pirq");
    check_rc("physdev.unmap_pirq", physdev_op(PHYSDEVOP_unmap_pirq, bufs), -XEN_ENOSYS);
    call(NULL);
    for (unsigned int cmd = 0; cmd < 35; cmd++)
        if (physdev_op(cmd, bufs) != -XEN_ENOSYS)
            failure("physdev.%u: not -ENOSYS", cmd);
    for (unsigned int cmd = 0; cmd < 7; cmd++)
        if (hypercall2(__HYPERVISOR_argo_op, cmd, bufs) != -XEN_ENOSYS)
            failure("argo_op.%u: not -ENOSYS", cmd);
}

void test_main(void)
{
    own = own_domid();
    test_control();
    test_devices();
    refused("set_trap_table", __HYPERVISOR_set_trap_table, -XEN_ENOSYS);
    refused("mmu_update", __HYPERVISOR_mmu_update, -XEN_ENOSYS);
    refused("set_gdt", __HYPERVISOR_set_gdt, -XEN_ENOSYS);
    refused("stack_switch", __HYPERVISOR_stack_switch, -XEN_ENOSYS);
    refused("set_callbacks", __HYPERVISOR_set_callbacks, -XEN_ENOSYS);
    refused("fpu_taskswitch", __HYPERVISOR_fpu_taskswitch, -XEN_ENOSYS);
    refused("sched_op_compat", __HYPERVISOR_sched_op_compat, -XEN_ENOSYS);
    refused("set_debugreg", __HYPERVISOR_set_debugreg, -XEN_ENOSYS);
    refused("get_debugreg", __HYPERVISOR_get_debugreg, -XEN_ENOSYS);
    refused("update_descriptor", __HYPERVISOR_update_descriptor, -XEN_ENOSYS);
    refused("update_va_mapping", __HYPERVISOR_update_va_mapping, -XEN_ENOSYS);
    refused("event_channel_op_compat", __HYPERVISOR_event_channel_op_compat, -XEN_ENOSYS);
    refused("physdev_op_compat", __HYPERVISOR_physdev_op_compat, -XEN_ENOSYS);
    refused("update_va_mapping_otherdomain", __HYPERVISOR_update_va_mapping_otherdomain, -XEN_ENOSYS);
    refused("iret", __HYPERVISOR_iret, -XEN_ENOSYS);
    refused("set_segment_base", __HYPERVISOR_set_segment_base, -XEN_ENOSYS);
    refused("mca", __HYPERVISOR_arch_0, -XEN_ENOSYS);
    refused("xsm_op", __HYPERVISOR_xsm_op, -XEN_ENOSYS);
    refused("nmi_op", __HYPERVISOR_nmi_op, -XEN_ENOSYS);
    refused("callback_op", __HYPERVISOR_callback_op, -XEN_ENOSYS);
    refused("xenoprof_op", __HYPERVISOR_xenoprof_op, -XEN_ENOSYS);
    refused("kexec_op", __HYPERVISOR_kexec_op, -XEN_ENOSYS);
    refused("tmem_op", __HYPERVISOR_tmem_op, -XEN_ENOSYS);
    refused("xenpmu_op", __HYPERVISOR_xenpmu_op, -XEN_EOPNOTSUPP);
    refused("hypfs_op", __HYPERVISOR_hypfs_op, -XEN_EPERM);
    call(NULL);
    for (u32 nr = 64; nr < 128; nr++)
        if (hypercall_inline(nr, 0, 0, 0, 0, 0) != -XEN_ENOSYS)
            failure("hc.nr.%u: not -ENOSYS", nr);
    check_rc("hc.nr.40000000", hypercall_inline(0x40000000, 0, 0, 0, 0, 0), -XEN_ENOSYS);
    success();
}
