"""The HVM parameters of a domain, and which of them a guest may read and write.

The toolstack fills `values` without any rule.  Facts: public/hvm/params.h and what real Xen 4.17
answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvmlite.abi import hvm
from hvmlite.abi.errno import XEN_EEXIST, XEN_EINVAL, XEN_EPERM
from hvmlite.hypervisor.call import XenError

if TYPE_CHECKING:
    from hvmlite.hypervisor.domain import Domain
    from hvmlite.hypervisor.vcpu import Vcpu

DEPRECATED = frozenset((
    hvm.HVM_PARAM_PAE_ENABLED,
    hvm.HVM_PARAM_DM_DOMAIN,
    hvm.HVM_PARAM_MEMORY_EVENT_CR0,
    hvm.HVM_PARAM_MEMORY_EVENT_CR3,
    hvm.HVM_PARAM_MEMORY_EVENT_CR4,
    hvm.HVM_PARAM_MEMORY_EVENT_INT3,
    hvm.HVM_PARAM_NESTEDHVM,
    hvm.HVM_PARAM_MEMORY_EVENT_SINGLE_STEP,
    hvm.HVM_PARAM_BUFIOREQ_EVTCHN,
    hvm.HVM_PARAM_MEMORY_EVENT_MSR,
))  # fmt: skip
GUEST_READS = frozenset((
    hvm.HVM_PARAM_CALLBACK_IRQ,
    hvm.HVM_PARAM_STORE_PFN,
    hvm.HVM_PARAM_STORE_EVTCHN,
    hvm.HVM_PARAM_VM86_TSS,
    hvm.HVM_PARAM_CONSOLE_PFN,
    hvm.HVM_PARAM_CONSOLE_EVTCHN,
    hvm.HVM_PARAM_ACPI_IOPORTS_LOCATION,
    hvm.HVM_PARAM_VM_GENERATION_ID_ADDR,
    hvm.HVM_PARAM_ALTP2M,
    hvm.HVM_PARAM_X87_FIP_WIDTH,
    hvm.HVM_PARAM_VM86_TSS_SIZED,
))  # fmt: skip
GUEST_WRITES = GUEST_READS - {
    hvm.HVM_PARAM_STORE_PFN,
    hvm.HVM_PARAM_CONSOLE_PFN,
    hvm.HVM_PARAM_ALTP2M,
}


class HvmParams:
    """The parameters of one domain."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self.values: dict[int, int] = {}
        """By index (HVM_PARAM_*); one that was never set reads 0.  For the toolstack."""

    def get(self, index: int) -> int:
        """What the guest reads; raises XenError."""
        if index >= hvm.HVM_NR_PARAMS or index in DEPRECATED:
            raise XenError(XEN_EINVAL)
        if index not in GUEST_READS:
            raise XenError(XEN_EPERM)
        return self.values.get(index, 0)

    def set(self, vcpu: Vcpu, index: int, value: int) -> None:
        """Carries out the guest's write; raises XenError."""
        if index >= hvm.HVM_NR_PARAMS or index in DEPRECATED:
            raise XenError(XEN_EINVAL)
        if index not in GUEST_WRITES:
            raise XenError(XEN_EPERM)
        if index == hvm.HVM_PARAM_CALLBACK_IRQ:
            self._set_callback(value)
            self._domain.latch_shinfo_size(vcpu)
        self.values[index] = value

    def _set_callback(self, value: int) -> None:
        via = value >> 56
        is_vector = via == hvm.HVM_PARAM_CALLBACK_TYPE_VECTOR
        self._domain.callback_vector = value & 0xFF if is_vector else -1
