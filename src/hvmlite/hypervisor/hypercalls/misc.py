"""The small hypercalls, and those that a domU is refused.

Facts: the public headers and what real Xen 4.17 answers.
"""

from __future__ import annotations

from hvmlite.abi import xen
from hvmlite.abi.errno import XEN_EPERM
from hvmlite.hypervisor.hypercalls.registry import Family, refused

FAMILIES: tuple[Family, ...] = (
    refused(xen.__HYPERVISOR_console_io, "console_io", XEN_EPERM, "for domain 0"),
)
