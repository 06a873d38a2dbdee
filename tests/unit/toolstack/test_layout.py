"""Proves the memory map, the fixed addresses and where boot data goes, against what was recorded
in PVH guests on real Xen 4.17. Cannot see whether a builder populates what the map promises.
"""

import itertools
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hvmlite.errors import UserError
from hvmlite.platform.acpi import build_acpi
from hvmlite.toolstack import layout
from hvmlite.toolstack.layout import MemoryTooSmallError, SpecialPage

MIB = 1 << 20
GIB = 1 << 30
RAM, RESERVED, ACPI = 1, 2, 3

SPECIAL = (0xFEFF_8000, 0x8000, RESERVED)
TABLES = [(0xFC00_8000, 0x40, ACPI), (0xFC00_0000, 0x1000, ACPI), (0xFC00_1000, 0x7000, ACPI)]


def test_memory_map_of_a_small_domain_is_the_recorded_one() -> None:
    assert layout.e820(128 * MIB) == [(0, 0x800_0000, RAM), SPECIAL, *TABLES]


def test_memory_map_without_acpi() -> None:
    assert layout.e820(128 * MIB, with_acpi=False) == [(0, 0x800_0000, RAM), SPECIAL]


def test_high_memory_comes_last_in_the_map() -> None:
    assert layout.e820(8 * GIB) == [
        (0, 0xFC00_0000, RAM),
        SPECIAL,
        *TABLES,
        (4 * GIB, 8 * GIB - 0xFC00_0000, RAM),
    ]


def test_the_map_agrees_with_the_tables_that_are_built() -> None:
    built = [(gpa, len(data)) for gpa, data in build_acpi(1).blobs]
    assert built == [(entry[0], entry[1]) for entry in TABLES]
    assert build_acpi(1).rsdp_paddr == layout.ACPI_RSDP


def test_memory_that_just_fits_below_the_hole() -> None:
    assert layout.ram_ranges(0xFC00_0000) == [(0, 0xFC00_0000)]
    assert layout.ram_ranges(0xFC00_1000) == [(0, 0xFC00_0000), (4 * GIB, 0x1000)]


@pytest.mark.parametrize("size", [0, -4096, 4095, 128 * MIB + 1])
def test_memory_is_whole_pages(size: int) -> None:
    with pytest.raises(UserError, match=f"whole pages of 4096 bytes, got {size} bytes"):
        layout.e820(size)


def test_pages_beyond_the_ram_are_as_many_as_on_xen() -> None:
    pages = sum(size for _, size in layout.populated_ranges(128 * MIB)) // 4096
    assert pages == 32785  # XENMEM_current_reservation of the recorded 128 MiB domain


@given(st.integers(1, 1 << 24), st.booleans())
@settings(max_examples=100)
def test_ranges_never_overlap(pages: int, with_acpi: bool) -> None:
    size = pages * 4096
    assert sum(length for _, length in layout.ram_ranges(size)) == size
    populated = sorted(layout.populated_ranges(size, with_acpi))
    for (start, length), (following, _) in itertools.pairwise(populated):
        assert start + length <= following
    for start, length, _ in layout.e820(size, with_acpi):
        assert any(begin <= start and start + length <= begin + count for begin, count in populated)
    # The local APIC's page belongs to no range.
    assert not any(start <= layout.LAPIC_BASE < start + length for start, length in populated)


def test_special_pages() -> None:
    assert SpecialPage.XENSTORE == 1044476  # ring-ref of the recorded domain's store
    assert SpecialPage.CONSOLE == 1044479  # and of its console
    assert [page - 0xFEFF8 for page in SpecialPage] == list(range(8))
    assert layout.IDENT_PT == 0xFEFF_E000
    assert max(SpecialPage) == 0xFEFFF  # XENMEM_maximum_gpfn


def test_hvm_params_name_the_special_pages() -> None:
    # HVM_PARAM_* by number: xenstore, ioreq, bufioreq, ident_pt, console, paging, monitor, sharing
    assert layout.HVM_PARAMS == {
        1: 0xFEFFC,
        5: 0xFEFFD,
        6: 0xFEFFB,
        12: 0xFEFFE000,
        17: 0xFEFFF,
        27: 0xFEFF8,
        28: 0xFEFF9,
        29: 0xFEFFA,
    }


def test_identity_page_directory() -> None:
    entries = struct.unpack("<1024I", layout.ident_pt())
    assert entries[0] == 0xE7
    assert entries[1023] == 0xFFC0_00E7


def test_boot_data_follows_the_kernel_as_in_the_recorded_boot() -> None:
    # RAMDISK: [mem 0x04a01000-0x04c3cfff]
    placed = layout.place_boot_data(0x4A0_0000, 2400, [0x23BE00], 256 * MIB)
    assert placed.start_info == 0x4A0_0000
    assert placed.modules == (0x4A0_1000,)
    assert placed.end == 0x4C3_D000


def test_boot_data_is_page_aligned() -> None:
    placed = layout.place_boot_data(0x10_0001, 4097, [1, 4096, 4097], MIB * 16)
    assert placed.start_info == 0x10_1000
    assert placed.modules == (0x10_3000, 0x10_4000, 0x10_5000)
    assert placed.end == 0x10_7000


def test_boot_data_may_fill_memory_to_the_last_page() -> None:
    placed = layout.place_boot_data(MIB, 56, [MIB - 4096], 2 * MIB)
    assert placed.end == 2 * MIB


def test_memory_too_small_says_what_needs_how_much() -> None:
    with pytest.raises(MemoryTooSmallError) as error:
        layout.place_boot_data(74 * MIB, 2400, [200 * MIB, 512], 256 * MIB)
    assert str(error.value) == (
        "boot needs 274.0 MiB of low memory (kernel 74.0 MiB, start info 2.3 KiB, "
        "module 0 200.0 MiB, module 1 0.5 KiB), but the domain has 256.0 MiB"
    )


def test_high_memory_is_no_place_for_a_ramdisk() -> None:
    with pytest.raises(MemoryTooSmallError, match=r"but the domain has 4032\.0 MiB"):
        layout.place_boot_data(16 * MIB, 56, [5 * GIB], 16 * GIB)


def test_an_empty_module_is_refused() -> None:
    with pytest.raises(UserError, match="module 1 is empty"):
        layout.place_boot_data(MIB, 56, [1, 0], 16 * MIB)


def test_kernel_range() -> None:
    layout.check_kernel(0, 16 * MIB, 16 * MIB)
    with pytest.raises(MemoryTooSmallError) as error:
        layout.check_kernel(16 * MIB, 74 * MIB, 64 * MIB)
    assert str(error.value) == (
        "kernel loads up to 0x4a00000 (74.0 MiB), "
        "but the domain's low memory ends at 0x4000000 (64.0 MiB)"
    )
    with pytest.raises(UserError, match="kernel has an empty load range, 0x1000 to 0x1000"):
        layout.check_kernel(0x1000, 0x1000, MIB)
