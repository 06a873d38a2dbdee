"""Proves what a built domain consists of, by what real Xen's domain builder leaves, and that every
reason why one cannot be built is one clear line before anything is taken.

The engine is scripted: memory is real, CPUs are not. The layouts have tests of their own.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hvmlite.abi.start_info import hvm_start_info
from hvmlite.engine import base as b
from hvmlite.errors import EngineError, UserError
from hvmlite.hypervisor.control import Control, Domain
from hvmlite.hypervisor.host import Host
from hvmlite.toolstack import layout
from hvmlite.toolstack.builder import BootPlan, Payload, build_domain, entry_state
from hvmlite.toolstack.config import DomainConfig
from hvmlite.toolstack.kernel import load_kernel

from ..hypervisor.fakes import ScriptedPartition, ScriptedVcpu
from .conftest import MIB, RecordingEngine
from .kernel.build import LOAD_ADDRESS, Elf, Load, R, W, X

Build = Callable[..., Domain]


@pytest.fixture
def hypervisor(engine: RecordingEngine) -> Iterator[Host]:
    made = Host(engine, 64 * MIB)
    free = made.machine.free_frames
    yield made
    made.close()
    assert made.machine.free_frames == free
    assert all(partition.closed for partition in engine.partitions)


@pytest.fixture
def control(hypervisor: Host) -> Control:
    return Control(hypervisor)


def plan(kernel: Path, **options: object) -> BootPlan:
    config = DomainConfig(**{"kernel": kernel, "memory": 4 * MIB, **options})  # type: ignore[arg-type]
    with load_kernel(kernel) as image:
        return BootPlan.make(config, image)


@pytest.fixture
def build(control: Control, kernel: Path) -> Build:
    def make(**options: object) -> Domain:
        config = DomainConfig(**{"kernel": kernel, "memory": 4 * MIB, **options})  # type: ignore[arg-type]
        with load_kernel(config.kernel) as image:
            return build_domain(control, BootPlan.make(config, image))

    return make


def memory(domain: Domain, gpa: int, size: int) -> bytes:
    return domain.memory.read(gpa, size)  # type: ignore[arg-type]


def string(domain: Domain, gpa: int) -> bytes:
    return memory(domain, gpa, 256).split(b"\0")[0]


def engine_of(domain: Domain, index: int = 0) -> ScriptedVcpu:
    found = domain.vcpus[index].engine
    assert isinstance(found, ScriptedVcpu)
    return found


# --- what is built ---------------------------------------------------------------------------


def test_entry_state() -> None:
    """Recorded: entry.*; docs/misc/pvh.pandoc for the rest."""
    state = entry_state(0x100_0000, 0x5000)
    assert state.rip == 0x100_0000
    assert state.general == {"rbx": 0x5000}
    assert (state.cr0, state.cr3, state.cr4, state.efer) == (0x11, 0, 0, 0)
    assert (state.rflags, state.dr6, state.dr7) == (2, 0xFFFF_0FF0, 0x400)
    flat = 0xFFFF_FFFF
    assert state.segments["cs"] == b.Segment(0, 0, flat, 0xC9B)
    for name in ("ds", "es", "ss"):
        assert state.segments[name] == b.Segment(0, 0, flat, 0xC93)
    assert state.segments["tr"] == b.Segment(0, 0, 0x67, 0x8B)
    assert not {"fs", "gs", "gdtr", "idtr", "ldtr"} & set(state.segments)


def test_a_built_domain_waits_to_be_started(build: Build) -> None:
    domain = build()
    assert domain.stopped
    assert engine_of(domain).runs == 0
    ((state,),) = engine_of(domain).done("load")
    assert state.rip == LOAD_ADDRESS
    domain.unpause()
    assert engine_of(domain).runs == 1


def test_the_kernel_is_where_it_wants_to_be(build: Build, tmp_path: Path) -> None:
    loads = [
        Load(0x10_0000, b"code" * 10, flags=R | X),
        Load(0x20_0000, b"data", memsz=0x2000, flags=R | W),
    ]
    path = tmp_path / "two"
    path.write_bytes(Elf(loads=loads).build())
    domain = build(kernel=path)
    assert memory(domain, 0x10_0000, 44) == b"code" * 10 + bytes(4)
    assert memory(domain, 0x20_0000, 0x2000) == b"data".ljust(0x2000, b"\0")


def test_start_info(build: Build, tmp_path: Path) -> None:
    ramdisk, module = tmp_path / "initrd", tmp_path / "module"
    ramdisk.write_bytes(b"ramdisk!" * 1000)
    module.write_bytes(b"m")
    domain = build(cmdline="console=hvc0 quiet", ramdisk=ramdisk, modules=[module])
    ((state,),) = engine_of(domain).done("load")
    address = state.general["rbx"]
    info = hvm_start_info.unpack(memory(domain, address, hvm_start_info.sizeof()))
    assert (info.magic, info.version, info.nr_modules) == (0x336E_C578, 1, 2)
    assert string(domain, info.cmdline_paddr) == b"console=hvc0 quiet"
    found = []
    for i in range(2):
        paddr, size, _, _ = struct.unpack("<4Q", memory(domain, info.modlist_paddr + 32 * i, 32))
        found.append(memory(domain, paddr, size))
    assert found == [b"ramdisk!" * 1000, b"m"]
    assert memory(domain, info.rsdp_paddr, 8) == b"RSD PTR "
    assert info.memmap_entries == len(domain.memory_map) == 5
    first = struct.unpack("<QQII", memory(domain, info.memmap_paddr, 24))
    assert first == (0, 4 * MIB, 1, 0)


def test_without_acpi(build: Build) -> None:
    domain = build(acpi=False)
    ((state,),) = engine_of(domain).done("load")
    info = hvm_start_info.unpack(memory(domain, state.general["rbx"], hvm_start_info.sizeof()))
    assert info.rsdp_paddr == 0
    assert len(domain.memory_map) == 2


def test_memory_is_all_there_and_bounded(build: Build) -> None:
    domain = build()
    populated = layout.populated_ranges(4 * MIB)
    assert domain.total_pages == sum(size for _, size in populated) // 4096
    for start, size in populated:
        assert memory(domain, start + size - 8, 8) == bytes(8)
    # libxl lets a domain have a little more than its memory.
    assert domain.max_pages == domain.total_pages + 256


def test_special_pages_and_parameters(build: Build) -> None:
    domain = build()
    for index, value in layout.HVM_PARAMS.items():
        assert domain.params.values[index] == value
    assert memory(domain, layout.IDENT_PT, 4096) == layout.ident_pt()


def test_console_and_store_are_granted_to_domain_0(build: Build) -> None:
    domain = build()
    for ref, page in ((0, layout.SpecialPage.CONSOLE), (1, layout.SpecialPage.XENSTORE)):
        entry = domain.grants.frames[0].read(8 * ref, 8)
        flags, domid, gfn = struct.unpack("<HHI", entry)
        assert (flags & 3, domid, gfn) == (1, 0, page)


def test_devices_are_the_configurations_choice(build: Build) -> None:
    with_apic, without = build(vcpus=2), build(vcpus=2, lapic=False)
    assert [vcpu.lapic is None for vcpu in with_apic.vcpus] == [False, False]
    assert [vcpu.lapic is None for vcpu in without.vcpus] == [True, True]
    assert len(with_apic.mmio_devices) == 1
    assert without.mmio_devices == []
    # MTRRs are part of every HVM vCPU.
    assert 0x2FF in without.msr_devices
    assert (0x80B in with_apic.msr_devices, 0x80B in without.msr_devices) == (True, False)


def test_limits_and_release(build: Build) -> None:
    domain = build(xen_version="4.20", max_event_channels=50, max_grant_frames=3, timer_slack=7)
    assert domain.release.pair == (4, 20)
    assert (domain.limits.max_evtchn_port, domain.limits.max_grant_frames) == (50, 3)
    assert domain.timer_slack == 7


def test_code_is_marked_after_it_was_written(
    build: Build, engine: RecordingEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that is marked is written through the device of an engine that may not run yet."""
    log: list[tuple[str, int]] = []
    real_map, real_write = ScriptedPartition.map, ScriptedPartition.write

    def record_map(
        self: ScriptedPartition,
        gfn: int,
        frame: int,
        count: int,
        access: b.Access,
        *,
        code: bool = False,
    ) -> None:
        if code:
            log.extend(("code", frame + i) for i in range(count))
        real_map(self, gfn, frame, count, access, code=code)

    def record_write(self: ScriptedPartition, frame: int, offset: int, data: bytes) -> None:
        log.extend(("write", frame + i) for i in range((offset + len(data) + 4095) // 4096))
        real_write(self, frame, offset, data)

    monkeypatch.setattr(ScriptedPartition, "map", record_map)
    monkeypatch.setattr(ScriptedPartition, "write", record_write)
    build()
    marked = [frame for kind, frame in log if kind == "code"]
    assert marked
    for frame in marked:
        last_write = max(i for i, entry in enumerate(log) if entry == ("write", frame))
        assert log.index(("code", frame)) > last_write


# --- files -----------------------------------------------------------------------------------


def test_a_payload_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"contents")
    payload = Payload.read(path, "ramdisk", 8)
    assert (payload.path, payload.data) == (path, b"contents")


@pytest.mark.parametrize("what", ["ramdisk", "module"])
def test_files_that_cannot_be_used(kernel: Path, tmp_path: Path, what: str) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "large").write_bytes(bytes(4 * MIB + 1))
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    messages = {
        "missing": "cannot be read: No such file or directory",
        "empty": "is empty",
        "large": "is larger than the domain's memory (4 MiB)",
        "sparse": "is larger than the domain's memory (4 MiB)",
        "fifo": "is not a regular file",
        "folder": "cannot be read: Is a directory",
    }
    for name, message in messages.items():
        path = tmp_path / name
        options = {"ramdisk": path} if what == "ramdisk" else {"modules": [path]}
        with pytest.raises(UserError) as caught:
            plan(kernel, **options)
        assert str(caught.value) == f"{what} {path} {message}"


