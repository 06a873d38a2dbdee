"""What XENVER_* commands take and return. Source: version.h.

The sizes are the buffers a guest provides: Xen writes all of it.
"""

from typing import Annotated

from hvmlite.abi.layout import Bytes, Struct, u32, ulong

XENVER_version = 0  # returns major << 16 | minor
XENVER_extraversion = 1
XENVER_compile_info = 2
XENVER_capabilities = 3
XENVER_changeset = 4
XENVER_platform_parameters = 5
XENVER_get_features = 6
XENVER_pagesize = 7
XENVER_guest_handle = 8
XENVER_commandline = 9
XENVER_build_id = 10
# After 4.17, each with xen_varbuf: the whole string, no NUL.
XENVER_extraversion2 = 11
XENVER_capabilities2 = 12
XENVER_changeset2 = 13
XENVER_commandline2 = 14

XEN_EXTRAVERSION_LEN = 16
XEN_CAPABILITIES_INFO_LEN = 1024
XEN_CHANGESET_INFO_LEN = 64
XEN_COMMANDLINE_LEN = 1024  # sizeof(xen_commandline_t); the header has no name for it


class xen_extraversion_t(Struct):
    """XENVER_extraversion: a NUL-terminated string."""

    text: Annotated[bytes, Bytes(XEN_EXTRAVERSION_LEN)] = b""


class xen_compile_info(Struct):
    """XENVER_compile_info: four NUL-terminated strings."""

    compiler: Annotated[bytes, Bytes(64)] = b""
    compile_by: Annotated[bytes, Bytes(16)] = b""
    compile_domain: Annotated[bytes, Bytes(32)] = b""
    compile_date: Annotated[bytes, Bytes(32)] = b""


class xen_capabilities_info_t(Struct):
    """XENVER_capabilities: a NUL-terminated list of guest types, separated by spaces."""

    text: Annotated[bytes, Bytes(XEN_CAPABILITIES_INFO_LEN)] = b""


class xen_changeset_info_t(Struct):
    """XENVER_changeset: a NUL-terminated string."""

    text: Annotated[bytes, Bytes(XEN_CHANGESET_INFO_LEN)] = b""


class xen_platform_parameters(Struct):
    """XENVER_platform_parameters: start of the hypervisor's virtual address range."""

    virt_start: ulong = 0


class xen_feature_info(Struct):
    """XENVER_get_features: in submap_idx; out submap (bits XENFEAT_*)."""

    submap_idx: u32 = 0
    submap: u32 = 0


class xen_commandline_t(Struct):
    """XENVER_commandline: a NUL-terminated string."""

    text: Annotated[bytes, Bytes(XEN_COMMANDLINE_LEN)] = b""


class xen_build_id(Struct):
    """XENVER_build_id: in len, the bytes of room; the id itself follows."""

    len: u32 = 0


class xen_varbuf(Struct):
    """XENVER_*2: in len, the bytes of room; the data itself follows."""

    len: u32 = 0
