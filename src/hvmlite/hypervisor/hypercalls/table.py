"""All hypercalls: the families joined, for dispatch, trace and docs/limits.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvmlite.abi import xen
from hvmlite.hypervisor import event_channel
from hvmlite.hypervisor.grant_table import FAMILY as GRANT_TABLE_OP
from hvmlite.hypervisor.hypercalls import hvm_op, misc, sched_op, vcpu_op, version
from hvmlite.hypervisor.hypercalls.memory_op import FAMILY as MEMORY_OP
from hvmlite.hypervisor.hypercalls.registry import Family, Handler

if TYPE_CHECKING:
    from hvmlite.hypervisor.call import Call


def _event_channel_op(call: Call) -> int:
    return call.domain.evtchn.dispatch(call)


EVENT_CHANNEL_OP = Family(
    xen.__HYPERVISOR_event_channel_op, "event_channel_op", _event_channel_op, {}
)
FAMILIES: tuple[Family, ...] = (
    MEMORY_OP,
    version.FAMILY,
    GRANT_TABLE_OP,
    vcpu_op.FAMILY,
    sched_op.FAMILY,
    EVENT_CHANNEL_OP,
    hvm_op.FAMILY,
    *misc.FAMILIES,
)
HYPERCALLS: dict[int, Handler] = {family.number: family.handler for family in FAMILIES}
