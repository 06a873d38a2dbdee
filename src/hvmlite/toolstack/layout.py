"""Where things lie in a domU's guest-physical memory: every fixed address, and the memory map.

Addresses are bytes unless a name says gfn. The values are those of Xen's own toolstack, so that a
guest finds what it finds on Xen: xenguest.h, public/hvm/e820.h, tools/libs/guest/xg_dom_x86.c,
tools/libs/light/libxl_dom.c and libxl_x86.c. It computes places only and writes nothing.

    0                      low RAM: the kernel, the start info, then the modules
    MMIO_HOLE_START        0xfc000000: ACPI info page, ACPI tables, RSDP
    LAPIC_BASE             0xfee00000: local APIC, one page, where the domain has one
    SPECIAL_PAGES_START    0xfeff8000: rings shared with backends and tools, eight pages
    HIGH_RAM_START         4 GiB: the RAM that the hole below it displaces
"""

import enum
import struct
from collections.abc import Sequence
from typing import Final, NamedTuple

from hvmlite.abi.hvm import (
    HVM_PARAM_BUFIOREQ_PFN,
    HVM_PARAM_CONSOLE_PFN,
    HVM_PARAM_IDENT_PT,
    HVM_PARAM_IOREQ_PFN,
    HVM_PARAM_MONITOR_RING_PFN,
    HVM_PARAM_PAGING_RING_PFN,
    HVM_PARAM_SHARING_RING_PFN,
    HVM_PARAM_STORE_PFN,
)
from hvmlite.abi.start_info import (
    XEN_HVM_MEMMAP_TYPE_ACPI,
    XEN_HVM_MEMMAP_TYPE_RAM,
    XEN_HVM_MEMMAP_TYPE_RESERVED,
)
from hvmlite.engine.memory import PAGE_SHIFT, PAGE_SIZE
from hvmlite.errors import UserError
from hvmlite.platform import acpi
from hvmlite.platform.apicdef import APIC_DEFAULT_PHYS_BASE

LOW_RAM_START: Final = 0
HIGH_RAM_START: Final = 1 << 32

ACPI_INFO: Final = acpi.ACPI_BASE
ACPI_TABLES: Final = ACPI_INFO + acpi.TABLES_OFFSET
ACPI_RSDP: Final = ACPI_INFO + acpi.RSDP_OFFSET

LAPIC_BASE: Final = APIC_DEFAULT_PHYS_BASE

SPECIAL_PAGES_END_GFN: Final = 0xFF000
"""X86_HVM_END_SPECIAL_REGION."""
SPECIAL_PAGES: Final = 8
"""X86_HVM_NR_SPECIAL_PAGES."""
SPECIAL_PAGES_START: Final = (SPECIAL_PAGES_END_GFN - SPECIAL_PAGES) << PAGE_SHIFT


class SpecialPage(enum.IntEnum):
    """Guest frame number of each special page, in the order of SPECIALPAGE_* in xg_dom_x86.c.

    All are RAM, zeroed at first, but for IDENT_PT.
    """

    PAGING = 0xFEFF8
    ACCESS = 0xFEFF9
    SHARING = 0xFEFFA
    BUFIOREQ = 0xFEFFB
    XENSTORE = 0xFEFFC
    IOREQ = 0xFEFFD
    IDENT_PT = 0xFEFFE
    CONSOLE = 0xFEFFF


IDENT_PT: Final = SpecialPage.IDENT_PT << PAGE_SHIFT
"""Address of the identity page directory."""

HVM_PARAMS: Final = {
    HVM_PARAM_STORE_PFN: int(SpecialPage.XENSTORE),
    HVM_PARAM_BUFIOREQ_PFN: int(SpecialPage.BUFIOREQ),
    HVM_PARAM_IOREQ_PFN: int(SpecialPage.IOREQ),
    HVM_PARAM_CONSOLE_PFN: int(SpecialPage.CONSOLE),
    HVM_PARAM_PAGING_RING_PFN: int(SpecialPage.PAGING),
    HVM_PARAM_MONITOR_RING_PFN: int(SpecialPage.ACCESS),
    HVM_PARAM_SHARING_RING_PFN: int(SpecialPage.SHARING),
    HVM_PARAM_IDENT_PT: IDENT_PT,
}
"""The HVM parameters that say where a special page is: a frame number, an address for IDENT_PT."""

MMIO_HOLE_START: Final = min(ACPI_INFO, LAPIC_BASE, SPECIAL_PAGES_START)
"""Low RAM ends here at the latest; the hole lasts until 4 GiB."""

# Present, writable, user, accessed, dirty, 4 MiB page.
_IDENT_PDE_FLAGS: Final = 0xE7


class MemoryTooSmallError(UserError):
    """The domain has less memory than what must be loaded into it."""


class E820Entry(NamedTuple):
    """One range of the memory map: address and size in bytes, type an XEN_HVM_MEMMAP_TYPE_*."""

    addr: int
    size: int
    type: int


class MemoryRange(NamedTuple):
    """A range of guest-physical memory in bytes; both page-aligned."""

    start: int
    size: int


