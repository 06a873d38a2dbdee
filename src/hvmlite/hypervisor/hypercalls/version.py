"""HYPERVISOR_xen_version: which Xen this is.

Facts: public/version.h, public/features.h and what real Xen 4.17 answers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvmlite.abi import version as abi
from hvmlite.abi import xen
from hvmlite.abi.errno import XEN_EINVAL, XEN_EPERM
from hvmlite.engine.memory import PAGE_SIZE
from hvmlite.hypervisor.hypercalls.registry import OpInfo, by_op

if TYPE_CHECKING:
    from hvmlite.hypervisor.call import Call


def _version(call: Call) -> int:
    return call.domain.release.version


def _get_features(call: Call) -> int:
    info = call.copy_from(call.args[1], abi.xen_feature_info)
    if info.submap_idx:
        return -XEN_EINVAL
    info.submap = call.domain.release.features
    call.copy_to(call.args[1], info)
    return 0


def _extraversion(call: Call) -> int:
    text = call.domain.release.extra.encode()
    call.copy_to(call.args[1], abi.xen_extraversion_t(text))
    return 0


def _pagesize(call: Call) -> int:
    return -XEN_EINVAL if call.args[1] else PAGE_SIZE


OPS = {
    abi.XENVER_version: OpInfo("XENVER_version", _version),
    abi.XENVER_extraversion: OpInfo("XENVER_extraversion", _extraversion),
    abi.XENVER_get_features: OpInfo("XENVER_get_features", _get_features),
    abi.XENVER_build_id: OpInfo("XENVER_build_id", None, XEN_EPERM),
}
FAMILY = by_op(xen.__HYPERVISOR_xen_version, "xen_version", OPS)
