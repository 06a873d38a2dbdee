"""xenpmu_op: the virtual performance monitoring unit. Source: pmu.h, arch-x86/pmu.h."""

from typing import Annotated

from hvmlite.abi.layout import Array, Bytes, Struct, UnionOf, u8, u16, u32, u64

XENPMU_VER_MAJ = 0
XENPMU_VER_MIN = 1

XENPMU_mode_get = 0
XENPMU_mode_set = 1
XENPMU_feature_get = 2
XENPMU_feature_set = 3
XENPMU_init = 4
XENPMU_finish = 5
XENPMU_lvtpc_set = 6
XENPMU_flush = 7

XENPMU_MODE_OFF = 0
XENPMU_MODE_SELF = 1 << 0
XENPMU_MODE_HV = 1 << 1
XENPMU_MODE_ALL = 1 << 2

XENPMU_FEATURE_INTEL_BTS = 1 << 0
XENPMU_FEATURE_IPC_ONLY = 1 << 1
XENPMU_FEATURE_ARCH_ONLY = 1 << 2

PMU_CACHED = 1 << 0
PMU_SAMPLE_USER = 1 << 1
PMU_SAMPLE_REAL = 1 << 2
PMU_SAMPLE_PV = 1 << 3

XENPMU_REGS_PAD_SZ = 64
XENPMU_CTXT_PAD_SZ = 128


class xen_pmu_version(Struct):
    """xen_pmu_params.version."""

    maj: u32 = 0
    min: u32 = 0


class xen_pmu_params(Struct):
    """Argument of xenpmu_op: val is a mode, a feature set or a guest frame."""

    version: xen_pmu_version = xen_pmu_version()
    val: u64 = 0
    vcpu: u32 = 0
    pad: u32 = 0


class xen_pmu_regs(Struct):
    """Where a sample was taken."""

    ip: u64 = 0
    sp: u64 = 0
    flags: u64 = 0
    cs: u16 = 0
    ss: u16 = 0
    cpl: u8 = 0
    pad: Annotated[tuple[int, ...], Array(u8, 3)] = ()


class xen_pmu_amd_ctxt(Struct):
    """xen_pmu_arch.c on AMD: offsets into the page; the registers follow."""

    counters: u32 = 0
    ctrls: u32 = 0


class xen_pmu_cntr_pair(Struct):
    """One counter of Intel's, in the registers that follow xen_pmu_intel_ctxt."""

    counter: u64 = 0
    control: u64 = 0


class xen_pmu_intel_ctxt(Struct):
    """xen_pmu_arch.c on Intel; the registers follow."""

    fixed_counters: u32 = 0
    arch_counters: u32 = 0
    global_ctrl: u64 = 0
    global_ovf_ctrl: u64 = 0
    global_status: u64 = 0
    fixed_ctrl: u64 = 0
    ds_area: u64 = 0
    pebs_enable: u64 = 0
    debugctl: u64 = 0


class xen_pmu_arch(Struct):
    """x86 part of xen_pmu_data."""

    r: Annotated[bytes, UnionOf(xen_pmu_regs, Bytes(XENPMU_REGS_PAD_SZ))] = b""
    pmu_flags: u64 = 0  # PMU_*
    lapic_lvtpc: u64 = 0
    c: Annotated[
        bytes, UnionOf(xen_pmu_intel_ctxt, xen_pmu_amd_ctxt, Bytes(XENPMU_CTXT_PAD_SZ))
    ] = b""


class xen_pmu_data(Struct):
    """The page that a vCPU registers by XENPMU_init."""

    vcpu_id: u32 = 0
    pcpu_id: u32 = 0
    domain_id: u16 = 0
    pad: Annotated[tuple[int, ...], Array(u8, 6)] = ()
    pmu: xen_pmu_arch = xen_pmu_arch()