@pytest.mark.parametrize("path", ["/dev/zero", "/proc/self/mem", "/dev/null"])
def test_files_that_never_end(kernel: Path, path: str) -> None:
    with pytest.raises(UserError):
        plan(kernel, ramdisk=Path(path))


def test_a_file_of_proc_has_no_size_beforehand(kernel: Path) -> None:
    assert plan(kernel, ramdisk=Path("/proc/version")).payloads[0].data


# --- plans that cannot be --------------------------------------------------------------------


def test_a_plan_takes_nothing(kernel: Path, hypervisor: Host) -> None:
    free = hypervisor.machine.free_frames
    made = plan(kernel)
    assert hypervisor.machine.free_frames == free
    assert made.machine_memory > made.config.memory
    assert made.placement.start_info >= LOAD_ADDRESS


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory": MIB}, "domain's low memory ends at 0x100000"),
        ({"memory": 3 * MIB + 1}, "not a multiple of a page"),
        ({"vcpus": 99}, "vcpus=99"),
        ({"cmdline": "x" * 100_000}, "command line"),
        ({"cmdline": "nul\0byte"}, "command line"),
    ],
)
def test_plans_that_cannot_be(kernel: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        plan(kernel, **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_modules_that_do_not_fit_together(kernel: Path, tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    for path in paths:
        path.write_bytes(bytes(2 * MIB))
    with pytest.raises(UserError, match="but the domain has"):
        plan(kernel, modules=paths)


# --- building that fails ---------------------------------------------------------------------


def test_an_unknown_release_takes_nothing(build: Build, hypervisor: Host) -> None:
    free = hypervisor.machine.free_frames
    with pytest.raises(UserError, match="xen_version '9.9' is not one of"):
        build(xen_version="9.9")
    assert hypervisor.machine.free_frames == free


def test_an_engine_that_does_not_start_takes_nothing(
    build: Build, hypervisor: Host, engine: RecordingEngine
) -> None:
    free = hypervisor.machine.free_frames
    engine.failure = EngineError("QEMU ended with status 1: no luck")
    with pytest.raises(EngineError, match="no luck"):
        build()
    assert hypervisor.machine.free_frames == free
    assert hypervisor.domains == {}
    assert engine.partitions[-1].closed


def test_memory_that_runs_out_is_given_back(build: Build, hypervisor: Host) -> None:
    free = hypervisor.machine.free_frames
    with pytest.raises(MemoryError):
        build(memory=63 * MIB)
    assert hypervisor.machine.free_frames == free
    assert hypervisor.domains == {}
