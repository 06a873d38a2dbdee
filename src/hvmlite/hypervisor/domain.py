"""A domain: its memory, vCPUs, event channels, grants and limits; enforcement only.

The toolstack makes and steers domains through hypervisor/control.py.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

from hvmlite.abi.layout import Abi
from hvmlite.abi.sched import SHUTDOWN_crash, SHUTDOWN_poweroff
from hvmlite.abi.xen import shared_info, vcpu_info
from hvmlite.errors import EngineError
from hvmlite.hypervisor.clock import OwnedTimers
from hvmlite.hypervisor.event_channel import EventChannels
from hvmlite.hypervisor.grant_table import GrantTable
from hvmlite.hypervisor.hvm_params import HvmParams
from hvmlite.hypervisor.memory import GuestMemory, Page
from hvmlite.hypervisor.pages import Pages
from hvmlite.hypervisor.physmap import Physmap
from hvmlite.hypervisor.release import Release
from hvmlite.hypervisor.timekeeping import TscCalibration, TscMode
from hvmlite.hypervisor.vcpu import Vcpu
from hvmlite.hypervisor.watchdog import Watchdogs
from hvmlite.records import record

if TYPE_CHECKING:
    from hvmlite.hypervisor.argo import Argo
    from hvmlite.hypervisor.cpuid import CpuidPolicy
    from hvmlite.hypervisor.host import Host
    from hvmlite.hypervisor.msr import MsrDevice

VCPU_INFO_SIZE = vcpu_info.sizeof()
LEGACY_MAX_VCPUS = 32
BITS_64 = 64


@record(frozen=True)
class Limits:
    """What a domain may have at most (the defaults of Xen and xl)."""

    max_evtchn_port: int = 1023
    max_grant_frames: int = 64
    max_maptrack_frames: int = 1024
    max_grant_version: int = 2


@record(frozen=True)
class CrashInfo:
    """Why a domain crashed, in words, and which vCPU was at fault (None: no one vCPU)."""

    reason: str
    vcpu: int | None = None


@record
class Hooks:
    """Whom to tell what; the toolstack fills them in.  All run in the host loop."""

    shutdown: Callable[[Domain], None] | None = None
    console_write: Callable[[bytes], None] | None = None
    """Output of port 0xe9 and CONSOLEIO_write."""


class Domain:
    """One guest."""

    def __init__(
        self,
        host: Host,
        domid: int,
        vcpus: int,
        *,
        release: Release,
        limits: Limits,
        cpuid: CpuidPolicy,
        timer_slack: int,
    ) -> None:
        self.host = host
        self.domid = domid
        self.clock = host.clock
        self.timers = OwnedTimers(host.timers, self._timer_failed)
        self.release = release
        self.limits = limits
        self.max_evtchn_port = limits.max_evtchn_port
        self.cpuid = cpuid
        self.timer_slack = timer_slack
        self.abi = Abi.X86_64
        self.hooks = Hooks()
        self.partition = host.engine.create(host.machine, vcpus)
        self.calibration = TscCalibration(host.clock)
        self.tsc_mode = TscMode.DEFAULT
        self.time_stale = True
        self.physmap = Physmap(self.partition)
        self.memory = GuestMemory(host.machine, self.partition, self.physmap)
        self.max_pages = 0
        self.total_pages = 0
        self.pages = Pages(self)
        self.vm_assist = 0
        self.callback_vector = -1
        self.params = HvmParams(self)
        self.memory_map: list[tuple[int, int, int]] = []
        self.msr_devices: dict[int, MsrDevice] = {}
        """By the number of the register."""
        self.mmio_devices: list[MmioRange] = []
        self.pause_count = 0
        self.shutdown_code = -1
        self.announced_code = -1
        """What SCHEDOP_shutdown_code said beforehand; it goes before any other reason."""
        self.watchdogs = Watchdogs(self)
        self.handle = bytes(16)
        """The UUID that the toolstack gave it."""
        self.crash_info: CrashInfo | None = None
        self.failure: Exception | None = None
        """The bug of ours that ended it."""
        self.stopped = False
        self.destroyed = False
        self.unknown_calls: Counter[str] = Counter()
        self._owned: list[int] = []
        self._held: list[int] = []
        self.vcpus = [Vcpu(self, i, engine) for i, engine in enumerate(self.partition.vcpus)]
        with contextlib.ExitStack() as undo:
            # No engine outlives a host that is out of memory.
            undo.callback(self.partition.close)
            self.shared_info = Page(host.machine, host.machine.allocate(1))
            self.pages.share(self.shared_info.frame)
            for vcpu in self.vcpus:
                self.place_vcpu_info(vcpu)
            self.evtchn = EventChannels(self)
            self.grants = GrantTable(self)
            undo.pop_all()
        self.argo: Argo | None = None
        host.add_reader(self.partition.doorbell, self._doorbell_rang)
        host.domains[domid] = self

    # ---- shared info and time -------------------------------------------------------------------

    def place_vcpu_info(self, vcpu: Vcpu) -> None:
        """Puts a vcpu_info that the guest never registered where it starts out."""
        if vcpu.id < LEGACY_MAX_VCPUS:
            vcpu.set_info(self.shared_info, vcpu.id * VCPU_INFO_SIZE)
        else:
            # Xen keeps these on a dummy page of its own until the guest says where they go.
            vcpu.set_info(Page(self.host.machine, self.allocate_own()), 0)

    def move_vcpu_info(self, vcpu: Vcpu, page: Page, offset: int) -> None:
        """Puts a vcpu_info where the guest wants it, for good, with what it holds by now."""
        if vcpu.id < LEGACY_MAX_VCPUS:
            data = vcpu.info_page.read(vcpu.info_offset, VCPU_INFO_SIZE)
        else:
            data = vcpu_info(evtchn_upcall_mask=1).pack()
        page.write(offset, data)
        self.host.frames.get(page.frame)
        vcpu.info_registered = True
        vcpu.set_info(page, offset)
        self.evtchn.vcpu_info_moved(vcpu)

    def allocate_own(self) -> int:
        """A zeroed frame of the hypervisor's for this domain; freed with it."""
        frame = self.host.machine.allocate(1)
        self._owned.append(frame)
        return frame

    def hold(self, frame: int) -> None:
        """Keeps a frame that somebody outside of the guest uses from being reused, to the end."""
        self.host.frames.get(frame)
        self._held.append(frame)

    def latch_shinfo_size(self, vcpu: Vcpu) -> None:
        """Takes the caller's bitness for the layout of shared_info (Xen: at hypercall page set-up
        and at the setting of the callback)."""
        abi = Abi.X86_64 if vcpu.engine.mode == BITS_64 else Abi.X86_32
        if abi is not self.abi:
            self.abi = abi
            self.evtchn.abi_changed()
            for each in self.vcpus:
                each.time_moved()
        self.update_wallclock()

    def resync_time(self, vcpu: Vcpu) -> None:
        """Renews the TSC calibration with a stopped vCPU."""
        self.calibration.sync(vcpu.engine)
        self.time_stale = False
        self.timers.at(self.calibration.next_sync, self._time_is_stale)

    def _time_is_stale(self) -> None:
        self.time_stale = True

    def update_wallclock(self) -> None:
        """Writes the wall-clock time at system time zero into shared_info."""
        seconds, nanoseconds = divmod(self.clock.wall() - self.clock.now(), 1_000_000_000)
        page, abi = self.shared_info, self.abi
        version = shared_info.offsetof("wc_version", abi) // 4
        page.exchange32(version, page.u32[version] | 1)
        page.u32[version + 1] = seconds & 0xFFFF_FFFF
        page.u32[version + 2] = nanoseconds
        if abi is Abi.X86_64:
            page.u32[shared_info.offsetof("wc_sec_hi", abi) // 4] = seconds >> 32
        page.exchange32(version, (page.u32[version] + 1) & 0xFFFF_FFFF)

    # ---- life -----------------------------------------------------------------------------------

    def add_ram(self, gfn: int, count: int) -> None:
        """Gives the domain `count` fresh frames of RAM from `gfn` on."""
        self.pages.add_ram(gfn, count)

    def pause(self) -> None:
        """Stops all vCPUs until as many `unpause`.

        Time goes on, as under Xen: system time, the TSC and the wall clock count through a pause.
        A one-shot timer, a poll's timeout or an APIC timer that comes due meanwhile leaves its
        event pending, for a vCPU to find when it runs again; of a periodic timer one tick is left.
        Watchdogs fire.
        """
        self.pause_count += 1
        self._update_stopped()

    def unpause(self) -> None:
        """Undoes one `pause`."""
        self.pause_count -= 1
        self._update_stopped()

    def _update_stopped(self) -> None:
        self.stopped = bool(self.pause_count) or self.shutdown_code >= 0
        for vcpu in self.vcpus:
            if self.stopped:
                if vcpu.running:
                    vcpu.engine.kick()
            else:
                vcpu.resume()

    def shutdown(self, reason: int) -> None:
        """Stops the domain for good, with one of SHUTDOWN_*; the first reason counts."""
        if self.shutdown_code >= 0 or self.destroyed:
            return
        self.shutdown_code = reason if self.announced_code < 0 else self.announced_code
        self._update_stopped()
        for vcpu in self.vcpus:
            vcpu.stop_timers()
        if self.hooks.shutdown is not None:
            self.host.call_soon(self._tell_shutdown)

    def _tell_shutdown(self) -> None:
        if self.hooks.shutdown is not None and not self.destroyed:
            self.hooks.shutdown(self)

    def crash(self, reason: str, vcpu: Vcpu | None = None) -> None:
        """The guest did what cannot be gone on from: shuts it down with SHUTDOWN_crash."""
        if self.crash_info is None:
            self.crash_info = CrashInfo(reason, None if vcpu is None else vcpu.id)
        self.shutdown(SHUTDOWN_crash)

    def fail(self, error: Exception, vcpu: Vcpu | None = None) -> None:
        """A bug of ours came up while we worked for this domain: it crashes, the others go on."""
        if self.failure is None:
            self.failure = error
        self.crash(f"internal error: {type(error).__name__}: {error}", vcpu)

    def _timer_failed(self, error: Exception) -> None:
        if isinstance(error, EngineError):
            raise error
        self.fail(error)

    def _doorbell_rang(self) -> None:
        try:
            self.partition.clear_doorbell()
        except EngineError as error:
            self.engine_failed(str(error))

    def engine_failed(self, reason: str) -> None:
        """The engine is gone: the vCPUs are where they are, and the domain has crashed."""
        for vcpu in self.vcpus:
            vcpu.running = False
        self.host.halt(self)
        self.crash(reason)

    def vcpu_went_down(self) -> None:
        """A vCPU was taken down; a domain without any is powered off."""
        if not any(vcpu.up for vcpu in self.vcpus):
            self.shutdown(SHUTDOWN_poweroff)

    def destroy(self) -> None:
        """Frees everything; safe to call twice."""
        if self.destroyed:
            return
        self.destroyed = True
        self.stopped = True
        self.watchdogs.stop()
        for vcpu in self.vcpus:
            vcpu.stop_timers()
            vcpu.running = False
        self.timers.close()
        self.host.forget(self)
        # First of all nothing of the guest may run: what follows frees its frames.
        self.partition.close()
        if self.argo is not None:
            self.argo.destroy()
        self.evtchn.destroy()
        self.grants.destroy()
        for vcpu in self.vcpus:
            vcpu.release()
        self.pages.destroy()
        for frame in self._held:
            self.host.frames.put(frame)
        self._held.clear()
        for frame in self._owned:
            self.host.frames.release(frame)
        self._owned.clear()
        self.host.frames.release(self.shared_info.frame)


@record
class MmioRange:
    """A device that the toolstack put at guest-physical addresses [start, end)."""

    start: int
    end: int
    read: Callable[[Vcpu, int, int], int]
    """(vcpu, address, size in bytes) -> value"""
    write: Callable[[Vcpu, int, int, int], None]
    """(vcpu, address, size in bytes, value)"""
