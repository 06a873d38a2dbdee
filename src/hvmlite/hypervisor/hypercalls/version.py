"""HYPERVISOR_xen_version: which Xen this is.

Facts: public/version.h, public/features.h and what real Xen answers a domU, whom it denies its
command line and its build id.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvmlite.abi import version as abi
from hvmlite.abi import xen
from hvmlite.abi.errno import XEN_EINVAL, XEN_ENOBUFS, XEN_EPERM
from hvmlite.abi.layout import Abi
from hvmlite.engine.memory import PAGE_SIZE
from hvmlite.hypervisor.hypercalls.registry import OpInfo, by_op, note

if TYPE_CHECKING:
    from hvmlite.hypervisor.call import Call

CAPABILITIES = "xen-3.0-x86_64 xen-3.0-x86_32p hvm-3.0-x86_32 hvm-3.0-x86_32p hvm-3.0-x86_64 "
"""What the Xen that we present can run, as it says; here are only guests of the hvm kinds."""
CHANGESET = "unavailable"
"""What Xen says that was built outside of a source repository."""
COMPILE_INFO = abi.xen_compile_info(
    compiler=b"gcc (GCC) 12.2.0",
    compile_by=b"hvmlite",
    compile_domain=b"localdomain",
    compile_date=b"Thu Dec  8 16:45:43 UTC 2022",
)
_DENIED = b"<denied>\0"
_HYPERVISOR_VIRT_START = 0xFFFF_8000_0000_0000
_NO_COMPAT_VIRT_START = 0xFFFF_FFFF
_STRINGS_2 = (4, 18)
"""The release that brought XENVER_*2, and stopped telling HVM guests its virtual addresses."""


def _version(call: Call) -> int:
    return call.domain.release.version


def _extraversion(call: Call) -> int:
    text = call.domain.release.extra.encode()
    call.copy_to(call.args[1], abi.xen_extraversion_t(text))
    return 0


def _compile_info(call: Call) -> int:
    call.copy_to(call.args[1], COMPILE_INFO)
    return 0


def _capabilities(call: Call) -> int:
    call.copy_to(call.args[1], abi.xen_capabilities_info_t(CAPABILITIES.encode()))
    return 0


def _changeset(call: Call) -> int:
    call.copy_to(call.args[1], abi.xen_changeset_info_t(CHANGESET.encode()))
    return 0


def _platform_parameters(call: Call) -> int:
    start = 0
    if call.domain.release.pair < _STRINGS_2:
        wide = call.abi is Abi.X86_64
        start = _HYPERVISOR_VIRT_START if wide else _NO_COMPAT_VIRT_START
    call.copy_to(call.args[1], abi.xen_platform_parameters(start))
    return 0


def _get_features(call: Call) -> int:
    info = call.copy_from(call.args[1], abi.xen_feature_info)
    if info.submap_idx:
        return -XEN_EINVAL
    info.submap = call.domain.release.features
    call.copy_to(call.args[1], info)
    return 0


def _pagesize(call: Call) -> int:
    return -XEN_EINVAL if call.args[1] else PAGE_SIZE


def _guest_handle(call: Call) -> int:
    call.copy_to(call.args[1], xen.xen_uuid_t(call.domain.handle))
    return 0


def _commandline(call: Call) -> int:
    call.write_guest(call.args[1], _DENIED)
    return 0


def _string(call: Call, text: str) -> int:
    """XENVER_*2: the length for a null handle, else the string, without a NUL."""
    handle, data = call.args[1], text.encode()
    if handle:
        if len(data) > call.copy_from(handle, abi.xen_varbuf).len:
            return -XEN_ENOBUFS
        call.write_guest(handle + abi.xen_varbuf.sizeof(call.abi), data)
    return len(data)


def _extraversion2(call: Call) -> int:
    return _string(call, call.domain.release.extra)


def _capabilities2(call: Call) -> int:
    return _string(call, CAPABILITIES)


def _changeset2(call: Call) -> int:
    return _string(call, CHANGESET)


def _denied(call: Call) -> int:
    note(call, "XENVER_commandline2")
    return -XEN_EPERM


OPS = {
    abi.XENVER_version: OpInfo("XENVER_version", _version),
    abi.XENVER_extraversion: OpInfo("XENVER_extraversion", _extraversion),
    abi.XENVER_compile_info: OpInfo("XENVER_compile_info", _compile_info),
    abi.XENVER_capabilities: OpInfo("XENVER_capabilities", _capabilities),
    abi.XENVER_changeset: OpInfo("XENVER_changeset", _changeset),
    abi.XENVER_platform_parameters: OpInfo("XENVER_platform_parameters", _platform_parameters),
    abi.XENVER_get_features: OpInfo("XENVER_get_features", _get_features),
    abi.XENVER_pagesize: OpInfo("XENVER_pagesize", _pagesize),
    abi.XENVER_guest_handle: OpInfo("XENVER_guest_handle", _guest_handle),
    abi.XENVER_commandline: OpInfo("XENVER_commandline", _commandline),
    abi.XENVER_build_id: OpInfo(
        "XENVER_build_id", None, XEN_EPERM, "Xen tells it to a control domain only"
    ),
    abi.XENVER_extraversion2: OpInfo("XENVER_extraversion2", _extraversion2, since=_STRINGS_2),
    abi.XENVER_capabilities2: OpInfo("XENVER_capabilities2", _capabilities2, since=_STRINGS_2),
    abi.XENVER_changeset2: OpInfo("XENVER_changeset2", _changeset2, since=_STRINGS_2),
    abi.XENVER_commandline2: OpInfo("XENVER_commandline2", _denied, since=_STRINGS_2),
}
"""Every sub-operation; all others answer -ENOSYS."""
FAMILY = by_op(xen.__HYPERVISOR_xen_version, "xen_version", OPS)
