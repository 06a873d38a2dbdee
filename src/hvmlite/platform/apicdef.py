"""Registers and fields of the local APIC, and who may touch which: data, no behaviour.

Names are those of Xen's arch/x86/include/asm/apicdef.h and msr-index.h; the values are
architectural (Intel SDM volume 3, chapter "APIC"; AMD APM volume 2, chapter 16).
"""

from typing import Final

# Registers by their offset in the xAPIC page; the x2APIC MSR is MSR_X2APIC_FIRST + (offset >> 4).
APIC_ID: Final = 0x020
APIC_LVR: Final = 0x030
APIC_TASKPRI: Final = 0x080
APIC_PROCPRI: Final = 0x0A0
APIC_EOI: Final = 0x0B0
APIC_LDR: Final = 0x0D0
APIC_DFR: Final = 0x0E0
APIC_SPIV: Final = 0x0F0
APIC_ISR: Final = 0x100
APIC_TMR: Final = 0x180
APIC_IRR: Final = 0x200
APIC_ESR: Final = 0x280
APIC_CMCI: Final = 0x2F0
APIC_ICR: Final = 0x300
APIC_ICR2: Final = 0x310
APIC_LVTT: Final = 0x320
APIC_LVTTHMR: Final = 0x330
APIC_LVTPC: Final = 0x340
APIC_LVT0: Final = 0x350
APIC_LVT1: Final = 0x360
APIC_LVTERR: Final = 0x370
APIC_TMICT: Final = 0x380
APIC_TMCCT: Final = 0x390
APIC_TDCR: Final = 0x3E0
APIC_SELF_IPI: Final = 0x3F0

MSR_APIC_BASE: Final = 0x1B
MSR_TSC_DEADLINE: Final = 0x6E0
MSR_X2APIC_FIRST: Final = 0x800
MSR_X2APIC_LAST: Final = 0x8FF

APIC_BASE_BSP: Final = 1 << 8
APIC_BASE_EXTD: Final = 1 << 10
APIC_BASE_ENABLE: Final = 1 << 11
APIC_BASE_ADDR_MASK: Final = 0x000F_FFFF_FFFF_F000
APIC_DEFAULT_PHYS_BASE: Final = 0xFEE0_0000

# Interrupt command register, low half; the delivery mode also stands in the LVT registers.
APIC_VECTOR_MASK: Final = 0xFF
APIC_DM_MASK: Final = 0x700
APIC_DM_FIXED: Final = 0x000
APIC_DM_LOWEST: Final = 0x100
APIC_DM_NMI: Final = 0x400
APIC_DM_INIT: Final = 0x500
APIC_DM_STARTUP: Final = 0x600
APIC_DEST_MASK: Final = 1 << 11
"""Logical destination."""
APIC_ICR_BUSY: Final = 1 << 12
APIC_INT_ASSERT: Final = 1 << 14
APIC_INT_LEVELTRIG: Final = 1 << 15
APIC_SHORT_MASK: Final = 0xC0000
APIC_DEST_NOSHORT: Final = 0x00000
APIC_DEST_SELF: Final = 0x40000
APIC_DEST_ALLINC: Final = 0x80000
APIC_DEST_ALLBUT: Final = 0xC0000

APIC_LVT_MASKED: Final = 1 << 16
APIC_SEND_PENDING: Final = 1 << 12
APIC_INPUT_POLARITY: Final = 1 << 13
APIC_LVT_REMOTE_IRR: Final = 1 << 14
APIC_LVT_LEVEL_TRIGGER: Final = 1 << 15
APIC_TIMER_MODE_SHIFT: Final = 17
APIC_TIMER_MODE_MASK: Final = 3 << APIC_TIMER_MODE_SHIFT

APIC_SPIV_APIC_ENABLED: Final = 1 << 8
APIC_SPIV_FOCUS_DISABLED: Final = 1 << 9
APIC_DFR_CLUSTER: Final = 0x0FFF_FFFF
APIC_DFR_FLAT: Final = 0xFFFF_FFFF
APIC_TDR_DIV_MASK: Final = 0xB

APIC_ESR_SENDILL: Final = 1 << 5
APIC_ESR_RECVILL: Final = 1 << 6

FIRST_VECTOR: Final = 16
"""Vectors below are exceptions; an APIC neither sends nor accepts them."""

# What the local APIC of a Xen domU has.

_LVT_BITS: Final = APIC_LVT_MASKED | APIC_VECTOR_MASK
_LINT_BITS: Final = _LVT_BITS | APIC_DM_MASK | APIC_INPUT_POLARITY | APIC_LVT_LEVEL_TRIGGER
LVT_WRITABLE: Final = {
    APIC_LVTT: _LVT_BITS | APIC_TIMER_MODE_MASK,
    APIC_LVTTHMR: _LVT_BITS | APIC_DM_MASK,
    APIC_LVTPC: _LVT_BITS | APIC_DM_MASK,
    APIC_LVT0: _LINT_BITS,
    APIC_LVT1: _LINT_BITS,
    APIC_LVTERR: _LVT_BITS,
}
"""The LVT registers, each with the bits that a guest can set."""

X2APIC_READABLE: Final = frozenset(
    (
        *(APIC_ID, APIC_LVR, APIC_TASKPRI, APIC_PROCPRI, APIC_LDR, APIC_SPIV),
        *range(APIC_ISR, APIC_IRR + 0x80, 0x10),
        *(APIC_ESR, APIC_CMCI, APIC_ICR),
        *(APIC_LVTT, APIC_LVTTHMR, APIC_LVTPC, APIC_LVT0, APIC_LVT1, APIC_LVTERR),
        *(APIC_TMICT, APIC_TMCCT, APIC_TDCR),
    )
)
"""Registers that RDMSR reads."""
X2APIC_WRITABLE: Final = {
    APIC_TASKPRI: 0xFF,
    APIC_EOI: 0,
    APIC_SPIV: APIC_VECTOR_MASK | APIC_SPIV_APIC_ENABLED | APIC_SPIV_FOCUS_DISABLED,
    APIC_ESR: 0,
    APIC_CMCI: _LVT_BITS | APIC_SEND_PENDING | APIC_DM_MASK,
    APIC_ICR: 0xFFFF_FFFF << 32
    | APIC_VECTOR_MASK
    | APIC_DM_MASK
    | APIC_DEST_MASK
    | APIC_INT_ASSERT
    | APIC_INT_LEVELTRIG
    | APIC_SHORT_MASK,
    APIC_TMICT: (1 << 64) - 1,
    APIC_TDCR: APIC_TDR_DIV_MASK,
    APIC_SELF_IPI: APIC_VECTOR_MASK,
    **{
        offset: bits
        | APIC_SEND_PENDING
        | (APIC_LVT_REMOTE_IRR if offset in (APIC_LVT0, APIC_LVT1) else 0)
        for offset, bits in LVT_WRITABLE.items()
    },
}
"""Registers that WRMSR writes; a bit beyond these is #GP.

Of the LVT's read-only bits Xen takes either value.
"""
