"""The domain builder: puts a kernel and all it expects to find into a new domain.

Facts: Xen's docs/misc/pvh.pandoc (entry state), public/arch-x86/hvm/start_info.h,
tools/libs/guest/xg_dom_x86.c for where real Xen puts things.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from hvmlite.abi.grant_table import GNTTAB_RESERVED_CONSOLE, GNTTAB_RESERVED_XENSTORE
from hvmlite.engine.base import CpuState, Segment
from hvmlite.errors import UserError
from hvmlite.hypervisor.control import Control, CpuidPolicy, Domain, Limits, TscMode
from hvmlite.hypervisor.release import find_release
from hvmlite.platform.acpi import build_acpi
from hvmlite.records import record
from hvmlite.toolstack import layout
from hvmlite.toolstack.config import TSC_MODES, DomainConfig
from hvmlite.toolstack.hardware import LapicDevice, attach_mtrr
from hvmlite.toolstack.kernel import KernelImage
from hvmlite.toolstack.progress import STEP, Progress, in_steps
from hvmlite.toolstack.start_info import Module, build_start_info, start_info_size

_CODE = Segment(0, 0, 0xFFFF_FFFF, 0xC9B)
_DATA = Segment(0, 0, 0xFFFF_FFFF, 0xC93)
_MAXMEM_SLACK = 256
"""Frames that a domain may have beyond its memory (libxl: LIBXL_MAXMEM_CONSTANT)."""
_TSS = Segment(0, 0, 0x67, 0x8B)


def entry_state(rip: int, start_info: int) -> CpuState:
    """The state in which a PVH kernel starts: 32-bit protected mode, flat segments, no paging."""
    segments = dict.fromkeys(("ds", "es", "ss"), _DATA)
    segments |= {"cs": _CODE, "tr": _TSS}
    return CpuState(rip=rip, general={"rbx": start_info}, cr0=0x11, segments=segments)


@record
class Payload:
    """A file that goes into the guest as a module, read whole.

    Not mapped: somebody who truncates a mapped file kills us with SIGBUS.
    """

    path: Path
    data: bytes | bytearray

    @classmethod
    def read(cls, path: Path, what: str, limit: int, progress: Progress | None = None) -> Payload:
        """Reads a file of up to `limit` bytes; raises UserError."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            with os.fdopen(fd, "rb") as file:
                status = os.fstat(fd)
                if not stat.S_ISREG(status.st_mode):
                    raise UserError(f"{what} {path} is not a regular file")
                # A file of /proc has no size until it is read.
                data: bytes | bytearray = b""
                if status.st_size <= STEP:
                    data = file.read(limit + 1)
                elif status.st_size <= limit:
                    data = bytearray(status.st_size)
                    view = memoryview(data)
                    for start, end in in_steps(f"reading {what} {path}", len(data), progress):
                        if file.readinto(view[start:end]) != end - start:
                            raise UserError(f"{what} {path} became shorter while it was read")
        except OSError as error:
            raise UserError(f"{what} {path} cannot be read: {error.strerror}") from None
        if max(len(data), status.st_size) > limit:
            raise UserError(f"{what} {path} is larger than the domain's memory ({limit >> 20} MiB)")
        if not data:
            raise UserError(f"{what} {path} is empty")
        return cls(path, data)


