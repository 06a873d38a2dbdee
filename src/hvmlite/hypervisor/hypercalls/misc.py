"""The hypercalls of one operation, and those of other kinds of guests, which a domU is refused.

Facts: the public headers and what real Xen 4.17 answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvmlite.abi import physdev, xen
from hvmlite.abi.errno import (
    XEN_EINVAL,
    XEN_ENOSYS,
    XEN_EOPNOTSUPP,
    XEN_EPERM,
    XEN_ESRCH,
)
from hvmlite.hypervisor.hypercalls.domid import exists, is_self
from hvmlite.hypervisor.hypercalls.registry import Family, Handler, OpInfo, by_op, refused
from hvmlite.hypervisor.hypercalls.vcpu_op import set_timer_op

if TYPE_CHECKING:
    from hvmlite.hypervisor.call import Call

_MASK32 = 0xFFFF_FFFF


def _vm_assist(call: Call) -> int:
    command, kind = call.args[0] & _MASK32, call.args[1] & _MASK32
    if kind != xen.VMASST_TYPE_runstate_update_flag:
        return -XEN_EINVAL
    if command == xen.VMASST_CMD_enable:
        call.domain.vm_assist |= 1 << kind
    elif command == xen.VMASST_CMD_disable:
        call.domain.vm_assist &= ~(1 << kind)
    else:
        return -XEN_ENOSYS
    return 0


def _pirq_op(kind: type[physdev.physdev_map_pirq] | type[physdev.physdev_unmap_pirq]) -> Handler:
    def handler(call: Call) -> int:
        domid = call.copy_from(call.args[1], kind).domid
        if not exists(call, domid):
            return -XEN_ESRCH
        return -XEN_EOPNOTSUPP if is_self(call, domid) else -XEN_EPERM

    return handler


_PIRQ = "a PVH domU has no PIRQs"
PHYSDEV_OPS = {
    physdev.PHYSDEVOP_map_pirq: OpInfo(
        "PHYSDEVOP_map_pirq", _pirq_op(physdev.physdev_map_pirq), XEN_ENOSYS, _PIRQ, (4, 20)
    ),
    physdev.PHYSDEVOP_unmap_pirq: OpInfo(
        "PHYSDEVOP_unmap_pirq", _pirq_op(physdev.physdev_unmap_pirq), XEN_ENOSYS, _PIRQ, (4, 20)
    ),
}
"""All others need PIRQs, or are the hardware domain's: -ENOSYS, as these two before 4.20."""

_PV = "for PV guests"
_NOT_BUILT = "not built into Xen by default"
FAMILIES: tuple[Family, ...] = (
    Family(xen.__HYPERVISOR_set_timer_op, "set_timer_op", set_timer_op),
    Family(xen.__HYPERVISOR_vm_assist, "vm_assist", _vm_assist),
    by_op(xen.__HYPERVISOR_physdev_op, "physdev_op", PHYSDEV_OPS),
    refused(
        xen.__HYPERVISOR_console_io, "console_io", XEN_EPERM,
        "for domain 0; a domU may only write, and only to a debug build",
    ),
    refused(xen.__HYPERVISOR_xsm_op, "xsm_op", XEN_ENOSYS, _NOT_BUILT),
    refused(xen.__HYPERVISOR_tmem_op, "tmem_op", XEN_ENOSYS, "gone from Xen since 4.13"),
    refused(xen.__HYPERVISOR_xenpmu_op, "xenpmu_op", XEN_EOPNOTSUPP, "no virtual PMU"),
    refused(xen.__HYPERVISOR_hypfs_op, "hypfs_op", XEN_EPERM, "for a control domain"),
    refused(xen.__HYPERVISOR_kexec_op, "kexec_op", XEN_ENOSYS, _PV),
    refused(xen.__HYPERVISOR_nmi_op, "nmi_op", XEN_ENOSYS, _PV),
    refused(xen.__HYPERVISOR_callback_op, "callback_op", XEN_ENOSYS, _PV),
    refused(xen.__HYPERVISOR_xenoprof_op, "xenoprof_op", XEN_ENOSYS, _PV),
    refused(xen.__HYPERVISOR_set_trap_table, "set_trap_table", XEN_ENOSYS, _PV),
    refused(xen.__HYPERVISOR_mmu_update, "mmu_update", XEN_ENOSYS, _PV),
    refused(xen.__HYPERVISOR_set_gdt, "set_gdt", XEN_ENOSYS, _PV),
    refused(xen.__HYPERVISOR_stack_switch, "stack_switch", XEN_ENOSYS, _PV),
    refused(xen.__HYPERVISOR_set_callbacks, "set_callbacks", XEN_ENOSYS, _PV),
    refused(xen.__HYPERVISOR_fpu_taskswitch, "fpu_taskswitch", XEN_ENOSYS, _PV),
    refused(xen.__HYPERVISOR_sched_op_compat, "sched_op_compat", XEN_ENOSYS, _PV),
    refused(xen.__HYPERVISOR_set_debugreg, "set_debugreg", XEN_ENOSYS, _PV),
    refused(xen.__HYPERVISOR_get_debugreg, "get_debugreg", XEN_ENOSYS, _PV),
    refused(xen.__HYPERVISOR_update_descriptor, "update_descriptor", XEN_ENOSYS, _PV),
    refused(xen.__HYPERVISOR_update_va_mapping, "update_va_mapping", XEN_ENOSYS, _PV),
    refused(xen.__HYPERVISOR_event_channel_op_compat, "event_channel_op_compat", XEN_ENOSYS, _PV),
    refused(xen.__HYPERVISOR_physdev_op_compat, "physdev_op_compat", XEN_ENOSYS, _PV),
    refused(
        xen.__HYPERVISOR_update_va_mapping_otherdomain, "update_va_mapping_otherdomain",
        XEN_ENOSYS, _PV,
    ),
    refused(xen.__HYPERVISOR_iret, "iret", XEN_ENOSYS, _PV),
    refused(xen.__HYPERVISOR_set_segment_base, "set_segment_base", XEN_ENOSYS, _PV),
    refused(xen.__HYPERVISOR_arch_0, "mca", XEN_ENOSYS, _PV),
)  # fmt: skip
