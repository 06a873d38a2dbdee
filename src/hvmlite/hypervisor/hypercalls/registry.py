"""How a hypercall family declares itself, so that dispatch, trace and docs/limits.md agree."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeAlias

from hvmlite.abi.errno import XEN_ENOSYS
from hvmlite.records import field, record

if TYPE_CHECKING:
    from hvmlite.hypervisor.call import Call

OLDEST = (4, 17)
"""The oldest release that can be presented."""
NOTED = 256
"""Different refused calls of a domain that are counted apart."""

Handler: TypeAlias = "Callable[[Call], int]"
"""Carries out one call; returns 0 or more, or a negative errno, or raises XenError."""


@record(frozen=True)
class OpInfo:
    """One sub-operation.

    `handler` is None where it is refused; then `errno` (positive) and `why` say how.  `since` is
    the first Xen release that has it, as (major, minor); an older one answers `errno`.
    """

    name: str
    handler: Handler | None = None
    errno: int = XEN_ENOSYS
    why: str = ""
    since: tuple[int, int] = OLDEST


@record(frozen=True)
class Family:
    """One hypercall: its number, its name and its sub-operations (by the first argument)."""

    number: int
    name: str
    handler: Handler
    ops: Mapping[int, OpInfo] = field(default_factory=dict)
    why: str = ""
    """For a hypercall that is refused as a whole: why."""


def note(call: Call, what: str) -> None:
    """Counts a call that was refused, for the user to see; a guest can fill only so many lines."""
    counts = call.domain.unknown_calls
    if what in counts or len(counts) < NOTED:
        counts[what] += 1


def handlers_of(ops: Mapping[int, OpInfo]) -> dict[int, Handler]:
    """The handlers of those that have one, each for the releases that have it."""
    return {op: _from_release(info) for op, info in ops.items() if info.handler is not None}


def _from_release(info: OpInfo) -> Handler:
    handler, since = info.handler, info.since
    assert handler is not None
    if since <= OLDEST:
        return handler

    def checked(call: Call) -> int:
        if call.domain.release.pair < since:
            note(call, info.name)
            return -info.errno
        return handler(call)

    return checked


def by_op(number: int, name: str, ops: Mapping[int, OpInfo], mask: int = 0xFFFF_FFFF) -> Family:
    """A family whose first argument (under `mask`) selects the sub-operation; unknown: ENOSYS."""
    handlers = handlers_of(ops)
    refused = {op: -info.errno for op, info in ops.items() if info.handler is None}

    def dispatch(call: Call) -> int:
        op = call.args[0] & mask
        handler = handlers.get(op)
        if handler is not None:
            return handler(call)
        note(call, f"{name} {op}")
        return refused.get(op, -XEN_ENOSYS)

    return Family(number, name, dispatch, ops)


def refused(number: int, name: str, errno: int, why: str) -> Family:
    """A family that a domU may not use at all."""

    def refuse(call: Call) -> int:
        note(call, name)
        return -errno

    return Family(number, name, refuse, {}, why)
