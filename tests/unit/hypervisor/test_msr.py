"""Proves which model-specific registers there are, what they take, and the hypercall page.

Recorded answers of real Xen 4.17: hcpage.*. MSRs that the engine lets through to the CPU, and those
of devices, have tests of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hvmlite.abi.layout import Abi
from hvmlite.hypervisor.fault import GeneralProtection
from hvmlite.hypervisor.msr import hypercall_page, read_msr, write_msr
from hvmlite.hypervisor.physmap import P2mType

from .fakes import Rig

TSC = 0x10
EFER, HYPERCALL_PAGE, VIRIDIAN_PAGE = 0xC000_0080, 0x4000_0000, 0x4000_0200
SCE, LME, LMA, NX, SVME, FFXSR = 1, 1 << 8, 1 << 10, 1 << 11, 1 << 12, 1 << 14
PG = 1 << 31
READ_ZERO = (0x8B, 0x1A0, 0x1D9, 0xC001_0010, 0xC001_0015, 0xC001_001F, 0xC001_0055)
IGNORED = (0x49, 0x8B, 0x1D9, 0xC001_001F, 0xC001_0055)


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig(2)
    yield made
    made.close()


def read(rig: Rig, index: int) -> int:
    return read_msr(rig.domain.vcpus[0], index)


def write(rig: Rig, index: int, value: int) -> None:
    write_msr(rig.domain.vcpus[0], index, value)


@pytest.mark.parametrize("index", READ_ZERO)
def test_registers_that_read_zero(rig: Rig, index: int) -> None:
    assert read(rig, index) == 0


@pytest.mark.parametrize("index", IGNORED)
def test_registers_that_swallow_writes(rig: Rig, index: int) -> None:
    write(rig, index, (1 << 64) - 1)


@given(
    st.one_of(st.integers(0, 0xFFFF_FFFF), st.integers(0, 0x2000)), st.integers(0, (1 << 64) - 1)
)
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_every_other_register_faults(rig: Rig, index: int, value: int) -> None:
    known = {EFER, TSC, HYPERCALL_PAGE, VIRIDIAN_PAGE, *READ_ZERO, *IGNORED}
    if index in known:
        return
    with pytest.raises(GeneralProtection):
        read(rig, index)
    with pytest.raises(GeneralProtection):
        write(rig, index, value)


@pytest.mark.parametrize("index", [0x49, 0x48])
def test_registers_that_cannot_be_read(rig: Rig, index: int) -> None:
    with pytest.raises(GeneralProtection):
        read(rig, index)


@pytest.mark.parametrize("index", [TSC, 0x1A0, 0xC001_0010, 0xC001_0015, VIRIDIAN_PAGE])
def test_registers_that_cannot_be_written(rig: Rig, index: int) -> None:
    with pytest.raises(GeneralProtection):
        write(rig, index, 0)


class Device:
    """A device with two ranges of registers."""

    ranges = ((0x800, 0x8FF), (0x1B, 0x1B))

    def __init__(self) -> None:
        self.log: list[tuple[Any, ...]] = []

    def read(self, vcpu: Any, index: int) -> int:
        if index == 0x8FF:
            raise GeneralProtection
        self.log.append(("read", vcpu.id, index))
        return index + 1

    def write(self, vcpu: Any, index: int, value: int) -> None:
        self.log.append(("write", vcpu.id, index, value))


def test_devices_get_their_registers(rig: Rig) -> None:
    device = Device()
    rig.domain.msr_devices |= {i: device for a, b in device.ranges for i in range(a, b + 1)}
    assert read_msr(rig.domain.vcpus[1], 0x800) == 0x801
    write(rig, 0x1B, 7)
    assert device.log == [("read", 1, 0x800), ("write", 0, 0x1B, 7)]
    for index in (0x7FF, 0x8FF, 0x900, 0x1A, 0x1C):
        with pytest.raises(GeneralProtection):
            read(rig, index)


# --- EFER ------------------------------------------------------------------------------------


def test_efer_as_the_guest_has_it(rig: Rig) -> None:
    rig.engine().set("efer", LME | LMA | NX)
    assert read(rig, EFER) == LME | LMA | NX


@pytest.mark.parametrize("value", [0, SCE, LME, NX, SCE | LME | NX | FFXSR])
def test_efer_without_paging(rig: Rig, value: int) -> None:
    write(rig, EFER, value)
    assert read(rig, EFER) == value


def test_long_mode_active_is_the_cpus(rig: Rig) -> None:
    write(rig, EFER, LME | LMA)
    assert read(rig, EFER) == LME
    rig.engine().set("efer", LME | LMA)
    rig.engine().set("cr0", PG)
    write(rig, EFER, LME | NX)
    assert read(rig, EFER) == LME | LMA | NX


@pytest.mark.parametrize("value", [SVME, 1 << 1, 1 << 9, 1 << 13, 1 << 15, 1 << 63])
def test_bits_that_efer_does_not_have(rig: Rig, value: int) -> None:
    with pytest.raises(GeneralProtection):
        write(rig, EFER, value)
    assert read(rig, EFER) == 0


@pytest.mark.parametrize(("old", "new"), [(0, LME), (LME | LMA, 0)])
def test_lme_is_fixed_while_paging_is_on(rig: Rig, old: int, new: int) -> None:
    rig.engine().set("efer", old)
    rig.engine().set("cr0", PG)
    with pytest.raises(GeneralProtection):
        write(rig, EFER, new)
    assert read(rig, EFER) == old


# --- the hypercall page ----------------------------------------------------------------------

GPA = 0x5000


def test_its_register_reads_zero(rig: Rig) -> None:
    assert read(rig, HYPERCALL_PAGE) == 0
    write(rig, HYPERCALL_PAGE, GPA)
    assert read(rig, HYPERCALL_PAGE) == 0


def test_filling_it(rig: Rig) -> None:
    rig.domain.memory.write(GPA - 8, b"\xee" * 4112)
    write(rig, HYPERCALL_PAGE, GPA)
    assert rig.domain.memory.read(GPA, 4096) == hypercall_page()
    assert rig.domain.memory.read(GPA - 8, 8) == b"\xee" * 8
    assert rig.domain.memory.read(GPA + 4096, 8) == b"\xee" * 8


def test_its_contents() -> None:
    page = hypercall_page()
    assert len(page) == 4096
    for number in range(128):
        slot = page[32 * number : 32 * number + 32]
        if number == 23:  # iret is for PV guests
            assert slot[:2] == b"\x0f\x0b"
        else:
            # mov $number,%eax; vmmcall; ret
            assert slot[:9] == b"\xb8" + bytes((number, 0, 0, 0)) + b"\x0f\x01\xd9\xc3"


@pytest.mark.parametrize("low", [1, 0x800, 0xFFF])
def test_there_is_one_page(rig: Rig, low: int) -> None:
    with pytest.raises(GeneralProtection):
        write(rig, HYPERCALL_PAGE, GPA | low)
    assert not any(rig.domain.memory.read(GPA, 4096))


@pytest.mark.parametrize("gpa", [0xD000_0000, 1 << 51, (1 << 64) - 4096])
def test_where_there_is_no_memory(rig: Rig, gpa: int) -> None:
    with pytest.raises(GeneralProtection):
        write(rig, HYPERCALL_PAGE, gpa)


def test_where_memory_is_read_only(rig: Rig) -> None:
    frame = rig.host.machine.allocate(1)
    rig.domain.physmap.set(0x5000, frame, P2mType.GRANT_RO)
    with pytest.raises(GeneralProtection):
        write(rig, HYPERCALL_PAGE, 0x5000 << 12)
    assert not any(rig.domain.memory.read(0x5000 << 12, 4096))
    rig.domain.physmap.clear(0x5000)
    rig.host.machine.release(frame)


@pytest.mark.parametrize(("width", "abi"), [(64, Abi.X86_64), (32, Abi.X86_32)])
def test_it_latches_the_layout_of_shared_info(rig: Rig, width: int, abi: Abi) -> None:
    rig.engine().width = width
    write(rig, HYPERCALL_PAGE, GPA)
    assert rig.domain.abi is abi
