"""The toolstack's one door to the hypervisor: what domctl, and the privileged part of memory_op,
hvm_op and event_channel_op, are on real Xen.

Everything that decides lives above this door, everything that enforces below it.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from hvmlite.engine.base import CpuState, Engine
from hvmlite.engine.memory import PAGE_SHIFT
from hvmlite.hypervisor.argo import Argo
from hvmlite.hypervisor.clock import Clock
from hvmlite.hypervisor.cpuid import CpuidPolicy
from hvmlite.hypervisor.domain import CrashInfo, Domain, Limits, MmioRange
from hvmlite.hypervisor.event_channel import BackendPort
from hvmlite.hypervisor.grant_table import BackendMapping, Lease, Loans
from hvmlite.hypervisor.host import Host
from hvmlite.hypervisor.memory import Gfn, Gpa, Page
from hvmlite.hypervisor.msr import MsrDevice
from hvmlite.hypervisor.release import Release
from hvmlite.hypervisor.timekeeping import EmulatedTsc, TscMode
from hvmlite.hypervisor.vcpu import InterruptController

__all__ = [
    "Clock",
    "Control",
    "CpuidPolicy",
    "CrashInfo",
    "Domain",
    "Engine",
    "Limits",
    "Page",
    "TscMode",
]

_STOP_TIMEOUT = 10.0


class Control:
    """Steers the domains of one host.  Use it from the host loop's thread only.

    A `Domain` that `create_domain` returned is a handle: pass it back, reach into it for reading
    at most.
    """

    def __init__(self, host: Host) -> None:
        self.host = host

    # ---- life -----------------------------------------------------------------------------------

    def create_domain(
        self,
        vcpus: int,
        *,
        release: Release,
        limits: Limits,
        cpuid: CpuidPolicy,
        timer_slack: int = 0,
        domid: int | None = None,
    ) -> Domain:
        """Makes a paused domain without memory.

        `timer_slack`: nanoseconds by which a busy guest's next tick may be late.
        """
        domain = Domain(
            self.host,
            self.host.allocate_domid() if domid is None else domid,
            vcpus,
            release=release,
            limits=limits,
            cpuid=cpuid,
            timer_slack=timer_slack,
        )
        domain.pause()
        return domain

    def destroy_domain(self, domain: Domain) -> None:
        """Frees a domain and all it had."""
        domain.destroy()

    def pause_domain(self, domain: Domain) -> None:
        """Stops its vCPUs, not its time; counted.  See `Domain.pause` of domain.py."""
        domain.pause()

    def unpause_domain(self, domain: Domain) -> None:
        """Undoes one pause."""
        domain.unpause()

    def shutdown_domain(self, domain: Domain, reason: int) -> None:
        """Stops it for good, with one of SHUTDOWN_*."""
        domain.shutdown(reason)

    def on_shutdown(self, domain: Domain, callback: Callable[[Domain], None]) -> None:
        """Has `callback(domain)` called once when the guest has shut down or crashed."""
        domain.hooks.shutdown = callback

    def on_debug_output(self, domain: Domain, callback: Callable[[bytes], None]) -> None:
        """Has `callback(data)` called for what the guest writes to port 0xe9."""
        domain.hooks.console_write = callback

    # ---- memory ---------------------------------------------------------------------------------

    def set_handle(self, domain: Domain, handle: bytes) -> None:
        """Sets the 16 bytes of its UUID, which the guest may ask for."""
        domain.handle = handle

    def set_max_memory(self, domain: Domain, pages: int) -> None:
        """Limits its memory (frames)."""
        domain.max_pages = pages

    def populate(self, domain: Domain, start: int, size: int) -> None:
        """Gives it zeroed RAM at a guest-physical address (bytes, whole pages)."""
        domain.add_ram(start >> PAGE_SHIFT, size >> PAGE_SHIFT)

    def write_memory(self, domain: Domain, gpa: int, data: bytes | memoryview) -> None:
        """Writes its memory; raises GuestAccessError."""
        domain.memory.write(Gpa(gpa), data)

    def map_page(self, domain: Domain, gfn: int) -> Page:
        """Maps one of its pages for a backend, until the domain's end; raises GuestAccessError.

        The guest may give it away meanwhile: it goes to nobody else.
        """
        page = domain.memory.page(Gfn(gfn))
        domain.hold(page.frame)
        return page

    def mark_code(self, domain: Domain, start: int, size: int) -> None:
        """Says that a range of RAM (bytes) holds code by now, which saves the engine exits."""
        first = start >> PAGE_SHIFT
        domain.physmap.mark_code(first, (start + size - 1 >> PAGE_SHIFT) - first + 1)

    def set_memory_map(self, domain: Domain, entries: list[tuple[int, int, int]]) -> None:
        """Sets what XENMEM_memory_map answers: (address, size, type) in bytes."""
        domain.memory_map = entries

    # ---- vCPUs and devices ----------------------------------------------------------------------

    def set_vcpu(self, domain: Domain, vcpu: int, state: CpuState) -> None:
        """Sets the state of a stopped vCPU and brings it up."""
        target = domain.vcpus[vcpu]
        self._stop(domain, vcpu)
        target.engine.load(state)
        target.initialised = True
        target.bring_up()

    def reset_vcpu(self, domain: Domain, vcpu: int) -> None:
        """INIT: stops a vCPU until `set_vcpu`; not a reason to power the domain off."""
        self._stop(domain, vcpu)
        domain.vcpus[vcpu].park()

    @staticmethod
    def _stop(domain: Domain, vcpu: int) -> None:
        target = domain.vcpus[vcpu]
        if not target.running:
            return
        target.engine.kick()
        deadline = time.monotonic() + _STOP_TIMEOUT
        while not target.engine.exited():
            target.engine.nudge()
            if time.monotonic() > deadline:
                domain.partition.check_alive()
                break
        # Whatever it was about to do is gone with its state.
        target.engine.take_exit()
        target.running = False

    def set_tsc_mode(self, domain: Domain, mode: TscMode) -> None:
        """Says, before it is powered on, whether its TSC is the CPU's or counted by us.

        The engine's TSC is constant: by default it is the CPU's.  Raises EngineError if the engine
        cannot do as told.
        """
        domain.tsc_mode = mode
        if mode is TscMode.ALWAYS_EMULATE:
            domain.partition.intercept_tsc()
            domain.calibration = EmulatedTsc(domain.clock)

    def power_on(self, domain: Domain) -> None:
        """Waits for the engine, calibrates the guest's clock and puts its CPUID policy into force.

        Memory can be filled before, which takes as long as an engine does to start.  Raises
        EngineError if the engine does not start.
        """
        domain.partition.wait_ready()
        domain.calibration.begin(domain.partition.vcpus[0])
        domain.cpuid.hand_to_engine(domain)
        domain.resync_time(domain.vcpus[0])

    def attach_interrupt_controller(
        self, domain: Domain, vcpu: int, controller: InterruptController
    ) -> None:
        """Gives a vCPU a local APIC."""
        domain.vcpus[vcpu].lapic = controller

    def attach_msrs(self, domain: Domain, device: MsrDevice) -> None:
        """Adds a device that has MSRs."""
        for first, last in device.ranges:
            for index in range(first, last + 1):
                domain.msr_devices.setdefault(index, device)

    def attach_mmio(self, domain: Domain, device: MmioRange) -> None:
        """Adds a device at guest-physical addresses."""
        domain.mmio_devices.append(device)

    # ---- HVM parameters, event channels, grants -------------------------------------------------

    def set_param(self, domain: Domain, index: int, value: int) -> None:
        """Sets an HVM parameter."""
        domain.params.values[index] = value

    def allocate_port(self, domain: Domain, callback: Callable[[], None]) -> BackendPort:
        """Makes an event channel of the guest that is bound to a backend's `callback()`."""
        return domain.evtchn.alloc_for_backend(callback)

    def bind_port(self, domain: Domain, port: int, callback: Callable[[], None]) -> BackendPort:
        """Binds a channel that the guest allocated for domain 0."""
        return domain.evtchn.bind_backend(port, callback)

    def map_grant(self, domain: Domain, ref: int, *, readonly: bool = False) -> BackendMapping:
        """Maps a page that it granted to domain 0; raises GrantError."""
        return domain.grants.map_for_backend(ref, readonly=readonly)

    def lease(self, domain: Domain, *, readonly: bool) -> Lease:
        """A fast way to copy out of (`readonly`) or into many pages that it granted to domain 0."""
        return Lease(domain.grants, readonly=readonly)

    def loans(self, domain: Domain) -> Loans:
        """What takes up many whole pages at once that it granted to domain 0."""
        return domain.grants.loans

    def read_grant(self, domain: Domain, ref: int, offset: int, size: int) -> bytes:
        """Copies bytes out of a page that it granted to domain 0; raises GrantError."""
        return domain.grants.read_grant(ref, offset, size)

    def write_grant(
        self, domain: Domain, ref: int, offset: int, data: bytes | bytearray | memoryview
    ) -> None:
        """Copies bytes into a page that it granted to domain 0; raises GrantError."""
        domain.grants.write_grant(ref, offset, data)

    def enable_argo(self, domain: Domain, *, permissive: bool) -> None:
        """Lets it use Argo before it runs; `permissive`: also with rings that all may send to."""
        domain.argo = Argo(domain, permissive=permissive)

    def seed_grant(self, domain: Domain, ref: int, gfn: int) -> None:
        """Grants domain 0 one of the guest's pages in a reserved entry (console, xenstore)."""
        domain.grants.set_reserved(ref, 0, gfn)
