"""Event channels: ports, the 2-level and the FIFO ABI, and the backends' end of a channel."""

from hvmlite.hypervisor.event_channel.backend import BackendPort
from hvmlite.hypervisor.event_channel.channels import (
    NR_PIRQS,
    PER_VCPU_VIRQS,
    EventChannels,
)
from hvmlite.hypervisor.event_channel.ops import OPS, OpInfo
from hvmlite.hypervisor.event_channel.ports import PortInfo, PortState

__all__ = [
    "NR_PIRQS",
    "OPS",
    "PER_VCPU_VIRQS",
    "BackendPort",
    "EventChannels",
    "OpInfo",
    "PortInfo",
    "PortState",
]
