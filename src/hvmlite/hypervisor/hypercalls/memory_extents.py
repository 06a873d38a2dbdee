"""memory_op on lists of extents: increase_reservation, decrease_reservation, populate_physmap and
exchange.

The first three return how many extents are done, never an errno.  Facts: public/memory.h and what
real Xen 4.17 answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import repeat
from typing import TYPE_CHECKING

from hvmlite.abi import memory as abi
from hvmlite.abi.errno import XEN_EFAULT, XEN_EINVAL, XEN_EOPNOTSUPP, XEN_EPERM
from hvmlite.abi.xen import Hypercall
from hvmlite.engine.memory import PAGE_SHIFT, PAGE_SIZE
from hvmlite.hypervisor.call import XenError
from hvmlite.hypervisor.hypercalls.continuation import continue_with
from hvmlite.hypervisor.hypercalls.domid import is_self, require_self
from hvmlite.hypervisor.memory import GuestAccessError
from hvmlite.hypervisor.physmap import P2mType

if TYPE_CHECKING:
    from hvmlite.hypervisor.call import Call
    from hvmlite.hypervisor.pages import Pages

MEMOP_EXTENT_SHIFT = 6
"""Where the first extent to do stands in the command, above the operation (memory.h of Xen)."""
MEMOP_CMD_MASK = (1 << MEMOP_EXTENT_SHIFT) - 1
MAX_EXTENTS = 0xFFFF_FFFF >> MEMOP_EXTENT_SHIFT
SLICE = 1024
"""Frames that one call handles before the guest has to issue the rest again."""
DOMU_MAX_ORDER = 9
"""The largest extent of a domU, 2 MiB; Xen's memop-max-order."""
_ADDRESS_BITS = 0xFF
_NODE_SHIFT = 8
_ULONG_BITS = 64


def _reservation(call: Call) -> abi.xen_memory_reservation | None:
    """The caller's argument; None where Xen does nothing at all."""
    try:
        arg = call.copy_from(call.args[1], abi.xen_memory_reservation)
    except GuestAccessError:
        return None
    if arg.nr_extents > MAX_EXTENTS or call.args[0] >> MEMOP_EXTENT_SHIFT >= arg.nr_extents:
        return None
    if not is_self(call, arg.domid) or not _may_place(arg.mem_flags, call):
        return None
    return arg


def _may_place(mem_flags: int, call: Call) -> bool:
    """Whether the wishes for an address width and a NUMA node are those of a domU."""
    bits = mem_flags & _ADDRESS_BITS
    # A width that covers the machine is no restriction; a narrower one no guest can check.
    width = (call.domain.host.machine.frames - 1).bit_length() + PAGE_SHIFT
    if 0 < bits < width and bits <= PAGE_SHIFT:
        return False
    if mem_flags & abi.XENMEMF_vnode or not mem_flags >> _NODE_SHIFT & 0xFF:
        return True
    return not mem_flags & abi.XENMEMF_exact_node_request


