"""Model-specific registers of a domain's vCPUs.

The engine lets through what the CPU itself keeps per guest (SYSCALL, FS/GS base, PAT).  Here are
EFER, the TSC, the hypercall page and APIC_BASE; the toolstack adds devices (local APIC, MTRR).
Every other MSR raises #GP, as real Xen does since 4.15.  Facts: Intel SDM volume 4, Xen's
arch/x86/msr.c.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from hvmlite.engine.memory import PAGE_SHIFT, PAGE_SIZE
from hvmlite.hypervisor.fault import GeneralProtection
from hvmlite.hypervisor.memory import Gpa, GuestAccessError

if TYPE_CHECKING:
    from hvmlite.hypervisor.vcpu import Vcpu

MSR_TSC = 0x10
MSR_MICROCODE_REVISION = 0x8B
MSR_SPEC_CTRL = 0x48
MSR_PRED_CMD = 0x49
MSR_MISC_ENABLE = 0x1A0
MSR_DEBUGCTL = 0x1D9
MSR_XSS = 0xDA0
MSR_EFER = 0xC0000080
MSR_HWCR = 0xC0010015
MSR_SYSCFG = 0xC0010010
MSR_PATCH_LEVEL = 0x8B
MSR_AMD64_NB_CFG = 0xC001001F
MSR_K8_ENABLE_C1E = 0xC0010055
HYPERCALL_PAGE_MSR = 0x40000000
HYPERCALL_PAGE_MSR_VIRIDIAN = 0x40000200

EFER_SCE = 1
EFER_LME = 1 << 8
EFER_LMA = 1 << 10
EFER_NX = 1 << 11
EFER_FFXSR = 1 << 14
_CR0_PG = 1 << 31

_READ_ZERO = frozenset((
    MSR_MISC_ENABLE, MSR_DEBUGCTL, MSR_SYSCFG, MSR_HWCR, MSR_PATCH_LEVEL,
    MSR_AMD64_NB_CFG, MSR_K8_ENABLE_C1E,
))  # fmt: skip
_IGNORE_WRITE = frozenset((
    MSR_DEBUGCTL, MSR_PRED_CMD, MSR_PATCH_LEVEL, MSR_AMD64_NB_CFG, MSR_K8_ENABLE_C1E,
))  # fmt: skip

HYPERCALL_SLOT = 32
_HYPERCALLS = PAGE_SIZE // HYPERCALL_SLOT
_IRET = 23


class MsrDevice(Protocol):
    """A device with MSRs of its own."""

    @property
    def ranges(self) -> Sequence[tuple[int, int]]:
        """Its registers, as (first, last) inclusive."""

    def read(self, vcpu: Vcpu, index: int) -> int:
        """The register's value; raises GeneralProtection."""

    def write(self, vcpu: Vcpu, index: int, value: int) -> None:
        """Sets the register; raises GeneralProtection."""


def read_msr(vcpu: Vcpu, index: int) -> int:
    """The value that RDMSR gives; raises GeneralProtection."""
    if index == MSR_EFER:
        return vcpu.engine.get("efer")
    if index == MSR_TSC:
        return vcpu.domain.calibration.read(vcpu.engine)
    device = vcpu.domain.msr_devices.get(index)
    if device is not None:
        return device.read(vcpu, index)
    if index in _READ_ZERO or index in (HYPERCALL_PAGE_MSR, HYPERCALL_PAGE_MSR_VIRIDIAN):
        return 0
    raise GeneralProtection


def write_msr(vcpu: Vcpu, index: int, value: int) -> None:
    """Carries out WRMSR; raises GeneralProtection."""
    # The end of every interrupt comes this way.
    device = vcpu.domain.msr_devices.get(index)
    if device is not None:
        device.write(vcpu, index, value)
        return
    if index == MSR_EFER:
        _write_efer(vcpu, value)
        return
    if index == HYPERCALL_PAGE_MSR:
        _write_hypercall_page(vcpu, value)
        return
    if index not in _IGNORE_WRITE:
        raise GeneralProtection


def _write_efer(vcpu: Vcpu, value: int) -> None:
    engine = vcpu.engine
    old = engine.get("efer")
    if value & ~(EFER_SCE | EFER_LME | EFER_LMA | EFER_NX | EFER_FFXSR):
        raise GeneralProtection
    if (value ^ old) & EFER_LME and engine.get("cr0") & _CR0_PG:
        raise GeneralProtection
    engine.set("efer", value & ~EFER_LMA | old & EFER_LMA)


def hypercall_page() -> bytes:
    """The 128 stubs of a hypercall page: mov $number,%eax; vmmcall; ret.

    Slot 23 (iret) is undefined for HVM guests and faults, as in real Xen.
    """
    page = bytearray()
    for number in range(_HYPERCALLS):
        if number == _IRET:
            code = b"\x0f\x0b"
        else:
            code = b"\xb8" + number.to_bytes(4, "little") + b"\x0f\x01\xd9\xc3"
        page += code.ljust(HYPERCALL_SLOT, b"\xcc")
    return bytes(page)


def _write_hypercall_page(vcpu: Vcpu, value: int) -> None:
    """Fills the guest frame in bits 12 and up; the low bits are the page's index, only 0 exists."""
    if value & (PAGE_SIZE - 1):
        raise GeneralProtection
    vcpu.domain.latch_shinfo_size(vcpu)
    try:
        vcpu.domain.memory.write(Gpa(value >> PAGE_SHIFT << PAGE_SHIFT), hypercall_page())
    except GuestAccessError:
        raise GeneralProtection from None
