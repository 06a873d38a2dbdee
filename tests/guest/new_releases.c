/*
 * new_releases: what releases after 4.17 brought.
 *
 * Purpose: the calls that 4.18 and 4.20 added, and the errnos that they changed.
 * Blind spots: which of the releases in between has what (unit tests ask each).
 *
 * Variants: hvm64 hvm32pae hvm32
 * Options: --vcpus 2 --xen-version 4.21
 */
#include "guest.h"

const char test_title[] = "Calls of Xen 4.18 to 4.21";

/* Newer than the headers that this is built with. */
#define XENVER_extraversion2 11
#define XENVER_capabilities2 12
#define XENVER_changeset2 13
#define XENVER_commandline2 14
#define VCPUOP_register_runstate_phys_area 14
#define VCPUOP_register_vcpu_time_phys_area 15

static struct {
    u32 len;
    char buf[252];
} text;

static void check_string(u32 cmd, const char *what)
{
    long length;

    text.len = sizeof(text.buf);
    memset(text.buf, '#', sizeof(text.buf));
    length = xen_version(cmd, NULL);
    check_true("its length", length > 0 && length < (long)sizeof(text.buf));
    check_rc(what, xen_version(cmd, &text), length);
    check_true("no more than that is written", length > 0 && text.buf[length - 1] != '#' && text.buf[length] == '#');
    text.len = (u32)length - 1;
    check_rc("a buffer that is too short", xen_version(cmd, &text), -XEN_ENOBUFS);
}

static void test_version(void)
{
    call("XENVER_extraversion2");
    check_string(XENVER_extraversion2, "extraversion2");
    call("XENVER_capabilities2");
    check_string(XENVER_capabilities2, "capabilities2");
    check_true("64-bit guests", !strncmp(text.buf, "xen-3.0-x86_64 ", 15));
    call("XENVER_changeset2");
    check_string(XENVER_changeset2, "changeset2");
    call("XENVER_commandline2");
    check_rc("commandline2", xen_version(XENVER_commandline2, &text), -XEN_EPERM);
    call("XENVER_version");
    check_hex("version", (u64)xen_version(XENVER_version, NULL), 0x00040015);
}

static int register_area(u32 cmd, u32 vcpu, u64 address)
{
    return (int)vcpu_op(cmd, vcpu, &address);
}

static void test_areas(void)
{
    u8 *page = alloc_pages(1);
    struct vcpu_runstate_info *runstate = (void *)(page + 64);
    struct vcpu_time_info *time = (void *)(page + 256);
    ulong hole = alloc_hole(1) << PAGE_SHIFT;
    evtchn_port_t port = 0;

    evtchn_bind_ipi(0, &port);
    call("VCPUOP_register_runstate_phys_area");
    check_rc("runstate area", register_area(VCPUOP_register_runstate_phys_area, 0, (ulong)runstate), 0);
    check_signed("it is written", runstate->state, RUNSTATE_running);
    /* How long one wait is depends on how busy the host is. */
    for (unsigned int i = 0; i < 20 && runstate->time[RUNSTATE_blocked] < MILLISECONDS(2); i++)
        evtchn_poll(port, system_time() + MILLISECONDS(3));
    check_true("and kept up", runstate->time[RUNSTATE_blocked] >= MILLISECONDS(2));
    check_rc("a hole", register_area(VCPUOP_register_runstate_phys_area, 0, hole), -XEN_EINVAL);
    check_rc("across pages", register_area(VCPUOP_register_runstate_phys_area, 0, (ulong)page + PAGE_SIZE - 8), -XEN_ENXIO);
    check_rc("unaligned", register_area(VCPUOP_register_runstate_phys_area, 0, (ulong)page + 1), -XEN_ENXIO);
    check_rc("taken away", register_area(VCPUOP_register_runstate_phys_area, 0, ~0ull), 0);
    check_rc("a vCPU that does not exist", register_area(VCPUOP_register_runstate_phys_area, 9, (ulong)page), -XEN_ENOENT);

    call("VCPUOP_register_vcpu_time_phys_area");
    check_rc("time area", register_area(VCPUOP_register_vcpu_time_phys_area, 0, (ulong)time), 0);
    sched_op(SCHEDOP_yield, NULL);
    check_true("it is written", time->version && !(time->version & 1) && time->tsc_to_system_mul);
    check_rc("a hole", register_area(VCPUOP_register_vcpu_time_phys_area, 0, hole), -XEN_EINVAL);
    check_rc("taken away", register_area(VCPUOP_register_vcpu_time_phys_area, 0, ~0ull), 0);
    evtchn_close(port);
}

static void test_virqs(void)
{
    evtchn_port_t port;

    call("EVTCHNOP_bind_virq");
    check_rc("a global VIRQ", evtchn_bind_virq(VIRQ_DOM_EXC, 0, &port), -XEN_EBUSY);
    check_rc("on another vCPU", evtchn_bind_virq(VIRQ_DOM_EXC, 1, &port), -XEN_EINVAL);
    check_rc("the domain's own", evtchn_bind_virq(VIRQ_ARGO, 0, &port), 0);
    evtchn_close(port);
    check_rc("the vCPU's own", evtchn_bind_virq(VIRQ_DEBUG, 1, &port), 0);
    evtchn_close(port);
}

static void test_vcpu_info(void)
{
    struct vcpu_register_vcpu_info op = {.mfn = (ulong)alloc_pages(1) >> PAGE_SHIFT, .offset = 0};

    call("VCPUOP_register_vcpu_info");
    op.offset = 4090;
    check_rc("across pages", vcpu_op(VCPUOP_register_vcpu_info, 1, &op), -XEN_ENXIO);
    op.offset = 64;
    check_rc("register_vcpu_info", vcpu_op(VCPUOP_register_vcpu_info, 1, &op), 0);
    check_rc("once more", vcpu_op(VCPUOP_register_vcpu_info, 1, &op), -XEN_EBUSY);
}

void test_main(void)
{
    struct physdev_map_pirq map = {.domid = DOMID_SELF, .type = MAP_PIRQ_TYPE_GSI, .index = 16, .pirq = 16};
    struct physdev_unmap_pirq unmap = {.domid = DOMID_SELF, .pirq = 16};
    u64 value;

    shared_info_map();
    evtchn_mask_all();
    test_version();
    test_areas();
    test_vcpu_info();
    test_virqs();
    call("PHYSDEVOP_map_pirq");
    check_rc("map_pirq", physdev_op(PHYSDEVOP_map_pirq, &map), -XEN_EOPNOTSUPP);
    map.domid = 4444;
    check_rc("of a domain that does not exist", physdev_op(PHYSDEVOP_map_pirq, &map), -XEN_ESRCH);
    call("PHYSDEVOP_unmap_pirq");
    check_rc("unmap_pirq", physdev_op(PHYSDEVOP_unmap_pirq, &unmap), -XEN_EOPNOTSUPP);
    call("HVMOP_set_param");
    if (!hvm_param_get(HVM_PARAM_ALTP2M, &value))
        check_rc("HVM_PARAM_ALTP2M", hvm_param_set(HVM_PARAM_ALTP2M, value), -XEN_EEXIST);
    success();
}
