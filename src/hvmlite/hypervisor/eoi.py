"""The end of an interrupt that nobody waits for: when the guest may write it without an exit.

An exit costs a guest more than the handler of an event: its TLB.  With the per-vCPU upcall of Xen
4.17 each event ends with a write of the x2APIC's EOI register, which matters only if something else
is in service or requested, or if the handler can be interrupted before it.  Where neither is so,
the engine may let the write go by; the interrupt then counts as ended when it is taken.

Whether a handler can be interrupted before its EOI is the guest's habit: it is watched for the
first upcalls of each vCPU and now and then afterwards.  Interrupts enabled once before an EOI, and
all EOIs are seen from then on.
"""

from __future__ import annotations

from typing import Final

WATCHED_FIRST: Final = 32
"""Upcalls that are watched until the EOI of one may go by."""
WATCHED_EVERY: Final = 64
"""Of so many whose EOI could go by, one is watched all the same."""


class EoiHabit:
    """What is known of the way in which a vCPU's guest ends its upcalls."""

    __slots__ = ("_left", "_turn", "interruptible", "watching")

    def __init__(self) -> None:
        self._left = WATCHED_FIRST
        self._turn = 0
        self.interruptible = False
        """Whether the guest was seen to enable interrupts before an EOI."""
        self.watching = False
        """Whether a run shall end when the guest enables interrupts: the EOI must come first."""

    def forget(self) -> None:
        """Another kernel may run on this vCPU from now on."""
        self._left = WATCHED_FIRST
        self.interruptible = self.watching = False

    def may_pass(self) -> bool:
        """An upcall is offered whose EOI nobody waits for: whether it may go by, or is watched."""
        if self.interruptible:
            return False
        if not self._left:
            self._turn = (self._turn + 1) % WATCHED_EVERY
            if self._turn:
                self.watching = False
                return True
        self.watching = True
        return False

    def written(self) -> None:
        """The guest has written an EOI, and was seen to."""
        if self.watching:
            self.watching = False
            if self._left:
                self._left -= 1

    def enabled_interrupts(self) -> None:
        """The guest has enabled interrupts while it was watched."""
        if self.watching:
            self.watching = False
            self.interruptible = True
