"""vCPU bring-up, run state, timers and registered areas. Source: vcpu.h.

What VCPUOP_initialise takes from an HVM or PVH guest is in `hvm`: vcpu_hvm_context.
"""

from typing import Annotated

from hvmlite.abi.layout import Array, Struct, UnionOf, handle, s32, u32, u64

VCPUOP_initialise = 0
VCPUOP_up = 1
VCPUOP_down = 2
VCPUOP_is_up = 3
VCPUOP_get_runstate_info = 4
VCPUOP_register_runstate_memory_area = 5
VCPUOP_set_periodic_timer = 6
VCPUOP_stop_periodic_timer = 7
VCPUOP_set_singleshot_timer = 8
VCPUOP_stop_singleshot_timer = 9
VCPUOP_register_vcpu_info = 10
VCPUOP_send_nmi = 11
VCPUOP_get_physid = 12
VCPUOP_register_vcpu_time_memory_area = 13
VCPUOP_register_runstate_phys_area = 14  # 4.18
VCPUOP_register_vcpu_time_phys_area = 15  # 4.18

RUNSTATE_running = 0
RUNSTATE_runnable = 1
RUNSTATE_blocked = 2
RUNSTATE_offline = 3

# Set in state_entry_time while Xen updates the record, if VMASST_TYPE_runstate_update_flag is on.
XEN_RUNSTATE_UPDATE = 1 << 63

# Asked for -ETIME on a time in the past; ignored by recent 4.17 and since 4.18.
VCPU_SSHOTTMR_future = 1 << 0


class vcpu_runstate_info(Struct):
    """Where a vCPU's time went: ns since `state_entry_time`, and ns in each RUNSTATE_*."""

    state: s32 = 0
    state_entry_time: u64 = 0
    time: Annotated[tuple[int, ...], Array(u64, 4)] = ()


class vcpu_register_area_virt(Struct):
    """addr of the next two structs as a guest-virtual address (*_memory_area)."""

    v: handle = 0


class vcpu_register_area_phys(Struct):
    """addr of the next two structs as a guest-physical address (*_phys_area)."""

    p: u64 = 0


class vcpu_register_runstate_memory_area(Struct):
    """VCPUOP_register_runstate_memory_area and, since 4.18, VCPUOP_register_runstate_phys_area."""

    addr: Annotated[bytes, UnionOf(vcpu_register_area_virt, vcpu_register_area_phys)] = b""


class vcpu_register_time_memory_area(Struct):
    """VCPUOP_register_vcpu_time_memory_area and, since 4.18, the *_phys_area of it."""

    addr: Annotated[bytes, UnionOf(vcpu_register_area_virt, vcpu_register_area_phys)] = b""


class vcpu_set_periodic_timer(Struct):
    """VCPUOP_set_periodic_timer: in period_ns."""

    period_ns: u64 = 0


class vcpu_set_singleshot_timer(Struct):
    """VCPUOP_set_singleshot_timer: in timeout_abs_ns (system time), flags (VCPU_SSHOTTMR_*)."""

    timeout_abs_ns: u64 = 0
    flags: u32 = 0


class vcpu_register_vcpu_info(Struct):
    """VCPUOP_register_vcpu_info: in mfn (guest frame), offset (bytes)."""

    mfn: u64 = 0
    offset: u32 = 0
    rsvd: u32 = 0


class vcpu_get_physid(Struct):
    """VCPUOP_get_physid: out phys_id (APIC id low, ACPI id high 32 bits)."""

    phys_id: u64 = 0
