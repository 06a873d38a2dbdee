"""HVM parameters, hvm_op and the HVM vCPU context. Source: hvm/params.h, hvm_op.h, hvm_vcpu.h."""

from typing import Annotated

from hvmlite.abi.layout import Array, Bytes, Struct, UnionOf, handle, s32, u8, u16, u32, u64

# hvm/params.h: deprecated parameters have no name here; Xen answers -EINVAL to them.
HVM_PARAM_CALLBACK_IRQ = 0
HVM_PARAM_STORE_PFN = 1
HVM_PARAM_STORE_EVTCHN = 2
HVM_PARAM_PAE_ENABLED = 4
HVM_PARAM_IOREQ_PFN = 5
HVM_PARAM_BUFIOREQ_PFN = 6
HVM_PARAM_VIRIDIAN = 9
HVM_PARAM_TIMER_MODE = 10
HVM_PARAM_HPET_ENABLED = 11
HVM_PARAM_IDENT_PT = 12
HVM_PARAM_DM_DOMAIN = 13
HVM_PARAM_ACPI_S_STATE = 14
HVM_PARAM_VM86_TSS = 15
HVM_PARAM_VPT_ALIGN = 16
HVM_PARAM_CONSOLE_PFN = 17
HVM_PARAM_CONSOLE_EVTCHN = 18
HVM_PARAM_ACPI_IOPORTS_LOCATION = 19
HVM_PARAM_MEMORY_EVENT_CR0 = 20
HVM_PARAM_MEMORY_EVENT_CR3 = 21
HVM_PARAM_MEMORY_EVENT_CR4 = 22
HVM_PARAM_MEMORY_EVENT_INT3 = 23
HVM_PARAM_NESTEDHVM = 24
HVM_PARAM_MEMORY_EVENT_SINGLE_STEP = 25
HVM_PARAM_BUFIOREQ_EVTCHN = 26
HVM_PARAM_PAGING_RING_PFN = 27
HVM_PARAM_MONITOR_RING_PFN = 28
HVM_PARAM_SHARING_RING_PFN = 29
HVM_PARAM_MEMORY_EVENT_MSR = 30
HVM_PARAM_TRIPLE_FAULT_REASON = 31
HVM_PARAM_IOREQ_SERVER_PFN = 32
HVM_PARAM_NR_IOREQ_SERVER_PAGES = 33
HVM_PARAM_VM_GENERATION_ID_ADDR = 34
HVM_PARAM_ALTP2M = 35
HVM_PARAM_X87_FIP_WIDTH = 36
HVM_PARAM_VM86_TSS_SIZED = 37
HVM_PARAM_MCA_CAP = 38
HVM_NR_PARAMS = 39

# HVM_PARAM_CALLBACK_IRQ: the type in bits 56-63; a GSI, a PCI INTx or a vector below.
HVM_PARAM_CALLBACK_IRQ_TYPE_MASK = 0xFF00000000000000
HVM_PARAM_CALLBACK_TYPE_GSI = 0
HVM_PARAM_CALLBACK_TYPE_PCI_INTX = 1
HVM_PARAM_CALLBACK_TYPE_VECTOR = 2

HVMPTM_delay_for_missed_ticks = 0
HVMPTM_no_delay_for_missed_ticks = 1
HVMPTM_no_missed_ticks_pending = 2
HVMPTM_one_missed_tick_pending = 3

HVMPV_base_freq = 1 << 0
HVMPV_no_freq = 1 << 1
HVMPV_time_ref_count = 1 << 2
HVMPV_reference_tsc = 1 << 3
HVMPV_hcall_remote_tlb_flush = 1 << 4
HVMPV_apic_assist = 1 << 5
HVMPV_crash_ctl = 1 << 6
HVMPV_synic = 1 << 7
HVMPV_stimer = 1 << 8
HVMPV_hcall_ipi = 1 << 9
HVMPV_ex_processor_masks = 1 << 10
HVMPV_no_vp_limit = 1 << 11
HVMPV_cpu_hotplug = 1 << 12
HVMPV_feature_mask = (1 << 13) - 1

XEN_ALTP2M_disabled = 0
XEN_ALTP2M_mixed = 1
XEN_ALTP2M_external = 2
XEN_ALTP2M_limited = 3

XEN_HVM_MCA_CAP_LMCE = 1 << 0
XEN_HVM_MCA_CAP_MASK = XEN_HVM_MCA_CAP_LMCE

