/*
 * Finding Xen, the hypercall page, HVM params, shared_info and shutdown.
 * Facts: xen/arch-x86/cpuid.h, xen/hvm/params.h, xen/memory.h, xen/sched.h.
 */
#include "guest.h"

bool xen_present;
u32 xen_leaf;
bool hypercall_vmmcall;
u8 hypercall_page[4096] PAGE_ALIGNED;
struct shared_info *shared_info;

/* Not where it is read: the compiler would take this value for the only one. */
__attribute__((weak)) const bool test_bare = false;

static bool vendor_uses_vmmcall(void)
{
    /* "AuthenticAMD" and "HygonGenuine", by their first four letters. */
    u32 ebx = cpuid(0).ebx;

    return ebx == 0x68747541 || ebx == 0x6f677948;
}

void xen_detect(void)
{
    hypercall_vmmcall = vendor_uses_vmmcall();
    for (u32 base = XEN_CPUID_FIRST_LEAF; base < XEN_CPUID_FIRST_LEAF + 0x10000; base += 0x100) {
        struct cpuid id = cpuid(base);

        if (id.ebx != XEN_CPUID_SIGNATURE_EBX || id.ecx != XEN_CPUID_SIGNATURE_ECX ||
            id.edx != XEN_CPUID_SIGNATURE_EDX || id.eax < base + 2)
            continue;
        xen_leaf = base;
        xen_present = true;
        wrmsr(cpuid(base + 2).ebx, (ulong)hypercall_page);
        break;
    }
}

int hvm_param_get(u32 index, u64 *value)
{
    struct xen_hvm_param p = {.domid = DOMID_SELF, .index = index};
    int rc = (int)hvm_op(HVMOP_get_param, &p);

    if (!rc)
        *value = p.value;
    return rc;
}

int hvm_param_set(u32 index, u64 value)
{
    struct xen_hvm_param p = {.domid = DOMID_SELF, .index = index, .value = value};

    return (int)hvm_op(HVMOP_set_param, &p);
}

int add_to_physmap(unsigned int space, ulong index, ulong gfn)
{
    struct xen_add_to_physmap xatp = {.domid = DOMID_SELF, .space = space, .idx = index, .gpfn = gfn};

    return (int)memory_op(XENMEM_add_to_physmap, &xatp);
}

void shared_info_map(void)
{
    ulong gfn;
    int rc;

    if (shared_info)
        return;
    gfn = alloc_hole(1);
    rc = add_to_physmap(XENMAPSPACE_shared_info, 0, gfn);
    if (rc)
        error("XENMAPSPACE_shared_info: %d", rc);
    shared_info = (struct shared_info *)(gfn << PAGE_SHIFT);
}

unsigned int vcpu_count(void)
{
    unsigned int n = 1;

    while (n < MAX_VCPUS && vcpu_op(VCPUOP_is_up, n, NULL) >= 0)
        n++;
    return n;
}

void sched_shutdown(unsigned int reason)
{
    struct sched_shutdown s = {.reason = reason};

    sched_op(SCHEDOP_shutdown, &s);
    for (;;)
        asm volatile("cli; hlt");
}
