"""HYPERVISOR_vcpu_op: bringing vCPUs up, their timers and what Xen writes for them.

Facts: public/vcpu.h and what real Xen 4.17 answers.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from hvmlite.abi import vcpu as abi
from hvmlite.abi import xen
from hvmlite.abi.errno import (
    XEN_EBUSY,
    XEN_EEXIST,
    XEN_EINVAL,
    XEN_ENOENT,
    XEN_ENOSYS,
    XEN_ENXIO,
)
from hvmlite.abi.hvm import vcpu_hvm_context
from hvmlite.abi.layout import Abi
from hvmlite.engine.memory import PAGE_SHIFT, PAGE_SIZE
from hvmlite.hypervisor.areas import PhysicalArea
from hvmlite.hypervisor.call import XenError
from hvmlite.hypervisor.hypercalls.registry import Family, OpInfo, handlers_of, note
from hvmlite.hypervisor.memory import GuestAccessError, Page
from hvmlite.hypervisor.vcpu_context import initial_state

if TYPE_CHECKING:
    from hvmlite.hypervisor.call import Call
    from hvmlite.hypervisor.domain import Domain
    from hvmlite.hypervisor.vcpu import Vcpu

SHORTEST_PERIOD = 1_000_000
LONGEST_PERIOD = (1 << 62) - 1
VCPU_INFO_SIZE = xen.vcpu_info.sizeof()
_PHYS_AREAS = (4, 18)
"""The release that brought areas by physical address, and with them other checks of all."""
_MASK32 = 0xFFFF_FFFF
_MASK64 = 0xFFFF_FFFF_FFFF_FFFF
_NO_ADDRESS = _MASK64
_TOO_FAR = 50
"""Bits of nanoseconds: 13 days."""
_HUGE_TIMEOUT = 100_000_000


def signed64(value: int) -> int:
    """A 64-bit word as the signed number that Xen takes a time for."""
    return value - (1 << 64) if value >> 63 else value


def _vcpu(call: Call) -> Vcpu:
    # _dispatch has checked the number.
    return call.domain.vcpus[call.args[1] & _MASK32]


# ---- up and down ---------------------------------------------------------------------------------


def _initialise(call: Call) -> int:
    vcpu = _vcpu(call)
    context = call.copy_from(call.args[2], vcpu_hvm_context)
    if vcpu.initialised:
        return -XEN_EEXIST
    vcpu.engine.load(initial_state(context, call.vcpu))
    vcpu.initialised = True
    return 0


def _up(call: Call) -> int:
    vcpu = _vcpu(call)
    if not vcpu.initialised:
        return -XEN_EINVAL
    vcpu.bring_up()
    return 0


def _down(call: Call) -> int:
    _vcpu(call).take_down()
    return 0


def _is_up(call: Call) -> int:
    return int(_vcpu(call).up)


def _send_nmi(call: Call) -> int:
    if call.args[2]:
        return -XEN_EINVAL
    _vcpu(call).raise_nmi()
    return 0


# ---- timers --------------------------------------------------------------------------------------


def _set_periodic_timer(call: Call) -> int:
    period = call.copy_from(call.args[2], abi.vcpu_set_periodic_timer).period_ns
    if not SHORTEST_PERIOD <= period <= LONGEST_PERIOD:
        return -XEN_EINVAL
    _vcpu(call).set_periodic(period)
    return 0


def _stop_periodic_timer(call: Call) -> int:
    _vcpu(call).stop_periodic()
    return 0


def _set_singleshot_timer(call: Call) -> int:
    vcpu = call.vcpu
    if _vcpu(call) is not vcpu:
        return -XEN_EINVAL
    # VCPU_SSHOTTMR_future is ignored: a time in the past fires at once, with and without it.
    arg = call.copy_from(call.args[2], abi.vcpu_set_singleshot_timer)
    vcpu.set_singleshot(signed64(arg.timeout_abs_ns))
    return 0


def _stop_singleshot_timer(call: Call) -> int:
    vcpu = call.vcpu
    if _vcpu(call) is not vcpu:
        return -XEN_EINVAL
    vcpu.stop_singleshot()
    return 0


def set_timer_op(call: Call) -> int:
    """HYPERVISOR_set_timer_op: the caller's one-shot timer, as one number (ns, 0: stop)."""
    value = call.args[0]
    if call.abi is Abi.X86_32:
        value |= call.args[1] << 32
    deadline, now = signed64(value), call.domain.clock.now()
    if not deadline:
        call.vcpu.stop_singleshot()
    elif deadline < 0 or (deadline > now and deadline - now >> _TOO_FAR & _MASK32):
        # Guests mean "never" or "at once" by such times; Xen does something in between.
        call.vcpu.set_singleshot(now + _HUGE_TIMEOUT)
    else:
        call.vcpu.set_singleshot(deadline)
    return 0