# hvm/hvm_op.h
HVMOP_set_param = 0
HVMOP_get_param = 1
HVMOP_flush_tlbs = 5
HVMOP_pagetable_dying = 9
HVMOP_get_time = 10
HVMOP_xentrace = 11
HVMOP_set_mem_access = 12
HVMOP_get_mem_access = 13
HVMOP_get_mem_type = 15
HVMOP_set_evtchn_upcall_vector = 23
HVMOP_guest_request_vm_event = 24
HVMOP_altp2m = 25

HVMMEM_ram_rw = 0
HVMMEM_ram_ro = 1
HVMMEM_mmio_dm = 2
HVMMEM_unused = 3
HVMMEM_ioreq_server = 4

HVM_IOREQSRV_BUFIOREQ_OFF = 0
HVM_IOREQSRV_BUFIOREQ_LEGACY = 1
HVM_IOREQSRV_BUFIOREQ_ATOMIC = 2

TRACE_EXTRA_MAX = 7  # trace.h: 32-bit words of a guest's trace record

HVMOP_ALTP2M_INTERFACE_VERSION = 1
HVMOP_altp2m_get_domain_state = 1
HVMOP_altp2m_set_domain_state = 2
HVMOP_altp2m_vcpu_enable_notify = 3
HVMOP_altp2m_create_p2m = 4
HVMOP_altp2m_destroy_p2m = 5
HVMOP_altp2m_switch_p2m = 6
HVMOP_altp2m_set_mem_access = 7
HVMOP_altp2m_change_gfn = 8
HVMOP_altp2m_set_mem_access_multi = 9
HVMOP_altp2m_set_suppress_ve = 10
HVMOP_altp2m_get_suppress_ve = 11
HVMOP_altp2m_get_mem_access = 12
HVMOP_altp2m_vcpu_disable_notify = 13
HVMOP_altp2m_get_p2m_idx = 14
HVMOP_altp2m_set_suppress_ve_multi = 15
HVMOP_altp2m_set_visibility = 16

# hvm/hvm_vcpu.h
VCPU_HVM_MODE_32B = 0
VCPU_HVM_MODE_64B = 1


class xen_hvm_param(Struct):
    """HVMOP_{set,get}_param: in domid, index (HVM_PARAM_*); value."""

    domid: u16 = 0
    pad: u16 = 0
    index: u32 = 0
    value: u64 = 0


class xen_hvm_pagetable_dying(Struct):
    """HVMOP_pagetable_dying: in domid, gpa (bytes)."""

    domid: u16 = 0
    pad: Annotated[tuple[int, ...], Array(u16, 3)] = ()
    gpa: u64 = 0


class xen_hvm_get_time(Struct):
    """HVMOP_get_time: out now (system time, ns)."""

    now: u64 = 0


class xen_hvm_xentrace(Struct):
    """HVMOP_xentrace: in event, extra_bytes, extra."""

    event: u16 = 0
    extra_bytes: u16 = 0
    extra: Annotated[bytes, Bytes(TRACE_EXTRA_MAX * 4)] = b""


class xen_hvm_get_mem_type(Struct):
    """HVMOP_get_mem_type: in domid, pfn; out mem_type (HVMMEM_*)."""

    domid: u16 = 0
    mem_type: u16 = 0
    pad: Annotated[tuple[int, ...], Array(u16, 2)] = ()
    pfn: u64 = 0


class xen_hvm_evtchn_upcall_vector(Struct):
    """HVMOP_set_evtchn_upcall_vector: in vcpu, vector."""

    vcpu: u32 = 0
    vector: u8 = 0


class xen_hvm_altp2m_domain_state(Struct):
    """HVMOP_altp2m_{get,set}_domain_state."""

    state: u8 = 0


class xen_hvm_altp2m_vcpu_enable_notify(Struct):
    """HVMOP_altp2m_vcpu_enable_notify."""

    vcpu_id: u32 = 0
    pad: u32 = 0
    gfn: u64 = 0


class xen_hvm_altp2m_vcpu_disable_notify(Struct):
    """HVMOP_altp2m_vcpu_disable_notify."""

    vcpu_id: u32 = 0


class xen_hvm_altp2m_view(Struct):
    """HVMOP_altp2m_{create,destroy,switch}_p2m."""

    view: u16 = 0
    hvmmem_default_access: u16 = 0


class xen_hvm_altp2m_mem_access(Struct):
    """HVMOP_altp2m_{set,get}_mem_access."""

    view: u16 = 0
    access: u16 = 0
    pad: u32 = 0
    gfn: u64 = 0


