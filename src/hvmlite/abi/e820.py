"""The memory map entry that XENMEM_memory_map fills in. Source: the BIOS's INT 15h, E820h.

Xen uses it without declaring it: its entries are 20 bytes in both layouts.
"""

from hvmlite.abi.layout import Struct, u32, u64

E820_RAM = 1
E820_RESERVED = 2
E820_ACPI = 3
E820_NVS = 4
E820_UNUSABLE = 5


class e820entry(Struct, packed=True):
    """One range of guest-physical addresses, in bytes."""

    addr: u64 = 0
    size: u64 = 0
    type: u32 = 0
