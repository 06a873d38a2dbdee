"""How a hypercall family declares itself, so that dispatch, trace and docs/limits.md agree."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from hvmlite.abi.errno import XEN_ENOSYS

if TYPE_CHECKING:
    from hvmlite.hypervisor.call import Call

Handler: TypeAlias = "Callable[[Call], int]"
"""Carries out one call; returns 0 or more, or a negative errno, or raises XenError."""


@dataclass(frozen=True, slots=True)
class OpInfo:
    """One sub-operation.

    `handler` is None where it is refused; then `errno` (positive) and `why` say how.  `since` is
    the first Xen release that has it, as (major, minor).
    """

    name: str
    handler: Handler | None = None
    errno: int = XEN_ENOSYS
    why: str = ""
    since: tuple[int, int] = (4, 17)


@dataclass(frozen=True, slots=True)
class Family:
    """One hypercall: its number, its name and its sub-operations (by the first argument)."""

    number: int
    name: str
    handler: Handler
    ops: Mapping[int, OpInfo] = field(default_factory=dict)
    why: str = ""
    """For a hypercall that is refused as a whole: why."""


def by_op(number: int, name: str, ops: Mapping[int, OpInfo], mask: int = 0xFFFF_FFFF) -> Family:
    """A family whose first argument (under `mask`) selects the sub-operation; unknown: ENOSYS."""
    handlers = {op: info.handler for op, info in ops.items() if info.handler is not None}
    refused = {op: -info.errno for op, info in ops.items() if info.handler is None}

    def dispatch(call: Call) -> int:
        op = call.args[0] & mask
        handler = handlers.get(op)
        if handler is not None:
            return handler(call)
        call.domain.unknown_calls[f"{name} {op}"] += 1
        return refused.get(op, -XEN_ENOSYS)

    return Family(number, name, dispatch, ops)


def refused(number: int, name: str, errno: int, why: str) -> Family:
    """A family that a domU may not use at all."""

    def refuse(call: Call) -> int:
        call.domain.unknown_calls[name] += 1
        return -errno

    return Family(number, name, refuse, {}, why)
