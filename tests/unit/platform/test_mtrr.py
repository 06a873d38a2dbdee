"""Proves the MTRR and PAT registers: the state a PVH domU finds, and which writes fault.

Expected behaviour is Xen's (arch/x86/hvm/mtrr.c) and the SDM's. Cannot see that memory is accessed
as these registers say, which it is not.
"""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvmlite.hypervisor.fault import GeneralProtection
from hvmlite.platform import mtrr
from hvmlite.platform.mtrr import Mtrr

CAP, DEF_TYPE, PAT = 0xFE, 0x2FF, 0x277
FIXED = [0x250, 0x258, 0x259, *range(0x268, 0x270)]
VARIABLE = list(range(0x200, 0x210))


@pytest.fixture
def registers() -> Mtrr:
    return Mtrr(maxphysaddr=40)


def faults(registers: Mtrr, msr: int, value: int) -> bool:
    before = dict(registers.values)
    try:
        registers.write(msr, value)
    except GeneralProtection:
        assert registers.values == before
        return True
    assert registers.read(msr) == value
    return False


def test_a_domain_starts_with_all_memory_write_back(registers: Mtrr) -> None:
    assert registers.read(CAP) == 0x508  # WC, fixed ranges, eight variable ranges
    assert registers.read(DEF_TYPE) == 0x806
    assert registers.read(PAT) == 0x0007040600070406
    assert {registers.read(msr) for msr in (*FIXED, *VARIABLE)} == {0}


def test_these_and_no_other_msrs_exist(registers: Mtrr) -> None:
    assert {CAP, DEF_TYPE, PAT, *FIXED, *VARIABLE} == mtrr.MSRS
    for msr in set(range(0xF0, 0x310)) - mtrr.MSRS:
        with pytest.raises(GeneralProtection):
            registers.read(msr)
        assert faults(registers, msr, 0)


def test_capabilities_are_read_only(registers: Mtrr) -> None:
    assert faults(registers, CAP, 0x508)


@pytest.mark.parametrize("kind", range(256))
def test_memory_types(registers: Mtrr, kind: int) -> None:
    mtrr_type = kind in (0, 1, 4, 5, 6)
    assert faults(registers, DEF_TYPE, kind) is not mtrr_type
    assert faults(registers, 0x200, 0x1000 | kind) is not mtrr_type
    for byte in range(8):
        assert faults(registers, 0x268, kind << 8 * byte) is not mtrr_type
        assert faults(registers, PAT, kind << 8 * byte) is not (mtrr_type or kind == 7)


@pytest.mark.parametrize("bit", range(64))
def test_reserved_bits(registers: Mtrr, bit: int) -> None:
    assert faults(registers, DEF_TYPE, 6 | 1 << bit) is (bit not in (1, 2, 10, 11))
    in_address = 12 <= bit < 40
    assert faults(registers, 0x201, 1 << bit) is not (in_address or bit == 11)
    assert faults(registers, 0x200, 1 << bit) is not (in_address or bit in (0, 2))


def test_address_width_is_the_guests() -> None:
    assert faults(Mtrr(maxphysaddr=36), 0x201, 1 << 36)
    assert not faults(Mtrr(maxphysaddr=52), 0x201, 1 << 51)


def test_registers_are_separate(registers: Mtrr) -> None:
    for position, msr in enumerate(VARIABLE):
        registers.write(msr, position << 12)
    for position, msr in enumerate(VARIABLE):
        assert registers.read(msr) == position << 12


@given(st.integers(0, 0x320), st.integers(0, (1 << 64) - 1))
@settings(max_examples=300)
def test_any_write_stores_or_faults(msr: int, value: int) -> None:
    faults(Mtrr(maxphysaddr=48), msr, value)
