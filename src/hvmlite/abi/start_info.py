"""What a PVH guest finds at the address in EBX. Source: arch-x86/hvm/start_info.h.

All addresses are guest-physical.
"""

from hvmlite.abi.layout import Struct, u32, u64

XEN_HVM_START_MAGIC_VALUE = 0x336EC578  # "xEn3" with the top bit of the "E" set

XEN_HVM_MEMMAP_TYPE_RAM = 1
XEN_HVM_MEMMAP_TYPE_RESERVED = 2
XEN_HVM_MEMMAP_TYPE_ACPI = 3
XEN_HVM_MEMMAP_TYPE_NVS = 4
XEN_HVM_MEMMAP_TYPE_UNUSABLE = 5
XEN_HVM_MEMMAP_TYPE_DISABLED = 6
XEN_HVM_MEMMAP_TYPE_PMEM = 7


class hvm_start_info(Struct):
    """The start info of a PVH guest; memmap_* and reserved exist since version 1."""

    magic: u32 = 0  # XEN_HVM_START_MAGIC_VALUE
    version: u32 = 0
    flags: u32 = 0  # SIF_*
    nr_modules: u32 = 0
    modlist_paddr: u64 = 0  # array of hvm_modlist_entry
    cmdline_paddr: u64 = 0  # NUL-terminated
    rsdp_paddr: u64 = 0
    memmap_paddr: u64 = 0  # array of hvm_memmap_table_entry
    memmap_entries: u32 = 0
    reserved: u32 = 0


class hvm_modlist_entry(Struct):
    """One module: an initial RAM disk, say."""

    paddr: u64 = 0
    size: u64 = 0
    cmdline_paddr: u64 = 0
    reserved: u64 = 0


class hvm_memmap_table_entry(Struct):
    """One range of the memory map."""

    addr: u64 = 0
    size: u64 = 0
    type: u32 = 0  # XEN_HVM_MEMMAP_TYPE_*
    reserved: u32 = 0
