/*
 * hvm_params: HVMOP_get_param and HVMOP_set_param, the upcall vector and the small hvm_op commands.
 *
 * Purpose: which params a PVH guest may read and write, and every errno, as Xen 4.17 answers.
 * Blind spots: HVM_PARAM_VM86_TSS_SIZED is not written (a value without a size crashes the domain);
 * params that name a foreign domain beyond dom0 and one that does not exist.
 *
 * Options: --vcpus 2
 */
#include "guest.h"

const char test_title[] = "HVM params";

struct answer {
    int index, rc;
};

/* hvm.get.N */
static const struct answer get[] = {
    {0, 0},    {1, 0},    {2, 0},    {3, -1},   {8, -1},   {9, -1},   {10, -1},  {11, -1},  {12, -1},
    {13, -22}, {17, 0},   {18, 0},   {19, 0},   {24, -22}, {25, -22}, {26, -22}, {27, -1},  {30, -22},
    {31, -1},  {32, -1},  {33, -1},  {34, 0},   {35, 0},   {38, -1},  {39, -22}, {44, -22},
};

/* hvm.set.N.same: written with the value that it has, or 0 where it cannot be read. */
static const struct answer set_same[] = {
    {1, -1},   {2, 0},    {5, -1},   {6, -1},   {8, -1},   {11, -1},  {12, -1},  {15, 0},
    {16, -1},  {18, 0},   {20, -22}, {23, -22}, {24, -22}, {27, -1},  {29, -1},  {30, -22},
    {33, -1},  {34, 0},   {39, -22}, {40, -22}, {43, -22}, {44, -22},
};

/* hvm.set.N.plus1: written with the next value. */
static const struct answer set_other[] = {
    {2, 0},    {3, -1},   {4, -22},  {5, -1},   {8, -1},   {9, -1},   {10, -1},  {11, -1},  {16, -1},
    {17, -1},  {22, -22}, {23, -22}, {24, -22}, {25, -22}, {28, -1},  {29, -1},  {32, -1},  {33, -1},
    {34, 0},   {35, -1},  {38, -1},  {39, -22}, {40, -22}, {41, -22},
};

static u64 value_of(int index)
{
    u64 value = 0;

    hvm_param_get((u32)index, &value);
    return value;
}

static void check_param(const char *what, int index, int got, int want)
{
    if (got != want)
        failure("hvm.%s.%d: got %d, want %d", what, index, got, want);
}

static void test_get(void)
{
    struct xen_hvm_param p = {.domid = 999, .index = HVM_PARAM_STORE_PFN};

    for (unsigned int i = 0; i < ARRAY_SIZE(get); i++) {
        u64 value;
        check_param("get", get[i].index, hvm_param_get((u32)get[i].index, &value), get[i].rc);
    }
    check_hex("hvm.get.2.value", value_of(HVM_PARAM_STORE_EVTCHN), 1);
    check_true("hvm.get.17.value", value_of(HVM_PARAM_CONSOLE_PFN));
    check_hex("evtchn.console.port", value_of(HVM_PARAM_CONSOLE_EVTCHN), 2);
    check_hex("hvm.get.34.value", value_of(34), 0);
    check_hex("hvm.get.35.value", value_of(35), 0);
    check_rc("hvm.get.dom999", hvm_op(HVMOP_get_param, &p), -XEN_ESRCH);
}

static void test_set(void)
{
    struct xen_hvm_param p = {.domid = 0, .index = HVM_PARAM_CALLBACK_IRQ};

    for (unsigned int i = 0; i < ARRAY_SIZE(set_same); i++) {
        int index = set_same[i].index;
        check_param("set.same", index, hvm_param_set((u32)index, value_of(index)), set_same[i].rc);
    }
    for (unsigned int i = 0; i < ARRAY_SIZE(set_other); i++) {
        int index = set_other[i].index;
        u64 old = value_of(index);
        int rc = hvm_param_set((u32)index, old + 1);

        check_param("set.plus1", index, rc, set_other[i].rc);
        if (rc)
            continue;
        if (value_of(index) != old + 1)
            failure("hvm.set.%d.readback: not the new value", index);
        hvm_param_set((u32)index, old);
    }
    check_rc("hvm.set.dom0", hvm_op(HVMOP_set_param, &p), -XEN_EINVAL);
}

