"""The hypercalls of control domains, hardware domains and device models, as a domU meets them.

Each looks at its arguments before it refuses, so what a domU gets depends on them.  This module
carries nothing out.  Facts: public/{sysctl,domctl,platform,xen}.h, public/hvm/dm_op.h and what
real Xen 4.17 answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvmlite.abi import domctl, platform, sysctl, xen
from hvmlite.abi.dm_op import xen_dm_op_buf
from hvmlite.abi.errno import (
    XEN_E2BIG,
    XEN_EACCES,
    XEN_EINVAL,
    XEN_ENODATA,
    XEN_EPERM,
    XEN_ESRCH,
)
from hvmlite.abi.layout import Abi
from hvmlite.hypervisor.hypercalls.domid import exists
from hvmlite.hypervisor.hypercalls.registry import Family, note

if TYPE_CHECKING:
    from hvmlite.hypervisor.call import Call

# The interface versions by release; one that is not named has the last one's before it.
SYSCTL_VERSIONS = {(4, 17): sysctl.XEN_SYSCTL_INTERFACE_VERSION, (4, 21): 0x16}
DOMCTL_VERSIONS = {(4, 17): domctl.XEN_DOMCTL_INTERFACE_VERSION, (4, 18): 0x16, (4, 19): 0x17}

DM_OP_BUFFERS = 2
"""Buffers that a dm_op call may have."""
_MMU_UPDATE_PREEMPTED = 1 << 31
_MASK32 = 0xFFFF_FFFF
_DOMID = 0xFFFF
_WHY = "for a control domain"


def _version_of(versions: dict[tuple[int, int], int], call: Call) -> int:
    return versions[max(since for since in versions if since <= call.domain.release.pair)]


def _remote(call: Call, domid: int) -> bool:
    """Whether a domain has that number; DOMID_SELF is none."""
    return domid != xen.DOMID_SELF and exists(call, domid)


def _sysctl(call: Call) -> int:
    arg = call.copy_from(call.args[0], sysctl.xen_sysctl)
    if arg.interface_version != _version_of(SYSCTL_VERSIONS, call):
        return -XEN_EACCES
    note(call, f"sysctl {arg.cmd}")
    return -XEN_EPERM


def _domctl_names(call: Call, arg: domctl.xen_domctl) -> bool:
    """Whether a domctl is about a domain that there is, or needs none."""
    special = {
        domctl.XEN_DOMCTL_createdomain: arg.domain,
        domctl.XEN_DOMCTL_assign_device: xen.DOMID_IO,
        domctl.XEN_DOMCTL_deassign_device: xen.DOMID_IO,
        domctl.XEN_DOMCTL_test_assign_device: xen.DOMID_INVALID,
        domctl.XEN_DOMCTL_vm_event_op: xen.DOMID_INVALID,
    }
    return special.get(arg.cmd) == arg.domain or _remote(call, arg.domain)


def _domctl(call: Call) -> int:
    arg = call.copy_from(call.args[0], domctl.xen_domctl)
    if arg.interface_version != _version_of(DOMCTL_VERSIONS, call):
        return -XEN_EACCES
    note(call, f"domctl {arg.cmd}")
    return -XEN_EPERM if _domctl_names(call, arg) else -XEN_ESRCH


def _paging_domctl_cont(call: Call) -> int:
    arg = call.copy_from(call.args[0], domctl.xen_domctl)
    if arg.interface_version != _version_of(DOMCTL_VERSIONS, call):
        return -XEN_EACCES
    return -XEN_EPERM if _remote(call, arg.domain) else -XEN_ESRCH


def _platform_op(call: Call) -> int:
    arg = call.copy_from(call.args[0], platform.xen_platform_op)
    if arg.interface_version != platform.XENPF_INTERFACE_VERSION:
        return -XEN_EACCES
    note(call, f"platform_op {arg.cmd}")
    return -XEN_EPERM


def _dm_op(call: Call) -> int:
    domid, count = call.args[0] & _DOMID, call.args[1] & _MASK32
    if count > DM_OP_BUFFERS:
        return -XEN_E2BIG
    if not count:
        return -XEN_ENODATA
    call.read_guest(call.args[2], count * xen_dm_op_buf.sizeof(call.abi))
    if not _remote(call, domid):
        return -XEN_ESRCH
    note(call, "dm_op")
    # Domain 0 is no HVM domain, and nobody's device model runs in a domU.
    return -XEN_EPERM if call.domain.host.domain(domid) is not None else -XEN_EINVAL


def _mmuext_op(call: Call) -> int:
    count, domid = call.args[1] & _MASK32, call.args[3] & _DOMID
    if count == _MMU_UPDATE_PREEMPTED and not call.args[0]:
        # The continuation of a call that ended meanwhile: its result.
        result = call.args[3] & _MASK32
        return result - (1 << 32) if result >> 31 else result
    if call.abi is Abi.X86_32:
        if not count & ~_MMU_UPDATE_PREEMPTED:
            return 0
        call.read_guest(call.args[0], xen.mmuext_op.sizeof(Abi.X86_32))
    note(call, "mmuext_op")
    if domid == xen.DOMID_SELF:
        return -XEN_EINVAL
    if domid in (xen.DOMID_IO, xen.DOMID_XEN):
        return -XEN_EPERM
    if domid == call.domain.domid or not exists(call, domid):
        return -XEN_ESRCH
    return -XEN_EINVAL if call.domain.host.domain(domid) is not None else -XEN_EPERM


FAMILIES = (
    Family(xen.__HYPERVISOR_sysctl, "sysctl", _sysctl, why=_WHY),
    Family(xen.__HYPERVISOR_domctl, "domctl", _domctl, why=_WHY),
    Family(xen.__HYPERVISOR_arch_1, "paging_domctl_cont", _paging_domctl_cont, why=_WHY),
    Family(xen.__HYPERVISOR_platform_op, "platform_op", _platform_op, why="for domain 0"),
    Family(xen.__HYPERVISOR_dm_op, "dm_op", _dm_op, why="for device models"),
    Family(xen.__HYPERVISOR_mmuext_op, "mmuext_op", _mmuext_op, why="for PV guests' page tables"),
)
