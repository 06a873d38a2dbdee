"""The emulated hardware that a domain's owner asked for, and nothing else.

Joins the devices of platform/ to a domain through the control door.
"""

from __future__ import annotations

from hvmlite.engine.base import CpuState, Segment
from hvmlite.hypervisor.control import Control, Domain
from hvmlite.hypervisor.domain import MmioRange
from hvmlite.hypervisor.vcpu import Vcpu
from hvmlite.platform.lapic import ApicBus, LocalApic
from hvmlite.platform.mtrr import MSRS, Mtrr
from hvmlite.toolstack.layout import LAPIC_BASE

_APIC_BASE_MSR = 0x1B
_X2APIC_MSRS = (0x800, 0x8FF)
_X2APIC_EOI_MSR = 0x80B
_TSC_DEADLINE_MSR = 0x6E0
_PAGE = 0x1000
PHYSICAL_ADDRESS_BITS = 40


class MtrrDevice:
    """The MTRRs of all vCPUs of a domain, as MSRs."""

    def __init__(self, vcpus: int) -> None:
        self._units = [Mtrr(PHYSICAL_ADDRESS_BITS) for _ in range(vcpus)]
        self.ranges = tuple((msr, msr) for msr in MSRS)

    def read(self, vcpu: Vcpu, index: int) -> int:
        """See MsrDevice."""
        return self._units[vcpu.id].read(index)

    def write(self, vcpu: Vcpu, index: int, value: int) -> None:
        """See MsrDevice."""
        self._units[vcpu.id].write(index, value)


def sipi_state(vector: int) -> CpuState:
    """Where a start-up message makes a vCPU begin: real mode at vector << 12."""
    data = Segment(0, 0, 0xFFFF, 0x93)
    segments = dict.fromkeys(("ds", "es", "ss", "fs", "gs"), data)
    segments["cs"] = Segment(vector << 8, vector << 12, 0xFFFF, 0x9B)
    segments["ldtr"] = Segment(0, 0, 0xFFFF, 0x82)
    segments["tr"] = Segment(0, 0, 0xFFFF, 0x8B)
    segments["gdtr"] = segments["idtr"] = Segment(0, 0, 0xFFFF, 0)
    return CpuState(cr0=0x10, rip=0, segments=segments)


class LapicDevice:
    """The local APICs of a domain: by MSR, and in the xAPIC page."""

    ranges = (
        (_APIC_BASE_MSR, _APIC_BASE_MSR),
        _X2APIC_MSRS,
        (_TSC_DEADLINE_MSR, _TSC_DEADLINE_MSR),
    )

    def __init__(self, control: Control, domain: Domain, *, x2apic: bool) -> None:
        self._control = control
        self._domain = domain
        self._waiting = [False] * len(domain.vcpus)
        bus = ApicBus(
            on_interrupt=lambda i: domain.vcpus[i].notify(),
            on_nmi=lambda i: domain.vcpus[i].raise_nmi(),
            on_init=self._init,
            on_sipi=self._start_up,
            on_software_enable=self._enabled,
        )
        self.apics = [
            LocalApic(
                i,
                bus,
                domain.timers,
                domain.calibration.khz,
                tsc_to_ns=domain.calibration.ns_at,
                x2apic_available=x2apic,
            )
            for i in range(len(domain.vcpus))
        ]
        for i, apic in enumerate(self.apics):
            control.attach_interrupt_controller(domain, i, apic)
        control.attach_msrs(domain, self)
        control.attach_mmio(
            domain, MmioRange(LAPIC_BASE, LAPIC_BASE + _PAGE, self._mmio_read, self._mmio_write)
        )

    def read(self, vcpu: Vcpu, index: int) -> int:
        """See MsrDevice."""
        apic = self.apics[vcpu.id]
        return apic.apic_base if index == _APIC_BASE_MSR else apic.msr_read(index)

    def write(self, vcpu: Vcpu, index: int, value: int) -> None:
        """See MsrDevice."""
        apic = self.apics[vcpu.id]
        if index == _APIC_BASE_MSR:
            # In another mode the write of an EOI is a fault.
            vcpu.engine.pass_eoi(False)
            apic.apic_base = value
        else:
            if index == _X2APIC_EOI_MSR:
                vcpu.eoi_habit.written()
            apic.msr_write(index, value)

    def _mmio_read(self, vcpu: Vcpu, address: int, size: int) -> int:
        apic = self.apics[vcpu.id]
        if not apic.in_xapic_mode:
            return (1 << 8 * size) - 1
        return apic.mmio_read(address - LAPIC_BASE, size)

    def _mmio_write(self, vcpu: Vcpu, address: int, size: int, value: int) -> None:
        apic = self.apics[vcpu.id]
        if apic.in_xapic_mode:
            apic.mmio_write(address - LAPIC_BASE, value, size)

    def _enabled(self, vcpu: int) -> None:
        self._domain.vcpus[vcpu].apic_enabled()

    def _init(self, vcpu: int) -> None:
        self._control.reset_vcpu(self._domain, vcpu)
        self._waiting[vcpu] = True

    def _start_up(self, vcpu: int, vector: int) -> None:
        # A second start-up message, which every kernel sends, finds the vCPU started.
        if self._waiting[vcpu]:
            self._waiting[vcpu] = False
            self._control.set_vcpu(self._domain, vcpu, sipi_state(vector))


def attach_mtrr(control: Control, domain: Domain) -> None:
    """Gives a domain its memory type range registers (part of every HVM vCPU)."""
    control.attach_msrs(domain, MtrrDevice(len(domain.vcpus)))