def _frames(call: Call, address: int, start: int, end: int) -> Iterator[int]:
    """The xen_pfn_t from `start` to `end` of the caller's list; ends early where it is unreadable.

    Copied in page by page: an element is read once, and a bad page stops the list there.
    """
    code, size = call.pfn_code, call.abi.word
    while start < end:
        at = address + start * size
        count = min(end - start, max(1, (PAGE_SIZE - at % PAGE_SIZE) // size))
        try:
            values = call.read_array(at, code, count)
        except GuestAccessError:
            return
        yield from values
        start += count


def go_on(call: Call, done: int) -> int:
    """Has the guest issue the call again from extent `done` on; returns what to return."""
    command = call.args[0] & MEMOP_CMD_MASK | done << MEMOP_EXTENT_SHIFT
    return continue_with(call, Hypercall.memory_op, command, call.args[1])


def _extents(
    call: Call, one: Callable[[Pages, int, int], bool], *, listed: bool, refused: int = 0
) -> int:
    """Does `one(pages, gfn, order)` for each extent until it returns False.

    Not `listed`: there are no guest frames to read.  mem_flags in `refused`: does nothing.
    """
    done = call.args[0] >> MEMOP_EXTENT_SHIFT
    arg = _reservation(call)
    if arg is None or arg.extent_order > DOMU_MAX_ORDER or arg.mem_flags & refused:
        return done
    pages, order = call.domain.pages, arg.extent_order
    end = min(arg.nr_extents, done + max(SLICE >> order, 1))
    frames = _frames(call, arg.extent_start, done, end) if listed else repeat(0, end - done)
    try:
        for gfn in frames:
            if not one(pages, gfn, order):
                return done
            done += 1
    finally:
        pages.settle()
    return go_on(call, done) if done == end < arg.nr_extents else done


def _increase(pages: Pages, _gfn: int, order: int) -> bool:
    return pages.allocate(order) >= 0


def _decrease(pages: Pages, gfn: int, order: int) -> bool:
    return not any(pages.free(each) for each in range(gfn, gfn + (1 << order)))


def _populate(pages: Pages, gfn: int, order: int) -> bool:
    frame = pages.allocate(order)
    if frame < 0:
        return False
    # As on real Xen the memory is the domain's even if it could not be put there.
    pages.place(gfn, frame, P2mType.RAM_RW, 1 << order)
    return True


def increase_reservation(call: Call) -> int:
    """Gives the domain memory that is nowhere in its physmap."""
    return _extents(call, _increase, listed=False)


def decrease_reservation(call: Call) -> int:
    """Frees memory; the first hole, or page that is not the domain's, ends it."""
    return _extents(call, _decrease, listed=True)


def populate_physmap(call: Call) -> int:
    """Puts fresh memory at guest frames; what was there before is lost to the guest."""
    # A domain cannot have memory of its own populated on demand.
    return _extents(call, _populate, listed=True, refused=abi.XENMEMF_populate_on_demand)


def exchange(call: Call) -> int:
    """A PVH guest has no use for other machine frames: refused once its lists hold water."""
    if call.args[0] >> MEMOP_EXTENT_SHIFT:
        return -XEN_EINVAL
    arg = call.copy_from(call.args[1], abi.xen_memory_exchange)
    if arg.nr_exchanged == arg.in_.nr_extents and not _exchange_mismatch(arg):
        return 0
    try:
        _check_exchange(call, arg)
        error = XEN_EOPNOTSUPP
    except XenError as caught:
        error = caught.errno
    call.copy_field_to(call.args[1], abi.xen_memory_exchange, "nr_exchanged", arg.nr_exchanged)
    return -error


def _exchange_mismatch(arg: abi.xen_memory_exchange) -> int:
    """The errno for lists that do not belong together, 0 if they do."""
    given, wanted = arg.in_, arg.out
    if max(given.extent_order, wanted.extent_order) > DOMU_MAX_ORDER:
        return XEN_EPERM
    frames = given.nr_extents << given.extent_order
    if (
        arg.nr_exchanged > given.nr_extents
        or given.domid != wanted.domid
        or frames != wanted.nr_extents << wanted.extent_order
        or frames >> _ULONG_BITS
    ):
        return XEN_EINVAL
    return 0


def _check_exchange(call: Call, arg: abi.xen_memory_exchange) -> None:
    """Raises XenError for whatever real Xen finds before it refuses to take the first page."""
    given, wanted = arg.in_, arg.out
    mismatch = _exchange_mismatch(arg)
    if mismatch:
        raise XenError(mismatch)
    if not _may_place(wanted.mem_flags & ~_ADDRESS_BITS & ~abi.XENMEMF_vnode, call):
        raise XenError(XEN_EINVAL)
    require_self(call, given.domid)
    # What was done before is rounded down to whole extents of the larger order.
    shift = max(0, wanted.extent_order - given.extent_order)
    arg.nr_exchanged = arg.nr_exchanged >> shift << shift
    first = next(_frames(call, given.extent_start, arg.nr_exchanged, arg.nr_exchanged + 1), None)
    if first is None:
        raise XenError(XEN_EFAULT)
    if call.domain.pages.frame_at(first) < 0:
        raise XenError(XEN_EINVAL)
