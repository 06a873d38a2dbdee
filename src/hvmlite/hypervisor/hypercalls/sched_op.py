"""HYPERVISOR_sched_op.

Facts: public/sched.h and what real Xen 4.17 answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvmlite.abi import sched as abi
from hvmlite.abi import xen
from hvmlite.abi.errno import XEN_EINVAL
from hvmlite.hypervisor.hypercalls.registry import OpInfo, by_op

if TYPE_CHECKING:
    from hvmlite.hypervisor.call import Call


def _yield(_call: Call) -> int:
    return 0


def _block(call: Call) -> int:
    vcpu = call.vcpu
    vcpu.info_page.u8[vcpu.info_offset + 1] = 0
    vcpu.block()
    return 0


def _poll(call: Call) -> int:
    arg = call.copy_from(call.args[1], abi.sched_poll)
    if arg.nr_ports > 128:
        return -XEN_EINVAL
    ports = call.read_array(arg.ports, "I", arg.nr_ports)
    evtchn = call.domain.evtchn
    for port in ports:
        result = evtchn.poll(port)
        if result < 0:
            return result
        if result:
            return 0
    if arg.timeout and arg.timeout <= call.domain.clock.now():
        return 0
    call.vcpu.poll(ports, arg.timeout)
    return 0


def _shutdown(call: Call) -> int:
    arg = call.copy_from(call.args[1], abi.sched_shutdown)
    if arg.reason > abi.SHUTDOWN_MAX:
        return -XEN_EINVAL
    call.domain.shutdown(arg.reason)
    return 0


OPS = {
    abi.SCHEDOP_yield: OpInfo("SCHEDOP_yield", _yield),
    abi.SCHEDOP_block: OpInfo("SCHEDOP_block", _block),
    abi.SCHEDOP_shutdown: OpInfo("SCHEDOP_shutdown", _shutdown),
    abi.SCHEDOP_poll: OpInfo("SCHEDOP_poll", _poll),
}
FAMILY = by_op(xen.__HYPERVISOR_sched_op, "sched_op", OPS)
