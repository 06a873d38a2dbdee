/*
 * hc.*, version.* and hvm.*: every hypercall number, xen_version and hvm_op.
 */
#include "answers.h"

/* Every argument register with a value of its own: which of them a hypercall changes. */
static void ask_registers(void)
{
    ulong regs[6] = {XENVER_pagesize, 0, 0x1111, 0x2222, 0x3333, 0x4444};
    ulong rax = __HYPERVISOR_xen_version;
    register ulong r10 asm("r10") = regs[3];
    register ulong r8 asm("r8") = regs[4];
    register ulong r9 asm("r9") = regs[5];
    ulong di = regs[0], si = regs[1], dx = regs[2];

    if (hypercall_vmmcall)
        asm volatile("vmmcall" : "+a"(rax), "+D"(di), "+S"(si), "+d"(dx), "+r"(r10), "+r"(r8), "+r"(r9)::"memory");
    else
        asm volatile("vmcall" : "+a"(rax), "+D"(di), "+S"(si), "+d"(dx), "+r"(r10), "+r"(r8), "+r"(r9)::"memory");
    answer("hc.regs.kept", "%s",
           di == regs[0] && si == regs[1] && dx == regs[2] && r10 == regs[3] && r8 == regs[4] && r9 == regs[5]
               ? "all"
               : "some");
}

void ask_hypercalls(void)
{
    static const u32 beyond[] = {0x40, 0x7f, 0x3fffffff, 0x40000000, 0xffffffff};

    for (u32 nr = 0; nr < 64; nr++)
        answer_rc(name("hc.nr.%u.zeros", nr), hypercall_inline(nr, 0, 0, 0, 0, 0));
    for (u32 nr = 0; nr < 64; nr++)
        answer_rc(name("hc.nr.%u.ones", nr), hypercall_inline(nr, ~0ul, ~0ul, ~0ul, ~0ul, ~0ul));
    /* set_timer_op with all ones asked for a timer event. */
    hypercall1(__HYPERVISOR_set_timer_op, 0);
    for (unsigned int i = 0; i < ARRAY_SIZE(beyond); i++)
        answer_rc(beyond[i] < 0x80 ? name("hc.nr.%u", beyond[i]) : name("hc.nr.%x", beyond[i]),
                  hypercall_inline(beyond[i], 0, 0, 0, 0, 0));
    ask_registers();
}

/* A XENVER_version result is the release's; its major number stands for it. */
static long version_rc(unsigned int cmd, const void *arg)
{
    long rc = xen_version(cmd, arg);

    return cmd == XENVER_version ? rc >> 16 : rc;
}

void ask_version(void)
{
    static char buf[2048] __attribute__((aligned(16)));
    struct xen_platform_parameters *params = (void *)buf;
    struct xen_feature_info features;
    xen_build_id_t *build_id = (void *)buf;

    answer_rc("version.version", version_rc(XENVER_version, NULL));
    answer_rc("version.extraversion", xen_version(XENVER_extraversion, buf));
    answer("version.extraversion.text", "%s", buf);
    answer_rc("version.compile_info", xen_version(XENVER_compile_info, buf));
    answer_rc("version.capabilities", xen_version(XENVER_capabilities, buf));
    answer_rc("version.changeset", xen_version(XENVER_changeset, buf));
    answer_rc("version.platform_parameters", xen_version(XENVER_platform_parameters, params));
    answer("version.platform_parameters.virt_start", "%016lx", params->virt_start);
    for (u32 i = 0; i < 5; i++) {
        features.submap_idx = i == 4 ? ~0u : i;
        answer_rc(i == 4 ? "version.features.max" : name("version.features.%u", i),
                  xen_version(XENVER_get_features, &features));
        if (!i)
            answer("version.features.0.submap", "%08x", features.submap);
    }
    answer_rc("version.pagesize", xen_version(XENVER_pagesize, NULL));
    answer_rc("version.guest_handle", xen_version(XENVER_guest_handle, buf));
    answer_rc("version.commandline", xen_version(XENVER_commandline, buf));
    answer("version.commandline.text", "%s", buf);
    build_id->len = 60;
    answer_rc("version.build_id.60", xen_version(XENVER_build_id, build_id));
    build_id->len = 4;
    answer_rc("version.build_id.4", xen_version(XENVER_build_id, build_id));
    answer_rc("version.build_id.null", xen_version(XENVER_build_id, NULL));
    for (unsigned int op = 11; op < 20; op++)
        answer_rc(name("version.op.%u.valid", op), version_rc(op, buf));
    for (unsigned int op = 0; op < 14; op++) {
        answer_rc(name("version.op.%u.null", op), version_rc(op, NULL));
        answer_rc(name("version.op.%u.unmapped", op), version_rc(op, unmapped()));
        answer_rc(name("version.op.%u.noram", op), version_rc(op, noram()));
    }
    answer_rc("version.noncanonical", xen_version(XENVER_extraversion, (void *)((ulong)buf | 1ul << 63)));
}

static int get_param(domid_t dom, u32 index)
{
    struct xen_hvm_param p = {.domid = dom, .index = index};

    return (int)hvm_op(HVMOP_get_param, &p);
}

/* A TSS address without a size crashes the domain. */
#define UNSAFE_PARAM HVM_PARAM_VM86_TSS_SIZED
#define LAST_PARAM 45

