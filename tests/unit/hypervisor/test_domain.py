"""Proves a domain's own parts: shared_info and its clock, vcpu_info, what it frees at the end; and
what the toolstack can do to it through the control door.

vCPUs, hypercalls and the loop have tests of their own; tests/unit/toolstack builds whole domains.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import pytest

from hvmlite.abi.layout import Abi
from hvmlite.abi.sched import SHUTDOWN_poweroff
from hvmlite.abi.xen import shared_info
from hvmlite.engine import base as b
from hvmlite.errors import EngineError
from hvmlite.hypervisor import control as control_module
from hvmlite.hypervisor.control import Control
from hvmlite.hypervisor.domain import MmioRange
from hvmlite.hypervisor.memory import GuestAccessError

from .fakes import IF, Rig

PAGE = 4096
SECOND = 1_000_000_000


@pytest.fixture
def rigs() -> Iterator[Callable[..., Rig]]:
    made: list[Rig] = []

    def make(vcpus: int = 2, ram: int = 64) -> Rig:
        made.append(Rig(vcpus, ram=ram))
        return made[-1]

    yield make
    for rig in made:
        rig.close()
        assert rig.host.machine.free_frames == rig.free


@pytest.fixture
def rig(rigs: Callable[..., Rig]) -> Rig:
    return rigs()


# --- the wall clock --------------------------------------------------------------------------


@pytest.mark.parametrize("abi", Abi)
def test_wall_clock(rig: Rig, abi: Abi) -> None:
    rig.domain.abi = abi
    boot = (5_000_000_000 << 1) * SECOND + 123_456_789  # beyond 32 bits of seconds
    rig.clock.wall = lambda: boot + rig.clock.time  # type: ignore[method-assign]
    page = rig.domain.shared_info
    at = shared_info.offsetof("wc_version", abi)
    for version in (2, 4):
        rig.domain.update_wallclock()
        found, seconds, nanoseconds = struct.unpack("<3I", page.read(at, 12))
        assert (found, nanoseconds) == (version, 123_456_789)
        assert seconds == boot // SECOND & 0xFFFF_FFFF
    if abi is Abi.X86_64:
        high = page.read(shared_info.offsetof("wc_sec_hi", abi), 4)
        assert int.from_bytes(high, "little") == boot // SECOND >> 32


def test_the_callers_bitness_is_latched(rig: Rig) -> None:
    vcpu = rig.start(0)
    rig.settle()
    rig.engine().width = 32
    rig.domain.latch_shinfo_size(vcpu)
    assert rig.domain.abi is Abi.X86_32
    assert ("kick",) in rig.engine().log, "its time record has another place now"
    rig.engine().log.clear()
    rig.domain.latch_shinfo_size(vcpu)
    assert rig.engine().log == []
    rig.engine().width = 64
    rig.domain.latch_shinfo_size(vcpu)
    assert rig.domain.abi is Abi.X86_64


# --- vcpu_info -------------------------------------------------------------------------------


def test_vcpu_info_starts_in_shared_info(rig: Rig) -> None:
    for vcpu in rig.domain.vcpus:
        assert vcpu.info_page.frame == rig.domain.shared_info.frame
        assert vcpu.info_offset == 64 * vcpu.id


def test_vcpus_beyond_the_legacy_ones_have_a_page_of_their_own(rigs: Callable[..., Rig]) -> None:
    rig = rigs(34)
    places = {(vcpu.info_page.frame, vcpu.info_offset) for vcpu in rig.domain.vcpus}
    assert len(places) == 34
    shared = rig.domain.shared_info.frame
    assert [vcpu.info_page.frame == shared for vcpu in rig.domain.vcpus] == [True] * 32 + [
        False
    ] * 2


def test_moving_vcpu_info_takes_its_contents_along(rig: Rig) -> None:
    vcpu = rig.domain.vcpus[1]
    vcpu.info_page.write(vcpu.info_offset, b"\1\1" + bytes(14) + b"arch.cr2")
    page = rig.domain.memory.page(5)  # type: ignore[arg-type]
    rig.domain.move_vcpu_info(vcpu, page, 128)
    assert page.read(128, 2)[1] == 1
    assert page.read(144, 8) == b"arch.cr2"
    assert rig.host.frames.references(page.frame) == 1
    assert (vcpu.info_page.frame, vcpu.info_offset) == (page.frame, 128)


# --- its end ---------------------------------------------------------------------------------


def test_destroy_frees_everything_while_it_runs(rig: Rig) -> None:
    rig.start()
    rig.domain.vcpus[0].set_singleshot(rig.clock.time + 10)
    rig.domain.vcpus[1].set_periodic(1000)
    rig.domain.move_vcpu_info(rig.domain.vcpus[0], rig.domain.memory.page(5), 0)  # type: ignore[arg-type]
    rig.domain.watchdogs.start(5)
    rig.domain.destroy()
    assert rig.host.machine.free_frames == rig.free
    assert rig.partition.closed
    assert rig.host.domains == {}
    assert rig.host._running == []
    # No timer of it is left to run.
    assert not any(timer.callback for _, _, timer in rig.host.timers._heap)
    rig.domain.destroy()
    rig.domain.shutdown(SHUTDOWN_poweroff)
    rig.domain.crash("too late")
    rig.settle()


def test_timers_after_the_end_never_fire(rig: Rig) -> None:
    rig.domain.destroy()
    timer = rig.domain.timers.at(0, lambda: pytest.fail("fired"))
    rig.host.timers.run(1 << 60)
    timer.cancel()


def test_a_frame_that_another_domain_uses_outlives_it(rig: Rig) -> None:
    frame = rig.domain.memory.page(5).frame  # type: ignore[arg-type]
    rig.host.frames.get(frame)
    rig.host.machine.u8[frame * PAGE] = 9
    rig.domain.destroy()
    assert rig.host.machine.u8[frame * PAGE] == 9
    assert rig.host.machine.free_frames == rig.free - 1
    rig.host.frames.put(frame)
    assert rig.host.machine.free_frames == rig.free


# --- the control door ------------------------------------------------------------------------


@pytest.fixture
def control(rig: Rig) -> Control:
    return Control(rig.host)


def test_a_new_domain_is_paused_and_empty(rig: Rig, control: Control) -> None:
    domain = control.create_domain(
        2, release=rig.domain.release, limits=rig.domain.limits, cpuid=rig.domain.cpuid
    )
    assert domain.stopped
    assert domain.total_pages == 0
    assert domain.domid != rig.domain.domid
    control.set_vcpu(domain, 0, b.CpuState())
    assert not domain.vcpus[0].running
    control.power_on(domain)
    control.unpause_domain(domain)
    assert domain.vcpus[0].running
    control.pause_domain(domain)
    control.destroy_domain(domain)


def test_a_number_of_the_toolstacks_choice(rig: Rig, control: Control) -> None:
    domain = control.create_domain(
        1, release=rig.domain.release, limits=rig.domain.limits, cpuid=rig.domain.cpuid, domid=77
    )
    assert rig.host.domain(77) is domain


def test_populate_and_write(rigs: Callable[..., Rig]) -> None:
    rig = rigs(1, 0)
    control = Control(rig.host)
    control.populate(rig.domain, 0x10_0000, 3 * PAGE)
    assert rig.domain.total_pages == 3
    control.write_memory(rig.domain, 0x10_0FFF, b"ab")
    assert rig.domain.memory.read(0x10_0FFF, 2) == b"ab"  # type: ignore[arg-type]
    assert control.map_page(rig.domain, 0x101).read(0, 1) == b"b"
    with pytest.raises(GuestAccessError):
        control.write_memory(rig.domain, 0x10_3000, b"x")
    with pytest.raises(GuestAccessError):
        control.map_page(rig.domain, 0x103)
    with pytest.raises(ValueError, match="overlap"):
        control.populate(rig.domain, 0x10_2000, PAGE)
    with pytest.raises(MemoryError):
        control.populate(rig.domain, 0x100_0000, 1 << 30)


def test_a_page_that_a_backend_has_goes_to_nobody_else(rig: Rig, control: Control) -> None:
    """The guest may free the page of its own console ring; the backend still writes to it."""
    page = control.map_page(rig.domain, 5)
    rig.domain.pages.free(5)
    rig.domain.pages.settle()
    assert page.frame not in {rig.host.machine.allocate(1) for _ in range(20)}
    page.write(0, b"late")
    rig.domain.destroy()
    with pytest.raises(ValueError, match="not handed out"):
        rig.host.machine.release(page.frame)
    rig.free = rig.host.machine.free_frames


@pytest.mark.parametrize(
    ("start", "size", "frames"),
    [(0x1000, 1, (1, 1)), (0x1FFF, 2, (1, 2)), (0x1000, 0x1000, (1, 1)), (0x1800, 0x1801, (1, 3))],
)
def test_marking_code_covers_every_page_it_touches(
    rig: Rig, control: Control, start: int, size: int, frames: tuple[int, int]
) -> None:
    marked: list[int] = []

    def record(gfn: int, _frame: int, count: int, _access: b.Access, *, code: bool = False) -> None:
        assert code
        marked.extend(range(gfn, gfn + count))

    rig.partition.map = record  # type: ignore[method-assign]
    control.mark_code(rig.domain, start, size)
    assert marked == list(range(frames[0], frames[1] + 1))


def test_init_parks_a_vcpu_and_sipi_starts_it(rig: Rig, control: Control) -> None:
    rig.engine(1).set("rflags", IF)
    vcpu = rig.start(1)
    control.reset_vcpu(rig.domain, 1)
    assert (vcpu.up, vcpu.running, vcpu.initialised) == (False, False, False)
    assert rig.domain.shutdown_code == -1
    control.set_vcpu(rig.domain, 1, b.CpuState(rip=0x9000))
    assert (vcpu.up, vcpu.running, vcpu.initialised) == (True, True, True)


def test_a_vcpu_that_does_not_stop_is_given_up(
    rig: Rig, control: Control, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control_module, "_STOP_TIMEOUT", 0.05)
    rig.start(0)
    rig.engine().on_kick = lambda: None
    rig.partition.dead = "QEMU ended with status 1"
    with pytest.raises(EngineError, match="QEMU ended"):
        control.reset_vcpu(rig.domain, 0)
    rig.partition.dead = ""


def test_attaching_devices(rig: Rig, control: Control) -> None:
    device = MmioRange(0, 1, lambda *_: 0, lambda *_: None)
    control.attach_mmio(rig.domain, device)
    assert rig.domain.mmio_devices == [device]
    control.set_memory_map(rig.domain, [(0, 1, 2)])
    assert rig.domain.memory_map == [(0, 1, 2)]
    control.set_max_memory(rig.domain, 7)
    assert rig.domain.max_pages == 7
    seen: list[bytes] = []
    control.on_debug_output(rig.domain, seen.append)
    assert rig.domain.hooks.console_write is not None
    rig.domain.hooks.console_write(b"x")
    assert seen == [b"x"]
