"""Hypercall numbers, domain ids, VIRQs and the shared info page. Source: xen.h.

The x86 members of these structs are in `arch_x86`.
"""

import enum
from typing import Annotated

from hvmlite.abi.arch_x86 import XEN_LEGACY_MAX_VCPUS, arch_shared_info, arch_vcpu_info
from hvmlite.abi.layout import Abi, Array, Bytes, Only, Struct, s8, u8, u32, u64, ulong

__HYPERVISOR_set_trap_table = 0
__HYPERVISOR_mmu_update = 1
__HYPERVISOR_set_gdt = 2
__HYPERVISOR_stack_switch = 3
__HYPERVISOR_set_callbacks = 4
__HYPERVISOR_fpu_taskswitch = 5
__HYPERVISOR_sched_op_compat = 6
__HYPERVISOR_platform_op = 7
__HYPERVISOR_set_debugreg = 8
__HYPERVISOR_get_debugreg = 9
__HYPERVISOR_update_descriptor = 10
__HYPERVISOR_memory_op = 12
__HYPERVISOR_multicall = 13
__HYPERVISOR_update_va_mapping = 14
__HYPERVISOR_set_timer_op = 15
__HYPERVISOR_event_channel_op_compat = 16
__HYPERVISOR_xen_version = 17
__HYPERVISOR_console_io = 18
__HYPERVISOR_physdev_op_compat = 19
__HYPERVISOR_grant_table_op = 20
__HYPERVISOR_vm_assist = 21
__HYPERVISOR_update_va_mapping_otherdomain = 22
__HYPERVISOR_iret = 23
__HYPERVISOR_vcpu_op = 24
__HYPERVISOR_set_segment_base = 25
__HYPERVISOR_mmuext_op = 26
__HYPERVISOR_xsm_op = 27
__HYPERVISOR_nmi_op = 28
__HYPERVISOR_sched_op = 29
__HYPERVISOR_callback_op = 30
__HYPERVISOR_xenoprof_op = 31
__HYPERVISOR_event_channel_op = 32
__HYPERVISOR_physdev_op = 33
__HYPERVISOR_hvm_op = 34
__HYPERVISOR_sysctl = 35
__HYPERVISOR_domctl = 36
__HYPERVISOR_kexec_op = 37
__HYPERVISOR_tmem_op = 38
__HYPERVISOR_argo_op = 39
__HYPERVISOR_xenpmu_op = 40
__HYPERVISOR_dm_op = 41
__HYPERVISOR_hypfs_op = 42
__HYPERVISOR_arch_0 = 48
__HYPERVISOR_arch_1 = 49
__HYPERVISOR_arch_2 = 50
__HYPERVISOR_arch_3 = 51
__HYPERVISOR_arch_4 = 52
__HYPERVISOR_arch_5 = 53
__HYPERVISOR_arch_6 = 54
__HYPERVISOR_arch_7 = 55

# Virtual interrupts: per vCPU, or global to the domain.
VIRQ_TIMER = 0  # per vCPU
VIRQ_DEBUG = 1  # per vCPU
VIRQ_CONSOLE = 2
VIRQ_DOM_EXC = 3
VIRQ_TBUF = 4
VIRQ_DEBUGGER = 6
VIRQ_XENOPROF = 7  # per vCPU
VIRQ_CON_RING = 8
VIRQ_PCPU_STATE = 9
VIRQ_MEM_EVENT = 10
VIRQ_ARGO = 11
VIRQ_ENOMEM = 12
VIRQ_XENPMU = 13  # per vCPU
VIRQ_ARCH_0 = 16
VIRQ_ARCH_1 = 17
VIRQ_ARCH_2 = 18
VIRQ_ARCH_3 = 19
VIRQ_ARCH_4 = 20
VIRQ_ARCH_5 = 21
VIRQ_ARCH_6 = 22
VIRQ_ARCH_7 = 23
NR_VIRQS = 24

CONSOLEIO_write = 0
CONSOLEIO_read = 1

VMASST_CMD_enable = 0
VMASST_CMD_disable = 1
VMASST_TYPE_4gb_segments = 0
VMASST_TYPE_4gb_segments_notify = 1
VMASST_TYPE_writable_pagetables = 2
VMASST_TYPE_pae_extended_cr3 = 3
VMASST_TYPE_architectural_iopl = 4
VMASST_TYPE_runstate_update_flag = 5  # the only one an HVM or PVH guest may set
VMASST_TYPE_m2p_strict = 32

DOMID_FIRST_RESERVED = 0x7FF0  # ordinary domains lie below
DOMID_SELF = 0x7FF0
DOMID_IO = 0x7FF1
DOMID_XEN = 0x7FF2
DOMID_COW = 0x7FF3
DOMID_INVALID = 0x7FF4
DOMID_IDLE = 0x7FFF
DOMID_MASK = 0x7FFF

