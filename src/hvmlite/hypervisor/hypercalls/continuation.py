"""Long hypercalls in slices: the guest issues the rest again by itself, as under real Xen.

Between two slices the host loop serves the others, and the guest takes its interrupts.  A call
inside a multicall goes on by way of its entry there, which then holds the rest's arguments.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hvmlite.abi.layout import Abi

if TYPE_CHECKING:
    from hvmlite.hypervisor.call import Call

_INSTRUCTION = 3
"""Bytes of VMCALL and of VMMCALL."""
_ARGUMENTS = {
    Abi.X86_64: ("rdi", "rsi", "rdx", "r10", "r8"),
    Abi.X86_32: ("rbx", "rcx", "rdx", "rsi", "rdi"),
}


def in_multicall(call: Call) -> bool:
    """Whether the call is one of those of a multicall."""
    return call is not call.vcpu.call


def continue_with(call: Call, number: int, *args: int) -> int:
    """Has the guest issue hypercall `number` with these arguments next; returns what to return."""
    if in_multicall(call):
        call.rest = (number, *args)
        return number
    engine = call.vcpu.engine
    for register, value in zip(_ARGUMENTS[call.abi], args, strict=False):
        engine.set(register, value)
    engine.set("rip", engine.get("rip") - _INSTRUCTION)
    return number
