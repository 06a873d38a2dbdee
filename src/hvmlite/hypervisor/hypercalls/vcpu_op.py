"""HYPERVISOR_vcpu_op.

Facts: public/vcpu.h and what real Xen 4.17 answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvmlite.abi import vcpu as abi
from hvmlite.abi import xen
from hvmlite.abi.errno import XEN_EINVAL, XEN_ENOENT, XEN_ENXIO, XEN_ETIME
from hvmlite.engine.memory import PAGE_SIZE
from hvmlite.hypervisor.call import XenError
from hvmlite.hypervisor.hypercalls.registry import OpInfo, by_op
from hvmlite.hypervisor.memory import GuestAccessError

if TYPE_CHECKING:
    from hvmlite.hypervisor.call import Call
    from hvmlite.hypervisor.vcpu import Vcpu


def _vcpu(call: Call) -> Vcpu:
    vcpus = call.domain.vcpus
    index = call.args[1] & 0xFFFF_FFFF
    if index >= len(vcpus):
        raise XenError(XEN_ENOENT)
    return vcpus[index]


def _is_up(call: Call) -> int:
    return int(_vcpu(call).up)


def _down(call: Call) -> int:
    _vcpu(call).take_down()
    return 0


def _up(call: Call) -> int:
    vcpu = _vcpu(call)
    if not vcpu.initialised:
        return -XEN_EINVAL
    vcpu.bring_up()
    return 0


def _get_runstate_info(call: Call) -> int:
    state, entered, times = _vcpu(call).runstate.snapshot(call.domain.clock.now())
    call.copy_to(call.args[2], abi.vcpu_runstate_info(state, entered, tuple(times)))
    return 0


def _register_runstate(call: Call) -> int:
    _vcpu(call)
    call.read_guest(call.args[2], 8)
    return 0


def _set_singleshot(call: Call) -> int:
    vcpu = _vcpu(call)
    if vcpu is not call.vcpu:
        return -XEN_EINVAL
    arg = call.copy_from(call.args[2], abi.vcpu_set_singleshot_timer)
    if arg.flags & abi.VCPU_SSHOTTMR_future and arg.timeout_abs_ns < call.domain.clock.now():
        return -XEN_ETIME
    vcpu.set_singleshot(arg.timeout_abs_ns)
    return 0


def _stop_singleshot(call: Call) -> int:
    vcpu = _vcpu(call)
    if vcpu is not call.vcpu:
        return -XEN_EINVAL
    vcpu.stop_singleshot()
    return 0


def _stop_periodic(call: Call) -> int:
    _vcpu(call).stop_periodic()
    return 0


def _register_vcpu_info(call: Call) -> int:
    vcpu = _vcpu(call)
    arg = call.copy_from(call.args[2], abi.vcpu_register_vcpu_info)
    if arg.offset > PAGE_SIZE - 64 or arg.offset & 7:
        return -XEN_ENXIO
    if vcpu.info_registered:
        return -XEN_EINVAL
    try:
        page = call.domain.memory.page(arg.mfn)
    except GuestAccessError:
        return -XEN_EINVAL
    page.write(arg.offset, vcpu.info_page.read(vcpu.info_offset, 64))
    vcpu.set_info(page, arg.offset)
    vcpu.info_registered = True
    vcpu.update_time()
    call.domain.evtchn.vcpu_info_moved(vcpu)
    return 0


OPS = {
    abi.VCPUOP_up: OpInfo("VCPUOP_up", _up),
    abi.VCPUOP_down: OpInfo("VCPUOP_down", _down),
    abi.VCPUOP_is_up: OpInfo("VCPUOP_is_up", _is_up),
    abi.VCPUOP_get_runstate_info: OpInfo("VCPUOP_get_runstate_info", _get_runstate_info),
    abi.VCPUOP_register_runstate_memory_area: OpInfo(
        "VCPUOP_register_runstate_memory_area", _register_runstate
    ),
    abi.VCPUOP_stop_periodic_timer: OpInfo("VCPUOP_stop_periodic_timer", _stop_periodic),
    abi.VCPUOP_set_singleshot_timer: OpInfo("VCPUOP_set_singleshot_timer", _set_singleshot),
    abi.VCPUOP_stop_singleshot_timer: OpInfo("VCPUOP_stop_singleshot_timer", _stop_singleshot),
    abi.VCPUOP_register_vcpu_info: OpInfo("VCPUOP_register_vcpu_info", _register_vcpu_info),
}
FAMILY = by_op(xen.__HYPERVISOR_vcpu_op, "vcpu_op", OPS)
