"""The HVM parameters of a domain, and which of them a guest may read and write.

The toolstack fills `values` without any rule.  Facts: public/hvm/params.h and what real Xen 4.17
answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvmlite.abi import hvm
from hvmlite.abi.errno import XEN_EEXIST, XEN_EINVAL, XEN_ENODEV, XEN_EPERM
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

_ALTP2M_FIXED = (4, 19)
"""The release from which HVM_PARAM_ALTP2M is set when a domain is made, and never again."""
_TYPE_SHIFT = 56
_MASK32 = 0xFFFF_FFFF
_SIZE_SHIFT = 32
_OLD_TSS_SIZE = 128
_SMALLEST_TSS = 0x68
_LARGEST_TSS = _SMALLEST_TSS + 0x100 // 8 + 0x10000 // 8 + 1
"""A TSS with all of the interrupt redirection and I/O permission bitmaps."""


class HvmParams:
    """The parameters of one domain."""

    def __init__(self, domain: Domain) -> None:
        self._domain = domain
        self.values: dict[int, int] = {}
        """By index (HVM_PARAM_*); one that was never set reads 0.  For the toolstack."""

    def get(self, index: int) -> int:
        """What the guest reads; raises XenError."""
        _check(index, GUEST_READS)
        if index == hvm.HVM_PARAM_VM86_TSS:
            return self.values.get(hvm.HVM_PARAM_VM86_TSS_SIZED, 0) & _MASK32
        return self.values.get(index, 0)

    def set(self, vcpu: Vcpu, index: int, value: int) -> None:
        """Carries out the write of a guest's vCPU; raises XenError."""
        if index == hvm.HVM_PARAM_ALTP2M and self._domain.release.pair >= _ALTP2M_FIXED:
            raise XenError(XEN_EEXIST)
        _check(index, GUEST_WRITES)
        if index == hvm.HVM_PARAM_CALLBACK_IRQ:
            self._set_callback(value)
            self._domain.latch_shinfo_size(vcpu)
        elif index == hvm.HVM_PARAM_VM86_TSS:
            if value > _MASK32:
                self._crash(vcpu, "HVM_PARAM_VM86_TSS lies beyond 4 GiB")
            index = hvm.HVM_PARAM_VM86_TSS_SIZED
            value |= _OLD_TSS_SIZE << _SIZE_SHIFT if value else 0
        elif index == hvm.HVM_PARAM_VM86_TSS_SIZED:
            size = value >> _SIZE_SHIFT
            if size < _SMALLEST_TSS:
                self._crash(vcpu, f"HVM_PARAM_VM86_TSS_SIZED is for a TSS of {size} bytes")
            value = value & _MASK32 | min(size, _LARGEST_TSS) << _SIZE_SHIFT
        elif index == hvm.HVM_PARAM_ACPI_IOPORTS_LOCATION:
            # There is no PM timer whose ports could move.
            raise XenError(XEN_ENODEV)
        elif index == hvm.HVM_PARAM_X87_FIP_WIDTH and value not in (0, 4, 8):
            raise XenError(XEN_EINVAL)
        self.values[index] = value

    def _crash(self, vcpu: Vcpu, reason: str) -> None:
        self._domain.crash(reason, vcpu)
        raise XenError(XEN_EINVAL)

    def _set_callback(self, value: int) -> None:
        if value >> _TYPE_SHIFT != hvm.HVM_PARAM_CALLBACK_TYPE_VECTOR:
            # The other ways need an interrupt controller that a PVH guest lacks: Xen remembers the
            # value and leaves the vector as it was.
            return
        self._domain.callback_vector = value & 0xFF
        for vcpu in self._domain.vcpus:
            if vcpu.up:
                vcpu.event_pending()


def _check(index: int, allowed: frozenset[int]) -> None:
    if index >= hvm.HVM_NR_PARAMS or index in DEPRECATED:
        raise XenError(XEN_EINVAL)
    if index not in allowed:
        raise XenError(XEN_EPERM)
