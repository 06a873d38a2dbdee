"""platform_op: the hardware domain's commands, as far as to refuse a call by its name.

Source: platform.h.
"""

from typing import Annotated

from hvmlite.abi.layout import Bytes, Struct, u32

XENPF_INTERFACE_VERSION = 0x03000001

XENPF_settime32 = 17
XENPF_settime64 = 62
XENPF_add_memtype = 31
XENPF_del_memtype = 32
XENPF_read_memtype = 33
XENPF_microcode_update = 35
XENPF_platform_quirk = 39
XENPF_efi_runtime_call = 49
XENPF_firmware_info = 50
XENPF_enter_acpi_sleep = 51
XENPF_change_freq = 52
XENPF_getidletime = 53
XENPF_set_processor_pminfo = 54
XENPF_get_cpuinfo = 55
XENPF_get_cpu_version = 48
XENPF_cpu_online = 56
XENPF_cpu_offline = 57
XENPF_cpu_hotadd = 58
XENPF_mem_hotadd = 59
XENPF_core_parking = 60
XENPF_resource_op = 61
XENPF_get_symbol = 63


class xen_platform_op(Struct):
    """One platform_op call; `u` holds what its command takes."""

    cmd: u32 = 0
    interface_version: u32 = 0
    u: Annotated[bytes, Bytes(128)] = b""
