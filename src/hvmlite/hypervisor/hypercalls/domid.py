"""Which domain a hypercall's domid means.

A domU may act on itself only; domain 0 is this process: it exists, whether or not a Domain plays
it, and it is no PVH guest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvmlite.abi.errno import XEN_EPERM, XEN_ESRCH
from hvmlite.abi.xen import DOMID_SELF
from hvmlite.hypervisor.call import XenError

if TYPE_CHECKING:
    from hvmlite.hypervisor.call import Call


def is_self(call: Call, domid: int) -> bool:
    """Whether it names the caller's own domain, by DOMID_SELF or by its number."""
    return domid in (DOMID_SELF, call.domain.domid)


def exists(call: Call, domid: int) -> bool:
    """Whether there is such a domain at all."""
    return is_self(call, domid) or domid == 0 or call.domain.host.domain(domid) is not None


def require_self(call: Call, domid: int) -> None:
    """Raises XenError unless it names the caller: ESRCH for no domain, EPERM for another's."""
    if not is_self(call, domid):
        raise XenError(XEN_EPERM if exists(call, domid) else XEN_ESRCH)
