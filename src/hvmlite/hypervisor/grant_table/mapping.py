"""GNTTABOP_map_grant_ref and GNTTABOP_unmap_grant_ref of a guest.

A grant is mapped at a guest frame of the caller's physmap.  Facts: public/grant_table.h and what
real Xen 4.17 answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvmlite.abi.grant_table import (
    GNTMAP_application_map,
    GNTMAP_contains_pte,
    GNTMAP_device_map,
    GNTMAP_host_map,
    GNTMAP_readonly,
    GNTST_bad_domain,
    GNTST_bad_gntref,
    GNTST_bad_handle,
    GNTST_general_error,
    GNTST_no_space,
    GNTST_okay,
    gnttab_map_grant_ref,
    gnttab_unmap_grant_ref,
)
from hvmlite.engine.memory import PAGE_SHIFT
from hvmlite.hypervisor.grant_table.entries import V1_PER_FRAME, GrantError
from hvmlite.hypervisor.grant_table.maptrack import NO_HANDLE, Mapping
from hvmlite.hypervisor.physmap import GRANT_TYPES, P2mType

if TYPE_CHECKING:
    from hvmlite.hypervisor.domain import Domain
    from hvmlite.hypervisor.vcpu import Vcpu

_NOT_FOR_HVM = GNTMAP_device_map | GNTMAP_application_map | GNTMAP_contains_pte


def map_grant(vcpu: Vcpu, op: gnttab_map_grant_ref) -> int:
    """Carries out one map operation and fills in its other results; returns its status.

    `Pages.settle` is left to the caller.
    """
    if not op.flags & (GNTMAP_device_map | GNTMAP_host_map):
        return GNTST_bad_gntref
    if op.flags & _NOT_FOR_HVM:
        return GNTST_general_error
    domain = vcpu.domain
    grantor = domain.host.domain(op.dom)
    if grantor is None and op.dom:
        return GNTST_bad_domain
    maptrack = domain.grants.maptrack
    handle = maptrack.allocate(vcpu.id)
    if handle == NO_HANDLE:
        return GNTST_no_space
    status = _map_as(domain, handle, grantor, op)
    if status != GNTST_okay:
        maptrack.release(handle)
    return status


def _map_as(domain: Domain, handle: int, grantor: Domain | None, op: gnttab_map_grant_ref) -> int:
    if grantor is None:
        return nothing_granted(op.ref)
    readonly = bool(op.flags & GNTMAP_readonly)
    table = grantor.grants
    try:
        pin = table.pin(op.ref, domain.domid, readonly=readonly)
    except GrantError as error:
        return error.status
    kind = P2mType.GRANT_RO if readonly else P2mType.GRANT_RW
    if op.flags & ~GNTMAP_readonly != GNTMAP_host_map or domain.pages.place(
        op.host_addr >> PAGE_SHIFT, pin.frame, kind
    ):
        table.unpin(op.ref, readonly=readonly)
        return GNTST_general_error
    domain.grants.maptrack.mapped[handle] = Mapping(table, op.ref, pin.frame, readonly)
    op.dev_bus_addr = pin.frame << PAGE_SHIFT
    op.handle = handle
    return GNTST_okay


def nothing_granted(ref: int) -> int:
    """The status for a grant of domain 0 that no Domain plays: it has one frame of no grants."""
    return GNTST_general_error if ref < V1_PER_FRAME else GNTST_bad_gntref


def unmap_grant(domain: Domain, op: gnttab_unmap_grant_ref, gone: list[Mapping]) -> int:
    """Carries out one unmap operation; returns its status.

    A mapping that went is added to `gone`; `finish_unmap` it once no vCPU can use it any more.
    """
    maptrack = domain.grants.maptrack
    mapping = maptrack.mapped.get(op.handle)
    if mapping is None:
        return GNTST_bad_handle
    if op.dev_bus_addr and op.dev_bus_addr != mapping.frame << PAGE_SHIFT:
        return GNTST_general_error
    if op.host_addr:
        gfn = op.host_addr >> PAGE_SHIFT
        entry = domain.physmap.lookup(gfn)
        if entry is None or entry[1] not in GRANT_TYPES or entry[0] != mapping.frame:
            return GNTST_general_error
        domain.pages.take_out(gfn)
        maptrack.release(op.handle)
        gone.append(mapping)
    return GNTST_okay


def finish_unmap(domain: Domain, gone: list[Mapping]) -> None:
    """Gives up what the mappings in the list held, and empties it."""
    domain.pages.settle()
    for mapping in gone:
        mapping.table.unpin(mapping.ref, readonly=mapping.readonly)
    gone.clear()
