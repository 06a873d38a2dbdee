"""HYPERVISOR_grant_table_op."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from hvmlite.abi import grant_table as abi
from hvmlite.abi import xen
from hvmlite.abi.errno import XEN_EINVAL, XEN_EPERM, XEN_ESRCH
from hvmlite.abi.layout import Struct
from hvmlite.abi.xen import DOMID_SELF
from hvmlite.hypervisor.hypercalls.registry import OpInfo, by_op

if TYPE_CHECKING:
    from hvmlite.hypervisor.call import Call

S = TypeVar("S", bound=Struct)


def _self(call: Call, domid: int) -> bool:
    return domid in (DOMID_SELF, call.domain.domid)


def _query_size(call: Call) -> int:
    if call.args[2] != 1:
        return -XEN_EINVAL
    arg = call.copy_from(call.args[1], abi.gnttab_query_size)
    grants = call.domain.grants
    if _self(call, arg.dom):
        arg.nr_frames, arg.max_nr_frames = len(grants.frames), grants.max_frames
        arg.status = abi.GNTST_okay
    else:
        arg.status = abi.GNTST_bad_domain
    call.copy_to(call.args[1], arg)
    return 0


def _setup_table(call: Call) -> int:
    if call.args[2] != 1:
        return -XEN_EINVAL
    arg = call.copy_from(call.args[1], abi.gnttab_setup_table)
    grants = call.domain.grants
    if not _self(call, arg.dom):
        arg.status = abi.GNTST_bad_domain
    elif not grants.grow(arg.nr_frames):
        arg.status = abi.GNTST_general_error
    else:
        arg.status = abi.GNTST_okay
    call.copy_field_to(call.args[1], abi.gnttab_setup_table, "status", arg.status)
    return 0


def _set_version(call: Call) -> int:
    arg = call.copy_from(call.args[1], abi.gnttab_set_version)
    if arg.version not in (1, 2) or arg.version > call.domain.limits.max_grant_version:
        return -XEN_EINVAL
    call.domain.grants.set_version(arg.version)
    call.copy_to(call.args[1], arg)
    return 0


def _get_version(call: Call) -> int:
    arg = call.copy_from(call.args[1], abi.gnttab_get_version)
    if not _self(call, arg.dom):
        return -XEN_ESRCH if call.domain.host.domain(arg.dom) is None else -XEN_EPERM
    arg.version = call.domain.grants.version
    call.copy_field_to(call.args[1], abi.gnttab_get_version, "version", arg.version)
    return 0


_Handler = Callable[["Call"], int]
OPS = {
    abi.GNTTABOP_setup_table: OpInfo("GNTTABOP_setup_table", _setup_table),
    abi.GNTTABOP_query_size: OpInfo("GNTTABOP_query_size", _query_size),
    abi.GNTTABOP_set_version: OpInfo("GNTTABOP_set_version", _set_version),
    abi.GNTTABOP_get_version: OpInfo("GNTTABOP_get_version", _get_version),
}
FAMILY = by_op(xen.__HYPERVISOR_grant_table_op, "grant_table_op", OPS)