# ---- what Xen writes -----------------------------------------------------------------------------


def _runstate(call: Call, vcpu: Vcpu) -> abi.vcpu_runstate_info:
    state, entered, times = vcpu.runstate.snapshot(call.domain.clock.now())
    return abi.vcpu_runstate_info(state, entered, tuple(times))


def _get_runstate_info(call: Call) -> int:
    call.copy_to(call.args[2], _runstate(call, _vcpu(call)))
    return 0


def _register_runstate_memory_area(call: Call) -> int:
    vcpu = _vcpu(call)
    address = call.copy_from(call.args[2], abi.vcpu_register_area_virt).v
    vcpu.areas.set_virtual(abi.vcpu_runstate_info, address)
    if address:
        # The first time at once and in the caller's layout, from then on whenever it changes.
        with contextlib.suppress(GuestAccessError):
            call.copy_to(address, _runstate(call, vcpu))
    return 0


def _register_vcpu_time_memory_area(call: Call) -> int:
    vcpu = _vcpu(call)
    address = call.copy_from(call.args[2], abi.vcpu_register_area_virt).v
    vcpu.areas.set_virtual(xen.vcpu_time_info, address)
    vcpu.time_moved()
    return 0


def _register_runstate_phys_area(call: Call) -> int:
    vcpu = _vcpu(call)
    _set_physical(call, vcpu, abi.vcpu_runstate_info)
    if vcpu is call.vcpu:
        vcpu.areas.write_runstate()
    return 0


def _register_vcpu_time_phys_area(call: Call) -> int:
    vcpu = _vcpu(call)
    _set_physical(call, vcpu, xen.vcpu_time_info)
    vcpu.time_moved()
    return 0


def _set_physical(
    call: Call, vcpu: Vcpu, kind: type[abi.vcpu_runstate_info] | type[xen.vcpu_time_info]
) -> None:
    address = call.copy_from(call.args[2], abi.vcpu_register_area_phys).p
    area = None
    if address != _NO_ADDRESS:
        page, offset = _guest_page(call.domain, address, kind.sizeof(call.abi))
        area = PhysicalArea(call.domain.host, page, offset, call.abi)
    vcpu.areas.set_physical(kind, area)


def _guest_page(domain: Domain, address: int, size: int) -> tuple[Page, int]:
    """The page of the domain's own, and the offset, of an area that Xen writes."""
    gfn, offset = address >> PAGE_SHIFT, address & PAGE_SIZE - 1
    if offset + size > PAGE_SIZE or offset % domain.abi.word:
        raise XenError(XEN_ENXIO)
    return _own_page(domain, gfn), offset


def _own_page(domain: Domain, gfn: int) -> Page:
    frame = domain.pages.frame_at(gfn)
    if frame < 0 or not domain.pages.owns(frame):
        raise XenError(XEN_EINVAL)
    return Page(domain.host.machine, frame)