class xen_hvm_altp2m_set_mem_access_multi(Struct):
    """HVMOP_altp2m_set_mem_access_multi."""

    view: u16 = 0
    pad: u16 = 0
    nr: u32 = 0
    opaque: u64 = 0
    pfn_list: handle = 0
    access_list: handle = 0


class xen_hvm_altp2m_change_gfn(Struct):
    """HVMOP_altp2m_change_gfn."""

    view: u16 = 0
    pad1: u16 = 0
    pad2: u32 = 0
    old_gfn: u64 = 0
    new_gfn: u64 = 0


class xen_hvm_altp2m_get_vcpu_p2m_idx(Struct):
    """HVMOP_altp2m_get_p2m_idx."""

    vcpu_id: u32 = 0
    altp2m_idx: u16 = 0


class xen_hvm_altp2m_set_visibility(Struct):
    """HVMOP_altp2m_set_visibility."""

    altp2m_idx: u16 = 0
    visible: u8 = 0
    pad: u8 = 0


class xen_hvm_altp2m_suppress_ve(Struct):
    """HVMOP_altp2m_{set,get}_suppress_ve."""

    view: u16 = 0
    suppress_ve: u8 = 0
    pad1: u8 = 0
    pad2: u32 = 0
    gfn: u64 = 0


class xen_hvm_altp2m_suppress_ve_multi(Struct):
    """HVMOP_altp2m_set_suppress_ve_multi."""

    view: u16 = 0
    suppress_ve: u8 = 0
    pad1: u8 = 0
    first_error: s32 = 0
    first_gfn: u64 = 0
    last_gfn: u64 = 0
    first_error_gfn: u64 = 0


class xen_hvm_altp2m_op(Struct):
    """HVMOP_altp2m: in version, cmd (HVMOP_altp2m_*), domain; the command's struct in `u`."""

    version: u32 = 0
    cmd: u32 = 0
    domain: u16 = 0
    pad1: u16 = 0
    pad2: u32 = 0
    u: Annotated[bytes, UnionOf(xen_hvm_altp2m_suppress_ve_multi, Bytes(64))] = b""


class vcpu_hvm_x86_32(Struct):
    """Registers of a vCPU started in protected mode, or in real mode with paging off."""

    eax: u32 = 0
    ecx: u32 = 0
    edx: u32 = 0
    ebx: u32 = 0
    esp: u32 = 0
    ebp: u32 = 0
    esi: u32 = 0
    edi: u32 = 0
    eip: u32 = 0
    eflags: u32 = 0
    cr0: u32 = 0
    cr3: u32 = 0
    cr4: u32 = 0
    pad1: u32 = 0
    efer: u64 = 0  # NXE; LME and LMA for compatibility mode
    cs_base: u32 = 0
    ds_base: u32 = 0
    ss_base: u32 = 0
    es_base: u32 = 0
    tr_base: u32 = 0
    cs_limit: u32 = 0
    ds_limit: u32 = 0
    ss_limit: u32 = 0
    es_limit: u32 = 0
    tr_limit: u32 = 0
    # Attributes: type 0-3, S 4, DPL 5-6, P 7, AVL 8, L 9, D/B 10, G 11.
    cs_ar: u16 = 0
    ds_ar: u16 = 0
    ss_ar: u16 = 0
    es_ar: u16 = 0
    tr_ar: u16 = 0
    pad2: Annotated[tuple[int, ...], Array(u16, 3)] = ()


class vcpu_hvm_x86_64(Struct):
    """Registers of a vCPU started in long mode; segments are flat."""

    rax: u64 = 0
    rcx: u64 = 0
    rdx: u64 = 0
    rbx: u64 = 0
    rsp: u64 = 0
    rbp: u64 = 0
    rsi: u64 = 0
    rdi: u64 = 0
    rip: u64 = 0
    rflags: u64 = 0
    cr0: u64 = 0
    cr3: u64 = 0
    cr4: u64 = 0
    efer: u64 = 0


class vcpu_hvm_context(Struct):
    """VCPUOP_initialise of an HVM or PVH vCPU: mode (VCPU_HVM_MODE_*) says what cpu_regs holds."""

    mode: u32 = 0
    pad: u32 = 0
    cpu_regs: Annotated[bytes, UnionOf(vcpu_hvm_x86_32, vcpu_hvm_x86_64)] = b""