class BootPlacement(NamedTuple):
    """Page-aligned addresses of what a builder loads beside the kernel."""

    start_info: int
    modules: tuple[int, ...]
    end: int
    """First address behind all of it."""


def low_ram_end(memory_bytes: int) -> int:
    """First address behind low RAM. Raises UserError if the memory is no whole number of pages."""
    if memory_bytes <= 0 or memory_bytes % PAGE_SIZE:
        raise UserError(
            f"expected memory in whole pages of {PAGE_SIZE} bytes, got {memory_bytes} bytes"
        )
    return min(memory_bytes, MMIO_HOLE_START)


def ram_ranges(memory_bytes: int) -> list[MemoryRange]:
    """Where a domain's RAM lies: low RAM, then what does not fit below the hole, from 4 GiB up.

    Raises UserError if the memory is no whole number of pages.
    """
    low = low_ram_end(memory_bytes) - LOW_RAM_START
    ranges = [MemoryRange(LOW_RAM_START, low)]
    if memory_bytes > low:
        ranges.append(MemoryRange(HIGH_RAM_START, memory_bytes - low))
    return ranges


def populated_ranges(memory_bytes: int, with_acpi: bool = True) -> list[MemoryRange]:
    """Every range that needs frames: the RAM and, not counted as such, special and ACPI pages.

    Raises UserError if the memory is no whole number of pages.
    """
    ranges = ram_ranges(memory_bytes)
    ranges.append(MemoryRange(SPECIAL_PAGES_START, SPECIAL_PAGES << PAGE_SHIFT))
    if with_acpi:
        size = acpi.RSDP_OFFSET + acpi.RSDP_SIZE
        ranges.append(MemoryRange(ACPI_INFO, page_align_up(size)))
    return ranges


def e820(memory_bytes: int, with_acpi: bool = True) -> list[E820Entry]:
    """The memory map, in Xen's order, which is not by address.

    The one map serves hvm_start_info and XENMEM_memory_map alike.
    Raises UserError if the memory is no whole number of pages.
    """
    low, *high = (
        E820Entry(start, size, XEN_HVM_MEMMAP_TYPE_RAM) for start, size in ram_ranges(memory_bytes)
    )
    special = E820Entry(
        SPECIAL_PAGES_START, SPECIAL_PAGES << PAGE_SHIFT, XEN_HVM_MEMMAP_TYPE_RESERVED
    )
    tables = (
        (ACPI_RSDP, acpi.RSDP_SIZE),
        (ACPI_INFO, acpi.INFO_SIZE),
        (ACPI_TABLES, acpi.TABLES_SIZE),
    )
    entries = [low, special]
    if with_acpi:
        entries += [E820Entry(start, size, XEN_HVM_MEMMAP_TYPE_ACPI) for start, size in tables]
    return entries + high


def ident_pt() -> bytes:
    """Contents of the IDENT_PT page: a 32-bit page directory that maps all 4 GiB to themselves."""
    return struct.pack("<1024I", *(i << 22 | _IDENT_PDE_FLAGS for i in range(1024)))


def page_align_up(value: int) -> int:
    """The next multiple of PAGE_SIZE, or `value` if it is one."""
    return -(-value // PAGE_SIZE) * PAGE_SIZE


def check_kernel(start: int, end: int, memory_bytes: int) -> None:
    """Check that a kernel at guest-physical [start, end) lies in low RAM; address 0 is allowed.

    Raises MemoryTooSmallError if it reaches beyond, UserError if the range is empty.
    """
    if not LOW_RAM_START <= start < end:
        raise UserError(f"kernel has an empty load range, {start:#x} to {end:#x}")
    limit = low_ram_end(memory_bytes)
    if end > limit:
        raise MemoryTooSmallError(
            f"kernel loads up to {end:#x} ({_size(end)}), "
            f"but the domain's low memory ends at {limit:#x} ({_size(limit)})"
        )


def place_boot_data(
    kernel_end: int, start_info_size: int, module_sizes: Sequence[int], memory_bytes: int
) -> BootPlacement:
    """Place the start info, then each module, on the pages that follow the kernel.

    Sizes in bytes. Raises MemoryTooSmallError if they do not fit into low RAM, UserError if a
    module is empty.
    """
    limit = low_ram_end(memory_bytes)
    start_info = page_align_up(kernel_end)
    end = start_info + page_align_up(start_info_size)
    modules = []
    for index, size in enumerate(module_sizes):
        if size <= 0:
            raise UserError(f"module {index} is empty")
        modules.append(end)
        end += page_align_up(size)
    if end > limit:
        parts = [f"kernel {_size(start_info)}", f"start info {_size(start_info_size)}"]
        parts += [f"module {index} {_size(size)}" for index, size in enumerate(module_sizes)]
        raise MemoryTooSmallError(
            f"boot needs {_size(end)} of low memory ({', '.join(parts)}), "
            f"but the domain has {_size(limit)}"
        )
    return BootPlacement(start_info, tuple(modules), end)


def _size(size: int) -> str:
    """Bytes for a reader."""
    if size < 1 << 20:
        return f"{size / (1 << 10):.1f} KiB"
    return f"{size / (1 << 20):.1f} MiB"
