"""GNTTABOP_copy: bytes between two pages, each named by a grant or by a frame of the caller's.

Facts: public/grant_table.h and what real Xen 4.17 answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvmlite.abi.grant_table import (
    GNTCOPY_dest_gref,
    GNTCOPY_source_gref,
    GNTST_bad_copy_arg,
    GNTST_bad_domain,
    GNTST_bad_page,
    GNTST_okay,
    GNTST_permission_denied,
    gnttab_copy,
    gnttab_copy_gmfn,
    gnttab_copy_ptr,
    gnttab_copy_ref,
)
from hvmlite.abi.xen import DOMID_SELF
from hvmlite.engine.memory import PAGE_SIZE
from hvmlite.hypervisor.grant_table.entries import GrantError
from hvmlite.hypervisor.grant_table.mapping import nothing_granted
from hvmlite.hypervisor.grant_table.table import Claim, GrantTable

if TYPE_CHECKING:
    from hvmlite.abi.layout import Abi
    from hvmlite.hypervisor.call import Call
    from hvmlite.hypervisor.domain import Domain


def copy_grant(call: Call, op: gnttab_copy) -> int:
    """Carries out one copy operation; returns its status."""
    try:
        _copy(call, op)
    except GrantError as error:
        return error.status
    return GNTST_okay


def _copy(call: Call, op: gnttab_copy) -> None:
    from_grant, to_grant = op.flags & GNTCOPY_source_gref, op.flags & GNTCOPY_dest_gref
    giver = _domain(call, op.source, from_grant)
    taker = _domain(call, op.dest, to_grant)
    source = _side(call, op.source, giver, from_grant, readonly=True)
    try:
        dest = _side(call, op.dest, taker, to_grant, readonly=False)
        try:
            if max(op.source.offset, op.dest.offset) + op.len > PAGE_SIZE:
                raise GrantError(GNTST_bad_copy_arg, "the bytes are not in one page")
            if isinstance(source, Claim):
                source.check(op.source.offset, op.len)
            if isinstance(dest, Claim):
                dest.check(op.dest.offset, op.len)
            _move(call.domain, op, source, dest)
        finally:
            if isinstance(dest, Claim):
                dest.release()
    finally:
        if isinstance(source, Claim):
            source.release()


def _move(domain: Domain, op: gnttab_copy, source: Claim | int, dest: Claim | int) -> None:
    if isinstance(source, Claim):
        data = source.read(op.source.offset, op.len)
    else:
        start = source * PAGE_SIZE + op.source.offset
        data = bytes(domain.host.machine.u8[start : start + op.len])
    if isinstance(dest, Claim):
        dest.write(op.dest.offset, data)
    else:
        _owner(domain, dest).store(dest, op.dest.offset, data)


def _owner(domain: Domain, frame: int) -> GrantTable:
    """Whose a frame in the physmap is: the domain's own, or that of one whose grant it mapped."""
    if not domain.pages.owns(frame):
        for mapping in domain.grants.maptrack.mapped.values():
            if mapping.frame == frame:
                return mapping.table
    return domain.grants


def _domain(call: Call, pointer: gnttab_copy_ptr, by_grant: int) -> Domain | None:
    """The domain of one side; None is domain 0 that no Domain plays.  Raises GrantError."""
    if pointer.domid != DOMID_SELF and not by_grant:
        raise GrantError(GNTST_permission_denied, "a frame can be named of one's own only")
    if pointer.domid in (DOMID_SELF, call.domain.domid):
        return call.domain
    domain = call.domain.host.domain(pointer.domid)
    if domain is None and pointer.domid:
        raise GrantError(GNTST_bad_domain, f"there is no domain {pointer.domid}")
    return domain


def _side(
    call: Call, pointer: gnttab_copy_ptr, domain: Domain | None, by_grant: int, *, readonly: bool
) -> Claim | int:
    """One side of the copy: a claimed grant, or a machine frame.  Raises GrantError."""
    abi: Abi = call.abi
    if not by_grant:
        gfn = gnttab_copy_gmfn.unpack(pointer.u, abi).gmfn
        frame = call.domain.pages.frame_at(gfn, write=not readonly)
        if frame < 0:
            raise GrantError(GNTST_bad_page, f"guest frame {gfn:#x} is no memory")
        return frame
    ref = gnttab_copy_ref.unpack(pointer.u, abi).ref
    if domain is None:
        raise GrantError(nothing_granted(ref), "domain 0 granted nothing")
    return domain.grants.claim(ref, call.domain.domid, readonly=readonly)
