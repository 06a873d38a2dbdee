"""HYPERVISOR_hvm_op: what an HVM or PVH guest asks of its own domain.

Facts: public/hvm/hvm_op.h, public/hvm/params.h and what real Xen 4.17 answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvmlite.abi import hvm as abi
from hvmlite.abi import xen
from hvmlite.abi.errno import XEN_EINVAL, XEN_ENOENT, XEN_EOPNOTSUPP, XEN_EPERM, XEN_ESRCH
from hvmlite.hypervisor.call import XenError
from hvmlite.hypervisor.hypercalls.domid import exists, is_self
from hvmlite.hypervisor.hypercalls.registry import OpInfo, by_op
from hvmlite.hypervisor.physmap import P2mType

if TYPE_CHECKING:
    from hvmlite.hypervisor.call import Call

FIRST_VECTOR = 16
_LARGEST_EVENT = 0xFFF
"""What of a trace record's event a guest may choose: the class is always TRC_GUEST."""
_MASK64 = 0xFFFF_FFFF_FFFF_FFFF

_MEM_TYPE = {
    P2mType.RAM_RW: abi.HVMMEM_ram_rw,
    P2mType.RAM_RO: abi.HVMMEM_ram_ro,
    # A grant counts as memory only if it is read-only: so p2m_is_ram and p2m_is_readonly say.
    P2mType.GRANT_RW: abi.HVMMEM_mmio_dm,
    P2mType.GRANT_RO: abi.HVMMEM_ram_ro,
    P2mType.FOREIGN: abi.HVMMEM_mmio_dm,
    P2mType.XENHEAP: abi.HVMMEM_ram_rw,
    P2mType.XENHEAP_RO: abi.HVMMEM_ram_ro,
    P2mType.MMIO_DM: abi.HVMMEM_mmio_dm,
}


def _check_domain(call: Call, domid: int, other: int = XEN_EPERM) -> None:
    """Raises XenError unless it is the caller's own; `other`: the errno for domain 0, a PV one."""
    if is_self(call, domid):
        return
    if not exists(call, domid):
        raise XenError(XEN_ESRCH)
    raise XenError(XEN_EPERM if call.domain.host.domain(domid) is not None else other)


def _set_param(call: Call) -> int:
    arg = call.copy_from(call.args[1], abi.xen_hvm_param)
    if arg.index >= abi.HVM_NR_PARAMS:
        return -XEN_EINVAL
    _check_domain(call, arg.domid, XEN_EINVAL)
    call.domain.params.set(call.vcpu, arg.index, arg.value)
    return 0


def _get_param(call: Call) -> int:
    arg = call.copy_from(call.args[1], abi.xen_hvm_param)
    if arg.index >= abi.HVM_NR_PARAMS:
        return -XEN_EINVAL
    _check_domain(call, arg.domid, XEN_EINVAL)
    arg.value = call.domain.params.get(arg.index)
    call.copy_to(call.args[1], arg)
    return 0


def _flush_tlbs(call: Call) -> int:
    if call.args[1]:
        return -XEN_EINVAL
    # A vCPU that leaves the guest and comes back has none of its old translations.
    call.domain.partition.flush()
    return 0


def _pagetable_dying(call: Call) -> int:
    arg = call.copy_from(call.args[1], abi.xen_hvm_pagetable_dying)
    if not exists(call, arg.domid):
        return -XEN_ESRCH
    # For shadow paging only; nested paging has nothing to drop.
    return -XEN_EINVAL


def _get_time(call: Call) -> int:
    # By the guest's own TSC and scale, so that it fits exactly between two looks at vcpu_time_info.
    calibration = call.domain.calibration
    now = calibration.ns_at(calibration.read(call.vcpu.engine))
    call.copy_to(call.args[1], abi.xen_hvm_get_time(now))
    return 0


def _xentrace(call: Call) -> int:
    arg = call.copy_from(call.args[1], abi.xen_hvm_xentrace)
    if arg.extra_bytes > 4 * abi.TRACE_EXTRA_MAX or arg.event > _LARGEST_EVENT:
        return -XEN_EINVAL
    return 0


def _get_mem_type(call: Call) -> int:
    arg = call.copy_from(call.args[1], abi.xen_hvm_get_mem_type)
    _check_domain(call, arg.domid)
    entry = call.domain.physmap.lookup(arg.pfn)
    arg.mem_type = abi.HVMMEM_mmio_dm if entry is None else _MEM_TYPE[entry[1]]
    call.copy_to(call.args[1], arg)
    return 0


def _set_evtchn_upcall_vector(call: Call) -> int:
    arg = call.copy_from(call.args[1], abi.xen_hvm_evtchn_upcall_vector)
    if arg.vector < FIRST_VECTOR:
        return -XEN_EINVAL
    if arg.vcpu >= len(call.domain.vcpus):
        return -XEN_ENOENT
    call.domain.vcpus[arg.vcpu].set_upcall_vector(arg.vector)
    return 0


def _guest_request_vm_event(call: Call) -> int:
    # Nobody monitors the domain: there is no one to tell.
    return -XEN_EINVAL if call.args[1] else 0


OPS = {
    abi.HVMOP_set_param: OpInfo("HVMOP_set_param", _set_param),
    abi.HVMOP_get_param: OpInfo("HVMOP_get_param", _get_param),
    abi.HVMOP_flush_tlbs: OpInfo("HVMOP_flush_tlbs", _flush_tlbs),
    abi.HVMOP_pagetable_dying: OpInfo("HVMOP_pagetable_dying", _pagetable_dying),
    abi.HVMOP_get_time: OpInfo("HVMOP_get_time", _get_time),
    abi.HVMOP_xentrace: OpInfo("HVMOP_xentrace", _xentrace),
    abi.HVMOP_get_mem_type: OpInfo("HVMOP_get_mem_type", _get_mem_type),
    abi.HVMOP_set_evtchn_upcall_vector: OpInfo(
        "HVMOP_set_evtchn_upcall_vector", _set_evtchn_upcall_vector
    ),
    abi.HVMOP_guest_request_vm_event: OpInfo(
        "HVMOP_guest_request_vm_event", _guest_request_vm_event
    ),
    abi.HVMOP_altp2m: OpInfo(
        "HVMOP_altp2m", None, XEN_EOPNOTSUPP, "no alternate p2m, as on every AMD CPU"
    ),
}
"""Every sub-operation; all others, those of device models among them, answer -ENOSYS."""
FAMILY = by_op(xen.__HYPERVISOR_hvm_op, "hvm_op", OPS, _MASK64)