# vcpu_time_info.flags
XEN_PVCLOCK_TSC_STABLE_BIT = 1 << 0
XEN_PVCLOCK_GUEST_STOPPED = 1 << 1

# PV start_info flags; hvm_start_info uses the first two.
SIF_PRIVILEGED = 1 << 0
SIF_INITDOMAIN = 1 << 1
SIF_MULTIBOOT_MOD = 1 << 2
SIF_MOD_START_PFN = 1 << 3
SIF_VIRT_P2M_4TOOLS = 1 << 4
SIF_PM_MASK = 0xFF << 8


class Hypercall(enum.IntEnum):
    """The same numbers without the prefix: Python mangles `__HYPERVISOR_x` inside a class."""

    set_trap_table = 0
    mmu_update = 1
    set_gdt = 2
    stack_switch = 3
    set_callbacks = 4
    fpu_taskswitch = 5
    sched_op_compat = 6
    platform_op = 7
    set_debugreg = 8
    get_debugreg = 9
    update_descriptor = 10
    memory_op = 12
    multicall = 13
    update_va_mapping = 14
    set_timer_op = 15
    event_channel_op_compat = 16
    xen_version = 17
    console_io = 18
    physdev_op_compat = 19
    grant_table_op = 20
    vm_assist = 21
    update_va_mapping_otherdomain = 22
    iret = 23
    vcpu_op = 24
    set_segment_base = 25
    mmuext_op = 26
    xsm_op = 27
    nmi_op = 28
    sched_op = 29
    callback_op = 30
    xenoprof_op = 31
    event_channel_op = 32
    physdev_op = 33
    hvm_op = 34
    sysctl = 35
    domctl = 36
    kexec_op = 37
    tmem_op = 38
    argo_op = 39
    xenpmu_op = 40
    dm_op = 41
    hypfs_op = 42
    arch_0 = 48
    arch_1 = 49
    arch_2 = 50
    arch_3 = 51
    arch_4 = 52
    arch_5 = 53
    arch_6 = 54
    arch_7 = 55


class mmu_update(Struct):
    """__HYPERVISOR_mmu_update: one page table entry to change (PV)."""

    ptr: u64 = 0
    val: u64 = 0


class mmuext_op(Struct):
    """__HYPERVISOR_mmuext_op: one page table operation (PV)."""

    cmd: u32 = 0
    arg1: ulong = 0
    arg2: ulong = 0


class multicall_entry(Struct):
    """__HYPERVISOR_multicall: one call of the batch; `result` is written back."""

    op: ulong = 0
    result: ulong = 0
    args: Annotated[tuple[int, ...], Array(ulong, 6)] = ()


class vcpu_time_info(Struct):
    """A vCPU's clock: how to turn its TSC into nanoseconds of system time.

    system_time + ((((tsc - tsc_timestamp) << tsc_shift) * tsc_to_system_mul) >> 32).
    `version` is odd while Xen updates the record. `flags` is in use since 4.7.
    """

    version: u32 = 0
    pad0: u32 = 0
    tsc_timestamp: u64 = 0
    system_time: u64 = 0
    tsc_to_system_mul: u32 = 0
    tsc_shift: s8 = 0
    flags: u8 = 0  # XEN_PVCLOCK_*
    pad1: Annotated[tuple[int, ...], Array(u8, 2)] = ()


class vcpu_info(Struct):
    """What Xen and one vCPU share: 64 bytes in both layouts."""

    evtchn_upcall_pending: u8 = 0
    evtchn_upcall_mask: u8 = 0
    evtchn_pending_sel: ulong = 0
    arch: arch_vcpu_info = arch_vcpu_info()
    time: vcpu_time_info = vcpu_time_info()


_vcpu_info = vcpu_info  # the field below has the name of its own type


class shared_info(Struct):
    """The page that Xen and a domain share."""

    vcpu_info: Annotated[tuple[_vcpu_info, ...], Array(_vcpu_info, XEN_LEGACY_MAX_VCPUS)] = ()
    evtchn_pending: Annotated[tuple[int, ...], Array(ulong, 64, 32)] = ()
    evtchn_mask: Annotated[tuple[int, ...], Array(ulong, 64, 32)] = ()
    wc_version: u32 = 0  # odd while Xen updates the wall clock
    wc_sec: u32 = 0
    wc_nsec: u32 = 0
    wc_sec_hi: Annotated[int, Only(u32, Abi.X86_64)] = 0  # i386: in arch
    arch: arch_shared_info = arch_shared_info()


class xen_multiboot_mod_list(Struct):
    """One module of a multiboot module list, as found by a dom0 kernel."""

    mod_start: u32 = 0
    mod_end: u32 = 0
    cmdline: u32 = 0
    pad: u32 = 0


class xen_uuid_t(Struct):
    """A UUID in the byte order of RFC 4122."""

    a: Annotated[bytes, Bytes(16)] = b""
