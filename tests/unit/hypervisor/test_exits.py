"""Proves what each exit of the engine means for a domain: answers, faults, and when it crashes.

Recorded answers of real Xen 4.17: port.*, mem.hole.*, hcpage.*. The engine is scripted; what an
instruction on a device does in detail is in the engine's tests, hypercalls have tests of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hvmlite.abi.sched import SHUTDOWN_crash, SHUTDOWN_poweroff
from hvmlite.engine import base as b
from hvmlite.hypervisor.domain import MmioRange
from hvmlite.hypervisor.exits import HANDLERS, hypercall
from hvmlite.hypervisor.hypercalls.table import HYPERCALLS
from hvmlite.hypervisor.physmap import P2mType

from .fakes import IF, Rig

GP = 13
XENVER = 17
ONES = (1 << 64) - 1


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig(2)
    made.engine(0).set("rflags", IF)
    yield made
    made.close()


def serve(rig: Rig, exit_: b.Exit) -> list[tuple[Any, ...]]:
    """Serves an exit of vCPU 0; returns what was done to it."""
    rig.engine().log.clear()
    HANDLERS[type(exit_)](rig.domain.vcpus[0], exit_)
    return rig.engine().log


def test_every_exit_has_a_handler(rig: Rig) -> None:
    rig.engine().mmio = lambda read, write: None
    for kind in b.Exit.__subclasses__():
        HANDLERS[kind](rig.domain.vcpus[0], kind())


# --- hypercalls ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("width", "number", "result"),
    [
        (64, XENVER, 4 << 16 | 17),
        (32, XENVER, 4 << 16 | 17),
        (32, 0xABCD_0000_0000_0000 | XENVER, 4 << 16 | 17),  # the upper half is not looked at
        (64, 0xABCD_0000_0000_0000 | XENVER, -38),  # here it is
        (64, 63, -38),
        (64, ONES, -38),
        (32, ONES, -38),
    ],
)
def test_the_number_of_a_hypercall(rig: Rig, width: int, number: int, result: int) -> None:
    engine = rig.engine()
    engine.width = width
    engine.set("rax", number)
    hypercall(rig.domain.vcpus[0], b.Hypercall())
    assert engine.get("rax") == result & ((1 << width) - 1)


@pytest.mark.parametrize("level", [1, 2, 3])
def test_only_the_kernel_may_call(rig: Rig, level: int) -> None:
    engine = rig.engine()
    engine.level = level
    engine.set("rax", XENVER)
    hypercall(rig.domain.vcpus[0], b.Hypercall())
    assert engine.get("rax") == ONES


@pytest.mark.parametrize(
    ("raised", "result"), [("GuestAccessError", -14), ("XenError", -22), ("MemoryError", -12)]
)
def test_what_a_handler_raises_is_an_errno(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, raised: str, result: int
) -> None:
    from hvmlite.hypervisor.call import XenError
    from hvmlite.hypervisor.memory import GuestAccessError

    errors = {
        "GuestAccessError": GuestAccessError(5, 8),
        "XenError": XenError(22),
        "MemoryError": MemoryError("no frames"),
    }

    def handler(_call: object) -> int:
        raise errors[raised]

    monkeypatch.setitem(HYPERCALLS, 60, handler)
    rig.engine().set("rax", 60)
    hypercall(rig.domain.vcpus[0], b.Hypercall())
    assert rig.engine().get("rax") == result & ONES


def test_recent_calls_are_kept_for_a_crash_report(rig: Rig) -> None:
    vcpu = rig.domain.vcpus[0]
    for i in range(20):
        rig.engine().set("rax", XENVER if i % 2 else 63)
        rig.engine().set("rdi", i)
        hypercall(vcpu, b.Hypercall())
    assert len(vcpu.recent_calls) == 8
    assert [call[1][0] for call in vcpu.recent_calls] == list(range(12, 20))
    assert vcpu.recent_calls[-2][0::2] == (63, -38)


# --- CPUID and MSRs --------------------------------------------------------------------------


def test_cpuid_is_answered_by_the_policy(rig: Rig) -> None:
    assert serve(rig, b.Cpuid(0x4000_0001, 0)) == [("cpuid", 4 << 16 | 17, 0, 0, 0)]


def test_msrs(rig: Rig) -> None:
    assert serve(rig, b.Msr(0x1A0)) == [("rdmsr", 0)]
    assert serve(rig, b.Msr(0x8B, True, 1)) == [("wrmsr",)]
    for exit_ in (b.Msr(0x12345), b.Msr(0x12345, True, 0), b.Msr(0xC000_0080, True, 1 << 12)):
        assert serve(rig, exit_) == [("exception", GP, 0)]


# --- ports -----------------------------------------------------------------------------------


@pytest.mark.parametrize("port", [0x64, 0x70, 0x92, 0xE9, 0x3F8, 0xCF9, 0xAF00, 0xB000, 0xB008])
@pytest.mark.parametrize("size", [1, 2, 4])
def test_ports_read_as_ones(rig: Rig, port: int, size: int) -> None:
    assert serve(rig, b.PortIo(port, size)) == [("in", 0xFFFF_FFFF)]
    assert serve(rig, b.PortIo(port, size, False, 0, True)) == [("in", 0xFFFF_FFFF)]
    assert serve(rig, b.PortIo(port, size, True, 5)) == [("out",)]


def test_the_debug_port(rig: Rig) -> None:
    seen: list[bytes] = []
    rig.domain.hooks.console_write = seen.append
    serve(rig, b.PortIo(0xE9, 1, True, ord("h")))
    serve(rig, b.PortIo(0xE9, 1, True, 0, True, b"ello"))
    serve(rig, b.PortIo(0xE9, 4, True, 0x1234_5621))
    # Items of more than a byte: the low byte of each.
    serve(rig, b.PortIo(0xE9, 2, True, 0, True, b"a.b.c."))
    serve(rig, b.PortIo(0xE8, 1, True, ord("x")))
    serve(rig, b.PortIo(0xE9, 1))
    assert seen == [b"h", b"ello", b"!", b"abc"]
    rig.domain.hooks.console_write = None
    assert serve(rig, b.PortIo(0xE9, 1, True, 1)) == [("out",)]


# --- memory that is not there ----------------------------------------------------------------

HOLE = 0xD000_0000


def test_a_hole_reads_as_ones_and_swallows_writes(rig: Rig) -> None:
    seen: list[int] = []

    def access(read: Callable[[int, int], int], write: Callable[[int, int, int], None]) -> None:
        write(HOLE, 4, 0x1234)
        seen.extend(read(HOLE + 8 * size, size) for size in (1, 2, 4, 8))

    rig.engine().mmio = access
    assert serve(rig, b.Mmio(HOLE)) == []
    assert seen == [0xFF, 0xFFFF, 0xFFFF_FFFF, ONES]


def test_devices_get_what_lies_in_their_range(rig: Rig) -> None:
    seen: list[tuple[Any, ...]] = []

    def device(name: str, start: int, size: int) -> MmioRange:
        def read(vcpu: Any, address: int, size: int) -> int:
            seen.append((name, vcpu.id, address, size))
            return 0x55

        def write(vcpu: Any, address: int, size: int, value: int) -> None:
            seen.append((name, vcpu.id, address, size, value))

        return MmioRange(start, start + size, read, write)

    rig.domain.mmio_devices += [device("a", HOLE, 0x1000), device("b", HOLE + 0x1000, 0x10)]
    results: list[int] = []

    def access(read: Callable[[int, int], int], write: Callable[[int, int, int], None]) -> None:
        results.append(read(HOLE + 0xFFF, 1))
        write(HOLE + 0x1000, 4, 7)
        results.append(read(HOLE + 0x1010, 4))
        write(HOLE - 1, 1, 9)
        write(HOLE + 0x1010, 1, 9)

    rig.engine().mmio = access
    serve(rig, b.Mmio(HOLE))
    assert seen == [("a", 0, HOLE + 0xFFF, 1), ("b", 0, HOLE + 0x1000, 4, 7)]
    assert results == [0x55, 0xFFFF_FFFF]


def test_a_fetch_from_nowhere_is_a_fault(rig: Rig) -> None:
    rig.engine().mmio = lambda *_: pytest.fail("not emulated")
    assert serve(rig, b.Mmio(HOLE, fetch=True)) == [("exception", GP, 0)]


@pytest.fixture
def frame(rig: Rig) -> Iterator[int]:
    taken = rig.host.machine.allocate(1)
    yield taken
    rig.host.machine.release(taken)


GFN = 0x5000


@pytest.mark.parametrize("kind", [P2mType.GRANT_RO, P2mType.RAM_RO, P2mType.XENHEAP_RO])
def test_a_write_to_what_is_read_only(rig: Rig, frame: int, kind: P2mType) -> None:
    """It is dropped, a grant's too, and what was there is still read."""
    rig.domain.physmap.set(GFN, frame, kind)
    rig.host.machine.u64[frame * 512] = 0x1122_3344_5566_7788
    seen: list[int] = []

    def access(read: Callable[[int, int], int], write: Callable[[int, int, int], None]) -> None:
        seen.append(read(GFN << 12, 4))
        write(GFN << 12, 4, 0)
        # Over the end of the page there is nothing.
        seen.append(read((GFN << 12) + 0xFFC, 8))

    rig.engine().mmio = access
    assert serve(rig, b.Mmio(GFN << 12, write=True)) == []
    assert seen == [0x5566_7788, ONES]
    assert rig.host.machine.u64[frame * 512] == 0x1122_3344_5566_7788
    rig.domain.physmap.clear(GFN)


