"""CPUID as a domain sees it: the engine's CPU under a policy, and Xen's own leaves.

The toolstack chooses the policy; this module enforces it.  Leaves that never change are handed to
the engine, which answers them without an exit.  Facts: public/arch-x86/cpuid.h; AMD64 APM volume 3
appendix E; Intel SDM volume 2 (CPUID).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvmlite.abi.cpuid import (
    XEN_HVM_CPUID_DOMID_PRESENT,
    XEN_HVM_CPUID_IOMMU_MAPPINGS,
    XEN_HVM_CPUID_UPCALL_VECTOR,
    XEN_HVM_CPUID_VCPU_ID_PRESENT,
)
from hvmlite.records import field, record

if TYPE_CHECKING:
    from hvmlite.hypervisor.domain import Domain
    from hvmlite.hypervisor.vcpu import Vcpu

Registers = tuple[int, int, int, int]

XEN_BASE = 0x40000000
_MASK32 = 0xFFFF_FFFF
_SUBLEAVED = frozenset((0x4, 0x7, 0xB, 0xF, 0x10, 0x12, 0x14, 0x17, 0x18, 0x1D, 0x1F))
_EXTENDED_SUBLEAVED = frozenset((0x8000001D, 0x80000020, 0x80000026))
_HIGHEST_BASIC = 0xD
_XSTATE = 0xD
_XSTATE_SUBLEAVES = 64
_SUBLEAVES = 5
_CACHED = 512

# Leaf 1.
_ECX1_VMX = 1 << 5
_ECX1_MONITOR = 1 << 3
_ECX1_X2APIC = 1 << 21
_ECX1_TSC_DEADLINE = 1 << 24
_ECX1_OSXSAVE = 1 << 27
_ECX1_HYPERVISOR = 1 << 31
_ECX1_DS_CPL = 1 << 4
_ECX1_EST = 1 << 7
_ECX1_TM2 = 1 << 8
_ECX1_PDCM = 1 << 15
_ECX1_PCID = 1 << 17
_EDX1_APIC = 1 << 9
_EDX1_MTRR = 1 << 12
_EDX1_MCE = 1 << 7
_EDX1_MCA = 1 << 14
_EDX1_HTT = 1 << 28
_CR4_OSXSAVE = 1 << 18
# Leaf 0x80000001.
_ECX_CMP_LEGACY = 1 << 1
_ECX_SVM = 1 << 2
_ECX_EXTAPIC = 1 << 3
_ECX_IBS = 1 << 10
_ECX_SKINIT = 1 << 12
_ECX_WDT = 1 << 13
_ECX_TOPOEXT = 1 << 22
_EDX_APIC = 1 << 9
_EDX_MTRR = 1 << 12
_EDX7_SPEC_CTRL = 1 << 26 | 1 << 27 | 1 << 29 | 1 << 31
# Leaf 0x80000008.
_EBX_SPEC = 1 << 12 | 1 << 14 | 1 << 15 | 1 << 24

# Not XEN_HVM_CPUID_APIC_ACCESS_VIRT and X2APIC_VIRT: Xen knows of those on Intel's CPUs only.
_HVM_FEATURES = (
    XEN_HVM_CPUID_IOMMU_MAPPINGS
    | XEN_HVM_CPUID_VCPU_ID_PRESENT
    | XEN_HVM_CPUID_DOMID_PRESENT
    | XEN_HVM_CPUID_UPCALL_VECTOR
)
_HIGHEST_XEN = XEN_BASE + 5


@record
class CpuidPolicy:
    """What a domain's CPUID shows.

    `lapic`: offer a local APIC (with x2APIC if `x2apic`).  `clear` holds bits to take away, by
    (leaf, register index 0 to 3).
    """

    lapic: bool = True
    x2apic: bool = True
    tsc_deadline: bool = False
    clear: dict[tuple[int, int], int] = field(default_factory=dict)
    _cache: dict[tuple[int, int], Registers] = field(default_factory=dict)

    def answer(self, vcpu: Vcpu, leaf: int, subleaf: int) -> Registers:
        """eax, ebx, ecx, edx of a leaf on one vCPU in its present state."""
        if XEN_BASE <= leaf < XEN_BASE + 0x100:
            return xen_leaf(vcpu, leaf, subleaf)
        if leaf == _XSTATE:
            # Sizes depend on what the guest enabled in XCR0, which is in the CPU now.
            return vcpu.engine.hardware_cpuid(leaf, subleaf)
        sub = subleaf if leaf in _SUBLEAVED or leaf in _EXTENDED_SUBLEAVED else 0
        cached = self._cache.get((leaf, sub))
        if cached is None:
            cached = self._constant(vcpu, leaf, sub)
            # A guest may ask for any leaf and subleaf there is.
            if len(self._cache) < _CACHED:
                self._cache[(leaf, sub)] = cached
        eax, ebx, ecx, edx = cached
        if leaf == 1:
            ebx = ebx & 0xFF00FFFF | apic_id(len(vcpu.domain.vcpus)) << 16 | apic_id(vcpu.id) << 24
            if vcpu.engine.get("cr4") & _CR4_OSXSAVE:
                ecx |= _ECX1_OSXSAVE
        elif leaf == 0xB:
            edx = apic_id(vcpu.id)
        elif leaf == 0x8000001E:
            eax = apic_id(vcpu.id)
        return eax, ebx & _MASK32, ecx, edx

    def _constant(self, vcpu: Vcpu, leaf: int, subleaf: int) -> Registers:
        engine = vcpu.engine
        highest = engine.hardware_cpuid(leaf & 0x8000_0000, 0)[0]
        if not leaf & 0x8000_0000:
            highest = min(highest, _HIGHEST_BASIC)
        if leaf > highest:
            return 0, 0, 0, 0
        regs = list(engine.hardware_cpuid(leaf, subleaf))
        if leaf == 0:
            regs[0] = highest
        elif leaf == 1:
            self._leaf_1(regs)
        elif leaf == 7 and not subleaf:
            regs[3] &= ~_EDX7_SPEC_CTRL
        elif leaf in (5, 6, 0xA):
            regs = [0, 0, 0, 0]
        elif leaf == 0xB:
            # Two levels: one thread a core, and all vCPUs in one package, ids two apart.
            count = len(vcpu.domain.vcpus)
            width = (apic_id(count) - 1).bit_length()
            regs = [1, 1, 0x100, 0] if not subleaf else [width, count, 0x201, 0]
            if subleaf > 1:
                regs = [0, 0, subleaf & 0xFF, 0]
        elif leaf == 0x80000001:
            regs[2] &= ~(_ECX_SVM | _ECX_EXTAPIC | _ECX_IBS | _ECX_SKINIT | _ECX_WDT | _ECX_TOPOEXT)
            regs[2] |= _ECX_CMP_LEGACY
            if not self.lapic:
                regs[3] &= ~_EDX_APIC
        elif leaf == 0x80000007:
            # The TSC that we give is constant: it follows the host's invariant one.
            regs[3] |= 1 << 8
        elif leaf == 0x80000008:
            regs[1] &= ~_EBX_SPEC
            # One package: the number of ids in it less one, and their width.
            ids = apic_id(len(vcpu.domain.vcpus))
            regs[2] = regs[2] & ~0xF0FF | ids - 1 | (ids - 1).bit_length() << 12
        elif leaf == 0x8000000A:
            regs = [0, 0, 0, 0]
        for i in range(4):
            regs[i] &= ~self.clear.get((leaf, i), 0)
        return regs[0], regs[1], regs[2], regs[3]

    def _leaf_1(self, regs: list[int]) -> None:
        regs[2] &= ~(
            _ECX1_MONITOR | _ECX1_VMX | _ECX1_TSC_DEADLINE | _ECX1_OSXSAVE | _ECX1_X2APIC
            | _ECX1_DS_CPL | _ECX1_EST | _ECX1_TM2 | _ECX1_PDCM | _ECX1_PCID
        )  # fmt: skip
        regs[2] |= _ECX1_HYPERVISOR
        regs[3] = regs[3] & ~(_EDX1_MCE | _EDX1_MCA) | _EDX1_HTT
        regs[1] &= 0x0000FFFF
        if self.lapic:
            regs[3] |= _EDX1_APIC
            regs[2] |= _ECX1_X2APIC if self.x2apic else 0
            regs[2] |= _ECX1_TSC_DEADLINE if self.tsc_deadline else 0
        else:
            regs[3] &= ~_EDX1_APIC

    def hand_to_engine(self, domain: Domain) -> None:
        """Lets the engine answer every leaf that does not depend on what the guest does."""
        for vcpu in domain.vcpus:
            leaves: dict[int, Registers | list[Registers | None]] = {}
            for leaf in (*range(_HIGHEST_BASIC + 1), *range(0x80000000, 0x80000020)):
                if leaf in _SUBLEAVED or leaf in _EXTENDED_SUBLEAVED:
                    leaves[leaf] = [self.answer(vcpu, leaf, i) for i in range(_SUBLEAVES)]
                elif leaf != _XSTATE:
                    leaves[leaf] = self.answer(vcpu, leaf, 0)
            # Its first two subleaves depend on XCR0 and XSS.
            leaves[_XSTATE] = [
                None if i < 2 else self.answer(vcpu, _XSTATE, i) for i in range(_XSTATE_SUBLEAVES)
            ]
            for leaf in range(XEN_BASE, XEN_BASE + 3):
                leaves[leaf] = xen_leaf(vcpu, leaf, 0)
            vcpu.engine.set_constant_cpuid(leaves)


def apic_id(vcpu_id: int) -> int:
    """The local APIC id of a vCPU: Xen spaces them by two."""
    return 2 * vcpu_id


def xen_leaf(vcpu: Vcpu, leaf: int, subleaf: int) -> Registers:
    """Xen's leaves at 0x40000000 and up; zero beyond the last."""
    domain = vcpu.domain
    index = leaf - XEN_BASE
    if index == 0:
        return _HIGHEST_XEN, 0x566E6558, 0x65584D4D, 0x4D4D566E
    if index == 1:
        return domain.release.version, 0, 0, 0
    if index == 2:
        # One hypercall page, set up by this MSR; no features.
        return 1, XEN_BASE, 0, 0
    if index == 3:
        return _time_leaf(domain, subleaf)
    if index == 4 and not subleaf:
        return _HVM_FEATURES, vcpu.id, domain.domid, 0
    return 0, 0, 0, 0


def _time_leaf(domain: Domain, subleaf: int) -> Registers:
    calibration = domain.calibration
    if subleaf == 0:
        # Emulated; the host's is reliable; RDTSCP.  Incarnation 1: it was never migrated.
        features = calibration.emulated | 1 << 1 | 1 << 2
        return features, domain.tsc_mode, calibration.khz, 1
    if subleaf == 1:
        return 0, 0, calibration.mul, calibration.shift & _MASK32
    if subleaf == 2:
        return calibration.khz, 0, 0, 0
    return 0, 0, 0, 0
