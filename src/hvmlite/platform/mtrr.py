"""MTRR and PAT registers of one vCPU: a store with the architecture's checks.

Memory types have no effect on how guest memory is accessed here; guests read and write these MSRs
and must see the values and the faults that Xen gives an HVM guest. Facts: Intel SDM volume 3,
"Memory Cache Control"; Xen's arch/x86/hvm/mtrr.c; the state a PVH domU starts with is that of
tools/libs/guest/xg_dom_x86.c.
"""

import enum
from typing import Final

from hvmlite.hypervisor.fault import GeneralProtection

MSR_MTRRcap: Final = 0xFE
MSR_MTRRphysBase0: Final = 0x200
MSR_MTRRfix64K_00000: Final = 0x250
MSR_MTRRfix16K_80000: Final = 0x258
MSR_MTRRfix4K_C0000: Final = 0x268
MSR_IA32_CR_PAT: Final = 0x277
MSR_MTRRdefType: Final = 0x2FF


class MemoryType(enum.IntEnum):
    """Encoding of a memory type in an MTRR or PAT field (SDM's names)."""

    UC = 0
    WC = 1
    WT = 4
    WP = 5
    WB = 6
    UC_MINUS = 7
    """PAT only."""


MTRR_VCNT: Final = 8
MTRRcap_FIX: Final = 1 << 8
MTRRcap_WC: Final = 1 << 10
MTRRcap: Final = MTRRcap_WC | MTRRcap_FIX | MTRR_VCNT

MTRRdefType_FE: Final = 1 << 10
MTRRdefType_E: Final = 1 << 11

FIXED_MSRS: Final = (
    MSR_MTRRfix64K_00000,
    *range(MSR_MTRRfix16K_80000, MSR_MTRRfix16K_80000 + 2),
    *range(MSR_MTRRfix4K_C0000, MSR_MTRRfix4K_C0000 + 8),
)
VARIABLE_MSRS: Final = range(MSR_MTRRphysBase0, MSR_MTRRphysBase0 + 2 * MTRR_VCNT)
"""Base and mask of range 0, of range 1, and so on."""

MSRS: Final = frozenset(
    (MSR_MTRRcap, MSR_IA32_CR_PAT, MSR_MTRRdefType, *FIXED_MSRS, *VARIABLE_MSRS)
)
"""Every MSR that Mtrr answers; any other is #GP."""

PAT_RESET: Final = 0x0007_0406_0007_0406

_MTRR_TYPES: Final = frozenset(MemoryType) - {MemoryType.UC_MINUS}
_PAT_TYPES: Final = frozenset(MemoryType)
_DEF_TYPE_BITS: Final = MTRRdefType_E | MTRRdefType_FE | 0xFF
_PHYS_BASE_RESERVED: Final = 0xF00
_PHYS_MASK_RESERVED: Final = 0x7FF


class Mtrr:
    """MTRRs and PAT of one vCPU, as a PVH domU starts: all memory write-back, no range in use.

    INIT leaves these registers as they are, so a started vCPU keeps its Mtrr.
    `maxphysaddr` is the guest's physical address width in bits (CPUID 0x80000008).
    """

    __slots__ = ("_base_reserved", "_mask_reserved", "values")

    def __init__(self, maxphysaddr: int) -> None:
        above = -1 << maxphysaddr
        self._base_reserved = above | _PHYS_BASE_RESERVED
        self._mask_reserved = above | _PHYS_MASK_RESERVED
        self.values = dict.fromkeys(MSRS, 0)
        """Value of every register by MSR number: what a save records and a restore writes back."""
        self.values[MSR_MTRRcap] = MTRRcap
        self.values[MSR_MTRRdefType] = MTRRdefType_E | MemoryType.WB
        self.values[MSR_IA32_CR_PAT] = PAT_RESET

    def read(self, msr: int) -> int:
        """The register's 64-bit value. Raises GeneralProtection for an MSR that is not in MSRS."""
        try:
            return self.values[msr]
        except KeyError:
            raise GeneralProtection from None

    def write(self, msr: int, value: int) -> None:
        """Store a 64-bit value.

        Raises GeneralProtection, leaving the register as it was, for an MSR that is not in MSRS,
        a read-only one, a reserved memory type or a reserved bit.
        """
        if not self._accepts(msr, value):
            raise GeneralProtection
        self.values[msr] = value

    def _accepts(self, msr: int, value: int) -> bool:
        if msr in VARIABLE_MSRS:
            if msr & 1:
                return not value & self._mask_reserved
            return not value & self._base_reserved and value & 0xFF in _MTRR_TYPES
        if msr == MSR_MTRRdefType:
            return not value & ~_DEF_TYPE_BITS and value & 0xFF in _MTRR_TYPES
        if msr == MSR_IA32_CR_PAT:
            return _PAT_TYPES.issuperset(value.to_bytes(8, "little"))
        if msr in FIXED_MSRS:
            return _MTRR_TYPES.issuperset(value.to_bytes(8, "little"))
        return False
