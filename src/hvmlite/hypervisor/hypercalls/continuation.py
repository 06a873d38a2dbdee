"""Long hypercalls in slices: the guest issues the rest again by itself, as under real Xen.

Between two slices the host loop serves the others, and the guest takes its interrupts.
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


def can_continue(call: Call) -> bool:
    """Whether the guest can be made to issue this very call again: not one inside a multicall."""
    return call is call.vcpu.call


def continue_with(call: Call, number: int, *args: int) -> int:
    """Has the guest issue hypercall `number` with these arguments next; returns what to return."""
    engine = call.vcpu.engine
    for register, value in zip(_ARGUMENTS[call.abi], args, strict=False):
        engine.set(register, value)
    engine.set("rip", engine.get("rip") - _INSTRUCTION)
    return number
