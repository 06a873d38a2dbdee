"""The x86 parts of the common structs, and x86-only records. Source: arch-x86/xen.h, xen-x86_*.h.

`xen` builds on this module, not the other way round.
"""

from typing import Annotated

from hvmlite.abi.layout import Abi, Array, Bytes, Only, Struct, u8, u16, u32, u64, ulong, xen_pfn

XEN_LEGACY_MAX_VCPUS = 32  # vCPUs whose vcpu_info lies in shared_info
XEN_HVM_DEBUGCONS_IOPORT = 0xE9  # a byte written here goes to the debug console

# Before CPUID, it asks Xen to answer where the CPU itself would (XEN_CPUID).
XEN_EMULATE_PREFIX = b"\x0f\x0bxen"

# Devices that Xen emulates for a domain: xen_arch_domainconfig.emulation_flags.
XEN_X86_EMU_LAPIC = 1 << 0
XEN_X86_EMU_HPET = 1 << 1
XEN_X86_EMU_PM = 1 << 2
XEN_X86_EMU_RTC = 1 << 3
XEN_X86_EMU_IOAPIC = 1 << 4
XEN_X86_EMU_PIC = 1 << 5
XEN_X86_EMU_VGA = 1 << 6
XEN_X86_EMU_IOMMU = 1 << 7
XEN_X86_EMU_PIT = 1 << 8
XEN_X86_EMU_USE_PIRQ = 1 << 9
XEN_X86_EMU_VPCI = 1 << 10
XEN_X86_EMU_ALL = (1 << 11) - 1

XEN_X86_MSR_RELAXED = 1 << 0

XEN_CPUID_NO_SUBLEAF = 0xFFFFFFFF

# vcpu_guest_context.flags
VGCF_i387_valid = 1 << 0
VGCF_in_kernel = 1 << 2
VGCF_failsafe_disables_events = 1 << 3
VGCF_syscall_disables_events = 1 << 4
VGCF_online = 1 << 5


class arch_vcpu_info(Struct):
    """x86 part of vcpu_info; PV only, and padding up to 64 bytes."""

    cr2: ulong = 0
    pad: Annotated[tuple[int, ...], Array(ulong, 1, 5)] = ()


class arch_shared_info(Struct):
    """x86 part of shared_info."""

    max_pfn: ulong = 0
    pfn_to_mfn_frame_list_list: xen_pfn = 0
    nmi_reason: ulong = 0
    p2m_cr3: ulong = 0
    p2m_vaddr: ulong = 0
    p2m_generation: ulong = 0
    wc_sec_hi: Annotated[int, Only(u32, Abi.X86_32)] = 0  # x86_64: in shared_info itself


class xen_arch_domainconfig(Struct):
    """x86 part of the arguments that create a domain."""

    emulation_flags: u32 = 0  # XEN_X86_EMU_*
    misc_flags: u32 = 0  # XEN_X86_MSR_RELAXED


class xen_cpuid_leaf(Struct):
    """One CPUID leaf of a domain's policy, as saved and restored."""

    leaf: u32 = 0
    subleaf: u32 = 0  # XEN_CPUID_NO_SUBLEAF if the leaf has none
    a: u32 = 0
    b: u32 = 0
    c: u32 = 0
    d: u32 = 0


class xen_msr_entry(Struct):
    """One MSR of a domain, as saved and restored."""

    idx: u32 = 0
    flags: u32 = 0
    val: u64 = 0


class trap_info(Struct):
    """One entry of a PV guest's trap table; here only as part of vcpu_guest_context."""

    vector: u8 = 0
    flags: u8 = 0
    cs: u16 = 0
    address: ulong = 0


class cpu_user_regs(Struct):
    """A vCPU's general registers, x86_64 only (i386 has another order and other names)."""

    r15: u64 = 0
    r14: u64 = 0
    r13: u64 = 0
    r12: u64 = 0
    rbp: u64 = 0
    rbx: u64 = 0
    r11: u64 = 0
    r10: u64 = 0
    r9: u64 = 0
    r8: u64 = 0
    rax: u64 = 0
    rcx: u64 = 0
    rdx: u64 = 0
    rsi: u64 = 0
    rdi: u64 = 0
    error_code: u32 = 0
    entry_vector: u32 = 0
    rip: u64 = 0
    cs: u16 = 0
    _pad0: Annotated[tuple[int, ...], Array(u16, 1)] = ()
    saved_upcall_mask: u8 = 0
    _pad1: Annotated[tuple[int, ...], Array(u8, 3)] = ()
    rflags: u64 = 0
    rsp: u64 = 0
    ss: u16 = 0
    _pad2: Annotated[tuple[int, ...], Array(u16, 3)] = ()
    es: u16 = 0
    _pad3: Annotated[tuple[int, ...], Array(u16, 3)] = ()
    ds: u16 = 0
    _pad4: Annotated[tuple[int, ...], Array(u16, 3)] = ()
    fs: u16 = 0
    _pad5: Annotated[tuple[int, ...], Array(u16, 3)] = ()
    gs: u16 = 0
    _pad6: Annotated[tuple[int, ...], Array(u16, 3)] = ()


class vcpu_guest_context(Struct):
    """A vCPU's whole state as the toolstack and a core dump see it, x86_64 only."""

    fpu_ctxt: Annotated[bytes, Bytes(512)] = b""
    flags: ulong = 0  # VGCF_*
    user_regs: cpu_user_regs = cpu_user_regs()
    trap_ctxt: Annotated[tuple[trap_info, ...], Array(trap_info, 256)] = ()
    ldt_base: ulong = 0
    ldt_ents: ulong = 0
    gdt_frames: Annotated[tuple[int, ...], Array(ulong, 16)] = ()
    gdt_ents: ulong = 0
    kernel_ss: ulong = 0
    kernel_sp: ulong = 0
    ctrlreg: Annotated[tuple[int, ...], Array(ulong, 8)] = ()
    debugreg: Annotated[tuple[int, ...], Array(ulong, 8)] = ()
    event_callback_eip: ulong = 0
    failsafe_callback_eip: ulong = 0
    syscall_callback_eip: ulong = 0
    vm_assist: ulong = 0
    fs_base: u64 = 0
    gs_base_kernel: u64 = 0
    gs_base_user: u64 = 0