@record
class BootPlan:
    """Everything checked and placed, before a domain exists: `UserError`s come from here."""

    config: DomainConfig
    image: KernelImage
    payloads: list[Payload]
    placement: layout.BootPlacement
    memory_map: list[layout.E820Entry]
    progress: Progress | None = None

    @classmethod
    def make(
        cls, config: DomainConfig, image: KernelImage, progress: Progress | None = None
    ) -> BootPlan:
        """Places kernel, start info and modules; raises UserError where something cannot be."""
        config.check()
        layout.check_kernel(image.lowest_address, image.highest_address, config.memory)
        files = [*([config.ramdisk] if config.ramdisk else []), *config.modules]
        payloads = [
            Payload.read(
                path, "ramdisk" if path is config.ramdisk else "module", config.memory, progress
            )
            for path in files
        ]
        memory_map = layout.e820(config.memory, config.acpi)
        size = start_info_size(config.cmdline, [None] * len(payloads), len(memory_map))
        placement = layout.place_boot_data(
            image.highest_address, size, [len(each.data) for each in payloads], config.memory
        )
        return cls(config, image, payloads, placement, memory_map, progress)

    @property
    def machine_memory(self) -> int:
        """Bytes of machine memory that the domain takes, tables and the engine's share included."""
        tables = self.config.memory // 512
        return self.config.memory + tables + (8 << 20) + self.config.all_vcpus * (64 << 10)


def build_domain(control: Control, plan: BootPlan) -> Domain:
    """Makes the domain, paused, ready to run but for its console and xenstore connections."""
    config = plan.config
    domain = control.create_domain(
        config.all_vcpus,
        release=find_release(config.xen_version),
        limits=Limits(
            max_evtchn_port=config.max_event_channels,
            max_grant_frames=config.max_grant_frames,
            max_maptrack_frames=config.max_maptrack_frames,
            max_grant_version=config.max_grant_version,
        ),
        cpuid=CpuidPolicy(
            lapic=config.lapic,
            x2apic=config.x2apic,
            clear=dict(control.host.engine.slow_features),
        ),
        timer_slack=config.timer_slack,
    )
    try:
        if config.argo:
            control.enable_argo(domain, permissive=config.argo_mac_permissive)
        _fill(control, domain, plan)
    except BaseException:
        control.destroy_domain(domain)
        raise
    return domain


def _fill(control: Control, domain: Domain, plan: BootPlan) -> None:
    config, image = plan.config, plan.image
    ranges = layout.populated_ranges(config.memory, config.acpi)
    for start, size in ranges:
        control.populate(domain, start, size)
    control.set_max_memory(domain, domain.total_pages + _MAXMEM_SLACK)
    control.set_memory_map(
        domain, [(entry.addr, entry.size, entry.type) for entry in plan.memory_map]
    )
    image.copy_to(lambda address, data: control.write_memory(domain, address, data))
    rsdp = 0
    if config.acpi:
        tables = build_acpi(config.all_vcpus, online=config.vcpus, lapic=config.lapic)
        rsdp = tables.rsdp_paddr
        for address, blob in tables.blobs:
            control.write_memory(domain, address, blob)
    modules = []
    for payload, address in zip(plan.payloads, plan.placement.modules, strict=True):
        view = memoryview(payload.data)
        what = f"copying {payload.path}"
        for start, end in in_steps(what, len(view), plan.progress):
            control.write_memory(domain, address + start, view[start:end])
        modules.append(Module(address, len(payload.data)))
    start_info = plan.placement.start_info
    block = build_start_info(start_info, config.cmdline, modules, plan.memory_map, rsdp)
    control.write_memory(domain, start_info, block)
    control.write_memory(domain, layout.IDENT_PT, layout.ident_pt())
    for segment in image.segments:
        if segment.executable and segment.memsz:
            control.mark_code(domain, segment.paddr, segment.memsz)
    for param, value in layout.HVM_PARAMS.items():
        control.set_param(domain, param, value)
    control.seed_grant(domain, GNTTAB_RESERVED_CONSOLE, layout.SpecialPage.CONSOLE)
    control.seed_grant(domain, GNTTAB_RESERVED_XENSTORE, layout.SpecialPage.XENSTORE)
    control.set_tsc_mode(domain, TscMode(TSC_MODES.index(config.tsc_mode)))
    control.power_on(domain)
    attach_mtrr(control, domain)
    if config.lapic:
        LapicDevice(control, domain, x2apic=config.x2apic)
    control.set_vcpu(domain, 0, entry_state(image.entry, start_info))
