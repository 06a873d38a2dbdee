"""All hypercalls: the families joined, for dispatch, trace and docs/limits.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvmlite.abi import xen
from hvmlite.abi.errno import XEN_ENOSYS
from hvmlite.hypervisor.event_channel import OPS as EVENT_CHANNEL_OPS
from hvmlite.hypervisor.grant_table import FAMILY as GRANT_TABLE_OP
from hvmlite.hypervisor.hypercalls import (
    argo_op,
    hvm_op,
    misc,
    multicall,
    privileged,
    sched_op,
    vcpu_op,
    version,
)
from hvmlite.hypervisor.hypercalls.memory_op import FAMILY as MEMORY_OP
from hvmlite.hypervisor.hypercalls.registry import Family, Handler, OpInfo, note

if TYPE_CHECKING:
    from hvmlite.hypervisor.call import Call

_MASK32 = 0xFFFF_FFFF


def _event_channel_op(call: Call) -> int:
    # Here and not in EventChannels.dispatch: this is the hottest hypercall, one frame counts.
    op = call.args[0] & _MASK32
    info = EVENT_CHANNEL_OPS.get(op)
    if info is None:
        note(call, f"event_channel_op {op}")
        return -XEN_ENOSYS
    return info.handler(call.domain.evtchn, call)


EVENT_CHANNEL_OP = Family(
    xen.__HYPERVISOR_event_channel_op,
    "event_channel_op",
    _event_channel_op,
    {op: OpInfo(info.name, _event_channel_op) for op, info in EVENT_CHANNEL_OPS.items()},
)

HYPERCALLS: dict[int, Handler] = {}
"""The handler of every hypercall there is, by its number; all others answer -ENOSYS."""
FAMILIES: tuple[Family, ...] = (
    MEMORY_OP,
    version.FAMILY,
    GRANT_TABLE_OP,
    vcpu_op.FAMILY,
    sched_op.FAMILY,
    EVENT_CHANNEL_OP,
    hvm_op.FAMILY,
    argo_op.FAMILY,
    multicall.family(HYPERCALLS),
    *misc.FAMILIES,
    *privileged.FAMILIES,
)
HYPERCALLS.update((family.number, family.handler) for family in FAMILIES)