static void ask_params(void)
{
    struct xen_hvm_param p = {.domid = 0, .index = HVM_PARAM_CALLBACK_IRQ};

    for (u32 i = 0; i <= LAST_PARAM; i++) {
        u64 value = 0;
        int rc = hvm_param_get(i, &value);

        answer_rc(name("hvm.get.%u", i), rc);
        if (rc)
            continue;
        if (i == HVM_PARAM_STORE_PFN || i == HVM_PARAM_CONSOLE_PFN)
            answer(name("hvm.get.%u.value", i), "%s", zero_or_not(value));
        else
            answer(name("hvm.get.%u.value", i), "%016llx", (unsigned long long)value);
    }
    for (u32 i = 0; i <= LAST_PARAM; i++) {
        u64 value = 0;

        hvm_param_get(i, &value);
        if (i != UNSAFE_PARAM)
            answer_rc(name("hvm.set.%u.same", i), hvm_param_set(i, value));
    }
    for (u32 i = 1; i <= LAST_PARAM; i++) {
        u64 value = 0, back = 0;
        int rc;

        if (i == UNSAFE_PARAM)
            continue;
        hvm_param_get(i, &value);
        rc = hvm_param_set(i, value + 1);
        answer_rc(name("hvm.set.%u.plus1", i), rc);
        if (rc)
            continue;
        hvm_param_get(i, &back);
        answer(name("hvm.set.%u.readback", i), "%s", back == value + 1 ? "new" : back == value ? "old" : "other");
        hvm_param_set(i, value);
    }
    answer_rc("hvm.get.dom0", get_param(0, HVM_PARAM_CALLBACK_IRQ));
    answer_rc("hvm.get.dom999", get_param(999, HVM_PARAM_CALLBACK_IRQ));
    answer_rc("hvm.get.owndomid", get_param(own, HVM_PARAM_CALLBACK_IRQ));
    answer_rc("hvm.set.dom0", hvm_op(HVMOP_set_param, &p));
    answer_rc("hvm.get.null", hvm_op(HVMOP_get_param, NULL));
    answer_rc("hvm.set.null", hvm_op(HVMOP_set_param, NULL));
    answer_rc("hvm.get.unmapped", hvm_op(HVMOP_get_param, unmapped()));
}

static void ask_callback(void)
{
    static const struct {
        const char *name;
        u64 via;
    } vias[] = {
        {"gsi5", 5},
        {"pci", 1ull << 56 | 0x800},
        {"vector0f", 2ull << 56 | 0x0f},
        {"vector10", 2ull << 56 | 0x10},
        {"type3", 3ull << 56 | 5},
        {"typeff", 0xffull << 56},
        {"zero", 0},
    };

    for (unsigned int i = 0; i < ARRAY_SIZE(vias); i++) {
        u64 back = 0;

        answer_rc(name("hvm.callback.%s", vias[i].name), hvm_param_set(HVM_PARAM_CALLBACK_IRQ, vias[i].via));
        hvm_param_get(HVM_PARAM_CALLBACK_IRQ, &back);
        answer(name("hvm.callback.%s.readback", vias[i].name), "%s", back == vias[i].via ? "same" : "other");
    }
}

static int upcall_vector(u32 vcpu, u8 vector)
{
    struct xen_hvm_evtchn_upcall_vector v = {.vcpu = vcpu, .vector = vector};

    return (int)hvm_op(HVMOP_set_evtchn_upcall_vector, &v);
}

/* One buffer for all: HVMOP_get_time leaves the time in it, which those after it take for input. */
static void ask_with_self(void)
{
    static u64 self[64] = {DOMID_SELF};

    for (unsigned int op = 3; op <= 31; op++) {
        if (op == HVMOP_flush_tlbs)
            continue;
        answer_rc(name("hvm.op.%u.self", op), hvm_op(op, self));
        /* As of Xen the time is no domain's number and no trace event. */
        while (op == HVMOP_get_time && ((u16)self[0] < 0x1000 || (u16)self[0] >= DOMID_FIRST_RESERVED))
            hvm_op(op, self);
    }
    answer_rc("hvm.op.1000", hvm_op(1000, self));
}

void ask_hvm(void)
{
    struct xen_hvm_get_time time = {.now = 0};
    struct xen_hvm_get_mem_type type = {.domid = DOMID_SELF, .pfn = 0xfffffffffull};
    static u64 zeros[8];
    long rc;

    own = own_domid();
    ask_params();
    ask_callback();
    answer_rc("hvm.upcall_vector.0.vcpu0", upcall_vector(0, 0));
    answer_rc("hvm.upcall_vector.15.vcpu0", upcall_vector(0, 15));
    answer_rc("hvm.upcall_vector.vcpu1", upcall_vector(1, UPCALL_VECTOR));
    answer_rc("hvm.upcall_vector.vcpu2", upcall_vector(2, UPCALL_VECTOR));
    answer_rc("hvm.upcall_vector.clear", upcall_vector(1, 0));
    answer_rc("hvm.upcall_vector.null", hvm_op(HVMOP_set_evtchn_upcall_vector, NULL));
    answer_rc("hvm.get_time", hvm_op(HVMOP_get_time, &time));
    answer("hvm.get_time.value", "%s", zero_or_not(time.now));
    rc = hvm_op(HVMOP_get_mem_type, &type);
    answer("hvm.get_mem_type.huge", "%ld:%u", rc, type.mem_type);
    type.pfn = 0;
    rc = hvm_op(HVMOP_get_mem_type, &type);
    answer("hvm.get_mem_type.ram", "%ld:%u", rc, type.mem_type);
    answer_rc("hvm.flush_tlbs", hvm_op(HVMOP_flush_tlbs, NULL));
    answer_rc("hvm.flush_tlbs.ptr", hvm_op(HVMOP_flush_tlbs, zeros));
    ask_with_self();
}
