"""HYPERVISOR_multicall: several hypercalls in one, each with its result beside its arguments.

Facts: public/xen.h (multicall_entry) and what real Xen 4.17 answers.
"""

from __future__ import annotations

from collections.abc import Mapping

from hvmlite.abi.errno import XEN_EFAULT, XEN_EINVAL, XEN_ENOMEM, XEN_ENOSYS
from hvmlite.abi.layout import Abi
from hvmlite.abi.xen import __HYPERVISOR_multicall as NUMBER
from hvmlite.abi.xen import multicall_entry
from hvmlite.hypervisor.call import Call, XenError
from hvmlite.hypervisor.hypercalls.continuation import continue_with, in_multicall
from hvmlite.hypervisor.hypercalls.registry import Family, Handler, note
from hvmlite.hypervisor.memory import GuestAccessError

SLICE = 32
"""Calls after which the others get their turn."""
_ARGUMENTS = 5
"""How many of the six arguments hypercalls take."""
_MASK32 = 0xFFFF_FFFF
_MASK64 = 0xFFFF_FFFF_FFFF_FFFF


def family(handlers: Mapping[int, Handler]) -> Family:
    """The multicall over a table of hypercalls, which may be filled in later."""

    def result_of(call: Call, number: int) -> int:
        handler = handlers.get(number)
        if handler is None:
            note(call, f"hypercall {number}")
            return -XEN_ENOSYS
        try:
            return handler(call)
        except GuestAccessError:
            return -XEN_EFAULT
        except XenError as error:
            return -error.errno
        except MemoryError:
            return -XEN_ENOMEM

    def multicall(call: Call) -> int:
        if in_multicall(call):
            # There is no multicall in a multicall.
            return -XEN_EINVAL
        vcpu, domain, abi = call.vcpu, call.domain, call.abi
        mask = _MASK64 if abi is Abi.X86_64 else _MASK32
        address, left = call.args[0], call.args[1] & _MASK32
        step = multicall_entry.sizeof(abi)
        inner = Call(vcpu, abi, ())
        done = 0
        while left:
            if done == SLICE or vcpu.blocked or domain.stopped or not vcpu.up:
                return continue_with(call, NUMBER, address, left)
            entry = call.copy_from(address, multicall_entry)
            inner.args, inner.rest = entry.args[:_ARGUMENTS], ()
            result = result_of(inner, entry.op) & mask
            if inner.rest:
                # The entry says from now on what is left to do of its call.
                entry.op, *args = inner.rest
                entry.args = (*args, *entry.args[len(args) :])
                entry.result = result
                call.copy_to(address, entry)
                return continue_with(call, NUMBER, address, left)
            call.copy_field_to(address, multicall_entry, "result", result)
            address, left, done = address + step, left - 1, done + 1
        return 0

    return Family(NUMBER, "multicall", multicall)
