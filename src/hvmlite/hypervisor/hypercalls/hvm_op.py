"""HYPERVISOR_hvm_op: what an HVM or PVH guest asks of its own domain.

Facts: public/hvm/hvm_op.h, public/hvm/params.h and what real Xen 4.17 answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvmlite.abi import hvm as abi
from hvmlite.abi import xen
from hvmlite.abi.errno import XEN_EINVAL, XEN_ENOENT, XEN_EPERM, XEN_ESRCH
from hvmlite.hypervisor.call import XenError
from hvmlite.hypervisor.hypercalls.registry import OpInfo, by_op

if TYPE_CHECKING:
    from hvmlite.hypervisor.call import Call


def _require_self(call: Call, domid: int) -> None:
    if domid in (xen.DOMID_SELF, call.domain.domid):
        return
    known = domid == 0 or call.domain.host.domain(domid) is not None
    raise XenError(XEN_EPERM if known else XEN_ESRCH)


def _set_param(call: Call) -> int:
    arg = call.copy_from(call.args[1], abi.xen_hvm_param)
    if arg.index >= abi.HVM_NR_PARAMS:
        return -XEN_EINVAL
    _require_self(call, arg.domid)
    call.domain.params.set(call.vcpu, arg.index, arg.value)
    return 0


def _get_param(call: Call) -> int:
    arg = call.copy_from(call.args[1], abi.xen_hvm_param)
    if arg.index >= abi.HVM_NR_PARAMS:
        return -XEN_EINVAL
    _require_self(call, arg.domid)
    arg.value = call.domain.params.get(arg.index)
    call.copy_to(call.args[1], arg)
    return 0


def _set_evtchn_upcall_vector(call: Call) -> int:
    arg = call.copy_from(call.args[1], abi.xen_hvm_evtchn_upcall_vector)
    if arg.vector < 16:
        return -XEN_EINVAL
    if arg.vcpu >= len(call.domain.vcpus):
        return -XEN_ENOENT
    call.domain.vcpus[arg.vcpu].upcall_vector = arg.vector
    return 0


OPS = {
    abi.HVMOP_set_param: OpInfo("HVMOP_set_param", _set_param),
    abi.HVMOP_get_param: OpInfo("HVMOP_get_param", _get_param),
    abi.HVMOP_set_evtchn_upcall_vector: OpInfo(
        "HVMOP_set_evtchn_upcall_vector", _set_evtchn_upcall_vector
    ),
}
FAMILY = by_op(xen.__HYPERVISOR_hvm_op, "hvm_op", OPS)