static void test_callback(void)
{
    const u64 type = 1ull << 56;
    const u64 via[] = {
        5,                                /* gsi5 */
        1 * type | 0x0800,                /* pci */
        2 * type | 0x0f,                  /* vector0f */
        2 * type | 0x10,                  /* vector10 */
        3 * type | 5,                     /* type3: PPI, of Arm */
        0xff * type,                      /* typeff */
        0,                                /* zero */
    };

    for (unsigned int i = 0; i < ARRAY_SIZE(via); i++) {
        int rc = hvm_param_set(HVM_PARAM_CALLBACK_IRQ, via[i]);
        u64 back = value_of(HVM_PARAM_CALLBACK_IRQ);

        if (rc || back != via[i])
            failure("hvm.callback 0x%llx: %d, reads back 0x%llx", (unsigned long long)via[i], rc,
                    (unsigned long long)back);
    }
}

static int upcall_vector(u32 vcpu, u8 vector)
{
    struct xen_hvm_evtchn_upcall_vector v = {.vcpu = vcpu, .vector = vector};

    return (int)hvm_op(HVMOP_set_evtchn_upcall_vector, &v);
}

static void test_upcall_vector(void)
{
    check_rc("hvm.upcall_vector.0.vcpu0", upcall_vector(0, 0), -XEN_EINVAL);
    check_rc("hvm.upcall_vector.15.vcpu0", upcall_vector(0, 15), -XEN_EINVAL);
    check_rc("hvm.upcall_vector.vcpu1", upcall_vector(1, 0xf4), vcpu_count() > 1 ? 0 : -XEN_ENOENT);
    check_rc("hvm.upcall_vector.vcpu2", upcall_vector(2, 0xf4), -XEN_ENOENT);
    check_rc("hvm.upcall_vector.clear", upcall_vector(1, 0), -XEN_EINVAL);
}

/* Commands for things that a PVH domU of this Xen has not. */
static void test_absent_things(void)
{
    struct xen_hvm_pagetable_dying dying = {.domid = DOMID_SELF};
    struct xen_hvm_xentrace trace = {.event = 0x10, .extra_bytes = 4};
    static u64 altp2m[8] = {0x1};

    call("HVMOP_pagetable_dying");
    check_rc("pagetable_dying", hvm_op(HVMOP_pagetable_dying, &dying), -XEN_EINVAL);
    dying.domid = 999;
    check_rc("of a domain that does not exist", hvm_op(HVMOP_pagetable_dying, &dying), -XEN_ESRCH);
    call("HVMOP_xentrace");
    check_rc("xentrace", hvm_op(HVMOP_xentrace, &trace), 0);
    trace.extra_bytes = 29;
    check_rc("more bytes than a record has", hvm_op(HVMOP_xentrace, &trace), -XEN_EINVAL);
    trace.extra_bytes = 4;
    trace.event = 0x1000;
    check_rc("an event that is not a guest's", hvm_op(HVMOP_xentrace, &trace), -XEN_EINVAL);
    call("HVMOP_guest_request_vm_event");
    check_rc("guest_request_vm_event", hvm_op(HVMOP_guest_request_vm_event, NULL), 0);
    check_rc("with a pointer", hvm_op(HVMOP_guest_request_vm_event, altp2m), -XEN_EINVAL);
    call("HVMOP_altp2m");
    check_rc("altp2m", hvm_op(HVMOP_altp2m, altp2m), -XEN_EOPNOTSUPP);
}

static void test_commands(void)
{
    static const u32 absent[] = {3, 4, 7, 12, 16, 18, 20, 27, 29, 30, 1000};
    struct xen_hvm_get_time time = {.now = 0};
    struct xen_hvm_get_mem_type type = {.domid = DOMID_SELF, .pfn = 0xfffffffffull};
    static u64 self[8] = {DOMID_SELF};

    call("HVMOP_get_time");
    check_rc("hvm.get_time", hvm_op(HVMOP_get_time, &time), 0);
    check_true("hvm.get_time.value", time.now);
    call("HVMOP_get_mem_type");
    check_rc("hvm.get_mem_type.huge", hvm_op(HVMOP_get_mem_type, &type), 0);
    check_signed("hvm.get_mem_type.huge value", type.mem_type, HVMMEM_mmio_dm);
    call("HVMOP_flush_tlbs");
    check_rc("hvm.flush_tlbs.ptr", hvm_op(HVMOP_flush_tlbs, self), -XEN_EINVAL);
    check_rc("hvm.flush_tlbs", hvm_op(HVMOP_flush_tlbs, NULL), 0);
    call(NULL);
    for (unsigned int i = 0; i < ARRAY_SIZE(absent); i++)
        check_param("op.self", (int)absent[i], (int)hvm_op(absent[i], self), -XEN_ENOSYS);
}

void test_main(void)
{
    call("HVMOP_get_param");
    test_get();
    call("HVMOP_set_param");
    test_set();
    test_callback();
    call("HVMOP_set_evtchn_upcall_vector");
    test_upcall_vector();
    test_commands();
    test_absent_things();
    success();
}
