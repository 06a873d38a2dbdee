"""callback_op: entry points of a PV guest. Source: callback.h."""

from typing import Annotated

from hvmlite.abi.layout import Array, Struct, u16, ulong

CALLBACKTYPE_event = 0
CALLBACKTYPE_failsafe = 1
CALLBACKTYPE_syscall = 2
CALLBACKTYPE_sysenter_deprecated = 3
CALLBACKTYPE_nmi = 4
CALLBACKTYPE_sysenter = 5
CALLBACKTYPE_syscall32 = 7

CALLBACKF_mask_events = 1 << 0

CALLBACKOP_register = 0
CALLBACKOP_unregister = 1


class callback_register(Struct):
    """CALLBACKOP_register: address is the entry point; on i386 a selector, then the offset."""

    type: u16 = 0
    flags: u16 = 0
    address: Annotated[tuple[int, ...], Array(ulong, 1, 2)] = ()


class callback_unregister(Struct):
    """CALLBACKOP_unregister."""

    type: u16 = 0
    _unused: u16 = 0
