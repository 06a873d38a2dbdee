"""The state that VCPUOP_initialise gives a vCPU: checks a vcpu_hvm_context and makes it a CpuState.

Facts: public/hvm/hvm_vcpu.h; what is refused, and in which order, is real Xen 4.17's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvmlite.abi.errno import XEN_EINVAL
from hvmlite.abi.hvm import (
    VCPU_HVM_MODE_32B,
    VCPU_HVM_MODE_64B,
    vcpu_hvm_context,
    vcpu_hvm_x86_32,
    vcpu_hvm_x86_64,
)
from hvmlite.engine.base import CpuState, Segment
from hvmlite.hypervisor.call import XenError

if TYPE_CHECKING:
    from hvmlite.hypervisor.vcpu import Vcpu

_CR0_PG = 1 << 31
_CR4_PAE = 1 << 5
_EFER_SCE = 1 << 0
_EFER_LME = 1 << 8
_EFER_LMA = 1 << 10
_EFER_NXE = 1 << 11
_EFER_FFXSE = 1 << 14
_EFLAGS_ALL = 0x3F7FD5
"""Every flag there is (Intel SDM volume 1, figure 3-8), without the one that is always set."""
_EFLAGS_MBS = 2

_TYPE = 0xF
_TYPE_ACCESSED = 1 << 0
_TYPE_TSS_BUSY = 1 << 1
_TYPE_WRITABLE = 1 << 1
_TYPE_CODE = 1 << 3
_SYS_DESC_tss_busy = 0xB
_S = 1 << 4
_DPL_SHIFT = 5
_PRESENT = 1 << 7
_GRANULAR = 1 << 11
_UNUSED = 0xF000

_FLAT = 0xFFFF_FFFF
_DATA = Segment(0, 0, _FLAT, 0xC93)
_RESET = {"fs": _DATA, "gs": _DATA, "ldtr": Segment(0, 0, 0, 0x82)}
_LONG = {
    "cs": Segment(0, 0, _FLAT, 0xA9B),
    "ds": _DATA, "es": _DATA, "ss": _DATA,
    "tr": Segment(0, 0, 0x67, 0x8B),
}  # fmt: skip

# CR4's bits by the CPUID bit that allows them: (leaf, register, bit).
_CR4_FEATURES = (
    (0x003, 1, 3, 1),  # VME: VME and PVI
    (0x004, 1, 3, 4),  # TSC: TSD
    (0x008, 1, 3, 2),  # DE
    (0x010, 1, 3, 3),  # PSE
    (0x020, 1, 3, 6),  # PAE
    (0x040, 1, 3, 7),  # MCE
    (0x040, 1, 3, 14),  # MCA: MCE too
    (0x080, 1, 3, 13),  # PGE
    (0x200, 1, 3, 24),  # FXSR: OSFXSR
    (0x400, 1, 3, 25),  # SSE: OSXMMEXCPT
    (0x800, 7, 2, 2),  # UMIP
    (0x10000, 7, 1, 0),  # FSGSBASE
    (0x20000, 1, 2, 17),  # PCID: PCIDE
    (0x40000, 1, 2, 26),  # XSAVE: OSXSAVE
    (0x100000, 7, 1, 7),  # SMEP
    (0x200000, 7, 1, 20),  # SMAP
    (0x400000, 7, 2, 3),  # PKU: PKE
)
_CR4_PCE = 0x100
_EFER_FEATURES = (
    (_EFER_SCE, 0x80000001, 3, 11),
    (_EFER_LME | _EFER_LMA, 0x80000001, 3, 29),
    (_EFER_NXE, 0x80000001, 3, 20),
    (_EFER_FFXSE, 0x80000001, 3, 25),
)


def initial_state(context: vcpu_hvm_context, caller: Vcpu) -> CpuState:
    """The CPU state of a context; raises XenError(EINVAL) for one that Xen refuses."""
    _require(not context.pad)
    if context.mode == VCPU_HVM_MODE_32B:
        state = _mode_32(vcpu_hvm_x86_32.unpack(context.cpu_regs))
    elif context.mode == VCPU_HVM_MODE_64B:
        state = _mode_64(vcpu_hvm_x86_64.unpack(context.cpu_regs))
    else:
        raise XenError(XEN_EINVAL)
    if state.efer & _EFER_LME:
        state.efer |= _EFER_LMA
    _require(not state.cr4 & ~_allowed(caller, _CR4_FEATURES, _CR4_PCE))
    _require(not state.efer & ~_allowed(caller, _EFER_FEATURES, 0))
    return state


def _require(condition: bool) -> None:
    if not condition:
        raise XenError(XEN_EINVAL)


def _allowed(caller: Vcpu, features: tuple[tuple[int, int, int, int], ...], mask: int) -> int:
    """The bits that the domain's CPUID policy allows, as its calling vCPU sees it."""
    policy = caller.domain.cpuid
    for bits, leaf, register, bit in features:
        if policy.answer(caller, leaf, 0)[register] >> bit & 1:
            mask |= bits
    return mask


