"""HYPERVISOR_sched_op: giving up the CPU, waiting, shutting down, the watchdog.

Facts: public/sched.h and what real Xen 4.17 answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvmlite.abi import sched as abi
from hvmlite.abi import xen
from hvmlite.abi.errno import XEN_EINVAL, XEN_EPERM, XEN_ESRCH
from hvmlite.abi.layout import Abi
from hvmlite.hypervisor.call import XenError
from hvmlite.hypervisor.hypercalls.domid import exists
from hvmlite.hypervisor.hypercalls.registry import OpInfo, by_op
from hvmlite.hypervisor.hypercalls.vcpu_op import signed64
from hvmlite.hypervisor.watchdog import NR_DOMAIN_WATCHDOG_TIMERS

if TYPE_CHECKING:
    from hvmlite.hypervisor.call import Call

POLL_LIMIT = 128
_UPCALL_MASK = xen.vcpu_info.offsetof("evtchn_upcall_mask")
_REASON = 0xFF
"""What counts of a reason: Xen takes any, also ones without a name."""
_PORT_SIZE = 4


def _yield(_call: Call) -> int:
    return 0


def _block(call: Call) -> int:
    vcpu = call.vcpu
    vcpu.info_page.u8[vcpu.info_offset + _UPCALL_MASK] = 0
    vcpu.block()
    return 0


def _poll(call: Call) -> int:
    arg = call.copy_from(call.args[1], abi.sched_poll)
    if arg.nr_ports > POLL_LIMIT:
        return -XEN_EINVAL
    vcpu = call.vcpu
    if vcpu.needs_delivery():
        return 0
    poll = call.domain.evtchn.poll
    ports = []
    for address in range(arg.ports, arg.ports + _PORT_SIZE * arg.nr_ports, _PORT_SIZE):
        # One by one: a port that is pending goes before a pointer that leads nowhere.
        port = call.read_array(address, "I", 1)[0]
        result = poll(port)
        if result:
            return min(result, 0)
        ports.append(port)
    deadline = signed64(arg.timeout)
    if deadline and deadline <= call.domain.clock.now():
        return 0
    vcpu.poll(tuple(ports), deadline)
    return 0


def _shutdown(call: Call) -> int:
    reason = call.copy_from(call.args[1], abi.sched_shutdown).reason & _REASON
    if reason == abi.SHUTDOWN_crash:
        call.domain.crash("the guest reported a crash (SHUTDOWN_crash)", call.vcpu)
    else:
        call.domain.shutdown(reason)
    return 0


def _shutdown_code(call: Call) -> int:
    reason = call.copy_from(call.args[1], abi.sched_shutdown).reason & _REASON
    if call.domain.announced_code < 0:
        call.domain.announced_code = reason
    return 0


def _remote_shutdown(call: Call) -> int:
    domid = call.copy_from(call.args[1], abi.sched_remote_shutdown).domain_id
    # By number only, and not even oneself.
    if domid == xen.DOMID_SELF or not exists(call, domid):
        return -XEN_ESRCH
    return -XEN_EPERM


def _watchdog(call: Call) -> int:
    arg = call.copy_from(call.args[1], abi.sched_watchdog)
    if arg.id > NR_DOMAIN_WATCHDOG_TIMERS:
        return -XEN_EINVAL
    watchdogs = call.domain.watchdogs
    if arg.id:
        watchdogs.poke(arg.id, arg.timeout)
        return 0
    try:
        return watchdogs.start(arg.timeout)
    except XenError as error:
        # Xen returns this one as an unsigned 32-bit number.
        return -error.errno if call.abi is Abi.X86_32 else (1 << 32) - error.errno


OPS = {
    abi.SCHEDOP_yield: OpInfo("SCHEDOP_yield", _yield),
    abi.SCHEDOP_block: OpInfo("SCHEDOP_block", _block),
    abi.SCHEDOP_shutdown: OpInfo("SCHEDOP_shutdown", _shutdown),
    abi.SCHEDOP_poll: OpInfo("SCHEDOP_poll", _poll),
    abi.SCHEDOP_remote_shutdown: OpInfo("SCHEDOP_remote_shutdown", _remote_shutdown),
    abi.SCHEDOP_shutdown_code: OpInfo("SCHEDOP_shutdown_code", _shutdown_code),
    abi.SCHEDOP_watchdog: OpInfo("SCHEDOP_watchdog", _watchdog),
    abi.SCHEDOP_pin_override: OpInfo(
        "SCHEDOP_pin_override", None, XEN_EPERM, "for the hardware domain"
    ),
}
"""Every sub-operation; all others answer -ENOSYS."""
FAMILY = by_op(xen.__HYPERVISOR_sched_op, "sched_op", OPS)