def _register_vcpu_info(call: Call) -> int:
    vcpu, domain = _vcpu(call), call.domain
    arg = call.copy_from(call.args[2], abi.vcpu_register_vcpu_info)
    if domain.release.pair < _PHYS_AREAS:
        if arg.offset > PAGE_SIZE - VCPU_INFO_SIZE or arg.offset % domain.abi.word:
            return -XEN_ENXIO
        # On oneself, or on a vCPU that does not run.
        if vcpu.info_registered or (vcpu is not call.vcpu and vcpu.up):
            return -XEN_EINVAL
        page, offset = _own_page(domain, arg.mfn), arg.offset
    else:
        address = (arg.mfn << PAGE_SHIFT) + arg.offset & _MASK64
        if address == _NO_ADDRESS or address >> PAGE_SHIFT != arg.mfn:
            return -XEN_EINVAL
        if vcpu.info_registered:
            return -XEN_EBUSY
        page, offset = _guest_page(domain, address, VCPU_INFO_SIZE)
    domain.move_vcpu_info(vcpu, page, offset)
    return 0


OPS = {
    abi.VCPUOP_initialise: OpInfo("VCPUOP_initialise", _initialise),
    abi.VCPUOP_up: OpInfo("VCPUOP_up", _up),
    abi.VCPUOP_down: OpInfo("VCPUOP_down", _down),
    abi.VCPUOP_is_up: OpInfo("VCPUOP_is_up", _is_up),
    abi.VCPUOP_get_runstate_info: OpInfo("VCPUOP_get_runstate_info", _get_runstate_info),
    abi.VCPUOP_register_runstate_memory_area: OpInfo(
        "VCPUOP_register_runstate_memory_area", _register_runstate_memory_area
    ),
    abi.VCPUOP_set_periodic_timer: OpInfo("VCPUOP_set_periodic_timer", _set_periodic_timer),
    abi.VCPUOP_stop_periodic_timer: OpInfo("VCPUOP_stop_periodic_timer", _stop_periodic_timer),
    abi.VCPUOP_set_singleshot_timer: OpInfo("VCPUOP_set_singleshot_timer", _set_singleshot_timer),
    abi.VCPUOP_stop_singleshot_timer: OpInfo(
        "VCPUOP_stop_singleshot_timer", _stop_singleshot_timer
    ),
    abi.VCPUOP_register_vcpu_info: OpInfo("VCPUOP_register_vcpu_info", _register_vcpu_info),
    abi.VCPUOP_send_nmi: OpInfo("VCPUOP_send_nmi", _send_nmi),
    abi.VCPUOP_get_physid: OpInfo(
        "VCPUOP_get_physid", None, XEN_EINVAL, "for a domain 0 whose vCPUs are pinned"
    ),
    abi.VCPUOP_register_vcpu_time_memory_area: OpInfo(
        "VCPUOP_register_vcpu_time_memory_area", _register_vcpu_time_memory_area
    ),
    abi.VCPUOP_register_runstate_phys_area: OpInfo(
        "VCPUOP_register_runstate_phys_area", _register_runstate_phys_area, since=_PHYS_AREAS
    ),
    abi.VCPUOP_register_vcpu_time_phys_area: OpInfo(
        "VCPUOP_register_vcpu_time_phys_area", _register_vcpu_time_phys_area, since=_PHYS_AREAS
    ),
}
"""Every sub-operation; all others answer -ENOSYS."""

_HANDLERS = handlers_of(OPS)
_REFUSED = {op: -info.errno for op, info in OPS.items() if info.handler is None}


def _dispatch(call: Call) -> int:
    # The vCPU is looked at first, even for an operation that does not exist.
    if call.args[1] & _MASK32 >= len(call.domain.vcpus):
        return -XEN_ENOENT
    op = call.args[0] & _MASK32
    handler = _HANDLERS.get(op)
    if handler is not None:
        return handler(call)
    note(call, f"vcpu_op {op}")
    return _REFUSED.get(op, -XEN_ENOSYS)


FAMILY = Family(xen.__HYPERVISOR_vcpu_op, "vcpu_op", _dispatch, OPS)