def _segment(name: str, base: int, limit: int, access: int) -> Segment:
    """A segment register as the CPU has it once loaded; raises XenError(EINVAL)."""
    if access & _PRESENT:
        access |= _TYPE_TSS_BUSY if name == "tr" else _TYPE_ACCESSED
    _require(not access & _UNUSED)
    kind = access & _TYPE
    if not access:
        _require(name in ("ds", "es"))
        return Segment(0, base, limit, 0)
    if name == "tr":
        _require(not access & _S and kind == _SYS_DESC_tss_busy)
    else:
        _require(bool(access & _S))
    _require(bool(access & _PRESENT))
    if name == "cs":
        _require(bool(kind & _TYPE_CODE))
    elif name == "ss":
        _require(not kind & _TYPE_CODE and bool(kind & _TYPE_WRITABLE))
    elif name != "tr":
        # Of code segments only readable ones; that bit is the writable one of data.
        _require(not kind & _TYPE_CODE or bool(kind & _TYPE_WRITABLE))
    return Segment(0, base, limit, access)


def _dpl(segment: Segment) -> int:
    return segment.access >> _DPL_SHIFT & 3


def _mode_32(regs: vcpu_hvm_x86_32) -> CpuState:
    _require(not regs.pad1 and not any(regs.pad2))
    segments = {
        "cs": _segment("cs", regs.cs_base, regs.cs_limit, regs.cs_ar),
        "ds": _segment("ds", regs.ds_base, regs.ds_limit, regs.ds_ar),
        "ss": _segment("ss", regs.ss_base, regs.ss_limit, regs.ss_ar),
        "es": _segment("es", regs.es_base, regs.es_limit, regs.es_ar),
        "tr": _segment("tr", regs.tr_base, regs.tr_limit, regs.tr_ar),
    }
    cs = segments["cs"]
    limit = cs.limit
    if cs.access & _GRANULAR:
        limit = (limit << 12 | 0xFFF) & 0xFFFF_FFFF
    _require(regs.eip <= limit)
    _require(_dpl(segments["ss"]) == _dpl(cs))
    for name in ("ds", "es"):
        data = segments[name]
        _require(not data.access & _PRESENT or _dpl(data) <= _dpl(cs))
    _require(not regs.efer & _EFER_LMA or bool(regs.efer & _EFER_LME))
    return CpuState(
        general={
            "rax": regs.eax, "rcx": regs.ecx, "rdx": regs.edx, "rbx": regs.ebx,
            "rsp": regs.esp, "rbp": regs.ebp, "rsi": regs.esi, "rdi": regs.edi,
        },
        segments=_RESET | segments,
        rip=regs.eip,
        rflags=regs.eflags & _EFLAGS_ALL | _EFLAGS_MBS,
        cr0=regs.cr0,
        cr3=regs.cr3,
        cr4=regs.cr4,
        efer=regs.efer,
    )  # fmt: skip


def _mode_64(regs: vcpu_hvm_x86_64) -> CpuState:
    top = regs.rip >> 47
    _require(top in (0, 0x1FFFF))
    _require(bool(regs.cr0 & _CR0_PG))
    _require(bool(regs.cr4 & _CR4_PAE))
    _require(bool(regs.efer & _EFER_LME))
    return CpuState(
        general={
            "rax": regs.rax, "rcx": regs.rcx, "rdx": regs.rdx, "rbx": regs.rbx,
            "rsp": regs.rsp, "rbp": regs.rbp, "rsi": regs.rsi, "rdi": regs.rdi,
        },
        segments=_RESET | _LONG,
        rip=regs.rip,
        rflags=regs.rflags & _EFLAGS_ALL | _EFLAGS_MBS,
        cr0=regs.cr0,
        cr3=regs.cr3,
        cr4=regs.cr4,
        efer=regs.efer,
    )  # fmt: skip