@pytest.mark.parametrize(
    ("kind", "write", "fetch", "again"),
    [
        (P2mType.RAM_RW, False, False, True),
        (P2mType.RAM_RW, True, False, True),
        (P2mType.RAM_RW, False, True, True),
        (P2mType.GRANT_RW, True, False, True),
        (P2mType.GRANT_RO, False, False, True),
        (P2mType.FOREIGN, True, False, True),
        (P2mType.XENHEAP, True, False, True),
        (P2mType.XENHEAP, False, True, False),
        (P2mType.FOREIGN, False, True, False),
        (P2mType.GRANT_RW, False, True, False),
        (P2mType.GRANT_RO, False, True, False),
        (P2mType.MMIO_DM, False, False, False),
    ],
)
def test_what_was_mapped_meanwhile_is_tried_again(
    rig: Rig, frame: int, kind: P2mType, write: bool, fetch: bool, again: bool
) -> None:
    """Another vCPU's hypercall may be served between an access and its exit."""
    if kind is P2mType.MMIO_DM:
        rig.domain.physmap._changes[GFN] = (-1, kind)
    else:
        rig.domain.physmap.set(GFN, frame, kind)
    rig.engine().mmio = lambda read, _write: rig.engine().log.append(("mmio", read(GFN << 12, 8)))
    done = serve(rig, b.Mmio((GFN << 12) + 0xFFC, write=write, fetch=fetch))
    assert (done == []) is again
    if kind is P2mType.MMIO_DM:
        assert done == [("mmio", ONES)]
        del rig.domain.physmap._changes[GFN]
    else:
        rig.domain.physmap.clear(GFN)


# --- the end ---------------------------------------------------------------------------------


def test_halt_with_interrupts_off_is_the_end(rig: Rig) -> None:
    rig.engine().set("rflags", 0)
    rig.domain.vcpus[0].up = True
    serve(rig, b.Halt())
    assert rig.domain.shutdown_code == SHUTDOWN_poweroff


def test_halt_with_interrupts_on_waits(rig: Rig) -> None:
    rig.domain.vcpus[0].up = True
    serve(rig, b.Halt())
    assert rig.domain.shutdown_code == -1
    assert rig.domain.vcpus[0].blocked


@pytest.mark.parametrize(
    ("exit_", "reason"),
    [(b.Shutdown(), "triple fault"), (b.Failure("VMRUN refuses"), "VMRUN refuses")],
)
def test_crashes(rig: Rig, exit_: b.Exit, reason: str) -> None:
    serve(rig, exit_)
    assert rig.domain.shutdown_code == SHUTDOWN_crash
    info = rig.domain.crash_info
    assert info is not None
    assert (info.reason, info.vcpu) == (reason, 0)


def test_a_kick_alone_does_nothing(rig: Rig) -> None:
    assert serve(rig, b.Kicked()) == []
