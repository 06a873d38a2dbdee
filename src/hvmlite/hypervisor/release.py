"""The Xen releases that can be presented, and what changes between them.

Facts: public headers and CHANGELOG of Xen 4.17 to 4.21.
"""

from __future__ import annotations

from hvmlite.abi.features import (
    XENFEAT_auto_translated_physmap,
    XENFEAT_dm_msix_all_writes,
    XENFEAT_hvm_callback_vector,
    XENFEAT_hvm_safe_pvclock,
    XENFEAT_memory_op_vnode_supported,
    XENFEAT_not_direct_mapped,
    XENFEAT_runstate_phys_area,
    XENFEAT_vcpu_time_phys_area,
    XENFEAT_writable_page_tables,
)
from hvmlite.errors import UserError
from hvmlite.records import record

_XENFEAT_COMMON = (
    1 << XENFEAT_writable_page_tables
    | 1 << XENFEAT_auto_translated_physmap
    | 1 << XENFEAT_hvm_callback_vector
    | 1 << XENFEAT_hvm_safe_pvclock
    | 1 << XENFEAT_memory_op_vnode_supported
    | 1 << XENFEAT_not_direct_mapped
)
"""As recorded from a PVH domU of Xen 4.17."""
_SINCE_4_18 = 1 << XENFEAT_runstate_phys_area | 1 << XENFEAT_vcpu_time_phys_area
_SINCE_4_19 = 1 << XENFEAT_dm_msix_all_writes


@record(frozen=True)
class Release:
    """One Xen release as a guest sees it."""

    major: int
    minor: int
    extra: str
    features: int

    @property
    def version(self) -> int:
        """XENVER_version: major << 16 | minor."""
        return self.major << 16 | self.minor

    @property
    def pair(self) -> tuple[int, int]:
        """(major, minor)."""
        return self.major, self.minor


RELEASES = {
    (4, 17): Release(4, 17, ".7", _XENFEAT_COMMON),
    (4, 18): Release(4, 18, ".5", _XENFEAT_COMMON | _SINCE_4_18),
    (4, 19): Release(4, 19, ".4", _XENFEAT_COMMON | _SINCE_4_18 | _SINCE_4_19),
    (4, 20): Release(4, 20, ".2", _XENFEAT_COMMON | _SINCE_4_18 | _SINCE_4_19),
    (4, 21): Release(4, 21, ".0", _XENFEAT_COMMON | _SINCE_4_18 | _SINCE_4_19),
}
DEFAULT = (4, 17)


def find_release(text: str) -> Release:
    """The release named like "4.17"; raises UserError."""
    major, _, minor = text.partition(".")
    key = (int(major), int(minor)) if major.isdecimal() and minor.isdecimal() else None
    if key not in RELEASES:
        known = ", ".join(f"{a}.{b}" for a, b in RELEASES)
        raise UserError(f"xen_version {text!r} is not one of {known}")
    return RELEASES[key]
